"""What an output volume is to be: checked before work begins, stored with the unfinished output, compared on restart."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from volumes.block_array import BlockArray, sharded
from volumes.optional_package import optional_package
from volumes.output_files import output_kind
from volumes.pyramid import Level, plan_levels
from volumes.volume import READABLE, Triple, triple

_SHARD = 256  # voxels along each side
_CHUNK = {"zarr": (64, 64, 64), "tiff": (2, 256, 256), "nifti": (2, 256, 256)}  # flat where planes are read back in order
_MOST_CHUNKS = 4096  # in a shard; beyond, its index costs more than the chunks


@dataclass(frozen=True)
class TargetPlan:
    """Everything that decides the bytes of an output; :func:`plan_target` says what the fields mean, and makes it."""

    kind: str
    shape: tuple[int, int, int]
    dtype: str
    shard: tuple[int, int, int]
    chunk: tuple[int, int, int]
    voxel_um: Triple | None = None
    translation_um: Triple | None = None
    channel_names: tuple[str, ...] | None = None
    compression: str | None = "zstd"
    levels: int | None = None
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def pyramid(self) -> list[Level]:
        """The levels to be written."""
        return plan_levels(self.shape, self.voxel_um, self.levels if self.kind == "zarr" else 1)

    def array(self, folder: Path, number: int) -> BlockArray:
        """The array of a level inside the output's folder."""
        lead = () if self.channel_names is None else (len(self.channel_names),)
        shape, shard = (*lead, *self.pyramid[number].shape), (*lead, *self.shard)
        return BlockArray(folder / str(number), shape, np.dtype(self.dtype), shard)

    def create(self, folder: Path) -> None:
        """Make the empty arrays of all levels."""
        chunk = self.chunk if self.channel_names is None else (1, *self.chunk)
        for number in range(len(self.pyramid)):
            array = self.array(folder, number)
            array.create(sharded(chunk, array.dtype.itemsize), "zyx" if self.channel_names is None else "czyx")

    def as_json(self) -> dict[str, Any]:
        """The plan as plain JSON."""
        return json.loads(json.dumps(asdict(self)))

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> TargetPlan:
        """The plan that :meth:`as_json` gave."""
        entries: Any = {key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()}
        return cls(**entries)


def plan_target(
    output: Path | str,
    *,
    shape: Sequence[int],
    dtype: np.dtype | str,
    voxel_um: Sequence[float] | None = None,
    translation_um: Sequence[float] | None = None,
    channel_names: Sequence[str] | None = None,
    shard: Sequence[int] | None = None,
    chunk: Sequence[int] | None = None,
    attributes: Mapping[str, Any] | None = None,
    compression: str | None = "zstd",
    levels: int | None = None,
) -> TargetPlan:
    """The plan of an output, complete and known to be possible.

    Args:
        output: ``.zarr`` (OME-Zarr 0.5), ``.ome.tif``, ``.ome.tiff``, ``.tif``, ``.tiff`` (OME-TIFF), ``.nii``, ``.nii.gz``.
        shape: (Z, Y, X).
        dtype: dtype of the values.
        voxel_um: voxel size (z, y, x) in µm.
        translation_um: position (z, y, x) in µm of the centre of the first voxel.
        channel_names: with names there is an axis of channels before Z; a shard holds all channels.
        shard: the unit of writing, (z, y, x) voxels; 256 along each axis by default, less for smaller volumes.
        chunk: the unit of compression and reading, a divisor of ``shard``; chosen to suit the format by default.
        attributes: plain JSON about the run, kept in the output; an output is only continued when they are equal, so that
            times and counts belong to :meth:`VolumeTarget.finish`.
        compression: of a TIFF: ``"zstd"``, ``"zlib"`` (read by every program) or None.
        levels: how many levels the pyramid of an OME-Zarr has at most; None: as many as useful.

    Raises:
        UserError: the ending is not known, the format cannot hold the volume, or it needs a package that is not installed.
        ValueError: arguments that make no sense or do not fit each other.
    """
    output = Path(output)
    kind = output_kind(output)
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"shape={tuple(shape)} must be (Z, Y, X) without zeros")
    if np.dtype(dtype).name not in READABLE[1:]:
        raise ValueError(f"dtype={np.dtype(dtype).name} must be one of {', '.join(READABLE[1:])}")
    if channel_names is not None and not channel_names:
        raise ValueError("channel_names=[]: name every channel, or pass None for a volume without channels")
    if compression not in ("zstd", "zlib", None):
        raise ValueError(f"compression={compression!r} must be zstd, zlib or None")
    outer, inner = _units(shape, shard, chunk, _CHUNK[kind])
    plan = TargetPlan(
        kind=kind,
        shape=_sides(shape),
        dtype=np.dtype(dtype).name,
        shard=outer,
        chunk=inner,
        voxel_um=_lengths("voxel_um", voxel_um),
        translation_um=_lengths("translation_um", translation_um),
        channel_names=None if channel_names is None else tuple(channel_names),
        compression=compression,
        levels=levels,
        attributes=json.loads(json.dumps(dict(attributes or {}))),
    )
    if plan.voxel_um is not None and min(plan.voxel_um) <= 0:
        raise ValueError(f"voxel_um={plan.voxel_um} must be positive")
    if kind != "zarr" and plan.dtype == "float16":
        raise UserError(f"{output}: the format does not know float16; write float32, or .ome.zarr")
    if kind == "nifti":
        optional_package("nibabel", output)
        if len(channel_names or "1") > 1:
            raise UserError(
                f"{output}: NIfTI holds one channel here, not {len(channel_names or ())}; write .ome.zarr or .ome.tif"
            )
    return plan


def _units(
    shape: Sequence[int], shard: Sequence[int] | None, chunk: Sequence[int] | None, aim: Sequence[int]
) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Shard and chunk: as given, else near the defaults and no larger than the volume needs."""
    if shard is None:
        chunk = [min(side, n) for side, n in zip(aim, shape, strict=True)] if chunk is None else chunk
        shard = [c * math.ceil(min(max(_SHARD, c), n) / c) for c, n in zip(chunk, shape, strict=True)]
    elif chunk is None:
        chunk = [_divisor(side, wanted) for side, wanted in zip(shard, aim, strict=True)]
    if any(outer % inner for outer, inner in zip(shard, chunk, strict=True)) or min(*shard, *chunk) < 1:
        raise ValueError(f"shard {tuple(shard)} must be a multiple of chunk {tuple(chunk)} along every axis")
    if math.prod(outer // inner for outer, inner in zip(shard, chunk, strict=True)) > _MOST_CHUNKS:
        raise ValueError(f"shard {tuple(shard)} holds more than {_MOST_CHUNKS} chunks of {tuple(chunk)}; use larger chunks")
    return _sides(shard), _sides(chunk)


def _divisor(side: int, aim: int) -> int:
    """The divisor of ``side`` nearest to ``aim`` in ratio."""
    return min((n for n in range(1, side + 1) if side % n == 0), key=lambda n: abs(math.log(n / aim)))


def _lengths(name: str, values: Sequence[float] | None) -> Triple | None:
    if values is None:
        return None
    if len(values) != 3 or not all(map(math.isfinite, values)):
        raise ValueError(f"{name}={values} must be three finite numbers (z, y, x) in µm")
    return triple(values)


def _sides(values: Sequence[int]) -> tuple[int, int, int]:
    z, y, x = (int(value) for value in values)
    return z, y, x
