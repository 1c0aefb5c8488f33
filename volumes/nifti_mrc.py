"""NIfTI (writing/nifti.py writes it) and MRC2014 (CCP4): the extra ``formats`` knows the headers, voxels are read by place."""

import gzip
import io
import json
import logging
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.packages import optional_package
from volumes.contiguous import MOST_PACKED, flat_volume, is_packed
from volumes.stated import Choice, Layout, length_um, micrometres
from volumes.volume import Volume, all_three, reading

log = logging.getLogger("isoscope")

COMMENT = 6  # code of an extension that holds text
_UNITS = {1: "m", 2: "mm", 3: "µm"}  # by code
_MOST_EXTENSIONS = 2**24  # bytes before the voxels of a packed file
_MRC_HEADER = 1024  # bytes
_IMOD = 1146047817  # stamp of IMOD's headers; its flags follow: 1 signed bytes, 4 origin as in MRC2014
_TOLERANCE = 1e-2  # relative, of two statements of one voxel size


def open_nifti(path: Path, choice: Choice) -> Volume:
    """A NIfTI-1 or NIfTI-2 file, packed or not; its axes (x, y, z, time, channel) are those of a volume read backwards.

    Nothing is rotated or flipped: what turns the axes to those of the scanner is kept as ``Volume.space``, and the position is
    counted along the file's own axes.

    Raises:
        UserError: the file cannot be read, is truncated, or holds no volume.
    """
    nibabel = optional_package("nibabel", path)
    nibabel.imageglobals.logger.handlers.clear()  # its own, which writes what a file says to the terminal as it is
    packed = is_packed(path)
    with reading(path, "not a readable NIfTI file"):
        with gzip.open(path) if packed else path.open("rb") as file:
            large = 540 in struct.unpack("<i", file.peek(4)[:4]) + struct.unpack(">i", file.peek(4)[:4])
            kind = nibabel.Nifti2Header if large else nibabel.Nifti1Header
            header = kind.from_fileobj(_before_voxels(file, kind) if packed else file)
        sizes, stored, first = header.get_data_shape(), header.get_data_dtype(), header.get_data_offset()
        slope, intercept = header.get_slope_inter()
    names = [*"xyztc", *("another axis" for _ in sizes[5:])][: len(sizes)]
    layout = Layout(path, names[::-1], sizes[::-1], choice)
    scale = (1, 0) if slope is None else (float(slope), float(intercept))
    volume = flat_volume(path, layout, stored, first, packed, scale)
    with reading(path, "its header cannot be followed", "correct it"):
        _place(volume, header)
    volume.attributes = _attributes(header)
    return volume


def _before_voxels(file: Any, kind: Any) -> io.BytesIO:
    """Header and extensions of a packed file; a ValueError: they would unpack to more than any program writes there."""
    fixed = file.read(kind.sizeof_hdr)
    start = max(kind(fixed, check=False).get_data_offset(), kind.sizeof_hdr + 4)
    if start > _MOST_EXTENSIONS:
        raise ValueError(f"{start} bytes of header and extensions, of which {_MOST_EXTENSIONS} are the most")
    return io.BytesIO(fixed + file.read(start - len(fixed)))


def _place(volume: Volume, header: Any) -> None:
    """Voxel size, position (µm) and directions of the axes; where pixdim and affine contradict each other, that is the doubt."""
    unit = _UNITS.get(int(header["xyzt_units"]) & 7)
    if unit is None:
        log.warning("%s: states no unit of length; it is read as mm, as NIfTI programs do", volume.path)
    factor = micrometres(unit or "mm") or 1.0
    zooms = np.array(header.get_zooms()[:3], float)
    volume.voxel_um = all_three([length_um(volume.path, "pixdim", float(size * factor), "µm", 0) for size in zooms[::-1]])
    affines = {"sform": header.get_sform(coded=True), "qform": header.get_qform(coded=True)}
    forms = {name: (np.diag([factor, factor, factor, 1]) @ affine, int(code)) for name, (affine, code) in affines.items() if code}
    if volume.voxel_um is None or not forms:
        return
    affine = next(iter(forms.values()))[0]
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.allclose(lengths, zooms * factor, rtol=_TOLERANCE):
        both = [[float(f"{size:.6g}") for size in sizes] for sizes in (zooms * factor, lengths)]
        pair = f"{both[0]} µm (x, y, z) by pixdim and {both[1]} by the affine"
        volume.voxel_um, volume.doubt = None, f"voxel sizes of {pair} contradict each other; correct the header"
        return
    oriented(volume, forms)


