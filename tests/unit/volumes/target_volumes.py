"""An output volume as the tests begin and fill it."""

from pathlib import Path

import numpy as np

from writing.target import VolumeTarget
from writing.target_plan import plan_target

SHAPE = (37, 45, 53)
VOXEL, PLACE = (2.0, 0.5, 0.4), (10.0, -3.0, 0.25)


def random_values(shape=SHAPE, dtype=np.uint16, seed=0):
    return np.random.default_rng(seed).integers(0, 250, shape).astype(dtype)


def begin(path, dtype=np.uint16, *, overwrite=False, **options):
    settings = {"shape": SHAPE, "dtype": dtype, "voxel_um": VOXEL, "translation_um": PLACE, "shard": (16, 32, 32), **options}
    return VolumeTarget(Path(path), plan_target(path, **settings), overwrite=overwrite)


def write_volume(path, values, **options):
    settings = {"shape": values.shape, "voxel_um": None, "translation_um": None, "shard": None, **options}
    target = begin(path, values.dtype, **settings)
    fill(target, values, range(len(target.boxes)))
    return target.finish()


def fill(target, values, numbers=None):
    for number in target.pending() if numbers is None else numbers:
        target.write_region(target.boxes[number], values[(..., *target.boxes[number])])
