"""What a compressed frame says of itself, asked before numcodecs makes room for it."""

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from zipfile import Path as ZipPath

_LONGEST = 18  # bytes of the header of a frame


def unpacked_size(codec: str, name: Path | ZipPath, size: int) -> int:
    """Bytes that a frame claims to hold, for which room would be made; 0 where it does not say so.

    Args:
        codec: name of the codec in lower case.
        name: file that begins with the frame.
        size: its bytes.

    Raises:
        ValueError: the file ends before the frame, and numcodecs would read on.
    """
    if codec not in _CLAIMS:
        return 0
    with name.open("rb") as file:
        return _CLAIMS[codec](file.read(_LONGEST), size)


def _of_blosc(head: bytes, size: int) -> int:
    unpacked, _, packed = struct.unpack_from("<3I", head.ljust(16, b"\0"), 4)
    if packed > size:
        raise ValueError(f"it has {size} of {packed} bytes")
    return unpacked


def _of_zstd(head: bytes, _: int) -> int:
    """RFC 8878, 3.1.1."""
    if len(head) < 6 or head[:4] != b"\x28\xb5\x2f\xfd":
        return 0
    kind, single, dictionary = head[4] >> 6, head[4] >> 5 & 1, head[4] & 3
    start, length = 6 - single + (0, 1, 2, 4)[dictionary], (single, 2, 4, 8)[kind]
    return int.from_bytes(head[start : start + length], "little") + (256 if length == 2 else 0)


_CLAIMS: Mapping[str, Callable[[bytes, int], int]] = {  # by codec: beginning and bytes of a frame → bytes unpacked
    "zstd": _of_zstd,
    "blosc": _of_blosc,
    "lz4": lambda head, _: int.from_bytes(head[:4], "little"),  # as numcodecs writes it
}
