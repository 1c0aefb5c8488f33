"""Sections at known positions, and the volumes that interpolation makes of them.

Interpolation acts along z alone and is linear in the sections, so every method is a small matrix (planes × sections). It is
applied to whatever block is asked for, so that nothing has to fit in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from utils.errors import UserError
from volumes.volume import Box

METHODS = ("nearest", "linear", "cubic")
HALO = 14  # sections on either side of a block; the influence of a section on a cubic spline falls by 0.27 per section: 1e-8


class Sliceable(Protocol):
    """Anything (Z, Y, X) that is read by slicing."""

    shape: tuple[int, int, int]

    def __getitem__(self, box: Box, /) -> Any: ...


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
    if method == "cubic":
        return np.asarray(CubicSpline(positions, unit)(inside))
    raise ValueError(f"method={method!r} must be one of {', '.join(METHODS)}")


@dataclass(frozen=True)
class Sections:
    """Planes of a source at reference coordinates ``first + k * step``; its row 0 and column 0 at ``row`` and ``column``."""

    source: Sliceable
    first: float
    step: float
    row: int = 0
    column: int = 0

    @property
    def count(self) -> int:
        """Number of sections."""
        return self.source.shape[0]

    def read(self, begin: int, end: int, rows: slice, columns: slice) -> NDArray[np.float32]:
        """Sections [begin, end) of a reference window, (end - begin, rows, columns) float32."""
        box = (
            slice(begin, end),
            slice(rows.start - self.row, rows.stop - self.row),
            slice(columns.start - self.column, columns.stop - self.column),
        )
        return np.asarray(self.source[box], np.float32)

    def span(self, low: float, high: float, halo: int = 0) -> tuple[int, int]:
        """Sections [begin, end) around the reference coordinates low to high, halo more on either side, at least one."""
        begin = int(np.floor((low - self.first) / self.step)) - halo
        end = int(np.ceil((high - self.first) / self.step)) + halo + 1
        begin = min(max(begin, 0), self.count - 1)
        return begin, max(min(end, self.count), begin + 1)


class Candidate:
    """A volume on the reference grid, computed block by block.

    Args:
        sections: where it comes from.
        method: ``exact`` (planes lie on the grid and are read as they are), or a method of METHODS.
        limits: results are clipped to this range (an interpolating spline overshoots); None for no limits.
    """

    def __init__(self, sections: Sections, method: str, limits: tuple[float, float] | None = None) -> None:
        if method == "exact" and (sections.step != 1 or sections.first != round(sections.first)):
            raise ValueError(f"planes at {sections.first} + k·{sections.step} do not lie on the grid; interpolate them")
        self.sections, self.method, self.limits = sections, method, limits

    def block(self, box: Box) -> NDArray[np.float32]:
        """The voxels of a box in reference coordinates, float32 (z, y, x)."""
        depth, rows, columns = box
        if self.method == "exact":
            start = round(self.sections.first)
            return self.sections.read(depth.start - start, depth.stop - start, rows, columns)
        begin, end = self.sections.span(depth.start, depth.stop - 1, HALO if self.method == "cubic" else 1)
        begin -= begin % 2  # the matrix counts from here, and nearest's ties go by even and odd
        positions = self.sections.first + self.sections.step * np.arange(begin, end, dtype=np.float64)
        weights = interpolation_matrix(self.method, positions, np.arange(depth.start, depth.stop, dtype=float))
        result = np.tensordot(weights.astype(np.float32), self.sections.read(begin, end, rows, columns), axes=1)
        return result if self.limits is None else np.clip(result, *self.limits)


class Degraded:
    """The anisotropic input that a truth would give: every factor-th plane, or means of factor planes, of a box.

    Section k is plane f·k + f//2 (``pick``) or the mean of planes f·k … f·k + f − 1 (``average``), counted from the truth's
    first plane; only sections whose planes lie wholly in the box exist.
    """

    def __init__(self, truth: Sliceable, box: Box, factor: int, how: str) -> None:
        depth = box[0]
        self._truth, self._box, self._factor, self._how = truth, box, factor, how
        offset = factor // 2 if how == "pick" else 0
        reach = 1 if how == "pick" else factor
        self.start = -((offset - depth.start) // factor)
        end = (depth.stop - offset - reach) // factor + 1
        if end - self.start < 2:
            raise UserError(
                f"{depth.stop - depth.start} planes give {max(end - self.start, 0)} section(s) at a factor of {factor}; "
                f"interpolation needs at least 2: lower --{'thin' if how == 'pick' else 'average'} or widen --region"
            )
        rows, columns = box[1:]
        self.shape = (end - self.start, rows.stop - rows.start, columns.stop - columns.start)

    def __getitem__(self, box: Box) -> NDArray[np.float32]:
        sections, rows, columns = box
        begin, end, f = sections.start + self.start, sections.stop + self.start, self._factor
        rows = slice(rows.start + self._box[1].start, rows.stop + self._box[1].start)
        columns = slice(columns.start + self._box[2].start, columns.stop + self._box[2].start)
        if self._how == "pick":
            return np.asarray(self._truth[f * begin + f // 2 : f * (end - 1) + f // 2 + 1 : f, rows, columns], np.float32)
        planes = np.asarray(self._truth[f * begin : f * end, rows, columns], np.float32)
        return planes.reshape(end - begin, f, *planes.shape[1:]).mean(1)
