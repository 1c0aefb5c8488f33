"""dataset.json, and the folders that it accounts for: what ``prepare.py`` has made may be replaced, nothing else.

::

    {"version": 1,
     "directions": {"x3d0": {
        "transform": {...},             # of all sources together, see volumes.intensity
        "sources": [{"name", "path", "shape": [Z, Y, X], "dtype", "voxel_um": [z, y, x] | null, "transform": {...},
                     "parts": {"train": [[z0, z1], [y0, y1], [x0, x1]], "val": ...},      # voxels of the source
                     "files": {"train": N, "val": N}, "skipped": {"train": N, "val": N}}],
        "settings": {...}}}}            # the options of the call
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import put_folder, read_mapping, write_json

VERSION = 1
SPLITS = ("train", "val")


def read_record(folder: Path) -> dict[str, Any]:
    """dataset.json of a data set, an empty one where there is none.

    Raises:
        UserError: unreadable, or written by a newer version.
    """
    path = folder / "dataset.json"
    if not path.is_file():
        return {"version": VERSION, "directions": {}}
    record = dict(read_mapping(path, "record of a data set"))
    if record.get("version") != VERSION or not isinstance(record.get("directions"), dict):
        raise UserError(f"{path}: not a record of version {VERSION}; move it away and prepare the data set again")
    return record


def claim_directions(folder: Path, directions: Sequence[str], overwrite: bool) -> None:
    """Make sure that these directions may be written.

    Raises:
        UserError: one exists and is not ours, or is ours and ``overwrite`` is not set.
    """
    ours = read_record(folder)["directions"]
    for place in (folder / split / direction for direction in directions for split in SPLITS):
        if not place.exists():
            continue
        if place.name not in ours:
            raise UserError(
                f"{place} exists and prepare.py has not made it; move it away or choose another --direction or --dataset"
            )
        if not overwrite:
            raise UserError(f"{place} exists; replace it with --overwrite, or choose another --direction or --dataset")


def merge_record(folder: Path, finished: Path, records: Mapping[str, dict[str, Any]], settings: Mapping[str, Any]) -> None:
    """Move finished directions from ``finished/{train,val}`` into the data set and write dataset.json."""
    record = read_record(folder)
    for direction, content in records.items():
        for split in SPLITS:
            place, made = folder / split / direction, finished / split / direction
            if made.is_dir() and any(made.iterdir()):
                place.parent.mkdir(parents=True, exist_ok=True)
                put_folder(made, place)
            elif place.exists():
                shutil.rmtree(place)
        record["directions"][direction] = {**content, "settings": dict(settings)}
    write_json(folder / "dataset.json", record)
