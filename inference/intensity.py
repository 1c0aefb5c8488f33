"""Grey values to the network's range and back (DECISIONS §4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from utils.errors import UserError
from volumes.intensity import IntensityTransform
from volumes.statistics import check_finite, scan
from volumes.volume import Volume

MODES = ("run", "volume", "percentile")
PERCENTILES = (0.1, 99.9)
_TOLERANCE, _ALLOWED_OUTSIDE = 1.05, 1e-3  # as the training checks values that are taken as they are
_TORCH = {
    "uint8": torch.uint8,
    "int8": torch.int8,
    "uint16": torch.uint16,
    "int16": torch.int16,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
}


@dataclass(frozen=True)
class Intensity:
    """The way of one channel into the network and out of it.

    Attributes:
        into: maps applied to a file's values, in this order; none: they are in the network's range already.
        out: maps whose inverses, in reverse order, lead from the network's values to grey values. The same as ``into`` but
            where the output shows what lies in another folder of the training data.
    """

    into: tuple[IntensityTransform, ...]
    out: tuple[IntensityTransform, ...]

    @property
    def floor(self) -> float:
        """What the darkest grey value becomes: the value of empty background."""
        return 0.0 if self.into and self.into[-1].normalisation == "01" else -1.0

    def to_network(self, values: NDArray[Any], where: str) -> NDArray[np.float32]:
        """Values of a file → float32 in the network's range.

        Raises:
            UserError: NaN or infinite values; values far outside [-1, 1] that no map brings there.
        """
        check_finite(values, where)
        for transform in self.into:
            values = transform.apply(values)
        values = values.astype(np.float32, copy=False)
        unmapped = all(t.normalisation == "00" for t in self.into)
        if unmapped and np.count_nonzero(np.abs(values) > _TOLERANCE) > _ALLOWED_OUTSIDE * values.size:
            raise UserError(
                f"{where}: values from {values.min():.6g} to {values.max():.6g}, but the run was trained on values in [-1, 1] as "
                "they are (nm 00); map this volume's own range with --normalise percentile"
            )
        return values

    def to_grey(self, values: Tensor) -> Tensor:
        """The network's values → grey values as float32, of the same shape."""
        values = values.float()
        for transform in reversed(self.out):
            values = _inverse(transform, values)
        return values

    def as_json(self) -> dict[str, Any]:
        """Plain JSON from which :meth:`from_json` makes an equal one."""
        return {"into": [t.as_json() for t in self.into], "out": [t.as_json() for t in self.out]}

    @classmethod
    def from_json(cls, record: Mapping[str, Any], where: str) -> Intensity:
        """The intensities that a record describes; ``where`` begins the message if it is none."""
        try:
            into, out = (tuple(IntensityTransform.from_json(t, where) for t in record[key]) for key in ("into", "out"))
        except (KeyError, TypeError) as error:
            raise UserError(f"{where}: the record of intensities is damaged ({error})") from error
        return cls(into, out)


def _inverse(transform: IntensityTransform, values: Tensor) -> Tensor:
    """IntensityTransform.invert on a tensor, in float32."""
    if transform.normalisation == "00":
        return values
    low, high = float(transform.low or 0), float(transform.high or 0)
    if transform.normalisation == "zrescale":
        grey = 10 ** (values.clamp(-1, 1) * (transform.limit * transform.std) + transform.mean) - 1
    elif transform.normalisation == "01":
        grey = values * (high - low) + low
    else:
        grey = values * ((high - low) / 2) + (high + low) / 2
    return grey.clamp(low, high)


def quantised(grey: Tensor, dtype: np.dtype) -> Tensor:
    """Grey values in a dtype: rounded and clipped where it is an integer."""
    if dtype.kind in "ui":
        limits = np.iinfo(dtype)
        grey = grey.round().clamp(float(limits.min), float(limits.max))
    return grey.to(_TORCH[dtype.name])


def check_output_dtype(name: str) -> np.dtype:
    """The dtype that ``--dtype`` names.

    Raises:
        UserError: it cannot be written.
    """
    if name not in _TORCH:
        raise UserError(f"--dtype {name} cannot be written; choose one of {', '.join(_TORCH)}")
    return np.dtype(name)


def intensities(
    record: Mapping[str, Any] | None,
    directions: Sequence[str],
    volumes: Sequence[Volume],
    mode: str,
    *,
    translates: bool,
    prepared: bool = False,
    where: str = "the run",
) -> list[Intensity]:
    """One :class:`Intensity` per channel.

    Args:
        record: dataset.json of the run.
        directions: the run's folders; with ``translates`` the last one is what the output shows.
        volumes: the input, one per channel.
        mode: ``run`` (the run's constants), ``volume`` (the run's rule, constants of these volumes), ``percentile``.
        translates: whether the output shows another folder than the input (mode ``run`` then uses that folder's constants).
        prepared: the input went through prepare.py as the training data did.
        where: the run's name, for messages.

    Raises:
        UserError: an unknown mode, or the run does not know what the mode needs.
    """
    if mode not in MODES:
        raise UserError(f"--normalise {mode} is unknown; choose one of {', '.join(MODES)}")
    if mode == "run" and record is None:
        raise UserError(
            f"{where} has no dataset.json, so the grey values of its training are not known; use --normalise volume or percentile"
        )
    found = []
    for direction, volume in zip(directions, volumes, strict=False):
        if mode == "run":
            assert record is not None
            into = _of_run(record, direction, prepared, where)
            found.append(Intensity(into, _of_run(record, directions[-1], prepared, where) if translates else into))
        else:
            into = _of_volume(record, direction, volume, mode, where)
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
    limits = scan(volume, (float(clip[0]), float(clip[1])) if clip else None)
    return (IntensityTransform(kind, limits.low, limits.high),)


def output_dtype(
    record: Mapping[str, Any] | None, directions: Sequence[str], volumes: Sequence[Volume], *, foreign: bool
) -> np.dtype:
    """The input's dtype, or that of the folder whose grey values the output has."""
    if foreign and record is not None:
        return np.dtype(record["directions"][directions[-1]]["dtype"])
    return np.result_type(*(volume.dtype for volume in volumes))
