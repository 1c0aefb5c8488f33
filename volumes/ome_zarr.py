"""OME-Zarr images (0.4 and 0.5; written for 0.5) and plain Zarr arrays (version 2 and 3), read chunk by chunk.

Positions are those of voxel centres: a point of index i along an axis lies at ``scale · i + translation``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from utils.axes import as_planes
from utils.errors import UserError
from volumes.pyramid import Level
from volumes.target_plan import PARTIAL
from volumes.volume import MICROMETRES, Choice, Triple, Volume, check_dtype, choose

RUN_KEY = "isoscope"  # attribute under which our own files say how they were made
UNFINISHED = "isoscope_unfinished"
_MARKERS = ("zarr.json", ".zgroup", ".zarray", ".zattrs")
VERSION = "0.5"


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


@dataclass(frozen=True)
class ImageLevel:
    """One level of an OME-Zarr image, as its metadata describe it.

    Attributes:
        path: folder of the array, relative to the image's.
        axes: one letter per axis of the array, of t, c, z, y, x.
        scale: size of a voxel along every axis, in µm along z, y and x where the unit is known.
        translation: position of the first voxel, likewise; None where nothing is said.
        in_micrometres: whether the units of all three axes of space are known.
    """

    path: str
    axes: str
    scale: tuple[float, ...]
    translation: tuple[float, ...] | None
    in_micrometres: bool

    @property
    def voxel_um(self) -> Triple | None:
        """Voxel size (z, y, x) in µm; None where the file does not say."""
        return self._zyx(self.scale) if self.in_micrometres else None

    @property
    def translation_um(self) -> Triple | None:
        """Position (z, y, x) of the first voxel in µm; None where the file does not say."""
        return self._zyx(self.translation) if self.in_micrometres and self.translation is not None else None

    def _zyx(self, values: tuple[float, ...]) -> Triple:
        z, y, x = (values[self.axes.index(axis)] for axis in "zyx")
        return z, y, x


def image_metadata(
    name: str,
    datasets: Sequence[tuple[str, Level]],
    *,
    voxel_um: Sequence[float] | None = None,
    translation_um: Sequence[float] | None = None,
    channel_names: Sequence[str] | None = None,
    dtype: np.dtype | str = "uint8",
) -> dict[str, Any]:
    """The ``ome`` attribute of an image's group.

    Args:
        name: name of the image.
        datasets: path of the array and geometry of every level, finest first.
        voxel_um: voxel size (z, y, x) of the first level in µm; without it the scale counts voxels and no unit is named.
        translation_um: position (z, y, x) of the centre of the first voxel of the first level in µm.
        channel_names: names of the channels; with them the first axis is that of channels.
        dtype: dtype of the values, for the range of display of the channels.
    """
    voxel = tuple(voxel_um or (1.0, 1.0, 1.0))
    unit = {"unit": "micrometer"} if voxel_um is not None else {}
    axes: list[dict[str, str]] = [{"name": axis, "type": "space", **unit} for axis in "zyx"]
    if channel_names is not None:
        axes.insert(0, {"name": "c", "type": "channel"})
    lead = len(axes) - 3
    described = []
    for path, level in datasets:
        transforms: list[dict[str, Any]] = [{"type": "scale", "scale": [1.0] * lead + [float(s) for s in level.scale(voxel)]}]
        shift = level.shift(voxel)
        if translation_um is not None or any(shift):
            origin = [float(a + b) for a, b in zip(translation_um or (0.0, 0.0, 0.0), shift, strict=True)]
            transforms.append({"type": "translation", "translation": [0.0] * lead + origin})
        described.append({"path": path, "coordinateTransformations": transforms})
    image: dict[str, Any] = {"name": name, "axes": axes, "datasets": described}
    if len(described) > 1:
        image |= {"type": "mean", "metadata": {"description": "means of 2 voxels along the halved axes"}}
    ome: dict[str, Any] = {"version": VERSION, "multiscales": [image]}
    if channel_names is not None:
        kind = np.dtype(dtype)
        low, high = (float(np.iinfo(kind).min), float(np.iinfo(kind).max)) if kind.kind in "ui" else (0.0, 1.0)
        window = {"min": low, "max": high, "start": low, "end": high}
        shown = {"color": "FFFFFF", "active": True, "window": window}
        ome["omero"] = {"channels": [{"label": label, **shown} for label in channel_names]}
    return ome


def find_multiscale(path: Path, attributes: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The description of the one image of a group, or None where the group is no OME-Zarr image.

    Args:
        path: the group, for messages.
        attributes: the group's attributes, of Zarr 2 or 3.

    Raises:
        UserError: the group holds several images, or is written in a version of NGFF that is not known.
    """
    ome = attributes.get("ome", attributes)
    found = ome.get("multiscales") if isinstance(ome, Mapping) else None
    if found is None:
        return None
    if not isinstance(found, list) or len(found) != 1 or not isinstance(found[0], Mapping):
        count = len(found) if isinstance(found, list) else 0
        raise UserError(f"{path}: its OME metadata describe {count} images (multiscales); exactly one can be read")
    if "coordinateSystems" in found[0]:
        raise UserError(f"{path}: NGFF {ome.get('version', '0.6')} is not supported; save it as OME-Zarr 0.4 or 0.5")
    return found[0]


