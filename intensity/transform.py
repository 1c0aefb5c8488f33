"""Grey values to prepared ones and the network's, and back (DECISIONS §4): one transform for arrays and for tensors.

What ``dataset.json``, a run and the metadata of its outputs record.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from utils.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

Values = TypeVar("Values", "NDArray[Any]", "Tensor")

NORMALISATIONS = ("00", "01", "11", "zrescale")
_KEYS = ("normalisation", "low", "high", "mean", "std", "limit")
_TOLERANCE = 1.05  # of values that are taken as they are, |value| beyond it counts as outside the network's range
_ALLOWED_OUTSIDE = 1e-3


@dataclass(frozen=True)
class IntensityTransform:
    """An invertible map of grey values, the same for every voxel of a volume.

    ======== =====================================================================================
    00       clipped to [low, high] where they are given; the type of the file is kept
    01, 11   low → 0 (-1), high → 1, linear, clipped
    zrescale log10(value clipped to [low, high] + 1), minus mean, over std, clipped to ±limit, over limit
    ======== =====================================================================================

    Attributes:
        normalisation: one of NORMALISATIONS.
        low: smallest grey value that is kept; None: no bound (00 only).
        high: largest.
        mean: of log10(grey value + 1), zrescale only.
        std: likewise.
        limit: standard deviations that become 1, zrescale only.
    """

    normalisation: str
    low: float | None = None
    high: float | None = None
    mean: float = 0.0
    std: float = 1.0
    limit: float = 1.0

    def __post_init__(self) -> None:
        if self.normalisation not in NORMALISATIONS:
            raise UserError(f"normalisation={self.normalisation!r} is unknown; known: {', '.join(NORMALISATIONS)}")
        if self.normalisation != "00" and (self.low is None or self.high is None):
            raise UserError(f"normalisation={self.normalisation} needs the grey values low and high")
        if self.low is not None and self.high is not None and self.low > self.high:
            raise UserError(f"low={self.low:g} must not exceed high={self.high:g}")
        if self.normalisation == "zrescale" and (float(self.low or 0) <= -1 or self.limit <= 0 or self.std < 0):
            raise UserError(
                f"zrescale takes log10(value + 1): low={self.low:g} must be above -1, limit={self.limit:g} above 0, "
                f"std={self.std:g} not negative; clip the grey values at 0 (--threshold 0 HIGH)"
            )

    def dtype(self, source: np.dtype) -> np.dtype:
        """Type of the prepared values of a file of that type."""
        return source if self.normalisation == "00" else np.dtype(np.float32)

    def apply(self, values: np.ndarray) -> np.ndarray:
        """Grey values → prepared values: float32, or the type of the file under 00. Constants become the lower end (0)."""
        if self.low is not None or self.high is not None:
            values = np.clip(values, *_bounds(self.low, self.high, values.dtype))
        if self.normalisation == "00":
            return values
        wide = values.astype(np.float64)
        if self.normalisation == "zrescale":
            scores = (np.log10(wide + 1) - self.mean) / (self.std or 1)
            return (np.clip(scores, -self.limit, self.limit) / self.limit).astype(np.float32)
        low, high = float(self.low or 0), float(self.high or 0)
        unit = (wide - low) / (high - low) if high > low else np.zeros_like(wide)
        return (unit if self.normalisation == "01" else 2 * unit - 1).astype(np.float32)

    def invert(self, values: Values) -> Values:
        """Prepared values (float, of any shape) → grey values of their kind and precision, not rounded, within the bounds."""
        if self.normalisation == "00":
            return values
        low, high = float(self.low or 0), float(self.high or 0)
        if self.normalisation == "zrescale":
            grey = 10 ** (values.clip(-1, 1) * (self.limit * self.std) + self.mean) - 1
        elif self.normalisation == "01":
            grey = values * (high - low) + low
        else:
            grey = values * ((high - low) / 2) + (high + low) / 2
        return grey.clip(low, high)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON from which ``from_json`` makes an equal transform."""
        keys = _KEYS if self.normalisation == "zrescale" else _KEYS[:3]
        return {key: getattr(self, key) for key in keys}

    @classmethod
    def from_json(cls, record: Mapping[str, Any], where: str = "dataset.json") -> Self:
        """The transform of a record; a UserError, which begins with ``where``, says that it is none."""
        if not isinstance(record, Mapping) or "normalisation" not in record or record.keys() - set(_KEYS):
            raise UserError(f"{where}: an intensity transform has the keys {', '.join(_KEYS)}; write it again with prepare.py")
        numbers = [value for key, value in record.items() if key != "normalisation" and value is not None]
        if not all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in numbers):
            raise UserError(f"{where}: the constants of an intensity transform must be numbers; write it again with prepare.py")
        return cls(**record)


