"""Which raw volumes belong together: those in the same place of every direction, in the order of the command line."""

import glob
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dataloader.dataset_folders import TRAIN
from intensity.transform import IntensityTransform
from utils.boxes import Box, whole_box
from utils.errors import UserError
from volumes.open import expand_inputs, open_volume, stem_of
from volumes.volume import Triple, Volume, seen_along


@dataclass
class Source:
    """A specimen: one volume per direction, the part of it for training and for validation, and what came of it."""

    name: str
    volumes: tuple[Volume, ...]
    parts: dict[str, Box]
    transforms: list[IntensityTransform] = field(default_factory=list)
    written: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)


def open_sources(
    groups: Sequence[Sequence[str]],
    directions: Sequence[str],
    channels: Sequence[int] | None = None,
    time: int | None = None,
    scene: int | None = None,
    voxel_um: Triple | None = None,
    thick: str = "z",
) -> list[Source]:
    """One source for the volumes in the same place of every direction.

    Args:
        groups: per direction its files and folders; one group serves all directions, each taking its own channel.
        directions: names of the directions.
        channels: per direction its channel, or one for all; None: the files have one.
        time, scene: of files that have several.
        voxel_um: voxel size (z, y, x) in µm that a volume may not contradict, of volumes as they are made.
        thick: the files' axis that becomes z.

    Raises:
        UserError: groups, directions and channels do not fit each other, something cannot be opened, or numbers, shapes or voxel
            sizes are unequal.
    """
    if channels is not None and len(channels) not in (1, len(directions)):
        raise UserError(f"--channel names {len(channels)} channels for {len(directions)} directions; two: --direction x3d0_x3d1")
    if len(groups) == 1 and channels is not None and len(channels) == len(directions):
        groups = [groups[0]] * len(directions)
    if len(groups) != len(directions):
        names = ", ".join(directions)
        raise UserError(
            f"{len(groups)} --input for {len(directions)} directions ({names}): give --input once per direction in that order, "
            "with all its files after it, or one --input and one --channel per direction"
        )
    volumes: list[list[Volume]] = []
    for k, group in enumerate(groups):
        paths: list[str] = []
        for text in group:  # a pattern that the shell has left alone is expanded
            matches = [text] if Path(text).exists() or not glob.has_magic(text) else sorted(glob.glob(text))
            if not matches:
                raise UserError(f"--input {text}: no file matches this pattern")
            paths += matches
        channel = channels[k % len(channels)] if channels else None
        opened = [open_volume(path, channel=channel, time=time, scene=scene) for path in expand_inputs(paths)]
        volumes.append([seen_along(volume, thick) for volume in opened])
    if len(set(map(len, volumes))) > 1:
        found = ", ".join(f"{len(group)} for {direction}" for direction, group in zip(directions, volumes, strict=True))
        raise UserError(f"every direction needs the same number of volumes, in the same order; found {found}")
    sources: list[Source] = []
    for pair in zip(*volumes, strict=True):
        first = pair[0]
        for volume in pair:
            if voxel_um and volume.voxel_um and not np.allclose(voxel_um, volume.voxel_um, rtol=0.01):
                raise UserError(
                    f"{volume.path} states the voxel size {volume.voxel_um} µm (z, y, x); leave out --voxel, or correct the file"
                )
            if volume.doubt and not voxel_um:
                raise UserError(f"{volume.path}: {volume.doubt}, or give the voxel size with --voxel")
            if volume.shape != first.shape:
                raise UserError(
                    f"{first.path} is {first.shape} (Z, Y, X) but {volume.path} is {volume.shape}; "
                    "paired volumes are cut at the same places and must have the same grid"
                )
        stem = re.sub(r"[^\w.+-]+", "_", stem_of(first.path)).strip("._") or "volume"
        taken = [source.name for source in sources]
        name = next(name for name in (stem, *(f"{stem}_{k}" for k in range(2, len(taken) + 3))) if name not in taken)
        sources.append(Source(name, pair, {TRAIN: whole_box(first.shape)}))
    return sources
