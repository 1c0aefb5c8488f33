"""Volumes whose planes lie in a file as they are (TIFF, MRC, NIfTI, the latter also behind gzip), read by position.

Not by a memory map: a disc that fails or a file that is shortened meanwhile would end the process without a word, and nothing
would be gained (benchmarks/results/reading_cpu.json).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from volumes.gzip_bytes import GzipBytes
from volumes.volume import Volume, check_dtype, extent

_GAP = 2**14  # bytes between two rows that are read with them: half of what costs as much as another call
_BAND = 2**20  # bytes of rows that are read at once


class ContiguousVolume(Volume):
    """Planes of uncompressed rows, each plane at a position of its own: bands of rows are read with what lies between them.

    Args:
        path: the file that was opened.
        shape: (Z, Y, X).
        stored: dtype of the values in the file, with its byte order.
        starts: position of every plane, in bytes.
        files: the file of every plane, where there are several.
        packed: whether the file is packed by gzip; positions are those of its content.

    Raises:
        UserError: the dtype is not supported, or a file ends before its planes do.
    """

    def __init__(
        self,
        path: Path,
        shape: tuple[int, int, int],
        stored: np.dtype | None,
        starts: Sequence[int] | np.ndarray,
        files: Sequence[Path] | None = None,
        packed: bool = False,
    ):
        self.path, self.shape, self.dtype = path, shape, check_dtype(path, stored)
        self._stored = stored
        self._files, self._starts = files or [path] * shape[0], [int(start) for start in starts]
        self.files = tuple(sorted(set(self._files)))
        self._packed = GzipBytes(path) if packed else None
        if not packed:
            plane = shape[1] * shape[2] * self.dtype.itemsize
            refuse_truncated(self._files, [start + plane for start in self._starts])

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


@dataclass(frozen=True)
class OpenFile:
    """A file that is open, read by position."""

    path: Path
    handle: int

    def fill(self, start: int, values: Any) -> None:
        """Read as many bytes as a contiguous array or a bytearray has into it.

        Raises:
            UserError: the file ends before.
        """
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
    """Plane by plane: its place among ``planes``, its number, and its file, which is open meanwhile.

    Args:
        files: the file of every plane of the volume.
        planes: which ones.
    """
    for path, group in groupby(enumerate(planes), key=lambda item: files[item[1]]):
        handle = os.open(path, os.O_RDONLY)
        try:
            for k, z in group:
                yield k, z, OpenFile(path, handle)
        finally:
            os.close(handle)


def refuse_truncated(files: Sequence[Path], ends: Sequence[int]) -> None:
    """Every byte that will be asked for must exist: a truncated file is found when it is opened.

    Args:
        files: the file of every plane.
        ends: where that plane ends.

    Raises:
        UserError: a file is shorter.
    """
    needed: dict[Path, int] = {}
    for file, end in zip(files, ends, strict=True):
        needed[file] = max(end, needed.get(file, 0))
    for file, end in needed.items():
        size = file.stat().st_size
        if end > size:
            raise UserError(f"{file}: truncated: its planes end at byte {end}, the file at byte {size}; copy it again")
