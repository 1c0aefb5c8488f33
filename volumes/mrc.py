"""MRC2014 (CCP4) volumes; mrcfile (the extra ``formats``) reads the header, the voxels are read by position."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from utils.errors import UserError
from volumes.contiguous import ContiguousVolume
from volumes.optional_package import optional_package
from volumes.units import MICROMETRES
from volumes.volume import Choice, Volume, positive, triple


def open_mrc(path: Path, choice: Choice) -> Volume:
    """An MRC file of one volume; voxel size and origin are turned from Å to µm.

    Args:
        path: the file.
        choice: of nothing: the file has one channel and one time point.

    Raises:
        UserError: the file cannot be read, is truncated, or holds no single volume along (x, y, z).
    """
    mrcfile = optional_package("mrcfile", path)
    try:
        with mrcfile.open(path, mode="r", header_only=True) as file:
            header = file.header.copy()
            sizes = np.array([file.voxel_size[axis] for axis in "zyx"], float)
        stored = np.dtype(mrcfile.utils.data_dtype_from_header(header))
        shape = tuple(int(size) for size in mrcfile.utils.data_shape_from_header(header))
    except (OSError, ValueError, RuntimeWarning) as error:
        raise UserError(f"{path}: not a readable MRC file ({' '.join(str(error).split())}); copy it again") from error
    if len(shape) != 3 or min(shape) < 1:
        raise UserError(f"{path}: shape {shape} is not one volume (Z, Y, X); save a single volume")
    order = tuple(int(header[name]) for name in ("mapc", "mapr", "maps"))
    if order not in ((1, 2, 3), (0, 0, 0)):
        raise UserError(f"{path}: columns, rows and sections run along the axes {order}, not (1, 2, 3) = (x, y, z); save it so")
    depth, height, width = shape
    first, plane = header.nbytes + int(header["nsymbt"]), height * width * stored.itemsize
    volume = ContiguousVolume(path, shape, stored, range(first, first + depth * plane, plane))
    volume.voxel_um = positive(list(sizes * MICROMETRES["angstrom"]))
    origin = triple([header["origin"][axis] * MICROMETRES["angstrom"] for axis in "zyx"])
    if volume.voxel_um and any(origin):  # zeros are what programs write that know no origin
        volume.translation_um = origin
    return volume
