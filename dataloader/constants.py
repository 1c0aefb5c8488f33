"""The constants of a volume's intensity transform, read block by block at constant memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from utils.errors import UserError
from volumes.intensity import IntensityTransform
from volumes.statistics import passes, scan
from volumes.volume_io import Volume

Advance = Callable[[int], object]


@dataclass(frozen=True)
class Normalisation:
    """What prepared values shall be, before anything is known about a volume.

    Attributes:
        kind: 00 (as they are) | 01 | 11 (linear to [0, 1], [-1, 1]) | zrescale (logarithm, standardised, to [-1, 1]).
        threshold: grey values (LOW, HIGH) beyond which values are clipped, or None.
        percentile: percentiles (LOW, HIGH) of every volume at which its values are clipped after that, or None.
        limit: standard deviations that become 1 (zrescale).
    """

    kind: str
    threshold: tuple[float, float] | None = None
    percentile: tuple[float, float] | None = None
    limit: float = 6.0

    def __post_init__(self) -> None:
        if self.threshold and not self.threshold[0] < self.threshold[1]:
            raise UserError(f"threshold {self.threshold[0]:g} {self.threshold[1]:g}: LOW must be less than HIGH")
        if self.percentile and not 0 <= self.percentile[0] < self.percentile[1] <= 100:
            low, high = self.percentile
            raise UserError(f"percentile {low:g} {high:g} must be LOW < HIGH within 0 to 100; try 0.1 99.9")
        if self.limit <= 0:
            raise UserError(f"limit={self.limit:g} standard deviations must be more than 0; the published value is 6")

    def passes(self, volume: Volume) -> int:
        """How often ``transform_of`` reads a volume."""
        bounds = 0 if self.kind == "00" and not self.percentile else passes(volume, self.percentile)
        return bounds + (self.kind == "zrescale")


def transform_of(volume: Volume, wanted: Normalisation, advance: Advance = int) -> IntensityTransform:
    """The transform of one volume, with its constants.

    Percentiles are those of ``volumes.statistics.scan`` (exact for integers). Clipping at thresholds first moves a
    percentile only onto them, so both together need no further pass.

    Args:
        volume: the volume.
        wanted: kind and clipping.
        advance: told the number of voxels read.

    Raises:
        UserError: NaN or infinite voxels; values without a logarithm under zrescale.
    """
    low, high = wanted.threshold or (None, None)
    if wanted.kind == "00" and not wanted.percentile:
        return IntensityTransform("00", low, high)
    found = scan(volume, wanted.percentile, advance)
    low, high = np.clip([found.low, found.high], low, high).tolist()
    if wanted.kind != "zrescale":
        return IntensityTransform(wanted.kind, low, high)
    if low <= -1:
        raise UserError(
            f"{volume.path}: zrescale takes log10(value + 1), but the smallest value is {low:g}; "
            f"clip negative values with --threshold 0 {max(high, 1):g}"
        )
    mean, std = _log_moments(volume, low, high, advance)
    return IntensityTransform("zrescale", low, high, mean=mean, std=std, limit=wanted.limit)


def pooled(transforms: Sequence[IntensityTransform], voxels: Sequence[int]) -> IntensityTransform:
    """One transform for several volumes: the widest bounds, mean and standard deviation of all voxels together."""
    first = transforms[0]
    lows, highs = [t.low for t in transforms], [t.high for t in transforms]
    low = None if None in lows else min(value for value in lows if value is not None)
    high = None if None in highs else max(value for value in highs if value is not None)
    if first.normalisation != "zrescale":
        return replace(first, low=low, high=high)
    means, weights = np.array([t.mean for t in transforms]), np.array(voxels) / sum(voxels)
    mean = float(weights @ means)
    variance = weights @ np.array([t.std**2 for t in transforms]) + weights @ (means - mean) ** 2
    return replace(first, low=low, high=high, mean=mean, std=float(np.sqrt(variance)))


def _log_moments(volume: Volume, low: float, high: float, advance: Advance) -> tuple[float, float]:
    """Mean and standard deviation of log10(value + 1), merged block by block (Chan, Golub & LeVeque 1983)."""
    count, mean, squares = 0, 0.0, 0.0
    for box in volume.blocks():
        logarithms = np.log10(np.clip(volume[box].astype(np.float64), low, high) + 1)
        n, centre = logarithms.size, float(logarithms.mean())
        delta = centre - mean
        squares += float(((logarithms - centre) ** 2).sum()) + delta**2 * count * n / (count + n)
        mean += delta * n / (count + n)
        count += n
        advance(n)
    spread = float(np.sqrt(squares / count))
    return mean, spread if spread > 1e-12 * max(1.0, abs(mean)) else 0.0
