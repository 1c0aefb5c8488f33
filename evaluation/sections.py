"""Planes of a volume that lie in another: what they hold, what interpolation makes of them, those that a truth would give.

Coordinates are voxels of the reference (the truth, else the reconstruction), 0 at the centre of its first voxel. Interpolation
acts along z alone and is linear in the sections, so every method is a small matrix (planes × sections). It is applied to whatever
block is asked for, so that nothing has to fit in memory.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from utils.boxes import Box, extent, moved
from utils.errors import UserError
from volumes.volume import ArrayVolume, Volume

METHODS = ("nearest", "linear", "cubic")
HALO = 14  # sections on either side of a block; the influence of a section on a cubic spline falls by 0.27 per section: 1e-8


@dataclass(eq=False)
class Sections:
    """Planes of a volume at reference coordinates ``first + k * step``; its row 0 and column 0 at ``row`` and ``column``.

    Attributes:
        source: the volume.
        how: how the position is known, for the report.
    """

    source: Volume
    first: float
    step: float
    row: int = 0
    column: int = 0
    how: str = ""
    _kept: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0, 0), np.float32), init=False, repr=False)
    _window: Box = field(default=(slice(0, 0), slice(0, 0), slice(0, 0)), init=False, repr=False)  # where that lies
    _needed: int = field(default=0, init=False, repr=False)  # sections before this one can go

    @property
    def count(self) -> int:
        """Number of sections."""
        return self.source.shape[0]

    @property
    def last(self) -> float:
        """Reference coordinate of the last section."""
        return self.position(self.count - 1)

    @property
    def on_grid(self) -> bool:
        """Whether every section is a plane of the reference, and follows upon the one before."""
        return self.step == 1 and self.first == round(self.first)

    @property
    def placed(self) -> dict[str, Any]:
        """Where they lie, as metrics.json says it."""
        first, step = self.first, self.step
        return {"first_plane": first, "planes_per_section": step, "row": self.row, "column": self.column, "how": self.how}

    def position(self, section: float) -> float:
        """Reference coordinate of a section."""
        return self.first + section * self.step

    def span(self, low: float, high: float, halo: int = 0) -> tuple[int, int]:
        """Sections [begin, end) around the reference coordinates low to high, halo more on either side, at least one."""
        begin = int(np.floor((low - self.first) / self.step)) - halo
        end = int(np.ceil((high - self.first) / self.step)) + halo + 1
        begin = min(max(begin, 0), self.count - 1)
        return begin, max(min(end, self.count), begin + 1)

    def read(self, begin: int, end: int, rows: slice, columns: slice) -> NDArray[np.float32]:
        """Sections [begin, end) of a reference window, (end - begin, rows, columns) float32.

        They are kept until somebody forgets them, or asks for other rows: blocks that follow each other along z within a band of
        rows read nothing twice, although some methods look further ahead than others.
        """
        kept, band, across = self._window
        known = band.start <= rows.start and rows.stop <= band.stop and columns == across
        if not known or end < kept.start:
            self._kept, self._window = self._load(begin, end, rows, columns), (slice(begin, end), rows, columns)
            self._needed = begin
        elif begin < kept.start or end > kept.stop:
            keep = min(max(min(begin, self._needed), kept.start), kept.stop)
            pieces = [self._load(begin, kept.start, band, across), self._kept[keep - kept.start :]]
            self._kept = np.concatenate([*pieces, self._load(kept.stop, end, band, across)])
            self._window = (slice(min(begin, keep), max(end, kept.stop)), band, across)
        kept, band, _ = self._window
        return self._kept[begin - kept.start : end - kept.start, rows.start - band.start : rows.stop - band.start]

    def forget(self, section: int) -> None:
        """Sections before this one will not be asked for again within the band of rows."""
        self._needed = section

    def close(self) -> None:
        """Gives the memory back."""
        self._kept, self._window = self._kept[:0, :0, :0].copy(), (slice(0, 0),) * 3

    def copied(self, begin: int, end: int, rows: slice, columns: slice, path: Path, dtype: Any = np.float32) -> Sections:
        """Sections [begin, end) of a reference window, from an uncompressed file that is written here."""
        copy = scratch_array(path, dtype, (end - begin, rows.stop - rows.start, columns.stop - columns.start))
        step = max(1, 2**24 // copy[0].size)
        for start in range(begin, end, step):
            self.forget(start)
            copy[start - begin :][:step] = self.read(start, min(start + step, end), rows, columns)
        self.close()
        return Sections(ArrayVolume(copy, path), self.position(begin), self.step, rows.start, columns.start, self.how)

    def _load(self, begin: int, end: int, rows: slice, columns: slice) -> NDArray[np.float32]:
        rows, columns = moved((rows, columns), (-self.row, -self.column))
        return np.asarray(self.source[slice(begin, max(begin, end)), rows, columns], np.float32)


def scratch_array(path: Path, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """A new array in a file whose room on disc is taken at once: a page that found none later would end the process."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    with path.open("wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:  # macOS
            file.truncate(size)
    return np.memmap(path, dtype, "r+", shape=shape)


