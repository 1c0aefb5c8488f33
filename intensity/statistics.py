"""What is measured of a volume to map its grey values: block by block, at constant memory."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from intensity.transform import NORMALISATIONS, IntensityTransform, check_finite
from utils.errors import UserError
from volumes.volume import Volume

Advance = Callable[[int], object]

_BINS = 2**16
_PARTS, _PART = 32, 2**18  # parts that are looked at, and voxels of one
_MOST_KEPT = 2**25  # float values kept to find a percentile in one pass


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
    threshold: Sequence[float] | None = None
    percentile: Sequence[float] | None = None
    limit: float = 6.0

    def __post_init__(self) -> None:
        if self.kind not in NORMALISATIONS:
            raise UserError(f"normalisation {self.kind} is unknown; known: {', '.join(NORMALISATIONS)}")
        if self.threshold and not self.threshold[0] < self.threshold[1]:
            raise UserError(f"threshold {self.threshold[0]:g} {self.threshold[1]:g}: LOW must be less than HIGH")
        if self.percentile and not 0 <= self.percentile[0] < self.percentile[1] <= 100:
            low, high = self.percentile
            raise UserError(f"percentile {low:g} {high:g} must be LOW < HIGH within 0 to 100; try 0.1 99.9")
        if self.limit <= 0:
            raise UserError(f"limit={self.limit:g} standard deviations must be more than 0; the published value is 6")

    def passes(self, volume: Volume) -> int:
        """How often ``transform_of`` reads a volume."""
        if self.kind == "00" and not self.percentile:
            return 0
        again = self.percentile and volume.dtype.kind == "f" and max(_tails(volume, self.percentile)) > _MOST_KEPT
        return (2 if again else 1) + (self.kind == "zrescale")


def transform_of(volume: Volume, wanted: Normalisation, advance: Advance = int) -> IntensityTransform:
    """The transform of one volume, with its constants.

    Clipping at thresholds first moves a percentile only onto them, so both together need no further pass. ``advance`` is told the
    number of voxels read.

    Raises:
        UserError: NaN or infinite voxels; values without a logarithm under zrescale.
    """
    low, high = wanted.threshold or (None, None)
    if wanted.kind == "00" and not wanted.percentile:
        return IntensityTransform("00", low, high)
    low, high = np.clip(scan(volume, wanted.percentile, advance), low, high).tolist()
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


def scan(volume: Volume, clip: Sequence[float] | None = None, advance: Advance = int) -> tuple[float, float]:
    """Minimum and maximum of a volume as float32, or percentiles (LOW, HIGH): exactly the values of rank ceil(p/100·N).

    These percentiles are numpy's ``inverted_cdf``, found by a histogram of all values that 16 bits hold. Floats have 32: of these
    the tail beyond each percentile is kept, such as 0.1 % of all values. Where that would be more than 2^25 values it takes a
    second pass: first the upper bits of each percentile are found, then the lower ones.
    ``advance`` is told the number of voxels read.

    Raises:
        UserError: NaN or infinite voxels.
    """
    if clip is None:
        ends = [(float(values.min()), float(values.max())) for values in _blocks(volume, advance)]
        return min(low for low, _ in ends), max(high for _, high in ends)
    sizes = _tails(volume, clip)
    ranks = np.array([sizes[0], math.prod(volume.shape) - sizes[1] + 1])
    if volume.dtype.kind != "f":
        first = int(np.iinfo(volume.dtype).min)
        counts = _counted(values.astype(np.intp) - first for values in _blocks(volume, advance))
        low, high = (np.searchsorted(counts.cumsum(), ranks) + first).tolist()
        return float(low), float(high)
    if max(sizes) <= _MOST_KEPT:
        smallest, largest = map(_Smallest, sizes)
        for values in _blocks(volume, advance):
            smallest.add(values)
            largest.add(-values)
        return smallest.last(), -largest.last()
    counts = _counted(_ordered(values) >> 16 for values in _blocks(volume, advance))
    upper = np.searchsorted(counts.cumsum(), ranks)
    ranks -= (counts.cumsum() - counts)[upper]
    lower = np.zeros((2, _BINS), np.int64)
    for values in _blocks(volume, advance):
        keys = _ordered(values)
        lower += [np.bincount(keys[keys >> 16 == bits] & (_BINS - 1), minlength=_BINS) for bits in upper]
    keys = upper << 16 | [np.searchsorted(count.cumsum(), rank) for count, rank in zip(lower, ranks, strict=True)]
    low, high = np.where(keys >> 31, keys ^ 2**31, ~keys).astype(np.uint32).view(np.float32).tolist()
    return low, high


def looked_at(volume: Volume) -> NDArray[Any]:
    """Values of parts of a volume, evenly spread over it: about 8 million voxels at the most, flat."""
    pieces = volume.blocks(_PART)
    return np.concatenate([volume[box].ravel() for box in pieces[:: math.ceil(len(pieces) / _PARTS)]])


def _blocks(volume: Volume, advance: Advance) -> Iterator[NDArray]:
    """All values of a volume, flat, block by block; floats as float32, whose range they must keep, and finite."""
    for box in volume.blocks():
        values = volume[box].ravel()
        if values.dtype.kind == "f":
            with np.errstate(over="ignore"):
                values = values.astype(np.float32, copy=False)
            check_finite(values, f"{volume.path} (planes {box[0].start} to {box[0].stop - 1})")
        yield values
        advance(values.size)


def _counted(blocks: Iterable[NDArray]) -> NDArray[np.int64]:
    """How often each number of 16 bits occurs."""
    counts = np.zeros(_BINS, np.int64)
    for numbers in blocks:
        counts += np.bincount(numbers, minlength=_BINS)
    return counts


def _tails(volume: Volume, clip: Sequence[float]) -> tuple[int, int]:
    """How many of a volume's values there are up to each percentile, from its end of the range, it included."""
    voxels = math.prod(volume.shape)
    low, high = (max(1, math.ceil(percentile / 100 * voxels)) for percentile in clip)
    return low, voxels - high + 1


class _Smallest:
    """The ``size`` smallest of many values, and no more than about three times as many of them in memory."""

    def __init__(self, size: int) -> None:
        self.size, self.largest = size, np.inf
        self.found: list[NDArray[np.float32]] = []

    def add(self, values: NDArray[np.float32]) -> None:
        """Some more values; only what may be among the smallest is kept."""
        self.found.append(values[values < self.largest])
        if sum(map(len, self.found)) >= 3 * self.size:
            self.found = [np.partition(np.concatenate(self.found), self.size - 1)[: self.size]]
            self.largest = float(self.found[0][-1])

    def last(self) -> float:
        """The largest of them."""
        return float(np.partition(np.concatenate(self.found), self.size - 1)[self.size - 1])


def _ordered(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Float32 → unsigned integers of the same order: the bits of negative numbers run backwards."""
    bits = values.view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(2**31))


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
