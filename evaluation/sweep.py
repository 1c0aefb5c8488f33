"""One pass over all voxels: every file is read once, whatever is asked for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from evaluation.grid import Comparison
from evaluation.metrics import Moments, psnr
from evaluation.sections import Candidate, Sections
from utils.boxes import Box, extent, overlap, parts, relative
from utils.errors import UserError

DEEPEST = 64  # planes of a block, where it cannot be as wide as the volume
REFERENCE = "truth"  # name under which the truth's own numbers stand beside the candidates'


@dataclass
class Swept:
    """One volume, and what a pass over its voxels leaves of it.

    Attributes:
        box: its central box; on disc.
        consistency: its projection against the input; None without input, and for the truth.
        moments: sums over all voxels.
    """

    name: str
    candidate: Candidate
    box: NDArray[np.float32]
    consistency: Consistency | None
    moments: Moments = field(default_factory=Moments)


def sweep(comparison: Comparison, side: int, folder: Path, known: Mapping[str, Swept]) -> tuple[Box, dict[str, Swept]]:
    """Reads every file once, block by block; of the volumes that are ``known`` already, nothing.

    Returns:
        The central box, of at most that side, whose values are kept in the folder; what is known of every volume, the truth last.

    Raises:
        UserError: NaN, infinite values, a volume that holds one value only, or a region that is too small.
    """
    box = central_box(comparison.region, side)
    swept: dict[str, Swept] = {}
    for name, candidate in (comparison.candidates | ({REFERENCE: comparison.truth} if comparison.truth else {})).items():
        if name in known:
            swept[name] = known[name]
            continue
        file = folder / f"box_{len(swept)}"
        np.zeros(extent(box), np.float32).tofile(file)  # takes its room on disc: a page that found none would end the process
        central = np.asarray(np.memmap(file, np.float32, "r+", shape=extent(box)))
        consistency = None
        if comparison.sections is not None and name != REFERENCE:
            consistency = Consistency(comparison.sections, comparison.region, comparison.taps)
        swept[name] = Swept(name, candidate, central, consistency)
    behind = max([1, *(volume.consistency.reach for volume in swept.values() if volume.consistency)])
    truth_first = sorted((v for v in swept.values() if v.name not in known), key=lambda volume: volume.name != REFERENCE)
    with tqdm(total=math.prod(extent(comparison.region)), unit="voxel", unit_scale=True, desc="all voxels", leave=False) as bar:
        for core, longer in blocks(comparison.region, behind=behind):
            truth = None
            for volume in truth_first:
                block = volume.candidate.block(longer)
                if not np.isfinite(block).all():
                    raise UserError(f"the {volume.name} holds NaN or infinite values; mask or replace them before evaluating")
                volume.moments.add(block, extent(core), truth)
                if volume.consistency is not None:
                    volume.consistency.add(block, core)
                shared = overlap(core, box)
                if min(extent(shared)) > 0:
                    volume.box[relative(shared, box)] = block[relative(shared, core)]
                if volume.name == REFERENCE:
                    truth = block[relative(core, longer)]
            bar.update(math.prod(extent(core)))
    for volume in swept.values():
        volume.candidate.sections.close()
    for name in (REFERENCE, "reconstruction"):
        if name in swept and swept[name].moments.low == swept[name].moments.high:
            raise UserError(
                f"the {name} holds one value only ({swept[name].moments.low:g}) in the compared region; check the file, its "
                "channel and --region"
            )
    return box, swept


def blocks(region: Box, voxels: int = 2**23, behind: int = 1) -> Iterator[tuple[Box, Box]]:
    """Boxes of about that many voxels that cover a region once, each with the box that is longer by what lies behind it.

    They are deep rather than wide, because interpolation along z reads HALO sections beyond either end of a block, and follow
    each other along z within a band of rows, so that Sections read nothing twice. The second box is longer by ``behind`` planes,
    one row and one column, where the region has them.
    """
    deepest, height, width = extent(region)
    planes = min(deepest, DEEPEST)
    rows = min(max(1, voxels // (width * planes)), height)
    planes = min(max(planes, voxels // (width * rows)), deepest)
    for band in parts(region, (deepest, rows, width)):
        for core in parts(band, (planes, rows, width)):
            z, y, x = (
                slice(part.start, min(part.stop + more, whole.stop))
                for part, more, whole in zip(core, (behind, 1, 1), region, strict=True)
            )
            yield core, (z, y, x)


def central_box(region: Box, side: int) -> Box:
    """The box of at most that side in the middle of a region; a UserError says that the side, or the region, is too short."""
    if side < 16:
        raise UserError(f"--sample {side}: the central box needs sides of at least 16 voxels")
    sides = [min(side, part.stop - part.start) for part in region]
    if min(sides) < 2:
        raise UserError(
            f"the compared box is {'×'.join(map(str, sides))} voxels (z, y, x); every side needs at least 2. Widen --region"
        )
    starts = [part.start + (part.stop - part.start - size) // 2 for part, size in zip(region, sides, strict=True)]
    z, y, x = (slice(start, start + size) for start, size in zip(starts, sides, strict=True))
    return z, y, x


def projections(sections: Sections) -> dict[str, tuple[float, NDArray[np.float64]]]:
    """The ways in which sections at these positions can have come from planes.

    Returns:
        Per way the offset of its first plane from the section's position, and the weights of the planes from there on:
        ``pick`` (the plane at the position), ``average`` (the mean of the planes around it; for odd factors both fit), else
        ``between`` (no weights: the two planes around the position, linearly).
    """
    factor = round(sections.step)
    ways: dict[str, tuple[float, NDArray[np.float64]]] = {}
    if sections.step == factor and sections.first == round(sections.first):
        ways["pick"] = (0.0, np.ones(1))
    corner = (factor - 1) / 2
    if sections.step == factor > 1 and (sections.first - corner) == round(sections.first - corner):
        ways["average"] = (-corner, np.full(factor, 1 / factor))
    return ways or {"between": (0.0, np.zeros(0))}


class Consistency:
    """Sums of the differences between a volume, projected back, and its input, added block by block.

    Only sections whose planes lie wholly in the region are compared. Planes are first blurred along z by ``taps``, an odd number.

    Attributes:
        reach: planes behind a block that its last section may need.
    """

    def __init__(self, sections: Sections, region: Box, taps: Sequence[float] = (1.0,)) -> None:
        self.sections, self.reach, self._taps = sections, 0, np.asarray(taps, np.float64)
        self._pixels = math.prod(extent(region)[1:])
        self._ways: dict[str, tuple[NDArray[np.intp], NDArray[np.floating], NDArray[np.float64]]] = {}
        for way, (offset, weights) in projections(sections).items():
            length = (len(weights) or 2) + len(taps) - 1
            starts = sections.first + sections.step * np.arange(sections.count) + offset - len(taps) // 2
            inside = np.flatnonzero((starts >= region[0].start) & (np.floor(starts) + length <= region[0].stop))
            if inside.size:
                self._ways[way] = inside, starts[inside], weights
                self.reach = max(self.reach, length - 1)
        self._squares = dict.fromkeys(self._ways, 0.0)

    def add(self, block: NDArray[np.float32], core: Box) -> None:
        """Add the sections that begin in the box ``core`` of a block, behind which are ``reach`` planes, as far as there are."""
        depth, rows, columns = core
        _, height, width = extent(core)
        longer = [slice(part.start, part.start + size) for part, size in zip((rows, columns), block.shape[1:], strict=True)]
        for way, (inside, starts, weights) in self._ways.items():
            here = (starts >= depth.start) & (starts < depth.stop)
            if not here.any():
                continue
            matrix = np.zeros((np.count_nonzero(here), len(block)))
            for row, start in zip(matrix, starts[here] - depth.start, strict=True):
                first = math.floor(start)
                seen = np.convolve(weights if len(weights) else (1 - start % 1, start % 1), self._taps)
                row[first : first + len(seen)] = seen
            numbers = inside[here]
            given = self.sections.read(int(numbers[0]), int(numbers[-1]) + 1, *longer)[:, :height, :width]
            difference = np.tensordot(matrix, block[:, :height, :width], axes=1) - given
            self._squares[way] += float(np.vdot(difference, difference))

    def result(self, data_range: float) -> dict[str, dict[str, float]]:
        """Per way of projections(): ``rmse`` in grey values, ``psnr_db`` (infinite if equal), ``data_range``, ``sections``."""
        result = {}
        for way, (inside, _, _) in self._ways.items():
            rmse = math.sqrt(self._squares[way] / (inside.size * self._pixels))
            result[way] = {
                "rmse": rmse,
                "psnr_db": psnr(rmse, data_range),
                "data_range": data_range,
                "sections": int(inside.size),
            }
            if len(self._taps) > 1:
                result[way]["profile_taps"] = len(self._taps)
        return result