@dataclass(frozen=True)
class Candidate:
    """A volume on the reference grid, computed block by block: down a band of rows, then down the next.

    Attributes:
        sections: where it comes from.
        method: of METHODS; planes that lie on the grid are read as they are.
        dtype: interpolated values are clipped to the range of this integer type (a spline overshoots); None for no limits.
    """

    sections: Sections
    method: str = "cubic"
    dtype: np.dtype[Any] | None = None

    def block(self, box: Box) -> NDArray[np.float32]:
        """The voxels of a box in reference coordinates, float32 (z, y, x)."""
        depth, rows, columns = box
        self.sections.forget(self.sections.span(depth.start, depth.stop, HALO)[0])  # the widest halo of all methods
        if self.sections.on_grid and self.sections.first <= depth.start and depth.stop <= self.sections.last + 1:
            start = round(self.sections.first)
            return self.sections.read(depth.start - start, depth.stop - start, rows, columns)
        begin, end = self.sections.span(depth.start, depth.stop - 1, HALO if self.method == "cubic" else 1)
        begin -= begin % 2  # the matrix counts from here, and nearest's ties go by even and odd
        positions = self.sections.first + self.sections.step * np.arange(begin, end, dtype=np.float64)
        weights = interpolation_matrix(self.method, positions, np.arange(depth.start, depth.stop, dtype=float))
        result = np.tensordot(weights.astype(np.float32), self.sections.read(begin, end, rows, columns), axes=1)
        limits = None if self.dtype is None else grey_limits(self.dtype)
        return result if limits is None else np.clip(result, *limits)


def interpolation_matrix(method: str, positions: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights (targets, positions) of an interpolation along one axis.

    Args:
        method: ``nearest`` (a tie goes to the section of even index, so that neither side is favoured), ``linear``, or
            ``cubic``, the interpolating spline with not-a-knot ends.
        positions: increasing, evenly spaced.
        targets: anywhere; clamped to the first and last position.
    """
    unit = np.eye(len(positions))
    inside = np.clip(targets, positions[0], positions[-1])
    if len(positions) == 1:
        return np.ones((len(targets), 1))
    if method == "nearest":
        return unit[np.rint((inside - positions[0]) / (positions[1] - positions[0])).astype(int)]
    if method == "linear":
        return np.stack([np.interp(inside, positions, column) for column in unit], axis=1)
    return np.asarray(CubicSpline(positions, unit)(inside))


class Degraded(Volume):
    """The anisotropic input that a truth would give: every factor-th plane, or means of factor planes, of a box.

    Section k is plane f·k + picked (``pick``; f//2 by default) or the mean of planes f·k … f·k + f − 1 (``average``), counted
    from the truth's first plane; only sections whose planes lie wholly in the box exist.

    Attributes:
        start: k of the first section that exists.
        centre: the plane (fractional) that section 0 is centred on.
    """

    path = Path("(simulated from the truth)")
    dtype = np.dtype(np.float32)

    def __init__(self, truth: Sections, box: Box, factor: int, how: str, picked: int | None = None) -> None:
        depth = box[0]
        self._truth, self._box, self._factor, self._how = truth, box, factor, how
        offset, reach = (factor // 2 if picked is None else picked, 1) if how == "pick" else (0, factor)
        self._offset, self.centre = offset, offset + (reach - 1) / 2
        self.start = -((offset - depth.start) // factor)
        count = (depth.stop - offset - reach) // factor + 1 - self.start
        if count < 2:
            raise UserError(
                f"{depth.stop - depth.start} planes give {max(count, 0)} section(s) at a factor of {factor}; "
                f"interpolation needs at least 2: lower --{'thin' if how == 'pick' else 'average'} or widen --region"
            )
        self.shape = (count, *extent(box)[1:])

    def _read(self, planes: range, rows: slice, columns: slice) -> NDArray[np.float32]:
        begin, end, f = planes.start + self.start, planes[-1] + 1 + self.start, self._factor
        rows, columns = moved((rows, columns), [part.start for part in self._box[1:]])
        if self._how == "pick":
            sections = self._truth.read(f * begin + self._offset, f * (end - 1) + self._offset + 1, rows, columns)[::f]
        else:
            slabs = self._truth.read(f * begin, f * end, rows, columns)
            sections = slabs.reshape(end - begin, f, *slabs.shape[1:]).mean(1)
        return sections[:: planes.step]


def grey_limits(dtype: np.dtype[Any]) -> tuple[float, float] | None:
    """Smallest and largest value of an integer dtype; None for others."""
    if not np.issubdtype(dtype, np.integer):
        return None
    return float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)
