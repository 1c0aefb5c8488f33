"""The raw volumes that a command names, opened: one list per direction, in the same order."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError
from volumes.open import expand_inputs, open_volume
from volumes.volume import Volume


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
    per_channel = channels is not None and len(channels) == len(directions)
    if len(groups) == 1 and len(directions) > 1 and per_channel:
        groups = [groups[0]] * len(directions)
    if len(groups) != len(directions):
        names = ", ".join(directions)
        raise UserError(
            f"{len(groups)} --input for {len(directions)} directions ({names}): give --input once per direction in that order, "
            "with all its files after it, or one --input and one --channel per direction"
        )
    chosen = [None if channels is None else channels[k % len(channels)] for k in range(len(directions))]
    return [
        [open_volume(path, channel=channel, time=time, scene=scene) for path in expand_inputs(_matched(group))]
        for group, channel in zip(groups, chosen, strict=True)
    ]


def _matched(group: Sequence[str]) -> list[Path]:
    """Paths of a group; a pattern that the shell has left alone is expanded."""
    found: list[Path] = []
    for text in group:
        matches = [text] if Path(text).exists() or not glob.has_magic(text) else sorted(glob.glob(text))
        if not matches:
            raise UserError(f"--input {text}: no file matches this pattern")
        found += [Path(match) for match in matches]
    return found
