"""Volumes of any readable format → the folders that a training reads, with a record of what was done to them.

::

    {DATASET}/{dataset}/train/{direction}/*.tif
    {DATASET}/{dataset}/val/{direction}/*.tif
    {DATASET}/{dataset}/dataset.json

Everything grows in a hidden folder and is moved into place when it is complete.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from dataloader.cutting import Lattice, Window, split_box
from dataloader.dataset_record import claim_directions, merge_record
from utils.errors import UserError
from utils.files import writing
from volumes.intensity import IntensityTransform, check_finite
from volumes.output_files import free_space
from volumes.statistics import Normalisation, pooled, transform_of
from volumes.volume import Box, Volume, extent, voxels_of, whole_box
from volumes.write import write_tiff

TRAIN, VAL = "train", "val"
_PARTIAL = ".prepare.partial"
_DEFAULT_FRACTION = 0.1


@dataclass(frozen=True)
class Plan:
    """What is asked for.

    Attributes:
        folder: the data set, {DATASET}/{dataset}.
        directions: folders in train/ and val/.
        lattice: size and distance of patches.
        normalisation: what becomes of the grey values.
        fraction: for validation; None: 0.1 where there is room. 0: none.
        min_mean: patches of the first direction whose mean grey value in the source is lower are skipped, in all directions.
        scale: "volume": every volume has its own constants; "dataset": all volumes of a direction share them.
        voxel_um: voxel size (z, y, x) in µm where a source states none.
        overwrite: replace directions that an earlier call has made.
    """

    folder: Path
    directions: tuple[str, ...]
    lattice: Lattice = field(default_factory=Lattice)
    normalisation: Normalisation = field(default_factory=lambda: Normalisation("11"))
    fraction: float | None = None
    min_mean: float | None = None
    scale: str = "volume"
    voxel_um: tuple[float, float, float] | None = None
    overwrite: bool = False


@dataclass
class Source:
    """A specimen: one volume per direction, the part of it for training and for validation, and what came of it."""

    name: str
    volumes: tuple[Volume, ...]
    parts: dict[str, Box]
    transforms: list[IntensityTransform] = field(default_factory=list)
    written: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Prepared:
    """What was made.

    Attributes:
        sources: the specimens with the number of files written and patches skipped, per split.
        notes: what the user should know, one line each.
    """

    sources: list[Source]
    notes: list[str]

    def written(self, split: str) -> int:
        """Files per direction in train or val."""
        return sum(source.written.get(split, 0) for source in self.sources)

    @property
    def skipped(self) -> int:
        """Patches that were background."""
        return sum(sum(source.skipped.values()) for source in self.sources)


def prepare_volumes(plan: Plan, volumes: Sequence[Sequence[Volume]], settings: dict[str, Any]) -> Prepared:
    """Cut volumes into training files.

    Args:
        plan: what is asked for.
        volumes: for every direction its volumes, in the same order.
        settings: plain JSON that is kept in dataset.json.

    Raises:
        UserError: unequal volumes in a pair, patches that do not fit, nothing left, no room on disc, NaN, files in the way.
    """
    sources, notes = _sources(plan, volumes)
    claim_directions(plan.folder, plan.directions, plan.overwrite)
    free_space(plan.folder, sum(_bytes(plan, source) for source in sources))
    notes += _measure(plan, sources)
    partial = plan.folder / _PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with writing(plan.folder):
            _cut(plan, sources, partial)
            _check_written(plan, sources, notes)
            merge_record(plan.folder, partial, {d: _record(plan, sources, k) for k, d in enumerate(plan.directions)}, settings)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Prepared(sources, notes)


def link_volumes(plan: Plan, volumes: Sequence[Sequence[Volume]], settings: dict[str, Any]) -> Prepared:
    """Put whole TIFF files into the layout without copying them: by symbolic link, else hard link, else copy.

    Raises:
        UserError: a volume that the training cannot read as it is; see also ``prepare_volumes``.
    """
    for volume in (volume for group in volumes for volume in group):
        if volume.path.suffix.lower() not in (".tif", ".tiff"):
            raise UserError(f"{volume.path}: only TIFF files can be linked; leave out --link, and it is converted")
        if volume.channels > 1 or volume.times > 1:
            raise UserError(f"{volume.path} has several channels or time points; leave out --link, and the chosen one is copied")
    if plan.fraction and max(map(len, volumes)) == 1:
        raise UserError("a single linked file cannot be split; leave out --link, or give --val 0")
    if max(map(len, volumes)) == 1:
        plan = replace(plan, fraction=0.0)
    sources, notes = _sources(plan, volumes)
    claim_directions(plan.folder, plan.directions, plan.overwrite)
    partial = plan.folder / _PARTIAL
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with writing(plan.folder):
            for source in tqdm(sources, desc="linking", unit="volume", delay=1, leave=False):
                _link(plan, source, partial, notes)
            merge_record(plan.folder, partial, {d: _record(plan, sources, k) for k, d in enumerate(plan.directions)}, settings)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Prepared(sources, notes)


# What goes where -----------------------------------------------------------------------------------------------------


def _sources(plan: Plan, volumes: Sequence[Sequence[Volume]]) -> tuple[list[Source], list[str]]:
    counts = {direction: len(group) for direction, group in zip(plan.directions, volumes, strict=True)}
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{count} for {direction}" for direction, count in counts.items())
        raise UserError(f"every direction needs the same number of volumes, in the same order; found {found}")
    pairs = list(zip(*volumes, strict=True))
    for pair in pairs:
        _check_pair(pair, plan.voxel_um)
    names = _names([pair[0].path for pair in pairs])
    sources = [Source(name, pair, {TRAIN: whole_box(pair[0].shape)}) for name, pair in zip(names, pairs, strict=True)]
    notes = _split(plan, sources)
    for source in sources:
        _check_patches(plan.lattice, source)
    return sources, notes


def _check_pair(pair: Sequence[Volume], voxel_um: tuple[float, float, float] | None) -> None:
    for volume in pair:
        if voxel_um and volume.voxel_um and not np.allclose(voxel_um, volume.voxel_um, rtol=0.01):
            raise UserError(
                f"{volume.path} states the voxel size {volume.voxel_um} µm (z, y, x); leave out --voxel, or correct the file"
            )
    for volume in pair[1:]:
        if volume.shape != pair[0].shape:
            raise UserError(
                f"{pair[0].path} is {pair[0].shape} (Z, Y, X) but {volume.path} is {volume.shape}; "
                "paired volumes are cut at the same places and must have the same grid"
            )


def _check_patches(lattice: Lattice, source: Source) -> None:
    for box in source.parts.values():
        if not all(lattice.starts(box)):
            raise UserError(
                f"{source.volumes[0].path} of (Z, Y, X) = {source.volumes[0].shape} is smaller than a patch of {lattice.patch}; "
                "lower --patch (0 takes a whole axis) or leave the file out"
            )


def _split(plan: Plan, sources: list[Source]) -> list[str]:
    """Decide what is for validation: the last of several volumes, else the last part of the only one."""
    fraction = _DEFAULT_FRACTION if plan.fraction is None else plan.fraction
    if not 0 <= fraction < 1:
        raise UserError(f"val={fraction:g} must be a fraction from 0 to below 1")
    if not fraction:
        return []
    if len(sources) > 1:
        for source in sources[-min(max(1, round(fraction * len(sources))), len(sources) - 1) :]:
            source.parts = {VAL: source.parts[TRAIN]}
        return []
    (source,) = sources
    try:
        train, val = split_box(source.volumes[0], plan.lattice, fraction)
    except UserError as error:
        if plan.fraction is not None:
            raise
        return [f"no validation data: {error}"]
    source.parts = {TRAIN: train, VAL: val}
    return []


def _names(paths: Sequence[Path]) -> list[str]:
    """A file name for every source: its own without suffixes, with a number where two are the same."""
    names: list[str] = []
    for path in paths:
        stem = re.sub(r"(\.ome)?\.(tiff?|zarr|nii(\.gz)?|mrcs?|rec|map|czi|lif|nd2)$", "", path.name, flags=re.IGNORECASE)
        stem = re.sub(r"[^\w.+-]+", "_", stem).strip("._") or "volume"
        unique = next(n for n in (stem, *(f"{stem}_{k}" for k in range(2, len(paths) + 2))) if n not in names)
        names.append(unique)
    return names


def _bytes(plan: Plan, source: Source) -> int:
    count = sum(math.prod(plan.lattice.size(b)) * math.prod(map(len, plan.lattice.starts(b))) for b in source.parts.values())
    kinds = (np.dtype(np.float32) if plan.normalisation.kind != "00" else volume.dtype for volume in source.volumes)
    return count * sum(kind.itemsize for kind in kinds)


# Values --------------------------------------------------------------------------------------------------------------


def _measure(plan: Plan, sources: list[Source]) -> list[str]:
    """Find the constants of all transforms; returns a line for every volume without contrast."""
    volumes = [volume for source in sources for volume in source.volumes]
    total = sum(math.prod(volume.shape) * plan.normalisation.passes(volume) for volume in volumes)
    with tqdm(total=total, desc="intensities", unit="voxel", unit_scale=True, disable=not total) as bar:
        for source in sources:
            source.transforms = [transform_of(volume, plan.normalisation, bar.update) for volume in source.volumes]
    notes = _without_contrast(plan, sources)
    if plan.scale == "dataset":
        for k in range(len(plan.directions)):
            shared = _pooled(sources, k)
            for source in sources:
                source.transforms[k] = shared
    return notes


def _without_contrast(plan: Plan, sources: list[Source]) -> list[str]:
    """One line per volume that holds a single value; legal, but a direction of nothing else is an error."""
    notes = []
    for k, direction in enumerate(plan.directions):
        flat = [s for s in sources if s.transforms[k].low is not None and s.transforms[k].low == s.transforms[k].high]
        lines = [
            f"{s.volumes[k].path}: one value only ({s.transforms[k].low:g}), nothing can be learned from it; leave it out, or "
            "check --channel, --threshold and --percentile"
            for s in flat
        ]
        if len(flat) == len(sources):
            raise UserError(f"{direction} has no other volume: {lines[0]}" if len(flat) == 1 else f"{direction}: {lines[0]}")
        notes += lines
    return notes


def _pooled(sources: list[Source], direction: int) -> IntensityTransform:
    return pooled([s.transforms[direction] for s in sources], [math.prod(s.volumes[direction].shape) for s in sources])


def _cut(plan: Plan, sources: list[Source], partial: Path) -> None:
    patches = sum(
        math.prod(map(len, plan.lattice.starts(box))) * math.prod(plan.lattice.size(box))
        for source in sources
        for box in source.parts.values()
    )
    with tqdm(total=patches, desc="cutting", unit="voxel", unit_scale=True) as bar:
        for source in sources:
            for split, part in source.parts.items():
                folders = [partial / split / direction for direction in plan.directions]
                _cut_part(plan, source, split, part, folders, bar)


def _cut_part(plan: Plan, source: Source, split: str, part: Box, folders: list[Path], bar: tqdm) -> None:
    windows = [Window(volume) for volume in source.volumes]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    written = skipped = 0
    for place, box in plan.lattice.patches(part):
        if plan.min_mean is not None and _mean(windows[0], box) < plan.min_mean:
            skipped += 1
        else:
            for window, transform, folder in zip(windows, source.transforms, folders, strict=True):
                _write(folder / f"{source.name}{place}.tif", window, box, transform, plan.voxel_um)
            written += 1
        bar.update(voxels_of(box))
    source.written[split], source.skipped[split] = written, skipped


def _mean(window: Window, box: Box) -> float:
    total = sum(float(piece.sum(dtype=np.float64)) for piece in window.pieces(box))
    return total / voxels_of(box)


def _write(
    path: Path, window: Window, box: Box, transform: IntensityTransform, voxel_um: tuple[float, float, float] | None
) -> None:
    def planes() -> Any:
        for piece in window.pieces(box):
            check_finite(piece, str(window.volume.path))
            yield from (transform.apply(plane) for plane in piece)

    z, y, x = extent(box)
    dtype = transform.dtype(window.volume.dtype)
    write_tiff(path, planes(), shape=(z, y, x), dtype=dtype, voxel_um=window.volume.voxel_um or voxel_um)


def _check_written(plan: Plan, sources: list[Source], notes: list[str]) -> None:
    prepared = Prepared(sources, notes)
    if not prepared.written(TRAIN):
        raise UserError(
            f"all {prepared.skipped} patches have a mean grey value below min_mean={plan.min_mean:g}, so nothing is left for "
            "training; lower --min_mean"
        )
    if any(VAL in source.parts for source in sources) and not prepared.written(VAL):
        notes.append("no validation data: all patches of the validation part are background")


def _link(plan: Plan, source: Source, partial: Path, notes: list[str]) -> None:
    for volume, direction in zip(source.volumes, plan.directions, strict=True):
        for split in source.parts:
            place = partial / split / direction / f"{source.name}.tif"
            place.parent.mkdir(parents=True, exist_ok=True)
            how = put_file(volume.path.absolute(), place)
            if how != "symbolic link":
                notes.append(f"{source.name}: {how}, since symbolic links cannot be made there")
            source.written[split] = 1
    source.transforms = [IntensityTransform("00") for _ in source.volumes]


def put_file(original: Path, place: Path) -> str:
    """Make a file appear in another place; returns how: "symbolic link", "hard link" or "copy"."""
    for make, how in ((os.symlink, "symbolic link"), (os.link, "hard link")):
        try:
            make(original, place)
        except (OSError, NotImplementedError):
            continue
        return how
    free_space(place, original.stat().st_size)
    shutil.copyfile(original, place)
    return "copy"


# Record --------------------------------------------------------------------------------------------------------------


def _record(plan: Plan, sources: list[Source], direction: int) -> dict[str, Any]:
    """What dataset.json says about a direction."""
    return {
        "transform": _pooled(sources, direction).as_json(),
        "sources": [_source_record(plan, source, direction) for source in sources],
    }


def _source_record(plan: Plan, source: Source, direction: int) -> dict[str, Any]:
    volume = source.volumes[direction]
    voxel_um = volume.voxel_um or plan.voxel_um
    return {
        "name": source.name,
        "path": str(volume.path.absolute()),
        "shape": list(volume.shape),
        "dtype": volume.dtype.name,
        "voxel_um": voxel_um and list(voxel_um),
        "transform": source.transforms[direction].as_json(),
        "parts": {split: [[side.start, side.stop] for side in box] for split, box in source.parts.items()},
        "files": source.written,
        "skipped": source.skipped,
    }
