"""OME-Zarr images (0.4 to 0.6; written for 0.5) and plain Zarr arrays (version 2 and 3), read chunk by chunk.

Positions are those of voxel centres: a point of index i along an axis lies at ``scale · i + translation``.
"""

from __future__ import annotations

import logging
import math
import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.axes import as_planes
from utils.boxes import extent
from utils.checksums import unsealed
from utils.errors import UserError
from utils.far import FarPath
from utils.files import PARTIAL
from volumes.block_array import blocks_under, require_blocks
from volumes.frames import unpacked_size
from volumes.stated import AXES, NO_LENGTH, Choice, Layout, micrometres, plain_axes
from volumes.volume import Look, Triple, Volume, check_dtype, lacks_memory_for, reading, reason, triple

log = logging.getLogger("isoscope")

RUN_KEY = "isoscope"  # attribute under which our own files say how they were made
UNFINISHED = "isoscope_unfinished"
_MOST_PER_VALUE, _MOST_BESIDE = 2, 2**16  # bytes of a stored chunk, per byte of its values and beside them
_MOST_METADATA = 2**26  # bytes
_MARKERS = ("zarr.json", ".zgroup", ".zarray", ".zattrs")


Folder = Path | zipfile.Path  # in a zip file


def is_zarr(folder: Folder) -> bool:
    """Whether a folder is a Zarr group or array of version 2 or 3."""
    return any((folder / marker).is_file() for marker in _MARKERS)


@contextmanager
def _opened(folder: Folder) -> Iterator[Any]:
    """The Zarr group or array of a folder; a zip file is open only meanwhile."""
    import zarr  # half a second, only where it is read

    if isinstance(folder, FarPath):
        from volumes.far import FarStore

        yield zarr.open(FarStore(folder), mode="r")
    elif isinstance(folder, Path):
        yield zarr.open(str(folder), mode="r")
    else:
        with zarr.storage.ZipStore(str(folder.root.filename), read_only=True) as store:
            yield zarr.open(store, path=folder.at.strip("/"), mode="r")


def _path(folder: Folder) -> Path:
    """A folder's name for messages."""
    return folder if isinstance(folder, Path) else Path(str(folder))


def _root(path: Path) -> Folder:
    """A folder itself; of a zip file its top, or the only Zarr folder in it."""
    if isinstance(path, FarPath) or path.is_dir():
        return path
    try:
        with zipfile.ZipFile(path) as file:
            top = zipfile.Path(file)
            inside = [top, *(child for child in top.iterdir() if child.is_dir())]
            found = [folder.at for folder in inside if is_zarr(folder)]
            entries = [(info.filename, info.file_size) for info in file.infolist() if info.filename.endswith(_MARKERS)]
    except (zipfile.BadZipFile, OSError) as error:
        raise UserError(f"{path}: not a readable zip file ({error}); copy it again") from error
    if large := [name for name, size in entries if size > _MOST_METADATA]:
        raise UserError(f"{path}: the metadata {large[0]} have more than {_MOST_METADATA} bytes; no program writes such")
    return zipfile.Path(path, found[0] if found else "")