def oriented(volume: Volume, forms: Mapping[str, tuple[NDArray[np.float64], int]]) -> None:
    """Keeps how a volume of known voxel size lies in a scanner's space: position along its own axes, and its directions.

    Args:
        forms: by ``sform`` or ``qform``, the preferred one first: affine (4, 4) from voxels (x, y, z) to µm (right, anterior,
            superior), and its code.
    """
    affine = next(iter(forms.values()))[0]
    along = np.linalg.solve(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0), affine[:3, 3])[::-1]
    volume.translation_um = all_three([length_um(volume.path, "offset", float(place), "µm") for place in along])
    if volume.translation_um is None or volume.voxel_um is None:
        return
    stated = {name: {"code": code, "affine_um": affine[:3].tolist()} for name, (affine, code) in forms.items()}
    volume.space = {**stated, "voxel_um": list(volume.voxel_um), "translation_um": list(volume.translation_um)}


def _attributes(header: Any) -> dict[str, Any]:
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
    """An MRC file of one volume, packed or not; voxel size and origin are turned from Å to µm, its axes may have any order.

    Raises:
        UserError: the file cannot be read, is truncated, or holds no single volume.
    """
    mrcfile = optional_package("mrcfile", path)
    with reading(path, "not a readable MRC file", "copy it again, or save it as mode 0, 1, 2 or 6"):
        with gzip.open(path) if is_packed(path) else path.open("rb") as file:
            head = file.read(_MRC_HEADER)
        extra = struct.unpack(">i" if head[212:213] == b"\x11" else "<i", head[92:96])[0]
        if not 0 <= extra <= MOST_PACKED * path.stat().st_size:  # mrcfile would make room for it
            raise ValueError(f"an extended header of {extra} bytes")
        said = warnings.catch_warnings(record=True, action="always")
        with said as remarks, mrcfile.open(path, header_only=True, permissive=True) as file:
            header, voxel = file.header.copy(), file.voxel_size
            mode = int(header.mode)
            if mode == 101:
                raise ValueError("mode 101, 4 bits per voxel: newstack -mode 0 turns it to bytes")
            stored = np.dtype(mrcfile.utils.data_dtype_from_header(header))
            sizes = tuple(int(size) for size in mrcfile.utils.data_shape_from_header(header))
        for warning in remarks:
            log.warning("%s: %s", path, " ".join(str(warning.message).split()))
        stamp, flags = struct.unpack(f"{stored.byteorder.replace('|', '<')}2i", header.tobytes()[152:160])
    by_imod = stamp == _IMOD
    if by_imod and mode == 0 and not flags & 1:
        stored = np.dtype(np.uint8)
    order = tuple(int(header[name]) for name in ("maps", "mapr", "mapc"))
    if order == (0, 0, 0):
        order = (3, 2, 1)
    names = ["xyz"[n - 1] if n in (1, 2, 3) else str(n) for n in order]
    layout = Layout(path, [*["volume", "section"][: len(sizes) - 3], *names][-len(sizes) :], sizes, choice)
    volume = flat_volume(path, layout, stored, header.nbytes + int(header["nsymbt"]), is_packed(path))
    volume.voxel_um = all_three([length_um(path, "cell", float(voxel[a]) or None, "Å", 0) for a in "zyx"])
    sign = -1 if by_imod and not flags & 4 else 1  # IMOD states where the origin lies, others where the first voxel does
    origin = [sign * float(header["origin"][axis]) for axis in "zyx"]
    if volume.voxel_um and any(origin):  # zeros are what programs write that know no origin
        volume.translation_um = all_three([length_um(path, "origin", place, "Å") for place in origin])
    return volume
