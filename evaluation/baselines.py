"""The volumes that interpolation makes of sections, and the sections that a truth would give.

Interpolation acts along z alone and is linear in the sections, so every method is a small matrix (planes × sections). It is
applied to whatever block is asked for, so that nothing has to fit in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from evaluation.sections import Sections
from utils.errors import UserError
from volumes.volume import Box, Volume, extent, moved

METHODS = ("nearest", "linear", "cubic")
HALO = 14  # sections on either side of a block; the influence of a section on a cubic spline falls by 0.27 per section: 1e-8


@dataclass(frozen=True)
class Candidate:
    """A volume on the reference grid, computed block by block: down a band of rows, then down the next.

    Attributes:
        sections: where it comes from.
        method: of METHODS; planes that lie on the grid are read as they are.
        limits: results are clipped to this range (an interpolating spline overshoots); None for no limits.
    """

    sections: Sections
    method: str = "cubic"
    limits: tuple[float, float] | None = None

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
        return result if self.limits is None else np.clip(result, *self.limits)


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


class Degraded(Volume):
    """The anisotropic input that a truth would give: every factor-th plane, or means of factor planes, of a box.

    Section k is plane f·k + f//2 (``pick``) or the mean of planes f·k … f·k + f − 1 (``average``), counted from the truth's
    first plane; only sections whose planes lie wholly in the box exist.

    Attributes:
        start: k of the first section that exists.
    """

    path = Path("(simulated from the truth)")
    dtype = np.dtype(np.float32)

    def __init__(self, truth: Sections, box: Box, factor: int, how: str) -> None:
        depth = box[0]
        self._truth, self._box, self._factor, self._how = truth, box, factor, how
        offset, reach = (factor // 2, 1) if how == "pick" else (0, factor)
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
            sections = self._truth.read(f * begin + f // 2, f * (end - 1) + f // 2 + 1, rows, columns)[::f]
        else:
            slabs = self._truth.read(f * begin, f * end, rows, columns)
            sections = slabs.reshape(end - begin, f, *slabs.shape[1:]).mean(1)
        return sections[:: planes.step]


def grey_limits(dtype: np.dtype[Any]) -> tuple[float, float] | None:
    """Smallest and largest value of an integer dtype; None for others."""
    if not np.issubdtype(dtype, np.integer):
        return None
    return float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)
