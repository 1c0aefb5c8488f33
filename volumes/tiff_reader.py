"""TIFF volumes of every common layout, read at constant memory: only the rows or segments that a box touches."""

from __future__ import annotations

import logging
import math
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from utils.errors import UserError
from volumes.tiff_voxels import run_attributes, translation_um, voxel_size_um
from volumes.volume import Choice, Volume, check_dtype, choose

# What tifffile would log about damaged files is raised here, as one message.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)

_MOST_CHANNELS = 4  # a longer lone axis of "channels" is a stack of planes
_GAP = 2**14  # bytes between two rows that are read with them: half of what costs as much as another call
_BAND = 2**20  # bytes of rows that are read at once
_JPEG = {6, 7, 33007, 34892}


@dataclass(frozen=True)
class _Segments:
    """Where the strips or tiles of every plane lie; ``offsets`` and ``counts`` are (Z, segments)."""

    offsets: np.ndarray
    counts: np.ndarray
    size: tuple[int, int]  # rows and columns of a segment
    keyframe: tuple[Path, int]  # file and offset index of the page that knows how to decode
    jpegtables: bytes | None


class TiffVolume(Volume):
    """One greyscale volume of a TIFF file (or of the files of an OME-TIFF set).

    Uncompressed planes are read by position: bands of rows with what lies between them, or row by row where that is
    much. Compressed or tiled ones are read through the decoder of tifffile, only the segments touched. Files are opened
    for the duration of one indexing, which makes the volume safe with worker processes, and thousands of volumes possible.

    Args:
        path: the file.
        choice: which channel and time point of several.
        flat: whether a 2-D image is taken as a volume of one plane.
    """

    def __init__(self, path: Path, choice: Choice, flat: bool = False):
        self.path = path
        with tifffile.TiffFile(path) as tif:
            _check_chain(path, tif)
            series = _choose_series(path, tif)
            layout = _layout(path, series, flat)
            numbers = layout.planes(path, choice)
            self.shape = (len(numbers), layout.height, layout.width)
            self.channels, self.times = layout.count("C"), layout.count("T")
            self._stored = np.dtype(tif.byteorder + series.dtype.char) if series.dtype is not None else None
            self.dtype = check_dtype(path, self._stored)
            self.voxel_um = voxel_size_um(tif)
            self.translation_um = translation_um(tif, choice.channel or 0, choice.time or 0)
            self.attributes = run_attributes(tif)
            self._files: list[Path] = [path]
            self._file_of_plane = np.zeros(len(numbers), np.intp)
            self._offsets: np.ndarray | None = None
            self._segments: _Segments | None = None
            self._decode: Any = None
            self._locate(series, numbers)
        self._check_ends()
        if self._segments is not None:
            self._check_decoder()

    def _locate(self, series: tifffile.TiffPageSeries, numbers: np.ndarray) -> None:
        plane_bytes = self.shape[1] * self.shape[2] * self.dtype.itemsize
        if series.dataoffset is not None and not series.is_multifile:
            self._offsets = series.dataoffset + numbers * plane_bytes
            return
        if len(series.pages) <= numbers.max():
            raise UserError(
                f"{self.path}: truncated or of an unknown layout: {len(series.pages)} pages for {numbers.max() + 1} planes; "
                "copy the file again or save it as one page per plane"
            )
        listed = [series.pages[int(number)] for number in numbers]
        pages = [page for page in listed if page is not None]
        if len(pages) < len(listed):
            raise UserError(f"{self.path}: files that hold plane {listed.index(None)} and others are missing; copy the whole set")
        if series.is_multifile:
            self._map_files(pages)
        if all(page.is_final and _adjoin(page) for page in pages):
            self._offsets = np.array([page.dataoffsets[0] for page in pages], np.int64)
        else:
            self._segments = _segment_table(self.path, pages)
            self.block_rows = self._segments.size[0]

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the volume: one, or those of an OME-TIFF set."""
        return tuple(self._files)

    def _map_files(self, pages: Sequence[Any]) -> None:
        names = [Path(page.parent.filehandle.path) for page in pages]
        self._files = sorted(set(names))
        index = {name: k for k, name in enumerate(self._files)}
        self._file_of_plane = np.array([index[name] for name in names], np.intp)

    def _check_ends(self) -> None:
        """Every byte that will be asked for must exist: a truncated file is found when it is opened."""
        if self._offsets is not None:
            ends = self._offsets + self.shape[1] * self.shape[2] * self.dtype.itemsize
        else:
            assert self._segments is not None
            ends = (self._segments.offsets + self._segments.counts).max(axis=1)
        for k, file in enumerate(self._files):
            needed, size = int(ends[self._file_of_plane == k].max()), file.stat().st_size
            if needed > size:
                raise UserError(f"{file}: truncated: its planes end at byte {needed}, the file at byte {size}; copy it again")

    def _check_decoder(self) -> None:
        try:
            self[0:1, 0:1, 0:1]
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"{self.path}: cannot be decoded ({error}); save it uncompressed or with LZW") from error

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_decode": None}

    def _read(self, planes: range, rows: slice, columns: slice) -> np.ndarray:
        out = np.empty((len(planes), rows.stop - rows.start, columns.stop - columns.start), self.dtype)
        for file, group in groupby(enumerate(planes), key=lambda item: int(self._file_of_plane[item[1]])):
            handle = os.open(self._files[file], os.O_RDONLY)
            try:
                for k, z in group:
                    if self._offsets is not None:
                        self._read_rows(handle, int(self._offsets[z]), rows, columns, out[k])
                    else:
                        self._read_segments(handle, z, rows, columns, out[k])
            finally:
                os.close(handle)
        return out

    def _read_rows(self, handle: int, start: int, rows: slice, columns: slice, out: np.ndarray) -> None:
        assert self._stored is not None
        size = self.dtype.itemsize
        pitch, length = self.shape[2] * size, out.shape[1] * size
        start += rows.start * pitch + columns.start * size
        if pitch - length > _GAP:
            for k in range(len(out)):
                out[k] = np.frombuffer(self._bytes(handle, start + k * pitch, length), self._stored)
            return
        band = max(_BAND // pitch, 1)
        for k in range(0, len(out), band):
            part = out[k : k + band]
            data = self._bytes(handle, start + k * pitch, (len(part) - 1) * pitch + length)
            part[...] = np.ndarray(part.shape, self._stored, data, strides=(pitch, size))

    def _read_segments(self, handle: int, z: int, rows: slice, columns: slice, out: np.ndarray) -> None:
        segments = self._segments
        assert segments is not None
        height, width = segments.size
        across = math.ceil(self.shape[2] / width)
        for row in range(rows.start // height, math.ceil(rows.stop / height)):
            for column in range(columns.start // width, math.ceil(columns.stop / width)):
                index = row * across + column
                tile = self._decoded(handle, z, index)
                top, left = row * height - rows.start, column * width - columns.start
                target = out[max(top, 0) : top + height, max(left, 0) : left + width]
                if tile is None:  # a segment that was never written
                    target[...] = 0
                    continue
                y, x = max(-top, 0), max(-left, 0)
                target[...] = tile[y : y + target.shape[0], x : x + target.shape[1]]

    def _decoded(self, handle: int, z: int, index: int) -> np.ndarray | None:
        segments = self._segments
        assert segments is not None
        count = int(segments.counts[z, index])
        if count == 0:
            return None
        data = self._bytes(handle, int(segments.offsets[z, index]), count)
        options = {} if segments.jpegtables is None else {"jpegtables": segments.jpegtables}
        try:
            values, _, _ = self._decoder()(data, index, **options)
        except (RuntimeError, ValueError, tifffile.TiffFileError) as error:
            raise UserError(f"{self.path}: plane {z} cannot be decoded ({error}); the file is damaged, copy it again") from error
        return None if values is None else values[0, :, :, 0]

    def _decoder(self) -> Any:
        """The decoding function that tifffile makes for this file; found again after pickling, from one directory of the file."""
        if self._decode is None:
            assert self._segments is not None
            path, offset = self._segments.keyframe
            with tifffile.TiffFile(path) as tif:
                tif.filehandle.seek(offset)
                self._decode = tifffile.TiffPage(tif, index=0).decode
        return self._decode

    def _bytes(self, handle: int, start: int, count: int) -> bytes:
        data = os.pread(handle, count, start)
        while len(data) < count:  # a single read is limited to 2 GiB
            more = os.pread(handle, count - len(data), start + len(data))
            if not more:
                raise UserError(f"{self.path}: ends at byte {start + len(data)}; it was changed while in use, copy it again")
            data += more
        return data


def _check_chain(path: Path, tif: tifffile.TiffFile) -> None:
    """The chain of page directories must end in a zero: one that leads beyond the file has lost pages."""
    position = tif.pages.next_page_offset
    if position is None:
        return
    handle = tif.filehandle
    handle.seek(position)
    raw = handle.read(tif.tiff.offsetsize)
    following = struct.unpack(tif.tiff.offsetformat, raw)[0] if len(raw) == tif.tiff.offsetsize else -1
    if following != 0 or len(tif.pages) == 0:
        raise UserError(f"{path}: truncated: page {len(tif.pages)} of the file is missing or damaged; copy it again")


def _choose_series(path: Path, tif: tifffile.TiffFile) -> tifffile.TiffPageSeries:
    series = tif.series
    if not series:
        raise UserError(f"{path}: holds no image; remove or replace it")
    shapes = {s.shape for s in series}
    if len(series) > 1 and len(shapes) == 1 and len(series[0].shape) == 2 and len({s.keyframe.hash for s in series}) == 1:
        # one page per plane, each with its own description
        pages = [s.pages[0] for s in series]
        return tifffile.TiffPageSeries(pages, (len(pages), *series[0].shape), series[0].dtype, "IYX", kind="generic")
    volumes = sorted((s for s in series if len(s.shape) > 2), key=lambda s: s.size, reverse=True)
    chosen = volumes[0] if volumes else series[0]
    if len(volumes) > 1 and volumes[1].size == chosen.size:
        raise UserError(f"{path}: holds {len(volumes)} volumes (series); save the one to be used in a file of its own")
    if chosen.is_truncated:
        raise UserError(f"{path}: truncated: fewer planes than its description {chosen.shape} promises; copy it again")
    return chosen


@dataclass(frozen=True)
class _Layout:
    """How the pages of a series are numbered: the leading axes, slowest first, each of C, T or Z and its length."""

    leading: tuple[tuple[str, int], ...]
    height: int
    width: int
    stated: str  # axes and shape as the file has them, for messages

    def count(self, axis: str) -> int:
        """Length of an axis, 1 where there is none."""
        return dict(self.leading).get(axis, 1)

    def planes(self, path: Path, choice: Choice) -> np.ndarray:
        """Numbers of the pages that make up one volume."""
        numbers = np.arange(math.prod(n for _, n in self.leading)).reshape([n for _, n in self.leading] or [1])
        axes = [axis for axis, _ in self.leading]
        for axis, what, wanted in (("C", "channel", choice.channel), ("T", "time point", choice.time)):
            number = choose(path, what, wanted, self.count(axis), f" ({self.stated})")
            if axis in axes:
                numbers = np.take(numbers, number, axis=axes.index(axis))
                axes.remove(axis)
        return numbers.reshape(-1)


def _layout(path: Path, series: tifffile.TiffPageSeries, flat: bool) -> _Layout:
    """The axes of a series, as those of a volume.

    Raises:
        UserError: they are not.
    """
    axes, shape = series.get_axes(squeeze=False), series.get_shape(squeeze=False)
    stated = f"axes {axes}, shape {shape}"
    if 0 in shape:
        raise UserError(f"{path}: empty image of shape {shape}; remove it")
    if axes.count("S") == 1 and shape[axes.index("S")] > 1:
        raise UserError(f"{path}: an RGB image ({stated}); split it into one greyscale file per channel")
    wide = [(axis, n) for axis, n in zip(axes, shape, strict=True) if axis not in "YXS" and n > 1]
    if len(wide) == 1 and wide[0][0] == "C" and wide[0][1] > _MOST_CHANNELS:
        wide = [("Z", wide[0][1])]  # tifffile and others call the only leading axis of a stack "channels"
    stacked = [axis for axis, _ in wide if axis != "C"]
    if (
        any(axes.count(axis) != 1 for axis in "YX")
        or len(wide) - len(stacked) > 1
        or (len(stacked) > 1 and (len(stacked) > 2 or "T" not in stacked or stacked[0] == stacked[1]))
    ):
        raise UserError(
            f"{path}: axes {axes} of shape {shape} are not a volume (Z, Y, X) with optional channels and time points; "
            "write the axes into the file (ImageJ hyperstack or OME-TIFF)"
        )
    if not stacked and not flat and ("Z" not in axes or series.kind == "imagej"):
        channels = dict(wide).get("C", 1)
        what = f"{channels} channels but no Z axis" if channels > 1 else "a 2-D image"
        if not (series.kind == "shaped" and len(shape) > 2):
            raise UserError(f"{path}: {what} ({stated}); a volume is a stack of planes (Z, Y, X) in one file")
    leading = tuple(("Z" if axis not in "CT" or (axis == "T" and len(stacked) == 1) else axis, n) for axis, n in wide)
    return _Layout(leading, shape[axes.index("Y")], shape[axes.index("X")], stated)


def _adjoin(page: Any) -> bool:
    """Whether the strips of a page follow each other (tifffile asks only the first page of a series)."""
    ends = [offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True)]
    return ends[:-1] == list(page.dataoffsets[1:])


def _segment_table(path: Path, pages: Sequence[Any]) -> _Segments:
    key = pages[0].keyframe
    if key.imagedepth > 1 or len({page.keyframe.hash for page in pages}) > 1:
        raise UserError(f"{path}: its pages are laid out differently from each other; save it with one page per plane")
    tables = {page.jpegtables for page in pages} if key.compression in _JPEG else {None}
    if len(tables) > 1:
        raise UserError(f"{path}: JPEG tables that change from page to page; save it uncompressed or with LZW")
    size = (key.tilelength, key.tilewidth) if key.is_tiled else (min(key.rowsperstrip, key.imagelength), key.imagewidth)
    number = math.prod(key.chunked)
    offsets = np.zeros((len(pages), number), np.int64)
    counts = np.zeros((len(pages), number), np.int64)
    for k, page in enumerate(pages):
        if len(page.dataoffsets) != number or len(page.databytecounts) != number:
            raise UserError(f"{path}: plane {k} lists {len(page.dataoffsets)} of {number} segments; truncated, copy it again")
        offsets[k], counts[k] = page.dataoffsets, page.databytecounts
    file = Path(key.parent.filehandle.path)
    return _Segments(offsets, counts, size, (file, key.offset), tables.pop())
