"""A volume into one file, OME-TIFF or NIfTI, in one pass; memory does not depend on its size."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from tqdm import tqdm

from utils.files import replaced
from volumes.nifti import COMMENT, UM_PER_MM
from volumes.optional_package import optional_package
from volumes.output_files import output_format
from volumes.tiff_voxels import NAMESPACE
from volumes.volume import Volume

CLASSIC_LIMIT = 2**32 - 2**25  # bytes of pixels that leave room for the directories of a TIFF with 32-bit offsets
_TILE = 256
_BUFFER = 2**25  # bytes that are compressed at once
_LEVELS = {"zlib": 4, "zstd": 3}
_NIFTI1_LIMIT = 2**15 - 1  # voxels along an axis
_GZIP_LEVEL = 1  # microscopy gains 3 % from level 6, at a third of the speed
_MEMBER = 2**22  # voxels that are compressed at once

Blocks = Iterator[np.ndarray]


def write_single_file(
    output: Path,
    channels: Sequence[Volume],
    *,
    channel_names: Sequence[str] | None,
    attributes: Mapping[str, Any],
    compression: str | None,
    show: bool,
) -> None:
    """Stream a volume, or several as channels, into a file; an existing one is replaced.

    Args:
        output: a TIFF (tiled, BigTIFF where needed) or NIfTI file.
        channels: volumes of one shape and dtype, one for a NIfTI file; voxel size and position are those of the first.
        channel_names: one for each; None for a volume without an axis of channels.
        attributes: plain JSON about the run: in a MapAnnotation of a TIFF, in a comment of a NIfTI file.
        compression: of a TIFF: ``"zstd"``, ``"zlib"`` or None.
        show: a progress bar.
    """
    first = channels[0]
    voxels = len(channels) * math.prod(first.shape)
    with replaced(output) as file, tqdm(total=voxels, desc=output.name, unit="voxel", unit_scale=True, disable=not show) as bar:

        def blocks(volume: Volume, **size: int) -> Blocks:
            for box in volume.in_plane_order(**size):
                values = volume[box]
                bar.update(values.size)  # before: tifffile does not ask for more than it needs
                yield values

        if output_format(output) == "nifti":
            gzip = output.suffix.lower() == ".gz"
            _write_nifti(file, _nifti_header(first, attributes), blocks(first, voxels=_MEMBER), gzip)
        else:
            _write_tiles(file, channels, channel_names, attributes, compression, blocks)


def _write_tiles(
    file: Path,
    channels: Sequence[Volume],
    channel_names: Sequence[str] | None,
    attributes: Mapping[str, Any],
    compression: str | None,
    blocks: Callable[..., Blocks],
) -> None:
    first = channels[0]
    tile = (min(_TILE, 16 * math.ceil(first.shape[1] / 16)), min(_TILE, 16 * math.ceil(first.shape[2] / 16)))
    options: dict[str, Any] = {}
    if compression is not None:
        options = {"compression": compression, "compressionargs": {"level": _LEVELS[compression]}}
        options["predictor"] = first.dtype.kind in "ui"  # of floats few programs know one
    if first.voxel_um is not None:  # for programs that do not read OME-XML
        options |= {"resolution": (1e4 / first.voxel_um[2], 1e4 / first.voxel_um[1]), "resolutionunit": "CENTIMETER"}

    def tiles() -> Iterator[np.ndarray]:
        """In the order of the file: channel, plane, row, column; those at the borders are filled up with zeros."""
        for channel in channels:
            for band in blocks(channel, rows=tile[0]):
                for plane in band:
                    for y in range(0, plane.shape[0], tile[0]):
                        for x in range(0, plane.shape[1], tile[1]):
                            part = plane[y : y + tile[0], x : x + tile[1]]
                            yield np.pad(part, ((0, tile[0] - part.shape[0]), (0, tile[1] - part.shape[1])))

    tifffile.imwrite(
        file,
        tiles(),
        shape=first.shape if channel_names is None else (len(channels), *first.shape),
        dtype=first.dtype,
        ome=True,
        bigtiff=len(channels) * math.prod(first.shape) * first.dtype.itemsize >= CLASSIC_LIMIT,
        photometric="minisblack",
        tile=tile,
        buffersize=_BUFFER,
        software="IsoScopeXX",
        metadata=ome_metadata(first.voxel_um, first.translation_um, first.shape[0], channel_names, attributes),
        **options,
    )


def ome_metadata(
    voxel_um: Sequence[float] | None,
    translation_um: Sequence[float] | None = None,
    depth: int = 0,
    channel_names: Sequence[str] | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """What tifffile turns into OME-XML; positions are given for every plane, as OME has them."""
    metadata: dict[str, Any] = {"axes": "ZYX" if channel_names is None else "CZYX"}
    if channel_names is not None:
        metadata["Channel"] = {"Name": list(channel_names)}
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
        values = {key: json.dumps(value, ensure_ascii=False) for key, value in attributes.items()}
        metadata["MapAnnotation"] = {"Namespace": NAMESPACE, "Value": values}
    return metadata


def _write_nifti(file: Path, header: bytes, blocks: Blocks, gzip: bool) -> None:
    """Header and voxels, x fastest: the order of (Z, Y, X). nibabel writes only what is in memory whole.

    Of a gzip file each block is a member; members follow each other, and readers join them. libdeflate is twice as fast as zlib.
    """

    def packed(data: Any) -> Any:
        return imagecodecs.gzip_encode(data, level=_GZIP_LEVEL) if gzip else data

    with file.open("wb") as stream:
        stream.write(packed(header))
        for values in blocks:
            stream.write(packed(np.ascontiguousarray(values, values.dtype.newbyteorder("<")).data))


def _nifti_header(volume: Volume, attributes: Mapping[str, Any]) -> bytes:
    """NIfTI-2 where an axis is too long for NIfTI-1; the affine has the voxel sizes on its diagonal and the position, in mm."""
    nibabel = optional_package("nibabel", volume.path)
    shape = volume.shape[::-1]
    header = (nibabel.Nifti2Header if max(shape) > _NIFTI1_LIMIT else nibabel.Nifti1Header)(endianness="<")
    header.set_data_shape(shape)
    header.set_data_dtype(volume.dtype)
    header["magic"] = header.single_magic
    header["descrip"] = b"IsoScopeXX"
    if volume.voxel_um is not None:
        zooms = [size / UM_PER_MM for size in volume.voxel_um[::-1]]
        header.set_zooms(zooms)
        header.set_xyzt_units("mm")
        if volume.translation_um is not None:
            affine = np.diag([*zooms, 1.0])
            affine[:3, 3] = np.array(volume.translation_um[::-1]) / UM_PER_MM
            header.set_sform(affine, "scanner")
            header.set_qform(affine, "scanner")
    if attributes:
        text = json.dumps(dict(attributes), ensure_ascii=False).encode()
        header.extensions.append(nibabel.nifti1.Nifti1Extension(COMMENT, text))
    header["vox_offset"] = header.single_vox_offset + header.extensions.get_sizeondisk()
    content = io.BytesIO()
    header.write_to(content)
    return content.getvalue()
