"""A volume into one file in one pass, at constant memory: a TIFF as trainings read it, or an output as OME-TIFF or NIfTI.

Outputs that several processes fill, that are larger than memory or that survive being killed: writing.target.
"""

import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from tqdm import tqdm

from utils.boxes import boxes
from utils.errors import printable
from utils.files import replaced, utf8
from volumes.tiff_reader import NAMESPACE
from volumes.volume import Look, Volume
from writing.nifti import write_nifti
from writing.target_plan import TargetPlan

log = logging.getLogger("isoscope")

_IMAGEJ_DTYPES = ("uint8", "uint16", "float32")
_RATIONAL = 2**32 - 1  # the largest number in a tag of TIFF; 1 / it is the smallest
_CENTIMETRE = 1e4  # µm
_CLASSIC_LIMIT = 2**32 - 2**25  # bytes of pixels that leave room for the directories of a TIFF with 32-bit offsets
_TILE = 256
_BUFFER = 2**25  # bytes that are compressed at once
_LEVELS = {"zlib": 4, "zstd": 3}
_MEMBER = 2**22  # voxels of a NIfTI file that are compressed at once

Blocks = Iterator[np.ndarray]


def write_tiff(
    path: Path | str,
    planes: np.ndarray | Iterable[np.ndarray],
    *,
    shape: Sequence[int] | None = None,
    dtype: Any = None,
    voxel_um: Sequence[float] | None = None,
) -> None:
    """Write a volume as a TIFF file that appears only when it is complete.

    An ImageJ hyperstack where ImageJ can hold it (uint8, uint16, float32; two planes and columns or more; below 4 GB; sizes of
    pixels that its tags can hold), else, and for names ending in ``.ome.tif``, an OME-TIFF (BigTIFF above 4 GB).

    Args:
        path: the file; an existing one is replaced.
        planes: array (Z, Y, X), or an iterable of planes (Y, X) that is written as it comes, with ``shape`` and ``dtype``.
        shape: (Z, Y, X) of an iterable.
        dtype: dtype of an iterable.
        voxel_um: voxel size (z, y, x) in µm.

    Raises:
        ValueError: shape and planes disagree.
    """
    file = Path(path)
    if isinstance(planes, np.ndarray):
        shape, dtype = planes.shape, planes.dtype
    if shape is None or dtype is None:
        raise ValueError("planes that are not an array need shape=(Z, Y, X) and dtype")
    if len(shape) != 3 or 0 in shape:
        raise ValueError(f"shape={tuple(shape)} must be (Z, Y, X) without zeros")
    kind, large = np.dtype(dtype), math.prod(shape) * np.dtype(dtype).itemsize >= _CLASSIC_LIMIT
    named, held = file.name.lower().endswith((".ome.tif", ".ome.tiff")), kind.name in _IMAGEJ_DTYPES and not large
    resolution = _resolution(voxel_um or (1.0, 1.0, 1.0), 1.0)
    if held and not named and resolution and shape[0] > 1 and shape[2] > 1:  # a single column is taken for samples by tifffile
        described: dict[str, Any] = {"imagej": True, "metadata": {"axes": "ZYX"}}
        if voxel_um is not None:
            described["resolution"] = resolution
            described["metadata"] |= {"spacing": float(voxel_um[0]), "unit": "um"}
    else:
        described = {"ome": True, "metadata": _ome_metadata(voxel_um), "bigtiff": large}

    def checked() -> Iterator[np.ndarray]:
        count = 0
        for plane in planes:
            if plane.shape != tuple(shape[1:]) or count == shape[0]:
                raise ValueError(f"plane {count} of shape {plane.shape} does not fit a volume of shape {tuple(shape)}")
            count += 1
            yield np.ascontiguousarray(plane, kind)
        if count < shape[0]:
            raise ValueError(f"{count} planes for a volume of shape {tuple(shape)}")

    with replaced(file) as partial:
        tifffile.imwrite(partial, checked(), shape=tuple(shape), dtype=kind, photometric="minisblack", **described)


