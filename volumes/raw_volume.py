"""Volumes whose voxels lie in a file one after the other, plane by plane, also behind gzip."""

from __future__ import annotations

import os
import threading
import zlib
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from utils.errors import UserError
from volumes.volume import Volume, check_dtype

_Mark = tuple[int, int, Any]  # bytes of content, bytes of the file, state of the decompressor
_GZIP = 31  # zlib's number for a gzip header and the largest window


class ByteSource(Protocol):
    """Bytes by position."""

    def read(self, start: int, count: int) -> bytes:
        """Exactly ``count`` bytes; UserError where the file ends before."""
        ...


class FileBytes:
    """The bytes of a file, which is open only while it is read."""

    def __init__(self, path: Path):
        self.path = path

    def read(self, start: int, count: int) -> bytes:
        """Bytes of the file, by position."""
        handle = os.open(self.path, os.O_RDONLY)
        try:
            pieces, position, end = [], start, start + count
            while position < end:  # a single read is limited to 2 GiB
                piece = os.pread(handle, end - position, position)
                if not piece:
                    raise UserError(f"{self.path}: truncated: it ends at byte {position} of {end}; copy it again")
                pieces.append(piece)
                position += len(piece)
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
        finally:
            os.close(handle)


class GzipBytes:
    """The content of a gzip file by position, at constant memory.

    Reading onwards costs only what is read. For going back the state of the decompressor is kept every few megabytes; there
    are at most ``_MOST_MARKS`` such marks (13 MB), and they are thinned out as the file turns out longer.
    """

    _MOST_MARKS = 256
    _INPUT = 2**16
    _OUTPUT = 2**20

    def __init__(self, path: Path):
        self.path = path
        self._restart()

    def _restart(self) -> None:
        self._lock = threading.Lock()  # volumes are read ahead in other threads
        self._marks: list[_Mark] = [(0, 0, zlib.decompressobj(_GZIP))]
        self._last = self._now = (0, 0, zlib.decompressobj(_GZIP))  # before and after the last step
        self._spacing = 2**22

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path = state["path"]
        self._restart()

    def read(self, start: int, count: int) -> bytes:
        """Bytes of the content, by position."""
        with self._lock:
            return self._read(start, count)

    def _read(self, start: int, count: int) -> bytes:
        if not self._now[0] <= start:
            content, position, state = max((m for m in (*self._marks, self._last) if m[0] <= start), key=lambda m: m[0])
            self._now = (content, position, state.copy())
        pieces: list[bytes] = []
        with self.path.open("rb") as file:
            while self._now[0] < start + count:
                before = self._now[0]
                piece = self._step(file)
                pieces.append(piece[max(start - before, 0) : max(start + count - before, 0)])
        return b"".join(pieces)

    def _step(self, file: Any) -> bytes:
        content, position, state = self._now
        self._last = (content, position, state.copy())  # the next reading begins where this one ends, inside the step
        if content >= self._marks[-1][0] + self._spacing:
            self._marks.append(self._last)
            if len(self._marks) > self._MOST_MARKS:
                self._marks = self._marks[::2]
                self._spacing *= 2
        file.seek(position)
        data = file.read(self._INPUT)
        try:
            piece: bytes = state.decompress(data, self._OUTPUT)
        except zlib.error as error:
            raise UserError(f"{self.path}: damaged near byte {position} ({error}); copy it again") from error
        if not data and not piece:
            raise UserError(f"{self.path}: truncated: its content ends at byte {content}; copy it again")
        position += len(data) - len(state.unconsumed_tail) - len(state.unused_data)
        if state.eof:
            state = zlib.decompressobj(_GZIP)  # another member follows, or nothing
        self._now = (content + len(piece), position, state)
        return piece


class RawVolume(Volume):
    """Planes of uncompressed values, rows fastest, at a fixed distance in a file.

    Args:
        path: the file, for messages.
        source: its bytes.
        shape: (Z, Y, X).
        stored: dtype of the values in the file.
        start: position of the first plane.
        scaling: slope and intercept that turn stored values into what they mean; the dtype is then float.
    """

    def __init__(
        self,
        path: Path,
        source: ByteSource,
        shape: tuple[int, int, int],
        stored: np.dtype,
        start: int,
        scaling: tuple[float, float] | None = None,
    ):
        self.path, self.shape = path, shape
        self._source, self._stored, self._start, self._scaling = source, stored, start, scaling
        native = check_dtype(path, stored)
        self.dtype = native if scaling is None else np.dtype(np.float64 if native == np.float64 else np.float32)
        self._source.read(start + (self._bytes_of_plane * shape[0] - 1 if isinstance(source, FileBytes) else 0), 1)

    @property
    def _bytes_of_plane(self) -> int:
        return self.shape[1] * self.shape[2] * self._stored.itemsize

    def _read(self, planes: range, rows: slice, columns: slice) -> np.ndarray:
        out = np.empty((len(planes), rows.stop - rows.start, columns.stop - columns.start), self.dtype)
        for k, z in enumerate(planes):
            values = self._rows(z, rows, columns)
            if self._scaling is not None:
                values = values * self.dtype.type(self._scaling[0]) + self.dtype.type(self._scaling[1])
            out[k] = values
        return out

    def _rows(self, z: int, rows: slice, columns: slice) -> np.ndarray:
        width, size = self.shape[2], self._stored.itemsize
        first = self._start + z * self._bytes_of_plane + rows.start * width * size
        if (columns.stop - columns.start) * 8 > width or not isinstance(self._source, FileBytes):
            data = self._source.read(first, (rows.stop - rows.start) * width * size)
            return np.frombuffer(data, self._stored).reshape(-1, width)[:, columns]
        length = (columns.stop - columns.start) * size
        starts = range(first + columns.start * size, first + (rows.stop - rows.start) * width * size, width * size)
        return np.stack([np.frombuffer(self._source.read(start, length), self._stored) for start in starts])
