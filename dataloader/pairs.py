"""Which files belong together: equal names in the folders of all directions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError

SUFFIXES = (".tif", ".tiff")
_SHOWN = 5  # names listed in a message


def paired_names(root: Path, directions: Sequence[str]) -> list[str]:
    """Sorted names of the files that every folder ``root/direction`` holds.

    Raises:
        UserError: a folder is missing or empty, or a file has no partner; the message says what is missing where.
    """
    if not directions:
        raise UserError("direction is empty; name at least one folder, for example --direction x3d0")
    found = {direction: _names(root, direction) for direction in directions}
    every = set().union(*found.values())
    gaps = [f"{root / direction} lacks {_listed(sorted(every - names))}" for direction, names in found.items() if every - names]
    if gaps:
        raise UserError(
            "files are paired by equal names: " + "; ".join(gaps) + ". Add the missing files or remove their partners"
        )
    return sorted(every)


def _names(root: Path, direction: str) -> set[str]:
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
