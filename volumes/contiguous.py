"""Volumes whose planes lie in a file as they are (TIFF, MRC, NIfTI, the latter also behind gzip), read by position.

Not by a memory map: a disc that fails or a file that is shortened meanwhile would end the process without a word, and nothing
would be gained (benchmarks/results/reading_cpu.json). Nor by indexed_gzip, which nibabel would use: from a damaged file it gives
wrong values without a word (it compares checksums in some orders of reading only), and reading onwards takes it twice as long.
"""

import math
import os
import threading
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from utils.boxes import extent
from utils.errors import UserError
from volumes.stated import Layout
from volumes.volume import Volume, check_dtype, in_order

_GAP = 2**14  # bytes between two rows that are read with them: half of what costs as much as another call
_BAND = 2**20  # bytes of rows that are read at once
MOST_PACKED = 1032  # how many times smaller gzip makes anything
_GZIP = 31  # zlib's number for a gzip header and the largest window
_INPUT, _OUTPUT = 2**16, 2**20  # most bytes of the file and of its content in one step


def flat_volume(
    path: Path,
    layout: Layout,
    stored: np.dtype | None,
    start: int,
    packed: bool = False,
    scale: tuple[float, float] = (1, 0),
    behind: int = 0,
) -> Volume:
    """The chosen volume of an array that lies in a file as it is, from a byte on, its slowest axis first.

    Args:
        path: the file.
        layout: the array's axes.
        stored: dtype of the values in the file.
        start: position of the first value, in bytes of the content.
        packed: whether the file is packed by gzip.
        scale: slope and intercept of the values; with others than 1 and 0 they are float32, or float64 where stored so.
        behind: bytes of the file before what is packed.
    """
    size, (height, width) = check_dtype(path, stored).itemsize, (layout.sizes[axis] for axis in layout.page)
    end = start + math.prod(layout.sizes) * size
    refuse_truncated([path], [end // MOST_PACKED if packed else end], start)  # before anything of that size is made
    starts = start + layout.planes() * height * width * size
    volume: Volume = ContiguousVolume(path, (len(starts), height, width), stored, starts, packed=packed, behind=behind)
    volume = in_order(volume if scale == (1, 0) else ScaledVolume(volume, *scale), layout.order)
    volume.channels, volume.times = layout.channels, layout.times
    return volume


class ContiguousVolume(Volume):
    """Planes of uncompressed rows, each plane at a position of its own: bands of rows are read with what lies between them.

    A UserError says that the dtype is not supported, or that a file ends before its planes do.

    Args:
        path: the file that was opened.
        shape: (Z, Y, X).
        stored: dtype of the values in the file, with its byte order.
        starts: position of every plane, in bytes.
        files: the file of every plane, where there are several.
        packed: whether the file is packed by gzip; positions are those of its content.
        behind: bytes of the file before what is packed.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int, int],
        stored: np.dtype | None,
        starts: Sequence[int] | np.ndarray,
        files: Sequence[Path] | None = None,
        packed: bool = False,
        behind: int = 0,
    ):
        self.path, self.shape, self.dtype = path, shape, check_dtype(path, stored)
        self._stored = stored
        self._files, self._starts = files or [path] * shape[0], [int(start) for start in starts]
        self.files = tuple(sorted(set(self._files)))
        self._packed = GzipBytes(path, behind) if packed else None
        if not packed:
            plane = shape[1] * shape[2] * self.dtype.itemsize
            refuse_truncated(self._files, [start + plane for start in self._starts], min(self._starts))

    def _read(self, planes: range, rows: slice, columns: slice) -> np.ndarray:
        out = np.empty((len(planes), *extent((rows, columns))), self.dtype)
        size = self.dtype.itemsize
        pitch, length = self.shape[2] * size, out.shape[2] * size
        band = 1 if pitch - length > _GAP else max(_BAND // pitch, 1)
        whole = pitch == length and self._stored == self.dtype and self._packed is None
        for k, z, file in each_plane(self._files, planes):
            start = self._starts[z] + rows.start * pitch + columns.start * size
            for row in range(0, out.shape[1], band):
                part = out[k, row : row + band]
                if whole:
                    file.fill(start + row * pitch, part)
                    continue
                data = (self._packed or file).read(start + row * pitch, (len(part) - 1) * pitch + length)
                part[...] = np.ndarray(part.shape, self._stored, data, strides=(pitch, size))
        return out


class ScaledVolume(Volume):
    """The values slope · stored + intercept, in float64 where they are stored so and in float32 otherwise."""

    def __init__(self, stored: Volume, slope: float, intercept: float):
        self.path, self.shape = stored.path, stored.shape
        self.dtype = np.dtype(np.float64 if stored.dtype == np.float64 else np.float32)
        self._stored, self._slope, self._intercept = stored, slope, intercept

    def _read(self, planes: range, rows: slice, columns: slice) -> np.ndarray:
        values = self._stored[planes.start : planes.stop : planes.step, rows, columns]
        return values * self.dtype.type(self._slope) + self.dtype.type(self._intercept)


@dataclass(frozen=True)
class OpenFile:
    """A file that is open, read by position."""

    path: Path
    handle: int

    def fill(self, start: int, values: Any) -> None:
        """Read as many bytes as a contiguous array or a bytearray has into it; a UserError says that the file ends before."""
        left = memoryview(values).cast("B")
        while left:  # a single read is limited to 2 GiB
            count = os.preadv(self.handle, [left], start)
            if not count:
                raise UserError(f"{self.path}: ends at byte {start}; it was changed while in use, copy it again")
            left, start = left[count:], start + count

    def read(self, start: int, count: int) -> bytearray:
        """So many bytes."""
        data = bytearray(count)
        self.fill(start, data)
        return data


def each_plane(files: Sequence[Path], planes: range) -> Iterator[tuple[int, int, OpenFile]]:
    """Plane by plane: its place among ``planes``, its number, and its file (one of ``files``, by number), open meanwhile."""
    for path, group in groupby(enumerate(planes), key=lambda item: files[item[1]]):
        handle = os.open(path, os.O_RDONLY)
        try:
            for k, z in group:
                yield k, z, OpenFile(path, handle)
        finally:
            os.close(handle)


def refuse_truncated(files: Sequence[Path], ends: Sequence[int], first: int = 0) -> None:
    """A truncated file is found when it is opened: the file of every plane must be as long as to where that plane ends.

    ``first`` is the least place or length of all that is to be read.
    """
    if first < 0:
        raise UserError(f"{files[0]}: states the place or length {first} of a part of it; damaged, copy it again")
    sizes = {file: file.stat().st_size for file in set(files)}
    for file, end in sorted(zip(files, ends, strict=True), key=lambda item: -item[1]):
        size = sizes[file]
        if end > size:
            raise UserError(f"{file}: truncated: its planes end at byte {end}, the file at byte {size}; copy it again")


def is_packed(path: Path) -> bool:
    """Whether a file is packed by gzip, whatever its name says."""
    with path.open("rb") as file:
        return file.read(2) == b"\x1f\x8b"


class GzipBytes:
    """Reads a gzip file at constant memory, forwards at the cost of what is read; the file is open only meanwhile.

    For going back the state of the decompressor is kept every few megabytes; at most ``_MOST_MARKS`` such marks (13 MB) are kept,
    and they are thinned out as the file turns out longer. Every checksum on the way is compared, also on the way back.
    """

    _MOST_MARKS = 256

    def __init__(self, path: Path, behind: int = 0):
        self.path, self._behind = path, behind
        self._lock = threading.Lock()  # volumes are read ahead in other threads
        self._content, self._position = 0, behind  # bytes of the content and of the file that have been read
        self._state: Any = zlib.decompressobj(_GZIP)
        self._piece = b""  # the last ones of the content
        self._marks = [(0, behind, self._state.copy())]
        self._spacing = 2**22

    def __reduce__(self) -> tuple[Any, ...]:
        return GzipBytes, (self.path, self._behind)

    def read(self, start: int, count: int) -> bytes:
        """Exactly ``count`` bytes of the content from ``start`` on; a UserError says that it is damaged or ends before."""
        with self._lock:
            if start < self._content - len(self._piece):
                self._content, self._position, state = max((mark for mark in self._marks if mark[0] <= start), key=lambda m: m[0])
                self._state, self._piece = state.copy(), b""
            parts = []
            while True:
                begin = self._content - len(self._piece)
                parts.append(self._piece[max(start - begin, 0) : max(start + count - begin, 0)])
                if self._content >= start + count:
                    return b"".join(parts)
                self._step()

    def _step(self) -> None:
        if self._content >= self._marks[-1][0] + self._spacing:
            self._marks.append((self._content, self._position, self._state.copy()))
            if len(self._marks) > self._MOST_MARKS:
                self._marks = self._marks[::2]
                self._spacing *= 2
        with self.path.open("rb") as file:
            file.seek(self._position)
            data = file.read(_INPUT)
        try:
            self._piece = self._state.decompress(data, _OUTPUT)
        except zlib.error as error:
            raise UserError(f"{self.path}: damaged near byte {self._position} ({error}); copy it again") from error
        if not data and not self._piece:
            raise UserError(f"{self.path}: truncated: its content ends at byte {self._content}; copy it again")
        self._content += len(self._piece)
        ended = self._state.eof  # then what is left is unused, and may stand in unconsumed_tail as well
        self._position += len(data) - len(self._state.unused_data if ended else self._state.unconsumed_tail)
        if ended:
            self._state = zlib.decompressobj(_GZIP)  # another member follows, or nothing
