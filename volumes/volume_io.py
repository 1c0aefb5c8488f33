"""Volumes from and to disc, whatever the file format: the public face of everything that reads and writes volumes.

Arrays are (Z, Y, X) = (planes, rows, columns); lengths are µm in the order (z, y, x); a position is that of the centre of the
first voxel.

Reading: :func:`open_volume` gives a lazy :class:`Volume` of a TIFF of any layout, a folder of 2-D slices, an OME-Zarr image or
Zarr array, NIfTI, MRC, CZI, LIF or ND2; :func:`expand_inputs` turns files and folders named by a user into the volumes they
stand for.

Writing: :func:`plan_target` says what an output is to be (OME-Zarr, OME-TIFF or NIfTI, by its suffix), and :func:`create_target`
begins it: several processes fill it shard by shard, and it survives being killed. :func:`write_volume` writes a whole volume in
one call, and :func:`write_tiff` a plain TIFF.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

from utils.errors import UserError
from utils.files import replaced
from volumes.inputs import expand_inputs
from volumes.microscope_formats import MICROSCOPES
from volumes.ome_tiff_writer import CLASSIC_LIMIT
from volumes.optional_formats import MRC, NIFTI, open_mrc, open_nifti
from volumes.output_files import estimate_bytes, free_space, output_kind, partial_path, refuse_existing
from volumes.single_file import write_single_file
from volumes.slice_folder import SliceFolder
from volumes.target_plan import plan_target
from volumes.tiff_reader import TiffVolume
from volumes.volume import ArrayVolume, Volume, check_dtype, choose, triple
from volumes.volume_target import VolumeTarget, create_target
from volumes.zarr_volume import ZarrVolume, is_zarr

__all__ = [
    "ArrayVolume",
    "Volume",
    "VolumeTarget",
    "create_target",
    "estimate_bytes",
    "expand_inputs",
    "free_space",
    "open_volume",
    "output_kind",
    "partial_path",
    "plan_target",
    "refuse_existing",
    "write_tiff",
    "write_volume",
]

_IMAGEJ_DTYPES = ("uint8", "uint16", "float32")
_PILLOW_DTYPES = {"1": "bool", "L": "uint8", "I;16": "uint16", "I;16L": "uint16", "I;16B": "uint16", "F": "float32"}


def open_volume(
    path: Path | str, *, channel: int | None = None, time: int | None = None, scene: int | None = None, level: int = 0
) -> Volume:
    """Open a volume without reading its values.

    Args:
        path: one greyscale volume. A TIFF file: contiguous, stripped or tiled, any compression that imagecodecs knows, ImageJ
            hyperstack, OME-TIFF, one page per plane; any multi-frame file that Pillow reads; a folder of 2-D slices (TIFF or
            PNG, sorted naturally); an OME-Zarr image (0.4, 0.5) or a Zarr array; with the extra ``formats`` NIfTI, MRC,
            CZI, LIF and ND2.
        channel: which channel of a multi-channel file, counted from 0.
        time: which time point of a time series, counted from 0.
        scene: which scene, position or series of a CZI, LIF or ND2 file, counted from 0.
        level: which level of resolution of an OME-Zarr image, 0 the finest.

    Returns:
        Volume of shape (Z, Y, X); memory use does not depend on the size of the file.

    Raises:
        UserError: the file is missing, empty, truncated, unreadable, 2-D, RGB, of an unsupported dtype, an output that is not
            finished, or has several channels, time points or scenes and none was chosen, or contradicts itself.
    """
    file = Path(path)
    if not file.exists():
        link = f" (a link to {os.readlink(file)}, which is not there)" if file.is_symlink() else ""
        raise UserError(f"{file}: no such file or folder{link}")
    if file.suffix.lower() in MICROSCOPES and file.stat().st_size:
        if level:
            raise UserError(f"{file}: level {level} of 1; only OME-Zarr images have several")
        return MICROSCOPES[file.suffix.lower()](file, channel, time, scene)
    choose(file, "scene", scene, 1)
    if file.is_dir() and is_zarr(file):
        return ZarrVolume(file, channel, time, level)
    if level:
        raise UserError(f"{file}: level {level} of 1; only OME-Zarr images have several")
    if file.is_dir():
        return SliceFolder(file, channel, time)
    if file.stat().st_size == 0:
        raise UserError(f"{file}: empty file (0 bytes); copy it again")
    if file.name.lower().endswith(NIFTI):
        return open_nifti(file, channel, time)
    if file.name.lower().endswith(MRC):
        return open_mrc(file, channel, time)
    try:
        return TiffVolume(file, channel, time)
    except UserError:
        raise
    except Exception as error:  # a damaged directory fails in many ways inside the parser
        return _open_with_pillow(file, channel, time, error)


def _open_with_pillow(path: Path, channel: int | None, time: int | None, reason: Exception) -> Volume:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # Pillow only warns about truncated directories
            volume = PillowVolume(path)
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, EOFError, TypeError, UserWarning) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not a readable image ({reason}); truncated or damaged, copy it again") from reason
    choose(path, "channel", channel, 1)
    choose(path, "time point", time, 1)
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
    sources[0] = first = copy.copy(sources[0])
    first.voxel_um = first.voxel_um if voxel_um is None else triple(voxel_um)
    first.translation_um = first.translation_um if translation_um is None else triple(translation_um)
    output = Path(output)
    refuse_existing(output, overwrite)
    plan = plan_target(
        output,
        shape=first.shape,
        dtype=first.dtype,
        voxel_um=first.voxel_um,
        translation_um=first.translation_um,
        channel_names=channel_names,
        attributes=attributes,
        compression=compression,
    )
    if plan.kind != "zarr":
        write_single_file(output, sources, channel_names=channel_names, attributes=plan.attributes, compression=compression)
        return output
    target = create_target(output, plan, overwrite=overwrite)
    for box in target.boxes:  # all of them: what an earlier call left may stem from other values
        target.write_region(box, first[box] if channel_names is None else np.stack([source[box] for source in sources]))
    return target.finish()


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
    imagej = depth > 1 and dtype.name in _IMAGEJ_DTYPES and compression is None and size < CLASSIC_LIMIT
    if file.name.lower().endswith((".ome.tif", ".ome.tiff")):
        imagej = False
    with replaced(file) as partial:
        tifffile.imwrite(
            partial,
            _checked(planes, (depth, height, width), dtype),
            shape=(depth, height, width),
            dtype=dtype,
            photometric="minisblack",
            compression=compression,
            bigtiff=not imagej and size >= CLASSIC_LIMIT,
            **(_imagej_metadata(voxel_um) if imagej else _ome_metadata(voxel_um)),
        )


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
