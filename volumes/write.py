"""A plain TIFF in one call, as trainings read it.

Outputs that several processes fill, that are larger than memory or that survive being killed: volumes.volume_target.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from utils.files import replaced
from volumes.single_file import CLASSIC_LIMIT, ome_metadata

_IMAGEJ_DTYPES = ("uint8", "uint16", "float32")


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
