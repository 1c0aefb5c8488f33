"""One shard of a Zarr 3 array as bytes: the encoded chunks one after the other, then their index.

The layout is that of the ``sharding_indexed`` codec of the Zarr 3 specification with the index at the end: offset and length of
every chunk as little-endian 64-bit numbers, all ones for a chunk that holds nothing but the fill value, and a CRC-32C. A chunk
is compressed by zstd, or by Blosc's zstd with byte shuffle where a value has several bytes, and followed by its own CRC-32C.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Sequence
from pathlib import Path

import google_crc32c
import numpy as np

from utils.errors import UserError
from volumes.volume import overlap, relative

LEVEL = 1  # of zstd: as small as level 3 on microscopy, twice as fast
_ABSENT = 2**64 - 1
_CRC = struct.Struct("<I")
Slices = tuple[slice, ...]


def encode_shard(values: np.ndarray, shard: Sequence[int], chunk: Sequence[int]) -> list[bytes]:
    """The pieces of a shard's file.

    Args:
        values: what the shard holds; smaller than ``shard`` at the end of the array.
        shard: shape of a shard.
        chunk: shape of a chunk.

    Returns:
        Bytes to be written one after the other; nothing where every value is 0.
    """
    counts = [outer // inner for outer, inner in zip(shard, chunk, strict=True)]
    index = np.full((math.prod(counts), 2), _ABSENT, "<u8")
    pieces: list[bytes] = []
    offset = 0
    for number, position in enumerate(np.ndindex(*counts)):
        part = values[tuple(slice(p * side, (p + 1) * side) for p, side in zip(position, chunk, strict=True))]
        if not part.any():
            continue
        if part.shape != tuple(chunk):  # the array ends inside this chunk
            part = np.pad(part, [(0, side - size) for side, size in zip(chunk, part.shape, strict=True)])
        piece = _with_crc(_compressed(part))
        index[number] = offset, len(piece)
        offset += len(piece)
        pieces.append(piece)
    return [*pieces, _with_crc(index.tobytes())] if pieces else []


def read_shard(path: Path, box: Slices, out: np.ndarray, shard: Sequence[int], chunk: Sequence[int]) -> None:
    """Read a box of a shard.

    Args:
        path: the shard's file.
        box: what to read, relative to the shard.
        out: array of the box's shape that takes the values.
        shard: shape of a shard.
        chunk: shape of a chunk.

    Raises:
        UserError: the file is damaged; the message names it and the chunk.
        FileNotFoundError: the shard was never written.
    """
    counts = [outer // inner for outer, inner in zip(shard, chunk, strict=True)]
    touched = [range(part.start // side, math.ceil(part.stop / side)) for part, side in zip(box, chunk, strict=True)]
    handle = os.open(path, os.O_RDONLY)
    try:
        index = _index(path, handle, math.prod(counts))
        for steps in np.ndindex(*(len(r) for r in touched)):
            position = [r[k] for r, k in zip(touched, steps, strict=True)]
            offset, length = (int(n) for n in index[np.ravel_multi_index(position, counts)])
            here = tuple(slice(p * side, (p + 1) * side) for p, side in zip(position, chunk, strict=True))
            common = overlap(here, box)
            target = out[relative(common, box)]
            if offset == _ABSENT:
                target[...] = 0
                continue
            data = _checked(path, os.pread(handle, length, offset), length, f"chunk {tuple(position)}")
            values = _decompressed(data, out.dtype).reshape(chunk)
            target[...] = values[relative(common, here)]
    finally:
        os.close(handle)


def _index(path: Path, handle: int, chunks: int) -> np.ndarray:
    length = 16 * chunks + _CRC.size
    start = max(os.fstat(handle).st_size - length, 0)
    return np.frombuffer(_checked(path, os.pread(handle, length, start), length, "the index"), "<u8").reshape(chunks, 2)


def _with_crc(data: bytes) -> bytes:
    return data + _CRC.pack(google_crc32c.value(data))


def _checked(path: Path, data: bytes, length: int, what: str) -> bytes:
    body = data[: -_CRC.size]
    if len(data) != length or _CRC.pack(google_crc32c.value(body)) != data[-_CRC.size :]:
        raise UserError(f"{path}: {what} of this shard is damaged; copy or write the volume again")
    return body


def _compressed(values: np.ndarray) -> bytes:
    from numcodecs import blosc, zstd

    stored = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    if stored.itemsize == 1:
        return bytes(zstd.compress(stored, LEVEL))
    return bytes(blosc.compress(stored, b"zstd", LEVEL, blosc.SHUFFLE))


def _decompressed(data: bytes, dtype: np.dtype) -> np.ndarray:
    from numcodecs import blosc, zstd

    return np.frombuffer(zstd.decompress(data) if dtype.itemsize == 1 else blosc.decompress(data), dtype.newbyteorder("<"))
