"""OME-TIFF written in one pass: tiled, compressed, BigTIFF where needed, with voxel sizes, positions and the run's attributes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from volumes.tiff_voxels import NAMESPACE
from volumes.volume import Volume

CLASSIC_LIMIT = 2**32 - 2**25  # bytes of pixels that leave room for the directories of a TIFF with 32-bit offsets
_TILE = 256
_BUFFER = 2**25  # bytes that are compressed at once
_LEVELS = {"zlib": 4, "zstd": 3}


def write_ome_tiff(
    file: Path,
    channels: Sequence[Volume],
    *,
    channel_names: Sequence[str] | None = None,
    attributes: Mapping[str, Any] | None = None,
    compression: str | None = "zstd",
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write a volume, or several of one shape as its channels; memory does not depend on their size.

    Args:
        file: where to; callers pass a temporary name and rename it.
        channels: the volumes; voxel size and position are those of the first.
        channel_names: one for each; None writes one volume without an axis of channels.
        attributes: plain JSON, kept as key-value pairs in a MapAnnotation.
        compression: ``"zstd"``, ``"zlib"`` or None.
        progress: called with (boxes written, boxes in all).
    """
    first = channels[0]
    depth, height, width = first.shape
    tile = (min(_TILE, 16 * math.ceil(height / 16)), min(_TILE, 16 * math.ceil(width / 16)))
    size = len(channels) * depth * height * width * first.dtype.itemsize
    options: dict[str, Any] = {}
    if compression is not None:
        options = {"compression": compression, "compressionargs": {"level": _LEVELS[compression]}}
        options["predictor"] = first.dtype.kind in "ui"  # of floats few programs know one
    if first.voxel_um is not None:  # for programs that do not read OME-XML
        options |= {"resolution": (1e4 / first.voxel_um[2], 1e4 / first.voxel_um[1]), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(
        file,
        _tiles(channels, tile, progress),
        shape=first.shape if channel_names is None else (len(channels), *first.shape),
        dtype=first.dtype,
        ome=True,
        bigtiff=size >= CLASSIC_LIMIT,
        photometric="minisblack",
        tile=tile,
        buffersize=_BUFFER,
        software="IsoScopeXX",
        metadata=ome_metadata(first, channel_names, attributes or {}),
        **options,
    )


def ome_metadata(first: Volume, channel_names: Sequence[str] | None, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """What tifffile turns into OME-XML; positions are given for every plane, as OME has them."""
    metadata: dict[str, Any] = {"axes": "ZYX" if channel_names is None else "CZYX"}
    if channel_names is not None:
        metadata["Channel"] = {"Name": list(channel_names)}
    for axis, length in zip("ZYX", first.voxel_um or (), strict=False):
        metadata |= {f"PhysicalSize{axis}": length, f"PhysicalSize{axis}Unit": "µm"}
    if first.translation_um is not None:
        number = first.shape[0] * max(len(channel_names or ()), 1)
        z, y, x = first.translation_um
        step = 0.0 if first.voxel_um is None else first.voxel_um[0]
        metadata["Plane"] = {
            "PositionX": [x] * number,
            "PositionY": [y] * number,
            "PositionZ": [z + (k % first.shape[0]) * step for k in range(number)],
            **{f"Position{axis}Unit": ["µm"] * number for axis in "XYZ"},
        }
    if attributes:
        values = {key: json.dumps(value, ensure_ascii=False) for key, value in attributes.items()}
        metadata["MapAnnotation"] = {"Namespace": NAMESPACE, "Value": values}
    return metadata


def _tiles(
    channels: Sequence[Volume], tile: tuple[int, int], progress: Callable[[int, int], None] | None
) -> Iterator[np.ndarray]:
    """Tiles in the order of the file: channel, plane, row, column; those at the borders are filled up with zeros."""
    boxes = list(channels[0].in_plane_order(tile[0]))
    for number, channel in enumerate(channels):
        for done, box in enumerate(boxes):
            band = channel[box]
            for plane in band:
                for y in range(0, plane.shape[0], tile[0]):
                    for x in range(0, plane.shape[1], tile[1]):
                        part = plane[y : y + tile[0], x : x + tile[1]]
                        yield np.pad(part, ((0, tile[0] - part.shape[0]), (0, tile[1] - part.shape[1])))
            if progress is not None:
                progress(number * len(boxes) + done + 1, len(channels) * len(boxes))