class ZarrVolume(Volume):
    """One (Z, Y, X) volume of an image or array: a level, channel and time point of it.

    ``block_planes``, ``block_rows``, ``block_columns`` are those of chunks that are decompressed together (inside shards too).
    """

    def __init__(self, path: Path, choice: Choice):
        self.path, root = path, _root(path)
        with reading(path, "its Zarr metadata cannot be read", "copy the folder again"), _opened(root) as node:
            attributes = node.attrs.asdict()
        if path.name.endswith(PARTIAL) or UNFINISHED in attributes:
            raise UserError(f"{path}: an output that is not finished; run the command that was writing it again, it continues")
        if isinstance(root, Path) and (changed := unsealed(root, attributes)):
            if changed[0].parent != path:  # of an array; what describes the image is for other programs to change
                raise UserError(f"{changed[0]} is damaged: it is other than it was written; copy or write the volume again")
            log.warning("%s is other than it was written", changed[0])
        run = attributes.get(RUN_KEY)
        self.attributes = run if isinstance(run, dict) else {}
        folder = root
        if hasattr(node, "shape"):  # an array
            if choice.level:
                raise UserError(f"{path}: level {choice.level} of 1; a plain Zarr array has one level")
            stated = getattr(node.metadata, "dimension_names", None) or attributes.get("_ARRAY_DIMENSIONS")
            axes = plain_axes(path, stated, node.shape)
        else:
            multiscale = _multiscale(root, attributes)
            image = _read_level(root, multiscale, choice.level)
            self.levels = len(multiscale["datasets"])
            folder, axes = image.folder, image.axes
            if image.in_micrometres:
                self.voxel_um, self.translation_um = image.scale, image.translation
            self.channel_name, self.colour = _shown(attributes, choice.channel or 0)
        with reading(_path(folder), "not a readable Zarr array"), _opened(folder) as array:
            chunks = array.chunks
            if min(chunks, default=1) < 1:
                raise ValueError(f"chunks of {chunks}")
        if len(axes) != array.ndim:
            raise UserError(f"{path}: axes {axes!r} contradict the array {folder.name} of shape {array.shape}")
        self._folder, self._layout = _path(folder), Layout(path, axes, array.shape, choice)
        self._array = array if isinstance(folder, Path) else None
        self._at = "" if isinstance(folder, Path) else folder.at
        self.shape, self.channels, self.times = self._layout.shape, self._layout.channels, self._layout.times
        self.dtype = check_dtype(path, np.dtype(array.dtype))
        grain = dict(zip(self._layout.axes, chunks, strict=True))
        self.block_planes, self.block_rows, self.block_columns = grain["z"], grain["y"], grain["x"]
        if choice.level:
            self._check_extent(image, _read_level(root, multiscale, 0), choice.level)

    def _check_extent(self, image: _Level, finest: _Level, level: int) -> None:
        """A coarser level must span what the finest spans: else one of the scales is wrong."""
        letters = [AXES.get(str(name).lower()) for name in finest.axes]
        with _opened(finest.folder) as array:
            sizes = dict(zip(letters, array.shape, strict=True))
        for axis, length, scale, size in zip("zyx", self.shape, image.scale, finest.scale, strict=True):
            span, whole = length * scale, sizes[axis] * size
            if abs(span - whole) > 2 * scale + 0.01 * whole:
                raise UserError(
                    f"{self.path}: level {level} spans {span:g} along {axis} and level 0 {whole:g} by their scales and shapes, "
                    "which contradict each other; correct the coordinateTransformations"
                )

    def _read(self, planes: range, rows: slice, columns: slice) -> np.ndarray:
        key = self._layout.key(slice(planes.start, planes.stop, planes.step), rows, columns)
        folder = self._folder if self._array is not None else zipfile.Path(self.path, self._at)
        with nullcontext(self._array) if self._array is not None else _opened(folder) as array:
            try:
                require_blocks(folder, array, key)
                self._check_chunks(folder, array, key)
                values = np.asarray(array[key])
            except UserError:
                raise
            except Exception as error:  # every codec fails in its own way
                if lacks_memory_for(len(planes) * math.prod(extent((rows, columns))) * self.dtype.itemsize, error):
                    raise
                raise self._damage(folder, array, key, error) from error
        return np.ascontiguousarray(as_planes(values, self._layout.order), self.dtype)

    def _check_chunks(self, folder: Folder, array: Any, key: Iterable[slice | int]) -> None:
        """A ValueError: a chunk under the key is a link out of the folder, or has more bytes than values can make."""
        if isinstance(folder, FarPath):
            return  # a server follows its own links
        grain, root = array.shards or array.chunks, os.path.realpath(self.path) + os.sep
        most = _MOST_PER_VALUE * math.prod(grain) * array.dtype.itemsize + _MOST_BESIDE
        sizes: list[tuple[Folder, int]] = []
        for place in blocks_under(key, grain):
            name = folder / array.metadata.encode_chunk_key(place)
            if isinstance(name, zipfile.Path):
                sizes += [(name, name.root.getinfo(name.at).file_size)] if name.exists() else []
                continue
            if not (leads := os.path.realpath(name)).startswith(root):
                raise ValueError(f"{name.name} is a link out of the folder, to {leads}, which is not followed")
            if os.path.lexists(name):
                if not name.is_file():  # Zarr would take it for a chunk of zeros
                    raise ValueError(f"{name.name} is no file, or a link to nothing")
                sizes.append((name, name.stat().st_size))
        if large := [size for _, size in sizes if size > most]:
            raise ValueError(f"it has {large[0]} bytes where {most} are the most")
        names = [type(codec).__name__.lower().removesuffix("codec") for codec in array.compressors]
        last = next((name for name in names[::-1] if name != "crc32c"), "")  # whose frame begins the file
        if last == "zstd" or not array.shards:  # other frames of a shard do not say what they are
            claimed = max((unpacked_size(last, name, size) for name, size in sizes if size), default=0)
            if claimed > most:
                raise ValueError(f"it claims to hold {claimed} bytes where {most} are the most")

    def _damage(self, folder: Folder, array: Any, key: tuple[Any, ...], cause: Exception) -> Exception:
        """Which chunk cannot be read, found by reading those that were asked for one by one; the cause, where memory lacks."""
        grain = array.shards or array.chunks
        for position in blocks_under(key, grain):
            try:
                box = tuple(slice(p * side, (p + 1) * side) for p, side in zip(position, grain, strict=True))
                require_blocks(folder, array, box)
                self._check_chunks(folder, array, box)
                array[box]
            except Exception as error:
                if lacks_memory_for(math.prod(grain) * array.dtype.itemsize, error):
                    return cause
                name = self._folder / array.metadata.encode_chunk_key(position)
                return UserError(f"{name}: this chunk cannot be read ({reason(error)}); it is damaged, copy it again")
        if isinstance(cause, MemoryError):
            return cause
        return UserError(f"{self._folder}: cannot be read ({reason(cause)})")


