"""Which files belong together: raw volumes in the order of the command line, training files by equal names."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError
from volumes.open import expand_inputs, open_volume
from volumes.volume import Volume

SUFFIXES = (".tif", ".tiff")
_SHOWN = 5  # names listed in a message


def open_sources(
    groups: Sequence[Sequence[str]],
    directions: Sequence[str],
    channels: Sequence[int] | None = None,
    time: int | None = None,
    scene: int | None = None,
) -> list[list[Volume]]:
    """Opens the volumes of every direction.

    Args:
        groups: per direction its files and folders; one group serves all directions, each taking its own channel.
        directions: names of the directions.
        channels: per direction its channel, or one for all; None: the files have one.
        time: time point of files that have several.
        scene: scene of files that have several.

    Raises:
        UserError: groups, directions and channels do not fit each other, or something cannot be opened.
    """
    if channels is not None and len(channels) not in (1, len(directions)):
        raise UserError(f"--channel names {len(channels)} channels for {len(directions)} directions; give one, or one for each")
    if len(groups) == 1 and channels is not None and len(channels) == len(directions):
        groups = [groups[0]] * len(directions)
    if len(groups) != len(directions):
        names = ", ".join(directions)
        raise UserError(
            f"{len(groups)} --input for {len(directions)} directions ({names}): give --input once per direction in that order, "
            "with all its files after it, or one --input and one --channel per direction"
        )
    opened = []
    for k, group in enumerate(groups):
        paths: list[str] = []
        for text in group:  # a pattern that the shell has left alone is expanded
            matches = [text] if Path(text).exists() or not glob.has_magic(text) else sorted(glob.glob(text))
            if not matches:
                raise UserError(f"--input {text}: no file matches this pattern")
            paths += matches
        channel = channels[k % len(channels)] if channels else None
        opened.append([open_volume(path, channel=channel, time=time, scene=scene) for path in expand_inputs(paths)])
    return opened


def paired_names(root: Path, directions: Sequence[str]) -> list[str]:
    """Sorted names of the files that every folder ``root/direction`` holds.

    Raises:
        UserError: a folder is missing or empty, or a file has no partner; the message says what is missing where.
    """
    if not directions:
        raise UserError("direction is empty; name at least one folder, for example --direction x3d0")
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
