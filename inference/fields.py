"""Volumes of grey values that are computed when they are asked for: any box of them, always from the same tiles."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codes.store import CodeStore
from inference.encoding import SliceEncoder
from inference.passes import Tiled, to_array
from inference.run import Run
from inference.source import Source
from inference.tiling import Tile3, core_box, meet, window_box
from intensity.transform import Intensity
from utils.axes import SEEN_ALONG, as_planes, exchanged
from utils.boxes import Box, extent, overlap, relative

Array = NDArray[Any]
Codes = SliceEncoder | CodeStore
Part = Callable[[Box], Array]  # values of a part of a box
Seen = TypeVar("Seen")


class Field(ABC):
    """A volume (C, Z, Y, X) of grey values that is computed when it is asked for.

    Attributes:
        shape: (Z, Y, X).
        channels: C.
        block: (z, y, x) tiles that go through the network together.
        unit: (z, y, x) voxels of the cores of a block: boxes made of whole ones are computed without waste.
        intensities: of the channels; further channels have that of the last one.
        dtype: of the values.
        skip_empty: fill tiles of pure background instead of computing them.
        skipped: how many were filled.
    """

    shape: tuple[int, int, int]
    channels: int
    block: tuple[int, int, int] = (1, 1, 1)
    unit: tuple[int, int, int]
    intensities: Sequence[Intensity]
    dtype: np.dtype
    skip_empty: bool = True
    skipped: int = 0

    @abstractmethod
    def prefetch(self, box: Box) -> None:
        """Begin to read what :meth:`begin` of the same box will need."""

    @abstractmethod
    def begin(self, box: Box) -> Part:
        """Has the network compute a box.

        Returns:
            What gives the values (C, z, y, x) of any part of the box. It waits for a GPU where it has to, and may be called from
            any thread, while the next box is begun.
        """

    def render(self, box: Box) -> Array:
        """The box, (C, z, y, x)."""
        return self.begin(box)(box)

    @abstractmethod
    def lattice(self) -> dict[str, Any]:
        """The tiles, as plain JSON for the metadata."""

    def to_grey(self, values: Tensor) -> Tensor:
        """The network's values (C, ...) → grey values of the field's dtype, rounded and clipped where it is an integer."""
        last = len(self.intensities) - 1
        grey = torch.stack([self.intensities[min(c, last)].to_grey(v) for c, v in enumerate(values.float())])
        if self.dtype.kind in "ui":
            limits = np.iinfo(self.dtype)
            grey = grey.round().clamp(float(limits.min), float(limits.max))
        return grey.to(getattr(torch, self.dtype.name))


class TurnedField(Field):
    """A field whose axis z has changed places with the thick axis of the file that it was made of."""

    def __init__(self, field: Field, thick: str) -> None:
        self.field, self._thick = field, thick
        self.shape, self.block, self.unit = (exchanged(n, thick) for n in (field.shape, field.block, field.unit))
        self.channels, self.intensities, self.dtype = field.channels, field.intensities, field.dtype

    def lattice(self) -> dict[str, Any]:
        """As the field has it."""
        return self.field.lattice()

    def prefetch(self, box: Box) -> None:
        """Lets the field read ahead."""
        self.field.prefetch(exchanged(box, self._thick))

    def begin(self, box: Box) -> Part:
        """The field's values, turned."""
        begun = self.field.begin(exchanged(box, self._thick))
        return lambda part: as_planes(begun(exchanged(part, self._thick)), SEEN_ALONG[self._thick])


