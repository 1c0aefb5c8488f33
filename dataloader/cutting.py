"""Where the patches of a volume lie, which part is for validation, and how patches are read at constant memory."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np

from utils.boxes import Box, overlap, relative, split, voxels_of, whole_box
from utils.errors import UserError
from volumes.volume import Volume

Triple = tuple[int, int, int]

GAP = 8  # between training and validation lies one of this many parts of a patch
LEAST = 128  # rows or planes of the validation part of a volume that is not cut into patches: the usual crop
_BUDGET = 2**25  # voxels held at once


@dataclass(frozen=True)
class Lattice:
    """Size and distance of patches.

    Attributes:
        patch: voxels (z, y, x); 0 is the whole axis.
        step: distance of patches; 0 is the patch's size. Smaller steps overlap.
        incomplete: the last patch of an axis that does not reach the end is followed by one more that ends there
            ("shift", overlapping) or by none ("drop").
    """

    patch: Triple = (0, 0, 0)
    step: Triple = (0, 0, 0)
    incomplete: str = "shift"

    def __post_init__(self) -> None:
        if min(self.patch) < 0 or min(self.step) < 0:
            raise UserError(f"patch={self.patch} and step={self.step} must not be negative; 0 is the whole axis")
        for axis, patch, step in zip("zyx", self.patch, self.step, strict=True):
            if step and (not patch or step > patch):
                raise UserError(
                    f"step {step} along {axis} is larger than the patch ({patch or 'the whole axis'}), so voxels between patches "
                    f"would be left out; lower the step or give 0"
                )

    def spans(self, box: Box) -> list[list[slice]]:
        """Where the patches of a box lie along every axis; nowhere where a patch does not fit."""
        found = []
        for part, patch, step in zip(box, self.patch, self.step, strict=True):
            side = patch or part.stop - part.start
            starts = list(range(part.start, part.stop - side + 1, step or side))
            if self.incomplete == "shift" and starts and starts[-1] + side < part.stop:
                starts.append(part.stop - side)
            found.append([slice(start, start + side) for start in starts])
        return found

    def voxels(self, box: Box) -> int:
        """Voxels of all patches of a box together; 0 where none fits."""
        return math.prod(sum(span.stop - span.start for span in spans) for spans in self.spans(box))

    def patches(self, box: Box) -> Iterator[tuple[str, Box]]:
        """Every patch of a box, slab by slab, so that neighbours are read together.

        Yields:
            The place as text, three digits or more each for row, column and z (the order of the published data sets; nothing for
            a lattice of whole volumes), and the patch's box in the volume.
        """
        spans = self.spans(box)
        digits = max(3, len(str(max(map(len, spans)) - 1)))
        for (k, z), (i, y), (j, x) in product(*map(enumerate, spans)):
            yield "".join(f"{place:0{digits}d}" for place in (i, j, k)) if any(self.patch) else "", (z, y, x)


def split_box(volume: Volume, lattice: Lattice, fraction: float) -> tuple[Box, Box]:
    """A single volume's training and validation part: the last rows, or planes if rows are too few, are for validation.

    At least one patch, or 128 rows or planes of whole volumes, is for validation, else that fraction. Between the two lies a gap
    of 1/8 patch (1/8 of the validation part for whole volumes), so that no structure is in both. A UserError: no room for it.
    """
    for axis in (1, 0):
        size, patch = volume.shape[axis], lattice.patch[axis]
        kept = max(patch or LEAST, math.ceil(fraction * size))
        gap = math.ceil((patch or kept) / GAP)
        if (patch or not any(lattice.patch)) and size - kept - gap >= (patch or LEAST):
            train, val = list(whole_box(volume.shape)), list(whole_box(volume.shape))
            train[axis], val[axis] = slice(0, size - kept - gap), slice(size - kept, size)
            return (train[0], train[1], train[2]), (val[0], val[1], val[2])
    planes, rows = (2 * side + math.ceil(side / GAP) for side in (patch or LEAST for patch in lattice.patch[:2]))
    smaller = " a smaller --patch," * any(lattice.patch)
    raise UserError(
        f"{volume.path} of (Z, Y, X) = {volume.shape} is too small to be split, which takes {rows} rows or {planes} planes; "
        f"give several volumes,{smaller} or --val 0"
    )


class Window:
    """Reads patches of a volume slab by slab: a slab as wide as the volume is kept and neighbours are cut out of it."""

    def __init__(self, volume: Volume, budget: int = _BUDGET) -> None:
        self.volume, self.budget = volume, budget
        self._box: Box | None = None
        self._values = np.empty((0, 0, 0))

    def pieces(self, box: Box) -> Iterator[np.ndarray]:
        """The values of a box in one array, or in several along z where it is larger than the budget."""
        planes, rows, columns = box
        if voxels_of(box) > self.budget:
            for part in split(planes, max(1, self.budget // voxels_of((rows, columns)))):
                yield self.volume[part, rows, columns]
            return
        if self._box is None or overlap(box, self._box) != box:
            _, height, width = self.volume.shape
            reach = self.budget // ((planes.stop - planes.start) * width)  # rows of full width that the budget allows
            slab = planes, slice(rows.start, min(height, rows.start + reach)), slice(0, width)
            self._box = slab if reach >= rows.stop - rows.start else box
            self._values = self.volume[self._box]
        yield self._values[relative(box, self._box)]

    def mean(self, box: Box) -> float:
        """The mean grey value of a box."""
        return sum(float(piece.sum(dtype=np.float64)) for piece in self.pieces(box)) / voxels_of(box)