def write_single_file(output: Path, plan: TargetPlan, channels: Sequence[Volume], attributes: Mapping[str, Any]) -> None:
    """Stream a volume, or several as channels, into a file; an existing one is replaced.

    Args:
        output: a TIFF (tiled, BigTIFF where needed) or NIfTI file.
        plan: what it is to be.
        channels: the volumes, of the plan's shape and dtype; one for a NIfTI file.
        attributes: plain JSON about the run: in a MapAnnotation of a TIFF, in a comment of a NIfTI file.
    """
    _, height, width = plan.shape
    rows, most = (1, _MEMBER) if plan.kind == "nifti" else (_TILE, 2**24)  # of a band, a multiple; voxels of a block
    total = len(channels) * math.prod(plan.shape)
    with replaced(output) as file, tqdm(total=total, desc=printable(output.name), unit="voxel", unit_scale=True) as bar:

        def blocks() -> Blocks:
            """Plane after plane, each from the top: whole planes, else bands of rows."""
            whole = most // (height * width)
            for volume in channels:
                planes = max(whole // volume.block_planes * volume.block_planes, 1)
                for box in boxes(plan.shape, (planes, height if whole else rows * max(1, most // (width * rows)), width)):
                    values = volume[box]
                    bar.update(values.size)  # before: tifffile does not ask for more than it needs
                    yield values

        if plan.kind == "tiff" and plan.voxel_um is not None and _resolution(plan.voxel_um, _CENTIMETRE) is None:
            log.warning("%s: its voxel size is in its OME metadata only: %s µm fit no other tag", output, plan.voxel_um)
        if plan.kind == "nifti":
            write_nifti(file, plan, attributes, blocks(), zipped=output.suffix.lower() == ".gz")
        else:
            _write_tiles(file, plan, attributes, blocks())


def _write_tiles(file: Path, plan: TargetPlan, attributes: Mapping[str, Any], blocks: Blocks) -> None:
    depth, height, width = plan.shape
    lead, dtype = () if plan.channel_names is None else (len(plan.channel_names),), np.dtype(plan.dtype)
    tile = (min(_TILE, 16 * math.ceil(height / 16)), min(_TILE, 16 * math.ceil(width / 16)))
    options: dict[str, Any] = {}
    if plan.compression is not None:
        options = {"compression": plan.compression, "compressionargs": {"level": _LEVELS[plan.compression]}}
        options["predictor"] = dtype.kind in "ui"  # of floats few programs know one
    if plan.voxel_um is not None:  # for programs that do not read OME-XML
        options |= {"resolution": _resolution(plan.voxel_um, _CENTIMETRE), "resolutionunit": "CENTIMETER"}

    def tiles() -> Blocks:
        """In the order of the file: channel, plane, row, column; those at the borders are filled up with zeros."""
        for plane in (plane for block in blocks for plane in block):
            for y, x in product(range(0, plane.shape[0], tile[0]), range(0, width, tile[1])):
                part = plane[y : y + tile[0], x : x + tile[1]]
                yield np.pad(part, ((0, tile[0] - part.shape[0]), (0, tile[1] - part.shape[1])))

    tifffile.imwrite(
        file,
        tiles(),
        shape=(*lead, *plan.shape),
        dtype=dtype,
        ome=True,
        bigtiff=math.prod((*lead, *plan.shape)) * dtype.itemsize >= _CLASSIC_LIMIT,
        photometric="minisblack",
        tile=tile,
        buffersize=_BUFFER,
        software="IsoScopeXX",
        metadata=_ome_metadata(plan.voxel_um, plan.translation_um, depth, plan.channel_names, attributes, plan.channel_looks),
        **options,
    )


def _resolution(voxel_um: Sequence[float], unit_um: float) -> tuple[float, float] | None:
    """Pixels (x, y) per unit of so many µm; None where a tag of TIFF, a quotient of 32-bit numbers, cannot hold them."""
    x, y = (unit_um / voxel_um[axis] for axis in (2, 1))
    return (x, y) if 1 / _RATIONAL <= min(x, y) <= max(x, y) <= _RATIONAL else None


def _ome_metadata(
    voxel_um: Sequence[float] | None,
    translation_um: Sequence[float] | None = None,
    depth: int = 0,
    channel_names: Sequence[str] | None = None,
    attributes: Mapping[str, Any] | None = None,
    channel_looks: Sequence[Look] | None = None,
) -> dict[str, Any]:
    """What tifffile turns into OME-XML; positions are given for every plane, as OME has them."""
    metadata: dict[str, Any] = {"axes": "ZYX" if channel_names is None else "CZYX"}
    if channel_names is not None:
        metadata["Channel"] = {"Name": list(channel_names)}
        if channel_looks and all(colour for colour, _ in channel_looks):
            rgba = [bytes.fromhex(f"{colour}FF") for colour, _ in channel_looks]
            metadata["Channel"]["Color"] = [int.from_bytes(value, "big", signed=True) for value in rgba]
    for axis, length in zip("ZYX", voxel_um or (), strict=False):
        metadata |= {f"PhysicalSize{axis}": float(length), f"PhysicalSize{axis}Unit": "µm"}
    if translation_um is not None:
        number = depth * max(len(channel_names or ()), 1)
        z, y, x = translation_um
        step = 0.0 if voxel_um is None else voxel_um[0]
        metadata["Plane"] = {
            "PositionX": [x] * number,
            "PositionY": [y] * number,
            "PositionZ": [z + (k % depth) * step for k in range(number)],
            **{f"Position{axis}Unit": ["µm"] * number for axis in "XYZ"},
        }
    if attributes:
        values = {key: utf8(json.dumps(value, ensure_ascii=False)).decode() for key, value in attributes.items()}
        metadata["MapAnnotation"] = {"Namespace": NAMESPACE, "Value": values}
    return metadata
