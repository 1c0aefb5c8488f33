"""Files as microscopes write them: Zeiss CZI, Leica LIF, Nikon ND2 (packages of the extra ``formats``).

A file holds scenes (positions, series), time points and channels of planes; one of each makes a volume. Planes are read one at a
time, so memory does not depend on the size of the file; the file is open only while it is read.

CZI is read by pylibCZIrw, Zeiss' own reader (LGPL), LIF by liffile and ND2 by nd2 (both BSD). These are the readers behind the
bioio plugins, without the 30 packages that bioio adds.
"""

import logging
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from utils.boxes import extent
from utils.errors import UserError
from utils.packages import optional_package
from volumes.stated import LONGEST, Choice, choose, length_um
from volumes.volume import PlaneVolume, all_three, check_dtype, reading

log = logging.getLogger("isoscope")

_UM = 1e6  # of a metre
_CZI_DTYPES = {"Gray8": "uint8", "Gray16": "uint16", "Gray32Float": "float32"}
_LISTED = 12  # scenes that a message names


class MicroscopeVolume(PlaneVolume):
    """Planes that a package reads one at a time, of the chosen scene, channel and time point.

    A UserError says that the package is missing, or that the file cannot be read or holds no greyscale volume as chosen.
    """

    package: str
    opener: str  # of the package; path → a context in which the file is open
    name: str  # of the format
    _plane = 0  # bytes

    def __init__(self, path: Path, choice: Choice) -> None:
        self.path = path
        with self._open() as file:
            shapes = self._scenes(file)
            self.scenes = len(shapes)
            layout = "".join(f"; {n}: {text}" for n, text in list(enumerate(shapes))[:_LISTED])
            self._scene = choose(path, "scene", choice.scene, self.scenes, layout + ("; …" if len(shapes) > _LISTED else ""))
            sizes = self._sizes(file)
            extra = {axis: n for axis, n in sizes.items() if axis not in "TCZYX" and n > 1}
            if extra:
                raise UserError(f"{path}: axes {extra} beside Z, Y and X; save one greyscale volume, for example as OME-TIFF")
            self.channels, self.times = sizes.get("C", 1), sizes.get("T", 1)
            self._channel = choose(path, "channel", choice.channel, self.channels)
            self._time = choose(path, "time point", choice.time, self.times)
            self.shape = (sizes.get("Z", 1), sizes["Y"], sizes["X"])
            if not 1 <= min(self.shape) <= max(self.shape) <= LONGEST:
                raise UserError(f"{path}: scene {self._scene} states the shape {self.shape}; damaged, copy it again")
            if self.shape[0] < 2:
                raise UserError(f"{path}: scene {self._scene} is a 2-D image {self.shape[1:]}; a volume has several planes")
            dtype, sides = self._values(file)
            self.dtype = check_dtype(path, dtype)
            lengths = [length_um(path, f"{axis} scaling", side, "µm", 0) for axis, side in zip("ZYX", sides, strict=False)]
            self.voxel_um = all_three(lengths)
            last = self._window(file, self.shape[0] - 1, slice(0, 1), slice(0, 1))
        if last.dtype != self.dtype:
            raise UserError(f"{path}: planes of {last.dtype} in a file that announces {self.dtype}; save it as TIFF")
        self.block_rows = self.shape[1]
        self._plane = math.prod(self.shape[1:]) * self.dtype.itemsize

    @contextmanager
    def _open(self) -> Iterator[Any]:
        package = optional_package(self.package, self.path)
        damage = reading(self.path, f"not a readable {self.name} file", "copy it again, or save it as TIFF", self._plane)
        with damage, getattr(package, self.opener)(str(self.path)) as file:
            yield file

    def _planes(self, planes: range, rows: slice, columns: slice) -> Iterator[np.ndarray]:
        with self._open() as file:
            for z in planes:
                window = self._window(file, z, rows, columns)
                if window.shape != extent((rows, columns)):
                    raise ValueError(f"plane {z} has {window.shape} pixels where {extent((rows, columns))} are stated")
                yield window

    @abstractmethod
    def _scenes(self, file: Any) -> Sequence[str]:
        """A short description of every scene."""

    @abstractmethod
    def _sizes(self, file: Any) -> Mapping[str, int]:
        """Entries along every axis of the chosen scene, by its letter."""

    @abstractmethod
    def _values(self, file: Any) -> tuple[np.dtype | None, Sequence[float | None]]:
        """Dtype of the chosen channel, None where it is not greyscale; voxel size (z, y, x) in µm, None or 0 where not stated."""

    @abstractmethod
    def _window(self, file: Any, z: int, rows: slice, columns: slice) -> np.ndarray:
        """A window (rows, columns) of a plane."""


