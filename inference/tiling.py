"""Tiles on one fixed lattice (pure arithmetic).

A lattice depends on the size of the whole volume alone, never on the region asked for, on the number of processes or on where a
command was interrupted. So everything that is computed is computed for the same tiles, with the same neighbourhood, bit for bit.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from utils.boxes import Box, Span

LOCAL_WINDOW = 128  # latents at most that a local network sees of a slice at once; their time does not depend on it


@dataclass(frozen=True)
class Tile:
    """One tile along one axis: its core is what it is responsible for, its window what it has to see."""

    core: Span
    window: Span

    @property
    def margins(self) -> Span:
        """Places of the window before and after the core."""
        return self.core[0] - self.window[0], self.window[1] - self.core[1]

    @property
    def kind(self) -> tuple[int, int, int]:
        """What tiles have in common that look alike to a network: places of the core, before it and after it."""
        return self.core[1] - self.core[0], *self.margins


Tile3 = tuple[Tile, Tile, Tile]  # along z, y, x


def core_box(tile: Tile3, scale: Sequence[int] = (1, 1, 1)) -> Box:
    """The core of a tile, in units of which a place of the lattice has ``scale`` along each axis."""
    return _box((axis.core for axis in tile), scale)


def window_box(tile: Tile3, scale: Sequence[int] = (1, 1, 1)) -> Box:
    """The window of a tile, likewise."""
    return _box((axis.window for axis in tile), scale)


def _box(spans: Iterable[Span], scale: Sequence[int]) -> Box:
    z, y, x = (slice(places * start, places * stop) for (start, stop), places in zip(spans, scale, strict=True))
    return z, y, x


@dataclass(frozen=True)
class Axis:
    """The lattice along one axis of ``size`` places: cores of ``core`` places side by side from 0; the last one ends at ``size``.

    Attributes:
        size: places in all.
        core: places of a core.
        before, after: places that a window reaches beyond its core; cut at the borders of the volume.
        full: windows that would be cut are moved inwards instead, so that all are ``before + core + after`` long (or ``size``);
            the first that reaches the end is the last one, and its core may be longer.
    """

    size: int
    core: int
    before: int = 0
    after: int = 0
    full: bool = False

    def __len__(self) -> int:
        if not self.full:
            return math.ceil(self.size / self.core)
        reach = self.before + self.core + self.after
        return 1 if reach >= self.size else 1 + math.ceil((self.size - reach + self.before) / self.core)

    def __getitem__(self, number: int) -> Tile:
        if not 0 <= number < len(self):
            raise IndexError(f"tile {number} of {len(self)}")
        start = number * self.core
        stop = self.size if number == len(self) - 1 else start + self.core
        if not self.full:
            return self.around((start, stop))
        length = min(self.size, self.before + self.core + self.after)
        first = min(max(0, start - self.before), self.size - length)
        return Tile((start, stop), (first, first + length))

    def around(self, core: Span) -> Tile:
        """The tile of any core, its window cut at the borders of the volume."""
        return Tile(core, (max(0, core[0] - self.before), min(self.size, core[1] + self.after)))

    def covering(self, span: Span) -> range:
        """Numbers of the tiles whose cores meet a span."""
        last = len(self) - 1
        return range(min(span[0] // self.core, last), min(math.ceil(span[1] / self.core), last + 1))

    def reaching(self, span: Span) -> range:
        """Numbers of the tiles whose windows meet a span."""
        met = [n for n in range(len(self)) if self[n].window[0] < span[1] and self[n].window[1] > span[0]]
        return range(met[0], met[-1] + 1)

    def weights(self, number: int, scale: int = 1) -> NDArray[np.float32]:
        """How much each of ``scale`` voxels of every place of a tile's window counts where windows are blended.

        A ramp over the overlap, 1 elsewhere; never 0; full at the borders of the volume, where there is no neighbour.
        """
        start, stop = self[number].window
        places = np.arange(scale * (stop - start))
        weights = np.ones(len(places))
        if number > 0:
            overlap = scale * (self[number - 1].window[1] - start)
            weights = np.minimum(weights, (places + 1) / (overlap + 1))
        if number < len(self) - 1:
            overlap = scale * (stop - self[number + 1].window[0])
            weights = np.minimum(weights, (len(places) - places) / (overlap + 1))
        return weights.astype(np.float32)


def local_axis(size: int, before: int, after: int, *, full: bool = False) -> Axis:
    """The fewest windows of at most ``LOCAL_WINDOW`` places, about equally long: a halo is a small part of each.

    For networks whose result depends on ``before`` and ``after`` places beside its own; ``full`` as of :class:`Axis`.
    """
    if size <= LOCAL_WINDOW:
        return Axis(size, size, before, after, full)
    cores = size - after if full else size  # the last one of full windows is longer
    count = math.ceil(cores / (LOCAL_WINDOW - before - after))
    return Axis(size, math.ceil(cores / count), before, after, full)


def training_axis(size: int, tile: int) -> Axis:
    """Windows of a training crop with a quarter overlap, for networks whose result depends on the whole window.

    A crop larger than the axis is as long as the axis.
    """
    overlap = tile // 4 if tile < size else 0
    return Axis(size, tile - overlap, overlap // 2, overlap - overlap // 2, full=True)


def round_up(size: int, multiple: int) -> int:
    """The next multiple."""
    return math.ceil(size / multiple) * multiple
