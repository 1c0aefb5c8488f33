"""The range of a volume's values, read block by block at constant memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from utils.errors import UserError
from volumes.volume import Volume

_BINS = 2**16


@dataclass(frozen=True)
class Range:
    """Values of a file that are mapped to the lower and the upper end of the target interval."""

    low: float
    high: float


def check_finite(values: np.ndarray, where: str) -> None:
    """Raise a UserError if there is a NaN or infinite value."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        bad = np.count_nonzero(~np.isfinite(values))
        raise UserError(f"{where}: {bad} NaN or infinite voxels in the part read; replace them, for example by the minimum")


def scan(volume: Volume, clip: tuple[float, float] | None, advance: Callable[[int], object] = int) -> Range:
    """The range of a volume, read block by block at constant memory.

    Without ``clip``: minimum and maximum, one pass. With percentiles (LOW, HIGH): the value v of rank ceil(p/100·N),
    as numpy's method "inverted_cdf"; exact for integers (histogram of all values, one pass); for floats three passes
    (extremes; a histogram of 2^16 bins; 2^16 bins within the bin that holds v), v is met within (max − min)/2^32.

    Args:
        volume: the volume.
        clip: percentiles, or None.
        advance: told the number of voxels read.

    Raises:
        UserError: NaN or infinite voxels.
    """
    if clip is not None and volume.dtype.kind != "f":
        return _integer_percentiles(volume, clip, advance)
    low, high = np.inf, -np.inf
    for box in volume.blocks():
        values = volume[box]
        if values.dtype == np.float64:
            with np.errstate(over="ignore"):  # what float32 cannot hold counts as infinite
                values = values.astype(np.float32)
        block_low, block_high = float(values.min()), float(values.max())
        if not (np.isfinite(block_low) and np.isfinite(block_high)):  # min and max pass NaN on
            z = box[0]
            check_finite(values, f"{volume.path} (planes {z.start} to {z.stop - 1})")
        low, high = min(low, block_low), max(high, block_high)
        advance(values.size)
    if clip is None or high - low <= 1e-9 * max(abs(low), abs(high)):  # constant, or below the resolution of float32
        return Range(low, high)
    return Range(*_float_percentiles(volume, clip, low, high, advance))


def passes(volume: Volume, clip: tuple[float, float] | None) -> int:
    """How often ``scan`` reads a volume."""
    return 3 if clip is not None and volume.dtype.kind == "f" else 1


def _ranks(clip: tuple[float, float], voxels: int) -> list[int]:
    """Ranks (1 = smallest) of the percentiles."""
    return [max(1, int(np.ceil(percentile / 100 * voxels))) for percentile in clip]


def _integer_percentiles(volume: Volume, clip: tuple[float, float], advance: Callable[[int], object]) -> Range:
    first = int(np.iinfo(volume.dtype).min)
    counts = np.zeros(_BINS, np.int64)
    for box in volume.blocks():
        values = volume[box]
        counts += np.bincount(values.ravel().astype(np.intp) - first, minlength=_BINS)
        advance(values.size)
    cumulative = counts.cumsum()
    low, high = (float(np.searchsorted(cumulative, rank) + first) for rank in _ranks(clip, int(cumulative[-1])))
    return Range(low, high)


def _float_percentiles(
    volume: Volume, clip: tuple[float, float], low: float, high: float, advance: Callable[[int], object]
) -> list[float]:
    (counts,) = _histograms(volume, [(low, high)], advance)
    cumulative = counts.cumsum()
    ranks = _ranks(clip, int(cumulative[-1]))
    bins = [int(np.searchsorted(cumulative, rank)) for rank in ranks]
    width = (high - low) / _BINS
    edges = [(low + k * width, low + (k + 1) * width) for k in bins]
    fine = _histograms(volume, edges, advance)
    results = []
    for rank, k, (start, _), inner in zip(ranks, bins, edges, fine, strict=True):
        before = cumulative[k] - counts[k]
        step = int(np.searchsorted(inner.cumsum(), min(rank - before, inner.sum())))
        results.append(min(start + (step + 0.5) * width / _BINS, high))
    return results


def _histograms(volume: Volume, edges: list[tuple[float, float]], advance: Callable[[int], object]) -> list[np.ndarray]:
    """Counts of 2^16 equal bins within each interval (the upper end included), in one pass."""
    counts = [np.zeros(_BINS, np.int64) for _ in edges]
    for box in volume.blocks():
        values = volume[box].ravel().astype(np.float64)
        for count, (start, stop) in zip(counts, edges, strict=True):
            inside = values[(values >= start) & (values <= stop)]
            bins = ((inside - start) * (_BINS / (stop - start))).astype(np.intp)
            count += np.bincount(np.minimum(bins, _BINS - 1), minlength=_BINS)
        advance(values.size)
    return counts
