"""Sections at known positions, and the volumes that interpolation makes of them.

Interpolation acts along z alone and is linear in the sections, so every method is a small matrix (planes × sections). It is
applied to whatever block is asked for, so that nothing has to fit in memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import imagecodecs
import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from tqdm import tqdm

from utils.errors import UserError

Box = tuple[slice, slice, slice]
METHODS = ("nearest", "linear", "cubic")
HALO = 14  # sections on either side of a block; the influence of a section on a cubic spline falls by 0.27 per section: 1e-8


class Sliceable(Protocol):
    """Anything (Z, Y, X) that is read by slicing."""

    shape: tuple[int, int, int]

    def __getitem__(self, box: tuple[slice, slice, slice], /) -> Any: ...


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


def encode_within(plane: NDArray[np.generic], bits_per_pixel: float) -> bytes:
    """The largest JPEG2000 stream of a plane that stays within a rate, found by bisecting the encoder's quality (dB).

    Raises:
        UserError: not even the lowest quality fits (the plane is so small that headers fill it).
    """
    limit = int(bits_per_pixel * plane.size / 8)
    low, high, best = 1.0, 100.0, b""
    for _ in range(20):
        middle = (low + high) / 2
        stream = imagecodecs.jpeg2k_encode(plane, level=middle)  # type: ignore[arg-type]  # the stub says int, the codec takes dB
        if len(stream) <= limit:
            low, best = middle, bytes(stream)
        else:
            high = middle
    if not best:
        raise UserError(f"a plane of {plane.shape} does not fit {limit} bytes ({bits_per_pixel} bit/pixel); raise --bpp")
    return best


def coded_sections(
    sections: Sections, box: Box, dtype: np.dtype[Any], bits_per_pixel: float, folder: Path
) -> tuple[Sections, float]:
    """The sections of a box, each rounded to dtype and sent through JPEG2000.

    Args:
        sections: what is coded.
        box: the region; sections just outside it are coded too, because interpolation reads them.
        dtype: uint8 or uint16.
        bits_per_pixel: what each section may take at most.
        folder: where the decoded sections are kept while they are needed.

    Returns:
        The decoded sections and the bits per pixel really used.
    """
    if dtype not in (np.dtype(np.uint8), np.dtype(np.uint16)):
        raise UserError(f"--codec needs volumes of 8 or 16 bit unsigned integers, not {dtype}; convert the files")
    depth, rows, columns = box
    begin, end = sections.span(depth.start, depth.stop - 1, 1)
    shape = (end - begin, rows.stop - rows.start, columns.stop - columns.start)
    decoded = np.memmap(folder / "coded.raw", dtype, "w+", shape=shape)
    size, top = 0, np.iinfo(dtype).max
    for k in tqdm(range(begin, end), desc="JPEG2000", leave=False):
        plane = np.clip(np.rint(sections.read(k, k + 1, rows, columns)[0]), 0, top).astype(dtype)
        stream = encode_within(plane, bits_per_pixel)
        size += len(stream)
        decoded[k - begin] = imagecodecs.jpeg2k_decode(stream)
    placed = Sections(decoded, sections.first + begin * sections.step, sections.step, rows.start, columns.start)
    return placed, 8 * size / decoded.size
