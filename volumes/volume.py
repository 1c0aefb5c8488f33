"""What every reader of a volume offers, a lazy (Z, Y, X) array with a path and voxel sizes; what readers share."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from utils.axes import SEEN_ALONG, as_planes, exchanged
from utils.boxes import Box, boxes, extent, relative
from utils.errors import UserError

Triple = tuple[float, float, float]
_BESIDE = 2**24  # bytes that a parser may take beside the values
Look = tuple[str, tuple[float, float] | None]  # how a channel is shown: colour (RRGGBB or empty), first and last grey value
READABLE = ("bool", "uint8", "int8", "uint16", "int16", "float16", "float32", "float64")


class Volume(ABC):
    """A three-dimensional image on disc; indexing reads only what is asked for.

    ``volume[z0:z1:step, y0:y1, x0:x1]`` returns an array of the volume's dtype in the machine's byte order. Slices
    follow numpy's rules except that every step but the one along Z is 1 and that a single index is refused, so
    that a result always has three axes. Volumes can be pickled and used after a fork: nothing is kept open.

    Attributes:
        path: the file, for messages.
        files: the files that hold the volume, where that is not `path` alone.
        shape: (Z, Y, X) in voxels.
        dtype: dtype of the values in the file (bool is given as uint8).
        voxel_um: voxel size (z, y, x) in µm, or None where the file does not say.
        translation_um: position (z, y, x) in µm of the centre of the first voxel along the file's own axes, or None where the
            file does not say.
        block_rows: rows that the file stores together; reading fewer costs as much.
        block_planes, block_columns: likewise for planes and columns.
        channels: how many channels the file has; this volume is one of them.
        times: likewise for time points.
        scenes: likewise for scenes, positions or series.
        levels: likewise for levels of resolution.
        channel_name, colour: what the file calls this channel, and how it is shown (RRGGBB); empty where it does not say.
        space: how NIfTI turns the axes of the file to those of a scanner or atlas: its sform and qform; None elsewhere.
        doubt: why the voxel size is not known although the file states one.
        attributes: what a command of this project wrote about the run that made the file, else empty.
    """

    path: Path
    files: tuple[Path, ...] = ()
    shape: tuple[int, int, int]
    dtype: np.dtype
    voxel_um: Triple | None = None
    translation_um: Triple | None = None
    block_rows: int = 1
    block_planes: int = 1
    block_columns: int = 1
    channels: int = 1
    times: int = 1
    scenes: int = 1
    levels: int = 1
    channel_name: str = ""
    colour: str = ""
    space: Mapping[str, Any] | None = None
    doubt: str = ""
    attributes: Mapping[str, Any] = MappingProxyType({})

    def __getitem__(self, key: slice | tuple[slice, ...]) -> np.ndarray:
        """The values of a box, shape (planes, rows, columns)."""
        slices = key if isinstance(key, tuple) else (key,)
        if len(slices) > 3 or not all(isinstance(part, slice) for part in slices):
            raise ValueError(f"a volume is indexed by up to three slices, not {key!r}; write z:z+1 for one plane")
        full = slices + (slice(None),) * (3 - len(slices))
        planes, rows, columns = (range(*part.indices(size)) for part, size in zip(full, self.shape, strict=True))
        if planes.step < 1 or rows.step != 1 or columns.step != 1:
            raise ValueError(f"steps {planes.step, rows.step, columns.step}: positive along Z and 1 in-plane are supported")
        if not (len(planes) and len(rows) and len(columns)):
            return np.empty((len(planes), len(rows), len(columns)), self.dtype)
        return self._read(planes, slice(rows.start, rows.stop), slice(columns.start, columns.stop))

    @abstractmethod
    def _read(self, planes: range, rows: slice, columns: slice) -> np.ndarray:
        """Read a non-empty box that lies within the volume."""

    def blocks(self, voxels: int = 2**22) -> list[Box]:
        """Boxes that cover the volume once, of about that many voxels, along the file's own grain."""
        depth, height, width = self.shape
        grain = min(self.block_planes, depth)
        planes = voxels // (grain * height * width) * grain
        rows = height if planes else max(1, voxels // (grain * width * self.block_rows)) * self.block_rows
        return boxes(self.shape, (planes or grain, rows, width))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, shape={self.shape}, dtype={self.dtype}, voxel_um={self.voxel_um})"


class PlaneVolume(Volume):
    """A volume whose file gives one plane after the other."""

    def _read(self, planes: range, rows: slice, columns: slice) -> np.ndarray:
        out = np.empty((len(planes), *extent((rows, columns))), self.dtype)
        for k, plane in enumerate(self._planes(planes, rows, columns)):
            out[k] = plane
        return out

    @abstractmethod
    def _planes(self, planes: range, rows: slice, columns: slice) -> Iterator[np.ndarray]:
        """Windows (rows, columns) of planes, one after the other."""


class ReorderedVolume(Volume):
    """A volume whose file has its axes in another order, such as ``xzy``; of what the file states only the dtype is taken on."""

    def __init__(self, stored: Volume, order: str):
        self.path, self.files, self.dtype, self._stored, self._order = stored.path, stored.files, stored.dtype, stored, order
        self.shape = as_sides(stored.shape[order.index(axis)] for axis in "zyx")
        grain = (stored.block_planes, stored.block_rows, stored.shape[2])
        self.block_planes, self.block_rows = grain[order.index("z")], grain[order.index("y")]

    def _read(self, planes: range, rows: slice, columns: slice) -> np.ndarray:
        space = {"z": slice(planes.start, planes.stop), "y": rows, "x": columns}
        values = self._stored[tuple(space[axis] for axis in self._order)]
        return np.ascontiguousarray(as_planes(values, self._order)[:: planes.step])


