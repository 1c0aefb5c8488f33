"""Volumes of any readable format → the folders that a training reads, with a record of what was done to them.

::

    {DATASET}/{dataset}/train/{direction}/*.tif
    {DATASET}/{dataset}/val/{direction}/*.tif
    {DATASET}/{dataset}/dataset.json

Everything grows in a hidden folder and is moved into place when it is complete.
"""

import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from tqdm import tqdm

from dataloader.cutting import Lattice, Window, split_box
from dataloader.dataset_folders import SUFFIXES, TRAIN, VAL, claim_directions, merge_record
from dataloader.sources import Source
from intensity.statistics import Normalisation, pooled, transform_of
from intensity.transform import IntensityTransform, check_finite
from utils.boxes import Box, extent, voxels_of
from utils.errors import UserError
from utils.far import LINK, FarPath, write_link
from utils.files import writing
from utils.places import require_folder_name
from volumes.volume import Triple, Volume
from writing.target_plan import free_space
from writing.write import write_tiff

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
        link: put whole TIFF files into the layout as they are: by symbolic link, else hard link, else copy.
        thick: the files' axis that has become z in the volumes.
    """

    folder: Path
    directions: tuple[str, ...]
    lattice: Lattice
    normalisation: Normalisation
    fraction: float | None
    min_mean: float | None
    scale: str
    voxel_um: Triple | None
    overwrite: bool
    link: bool
    thick: str = "z"

    def __post_init__(self) -> None:
        names, wanted = self.directions, self.normalisation
        if not all(names) or len(set(names)) < len(names):
            raise UserError(f"direction={'_'.join(names)} must be different folder names joined by single _, such as x3d0 or a_b")
        for name in names:
            require_folder_name("direction", name)
        changes = {"patch": self.lattice.patch, "step": self.lattice.step, "min_mean": self.min_mean}
        changes |= {"threshold": wanted.threshold, "percentile": wanted.percentile, "normalise": wanted.kind}
        changes |= {"thick": None if self.thick == "z" else self.thick}
        given = [f"--{name}" for name, value in changes.items() if value not in (None, (0, 0, 0), "00")]
        if self.link and given:
            raise UserError(f"--link uses the files as they are; leave out {', '.join(given)}, or --link")


def prepare_volumes(plan: Plan, sources: list[Source], settings: dict[str, Any]) -> list[str]:
    """Cut volumes into training files, or link them; the settings (plain JSON) are kept in dataset.json.

    Returns:
        What the user should know, one line each; the last says how many files there are.

    Raises:
        UserError: patches that do not fit, nothing left, no room on disc, NaN, files in the way; files to be linked that the
            training cannot read as they are.
    """
    volumes = [volume for source in sources for volume in source.volumes]
    for volume in volumes if plan.link else ():
        if volume.path.suffix.lower() not in SUFFIXES and not isinstance(volume.path, FarPath):
            raise UserError(f"{volume.path}: only TIFF files and far volumes are linked; leave out --link, and it is converted")
        if volume.channels > 1 or volume.times > 1:
            raise UserError(f"{volume.path} has several channels or time points; leave out --link, and the chosen one is copied")
    notes = _split(plan, sources)
    read = [file for volume in volumes for file in (volume.path, *volume.files)]
    claim_directions(plan.folder, plan.directions, plan.overwrite, read)
    voxels = [sum(plan.lattice.voxels(part) for part in source.parts.values()) for source in sources]
    if not plan.link:
        sizes = [sum(v.dtype.itemsize if plan.normalisation.kind == "00" else 4 for v in s.volumes) for s in sources]
        free_space(plan.folder, sum(count * size for count, size in zip(voxels, sizes, strict=True)))
    total = sum(math.prod(volume.shape) * plan.normalisation.passes(volume) for volume in volumes)
    with tqdm(total=total, desc="intensities", unit="voxel", unit_scale=True, disable=not total) as bar:
        for source in sources:
            source.transforms = [transform_of(volume, plan.normalisation, bar.update) for volume in source.volumes]
    notes += _constant(plan, sources)
    partial = plan.folder / ".prepare.partial"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with writing(plan.folder):
            title = "linking" if plan.link else "cutting"
            with tqdm(total=sum(voxels), desc=title, unit="voxel", unit_scale=True, delay=int(plan.link)) as bar:
                for source in sources:
                    notes += _cut(plan, source, partial, bar)
            notes += _counted(plan, sources)
            records = {direction: _record(plan, sources, k) for k, direction in enumerate(plan.directions)}
            merge_record(plan.folder, partial, records, settings)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return notes


def _split(plan: Plan, sources: list[Source]) -> list[str]:
    """Decide what is for validation: the last of several volumes, else the last part of the only one; and that patches fit."""
    fraction = _DEFAULT_FRACTION if plan.fraction is None else plan.fraction
    if not 0 <= fraction < 1:
        raise UserError(f"val={fraction:g} must be a fraction from 0 to below 1")
    notes = []
    if fraction and len(sources) > 1:
        for source in sources[-min(max(1, round(fraction * len(sources))), len(sources) - 1) :]:
            source.parts = {VAL: source.parts[TRAIN]}
    elif plan.link and plan.fraction:
        raise UserError("a single linked file cannot be split; leave out --link, or give --val 0")
    elif fraction and not plan.link:
        try:
            train, val = split_box(sources[0].volumes[0], plan.lattice, fraction)
            sources[0].parts = {TRAIN: train, VAL: val}
        except UserError as error:
            if plan.fraction is not None:
                raise
            notes.append(f"no validation data, which a training does without: {error}")
    for source in sources:
        if not all(plan.lattice.voxels(part) for part in source.parts.values()):
            volume = source.volumes[0]
            raise UserError(
                f"{volume.path} of (Z, Y, X) = {volume.shape} is smaller than a patch of {plan.lattice.patch}; "
                "lower --patch (0 takes a whole axis) or leave the file out"
            )
    return notes


def _constant(plan: Plan, sources: list[Source]) -> list[str]:
    """A line for every volume that holds a single value: legal, but a direction of nothing else is an error."""
    notes = []
    for k, direction in enumerate(plan.directions):
        flat = [
            f"{s.volumes[k].path}: one value only ({s.transforms[k].low:g}), nothing can be learned from it; leave it out, or "
            "check --channel, --threshold and --percentile"
            for s in sources
            if s.transforms[k].low is not None and s.transforms[k].low == s.transforms[k].high
        ]
        if len(flat) == len(sources):
            raise UserError(f"{direction} has no other volume: {flat[0]}" if len(flat) == 1 else f"{direction}: {flat[0]}")
        notes += flat
        if plan.scale == "dataset":
            shared = _pooled(sources, k)
            for source in sources:
                source.transforms[k] = shared
    return notes


def _pooled(sources: list[Source], direction: int) -> IntensityTransform:
    return pooled([s.transforms[direction] for s in sources], [math.prod(s.volumes[direction].shape) for s in sources])


def _cut(plan: Plan, source: Source, partial: Path, bar: tqdm) -> list[str]:
    """Write the patches of a source that are not background, or link it; returns what was done where links cannot be made."""
    windows = [Window(volume) for volume in source.volumes]
    suffix, notes = LINK if _is_far(source.volumes) and plan.link else ".tif", []

    def planes(window: Window, box: Box, transform: IntensityTransform) -> Iterator[NDArray]:
        for piece in window.pieces(box):
            check_finite(piece, str(window.volume.path))
            yield from (transform.apply(plane) for plane in piece)

    for split, part in source.parts.items():
        source.written[split] = source.skipped[split] = 0
        for place, box in plan.lattice.patches(part):
            if plan.min_mean is not None and windows[0].mean(box) < plan.min_mean:
                source.skipped[split] += 1
            else:
                for window, transform, direction in zip(windows, source.transforms, plan.directions, strict=True):
                    volume, path = window.volume, partial / split / direction / f"{source.name}{place}{suffix}"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    if plan.link:
                        notes += _linked(volume.path.absolute(), path)
                    else:
                        dtype, voxel_um = transform.dtype(volume.dtype), volume.voxel_um or plan.voxel_um
                        write_tiff(path, planes(window, box, transform), shape=extent(box), dtype=dtype, voxel_um=voxel_um)
                source.written[split] += 1
            bar.update(voxels_of(box))
    return notes


def _is_far(volumes: Sequence[Volume]) -> bool:
    """Whether the volumes of a source lie on other machines: all, or none."""
    far = [volume.path for volume in volumes if isinstance(volume.path, FarPath)]
    if 0 < len(far) < len(volumes):
        raise UserError(f"{far[0]}: --link pairs far volumes with far ones only; leave it out, and both are copied")
    return bool(far)


def _linked(original: Path, place: Path) -> list[str]:
    """Make a file appear in another place: by symbolic link, a far one by its address; else a note says how."""
    if isinstance(original, FarPath):
        write_link(place, original)
        return []
    with suppress(OSError, NotImplementedError):
        os.symlink(original, place)
        return []
    how = "hard link"
    try:
        os.link(original, place)
    except (OSError, NotImplementedError):
        how = "copy"
        free_space(place, original.stat().st_size)
        shutil.copyfile(original, place)
    return [f"{place.stem}: {how}, since symbolic links cannot be made there"]


def _counted(plan: Plan, sources: list[Source]) -> list[str]:
    """How many files there are now and patches were background, and that there are some."""
    train, val = (sum(source.written.get(split, 0) for source in sources) for split in (TRAIN, VAL))
    skipped = sum(sum(source.skipped.values()) for source in sources)
    if not train:
        raise UserError(
            f"all {skipped} patches have a mean grey value below min_mean={plan.min_mean:g}, so nothing is left for training; "
            "lower --min_mean"
        )
    background = f"; {skipped} patches skipped (mean below {plan.min_mean:g})" if plan.min_mean is not None else ""
    lines = [f"{plan.folder}: {train} for training, {val} for validation per direction{background}"]
    if any(VAL in source.parts for source in sources) and not val:
        lines.insert(0, "no validation data: all patches of the validation part are background")
    return lines


def _record(plan: Plan, sources: list[Source], direction: int) -> dict[str, Any]:
    """What dataset.json says about a direction."""
    records = []
    for source in sources:
        volume = source.volumes[direction]
        voxel_um = volume.voxel_um or plan.voxel_um
        records.append(
            {
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
        )
    return {"transform": _pooled(sources, direction).as_json(), "sources": records}
