"""TIFF volumes of every common layout, read at constant memory: only the rows or segments that a box touches.

Compressed and tiled files are decoded by tifffile's own functions, without zarr between: 1.5 to 2.9 times as fast as its aszarr.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import struct
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import tifffile

from utils.boxes import extent, overlap, relative
from utils.errors import UserError
from volumes.contiguous import ContiguousVolume, OpenFile, each_plane, refuse_truncated
from volumes.stated import Choice, Layout, choose, length_um, micrometres
from volumes.volume import Triple, Volume, all_three, check_dtype, in_order, reading

log = logging.getLogger("isoscope")

_said: ContextVar[list[str] | None] = ContextVar("said", default=None)


class _Heard(logging.Handler):
    """What tifffile remarks is kept while a file is being opened, else passed on."""

    def emit(self, record: logging.LogRecord) -> None:
        said = _said.get()
        if said is None:
            log.warning("tifffile: %s", record.getMessage())
        else:
            said.append(record.getMessage())


logging.getLogger("tifffile").addHandler(_Heard(logging.WARNING))
logging.getLogger("tifffile").propagate = False

_MOST_CHANNELS = 4  # a longer lone axis of "channels" is a stack of planes
_JPEG = {6, 7, 33007, 34892}
_UNNAMED = "IQ"  # tifffile's letters for axes of which the file says nothing
_GUESSED = ("generic", "uniform")  # series that tifffile makes where no description says how pages belong together
_DESCRIBED = {"ome", "imagej", "shaped", "lsm", "stk", "mmstack", "ndtiff", "fluoview"}
NAMESPACE = "isoscopexx/run"  # of the annotation in which our files say how they were made
_CENTIMETRE = 3  # value of the tag ResolutionUnit
_LEAST_PLANE = 64  # bytes that a page takes in a file at least, with its directory
_FEW_PLANES = 2**16  # for which it does not matter whether they are there


def open_tiff(path: Path, choice: Choice, flat: bool = False) -> Volume:
    """One greyscale volume of a TIFF file (or of the files of an OME-TIFF set), its axes in whatever order the file states.

    Args:
        path: the file.
        choice: which channel and time point of several, and which series.
        flat: whether a 2-D image is taken as a volume of one plane.

    Raises:
        UserError: the file is truncated, its description cannot be followed, or it holds no greyscale volume as chosen.
        tifffile.TiffFileError: it is no TIFF at all. A damaged directory fails in many other ways inside tifffile's parser.
    """
    said: list[str] = []
    token = _said.set(said)
    try:
        with tifffile.TiffFile(path) as tif:
            _check_chain(path, tif)
            ome = _ome_xml(path, tif, said)
            number, candidates = _candidates(path, tif, choice, said)
            volume = _volume(path, tif, candidates[number], choice, flat)
            volume.scenes = len(candidates)
            volume.voxel_um, volume.translation_um, volume.attributes = _stated(path, tif, ome, choice, number)
            volume.channel_name, volume.colour = _ome_channel(ome, choice, number)
    finally:
        _said.reset(token)
    for line in dict.fromkeys(said):
        log.warning("%s: %s", path, line)
    return volume


def _volume(path: Path, tif: tifffile.TiffFile, series: tifffile.TiffPageSeries, choice: Choice, flat: bool) -> Volume:
    names, sizes = _axes(path, series, *_expanded(tif, series), flat)
    layout = Layout(path, names, sizes, choice)
    numbers = layout.planes()
    shape = (len(numbers), sizes[-2], sizes[-1])
    stored = None if series.dtype is None else np.dtype(tif.byteorder + series.dtype.char)
    plane_bytes = shape[1] * shape[2] * check_dtype(path, stored).itemsize
    if series.dataoffset is not None and not series.is_multifile:
        volume: Volume = ContiguousVolume(path, shape, stored, series.dataoffset + numbers * plane_bytes)
    else:
        pages = _pages(path, series, numbers)
        files = [Path(page.parent.filehandle.path) for page in pages]
        folder = os.path.abspath(path.parent)
        if outside := [file for file in set(files) if not Path(os.path.abspath(file)).is_relative_to(folder)]:
            raise UserError(f"{path}: its description names {outside[0]}, outside of its folder, which is not followed")
        ends = (np.add(page.dataoffsets, page.databytecounts)[:-1] for page in pages)
        follow = (np.array_equal(end, page.dataoffsets[1:]) for end, page in zip(ends, pages, strict=True))  # of all strips
        if all(page.is_final for page in pages) and all(follow):
            volume = ContiguousVolume(path, shape, stored, [page.dataoffsets[0] for page in pages], files)
        else:
            volume = SegmentedVolume(path, shape, stored, pages, files)
    volume = in_order(volume, layout.order)
    volume.channels, volume.times = layout.channels, layout.times
    return volume


class SegmentedVolume(Volume):
    """Planes in strips or tiles, compressed or not: only those that a box touches are decoded, by tifffile.

    A UserError says that pages differ in layout, a file ends before its planes do, or the first segment cannot be decoded.

    Args:
        path: the file that was opened.
        shape: (Z, Y, X).
        stored: dtype of the values in the file.
        pages: tifffile's page of every plane.
        files: the file of every plane.
    """

    def __init__(
        self, path: Path, shape: tuple[int, int, int], stored: np.dtype | None, pages: Sequence[Any], files: Sequence[Path]
    ):
        self.path, self.shape, self.dtype = path, shape, check_dtype(path, stored)
        key = pages[0].keyframe
        if key.imagedepth > 1 or len({page.keyframe.hash for page in pages}) > 1:
            raise UserError(f"{path}: its pages are laid out differently from each other; save it with one page per plane")
        tables = {page.jpegtables for page in pages} if key.compression in _JPEG else {None}
        if len(tables) > 1:
            raise UserError(f"{path}: JPEG tables that change from page to page; save it uncompressed or with LZW")
        table = tables.pop()
        self._options = {} if table is None else {"jpegtables": table}
        rows = key.tilelength if key.is_tiled else min(key.rowsperstrip, key.imagelength)
        self._segment = (rows, key.tilewidth if key.is_tiled else key.imagewidth)
        self.block_rows, self.block_columns = self._segment
        number = math.prod(key.chunked)
        for k, page in enumerate(pages):
            if len(page.dataoffsets) != number or len(page.databytecounts) != number:
                raise UserError(f"{path}: plane {k} lists {len(page.dataoffsets)} of {number} segments; truncated, copy it again")
        self._starts = np.array([page.dataoffsets for page in pages], np.int64)
        self._counts = np.array([page.databytecounts for page in pages], np.int64)
        self._files, self.files = files, tuple(sorted(set(files)))
        least = int(min(self._starts.min(), self._counts.min()))
        refuse_truncated(self._files, (self._starts + self._counts).max(axis=1).tolist(), least)
        self._keyframe = (Path(key.parent.filehandle.path), key.offset)  # the page that knows how to decode
        self._decode: Any = None
        with reading(path, "cannot be decoded", "save it uncompressed or with LZW"):
            self[0:1, 0:1, 0:1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_decode": None}

    def _read(self, planes: range, rows: slice, columns: slice) -> np.ndarray:
        out = np.empty((len(planes), *extent((rows, columns))), self.dtype)
        height, width = self._segment
        across = math.ceil(self.shape[2] / width)
        for k, z, file in each_plane(self._files, planes):
            for i in range(rows.start // height, math.ceil(rows.stop / height)):
                for j in range(columns.start // width, math.ceil(columns.stop / width)):
                    own = slice(i * height, (i + 1) * height), slice(j * width, (j + 1) * width)
                    common = overlap(own, (rows, columns))
                    values = self._decoded(file, z, i * across + j)
                    out[k][relative(common, (rows, columns))] = 0 if values is None else values[relative(common, own)]
        return out

    def _decoded(self, file: OpenFile, z: int, number: int) -> np.ndarray | None:
        """A segment (rows, columns) of a plane; None where it was never written."""
        count = int(self._counts[z, number])
        if count == 0:
            return None
        data = file.read(int(self._starts[z, number]), count)
        if self._decode is None:  # found again after pickling, from one directory of the file
            path, offset = self._keyframe
            with tifffile.TiffFile(path) as tif:
                tif.filehandle.seek(offset)
                self._decode = tifffile.TiffPage(tif, index=0).decode
        size = math.prod(self._segment) * self.dtype.itemsize
        with reading(self.path, f"plane {z} cannot be decoded", "the file is damaged, copy it again", size):
            values, _, _ = self._decode(data, number, **self._options)
        return None if values is None else values[0, :, :, 0]


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


def _ome_xml(path: Path, tif: tifffile.TiffFile, said: Sequence[str]) -> ElementTree.Element | None:
    """The description of an OME-TIFF; tifffile would make room for every plane that it states, so there must be so many bytes."""
    if not (tif.is_ome and tif.ome_metadata):
        return None
    try:
        root = ElementTree.fromstring(tif.ome_metadata)
        stated = [math.prod(int(one.get(f"Size{axis}", 1)) for axis in "ZCT") for one in root.iterfind(".//{*}Pixels")]
        parts = root.findall(".//{*}TiffData")
        stated += [int(one.get(name, 0)) for one in parts for name in ("PlaneCount", "NumPlanes", "IFD")]
    except (ElementTree.ParseError, ValueError) as error:
        raise _not_followed(path, tif, [*said, str(error)]) from error
    if (most := max(stated, default=0)) > _FEW_PLANES:
        there = sum(file.stat().st_size for file in path.parent.iterdir() if file.is_file())
        if most * _LEAST_PLANE > there:
            raise UserError(f"{path}: its description states {most} planes, more than {there} bytes can hold; copy the whole set")
    return root


def _candidates(path: Path, tif: tifffile.TiffFile, choice: Choice, said: list[str]) -> tuple[int, list[tifffile.TiffPageSeries]]:
    """The number of the series that is read, and all that could be: every page of their kind belongs to one, none is dropped."""
    try:
        series = [one for one in tif.series if not one.keyframe.is_reduced] or tif.series  # no levels of a pyramid
    except (LookupError, ValueError, TypeError, AttributeError, AssertionError) as error:  # wrong in every way
        raise _not_followed(path, tif, [*said, repr(error)]) from error
    if not series:
        raise UserError(f"{path}: holds no image; remove or replace it")
    misnamed = series[0].kind == "shaped" and any("axes do not match" in line for line in said)
    if misnamed or (series[0].kind in _GUESSED and _described(tif)):
        raise _not_followed(path, tif, said)
    kinds = {(one.keyframe.shape, one.dtype) for one in series}
    loose = all(one.kind in _GUESSED or (one.kind == "shaped" and len(one.shape) == 2) for one in series)
    if len(series) > 1 and len(kinds) == 1 and loose:
        # planes one by one: with descriptions of their own, or with other strips or compression than their neighbours
        pages = sorted((page for one in series for page in one.pages if page), key=lambda page: page.index)
        key = series[0].keyframe
        return 0, [tifffile.TiffPageSeries(pages, (len(pages), *key.shape), key.dtype, f"I{key.axes}", kind="generic")]
    planes = {(one.keyframe.shape, one.dtype) for one in series if len(one.shape) > 2}
    found = [one for one in series if len(one.shape) > 2 or (one.keyframe.shape, one.dtype) in planes] or series[:1]
    layout = "".join(f"; {n}: {one.shape} {one.dtype}" for n, one in enumerate(found))
    number = choose(path, "scene", choice.scene, len(found), f" (series of pages{layout})")
    if others := [one for one in series if one not in found]:
        _check_left_out(path, found[number], others)
    chosen = found[number]
    if chosen.is_truncated and chosen.dataoffset is None:
        raise UserError(f"{path}: truncated: fewer planes than its description {chosen.shape} promises; copy it again")
    stated, count = (tif.imagej_metadata or {}).get("images"), math.prod(chosen.shape) // max(chosen.keyframe.size, 1)
    if chosen.kind == "imagej" and stated not in (None, count):
        raise _not_followed(path, tif, [*said, f"{stated} images, of which channels, slices and frames make {count}"])
    used = {page.index for one in series for page in one.pages if page is not None}
    extra = [n for n in range(len(tif.pages)) if n not in used and tif.pages[n].aspage().shape == chosen.keyframe.shape]
    if extra and not chosen.is_multifile:
        raise UserError(
            f"{path}: {len(extra)} pages (the first is page {extra[0]}) are not in its description, which has {chosen.shape}; "
            "save it again so that it names all planes"
        )
    return number, found


def _check_left_out(path: Path, chosen: tifffile.TiffPageSeries, others: Sequence[tifffile.TiffPageSeries]) -> None:
    """Names the images beside a volume; a UserError: one is a plane of it by its place or its size."""
    numbers = [page.index for page in chosen.pages if page]
    for one in others:
        inside = [page.index for page in one.pages if page and min(numbers) < page.index < max(numbers)]
        if inside or one.keyframe.shape == chosen.keyframe.shape:
            where = f"page {(inside or [one.keyframe.index])[0]} is {one.keyframe.shape} {one.dtype}"
            raise UserError(
                f"{path}: {where} among planes of {chosen.keyframe.shape} {chosen.dtype}; a plane would be missing, save the "
                "volume with pages of one kind"
            )
    left = ", ".join(str(one.shape) for one in others)
    log.warning("%s: also holds images of shape %s, which are left out", path, left)


def _described(tif: tifffile.TiffFile) -> str:
    """What kind of description says how the pages of a file belong together; empty where there is none."""
    cut_off = "<OME" in (tif.pages.first.description or "")[:4000].replace("\0", "")  # zeros: UTF-16
    return next(iter(sorted(tif.flags & _DESCRIBED)), "ome" if cut_off else "")


def _not_followed(path: Path, tif: tifffile.TiffFile, said: Sequence[str]) -> UserError:
    return UserError(
        f"{path}: its description ({_described(tif)}) cannot be followed, so that channels and planes are not told apart: "
        f"{'; '.join(said) or 'cut off, or without planes'}; truncated or damaged: copy it again, or correct it (tiffcomment)"
    )


def _expanded(tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> tuple[str, tuple[int, ...]]:
    """The axes of a series and their lengths, also of those that have one entry."""
    if hasattr(series, "get_axes"):  # before tifffile 2026.5
        return series.get_axes(squeeze=False), series.get_shape(squeeze=False)
    unsqueezed = tif.series(squeeze=False)  # type: ignore[operator]
    whole = next((whole for one, whole in zip(tif.series, unsqueezed, strict=True) if one is series), series)
    return whole.axes, whole.shape


def _axes(
    path: Path, series: tifffile.TiffPageSeries, axes: str, sizes: tuple[int, ...], flat: bool
) -> tuple[str, tuple[int, ...]]:
    """The axes of a series that have several entries, by letter, and their lengths; Z where it is the only meaning of an axis."""
    stated = f"axes {axes}, shape {sizes}"
    if 0 in sizes:
        raise UserError(f"{path}: empty image of shape {sizes}; remove it")
    if axes.count("S") == 1 and sizes[axes.index("S")] > 1:
        raise UserError(f"{path}: an RGB image ({stated}); split it into one greyscale file per channel")
    stored = [(axis, n) for axis, n in zip(axes, sizes, strict=True) if axis in "YX" or n > 1]
    names, lengths = "".join(axis for axis, _ in stored), tuple(n for _, n in stored)
    lone = names.translate(dict.fromkeys(map(ord, "YXC"))) or ("C" if dict(stored).get("C", 1) > _MOST_CHANNELS else "")
    if "Z" not in names and len(lone) == 1 and lone in f"{_UNNAMED}TC":
        if lone in "TC":
            what = "time points" if lone == "T" else "channels"
            log.warning("%s: has %s but no planes along z; they are taken for the planes (%s)", path, what, stated)
        names = names.replace(lone, "Z")
    if "Z" not in names:
        if not flat and ("Z" not in axes or series.kind == "imagej") and not (series.kind == "shaped" and len(sizes) > 2):
            channels = dict(stored).get("C", 1)
            what = f"{channels} channels but no Z axis" if channels > 1 else "a 2-D image"
            raise UserError(f"{path}: {what} ({stated}); a volume is a stack of planes (Z, Y, X) in one file")
        names, lengths = f"{names[:-2]}Z{names[-2:]}", (*lengths[:-2], 1, *lengths[-2:])
    return names, lengths


def _pages(path: Path, series: tifffile.TiffPageSeries, numbers: np.ndarray) -> list[Any]:
    if len(series.pages) <= numbers.max():
        raise UserError(
            f"{path}: truncated or of an unknown layout: {len(series.pages)} pages for {numbers.max() + 1} planes; "
            "copy the file again or save it as one page per plane"
        )
    pages = [series.pages[int(number)] for number in numbers]
    if None in pages:
        raise UserError(f"{path}: files that hold plane {pages.index(None)} and others are missing; copy the whole set")
    return pages


def _stated(
    path: Path, tif: tifffile.TiffFile, root: ElementTree.Element | None, choice: Choice, scene: int
) -> tuple[Triple | None, Triple | None, dict[str, Any]]:
    """Voxel size of the image and position of the chosen first plane, (z, y, x) in µm; what our writer kept of the run.

    Sizes and position are None where the file does not state all three, attributes empty for other programs' files.
    """
    if root is not None:
        image = _ome_image(root, scene)
        plane = image.find(f"{{*}}Plane[@TheZ='0'][@TheC='{choice.channel or 0}'][@TheT='{choice.time or 0}']")
        z, y, x = _ome_lengths(path, plane, "Position", "", -math.inf)
        position = None if z is None or y is None or x is None else (z, y, x)
        annotation = root.find(f".//{{*}}MapAnnotation[@Namespace='{NAMESPACE}']")
        return all_three(_ome_lengths(path, image, "PhysicalSize", "µm", 0)), position, _run_attributes(annotation)
    if tif.is_imagej and tif.imagej_metadata:
        return all_three(_imagej_sizes(path, tif.imagej_metadata, tif.pages.first)), None, {}
    return None, None, {}


def _ome_image(root: ElementTree.Element, scene: int) -> ElementTree.Element:
    """The pixels of an image."""
    pixels = root.findall(".//{*}Pixels")
    return pixels[scene if scene < len(pixels) else 0] if pixels else root


def _ome_channel(root: ElementTree.Element | None, choice: Choice, scene: int) -> tuple[str, str]:
    """Name and colour (RRGGBB, of a signed RGBA) of the chosen channel, empty where they are not stated."""
    stated = [] if root is None else _ome_image(root, scene).findall("{*}Channel")
    if (choice.channel or 0) >= len(stated):
        return "", ""
    channel = stated[choice.channel or 0].attrib
    colour = channel.get("Color", "")
    known = re.fullmatch(r"-?\d{1,10}", colour) is not None
    return channel.get("Name", ""), f"{int(colour) >> 8 & 0xFFFFFF:06X}" if known else ""


def _ome_lengths(path: Path, element: ElementTree.Element | None, name: str, unit: str, least: float) -> list[float | None]:
    """Lengths (z, y, x) in µm that an element states; ``unit`` stands where it names none."""
    stated = {} if element is None else element.attrib
    names = [f"{name}{axis}" for axis in "ZYX"]
    return [length_um(path, key, stated.get(key), stated.get(f"{key}Unit", unit), least) for key in names]


def _run_attributes(annotation: ElementTree.Element | None) -> dict[str, Any]:
    entries = () if annotation is None else annotation.iterfind(".//{*}M")
    try:
        return {str(entry.get("K")): json.loads(entry.text or "null") for entry in entries}
    except ValueError:
        return {}  # written by another program under our name


def _imagej_sizes(path: Path, description: Mapping[str, Any], page: tifffile.TiffPage) -> list[float | None]:
    """Voxel size (z, y, x) in µm, as ImageJ reads it: along y and z a unit of their own, a spacing of 1 left out."""
    units = {axis: str(description.get(f"{axis}unit") or description.get("unit") or "") for axis in "xyz"}
    sizes = [length_um(path, "spacing", description.get("spacing", 1.0), units["z"], 0)]
    for axis, tag in (("y", 283), ("x", 282)):  # YResolution, XResolution: pixels per unit, and per cm beside a unit of µm
        centimetres = page.tags.valueof(296) == _CENTIMETRE and micrometres(units[axis]) == 1.0
        pixels = page.tags.valueof(tag)
        value = pixels[1] / pixels[0] if pixels and pixels[0] else None
        sizes.append(length_um(path, f"{axis.upper()}Resolution", value, "cm" if centimetres else units[axis], 0))
    return sizes