@dataclass(frozen=True)
class _Level:
    """One level of an OME-Zarr image, as its metadata describe it.

    Attributes:
        folder: that of the array.
        axes: the name of every axis of the array.
        scale: voxel size (z, y, x), in µm where the unit is known.
        translation: position (z, y, x) of the first voxel, likewise; None where nothing is said.
        in_micrometres: whether a scale is stated and the units of all three axes are known.
    """

    folder: Folder
    axes: Sequence[str]
    scale: Triple
    translation: Triple | None
    in_micrometres: bool


def image_metadata(
    name: str,
    datasets: Sequence[tuple[str, Sequence[int]]],
    *,
    voxel_um: Sequence[float] | None = None,
    translation_um: Sequence[float] | None = None,
    channel_names: Sequence[str] | None = None,
    channel_looks: Sequence[Look] | None = None,
    dtype: np.dtype | str = "uint8",
) -> dict[str, Any]:
    """The ``ome`` attribute of an image's group.

    Args:
        name: name of the image.
        datasets: path of every level's array, and how many voxels (z, y, x) of the first level make one of its; finest first.
        voxel_um: voxel size (z, y, x) of the first level in µm; without it the scale counts voxels and no unit is named.
        translation_um: position (z, y, x) of the centre of the first voxel of the first level in µm.
        channel_names: names of the channels; with them the first axis is that of channels.
        channel_looks: of each its colour (RRGGBB; empty: white) and the grey values shown (None: all of an integer dtype).
        dtype: dtype of the values.
    """
    voxel = np.array(voxel_um or (1.0, 1.0, 1.0), float)
    unit = {"unit": "micrometer"} if voxel_um is not None else {}
    axes: list[dict[str, str]] = [{"name": axis, "type": "space", **unit} for axis in "zyx"]
    if channel_names is not None:
        axes.insert(0, {"name": "c", "type": "channel"})
    lead = len(axes) - 3
    described = []
    for path, factor in datasets:
        transforms: list[dict[str, Any]] = [{"type": "scale", "scale": [1.0] * lead + (voxel * factor).tolist()}]
        shift = voxel * (np.array(factor) - 1) / 2  # from the centre of the first level's first voxel
        if translation_um is not None or shift.any():
            origin = np.array(translation_um or (0.0, 0.0, 0.0)) + shift
            transforms.append({"type": "translation", "translation": [0.0] * lead + origin.tolist()})
        described.append({"path": path, "coordinateTransformations": transforms})
    image: dict[str, Any] = {"name": name, "axes": axes, "datasets": described}
    if len(described) > 1:
        image |= {"type": "mean", "metadata": {"description": "means of 2 voxels along the halved axes"}}
    ome: dict[str, Any] = {"version": "0.5", "multiscales": [image]}
    if channel_names is not None:
        kind = np.dtype(dtype)
        limits = (float(np.iinfo(kind).min), float(np.iinfo(kind).max)) if kind.kind in "ui" else None
        ome["omero"] = {"channels": []}
        for label, (colour, ends) in zip(channel_names, channel_looks or repeat(("", None)), strict=False):
            start, end = ends or limits or (0.0, 1.0)
            low, high = limits or (start, end)
            window = {"min": low, "max": high, "start": max(start, low), "end": min(end, high)}
            ome["omero"]["channels"].append({"label": label, "color": colour or "FFFFFF", "active": True, "window": window})
    return ome