def read_level(path: Path, multiscale: Mapping[str, Any], number: int) -> ImageLevel:
    """What the metadata say of one level.

    Args:
        path: the image's group, for messages.
        multiscale: its description; see :func:`find_multiscale`.
        number: the level, 0 the finest.

    Raises:
        UserError: the level does not exist, or the metadata are incomplete or contradict themselves.
    """
    datasets = multiscale.get("datasets") or []
    if not 0 <= number < len(datasets):
        raise UserError(f"{path}: level {number} of {len(datasets)}; levels count from 0, the finest")
    try:
        names, factors, known = _axes(path, multiscale.get("axes", list("tczyx")))
        array = datasets[number]["path"]
        transforms = [t for holder in (datasets[number], multiscale) for t in holder.get("coordinateTransformations") or []]
        scale, translation = _composed(path, transforms, len(names))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: its OME metadata are incomplete or damaged ({error!r}); save it again") from error
    if translation is not None and number > 0 and read_level(path, multiscale, 0).translation is None:
        translation = None  # it only says where this level lies within the first, whose position is not known
    in_um = [size * factor for size, factor in zip(scale, factors, strict=True)]
    moved = None if translation is None else tuple(t * factor for t, factor in zip(translation, factors, strict=True))
    return ImageLevel(str(array), names, tuple(in_um), moved, known and bool(transforms))


def _axes(path: Path, axes: Sequence[Any]) -> tuple[str, list[float], bool]:
    """Letters of the axes, µm per unit along each, and whether the units of space are all known."""
    letters, factors, known = "", [], True
    for axis in axes:
        described = {"name": axis} if isinstance(axis, str) else axis
        unit = described.get("unit")
        letter = {"time": "t", "channel": "c"}.get(described.get("type", ""), str(described["name"]).lower()[:1])
        space = letter in "zyx"
        known = known and (not space or unit in MICROMETRES)
        letters += letter
        factors.append(MICROMETRES.get(unit, 1.0) if space and unit else 1.0)
    if len(set(letters)) != len(letters) or not set(letters) <= set("tczyx") or not {"y", "x"} <= set(letters):
        raise UserError(f"{path}: axes {letters!r} are not those of an image (t, c, z, y, x)")
    if "z" not in letters:
        raise UserError(f"{path}: a 2-D image (axes {letters!r}); a volume has an axis z")
    return letters, factors, known


def _composed(path: Path, transforms: Sequence[Mapping[str, Any]], axes: int) -> tuple[list[float], list[float] | None]:
    """Scale and translation of transformations one after the other; no translation where none is stated."""
    scale, translation = [1.0] * axes, None
    for transform in transforms:
        kind = transform["type"]
        if kind == "identity":
            continue
        if kind not in ("scale", "translation") or kind not in transform:
            raise UserError(f"{path}: coordinate transformation {dict(transform)} is not supported; scale and translation are")
        values = [float(v) for v in transform[kind]]
        if len(values) != axes or not all(map(math.isfinite, values)) or (kind == "scale" and min(values) <= 0):
            raise UserError(f"{path}: the {kind} {values} contradicts its {axes} axes; each needs one finite number")
        if kind == "scale":
            scale = [a * b for a, b in zip(scale, values, strict=True)]
            translation = None if translation is None else [a * b for a, b in zip(translation, values, strict=True)]
        else:
            translation = [a + b for a, b in zip(translation or [0.0] * axes, values, strict=True)]
    return scale, translation
