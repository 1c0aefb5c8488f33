"""The folders of a data set: files that are paired by equal names, and dataset.json, which says what ``prepare.py`` has made.

What it has made may be replaced, nothing else.

::

    {"version": 1,
     "directions": {"x3d0": {
        "transform": {...},             # of all sources together, see intensity.transform
        "sources": [{"name", "path", "shape": [Z, Y, X], "dtype", "voxel_um": [z, y, x] | null, "transform": {...},
                     "parts": {"train": [[z0, z1], [y0, y1], [x0, x1]], "val": ...},      # voxels of the source
                     "files": {"train": N, "val": N}, "skipped": {"train": N, "val": N}}],
        "settings": {...},              # the options of the call
        "unfinished": true}}}           # while its folders are being put in place
"""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.far import LINK
from utils.files import put_folder, read_mapping, refuse_overlap, write_json

VERSION = 1
TRAIN, VAL = SPLITS = "train", "val"
SUFFIXES = (".tif", ".tiff", LINK)
_UNFINISHED = "unfinished"
_RECORD = "dataset.json"
_SHOWN = 5  # names listed in a message


def read_record(folder: Path) -> dict[str, Any]:
    """dataset.json of a data set, an empty one where there is none; a UserError: unreadable, or written by a newer version."""
    path = folder / _RECORD
    if not path.is_file():
        return {"version": VERSION, "directions": {}}
    record = dict(read_mapping(path, "record of a data set"))
    if record.get("version") != VERSION or not isinstance(record.get("directions"), dict):
        raise UserError(f"{path}: not a record of version {VERSION}; move it away and prepare the data set again")
    return record


def claim_directions(folder: Path, directions: Sequence[str], overwrite: bool, inputs: Iterable[Path]) -> None:
    """Refuse, as a UserError, directions that exist and are not ours or not to be replaced, or that this command reads."""
    ours = read_record(folder)["directions"]
    places = [folder / split / direction for direction in directions for split in SPLITS]
    refuse_overlap(places, inputs)
    for place in places:
        if not place.exists():
            continue
        if place.name not in ours:
            raise UserError(
                f"{place} exists and prepare.py has not made it; move it away or choose another --direction or --dataset"
            )
        if not overwrite and not _broken_off(ours[place.name]):
            raise UserError(f"{place} exists; replace it with --overwrite, or choose another --direction or --dataset")


def merge_record(folder: Path, finished: Path, records: Mapping[str, dict[str, Any]], settings: Mapping[str, Any]) -> None:
    """Move finished directions from ``finished/{train,val}`` into the data set and write dataset.json."""
    record = read_record(folder)
    for direction, content in records.items():
        record["directions"][direction] = {**content, "settings": dict(settings), _UNFINISHED: True}
    write_json(folder / _RECORD, record)
    for direction in records:
        for split in SPLITS:
            place, made = folder / split / direction, finished / split / direction
            if made.is_dir() and any(made.iterdir()):
                place.parent.mkdir(parents=True, exist_ok=True)
                put_folder(made, place)
            elif place.exists():
                shutil.rmtree(place)
        del record["directions"][direction][_UNFINISHED]
    write_json(folder / _RECORD, record)


def _broken_off(direction: object) -> bool:
    """Whether the making of a direction was, by its record: of train/ and val/ one may be missing, or older than the other."""
    return isinstance(direction, dict) and bool(direction.get(_UNFINISHED))


def paired_names(root: Path, directions: Sequence[str]) -> list[str]:
    """Sorted names of the files that every folder ``root/direction`` holds.

    Raises:
        UserError: a folder is missing, empty or unfinished, or a file has no partner; the message says what is missing where.
    """
    if not directions:
        raise UserError("direction is empty; name at least one folder, for example --direction x3d0")
    path = root.parent / _RECORD
    known = read_mapping(path, "record of a data set").get("directions") if path.is_file() else None
    if isinstance(known, dict) and any(_broken_off(known.get(direction)) for direction in directions):
        raise UserError(f"{root.parent}: prepare.py was stopped as it put its folders in place; run the same command again")
    found = {direction: _volume_names(root, direction) for direction in directions}
    every = set().union(*found.values())
    gaps = [f"{root / direction} lacks {_listed(sorted(every - names))}" for direction, names in found.items() if every - names]
    if gaps:
        raise UserError(
            "files are paired by equal names: " + "; ".join(gaps) + ". Add the missing files or remove their partners"
        )
    return sorted(every)


def _volume_names(root: Path, direction: str) -> set[str]:
    folder = root / direction
    if not folder.is_dir():
        beside = sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []
        there = f"folders there: {_listed(beside)}" if beside else f"{root} has no folders" if root.is_dir() else f"nor is {root}"
        raise UserError(f"{folder} is not a folder ({there}); a direction names one folder, or several joined by '_'")
    # a link to a file that is not there counts: it is missed when it is opened, not left out in silence
    files = [p.name for p in folder.iterdir() if not p.is_dir() and not p.name.startswith(".")]
    names = {name for name in files if name.lower().endswith(SUFFIXES)}
    if not names:
        other = f" ({len(files)} other files, for example {sorted(files)[0]})" if files else ""
        raise UserError(f"{folder} holds no {' or '.join('*' + s for s in SUFFIXES)} file{other}; put the volumes there")
    return names


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
