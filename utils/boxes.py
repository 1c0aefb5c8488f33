"""Boxes of voxels, the places between voxels, and those beyond the borders of a volume."""

import math
from collections.abc import Sequence
from itertools import product
from typing import Any, TypeVar, cast, overload

import numpy as np
from numpy.typing import NDArray

from utils.errors import UserError

Span = tuple[int, int]  # start, stop along one axis
Box = tuple[slice, slice, slice]  # z, y, x, each with start and stop
AnyBox = TypeVar("AnyBox", bound=tuple[slice, ...])  # a Box, or one of an array of any number of axes


def whole_box(shape: Sequence[int]) -> Box:
    """The box of all voxels of a volume (z, y, x)."""
    z, y, x = (slice(0, size) for size in shape)
    return z, y, x


@overload
def extent(box: Box) -> tuple[int, int, int]: ...
@overload
def extent(box: tuple[slice, ...]) -> tuple[int, ...]: ...
def extent(box: tuple[slice, ...]) -> tuple[int, ...]:
    """How many voxels a box has along every axis."""
    return tuple(part.stop - part.start for part in box)


def middle(size: int, wanted: int) -> Span:
    """The ``wanted`` voxels in the middle of an axis, or all where it has fewer."""
    start = max(0, (size - wanted) // 2)
    return start, min(size, start + wanted)


def voxels_of(box: tuple[slice, ...]) -> int:
    """How many voxels a box has in all."""
    return math.prod(extent(box))


def corner(box: Box) -> tuple[int, int, int]:
    """First voxel of a box."""
    z, y, x = (part.start for part in box)
    return z, y, x


def moved(box: AnyBox, by: Sequence[int]) -> AnyBox:
    """A box at another place: of a region, in the whole volume."""
    return cast(AnyBox, tuple(slice(part.start + step, part.stop + step) for part, step in zip(box, by, strict=True)))


def relative(part: AnyBox, whole: tuple[slice, ...]) -> AnyBox:
    """A part of a box, counted from that box's first corner: where it lies in an array of the box's values."""
    return moved(part, [-side.start for side in whole])


def overlap(box: AnyBox, other: tuple[slice, ...]) -> AnyBox:
    """Where two boxes meet; it stops before it starts where they do not."""
    return cast(AnyBox, tuple(slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(box, other, strict=True)))


def meet(box: tuple[slice, ...], other: tuple[slice, ...]) -> bool:
    """Whether two boxes have a voxel in common."""
    return all(a.start < b.stop and b.start < a.stop for a, b in zip(box, other, strict=True))


def assembled(box: tuple[slice, ...], parts: Sequence[tuple[tuple[slice, ...], NDArray[Any]]], lead: int = 0) -> NDArray[Any]:
    """The values of a box, from those of boxes that cover it; ``lead`` axes of the arrays come before those of the boxes."""
    some, before = parts[0][1], (slice(None),) * lead
    out = np.empty((*some.shape[:lead], *extent(box), *some.shape[lead + len(box) :]), some.dtype)
    for other, values in parts:
        if meet(box, other):
            met = overlap(box, other)
            out[(*before, *relative(met, box))] = values[(*before, *relative(met, other))]
    return out


def split(part: slice, side: int) -> list[slice]:
    """A span in pieces of ``side`` from its start on; the last one is smaller."""
    return [slice(start, min(start + side, part.stop)) for start in range(part.start, part.stop, side)]


def parts(box: AnyBox, unit: Sequence[int]) -> list[AnyBox]:
    """A box in boxes of ``unit`` from its first corner on, the last axis fastest; those at the end are smaller."""
    return cast(list[AnyBox], list(product(*(split(part, side) for part, side in zip(box, unit, strict=True)))))


def boxes(shape: Sequence[int], unit: Sequence[int]) -> list[Box]:
    """A volume (z, y, x) in boxes of ``unit``, x fastest; those at the end are smaller."""
    return parts(whole_box(shape), unit)


def region_within(region: tuple[slice, ...] | None, reach: Sequence[tuple[int, int]], where: str) -> tuple[slice, slice, slice]:
    """The region asked for, or all there is.

    Args:
        region: (z, y, x); a number that is None means the border.
        reach: first voxel there is along every axis, and the one after the last.
        where: what is there, for the message.

    Raises:
        UserError: it is empty or reaches beyond that.
    """
    found = []
    for part, (low, high), axis in zip(region or (slice(None),) * 3, reach, "zyx", strict=True):
        start, stop = low if part.start is None else part.start, high if part.stop is None else part.stop
        if not low <= start < stop <= high:
            raise UserError(f"--region {start}:{stop} along {axis} must lie within {low}:{high}, where {where}")
        found.append(slice(start, stop))
    return found[0], found[1], found[2]


# Between and beyond voxels -------------------------------------------------------------------------------------------


def sample(values: np.ndarray, positions: np.ndarray, axis: int) -> np.ndarray:
    """Linear interpolation along an axis at fractional positions, clamped to the first and last value.

    Resizing to n values is ``(k + 0.5) * size / n - 0.5``, the convention of OpenCV and of ``align_corners=False``.
    Unlike a resize of the window, this puts a crop's pixels exactly where those of the resized whole plane lie.

    Returns:
        float32 for positions between values, else values of the array's own type.
    """
    last = values.shape[axis] - 1
    clamped = np.clip(positions, 0, last)
    low = np.floor(clamped).astype(np.intp)
    weight = (clamped - low).astype(np.float32)
    below = values.take(low, axis)
    if not weight.any():
        return below
    above = values.take(np.minimum(low + 1, last), axis)
    weight = weight.reshape([-1 if k == axis else 1 for k in range(values.ndim)])
    return below + (above - below) * weight


def reflected(span: tuple[int, int], size: int) -> NDArray[np.intp]:
    """Places of an axis of ``size`` under a span that may reach beyond its ends: mirrored there, the border is not repeated."""
    period = max(2 * (size - 1), 1)
    folded = np.arange(*span) % period
    return np.minimum(folded, period - folded) if size > 1 else np.zeros(span[1] - span[0], np.intp)
