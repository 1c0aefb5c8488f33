"""A Zarr 3 array that several threads and processes fill block by block; each block appears whole or not at all.

A block is what lies in one file: a shard, or a chunk where there are none. It is the unit of writing, and anything else is
refused: two processes that each write a part of one block would lose each other's data silently. tensorstore makes the files: a
temporary one, synced and renamed. zarr-python does so too, but an event loop stands between its threads: half (uint8) to two
thirds (uint16) of the speed, measured on electron microscopy. Every program that knows Zarr 3 reads the result.
"""

import errno
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from utils.boxes import extent, parts
from utils.errors import UserError
from utils.far import FarPath
from utils.files import CONTINUES, writing

Codec = dict[str, Any]
EVERY_BLOCK = "isoscope_every_block_is_stored"  # attribute of arrays whose zeros are stored too: a file that is not there is lost
LEFT_OVER = "*.__lock"  # files that tensorstore had not finished when it was killed
_CONTEXT = {
    "file_io_locking": {"mode": "none"},  # every block has one writer, and some file systems of clusters know no locks
    "cache_pool": {"total_bytes_limit": 0},
}
_ZEROS = {"store_data_equal_to_fill_value": True}


def plain_zstd(level: int) -> list[Codec]:
    """Codecs of a chunk that zstd compresses as it is, with a checksum."""
    return [_codec("bytes", endian="little"), _codec("zstd", level=level, checksum=False), {"name": "crc32c"}]


def sharded(chunk: Sequence[int], itemsize: int) -> list[Codec]:
    """Codecs of shards whose chunks are compressed and checked each by itself.

    By zstd of level 1 (as small as level 3 on microscopy, twice as fast); values of several bytes are shuffled first.
    """
    blosc = _codec("blosc", cname="zstd", clevel=1, shuffle="shuffle", typesize=itemsize, blocksize=0)
    inner = plain_zstd(1) if itemsize == 1 else [_codec("bytes", endian="little"), blosc, {"name": "crc32c"}]
    index = [_codec("bytes", endian="little"), {"name": "crc32c"}]
    settings = {"chunk_shape": list(chunk), "codecs": inner}
    return [_codec("sharding_indexed", **settings, index_codecs=index, index_location="end")]


def _codec(name: str, **settings: Any) -> Codec:
    return {"name": name, "configuration": settings}


@dataclass(frozen=True)
class BlockArray:
    """An array on disc, of any number of axes, written in whole blocks; its fill value is 0.

    Attributes:
        folder: the array's folder.
        shape: its shape.
        dtype: dtype of its values.
        block: shape of a block; the last ones reach beyond the array.
    """

    folder: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    block: tuple[int, ...]

    def create(self, codecs: Sequence[Codec], axes: Sequence[str]) -> None:
        """Make the empty array, of these codecs for a block and with a name for every axis.

        Raises:
            UserError: the disc is full or refuses.
        """
        metadata = {
            "shape": self.shape,
            "data_type": self.dtype.name,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": self.block}},
            "chunk_key_encoding": {"name": "default"},
            "fill_value": 0,
            "codecs": list(codecs),
            "dimension_names": list(axes),
            "attributes": {EVERY_BLOCK: True},
        }
        with self._writing():
            self._open(metadata=metadata, create=True)

    def _open(self, **how: Any) -> Any:
        import tensorstore  # a quarter of a second that only commands that write volumes wait for

        place = {"driver": "file", "path": f"{self.folder.absolute()}/"}
        return tensorstore.open({"driver": "zarr3", "kvstore": place, "context": _CONTEXT, **_ZEROS, **how}).result()

    @cached_property
    def _store(self) -> Any:
        return self._open(open=True)

    @cached_property
    def boxes(self) -> list[tuple[slice, ...]]:
        """What every block covers, the last axis fastest; a block's number is its index here."""
        return parts(tuple(slice(0, size) for size in self.shape), self.block)

    def write(self, box: tuple[slice, ...], values: np.ndarray) -> list[int]:
        """Write the blocks of a box; each appears whole or not at all. Different boxes may be written at once.

        Args:
            box: whole blocks.
            values: as many values as the box holds, of the array's dtype.

        Returns:
            Numbers of these blocks.

        Raises:
            ValueError: the box does not consist of whole blocks, or shape or dtype of the values do not fit.
            UserError: the disc is full or cannot be written.
        """
        for part, side, size in zip(box, self.block, self.shape, strict=True):
            ends = part.stop % side == 0 or part.stop == size
            if part.start % side or not ends or not 0 <= part.start < part.stop <= size or part.step not in (None, 1):
                raise ValueError(
                    f"{[(p.start, p.stop) for p in box]} is not made of whole shards of {self.block} in {self.shape}: it must "
                    "begin at a multiple of the shard and end at one or at the array's end (parts of a shard would be lost)"
                )
        if values.shape != extent(box) or values.dtype != self.dtype:
            raise ValueError(f"values {values.shape} {values.dtype} for a box of {extent(box)} {self.dtype}")
        with self._writing():
            self._store[box].write(values, can_reference_source_data_indefinitely=True).result()
        grid = [math.ceil(size / side) for size, side in zip(self.shape, self.block, strict=True)]
        return [int(np.ravel_multi_index(place, grid)) for place in blocks_under(box, self.block)]

    def files(self, box: tuple[slice, ...]) -> list[Path]:
        """The files of the blocks under a box; none for an array of an older version, whose zeros have none."""
        places = blocks_under(box, self.block) if self._stores_zeros else ()
        return [self.folder.joinpath("c", *map(str, place)) for place in places]

    @cached_property
    def _stores_zeros(self) -> bool:
        with self._reading():
            return bool(self._store.spec().to_json()["metadata"].get("attributes", {}).get(EVERY_BLOCK))

    def read(self, box: tuple[slice | int, ...]) -> np.ndarray:
        """The values of any non-empty box, without the axes of which one place is named; 0 where nothing was written.

        Raises:
            UserError: a block is damaged.
        """
        with self._reading():
            return self._store[box].read().result()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except ValueError as error:
            raise UserError(f"{self.folder} is damaged ({error}); copy or write the volume again") from error

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Tensorstore says only in its message what the operating system has against a write."""
        with writing(self.folder, CONTINUES):
            try:
                yield
            except ValueError as error:
                code = re.search(r"os_error_code='(\d+)'", str(error))
                raise OSError(int(code[1]) if code else errno.EIO, str(error)) from error


def blocks_under(key: Iterable[slice | int], block: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Places in the grid of blocks that a key of slices and places touches."""
    spans = [part if isinstance(part, slice) else slice(part, part + 1) for part in key]
    return product(*(range(part.start // side, -(-part.stop // side)) for part, side in zip(spans, block, strict=True)))


def require_blocks(folder: Any, array: Any, key: Iterable[slice | int]) -> None:
    """Zarr takes a file that is not there for zeros; of an array that says that its zeros have files, too, it is lost.

    Raises:
        FileNotFoundError: the file of a block under the key is not in the folder (of a zip file, too) of the array.
    """
    if isinstance(folder, FarPath):
        return  # its store sees to it, without asking for every block twice
    if array.metadata.zarr_format == 3 and array.metadata.attributes.get(EVERY_BLOCK):
        for place in blocks_under(key, array.shards or array.chunks):
            if not (file := folder / array.metadata.encode_chunk_key(place)).is_file():
                raise FileNotFoundError(f"{file} is missing")
