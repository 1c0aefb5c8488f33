"""Arrays of numpy (.npy), and those of HDF5: Imaris files and others (package h5py of the extra ``formats``)."""

import io
import json
import math
import operator
import os
from pathlib import Path
from typing import Any

import numpy as np

from utils.axes import as_planes
from utils.boxes import extent
from utils.errors import UserError
from utils.packages import optional_package
from volumes.contiguous import flat_volume
from volumes.stated import Choice, Layout, choose, length_um, plain_axes
from volumes.volume import Volume, all_three, check_dtype, reading

_LONGEST_HEADER = 2**16 + 16  # bytes, of a .npy file


def open_npy(path: Path, choice: Choice) -> Volume:
    """An array as numpy.save writes it, (Z, Y, X) or with axes of one entry before; a UserError says that it is none."""
    with reading(path, "not a readable .npy file", "save it again with numpy.save"), path.open("rb") as opened:
        file = io.BytesIO(opened.read(_LONGEST_HEADER))  # its length is what the file says it is
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, stored = read(file)
        start, sizes = file.tell(), tuple(map(int, shape))
    turn = slice(None, None, -1 if fortran else 1)  # Fortran's order: the last axis is the slowest
    return flat_volume(path, Layout(path, plain_axes(path, None, sizes)[turn], sizes[turn], choice), stored, start)


class Hdf5Volume(Volume):
    """A data set of an HDF5 file, or a channel, time point and level of an Imaris file; the file is open only while it is read.

    A UserError says that the file cannot be read, or that there is no data set, or none chosen of several (scenes).
    """

    def __init__(self, path: Path, choice: Choice) -> None:
        self.path, h5py = path, optional_package("h5py", path)
        with reading(path, "not a readable HDF5 file"), h5py.File(path, "r") as file:
            imaris = "DataSet" in file and "DataSetInfo/Image" in file
            self._name, self._layout = (self._imaris if imaris else self._plain)(file, choice)
            found = file[self._name]
            if len(found.shape or ()) != len(self._layout.sizes) or any(map(operator.lt, found.shape, self._layout.sizes)):
                raise ValueError(f"{self._name} has the shape {found.shape}, {self._layout.sizes} is stated")
            if found.external or found.is_virtual or not os.path.samefile(found.file.filename, path):
                raise UserError(f"{path}: {self._name} lies in other files, which are not followed; copy it into one (h5repack)")
            self.dtype, chunks = check_dtype(path, found.dtype), found.chunks or (1,) * found.ndim
        self.shape = self._layout.shape
        grain = dict(zip(self._layout.axes, chunks, strict=True))
        self.block_planes, self.block_rows = grain["z"], grain["y"]
        self._chunk = math.prod(chunks)

    def _imaris(self, file: Any, choice: Choice) -> tuple[str, Layout]:
        about = {key: b"".join(value.tolist()).decode() for key, value in file["DataSetInfo/Image"].attrs.items() if value.ndim}
        self.levels = sum(name.startswith("ResolutionLevel") for name in file["DataSet"])
        level = f"DataSet/ResolutionLevel {choose(self.path, 'level', choice.level, self.levels)}"
        self.times = sum(name.startswith("TimePoint") for name in file[level])
        self.channels = sum(name.startswith("Channel") for name in file[f"{level}/TimePoint 0"])
        time = choose(self.path, "time point", choice.time, self.times)
        channel = file[f"{level}/TimePoint {time}/Channel {choose(self.path, 'channel', choice.channel, self.channels)}"]
        sizes = [
            int(b"".join(channel.attrs[f"ImageSize{axis}"].tolist())) for axis in "ZYX"
        ]  # the array is filled up to whole chunks
        unit, ends = about.get("Unit", "um"), [(float(about[f"ExtMin{k}"]), float(about[f"ExtMax{k}"])) for k in (2, 1, 0)]
        steps = [(high - low) / size for (low, high), size in zip(ends, sizes, strict=True)]
        self.voxel_um = all_three([length_um(self.path, "extent", step, unit, 0) for step in steps])
        places = [low + step / 2 for (low, _), step in zip(ends, steps, strict=True)]
        self.translation_um = all_three([length_um(self.path, "ExtMin", place, unit) for place in places])
        return f"{channel.name}/Data", Layout(self.path, "zyx", sizes, Choice())

    def _plain(self, file: Any, choice: Choice) -> tuple[str, Layout]:
        found: list[Any] = []
        file.visititems(
            lambda _, item: found.append(item) if getattr(item, "ndim", 0) > 2 and item.dtype.kind in "uifb" else None
        )
        if not found:
            raise UserError(f"{self.path}: an HDF5 file without an array of three axes or more; name another file")
        self.scenes = len(found)
        layout = "".join(f"; {n}: {one.name} {one.shape}" for n, one in enumerate(found[:12]))
        array = found[choose(self.path, "scene", choice.scene, len(found), f" (data sets{layout})")]
        tags = json.loads(array.attrs["axistags"])["axes"] if "axistags" in array.attrs else []  # ilastik's
        names = plain_axes(self.path, [tag["key"] for tag in tags] or [axis.label for axis in array.dims], array.shape)
        layout_of = Layout(self.path, names, array.shape, choice)
        self.channels, self.times = layout_of.channels, layout_of.times
        sizes = np.ravel(array.attrs.get("element_size_um", ())).tolist()  # (z, y, x), as Fiji's HDF5 plugin writes it
        if len(sizes) == 3:
            self.voxel_um = all_three([length_um(self.path, "element_size_um", size, "µm", 0) for size in sizes])
        return array.name, layout_of

    def _read(self, planes: range, rows: slice, columns: slice) -> np.ndarray:
        h5py = optional_package("h5py", self.path)
        key = self._layout.key(slice(planes.start, planes.stop, planes.step), rows, columns)
        size = self.dtype.itemsize * max(len(planes) * math.prod(extent((rows, columns))), self._chunk)
        sound = reading(self.path, f"{self._name} cannot be read", "damaged, copy it again", size)
        with sound, h5py.File(self.path, "r") as file:
            values = file[self._name][key]
        return np.ascontiguousarray(as_planes(values, self._layout.order), self.dtype)