class TiledField(Tiled[Seen, Array], Field):
    """A field whose tiles a network computes; a place of the lattice has ``scale`` voxels.

    Exact tiles are what the network makes of the whole volume at once: their windows hold all that their cores depend on. They
    are kept as grey values of their cores. Where a network's result depends on the whole window (``blends``), windows overlap;
    they are kept as the network's values, and summed with weights, tile by tile in the lattice's order.
    """

    def __init__(self, run: Run, origin: Source | Codes, dtype: np.dtype, batch: int | None, *, skip_empty: bool = True) -> None:
        super().__init__(run, origin, batch, skip_empty=skip_empty)
        self.intensities, self.dtype = origin.intensities, dtype

    @property
    def unit(self) -> tuple[int, int, int]:  # type: ignore[override]
        """Voxels of the cores of a block."""
        z, y, x = (s * axis.core * n for s, axis, n in zip(self.scale, self.axes, self.block, strict=True))
        return z, y, x

    def lattice(self) -> dict[str, Any]:
        """Cores and overlaps in voxels."""
        axes = list(zip(self.scale, self.axes, strict=True))
        overlaps = [s * (axis.before + axis.after) if self.blends else 0 for s, axis in axes]
        return {"decoding": {"core": [s * axis.core for s, axis in axes], "overlap": overlaps, "exact": not self.blends}}

    def kept(self, tile: Tile3) -> Box:
        """The voxels that are kept of a tile: its core, or its window where windows are blended."""
        return (window_box if self.blends else core_box)(tile, self.scale)

    def inside(self, tile: Tile3) -> Box:
        """These in the tile's window."""
        return relative(self.kept(tile), window_box(tile, self.scale))

    def kind(self, tile: Tile3) -> Hashable:
        """Places of core and margins; of the window, where the core in it makes no difference."""
        return extent(window_box(tile)) if self.blends else tuple(side.kind for side in tile)

    def arrays(self, volumes: Tensor) -> list[Array]:
        """What is kept of the network's values (B, C, z, y, x) of tiles."""
        return [to_array(volume.float() if self.blends else self.to_grey(volume)) for volume in volumes]

    def blank(self, tile: Tile3) -> Array:
        """The grey value of empty background."""
        floors = [self.intensities[min(c, len(self.intensities) - 1)].floor for c in range(self.channels)]
        grey = self.to_grey(torch.tensor(floors)[:, None, None, None]).numpy()
        return np.broadcast_to(grey, (self.channels, *extent(self.kept(tile))))

    def join(self, parts: Sequence[Array], axis: int) -> Array:
        """A tile from its parts."""
        self.run.engine.record()()
        return np.concatenate(parts, axis=axis + 1)

    def begin(self, box: Box) -> Part:
        """The box, from the tiles that meet it; they are remembered where another box may meet them, too."""
        sides = zip(box, self.unit, self.shape, strict=True)
        aligned = all(b.start % u == 0 and (b.stop % u == 0 or b.stop == s) for b, u, s in sides)
        made = self.computed(self.tiles(box), keep=self.blends or not aligned)
        arrived = self.run.engine.record()
        if self.blends:
            arrived()
            return parts_of(self._blended(box, made), box)
        tiles = [(self.kept(tile), values) for tile, values in made.items()]

        def part(box: Box) -> Array:
            arrived()
            out = np.empty((self.channels, *extent(box)), self.dtype)
            for core, values in tiles:
                if meet(core, box):
                    inside, source = _common(box, core)
                    out[inside] = values[source]
            return out

        # Without a GPU there is nothing to wait for, and the tiles can be forgotten.
        return part if self.run.engine.device.type == "cuda" else parts_of(part(box), box)

    def _blended(self, box: Box, made: Mapping[Tile3, Array]) -> Array:
        total, weight = np.zeros((self.channels, *extent(box)), np.float32), np.zeros((1, *extent(box)), np.float32)
        for tile, values in made.items():
            ramp = np.ones(1, np.float32)
            for axis, side, scale in zip(self.axes, tile, self.scale, strict=True):
                ramp = ramp[..., None] * axis.weights(side.core[0] // axis.core, scale)
            inside, source = _common(box, self.kept(tile))
            total[inside] += (values * ramp)[source]
            weight[inside] += ramp[source]
        return self.to_grey(torch.from_numpy(total / weight[0])).numpy()


def _common(box: Box, other: Box) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Where two boxes meet, in the arrays (C, ...) of the one and of the other."""
    met = overlap(box, other)
    return (slice(None), *relative(met, box)), (slice(None), *relative(met, other))


def parts_of(values: Array, box: Box) -> Part:
    """Parts of a box whose values (C, z, y, x) are all there."""
    return lambda part: values[(slice(None), *relative(part, box))]
