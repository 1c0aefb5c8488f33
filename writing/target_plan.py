"""What an output is to be: its format and name, checked before work begins; its plan, stored with it, compared on restart."""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.files import PARTIAL, discard, refuse_far, remove_left_overs
from utils.packages import optional_package
from utils.units import as_size
from volumes.block_array import BlockArray, sharded
from volumes.volume import READABLE, Look, Triple, as_sides, triple
from writing.pyramid import Level, plan_levels

_SHARD = 256  # voxels along each side
WORK = ".work"  # inside an unfinished output: the plan and the journals
WHOLE = Path(WORK, "whole")  # there where it is only to become one file yet

# Endings of the names; writing.write has a writer for each format that is one file.
FORMATS = {"zarr": (".zarr",), "tiff": (".ome.tif", ".ome.tiff", ".tif", ".tiff"), "nifti": (".nii", ".nii.gz")}
SUFFIXES = tuple(suffix for suffixes in FORMATS.values() for suffix in suffixes)
_PYRAMID = 8 / 7  # the sum of 1/8 powers: all levels of an isotropic pyramid


def output_format(output: Path | str) -> str:
    """Which of ``FORMATS`` an output is, by its suffix; a UserError refuses another one and names of unfinished outputs."""
    name = Path(output).name.lower()
    fitting = [kind for kind, suffixes in FORMATS.items() if name.endswith(suffixes) and name not in suffixes]
    if not fitting or name.endswith(PARTIAL):
        raise UserError(f"{output}: a volume is written as {', '.join(SUFFIXES)}; choose one of these endings")
    return fitting[0]


def partial_path(output: Path | str) -> Path:
    """Where an output grows: ``OUT.partial.zarr`` beside it, whatever the format of OUT."""
    output = Path(output)
    return output.with_name(output.name + PARTIAL)


def refuse_existing(output: Path | str, overwrite: bool) -> None:
    """A UserError says that an output exists (unless ``overwrite`` allows to replace it), or cannot be put there at all.

    What a command that was killed as it finished has left beside it is removed.
    """
    refuse_far(output)
    output, whole = Path(output), partial_path(output) / WHOLE
    remove_left_overs(partial_path(output))
    if output.is_file() and whole.exists() and output.stat().st_mtime >= whole.stat().st_mtime:  # it became this file
        discard(partial_path(output))
    folder = output_format(output) == "zarr"
    if not output.parent.is_dir():
        raise UserError(f"{output}: the folder {output.parent} does not exist; create it first")
    if not output.exists():
        return
    if output.is_dir() != folder:
        raise UserError(f"{output} exists and is a {'file' if folder else 'folder'}; choose another name")
    if not overwrite:
        raise UserError(f"{output} exists; choose another name, or replace it with --overwrite")


def free_space(path: Path | str, needed: int) -> int:
    """The bytes that are free where ``path`` is to be; a UserError says that they are fewer than ``needed``."""
    folder = Path(path).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{path} needs up to {as_size(needed)} and {folder} has {as_size(free)} free; make room or write elsewhere"
        )
    return free


def estimate_bytes(output: Path | str, shape: Sequence[int], dtype: np.dtype | str, channels: int = 1) -> int:
    """The most bytes that writing a volume (Z, Y, X) can take on disc at any time: no compression gain is assumed."""
    raw = math.prod(shape) * max(channels, 1) * np.dtype(dtype).itemsize
    return math.ceil(raw * _PYRAMID) if output_format(output) == "zarr" else 2 * raw


def require_room(output: Path, shape: Sequence[int], dtype: np.dtype, channels: int) -> str:
    """:func:`room_for` of a volume (Z, Y, X)."""
    return room_for(output, estimate_bytes(output, shape, dtype, channels))


