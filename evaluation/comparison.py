"""What is asked of an evaluation, and everything that it compares, on one grid."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.baselines import Candidate, Sections
from evaluation.grids import Shape, Triple
from utils.errors import UserError
from volumes.volume import Box, extent

DEEPEST = 64  # planes of a block, where it cannot be as wide as the volume


@dataclass(frozen=True)
class Request:
    """What is to be evaluated; the options of evaluate.py.

    Attributes:
        reconstruction, truth, input: files; at least a reconstruction or a truth.
        degrade: (``pick`` or ``average``, factor): the input is simulated from the truth.
        input_position, factor: how the input's sections relate to the planes, where the files do not say.
        region: box of the truth (without it of the reconstruction) to evaluate; None for all.
        voxel_um: voxel size (z, y, x) of truth and reconstruction where the files have none.
        channel: channel of multi-channel files.
        data_range: ``auto``, ``dtype``, ``reference`` or a number.
        codec: ``jpeg2000`` adds the baselines of sections sent through it at bpp bits per pixel.
        planes: planes of each orientation that SSIM and MS-SSIM average.
        sample: longest side of the central box for the metrics that need one box in memory.
    """

    reconstruction: Path | None = None
    truth: Path | None = None
    input: Path | None = None
    degrade: tuple[str, int] | None = None
    input_position: str | None = None
    factor: int | None = None
    region: Box | None = None
    voxel_um: Triple | None = None
    channel: int | None = None
    data_range: str = "auto"
    codec: str | None = None
    bpp: float = 0.125
    planes: slice = field(default_factory=lambda: slice(None))
    sample: int = 256

    def __post_init__(self) -> None:
        if self.sample < 16:
            raise UserError(f"--sample {self.sample}: the central box needs sides of at least 16 voxels")


@dataclass
class Comparison:
    """Everything on one grid.

    Attributes:
        region: the box that is compared, in voxels of the reference.
        voxel_um: voxel size of the grid (z, y, x), None where unknown.
        truth: the truth, or None.
        candidates: the reconstruction (if any) first, then the baselines, by name.
        sections: the input's sections, or None.
        dtype: dtype of the reference.
        files, alignment: what was read, and how it was laid together; plain values for the report.
        notes: what was left out and why.
    """

    region: Box
    voxel_um: Triple | None
    truth: Candidate | None
    candidates: dict[str, Candidate]
    sections: Sections | None
    dtype: np.dtype[Any]
    files: dict[str, Any]
    alignment: dict[str, Any]
    notes: list[str]

    @property
    def shape(self) -> Shape:
        """Size of the compared box."""
        return extent(self.region)

    @property
    def spacing(self) -> Triple:
        """Voxel sides in units of the shortest side."""
        if self.voxel_um is None:
            return (1.0, 1.0, 1.0)
        shortest = min(self.voxel_um)
        z, y, x = (side / shortest for side in self.voxel_um)
        return z, y, x

    def block_sides(self, voxels: int = 2**23) -> tuple[int, int]:
        """Planes and rows of a block of about that many voxels over all columns."""
        deepest, height, width = self.shape
        planes = min(deepest, DEEPEST)
        rows = min(max(1, voxels // (width * planes)), height)
        return min(max(planes, voxels // (width * rows)), deepest), rows

    def central_box(self, side: int) -> Box:
        """The box of at most that side in the middle of the region."""
        parts = []
        for part in self.region:
            length = min(side, part.stop - part.start)
            start = part.start + (part.stop - part.start - length) // 2
            parts.append(slice(start, start + length))
        return parts[0], parts[1], parts[2]

    def blocks(self, voxels: int = 2**23) -> Iterator[tuple[Box, Box]]:
        """Boxes that cover the region once, each with the box that is one plane, row and column longer where there is one.

        They are deep rather than wide, because interpolation along z reads HALO sections beyond either end of a block.
        """
        depth, rows, columns = self.region
        planes, band = self.block_sides(voxels)
        for z in range(depth.start, depth.stop, planes):
            for y in range(rows.start, rows.stop, band):
                core = (slice(z, min(z + planes, depth.stop)), slice(y, min(y + band, rows.stop)), columns)
                longer = [slice(a.start, min(a.stop + 1, whole.stop)) for a, whole in zip(core, self.region, strict=True)]
                yield core, (longer[0], longer[1], longer[2])
