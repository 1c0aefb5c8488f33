"""The content of a gzip file by position.

indexed_gzip, which nibabel would use, was tried and left: from a damaged file it gives wrong values without a word (it compares
checksums in some orders of reading only), and reading onwards takes it twice as long (benchmarks/results/reading_cpu.json).
"""

from __future__ import annotations

import threading
import zlib
from pathlib import Path
from typing import Any

from utils.errors import UserError

_GZIP = 31  # zlib's number for a gzip header and the largest window
_INPUT, _OUTPUT = 2**16, 2**20  # most bytes of the file and of its content in one step


class GzipBytes:
    """Reads a gzip file at constant memory, forwards at the cost of what is read; the file is open only meanwhile.

    For going back the state of the decompressor is kept every few megabytes; at most ``_MOST_MARKS`` such marks (13 MB) are kept,
    and they are thinned out as the file turns out longer. Every checksum on the way is compared, also on the way back.
    """

    _MOST_MARKS = 256

    def __init__(self, path: Path):
        self.path = path
        self._lock = threading.Lock()  # volumes are read ahead in other threads
        self._content = self._position = 0  # bytes of the content and of the file that have been read
        self._state: Any = zlib.decompressobj(_GZIP)
        self._piece = b""  # the last ones of the content
        self._marks = [(0, 0, self._state.copy())]
        self._spacing = 2**22

    def __reduce__(self) -> tuple[Any, ...]:
        return GzipBytes, (self.path,)

    def read(self, start: int, count: int) -> bytes:
        """Exactly ``count`` bytes of the content from ``start`` on.

        Raises:
            UserError: the file is damaged, or its content ends before.
        """
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
        self._position += len(data) - len(self._state.unconsumed_tail) - len(self._state.unused_data)
        if self._state.eof:
            self._state = zlib.decompressobj(_GZIP)  # another member follows, or nothing
