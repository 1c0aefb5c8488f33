"""Tiles of a lattice through a network: several per pass, recent ones kept; fewer, then parts, where memory does not suffice."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from itertools import chain, islice, product
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference.fields import Array, Field, Part, parts_of
from inference.run import Run
from inference.tiling import Axis, Tile3, core_box, window_box
from utils.boxes import Box, assembled, extent, meet, overlap, relative
from utils.errors import UserError
from utils.machine import lacks_memory
from utils.recent import Recent

log = logging.getLogger("isoscope")


Seen = TypeVar("Seen")
Made = TypeVar("Made")


class Tiled(ABC, Generic[Seen, Made]):
    """What a network computes tile by tile, with the same bits for a tile whatever else is asked for.

    Arithmetic rounds otherwise for another number of tiles in a pass. So that number is a matter of the lattice: either all
    passes are filled up to one size, whichever tiles share them, or the tiles of a block of the lattice share one, each at its
    own place, even where the others are not wanted.

    Attributes:
        run: the model.
        batch: tiles per pass; halved each time that memory does not suffice.
        fill: whether the network always gets ``batch`` tiles, the last one again and again where there are fewer.
        axes: the lattice (z, y, x).
        block: (z, y, x) tiles of the lattice that share a pass, where passes are not filled.
        scale: (z, y, x) units of the boxes asked for that a place of the lattice has.
        blends: whether a place belongs to every window that holds it, not to one core.
        region: what will be asked for, where it is known; None: anything.
        divisible: axes along which a tile may be divided where memory does not suffice.
        smallest: what a tile that cannot be divided is, and what helps; for a message.
        skip_empty: fill tiles that see nothing but background instead of computing them.
        skipped: how many were filled.
        origin: what its tiles are made of: the source, or codes of it.
        intensities: of the channels, those of ``origin``.
        dtype: of what it makes.
        keeps: whether tiles are kept for what is asked for next.
        scratch: what a pass takes of a CPU's memory, of that of its tensors; the rest convolutions take for copies of their own.
    """

    axes: tuple[Axis, Axis, Axis]
    block: tuple[int, int, int] = (1, 1, 1)
    fill = True
    scale: tuple[int, int, int] = (1, 1, 1)
    blends = False
    region: Box | None = None
    divisible: tuple[int, ...] = (0,)
    smallest = ("one slice of a tile", "--batch 1")
    keeps = False
    scratch = 1.25  # foreseen peaks of the lateral model were 0.92 and 1.09 of measured ones

    def __init__(self, run: Run, origin: Any, dtype: np.dtype, batch: int | None, *, skip_empty: bool = True) -> None:
        self.run, self.origin, self.intensities, self.dtype = run, origin, origin.intensities, dtype
        self.batch, self.skip_empty, self.skipped = batch or run.engine.batch, skip_empty, 0
        self._ahead: dict[Tile3, Future[Any]] = {}
        self._largest: int | None = None  # side of a core that fitted into memory, after one did not

    @property
    def recent(self) -> Recent:
        """The tiles that were computed lately, shared by all networks of a command: the origin knows them."""
        recent: Recent = self.origin.recent
        return recent

    # What a network is -----------------------------------------------------------------------------------------------

    @abstractmethod
    def needed(self, tile: Tile3) -> Box:
        """What a tile is made of, a box of ``origin``."""

    @abstractmethod
    def see(self, tile: Tile3, given: Any) -> Seen | None:
        """What the network reads of what was needed for a tile; None where that is only background and ``skip_empty``."""

    @abstractmethod
    def compute(self, tiles: Sequence[Tile3], seen: Sequence[Seen]) -> list[Made]:
        """One pass over tiles that are alike; what it makes of each, which knows its ``nbytes``; a GPU may still be at it."""

    @abstractmethod
    def entrance(self, tile: Tile3) -> tuple[int, ...]:
        """Shape of what enters :meth:`network` for ``batch`` such tiles."""

    @abstractmethod
    def network(self, tiles: Sequence[Tile3], inputs: Tensor) -> Tensor:
        """What the network makes of tiles that are alike; also of tensors that have only a shape, to foresee the memory."""

    def stored(self, values: Tensor) -> Tensor:
        """Values of :meth:`network` as they are kept."""
        return values

    def widest(self) -> Tile3:
        """A tile whose window is as large as any."""
        z, y, x = (max((axis[n] for n in range(len(axis))[:2]), key=lambda t: t.window[1] - t.window[0]) for axis in self.axes)
        return z, y, x

    @abstractmethod
    def whole(self, box: Box, parts: Sequence[tuple[Box, Made]]) -> Made:
        """What is made of a box, from what is made of boxes that cover it."""

    def blank(self, tile: Tile3) -> Made:
        """What a tile of pure background is."""
        raise NotImplementedError

    def kind(self, tile: Tile3) -> Hashable:
        """What is equal for tiles that may share a pass."""

    def wanted(self, tile: Tile3) -> bool:
        """Whether a tile that shares a pass is of any use."""
        return self.region is None or meet(core_box(tile, self.scale), self.region)

    def tiles(self, box: Box) -> list[Tile3]:
        """The tiles whose cores meet a box, or whose windows where these are blended."""
        spans = [(side.start // scale, -(-side.stop // scale)) for side, scale in zip(box, self.scale, strict=True)]
        z, y, x = (
            [axis[n] for n in (axis.reaching if self.blends else axis.covering)(span)]
            for axis, span in zip(self.axes, spans, strict=True)
        )
        return list(product(z, y, x))

    def kept(self, tile: Tile3) -> Box:
        """What is kept of a tile: its core, or its window where windows are blended."""
        return (window_box if self.blends else core_box)(tile, self.scale)

    def groups(self, tiles: Iterable[Tile3]) -> list[list[Tile3]]:
        """The tiles that share passes with some tiles: of these those that are alike, or of a block all that are."""
        found: dict[Hashable, list[Tile3]] = {}
        for tile in tiles:
            alike = self.kind(tile)
            if self.fill:
                found.setdefault(alike, []).append(tile)
                continue
            block = []
            for side, axis, count in zip(tile, self.axes, self.block, strict=True):
                first = side.core[0] // axis.core // count * count
                block.append([axis[n] for n in range(first, min(first + count, len(axis)))])
            z, y, x = block
            group = [one for one in product(z, y, x) if self.kind(one) == alike]
            found[group[0]] = group
        return list(found.values())

    # Tiles -----------------------------------------------------------------------------------------------------------

    def prefetch(self, box: Box) -> None:
        """Begins to read what the missing tiles of a box need."""
        for group in self.groups(tile for tile in self.tiles(box) if (self, tile) not in self.recent):
            for tile in group:
                if (self, tile) not in self.recent and tile not in self._ahead and self.wanted(tile):
                    ahead = self.origin.prefetch(self.needed(tile))
                    self._ahead |= {tile: ahead} if ahead else {}

    def read(self, box: Box) -> Made:
        """What is made of a box, from the tiles that meet it; those that are missing are computed."""
        return self.whole(box, [(self.kept(tile), made) for tile, made in self.computed(self.tiles(box)).items()])

    def given(self, tile: Tile3) -> Any:
        """What a tile is made of, read by now where that was begun ahead."""
        ahead = self._ahead.pop(tile, None)
        return self.origin.read(self.needed(tile)) if ahead is None else ahead.result()

    def computed(self, tiles: Sequence[Tile3], *, keep: bool = True) -> dict[Tile3, Made]:
        """What the network makes of tiles, in this order; those that were not kept go through it."""
        found = {tile: self.recent.latest((self, tile)) for tile in tiles if (self, tile) in self.recent}
        for group in self.groups(tile for tile in tiles if tile not in found):
            made = self._through_network(group)
            found |= made
            for tile in made if keep else ():
                self.recent.put((self, tile), made[tile])
        return {tile: found[tile] for tile in tiles}

    @torch.inference_mode()
    def _through_network(self, tiles: Iterable[Tile3]) -> dict[Tile3, Made]:
        """The wanted ones of tiles that may share passes; without the memory for it fewer do, then a tile is divided."""
        made: dict[Tile3, Made] = {}
        items = self._seen(tiles, made)
        while part := list(islice(items, self.batch)):
            other = next((seen for _, seen in part if seen is not None), None)
            if other is None:
                continue
            if self._largest is not None and max(self._sides(part[0][0])) > self._largest:
                made |= {tile: self._in_parts(tile) for tile, seen in part if seen is not None}
                continue
            try:  # what is not computed keeps its place in the pass
                places = [(tile, other if seen is None else seen) for tile, seen in part]
                filling = [places[-1]] * (self.batch - len(part)) if self.fill else []
                with self.run.engine.computing():
                    results = self.compute(*zip(*places, *filling, strict=True))
                made |= {tile: one for (tile, seen), one in zip(part, results, strict=False) if seen is not None}
                continue
            except (RuntimeError, MemoryError) as error:
                if not lacks_memory(error):
                    raise
            # The memory of the failed pass is free only here: the block above holds its frames.
            torch.cuda.empty_cache()
            if self.batch > 1:
                self.batch //= 2
                log.info("memory does not suffice for so many tiles per pass; going on with %d", self.batch)
                items = chain(part, items)
            else:
                made[part[0][0]] = self._in_parts(part[0][0])
        return made

    def _seen(self, tiles: Iterable[Tile3], made: dict[Tile3, Made]) -> Iterator[tuple[Tile3, Seen | None]]:
        """What the network reads of tiles, None of those that only keep their places; what is background is made here."""
        for tile in tiles:
            wanted = self.wanted(tile)
            seen = self.see(tile, self.given(tile)) if wanted else None
            if wanted and seen is None:
                self.skipped += 1
                made[tile] = self.blank(tile)
            if seen is not None or not self.fill:
                yield tile, seen

    def _sides(self, tile: Tile3) -> list[int]:
        """Places of the core along the axes that may be divided."""
        return [tile[axis].core[1] - tile[axis].core[0] for axis in self.divisible]

    def _in_parts(self, tile: Tile3) -> Made:
        """A tile that does not fit into memory, from its halves along its longest axis.

        Raises:
            UserError: it cannot be divided.
        """
        longest = max(self._sides(tile), default=1)
        if longest == 1:
            what, remedy = self.smallest
            raise UserError(f"not even {what} fits into the memory that is left; start with {remedy}, or use another --device")
        self._largest = min(self._largest or longest, (longest + 1) // 2)
        axis = self.divisible[self._sides(tile).index(longest)]
        start, stop = tile[axis].core
        middle = (start + stop + 1) // 2
        made: dict[Tile3, Made] = {}
        for core in ((start, middle), (middle, stop)):
            z, y, x = (self.axes[n].around(core) if n == axis else side for n, side in enumerate(tile))
            made |= self._through_network([(z, y, x)])
        self.run.engine.record()()
        return self.whole(self.kept(tile), [(self.kept(part), values) for part, values in made.items()])


class TiledField(Tiled[Seen, Array], Field):
    """A field whose tiles a network computes; a place of the lattice has ``scale`` voxels.

    Exact tiles are what the network makes of the whole volume at once: their windows hold all that their cores depend on. They
    are kept as grey values of their cores. Where a network's result depends on the whole window (``blends``), windows overlap;
    they are kept as the network's values, and summed with weights, tile by tile in the lattice's order.
    """

    @property
    def unit(self) -> tuple[int, int, int]:  # type: ignore[override]
        """Voxels of the cores of a block."""
        z, y, x = (s * axis.core * n for s, axis, n in zip(self.scale, self.axes, self.block, strict=True))
        return z, y, x

    @property
    def lattice(self) -> dict[str, Any]:
        """Cores and overlaps in voxels."""
        axes = list(zip(self.scale, self.axes, strict=True))
        overlaps = [s * (axis.before + axis.after) if self.blends else 0 for s, axis in axes]
        return {"decoding": {"core": [s * axis.core for s, axis in axes], "overlap": overlaps, "exact": not self.blends}}

    def inside(self, tile: Tile3) -> Box:
        """What is kept of a tile, in its window."""
        return relative(self.kept(tile), window_box(tile, self.scale))

    def kind(self, tile: Tile3) -> Hashable:
        """Places of core and margins; of the window, where the core in it makes no difference."""
        return extent(window_box(tile)) if self.blends else tuple(side.kind for side in tile)

    def arrays(self, volumes: Tensor) -> list[Array]:
        """What is kept of the network's values (B, C, z, y, x) of tiles."""
        return [to_array(volume.float() if self.blends else self.to_grey(volume)) for volume in volumes]

    def stored(self, values: Tensor) -> Tensor:
        """Values (B, C, z, y, x) as :meth:`arrays` leaves them."""
        return values.float() if self.blends else torch.stack([self.to_grey(volume) for volume in values])

    def blank(self, tile: Tile3) -> Array:
        """The grey value of empty background."""
        floors = [self.intensities[min(c, len(self.intensities) - 1)].floor for c in range(self.channels)]
        grey = self.to_grey(torch.tensor(floors)[:, None, None, None]).numpy()
        return np.broadcast_to(grey, (self.channels, *extent(self.kept(tile))))

    def whole(self, box: Box, parts: Sequence[tuple[Box, Array]]) -> Array:
        """A box from boxes that cover it."""
        return assembled(box, parts, lead=1)

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
            return self.whole(box, tiles)

        # Without a GPU there is nothing to wait for, and the tiles can be forgotten.
        return part if self.run.engine.device.type == "cuda" else parts_of(part(box), box)

    def _blended(self, box: Box, made: Mapping[Tile3, Array]) -> Array:
        total, weight = np.zeros((self.channels, *extent(box)), np.float32), np.zeros((1, *extent(box)), np.float32)
        for tile, values in made.items():
            ramp = np.ones(1, np.float32)
            for axis, side, scale in zip(self.axes, tile, self.scale, strict=True):
                ramp = ramp[..., None] * axis.weights(side.core[0] // axis.core, scale)
            met = overlap(box, kept := self.kept(tile))
            inside, source = (..., *relative(met, box)), (..., *relative(met, kept))
            total[inside] += (values * ramp)[source]
            weight[inside] += ramp[source]
        return self.to_grey(torch.from_numpy(total / weight[0])).numpy()


def to_tensor(values: NDArray[Any], device: torch.device) -> Tensor:
    """An array on the device; codes of two bytes as int32, which every operation knows."""
    if values.dtype == np.uint16:
        values = values.astype(np.int32)
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def to_array(tensor: Tensor) -> NDArray[Any]:
    """The array in which a tensor's values are once its device has done what it has to; a GPU copies into pinned memory then."""
    return tensor.contiguous().to("cpu", non_blocking=True).numpy()
