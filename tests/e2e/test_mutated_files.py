"""Files that are malformed in many ways: each is read or refused with one clear error, within its own means.

``slow``: 3000 mutants. Of every format a few run by default.
"""

import math
import random
import shutil
import warnings
from functools import partial
from itertools import cycle

import numpy as np
import pytest
import sound_files
from infer_runs import make_run
from mutated_files import (
    any_file,
    hdf5_objects,
    in_nd2,
    in_zip,
    metadata,
    mrc_fields,
    nifti_2_fields,
    nifti_fields,
    npy_header,
    nrrd_fields,
    xml_of_lif,
)
from mutated_tiffs import description, tags

import evaluate
import infer
import prepare
from codes.store import CodeStore
from evaluation.record import Recorded, grey_width
from tests.outcomes import Outcomes, measures_memory
from volumes.open import expand_inputs, open_volume

MOST_BYTES = 2**27  # beside what is held; the files are of some kilobytes
WHOLE = 2**21  # voxels; of larger volumes some blocks are read


# name of the file, maker, mutators
FORMATS = {
    "tiff of ours": ("v.ome.tif", sound_files.ours, (tags, tags, description, any_file)),
    "tiff, imagej": ("v.tif", sound_files.imagej, (tags, tags, description, description, any_file)),
    "tiff, ome": ("v.ome.tif", sound_files.ome, (tags, tags, description, description, any_file)),
    "tiff, tiled": ("v.tif", sound_files.tiled, (tags, tags, description, any_file)),
    "tiff, strips": ("v.tif", sound_files.strips, (tags, tags, any_file)),
    "tiff, pages": ("v.tif", sound_files.one_by_one, (tags, tags, any_file)),
    "zarr 2": ("v.zarr", sound_files.zarr_2, (metadata, metadata, any_file)),
    "zarr 3": ("v.zarr", sound_files.zarr_3, (metadata, metadata, any_file)),
    "ome-zarr": ("v.ome.zarr", sound_files.ome_zarr, (metadata, metadata, any_file)),
    "ome-zarr 0.4": ("v.ome.zarr", sound_files.ome_zarr_4, (metadata, metadata, any_file)),
    "zarr, zipped": ("v.ome.zarr.zip", sound_files.zipped, (in_zip, in_zip, any_file)),
    "nifti": ("v.nii", sound_files.packed_nifti, (nifti_fields, nifti_fields, any_file)),
    "nifti, packed": ("v.nii.gz", sound_files.packed_nifti, (nifti_fields, any_file)),
    "nifti 2": ("v.nii", sound_files.turned_nifti, (nifti_2_fields, nifti_2_fields, any_file)),
    "mrc": ("v.mrc", sound_files.mrc, (mrc_fields, mrc_fields, any_file)),
    "npy": ("v.npy", sound_files.npy, (npy_header, any_file)),
    "npy, fortran": ("v.npy", sound_files.fortran, (any_file,)),
    "nrrd": ("v.nrrd", sound_files.nrrd, (nrrd_fields, nrrd_fields, any_file)),
    "hdf5": ("v.h5", sound_files.hdf5, (hdf5_objects, hdf5_objects, any_file)),
    "imaris": ("v.ims", sound_files.imaris, (hdf5_objects, hdf5_objects, any_file)),
    "czi": ("v.czi", sound_files.czi, (any_file,)),
    "lif": ("v.lif", sound_files.lif, (xml_of_lif, any_file)),
    "nd2": ("v.nd2", sound_files.nd2, (in_nd2, any_file)),
    "codes": ("v.codes.zarr", sound_files.codes, (metadata, metadata, metadata, any_file)),
    "gaussian codes": ("v.codes.zarr", sound_files.gaussian, (metadata, metadata, any_file)),
    "slices": ("slices", sound_files.slices, (any_file,)),
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """A folder of one sound file per format."""
    folder = tmp_path_factory.mktemp("sound")
    for kind, (name, make, _) in FORMATS.items():
        (folder / kind).mkdir()
        make(folder / kind / name)
        for other in folder.joinpath(kind).iterdir():
            if other.name != name:
                shutil.rmtree(other)
    return folder


def use(path):
    """What every command does first: find, open and read it, and what it says of its place, of a run and of grey values."""
    if path.name.endswith(".codes.zarr"):
        store = CodeStore.open(path)
        assert math.prod(store.shape) <= WHOLE, "codes that are not there"
        store.read(tuple(slice(0, size) for size in store.shape))
        assert len(store.sizes()) and isinstance(store.intensities, list)
        return
    for found in expand_inputs([path]):
        volume = open_volume(found)
        blocks = volume.blocks(2**18)
        for box in (blocks[0], blocks[len(blocks) // 2], blocks[-1]) if math.prod(volume.shape) > WHOLE else blocks:
            values = volume[box]
            assert values.dtype == volume.dtype and values.shape == tuple(side.stop - side.start for side in box)
        assert volume.voxel_um is None or (np.isfinite(volume.voxel_um).all() and min(volume.voxel_um) > 0)
        assert volume.translation_um is None or np.isfinite(volume.translation_um).all()
        Recorded.of(volume)
        grey_width(volume, 0)


def mutants(sound, tmp_path, count, seed, kinds=FORMATS):
    """One malformed file after the other, of every format in turn: the format, what was done, its path."""
    rng = random.Random(seed)
    for number, kind in zip(range(count), cycle(kinds), strict=False):
        name, _, mutators = FORMATS[kind]
        place = tmp_path / name
        (shutil.copytree if (sound / kind / name).is_dir() else shutil.copy)(sound / kind / name, place)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those of the libraries, as a user has them
            yield kind, f"{number} {rng.choice(mutators)(rng, place)}", place
        shutil.rmtree(place) if place.is_dir() else place.unlink()


def run_mutants(sound, tmp_path, count, seed=0):
    outcomes = Outcomes(most_bytes=MOST_BYTES, folder=tmp_path)
    for kind, done, place in mutants(sound, tmp_path, count, seed):
        outcomes.judge(kind, done, partial(use, place))
    outcomes.show()


@measures_memory
def test_a_few_mutated_files(sound, tmp_path):
    run_mutants(sound, tmp_path, 8 * len(FORMATS), seed=1)


@measures_memory
@pytest.mark.slow
def test_three_thousand_mutated_files(sound, tmp_path):
    run_mutants(sound, tmp_path, 3000)


def test_the_sound_files_are_read(sound):
    for kind, (name, _, _) in FORMATS.items():
        use(sound / kind / name)


# ---- whole commands

SMALL = 2**18  # voxels; larger ones would only take long
VOLUMES = [kind for kind in FORMATS if "codes" not in kind]


def run_command(how, run, path, out):
    """A command as it is typed; where one of a large volume would be begun, it is looked at only."""
    if how != "info" and any(math.prod(open_volume(found).shape) > SMALL for found in expand_inputs([path])):
        how = "dry"
    options = ["--run", run, "--input", path, "--ignore-voxels", "--force-range", "--normalise", "volume"]
    if how in ("enhance", "dry"):
        infer.main([*map(str, ["enhance", *options, "--output", out / "o.ome.tif", *["--dry-run"] * (how == "dry")])])
    elif how == "info":
        infer.main(["info", str(path)])
    elif how == "prepare":
        words = ["volumes", "--input", path, "--dataset", "d", "--data_root", out, "--val", "0", "--debug"]
        prepare.main([*map(str, words)])
    else:
        evaluate.main([*map(str, ["--reconstruction", path, "--truth", path, "--thin", 4, "--output", out / "r", "--debug"])])


def run_commands(sound, tmp_path, count, seed=0):
    rng, out, place = random.Random(seed), tmp_path / "out", tmp_path / "in"
    outcomes = Outcomes(most_seconds=20, most_bytes=2**29, folder=tmp_path)
    run = make_run(tmp_path / "D" / "P", "lateral", uprate=2, axial_sampling="mean", blocks=1)
    place.mkdir()
    for kind, done, path in mutants(sound, place, count, seed, VOLUMES):
        how = rng.choice(("enhance", "enhance", "info", "prepare", "evaluate"))
        out.mkdir()
        outcomes.judge(how, f"{kind}: {done}", partial(run_command, how, run, path, out), allowed=out)
        shutil.rmtree(out)
    outcomes.show()


@measures_memory
def test_commands_on_a_few_mutated_files(sound, tmp_path):
    run_commands(sound, tmp_path, len(VOLUMES), seed=2)


@measures_memory
@pytest.mark.slow
def test_commands_on_many_mutated_files(sound, tmp_path):
    run_commands(sound, tmp_path, 600)
