"""A Zarr 3 array that several processes fill shard by shard.

zarr-python reads, changes and writes back a shard when a part of it is assigned, so that two processes which write different
chunks of one shard lose each other's data silently. Here the unit of writing is the whole shard: anything else is refused. The
shards' bytes are made by volumes.shard_file instead of zarr-python, because a temporary file and one rename make a shard
appear whole or not at all, and because no event loop stands between the threads of a writer (three times the speed). The array
itself is an ordinary one, created by zarr-python and readable by every program that knows Zarr 3.
"""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.files import CONTINUES, writing
from volumes.shard_file import LEVEL, Slices, encode_shard, read_shard
from volumes.volume import extent, overlap, relative


@dataclass(frozen=True)
class ShardedArray:
    """An array on disc, of any number of axes, written in whole shards; its fill value is 0.

    Attributes:
        folder: the array's folder.
        shape: its shape.
        dtype: dtype of its values.
        shard: shape of a shard, a multiple of ``chunk``; the last ones reach beyond the array.
        chunk: shape of the chunks that are compressed by themselves.
    """

    folder: Path
    shape: tuple[int, ...]
    dtype: np.dtype
    shard: tuple[int, ...]
    chunk: tuple[int, ...]

    @classmethod
    def create(
        cls,
        folder: Path,
        shape: Sequence[int],
        dtype: np.dtype | str,
        *,
        shard: Sequence[int],
        chunk: Sequence[int],
        dimension_names: Sequence[str],
        attributes: Mapping[str, Any] | None = None,
    ) -> ShardedArray:
        """Make an empty array.

        Args:
            folder: the array's folder; it must not exist.
            shape: the array's shape.
            dtype: dtype of the values.
            shard: shape of a shard.
            chunk: shape of a chunk; each side divides the shard's.
            dimension_names: a name for every axis.
            attributes: plain JSON kept with the array.

        Raises:
            ValueError: the shapes do not fit each other.
        """
        import zarr  # half a second that only commands that write volumes wait for
        from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

        if not len(shape) == len(shard) == len(chunk) == len(dimension_names) or min(*shape, *shard, *chunk) < 1:
            raise ValueError(f"shape {shape}, shard {shard}, chunk {chunk}, axes {dimension_names}: as many sizes > 0 each")
        if any(outer % inner for outer, inner in zip(shard, chunk, strict=True)):
            raise ValueError(f"shard {tuple(shard)} must be a multiple of chunk {tuple(chunk)} along every axis")
        dtype = np.dtype(dtype)
        wide = BloscCodec(cname="zstd", clevel=LEVEL, shuffle="shuffle")
        with writing(folder, CONTINUES):
            zarr.create_array(
                str(folder),
                shape=tuple(shape),
                dtype=dtype,
                chunks=tuple(chunk),
                shards=tuple(shard),
                fill_value=0,
                compressors=[ZstdCodec(level=LEVEL) if dtype.itemsize == 1 else wide, Crc32cCodec()],
                dimension_names=list(dimension_names),
                attributes=dict(attributes or {}),
            )
        return cls(Path(folder), tuple(shape), dtype, tuple(shard), tuple(chunk))

    @classmethod
    def open(cls, folder: Path) -> ShardedArray:
        """An array made by :meth:`create`."""
        import zarr

        array = zarr.open_array(str(folder), mode="r")
        assert array.shards is not None
        return cls(Path(folder), array.shape, np.dtype(array.dtype), array.shards, array.chunks)

    @property
    def grid(self) -> tuple[int, ...]:
        """How many shards lie along every axis."""
        return tuple(math.ceil(size / side) for size, side in zip(self.shape, self.shard, strict=True))

    @property
    def count(self) -> int:
        """How many shards there are."""
        return math.prod(self.grid)

    def box(self, number: int) -> Slices:
        """The part of the array that a shard covers; shards are numbered with the last axis fastest."""
        starts = [int(p) * side for p, side in zip(np.unravel_index(number, self.grid), self.shard, strict=True)]
        return tuple(slice(a, min(a + side, size)) for a, side, size in zip(starts, self.shard, self.shape, strict=True))

    def shards_of(self, box: Slices) -> list[int]:
        """Numbers of the shards that make up a box.

        Raises:
            ValueError: the box does not consist of whole shards.
        """
        for part, side, size in zip(box, self.shard, self.shape, strict=True):
            ends = part.stop % side == 0 or part.stop == size
            if part.start % side or not ends or not 0 <= part.start < part.stop <= size or part.step not in (None, 1):
                raise ValueError(
                    f"{[(p.start, p.stop) for p in box]} is not made of whole shards of {self.shard} in {self.shape}: it must "
                    "begin at a multiple of the shard and end at one or at the array's end (parts of a shard would be lost)"
                )
        return [number for number, _, _ in self._parts(box)]

    def write(self, box: Slices, values: np.ndarray, temporary: Path) -> None:
        """Write the shards of a box; each appears whole or not at all. Different boxes may be written at once.

        Args:
            box: whole shards; see :meth:`shards_of`.
            values: as many values as the box holds, of the array's dtype.
            temporary: an existing folder on the same file system, for files that are not complete.

        Raises:
            ValueError: box, shape or dtype do not fit.
            UserError: the disc is full or cannot be written.
        """
        self.shards_of(box)
        expected = extent(box)
        if values.shape != expected or values.dtype != self.dtype:
            raise ValueError(f"values {values.shape} {values.dtype} for a box of {expected} {self.dtype}")
        for number, inside, _ in self._parts(box):
            self._put(self._path(number), encode_shard(values[inside], self.shard, self.chunk), temporary)

    def read(self, box: Slices) -> np.ndarray:
        """The values of any non-empty box; 0 where nothing was written.

        Raises:
            UserError: a shard is damaged.
        """
        out = np.empty(extent(box), self.dtype)
        for number, inside, within in self._parts(box):
            try:
                read_shard(self._path(number), within, out[inside], self.shard, self.chunk)
            except FileNotFoundError:
                out[inside] = 0
        return out

    def _parts(self, box: Slices) -> Iterator[tuple[int, Slices, Slices]]:
        """For every shard that a box touches: its number, its part relative to the box, and relative to the shard."""
        touched = [range(part.start // side, math.ceil(part.stop / side)) for part, side in zip(box, self.shard, strict=True)]
        for steps in np.ndindex(*(len(r) for r in touched)):
            position = [r[k] for r, k in zip(touched, steps, strict=True)]
            number = int(np.ravel_multi_index(position, self.grid))
            own = self.box(number)
            common = overlap(own, box)
            yield number, relative(common, box), relative(common, own)

    def _path(self, number: int) -> Path:
        return self.folder.joinpath("c", *(str(int(p)) for p in np.unravel_index(number, self.grid)))

    def _put(self, path: Path, data: list[bytes], temporary: Path) -> None:
        with writing(path, CONTINUES):
            if not data:
                path.unlink(missing_ok=True)  # an attempt that was killed may have left other values
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = temporary / uuid.uuid4().hex
            try:
                with unfinished.open("wb") as file:
                    file.writelines(data)
                os.replace(unfinished, path)
            finally:
                unfinished.unlink(missing_ok=True)
