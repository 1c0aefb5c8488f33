"""Whole volumes to disc in one call.

Outputs that several processes fill, that are larger than memory or that survive being killed: volumes.volume_target.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from utils.files import replaced
from volumes.output_files import refuse_existing
from volumes.single_file import CLASSIC_LIMIT, ome_metadata, write_single_file
from volumes.target_plan import plan_target
from volumes.volume import ArrayVolume, Volume
from volumes.volume_target import create_target

_IMAGEJ_DTYPES = ("uint8", "uint16", "float32")


def write_volume(
    output: Path | str,
    source: np.ndarray | Volume | Sequence[Volume],
    *,
    voxel_um: Sequence[float] | None = None,
    translation_um: Sequence[float] | None = None,
    channel_names: Sequence[str] | None = None,
    attributes: Mapping[str, Any] | None = None,
    compression: str | None = "zstd",
    overwrite: bool = False,
) -> Path:
    """Write a whole volume from one process; memory does not depend on its size.

    Args:
        output: ``.zarr``, ``.ome.tif``, ``.ome.tiff``, ``.tif``, ``.tiff``, ``.nii`` or ``.nii.gz``.
        source: array (Z, Y, X), a volume, or one volume for each of ``channel_names``.
        voxel_um: voxel size (z, y, x) in µm; by default the source's.
        translation_um: position (z, y, x) in µm of the centre of the first voxel; by default the source's.
        channel_names: names of the channels; None writes no axis of channels.
        attributes: plain JSON about the run, kept in the file.
        compression: of a TIFF: ``"zstd"``, ``"zlib"`` or None.
        overwrite: replace an existing output, once this one is whole.

    Returns:
        The output.

    Raises:
        UserError: the output exists, cannot be written or cannot hold the volume.
        ValueError: the sources differ in shape or dtype, or do not match the names.
    """
    whole = ArrayVolume(source) if isinstance(source, np.ndarray) else source
    sources = [whole] if isinstance(whole, Volume) else list(whole)
    if len(sources) != len(channel_names or "1") or len({(s.shape, s.dtype) for s in sources}) > 1:
        raise ValueError(f"{len(sources)} sources for channel_names={channel_names}: one each, of one shape and dtype")
    first, output = sources[0], Path(output)
    refuse_existing(output, overwrite)
    plan = plan_target(
        output,
        shape=first.shape,
        dtype=first.dtype,
        voxel_um=first.voxel_um if voxel_um is None else voxel_um,
        translation_um=first.translation_um if translation_um is None else translation_um,
        channel_names=channel_names,
        attributes=attributes,
        compression=compression,
    )
    if plan.kind != "zarr":
        write_single_file(output, plan, sources, plan.attributes, show=False)
        return output
    target = create_target(output, plan, overwrite=overwrite)
    for box in target.boxes:  # all of them: what an earlier call left may stem from other values
        target.write_region(box, first[box] if channel_names is None else np.stack([source[box] for source in sources]))
    return target.finish(show=False)


def write_tiff(
    path: Path | str,
    planes: np.ndarray | Iterable[np.ndarray],
    *,
    shape: Sequence[int] | None = None,
    dtype: Any = None,
    voxel_um: Sequence[float] | None = None,
    compression: str | None = None,
) -> None:
    """Write a volume as a TIFF file that appears only when it is complete.

    An ImageJ hyperstack where ImageJ can hold it (uint8, uint16, float32; two planes or more; below 4 GB; uncompressed),
    else, and for names ending in ``.ome.tif``, an OME-TIFF (BigTIFF above 4 GB).

    Args:
        path: the file; an existing one is replaced.
        planes: array (Z, Y, X), or an iterable of planes (Y, X) that is written as it comes, with ``shape`` and ``dtype``.
        shape: (Z, Y, X) of an iterable.
        dtype: dtype of an iterable.
        voxel_um: voxel size (z, y, x) in µm.
        compression: as in tifffile, for example ``"zlib"`` or ``"zstd"``.

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
    kind, large = np.dtype(dtype), math.prod(shape) * np.dtype(dtype).itemsize >= CLASSIC_LIMIT
    plain = not file.name.lower().endswith((".ome.tif", ".ome.tiff")) and compression is None
    if plain and shape[0] > 1 and kind.name in _IMAGEJ_DTYPES and not large:
        described: dict[str, Any] = {"imagej": True, "metadata": {"axes": "ZYX"}}
        if voxel_um is not None:
            described["resolution"] = (1 / voxel_um[2], 1 / voxel_um[1])
            described["metadata"] |= {"spacing": float(voxel_um[0]), "unit": "um"}
    else:
        described = {"ome": True, "metadata": ome_metadata(voxel_um), "bigtiff": large}

    def checked() -> Iterator[np.ndarray]:
        count = 0
        for plane in planes:
            if plane.shape != tuple(shape[1:]) or count == shape[0]:
                raise ValueError(f"plane {count} of shape {plane.shape} does not fit a volume of shape {tuple(shape)}")
            count += 1
            yield np.ascontiguousarray(plane, kind)
        if count < shape[0]:
            raise ValueError(f"{count} planes for a volume of shape {tuple(shape)}")

    form = {"shape": tuple(shape), "dtype": kind, "photometric": "minisblack", "compression": compression}
    with replaced(file) as partial:
        tifffile.imwrite(partial, checked(), **form, **described)