def room_for(output: Path, needed: int) -> str:
    """Before an output of up to so many bytes is begun: a UserError says that it does not fit even if it compresses to a quarter.

    Returns:
        What it needs and what is free, for a message.
    """
    free = free_space(output, 0 if partial_path(output).exists() else needed // 4)
    return f"{output}: up to {as_size(needed)} on disc, {as_size(free)} are free"


@dataclass(frozen=True)
class TargetPlan:
    """Everything that decides the bytes of an output; :func:`plan_target` says what the fields mean, and makes it."""

    kind: str
    shape: tuple[int, int, int]
    dtype: str
    shard: tuple[int, int, int]
    chunk: tuple[int, int, int]
    voxel_um: Triple | None
    translation_um: Triple | None
    channel_names: tuple[str, ...] | None
    channel_looks: tuple[Look, ...] | None
    compression: str | None
    attributes: dict[str, Any]

    @property
    def pyramid(self) -> list[Level]:
        """The levels to be written."""
        return plan_levels(self.shape, self.voxel_um)[: None if self.kind == "zarr" else 1]

    def arrays(self, folder: Path) -> list[BlockArray]:
        """The arrays of all levels inside the output's folder; a shard holds all channels."""
        lead = () if self.channel_names is None else (len(self.channel_names),)
        return [
            BlockArray(folder / str(number), (*lead, *level.shape), np.dtype(self.dtype), (*lead, *self.shard))
            for number, level in enumerate(self.pyramid)
        ]

    def create(self, folder: Path) -> None:
        """Make the empty arrays."""
        chunk, axes = (self.chunk, "zyx") if self.channel_names is None else ((1, *self.chunk), "czyx")
        for array in self.arrays(folder):
            array.create(sharded(chunk, array.dtype.itemsize), axes)

    def as_json(self) -> dict[str, Any]:
        """The plan as plain JSON."""
        return json.loads(json.dumps(asdict(self)))


def plan_target(
    output: Path | str,
    *,
    shape: Sequence[int],
    dtype: np.dtype | str,
    voxel_um: Sequence[float] | None = None,
    translation_um: Sequence[float] | None = None,
    channel_names: Sequence[str] | None = None,
    channel_looks: Sequence[Look] | None = None,
    shard: Sequence[int] | None = None,
    attributes: Mapping[str, Any] | None = None,
    compression: str | None = "zstd",
) -> TargetPlan:
    """The plan of an output, complete and known to be possible.

    Args:
        output: ``.zarr`` (OME-Zarr 0.5), ``.ome.tif``, ``.ome.tiff``, ``.tif``, ``.tiff`` (OME-TIFF), ``.nii``, ``.nii.gz``.
        shape: (Z, Y, X).
        dtype: dtype of the values.
        voxel_um: voxel size (z, y, x) in µm.
        translation_um: position (z, y, x) in µm of the centre of the first voxel.
        channel_names: with names there is an axis of channels before Z.
        channel_looks: of each its colour (RRGGBB or empty) and the grey values that are shown, or None.
        shard: the unit of writing, (z, y, x) voxels; 256 along each axis by default, less for smaller volumes.
        attributes: plain JSON about the run, kept in the output; an output is only continued when they are equal, so that
            times and counts belong to :meth:`writing.target.VolumeTarget.finish`.
        compression: of a TIFF: ``"zstd"``, ``"zlib"`` (read by every program) or None.

    Raises:
        UserError: the ending is not known, the format cannot hold the volume, or it needs a package that is not installed.
        ValueError: arguments that make no sense or do not fit each other.
    """
    kind = output_format(output)
    dtype = np.dtype(dtype).name
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape={tuple(shape)} must be (Z, Y, X) without zeros")
    if dtype not in READABLE[1:]:
        raise ValueError(f"dtype={dtype} must be one of {', '.join(READABLE[1:])}")
    if channel_names is not None and not channel_names:
        raise ValueError("channel_names=[]: name every channel, or pass None for a volume without channels")
    if compression not in ("zstd", "zlib", None):
        raise ValueError(f"compression={compression!r} must be zstd, zlib or None")
    for name, lengths in {"voxel_um": voxel_um, "translation_um": translation_um}.items():
        if lengths is not None and (len(lengths) != 3 or not all(map(math.isfinite, lengths))):
            raise ValueError(f"{name}={lengths} must be three finite numbers (z, y, x) in µm")
    if voxel_um is not None and min(voxel_um) <= 0:
        raise ValueError(f"voxel_um={voxel_um} must be positive")
    if dtype == "float16" and kind != "zarr":
        raise UserError(f"{output}: the format does not know float16; write float32, or .ome.zarr")
    if kind == "nifti":
        optional_package("nibabel", Path(output))
        if channel_names is not None and len(channel_names) > 1:
            raise UserError(
                f"{output}: such a file holds one channel here, not {len(channel_names)}; write .ome.zarr or .ome.tif"
            )
    aim = (64, 64, 64) if kind == "zarr" else (2, 256, 256)  # flat where planes are read back in order
    if shard is None:  # whole chunks, as few as the volume needs
        chunk = [min(side, n) for side, n in zip(aim, shape, strict=True)]
        shard = [side * math.ceil(min(_SHARD, n) / side) for side, n in zip(chunk, shape, strict=True)]
    else:
        chunk = [_divisor(side, wanted) for side, wanted in zip(shard, aim, strict=True)]
    return TargetPlan(
        kind=kind,
        shape=as_sides(shape),
        dtype=dtype,
        shard=as_sides(shard),
        chunk=as_sides(chunk),
        voxel_um=None if voxel_um is None else triple(voxel_um),
        translation_um=None if translation_um is None else triple(translation_um),
        channel_names=None if channel_names is None else tuple(channel_names),
        channel_looks=None if channel_looks is None else tuple(channel_looks),
        compression=compression,
        attributes=json.loads(json.dumps(dict(attributes or {}))),
    )


def _divisor(side: int, aim: int) -> int:
    """The divisor of ``side`` nearest to ``aim`` in ratio."""
    return min((n for n in range(1, side + 1) if side % n == 0), key=lambda n: abs(math.log(n / aim)))
