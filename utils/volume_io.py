"""Volumes from and to disc, whatever the file format."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

from utils.errors import UserError
from utils.tiff_reader import TiffVolume
from utils.volume import ArrayVolume, Volume, check_dtype

__all__ = ["ArrayVolume", "Volume", "open_volume", "write_tiff"]

_IMAGEJ_DTYPES = ("uint8", "uint16", "float32")
_CLASSIC_LIMIT = 2**32 - 2**25  # bytes of pixels that leave room for the directories of a TIFF with 32-bit offsets
_PILLOW_DTYPES = {"1": "bool", "L": "uint8", "I;16": "uint16", "I;16L": "uint16", "I;16B": "uint16", "F": "float32"}


def open_volume(path: Path | str, *, channel: int | None = None) -> Volume:
    """Open a volume without reading its values.

    Args:
        path: a TIFF file of one greyscale volume: contiguous, stripped or tiled, any compression that imagecodecs
            knows, ImageJ hyperstack, OME-TIFF, one page per plane; else any multi-frame file that Pillow reads.
        channel: which channel of a multi-channel file, counted from 0.

    Returns:
        Volume of shape (Z, Y, X); memory use does not depend on the size of the file.

    Raises:
        UserError: the file is missing, empty, truncated, unreadable, 2-D, RGB, of an unsupported dtype, a time
            series, or has several channels and none was chosen.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{file}: no such file" if not file.exists() else f"{file}: not a file")
    if file.stat().st_size == 0:
        raise UserError(f"{file}: empty file (0 bytes); copy it again")
    try:
        return TiffVolume(file, channel)
    except UserError:
        raise
    except Exception as error:  # a damaged directory fails in many ways inside the parser
        return _open_with_pillow(file, channel, error)


def _open_with_pillow(path: Path, channel: int | None, reason: Exception) -> Volume:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # Pillow only warns about truncated directories
            volume = PillowVolume(path)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, TypeError, UserWarning) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not a readable image ({reason}); truncated or damaged, copy it again") from reason
    if channel:
        raise UserError(f"{path}: channel {channel} of 1; channels count from 0")
    return volume


class PillowVolume(Volume):
    """A multi-frame greyscale file that only Pillow understands; every frame is one plane."""

    def __init__(self, path: Path):
        self.path = path
        with Image.open(path) as image:
            frames = getattr(image, "n_frames", 1)
            if image.mode not in _PILLOW_DTYPES:
                raise UserError(f"{path}: {image.format} image of mode {image.mode}; save a greyscale stack as TIFF")
            if frames < 2:
                raise UserError(f"{path}: a 2-D image; a volume is a stack of planes (Z, Y, X) in one file")
            self._mode = image.mode
            self.shape = (frames, image.height, image.width)
        self.dtype = check_dtype(path, np.dtype(_PILLOW_DTYPES[self._mode]))
        self.block_rows = self.shape[1]
        self[self.shape[0] - 1 :]  # the last frame is where a truncated file fails

    def _read(self, planes: range, rows: slice, columns: slice) -> np.ndarray:
        out = np.empty((len(planes), rows.stop - rows.start, columns.stop - columns.start), self.dtype)
        with Image.open(self.path) as image:
            for k, z in enumerate(planes):
                out[k] = self._frame(image, z)[rows, columns]
        return out

    def _frame(self, image: Image.Image, z: int) -> np.ndarray:
        try:
            image.seek(z)
            frame = np.asarray(image)
        except (OSError, EOFError, SyntaxError) as error:
            raise UserError(f"{self.path}: frame {z} cannot be read ({error}); the file is damaged, copy it again") from error
        if image.mode != self._mode or frame.shape != self.shape[1:]:
            raise UserError(f"{self.path}: frame {z} ({image.mode}, {frame.shape}) is unlike the first; save it as TIFF")
        return frame


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
    depth, height, width = (int(n) for n in shape)
    dtype = np.dtype(dtype)
    size = depth * height * width * dtype.itemsize
    imagej = depth > 1 and dtype.name in _IMAGEJ_DTYPES and compression is None and size < _CLASSIC_LIMIT
    if file.name.lower().endswith((".ome.tif", ".ome.tiff")):
        imagej = False
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        tifffile.imwrite(
            partial,
            _checked(planes, (depth, height, width), dtype),
            shape=(depth, height, width),
            dtype=dtype,
            photometric="minisblack",
            compression=compression,
            bigtiff=not imagej and size >= _CLASSIC_LIMIT,
            **(_imagej_metadata(voxel_um) if imagej else _ome_metadata(voxel_um)),
        )
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def _checked(planes: np.ndarray | Iterable[np.ndarray], shape: tuple[int, int, int], dtype: np.dtype) -> Iterator[np.ndarray]:
    count = 0
    for plane in planes:
        if plane.shape != shape[1:] or count == shape[0]:
            raise ValueError(f"plane {count} of shape {plane.shape} does not fit a volume of shape {shape}")
        count += 1
        yield np.ascontiguousarray(plane, dtype)
    if count < shape[0]:
        raise ValueError(f"{count} planes for a volume of shape {shape}")


def _imagej_metadata(voxel_um: Sequence[float] | None) -> dict[str, Any]:
    if voxel_um is None:
        return {"imagej": True, "metadata": {"axes": "ZYX"}}
    z, y, x = voxel_um
    return {"imagej": True, "resolution": (1 / x, 1 / y), "metadata": {"axes": "ZYX", "spacing": float(z), "unit": "um"}}


def _ome_metadata(voxel_um: Sequence[float] | None) -> dict[str, Any]:
    metadata: dict[str, Any] = {"axes": "ZYX"}
    for axis, size in zip("ZYX", voxel_um or (), strict=False):
        metadata |= {f"PhysicalSize{axis}": float(size), f"PhysicalSize{axis}Unit": "µm"}
    return {"ome": True, "metadata": metadata}
