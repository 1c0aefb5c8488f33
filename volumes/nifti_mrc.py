"""NIfTI, read and written, and MRC2014 (CCP4): packages of the extra ``formats`` know the headers, voxels are read by place."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np

from utils.errors import UserError
from volumes.contiguous import ContiguousVolume
from volumes.target_plan import TargetPlan
from volumes.volume import MICROMETRES, Choice, Triple, Volume, choose, optional_package, positive, triple

_COMMENT = 6  # code of an extension that holds text
_UM_PER_MM = 1000.0
_NIFTI1_LIMIT = 2**15 - 1  # voxels along an axis
_GZIP_LEVEL = 1  # microscopy gains 3 % from level 6, at a third of the speed
_TOLERANCE = 1e-2  # relative, of two statements of one voxel size


def open_nifti(path: Path, choice: Choice) -> Volume:
    """A NIfTI-1 or NIfTI-2 file; its axes (x, y, z) are those of a (Z, Y, X) volume read backwards.

    Nothing is rotated or flipped. The position is known where the file's axes run along those of space.

    Args:
        path: ``.nii`` or ``.nii.gz``.
        choice: channel is an entry of the fifth axis, time one of the fourth.

    Raises:
        UserError: the file cannot be read, is truncated, or contradicts itself.
    """
    nibabel = optional_package("nibabel", path)
    try:
        image = nibabel.load(path)
        header, content = image.header, image.dataobj
        # longer than 5 axes only where the others have one entry
        *space, times, channels, rest = (*content.shape, 1, 1, 1, 1, 1)[:6]
        stored = header.get_data_dtype()
    except Exception as error:  # a damaged header fails in many ways inside nibabel, none of them its own class
        raise UserError(f"{path}: not a readable NIfTI file ({error}); copy it again") from error
    shape = (space[2], space[1], space[0])
    if min(shape) < 1 or rest > 1 or len(content.shape) < 3:
        raise UserError(f"{path}: shape {content.shape} (x, y, z, …) is not a volume")
    number = choose(path, "channel", choice.channel, channels) * times + choose(path, "time point", choice.time, times)
    plane = shape[1] * shape[2] * stored.itemsize
    first = content.offset + number * shape[0] * plane
    volume: Volume = ContiguousVolume(
        path, shape, stored, range(first, first + shape[0] * plane, plane), packed=path.suffix.lower() == ".gz"
    )
    if (content.slope, content.inter) != (1, 0):
        volume = ScaledVolume(volume, float(content.slope), float(content.inter))
    volume.channels, volume.times = channels, times
    volume.voxel_um, volume.translation_um = _space(path, header)
    volume.attributes = _attributes(header)
    return volume


class ScaledVolume(Volume):
    """The values slope · stored + intercept, in float64 where they are stored so and in float32 otherwise."""

    def __init__(self, stored: Volume, slope: float, intercept: float):
        self.path, self.shape = stored.path, stored.shape
        self.dtype = np.dtype(np.float64 if stored.dtype == np.float64 else np.float32)
        self._stored, self._slope, self._intercept = stored, slope, intercept

    def _read(self, planes: range, rows: slice, columns: slice) -> np.ndarray:
        values = self._stored[planes.start : planes.stop : planes.step, rows, columns]
        return values * self.dtype.type(self._slope) + self.dtype.type(self._intercept)


def _space(path: Path, header: Any) -> tuple[Triple | None, Triple | None]:
    """Voxel size and position (z, y, x) in µm, each None where it is not stated."""
    factor = MICROMETRES.get(header.get_xyzt_units()[0])
    zooms = np.array(header.get_zooms()[:3], float)
    voxel_um = None if factor is None else positive(list(zooms[::-1] * factor))
    if factor is None or voxel_um is None or not (header["sform_code"] > 0 or header["qform_code"] > 0):
        return voxel_um, None
    affine = header.get_best_affine()
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.allclose(lengths, zooms, rtol=_TOLERANCE):
        raise UserError(
            f"{path}: voxel size {zooms.tolist()} by pixdim and {lengths.tolist()} by the affine contradict each other; "
            "correct the header"
        )
    if not np.allclose(affine[:3, :3], np.diag(zooms), atol=_TOLERANCE * zooms.min()):
        return voxel_um, None  # turned or mirrored: no shift along the axes describes it
    return voxel_um, triple(affine[2::-1, 3] * factor)


def _attributes(header: Any) -> dict[str, Any]:
    for extension in header.extensions:
        if extension.get_code() == _COMMENT and header["descrip"].item().startswith(b"IsoScopeXX"):
            try:
                content = extension.get_content()
                found = json.loads(content if isinstance(content, str) else content.rstrip(b"\0").decode())
            except ValueError:
                return {}  # a comment of another program
            return found if isinstance(found, dict) else {}
    return {}


def write_nifti(file: Path, plan: TargetPlan, attributes: Mapping[str, Any], blocks: Iterable[np.ndarray], gzip: bool) -> None:
    """Header and voxels, x fastest: the order of (Z, Y, X). nibabel writes only what is in memory whole.

    NIfTI-2 where an axis is too long for NIfTI-1; the affine has the voxel sizes on its diagonal and the position, in mm. Of a
    gzip file each block is a member; members follow each other, and readers join them. libdeflate is twice as fast as zlib.

    Args:
        attributes: plain JSON about the run, kept in a comment.
        blocks: the voxels in the order of the file.
    """
    import nibabel  # optional; plan_target has asked for it

    shape = plan.shape[::-1]
    header = (nibabel.Nifti2Header if max(shape) > _NIFTI1_LIMIT else nibabel.Nifti1Header)(endianness="<")
    header.set_data_shape(shape)
    header.set_data_dtype(np.dtype(plan.dtype))
    header["magic"] = header.single_magic
    header["descrip"] = b"IsoScopeXX"
    if plan.voxel_um is not None:
        zooms = [size / _UM_PER_MM for size in plan.voxel_um[::-1]]
        header.set_zooms(zooms)
        header.set_xyzt_units("mm")
        if plan.translation_um is not None:
            affine = np.diag([*zooms, 1.0])
            affine[:3, 3] = np.array(plan.translation_um[::-1]) / _UM_PER_MM
            header.set_sform(affine, "scanner")
            header.set_qform(affine, "scanner")
    if attributes:
        text = json.dumps(dict(attributes), ensure_ascii=False).encode()
        header.extensions.append(nibabel.nifti1.Nifti1Extension(_COMMENT, text))
    header["vox_offset"] = header.single_vox_offset + header.extensions.get_sizeondisk()
    content = io.BytesIO()
    header.write_to(content)

    def packed(data: Any) -> Any:
        return imagecodecs.gzip_encode(data, level=_GZIP_LEVEL) if gzip else data

    with file.open("wb") as stream:
        stream.write(packed(content.getvalue()))
        for values in blocks:
            stream.write(packed(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).data))


def open_mrc(path: Path, choice: Choice) -> Volume:
    """An MRC file of one volume, with nothing to choose; voxel size and origin are turned from Å to µm.

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