class CziVolume(MicroscopeVolume):
    """Zeiss CZI; the tiles of a mosaic are put together, at full resolution."""

    package, opener, name = "pylibCZIrw.czi", "open_czi", "CZI"

    def _scenes(self, file: Any) -> Sequence[str]:
        found = sorted(file.scenes_bounding_rectangle_no_pyramid.items())
        self._rectangles = found or [(None, file.total_bounding_rectangle_no_pyramid)]
        return [f"{r.w} x {r.h} pixels" for _, r in found] or ["all"]

    def _sizes(self, file: Any) -> Mapping[str, int]:
        bounds = file.total_bounding_box_no_pyramid
        _, place = self._rectangles[self._scene]
        self._first = {axis: bounds.get(axis, (0, 1))[0] for axis in "TCZ"}
        return {axis: stop - start for axis, (start, stop) in bounds.items() if axis not in "SM"} | {"Y": place.h, "X": place.w}

    def _values(self, file: Any) -> tuple[np.dtype | None, Sequence[float | None]]:
        found = _CZI_DTYPES.get(file.pixel_types[self._first["C"] + self._channel])
        scaling = file.metadata.get("ImageDocument", {}).get("Metadata", {}).get("Scaling") or {}
        items = (scaling.get("Items") or {}).get("Distance") or []
        metres = {item["@Id"]: item.get("Value") for item in (items if isinstance(items, list) else [items])}
        sides = [None if metres.get(axis) is None else float(metres[axis]) * _UM for axis in "ZYX"]
        return None if found is None else np.dtype(found), sides

    def _window(self, file: Any, z: int, rows: slice, columns: slice) -> np.ndarray:
        scene, place = self._rectangles[self._scene]
        box = (place.x + columns.start, place.y + rows.start, columns.stop - columns.start, rows.stop - rows.start)
        at = {axis: self._first[axis] + n for axis, n in (("T", self._time), ("C", self._channel), ("Z", z))}
        return file.read(roi=box, plane=at, scene=scene)[..., 0]


class LifVolume(MicroscopeVolume):
    """Leica LIF; every image of the file is a scene."""

    package, opener, name = "liffile", "LifFile", "LIF"

    def _scenes(self, file: Any) -> Sequence[str]:
        if not len(file.images):
            raise UserError(f"{self.path}: no image in the file")
        return [f"{image.path} {dict(image.sizes)}" for image in file.images]

    def _sizes(self, file: Any) -> Mapping[str, int]:
        sizes: Mapping[str, int] = file.images[self._scene].sizes
        if tuple(sizes)[-2:] != ("Y", "X"):
            raise UserError(f"{self.path}: scene {self._scene} has the axes {dict(sizes)}, not planes of rows and columns (Y, X)")
        return sizes

    def _values(self, file: Any) -> tuple[np.dtype | None, Sequence[float | None]]:
        image = file.images[self._scene]
        places = (image.coords.get(axis, ()) for axis in "ZYX")  # metres
        return np.dtype(image.dtype), [abs(c[-1] - c[0]) / (len(c) - 1) * _UM if len(c) > 1 else None for c in places]

    def _window(self, file: Any, z: int, rows: slice, columns: slice) -> np.ndarray:
        image = file.images[self._scene]
        at = {axis: n for axis, n in (("T", self._time), ("C", self._channel)) if axis in image.sizes}
        return image.frame(**at, Z=z)[rows, columns]


class Nd2Volume(MicroscopeVolume):
    """Nikon ND2; every position is a scene."""

    package, opener, name = "nd2", "ND2File", "ND2"

    def _scenes(self, file: Any) -> Sequence[str]:
        return [f"position {n}" for n in range(file.sizes.get("P", 1))]

    def _sizes(self, file: Any) -> Mapping[str, int]:
        return {axis: n for axis, n in file.sizes.items() if axis != "P"}

    def _values(self, file: Any) -> tuple[np.dtype | None, Sequence[float | None]]:
        chosen = {"P": self._scene, "T": self._time}
        self._frames = {
            at.get("Z", 0): n for n, at in enumerate(file.loop_indices) if all(at.get(a, 0) == k for a, k in chosen.items())
        }
        sides: Sequence[float | None] = ()
        try:
            size = file.voxel_size()
            sides = () if size == (1, 1, 1) else (size.z, size.y, size.x)  # ones stand for "not stated"
        except Exception as error:  # it reads all metadata, of which dyes and filters fail in some files
            log.warning("%s: voxel size not readable (%s: %s); give it with --voxel", self.path, type(error).__name__, error)
        return np.dtype(file.dtype), sides

    def _window(self, file: Any, z: int, rows: slice, columns: slice) -> np.ndarray:
        frame = file.read_frame(self._frames[z])
        return (frame[self._channel] if frame.ndim == 3 else frame)[rows, columns]
