"""The metadata of OME-Zarr images (NGFF 0.4 and 0.5), as plain JSON: written for 0.5, read for both.

Positions are those of voxel centres: a point of index i along an axis lies at ``scale · i + translation``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from volumes.pyramid import Level
from volumes.units import MICROMETRES
from volumes.volume import Triple

VERSION = "0.5"


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