def _multiscale(path: Folder, attributes: Mapping[str, Any]) -> Mapping[str, Any]:
    """The description of the one image of a group of Zarr 2 or 3."""
    ome = attributes.get("ome", attributes)
    found = ome.get("multiscales") if isinstance(ome, Mapping) else None
    if found is None:
        children = () if isinstance(path, FarPath) else path.iterdir()
        inside = sorted(child.name for child in children if child.is_dir() and is_zarr(child))
        raise UserError(
            f"{path}: a Zarr group without an image (OME metadata named multiscales); name an image or array inside it"
            + (f": {', '.join(inside[:8])}{' …' if len(inside) > 8 else ''}" if inside else "")
        )
    if not isinstance(found, list) or len(found) != 1 or not isinstance(found[0], Mapping):
        count = len(found) if isinstance(found, list) else 0
        raise UserError(f"{path}: its OME metadata describe {count} images (multiscales); exactly one can be read")
    return _as_before(path, found[0]) if "coordinateSystems" in found[0] else found[0]


def _as_before(path: Folder, image: Mapping[str, Any]) -> Mapping[str, Any]:
    """An image of OME-Zarr 0.6 in the words of 0.5, in the coordinate system of its levels; those of stages are not followed."""
    levels, systems = [], set()
    try:
        for level in image["datasets"]:
            (transform,) = level["coordinateTransformations"]
            systems.add(transform["output"]["name"])
            steps = transform["transformations"] if transform["type"] == "sequence" else [transform]
            if not all(isinstance(name, str) for name in (transform["input"]["path"], level["path"])):
                raise ValueError(f"the path {level['path']!r}")
            levels.append({"path": level["path"], "coordinateTransformations": steps})
        (system,) = systems
        (axes,) = (one["axes"] for one in image["coordinateSystems"] if one["name"] == system)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: its metadata are not those of OME-Zarr 0.6 ({error!r}); correct them, or save 0.5") from error
    return {"axes": axes, "datasets": levels}


