"""OME-Zarr images (0.4 and 0.5) and plain Zarr arrays (version 2 and 3), read chunk by chunk."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from utils.axes import as_planes
from utils.errors import UserError
from volumes.ome_zarr_metadata import ImageLevel, find_multiscale, read_level
from volumes.output_files import PARTIAL
from volumes.volume import Choice, Volume, check_dtype, choose

RUN_KEY = "isoscope"  # attribute under which our own files say how they were made
UNFINISHED = "isoscope_unfinished"
_MARKERS = ("zarr.json", ".zgroup", ".zarray", ".zattrs")


def is_zarr(folder: Path) -> bool:
    """Whether a folder is a Zarr group or array of version 2 or 3."""
    return any((folder / marker).is_file() for marker in _MARKERS)


class ZarrVolume(Volume):
    """One (Z, Y, X) volume of an image or array: a level, channel and time point of it.

    ``block_planes`` and ``block_rows`` are those of the chunks that are decompressed together (inside shards too).
    """

    def __init__(self, path: Path, choice: Choice):
        if path.name.endswith(PARTIAL):
            raise UserError(f"{path}: an output that is not finished; run the command that was writing it again, it continues")
        self.path = path
        plain, attributes, multiscale = _described(path)
        if plain and choice.level:
            raise UserError(f"{path}: level {choice.level} of 1; a plain Zarr array has one level")
        image = None if multiscale is None else read_level(path, multiscale, choice.level)
        self._folder = path if image is None else _array_folder(path, image)
        self._array: Any = None
        array = self._open()
        self._axes = _plain_axes(path, array) if image is None else image.axes
        if len(self._axes) != array.ndim:
            raise UserError(f"{path}: axes {self._axes!r} contradict the array {self._folder.name} of shape {array.shape}")
        if 0 in array.shape:
            raise UserError(f"{path}: an empty array of shape {array.shape}; remove it")
        lengths = dict(zip(self._axes, array.shape, strict=True))
        self.shape = (lengths["z"], lengths["y"], lengths["x"])
        self.dtype = check_dtype(path, np.dtype(array.dtype))
        self.channels, self.times = lengths.get("c", 1), lengths.get("t", 1)
        self._fixed = {
            "c": choose(path, "channel", choice.channel, self.channels),
            "t": choose(path, "time point", choice.time, self.times),
        }
        chunks = dict(zip(self._axes, array.chunks, strict=True))
        self.block_planes, self.block_rows = chunks["z"], chunks["y"]
        run = attributes.get(RUN_KEY)
        self.attributes = run if isinstance(run, dict) else {}
        if image is not None and multiscale is not None:
            self.levels = len(multiscale["datasets"])
            self.voxel_um, self.translation_um = image.voxel_um, image.translation_um
            if choice.level:
                self._check_extent(image, read_level(path, multiscale, 0), choice.level)

    def _check_extent(self, image: ImageLevel, finest: ImageLevel, level: int) -> None:
        """A coarser level must span what the finest spans: else one of the scales is wrong."""
        import zarr

        sizes = zarr.open_array(str(_array_folder(self.path, finest)), mode="r").shape
        for axis, length in zip("zyx", self.shape, strict=True):
            scale = image.scale[image.axes.index(axis)]
            size, whole = length * scale, sizes[finest.axes.index(axis)] * finest.scale[finest.axes.index(axis)]
            if abs(size - whole) > 2 * scale + 0.01 * whole:
                raise UserError(
                    f"{self.path}: level {level} spans {size:g} along {axis} and level 0 {whole:g} by their scales and shapes, "
                    "which contradict each other; correct the coordinateTransformations"
                )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_array": None}

    def _open(self) -> Any:
        import zarr

        if self._array is None:
            try:
                self._array = zarr.open_array(str(self._folder), mode="r")
            except Exception as error:  # metadata can be wrong in every way that JSON allows
                raise UserError(f"{self._folder}: not a readable Zarr array ({_line(error)})") from error
        return self._array

    def _read(self, planes: range, rows: slice, columns: slice) -> np.ndarray:
        space = {"z": slice(planes.start, planes.stop, planes.step), "y": rows, "x": columns}
        key = tuple(space.get(axis, self._fixed.get(axis)) for axis in self._axes)
        try:
            values = np.asarray(self._open()[key])
        except MemoryError:
            raise
        except Exception as error:  # every codec fails in its own way
            raise UserError(self._damage(key, error)) from error
        left = "".join(axis for axis in self._axes if axis in "zyx")
        return np.ascontiguousarray(as_planes(values, left), self.dtype)

    def _damage(self, key: tuple[Any, ...], reason: Exception) -> str:
        """Which chunk cannot be read, found by reading those that were asked for one by one."""
        array = self._open()
        grain = array.shards or array.chunks
        spans = [slice(part, part + 1) if isinstance(part, int) else part for part in key]
        touched = [range(part.start // side, -(-part.stop // side)) for part, side in zip(spans, grain, strict=True)]
        for position in product(*touched):
            try:
                array[tuple(slice(p * side, (p + 1) * side) for p, side in zip(position, grain, strict=True))]
            except Exception as error:
                name = self._folder / array.metadata.encode_chunk_key(position)
                return f"{name}: this chunk cannot be read ({_line(error)}); it is damaged, copy it again"
        return f"{self._folder}: cannot be read ({_line(reason)})"


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _described(path: Path) -> tuple[bool, dict[str, Any], Mapping[str, Any] | None]:
    """Whether a Zarr folder is a plain array; its attributes; and the description of its image, which a group has.

    Raises:
        UserError: the metadata cannot be read, or the folder is unfinished or a group without an image.
    """
    import zarr  # half a second, only where a Zarr folder is read

    try:
        node = zarr.open(str(path), mode="r")
        attributes = node.attrs.asdict()
    except Exception as error:  # metadata can be wrong in every way that JSON allows
        raise UserError(f"{path}: its Zarr metadata cannot be read ({_line(error)}); copy the folder again") from error
    if UNFINISHED in attributes:
        raise UserError(f"{path}: an output that is not finished; run the command that was writing it again, it continues")
    if isinstance(node, zarr.Array):
        return True, attributes, None
    multiscale = find_multiscale(path, attributes)
    if multiscale is None:
        inside = sorted(child.name for child in path.iterdir() if child.is_dir() and is_zarr(child))
        raise UserError(
            f"{path}: a Zarr group without an image (OME metadata named multiscales); name an image or array inside it"
            + (f": {', '.join(inside[:8])}{' …' if len(inside) > 8 else ''}" if inside else "")
        )
    return False, attributes, multiscale


def _array_folder(path: Path, image: ImageLevel) -> Path:
    folder = path / image.path
    if not is_zarr(folder):
        raise UserError(f"{path}: its metadata name an array {image.path!r} that does not exist; copy the whole folder")
    return folder


def _plain_axes(path: Path, array: Any) -> str:
    """Axes of an array without OME metadata: its own names where they are those of an image, else (Z, Y, X)."""
    names = [str(name or "").lower() for name in getattr(array.metadata, "dimension_names", None) or ()]
    if names and set(names) <= set("tczyx") and {"z", "y", "x"} <= set(names) and len(set(names)) == len(names):
        return "".join(names)
    if array.ndim < 3 or any(size > 1 for size in array.shape[:-3]) or array.ndim > 5:
        raise UserError(
            f"{path}: an array of shape {array.shape}; without names of its axes only (Z, Y, X) is a volume, "
            "save it as OME-Zarr or with dimension names"
        )
    return "tc"[5 - array.ndim :] + "zyx"
