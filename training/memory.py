"""How this process gets its memory."""

from __future__ import annotations

import ctypes
import platform

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # names of glibc's malloc.h


def keep_freed_memory() -> None:
    """Lets glibc keep freed blocks for the next tensor instead of returning them to the system.

    A training step frees and asks for the same gigabytes again; each time the system would have to clear every page. Where the C
    library is another one nothing changes. benchmarks/step_time.py measures the effect.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_MAX, 0)
        library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