def _read_level(path: Folder, multiscale: Mapping[str, Any], number: int) -> _Level:
    """What the metadata say of a level; they may be incomplete or contradict themselves."""
    datasets = multiscale.get("datasets") or []
    if not isinstance(datasets, list):
        raise UserError(f"{path}: its OME metadata name {str(datasets)[:80]!r} as levels; save it again")
    if not 0 <= number < len(datasets):
        raise UserError(f"{path}: level {number} of {len(datasets)}; levels count from 0, the finest")
    try:
        described = [{"name": axis} if isinstance(axis, str) else axis for axis in multiscale.get("axes", list("tczyx"))]
        names = [axis["type"] if axis.get("type") in ("time", "channel") else str(axis["name"]) for axis in described]
        name = str(datasets[number]["path"])
        transforms = [t for holder in (datasets[number], multiscale) for t in holder.get("coordinateTransformations") or []]
        scale, translation = _composed(path, transforms, len(names))
        letters = [AXES.get(name.lower()) for name in names]
        space = [letters.index(axis) if axis in letters else 0 for axis in "zyx"]
        units = [described[k].get("unit") for k in space]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: its OME metadata are incomplete or damaged ({error!r}); save it again") from error
    if ".." in Path(name).parts or Path(name).is_absolute() or not _inside(path, path / name):
        raise UserError(f"{path}: its metadata name an array {name!r} outside of it, which is not followed; correct them")
    if not is_zarr(path / name):
        raise UserError(f"{path}: its metadata name an array {name!r} that does not exist; copy the whole folder")
    if translation is not None and number > 0 and _read_level(path, multiscale, 0).translation is None:
        translation = None  # it only says where this level lies within the first, whose position is not known
    factors = [micrometres(unit) for unit in units]
    for unit in {str(unit or "") for unit, factor in zip(units, factors, strict=True) if factor is None} - set(NO_LENGTH):
        log.warning("%s: %r is no unit of length; the voxel size is taken as not known", path, unit)
    um = np.array([factor or 1.0 for factor in factors])
    place = None if translation is None else triple(translation[space] * um)
    return _Level(path / name, names, triple(scale[space] * um), place, bool(transforms) and None not in factors)


def _shown(attributes: Mapping[str, Any], channel: int) -> tuple[str, str]:
    """Name and colour (RRGGBB) of a channel of an image, empty where they are not stated; they are for display only."""
    try:
        stated = (attributes.get("ome") or attributes)["omero"]["channels"][channel]
        colour = str(stated.get("color") or "").upper()
        return str(stated.get("label") or ""), colour if re.fullmatch("[0-9A-F]{6}", colour) else ""
    except (KeyError, IndexError, TypeError, AttributeError):
        return "", ""


def _inside(folder: Folder, name: Folder) -> bool:
    """Whether a name is no link that leads out of a folder."""
    if isinstance(folder, FarPath) or not isinstance(folder, Path):
        return True
    return Path(os.path.realpath(str(name))).is_relative_to(os.path.realpath(folder))


def _composed(path: Folder, transforms: Sequence[Mapping[str, Any]], axes: int) -> tuple[NDArray, NDArray | None]:
    """Scale and translation of transformations one after the other; no translation where none is stated."""
    scale, translation = np.ones(axes), None
    for transform in transforms:
        kind = transform["type"]
        if kind == "identity":
            continue
        if kind not in ("scale", "translation") or kind not in transform:
            raise UserError(f"{path}: coordinate transformation {dict(transform)} is not supported; scale and translation are")
        values = np.array([float(v) for v in transform[kind]])
        if len(values) != axes or not np.isfinite(values).all() or (kind == "scale" and values.min() <= 0):
            raise UserError(
                f"{path}: the {kind} {values.tolist()} contradicts its {axes} axes; each has one, finite, of scale > 0"
            )
        if kind == "translation":
            translation = values if translation is None else translation + values
        else:
            scale = scale * values
            translation = None if translation is None else translation * values
    return scale, translation
