"""NRRD, as ITK, 3D Slicer and teem write it: a text header, then the values as they are or packed by gzip.

Format: http://teem.sourceforge.net/nrrd/format.html
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from utils.errors import UserError
from volumes.contiguous import flat_volume
from volumes.nifti_mrc import oriented
from volumes.stated import AXES, Choice, Layout, length_um, micrometres
from volumes.volume import Volume, all_three, reading

log = logging.getLogger("isoscope")

_LONGEST_HEADER = 2**20  # bytes
_TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **{"float": "f4", "double": "f8"},
}
_SPACES = {"ras": (1, 1, 1), "las": (-1, 1, 1), "lps": (-1, -1, 1)}  # signs that make right, anterior, superior of it
_KINDS = {"domain": "", "space": "", "time": "t", "list": "c", "???": "", "none": ""}  # others are channels


def open_nrrd(path: Path, choice: Choice) -> Volume:
    """A NRRD file with its values in it; its axes (x, y, z, or as they are labelled) are those of a volume read backwards.

    Nothing is rotated or flipped, as for NIfTI.

    Raises:
        UserError: the file cannot be read, is truncated, holds no volume, or its values lie in another file.
    """
    with reading(path, "not a readable NRRD file"), path.open("rb") as file:
        head, found, _ = file.read(_LONGEST_HEADER).partition(b"\n\n")
        windows = head.find(b"\r\n\r\n")
        head = head if windows < 0 else head[:windows]
        start = len(head) + (2 if windows < 0 else 4)
        stated = _fields(head.decode("ascii", "replace"))
        if {"data file", "datafile"} & stated.keys():
            raise UserError(f"{path}: its values lie in another file; 3D Slicer or SimpleITK writes them into one (.nrrd)")
        if not found and windows < 0:
            raise ValueError("its header has no end")
        kind, encoding = stated["type"].lower(), stated["encoding"].lower()
        if kind not in _TYPES:
            raise UserError(f"{path}: values of type {kind} are not supported; save it as uint8, uint16 or float32")
        if encoding not in ("raw", "gzip", "gz") or any(int(stated.get(f"{what} skip", 0)) for what in ("line", "byte")):
            raise UserError(f"{path}: its values are encoded as {encoding}, or behind others; save it raw or packed by gzip")
        stored = np.dtype(_TYPES[kind]).newbyteorder(">" if stated.get("endian", "little").lower() == "big" else "<")
        sizes = [int(size) for size in stated["sizes"].split()]
        names = _names(stated, len(sizes))
        directions = _vectors(stated.get("space directions", ""))
    layout, packed = Layout(path, names[::-1], sizes[::-1], choice), encoding != "raw"
    volume = flat_volume(path, layout, stored, 0 if packed else start, packed, behind=start)
    with reading(path, "its header cannot be followed", "correct it"):
        _place(volume, stated, names, directions)
    return volume


def _fields(head: str) -> dict[str, str]:
    """The fields of a header by name; comments and what other programs note (``key:=value``) are passed over."""
    lines = (re.match(r"([^#:][^:]*): ?(.*)", line.strip()) for line in head.splitlines()[1:])
    return {line[1].strip().lower(): line[2].strip() for line in lines if line}


def _words(text: str) -> list[str]:
    """Words, or what stands in quotation marks."""
    return [quoted or plain for quoted, plain in re.findall(r'"([^"]*)"|(\S+)', text)]


def _vectors(text: str) -> list[list[float] | None]:
    return [
        None if one == "none" else [float(number) for number in one.strip("()").split(",")]
        for one in re.findall(r"none|\([^)]*\)", text)
    ]


def _names(stated: Mapping[str, str], count: int) -> list[str]:
    """Names of the axes, the fastest first: as labelled, else x, y and z for those of space."""
    labels = _words(stated.get("labels", ""))
    if len(labels) == count and {"x", "y", "z"} <= {AXES.get(label.lower()) for label in labels}:
        return labels
    kinds = [kind.lower() for kind in _words(stated.get("kinds", ""))]
    kinds = kinds if len(kinds) == count else ["domain"] * count
    spatial, names = iter("xyz"), []
    for kind in kinds:
        letter = _KINDS.get(kind, "c")
        names.append(letter or next(spatial, "another axis"))
    return names


def _place(volume: Volume, stated: Mapping[str, str], names: list[str], directions: list[list[float] | None]) -> None:
    """Voxel size, position (µm) and directions of the axes."""
    path, places = volume.path, [[AXES.get(name.lower()) for name in names].index(axis) for axis in "xyz"]
    units = _words(stated.get("space units", stated.get("units", "")))
    space = "".join(word[:1] for word in stated.get("space", "").lower().split("-"))[:3]
    if not units and (directions or space):
        log.warning("%s: states no unit of length; it is read as mm, as ITK's programs do", path)
        units = ["mm"] * 3
    unit = units[0] if units else None
    if not directions:
        spacings = stated.get("spacings", "").split()
        sizes = [spacings[place] if len(spacings) == len(names) else None for place in places]
        volume.voxel_um = all_three([length_um(path, "spacings", size, unit, 0) for size in sizes[::-1]])
        return
    factor, vectors = micrometres(unit), [directions[place] for place in places]
    if factor is None or any(vector is None or len(vector) != 3 for vector in vectors):
        return
    affine = np.eye(4)
    affine[:3, :3] = np.array(vectors, float).T
    affine[:3, 3] = (_vectors(stated.get("space origin", "")) or [[0.0] * 3])[0]
    affine[:3] *= factor * np.array(_SPACES.get(space, (1, 1, 1)))[:, None]
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    volume.voxel_um = all_three([length_um(path, "space directions", float(size), "µm", 0) for size in lengths[::-1]])
    if volume.voxel_um is not None and space in _SPACES and "space origin" in stated:
        oriented(volume, {"sform": (affine, 1)})
