"""Planes of a volume that lie in another: where, what they hold, what interpolation makes of them, those that a truth would give.

Positions are known by voxel size and translation, by equal shapes, or as the user states them. Nothing is guessed: 3.5 planes of
misregistration cost 2.7 dB at 8×, more than most methods gain.
Coordinates are voxels of the reference (the truth, else the reconstruction), 0 at the centre of its first voxel. Interpolation
acts along z alone and is linear in the sections, so every method is a small matrix (planes × sections). It is applied to whatever
block is asked for, so that nothing has to fit in memory.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from utils.errors import UserError
from volumes.volume import ArrayVolume, Box, Volume, extent, moved, split

SIZE_TOLERANCE = 1e-3  # relative, of two voxel sizes that are taken to be equal
PLACE_TOLERANCE = 0.05  # voxels, of an in-plane offset that is taken to be whole
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
        copy = np.memmap(path, dtype, "w+", shape=(end - begin, *extent((rows, columns))))
        for part in split(slice(begin, end), max(1, 2**24 // copy[0].size)):
            self.forget(part.start)
            copy[part.start - begin : part.stop - begin] = self.read(part.start, part.stop, rows, columns)
        self.close()
        return Sections(ArrayVolume(copy, path), self.position(begin), self.step, rows.start, columns.start, self.how)

    def _load(self, begin: int, end: int, rows: slice, columns: slice) -> NDArray[np.float32]:
        rows, columns = moved((rows, columns), (-self.row, -self.column))
        return np.asarray(self.source[slice(begin, max(begin, end)), rows, columns], np.float32)


def place_reconstruction(volume: Volume, reference: Volume) -> Sections:
    """A reconstruction on its truth's grid, or on its own.

    Raises:
        UserError: shapes differ and voxel sizes or translations are missing, or what the files state cannot be laid together.
    """
    if volume is reference:
        return Sections(volume, 0, 1)
    if _located(volume, reference):
        sections = _by_metadata(volume, reference)
        if not 0.5 < sections.step < 1.5:
            raise UserError(
                f"voxels of {volume.path} are {sections.step:g} times as long along z as those of {reference.path}: it is not "
                f"on the truth's grid. If it is the input, name it with --input"
            )
        return sections
    if volume.shape == reference.shape:
        if volume.voxel_um and reference.voxel_um and not np.allclose(volume.voxel_um, reference.voxel_um, SIZE_TOLERANCE, 0):
            raise UserError(
                f"{volume.path} and {reference.path} have the same shape but voxel sizes of {volume.voxel_um} and "
                f"{reference.voxel_um} µm (z, y, x); correct the wrong file, or give the voxel size of both with --voxel z,y,x"
            )
        return Sections(volume, 0, 1, how="equal shapes: compared voxel by voxel")
    if sorted(volume.shape) == sorted(reference.shape):
        raise UserError(
            f"{volume.path} has shape {volume.shape}, {reference.path} has {reference.shape}: the axes look permuted. Both must "
            "be stored as (Z, Y, X); reorder the axes of one file"
        )
    raise UserError(
        f"{volume.path} has shape {volume.shape}, {reference.path} has {reference.shape}, and {_missing(volume, reference)}. "
        "Volumes of different shapes are laid together by voxel size and translation only: write both into both files (OME-TIFF "
        "or OME-Zarr), or cut them to the same grid"
    )


def place_input(volume: Volume, reference: Volume, position: str | None, factor: int | None) -> Sections:
    """An anisotropic input's sections on the reference grid.

    Args:
        volume: the input.
        reference: the truth or reconstruction whose voxels are the grid.
        position: ``pick`` or ``average`` where the user states how a section relates to the planes, else None.
        factor: reference planes per section; needed with position unless both voxel sizes are known.

    Raises:
        UserError: neither metadata, equal shapes nor position tell where the sections lie, or they contradict each other.
    """
    if position is not None:
        return _as_stated(volume, reference, position, factor)
    if _located(volume, reference):
        return _by_metadata(volume, reference)
    if volume.shape[1:] != reference.shape[1:] and volume.voxel_um is None:
        permuted = not Counter(reference.shape[1:]) - Counter(volume.shape)  # rows and columns occur, elsewhere
        hint = "the axes look permuted; store it" if permuted else "cut both to the same field of view, stored"
        raise UserError(
            f"{volume.path} has shape {volume.shape} and {reference.path} {reference.shape}: rows and columns (Y, X) must agree; "
            f"{hint} as (Z, Y, X)"
        )
    if volume.shape == reference.shape:
        return Sections(volume, 0, 1, how="equal shapes: the input is sampled like the reference")
    ratio = reference.shape[0] / volume.shape[0]
    raise UserError(
        f"where the sections of {volume.path} lie is not known: its shape is {volume.shape}, that of {reference.path} is "
        f"{reference.shape} ({ratio:.4g} planes per section), and {_missing(volume, reference)}. State it: --factor "
        f"{max(1, round(ratio))} with --input-position pick (every section is one plane, f·k + f//2) or --input-position "
        "average (every section is the mean of f planes, centred on f·k + (f−1)/2)"
    )


def _located(*volumes: Volume) -> bool:
    return all(volume.voxel_um is not None and volume.translation_um is not None for volume in volumes)


def _missing(*volumes: Volume) -> str:
    gaps = []
    for volume in volumes:
        known = {"voxel size": volume.voxel_um, "translation": volume.translation_um}
        absent = [name for name, value in known.items() if value is None]
        if absent:
            gaps.append(f"{volume.path.name} states no {' and no '.join(absent)}")
    return "; ".join(gaps)


def _by_metadata(volume: Volume, reference: Volume) -> Sections:
    """By voxel size and translation, which both files state."""
    assert volume.voxel_um and volume.translation_um and reference.voxel_um and reference.translation_um
    places = zip(volume.translation_um, reference.translation_um, reference.voxel_um, strict=True)
    offset = [(own - other) / size for own, other, size in places]
    for axis, name in ((1, "Y"), (2, "X")):
        if not math.isclose(volume.voxel_um[axis], reference.voxel_um[axis], rel_tol=SIZE_TOLERANCE):
            raise UserError(
                f"voxel sizes along {name} differ: {volume.voxel_um[axis]} µm in {volume.path}, {reference.voxel_um[axis]} µm "
                f"in {reference.path}; only z may be sampled differently. Resample one of them in-plane"
            )
        if abs(offset[axis] - round(offset[axis])) > PLACE_TOLERANCE:
            raise UserError(
                f"{volume.path} is shifted by {offset[axis]:.3f} voxels along {name} against {reference.path}; in-plane "
                "offsets must be whole voxels. Correct the translation or resample one of them"
            )
    step = volume.voxel_um[0] / reference.voxel_um[0]
    if abs(step - round(step)) * volume.shape[0] < PLACE_TOLERANCE:
        step = float(round(step))
    first = offset[0]
    if abs(2 * first - round(2 * first)) < PLACE_TOLERANCE:
        first = round(2 * first) / 2
    return Sections(volume, first, step, round(offset[1]), round(offset[2]), "voxel size and translation of the files")


def _as_stated(volume: Volume, reference: Volume, position: str, factor: int | None) -> Sections:
    """By --input-position and --factor."""
    ratio = None
    if volume.voxel_um is not None and reference.voxel_um is not None:
        ratio = volume.voxel_um[0] / reference.voxel_um[0]
    if factor is None:
        if ratio is None or not math.isclose(ratio, round(ratio), rel_tol=SIZE_TOLERANCE):
            raise UserError(
                f"--input-position {position} needs --factor F, the reference planes per section: the voxel sizes "
                f"{volume.voxel_um} and {reference.voxel_um} µm give no whole number"
            )
        factor = round(ratio)
    elif ratio is not None and not math.isclose(ratio, factor, rel_tol=0.01):
        raise UserError(
            f"--factor {factor} contradicts the files: sections of {volume.path} are {ratio:.4g} planes of {reference.path} "
            "apart by their voxel sizes; drop --factor or correct the file"
        )
    if volume.shape[1:] != reference.shape[1:]:
        raise UserError(
            f"--input-position needs the same rows and columns: {volume.path} has {volume.shape[1:]}, {reference.path} has "
            f"{reference.shape[1:]} (Y, X)"
        )
    if abs(volume.shape[0] * factor - reference.shape[0]) >= factor:
        raise UserError(
            f"--factor {factor}: the {volume.shape[0]} sections of {volume.path} would cover {volume.shape[0] * factor} "
            f"planes, but {reference.path} has {reference.shape[0]}; the factor that fits is about "
            f"{reference.shape[0] / volume.shape[0]:.3g}"
        )
    first = factor // 2 if position == "pick" else (factor - 1) / 2
    return Sections(volume, first, float(factor), how=f"stated: --input-position {position} --factor {factor}")


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
