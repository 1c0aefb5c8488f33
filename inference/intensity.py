"""Which intensities an input and its output have, by the record of a run (DECISIONS §4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from inference.run import Run
from utils.errors import UserError
from volumes.intensity import Intensity, IntensityTransform
from volumes.statistics import Normalisation, transform_of
from volumes.volume import Volume

MODES = ("run", "volume", "percentile")
PERCENTILES = (0.1, 99.9)


def intensities(run: Run, volumes: Sequence[Volume], mode: str, *, prepared: bool = False) -> list[Intensity]:
    """One :class:`Intensity` per channel.

    Args:
        run: the run. Where it translates, its last folder is what the output shows: ``run`` then inverts that one's constants.
        volumes: the input, one per channel; ``volume`` and ``percentile`` scan them.
        mode: ``run`` (the run's constants), ``volume`` (the run's rule, constants of these volumes), ``percentile``.
        prepared: the input went through prepare.py as the training data did.

    Raises:
        UserError: an unknown mode, or the run does not know what the mode needs.
    """
    if mode not in MODES:
        raise UserError(f"--normalise {mode} is unknown; choose one of {', '.join(MODES)}")
    if mode == "run" and run.record is None:
        raise UserError(
            f"{run.name} has no dataset.json, so the grey values of its training are not known; use --normalise volume or "
            "percentile"
        )
    found = []
    for direction, volume in zip(run.directions, volumes, strict=False):
        if mode == "run":
            assert run.record is not None
            into = _of_run(run.record, direction, prepared, run.name)
            out = _of_run(run.record, run.directions[-1], prepared, run.name) if run.translates else into
            found.append(Intensity(into, out))
        else:
            into = _of_volume(run.record, direction, volume, mode, run.name)
            found.append(Intensity(into, into))
    return found


def _of_run(record: Mapping[str, Any], direction: str, prepared: bool, where: str) -> tuple[IntensityTransform, ...]:
    first = None if prepared else _preparation(record, direction, where)
    maps = [] if first is None else [first]
    if record["nm"] != "00":
        pooled = record["directions"][direction]["pooled"]
        maps.append(IntensityTransform(record["nm"], pooled["low"], pooled["high"]))
    return tuple(maps)


def _preparation(record: Mapping[str, Any], direction: str, where: str) -> IntensityTransform | None:
    """What prepare.py did to the raw data of a direction."""
    dataset = record.get("dataset") or {}
    entry = dataset.get("directions", {}).get(direction)
    return None if entry is None else IntensityTransform.from_json(entry["transform"], f"{where}: dataset.json")


def _of_volume(
    record: Mapping[str, Any] | None, direction: str, volume: Volume, mode: str, where: str
) -> tuple[IntensityTransform, ...]:
    nm = record["nm"] if record is not None else "11"
    prepared = None if record is None else _preparation(record, direction, where)
    kind = nm if nm != "00" else "01" if prepared is not None and prepared.normalisation == "01" else "11"
    if mode == "volume" and prepared is not None and prepared.normalisation == "zrescale":
        raise UserError(f"{where}: --normalise volume is not possible with zrescale; use --normalise run or percentile")
    clip = PERCENTILES if mode == "percentile" else record and record.get("nm_clip")
    return (transform_of(volume, Normalisation(kind, percentile=(float(clip[0]), float(clip[1])) if clip else None)),)