def in_order(stored: Volume, order: str) -> Volume:
    """The (Z, Y, X) volume of a file whose axes follow each other in that order."""
    return stored if order == "zyx" else ReorderedVolume(stored, order)


def seen_along(volume: Volume, thick: str) -> Volume:
    """A volume whose thick axis (``z``, ``y`` or ``x``) has changed places with z; what the file states goes with it.

    ``space`` stays that of the file's own axes.
    """
    if thick == "z":
        return volume
    seen = ReorderedVolume(volume, SEEN_ALONG[thick])
    for name in ("channels", "times", "scenes", "levels", "channel_name", "colour", "space", "doubt", "attributes"):
        setattr(seen, name, getattr(volume, name))
    seen.voxel_um = volume.voxel_um and exchanged(volume.voxel_um, thick)
    seen.translation_um = volume.translation_um and exchanged(volume.translation_um, thick)
    return seen


class ArrayVolume(Volume):
    """An array of shape (Z, Y, X): numpy's, or one that becomes numpy's as it is read (zarr, h5py, dask).

    A UserError: it is none, has other axes or no voxel, or its values are no real numbers.
    """

    def __init__(self, array: Any, path: Path | str = "<array>", voxel_um: Triple | None = None):
        if not hasattr(array, "__array__"):
            raise UserError(f"a volume is an array, a path or a Volume, not a {type(array).__name__}")
        array = array if isinstance(getattr(array, "dtype", None), np.dtype) else np.asarray(array)  # such as torch's
        if array.ndim != 3 or 0 in array.shape:
            raise UserError(f"{path}: a volume has three axes (Z, Y, X), none of them empty, not the shape {tuple(array.shape)}")
        if array.dtype.kind not in "buif":
            raise UserError(f"{path}: values of type {array.dtype} are no grey values")
        self.path, self.array, self.shape = Path(path), array, as_sides(array.shape)
        self.dtype, self.voxel_um = array.dtype, voxel_um

    def _read(self, planes: range, rows: slice, columns: slice) -> np.ndarray:
        return np.asarray(self.array[planes.start : planes.stop : planes.step, rows, columns])


class Region(Volume):
    """A box of a volume, in memory; it is indexed as the whole volume is."""

    def __init__(self, volume: Volume, box: Box) -> None:
        self.path, self.shape, self.dtype = volume.path, volume.shape, volume.dtype
        self._box, self._values = box, volume[box]

    def _read(self, planes: range, rows: slice, columns: slice) -> np.ndarray:
        part = relative((slice(planes.start, planes.stop), rows, columns), self._box)
        return self._values[part][:: planes.step]


def check_dtype(path: Path, dtype: np.dtype | None) -> np.dtype:
    """The native dtype in which values are given; a UserError refuses what float32 does not hold, or several kinds (None)."""
    if dtype is None or dtype.name not in READABLE:
        raise UserError(
            f"{path}: values of type {'unknown' if dtype is None else dtype.name} are not supported; "
            f"save it as uint8, uint16 or float32 (readable: {', '.join(READABLE)})"
        )
    return np.dtype(np.uint8) if dtype.name == "bool" else np.dtype(dtype.name)


@contextmanager
def reading(path: Path, what: str, remedy: str = "copy it again", size: int = 0) -> Iterator[None]:
    """Turns whatever a damaged file makes a parser or package raise into a UserError that says what the file is not, and why.

    Args:
        path: the file.
        what: what it is not.
        remedy: what to do.
        size: bytes that the values take, if the file is sound.

    Raises:
        UserError: see above.
        MemoryError: there is no memory for so many bytes, whatever the file says.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if lacks_memory_for(size, error):
            raise
        raise UserError(f"{path}: {what} ({reason(error)}); {remedy}") from error


def lacks_memory_for(size: int, error: Exception) -> bool:
    """Whether it is a MemoryError, and there is no room for so many bytes twice: a damaged file may ask for any number."""
    if not isinstance(error, MemoryError):
        return False
    try:
        np.empty(2 * size + _BESIDE, np.uint8)
    except (MemoryError, ValueError):  # the latter: more than any machine can have
        return True
    return False


def reason(error: Exception) -> str:
    """What an error says, in one line."""
    if isinstance(error, MemoryError):
        return "it asks for more memory than its values take and than there is"
    return " ".join(str(error).split()) or type(error).__name__


def all_three(sizes: Sequence[float | None]) -> Triple | None:
    """Sizes (z, y, x), or None where one of them is not known."""
    known = [size for size in sizes if size is not None]
    return (known[0], known[1], known[2]) if len(known) == 3 else None


def as_sides(values: Iterable[int]) -> tuple[int, int, int]:
    """Three sizes (z, y, x) as plain integers."""
    z, y, x = (int(value) for value in values)
    return z, y, x


def triple(values: Iterable[float]) -> Triple:
    """Three numbers (z, y, x) as plain floats."""
    z, y, x = (float(value) for value in values)
    return z, y, x
