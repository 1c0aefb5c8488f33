"""Levels of resolution: which axes are halved, how large the levels are, where their voxels lie, and the mean of 2×2×2."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from utils.boxes import extent, relative, split
from volumes.block_array import BlockArray

_SMALLEST = 256  # voxels along the longest axis of the last level


@dataclass(frozen=True)
class Level:
    """One level of a pyramid.

    Attributes:
        shape: (Z, Y, X).
        step: how many voxels (z, y, x) of the level before are averaged into one, 1 or 2 each; (1, 1, 1) for the first.
        factor: how many voxels (z, y, x) of the first level.
    """

    shape: tuple[int, ...]
    step: tuple[int, ...] = (1, 1, 1)
    factor: tuple[int, ...] = (1, 1, 1)


def plan_levels(shape: Sequence[int], voxel: Sequence[float] | None = None) -> list[Level]:
    """The levels of a volume's pyramid.

    An axis is halved when its voxels are shorter than twice the shortest: of 4 × 1 × 1 µm only the in-plane axes are, until the
    voxels have become nearly cubic. A size that is odd is rounded up. The last level has 256 voxels or fewer along every axis.

    Args:
        shape: (Z, Y, X).
        voxel: voxel size (z, y, x); None stands for cubic voxels.
    """
    levels = [Level(tuple(shape))]
    while max(levels[-1].shape) > _SMALLEST:
        last = levels[-1]
        current = [size * factor for size, factor in zip(voxel or (1.0, 1.0, 1.0), last.factor, strict=True)]
        shortest = min(size for size, n in zip(current, last.shape, strict=True) if n > 1)
        step = tuple(2 if n > 1 and size < 2 * shortest * (1 - 1e-6) else 1 for n, size in zip(last.shape, current, strict=True))
        sizes = tuple(math.ceil(n / by) for n, by in zip(last.shape, step, strict=True))
        levels.append(Level(sizes, step, tuple(factor * by for factor, by in zip(last.factor, step, strict=True))))
    return levels


def halved(values: np.ndarray, step: Sequence[int]) -> np.ndarray:
    """The mean of neighbouring voxels along the axes whose step is 2; integers are rounded, halves up.

    Args:
        values: array with as many axes as ``step`` has entries; where a size is odd the last voxel counts twice.
        step: 1 or 2 for every axis.

    Returns:
        Array of the same dtype, sizes ``ceil(size / step)``.
    """
    dtype, total = values.dtype, values
    whole = dtype.kind in "ui"
    wide = np.dtype(f"{dtype.kind}{2 * dtype.itemsize}") if whole else np.result_type(dtype, np.float32)  # for sums of eight
    for axis, by in enumerate(step):
        if by == 2:
            if total.shape[axis] % 2:
                total = np.concatenate([total, np.take(total, [-1], axis)], axis)
            before = (slice(None),) * axis
            total = np.add(total[(*before, slice(0, None, 2))], total[(*before, slice(1, None, 2))], dtype=wide)
    count = np.asarray(math.prod(step), wide)
    mean = (total + count // 2) // count if whole else total / count
    return mean.astype(dtype)


def reduced(finer: BlockArray, box: tuple[slice, ...], step: Sequence[int], chunk: Sequence[int]) -> np.ndarray:
    """A box of a level, made from the level before a row of chunks at a time, so that the finer voxels need little memory.

    Args:
        finer: the level before, (Z, Y, X) or (C, Z, Y, X).
        box: of this level, with as many axes.
        step: of this level along (z, y, x).
        chunk: (z, y, x).
    """
    *lead, planes, rows, columns = box
    steps = (*(1 for _ in lead), *step)
    out = np.empty(extent(box), finer.dtype)
    for z, y in product(split(planes, chunk[0]), split(rows, chunk[1])):
        part = (*lead, z, y, columns)
        source = [slice(p.start * by, min(p.stop * by, size)) for p, by, size in zip(part, steps, finer.shape, strict=True)]
        out[relative(part, box)] = halved(finer.read(tuple(source)), steps)
    return out
