"""NIfTI and MRC volumes; nibabel and mrcfile (the extra ``formats``) read the headers, the voxels are read by position."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from volumes.optional_package import optional_package
from volumes.raw_volume import FileBytes, GzipBytes, RawVolume
from volumes.volume import Choice, Triple, Volume, choose

COMMENT = 6  # code of a NIfTI extension that holds text
UM_PER_MM = 1000.0
_UNITS_UM = {"mm": UM_PER_MM, "micron": 1.0, "meter": 1e6}
_ANGSTROM_UM = 1e-4
_TOLERANCE = 1e-2  # relative, of two statements of one voxel size


def open_nifti(path: Path, choice: Choice) -> Volume:
    """A NIfTI-1 or NIfTI-2 file; its axes (x, y, z) are those of a (Z, Y, X) volume read backwards.

    Nothing is rotated or flipped. The position is known where the file's axes run along those of space.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        choice: channel is an entry of the fifth axis, time one of the fourth.

    Raises:
        UserError: the file cannot be read, or contradicts itself.
    """
    nibabel = optional_package("nibabel", path)
    compressed = path.name.lower().endswith(".gz")
    try:
        with gzip.open(path, "rb") if compressed else path.open("rb") as file:
            header = _nifti_header(nibabel, file)
        # longer than 5 axes only where the others have one entry
        *space, times, channels, rest = (*header.get_data_shape(), 1, 1, 1, 1, 1)[:6]
        stored = header.get_data_dtype()
        slope, intercept = header.get_slope_inter()
        start = int(header.get_data_offset())
    except Exception as error:  # a damaged header fails in many ways inside nibabel, none of them its own class
        raise UserError(f"{path}: not a readable NIfTI file ({error}); copy it again") from error
    shape = (space[2], space[1], space[0])
    if min(shape) < 1 or rest > 1 or len(header.get_data_shape()) < 3:
        raise UserError(f"{path}: shape {header.get_data_shape()} (x, y, z, …) is not a volume")
    number = choose(path, "channel", choice.channel, channels) * times + choose(path, "time point", choice.time, times)
    begin = start + number * shape[0] * shape[1] * shape[2] * stored.itemsize
    scaling = None if slope is None or (slope, intercept) == (1, 0) else (float(slope), float(intercept or 0))
    source = GzipBytes(path) if compressed else FileBytes(path)
    volume = RawVolume(path, source, shape, stored, begin, scaling)
    volume.channels, volume.times = channels, times
    volume.voxel_um, volume.translation_um = _nifti_space(path, header)
    volume.attributes = _nifti_attributes(header)
    return volume


def _nifti_header(nibabel: Any, file: Any) -> Any:
    size = int.from_bytes(file.read(4), "little")
    file.seek(0)
    second = size in (540, int.from_bytes((540).to_bytes(4, "little"), "big"))
    return (nibabel.Nifti2Header if second else nibabel.Nifti1Header).from_fileobj(file, check=True)


def _nifti_space(path: Path, header: Any) -> tuple[Triple | None, Triple | None]:
    """Voxel size and position (z, y, x) in µm, each None where it is not stated."""
    factor = _UNITS_UM.get(header.get_xyzt_units()[0])
    zooms = np.array(header.get_zooms()[:3], float)
    if factor is None or not (np.isfinite(zooms).all() and (zooms > 0).all()):
        return None, None
    z, y, x = (float(size) for size in zooms[::-1] * factor)
    if not (header["sform_code"] > 0 or header["qform_code"] > 0):
        return (z, y, x), None
    affine = header.get_best_affine()
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.allclose(lengths, zooms, rtol=_TOLERANCE):
        raise UserError(
            f"{path}: voxel size {zooms.tolist()} by pixdim and {lengths.tolist()} by the affine contradict each other; "
            "correct the header"
        )
    if not np.allclose(affine[:3, :3], np.diag(zooms), atol=_TOLERANCE * zooms.min()):
        return (z, y, x), None  # turned or mirrored: no shift along the axes describes it
    place = affine[:3, 3] * factor
    return (z, y, x), (float(place[2]), float(place[1]), float(place[0]))


def _nifti_attributes(header: Any) -> dict[str, Any]:
    for extension in header.extensions:
        if extension.get_code() == COMMENT and header["descrip"].item().startswith(b"IsoScopeXX"):
            try:
                content = extension.get_content()
                found = json.loads(content if isinstance(content, str) else content.rstrip(b"\0").decode())
            except ValueError:
                return {}  # a comment of another program
            return found if isinstance(found, dict) else {}
    return {}


def open_mrc(path: Path, choice: Choice) -> Volume:
    """An MRC2014 (CCP4) file of one volume; voxel size and origin are turned from Å to µm.

    Args:
        path: the file.
        choice: only one volume can be chosen.

    Raises:
        UserError: the file cannot be read, is truncated, or holds no single volume along (x, y, z).
    """
    mrcfile = optional_package("mrcfile", path)
    try:
        with mrcfile.open(path, mode="r", header_only=True) as file:
            header = file.header.copy()
            sizes = np.array([file.voxel_size[axis] for axis in "zyx"], float)
        stored = mrcfile.utils.data_dtype_from_header(header)
        shape = mrcfile.utils.data_shape_from_header(header)
    except (OSError, ValueError, RuntimeWarning) as error:
        raise UserError(f"{path}: not a readable MRC file ({' '.join(str(error).split())}); copy it again") from error
    if len(shape) != 3 or min(shape) < 1:
        raise UserError(f"{path}: shape {shape} is not one volume (Z, Y, X); save a single volume")
    order = tuple(int(header[name]) for name in ("mapc", "mapr", "maps"))
    if order not in ((1, 2, 3), (0, 0, 0)):
        raise UserError(f"{path}: columns, rows and sections run along the axes {order}, not (1, 2, 3) = (x, y, z); save it so")
    depth, height, width = (int(n) for n in shape)
    start = header.nbytes + int(header["nsymbt"])
    volume = RawVolume(path, FileBytes(path), (depth, height, width), np.dtype(stored), start)
    if np.isfinite(sizes).all() and (sizes > 0).all():
        z, y, x = (float(size) for size in sizes * _ANGSTROM_UM)
        volume.voxel_um = (z, y, x)
        origin = [float(header["origin"][axis]) * _ANGSTROM_UM for axis in "zyx"]
        if any(origin):  # zeros are what programs write that know no origin
            volume.translation_um = (origin[0], origin[1], origin[2])
    return volume