def _bounds(low: float | None, high: float | None, dtype: np.dtype) -> tuple[Any, Any]:
    """The bounds in a dtype; for integers rounded inwards and within their range, so that nothing wraps round."""
    if dtype.kind == "f":
        return (None if low is None else dtype.type(low)), (None if high is None else dtype.type(high))
    limits = np.iinfo(dtype)
    lower = limits.min if low is None else min(max(int(np.ceil(low)), limits.min), limits.max)
    upper = limits.max if high is None else min(max(int(np.floor(high)), limits.min), limits.max)
    return dtype.type(lower), dtype.type(max(lower, upper))


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
        if all(t.normalisation == "00" for t in self.into) and share_outside(values):
            raise UserError(
                f"{where}: values from {values.min():.6g} to {values.max():.6g}, but the run was trained on values in [-1, 1] as "
                "they are (nm 00); map this volume's own range with --normalise percentile"
            )
        return values

    @property
    def reach(self) -> tuple[float, float]:
        """Smallest and largest grey value that is not clipped on the way into the network."""
        ends = np.array([-np.inf, np.inf])
        for transform in reversed(self.into):
            ends = transform.invert(ends)
            ends = ends if transform.low is None and transform.high is None else np.clip(ends, transform.low, transform.high)
        return float(ends[0]), float(ends[1])

    def to_grey(self, values: Values) -> Values:
        """The network's values → grey values, of the same kind, shape and precision."""
        for transform in reversed(self.out):
            values = transform.invert(values)
        return values

    @property
    def ends(self) -> tuple[float, float]:
        """Grey values of background, and of the brightest that the network knows."""
        low, high = self.to_grey(np.array([self.floor, 1.0]))
        return float(low), float(high)

    @property
    def width(self) -> float:
        """From one of these ends to the other: the range that consistency's PSNR refers to."""
        low, high = self.ends
        return high - low

    def as_json(self) -> dict[str, Any]:
        """Plain JSON from which :meth:`from_json` makes an equal one."""
        return {key: [t.as_json() for t in way] for key, way in vars(self).items() if key == "into" or way != self.into}

    @classmethod
    def from_json(cls, record: Mapping[str, Any], where: str) -> Self:
        """The intensities that a record describes; ``where`` begins the message if it is none."""
        try:
            ways = record["into"], record.get("out", record["into"])
            into, out = (tuple(IntensityTransform.from_json(t, where) for t in way) for way in ways)
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{where}: the record of intensities is damaged ({error})") from error
        return cls(into, out)


def check_finite(values: NDArray[Any], where: str) -> None:
    """Raise a UserError if there is a NaN or infinite value."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        bad = np.count_nonzero(~np.isfinite(values))
        raise UserError(f"{where}: {bad} NaN or infinite voxels in the part read; replace them, for example by the minimum")


def share_outside(values: NDArray[Any]) -> float:
    """Share of the values outside [-1.05, 1.05]; 0 where it is at most 0.1 %, which is tolerated."""
    share = np.count_nonzero(np.abs(values) > _TOLERANCE) / values.size
    return share if share > _ALLOWED_OUTSIDE else 0.0
