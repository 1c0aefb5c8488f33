"""Which intensities an input and its output have, by the record of a run (DECISIONS §4)."""

from __future__ import annotations

from collections.abc import Sequence

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
    inputs = list(zip(run.directions, volumes, strict=False))
    if mode == "run":
        into = [_of_run(run, direction, prepared) for direction, _ in inputs]
        out = [_of_run(run, run.directions[-1], prepared)] if run.translates else into
    else:
        into = out = [
            _of_volume(run, direction, volume, mode) for direction, volume in zip(run.directions, volumes, strict=False)
        ]
    return [Intensity(*both) for both in zip(into, out, strict=True)]


def _of_run(run: Run, direction: str, prepared: bool) -> tuple[IntensityTransform, ...]:
    assert run.record is not None
    first = None if prepared else _preparation(run, direction)
    maps = [] if first is None else [first]
    if run.record["nm"] != "00":
        pooled = run.record["directions"][direction]["pooled"]
        maps.append(IntensityTransform(run.record["nm"], pooled["low"], pooled["high"]))
    return tuple(maps)


def _preparation(run: Run, direction: str) -> IntensityTransform | None:
    """What prepare.py did to the raw data of a direction."""
    dataset = (run.record or {}).get("dataset") or {}
    entry = dataset.get("directions", {}).get(direction)
    return None if entry is None else IntensityTransform.from_json(entry["transform"], f"{run.name}: dataset.json")


def _of_volume(run: Run, direction: str, volume: Volume, mode: str) -> tuple[IntensityTransform, ...]:
    record, prepared = run.record or {"nm": "11"}, _preparation(run, direction)
    before = "11" if prepared is None else prepared.normalisation
    if mode == "volume" and before == "zrescale":
        raise UserError(f"{run.name}: --normalise volume is not possible with zrescale; use --normalise run or percentile")
    kind = record["nm"] if record["nm"] != "00" else "01" if before == "01" else "11"
    clip = PERCENTILES if mode == "percentile" else record.get("nm_clip")
    return (transform_of(volume, Normalisation(kind, percentile=(float(clip[0]), float(clip[1])) if clip else None)),)
