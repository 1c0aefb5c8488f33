"""Output volumes that are computed piece by piece: any box of them, always from the same tiles."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference.batches import Passes, no_memory
from inference.encoding import Codes, Recent
from inference.intensity import quantised
from inference.run import Run
from inference.tiling import Axis
from inference.transfer import Arriving, packed_tensor
from utils.geometry import LATENT_STRIDE
from volumes.intensity import Intensity
from volumes.volume import Box, Span, extent, overlap, relative, voxels_of

CACHE_BYTES = 512 * 2**20  # of finished tiles, where boxes do not lie on the lattice
Array = NDArray[Any]
Part = Callable[[Box], Array]  # values of a part of a box
Core = tuple[Span, ...]  # of a tile in latents (z, y, x)


class Field(ABC):
    """A volume (C, Z, Y, X) of grey values that is computed when it is asked for.

    Attributes:
        shape: (Z, Y, X).
        channels: C.
        block: (z, y, x) tiles that go through the network together.
        unit: (z, y, x) voxels of the cores of a block: boxes made of whole ones are computed without waste.
        dtype: of the values.
        skipped: tiles of pure background that were filled, not computed.
    """

    shape: tuple[int, int, int]
    channels: int
    block: tuple[int, int, int] = (1, 1, 1)
    unit: tuple[int, int, int]
    skipped: int = 0

    def __init__(self, intensities: Sequence[Intensity], dtype: np.dtype) -> None:
        self.intensities, self.dtype = tuple(intensities), dtype

    @abstractmethod
    def prefetch(self, box: Box) -> None:
        """Begin to read what :meth:`render` of the same box will need."""

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

    def cost(self, box: Box) -> float:
        """Seconds that the network takes for a voxel, from a trial with a box."""
        return seconds_of(lambda: self.render(box)) / voxels_of(box)

    def to_grey(self, values: Tensor) -> Tensor:
        """The network's values (C, ...) → grey values of the field's dtype."""
        channels = [self.intensities[min(c, len(self.intensities) - 1)].to_grey(v) for c, v in enumerate(values.float())]
        return quantised(torch.stack(channels), self.dtype)

    def background(self) -> Array:
        """The grey value of empty background, (C, 1, 1, 1)."""
        floors = [self.intensities[min(c, len(self.intensities) - 1)].floor for c in range(self.channels)]
        return self.to_grey(torch.tensor(floors)[:, None, None, None]).numpy()


class IsotropicField(Field):
    """The volume decoder's output, from exact tiles: what the decoder makes of the whole stack at once.

    Beyond the first and last slice, and beyond the padded rows and columns, each layer sees its own zeros, as at the edge of a
    training crop; everywhere else a tile sees as many latents as reach into it.

    Neighbouring tiles that are alike go through the generator together. Arithmetic rounds otherwise for another number of tiles
    (float32 on a CPU: by 1e-7), so which ones do is a matter of the lattice, not of the box asked for: a tile keeps its place
    among the same number of tiles, and so its bits, even where the others are not wanted. Another ``batch`` may change the last
    bit, and so may a batch or a tile that was halved because memory did not suffice.

    Args:
        run: the model.
        codes: where codes come from.
        inner: rows and columns of the volume without padding.
        intensities: of the output's channels.
        dtype: of the output.
        core: latents (z, y, x) of a tile's core.
        batch: tiles per pass at most.
        region: what will be asked for; tiles outside are not computed.
        skip_empty: fill tiles that see nothing but background.
        seed: dropout is active and drawn from this seed and the tile's place; None: it is not.
    """

    def __init__(
        self,
        run: Run,
        codes: Codes,
        inner: Sequence[int],
        intensities: Sequence[Intensity],
        dtype: np.dtype,
        *,
        core: Sequence[int],
        batch: int = 1,
        region: Box | None = None,
        skip_empty: bool = True,
        seed: int | None = None,
    ) -> None:
        super().__init__(intensities, dtype)
        self.run, self.codes, self.skip_empty, self.seed = run, codes, skip_empty, seed
        geometry = run.geometry
        n, h, w = codes.shape
        self.pooling, self.resizing = geometry.downbranch, geometry.resizebranch
        self.stack = -(-n // self.pooling) * self.resizing
        self.shape = (n * geometry.factor, int(inner[0]), int(inner[1]))
        self.channels = int(run.settings["output_nc"])
        halo = run.model.volume_halo
        self.axes = tuple(Axis(size, int(c), m, m) for size, c, m in zip((self.stack, h, w), core, halo, strict=True))
        self.block = _block([len(axis) for axis in self.axes], batch)
        z, y, x = (LATENT_STRIDE * int(c) * n for c, n in zip(core, self.block, strict=True))
        self.unit, self.region = (z, y, x), region
        self.passes = Passes(batch)
        self._tiles: Recent[Arriving] = Recent(CACHE_BYTES)
        self._largest: int | None = None  # latents of a core that fitted into memory, after one did not

    def lattice(self) -> dict[str, Any]:
        """Cores and halos in latents, and the tiles that are computed together."""
        core, halo = [axis.core for axis in self.axes], [axis.before for axis in self.axes]
        return {"core": core, "halo": halo, "block": list(self.block), "exact": True}

    def prefetch(self, box: Box) -> None:
        """Lets the codes be read."""
        for group in self._groups(box):
            for core in group:
                if self._wanted(core) and core not in self._tiles:
                    self.codes.prefetch(*self._needed(self._windows(core)))

    def begin(self, box: Box) -> Part:
        """The box, from the tiles that meet it."""
        sides = zip(box, self.unit, self.shape, strict=True)
        aligned = all(b.start % u == 0 and (b.stop % u == 0 or b.stop == s) for b, u, s in sides)
        tiles: dict[Core, Arriving] = {}
        for group in self._groups(box):
            tiles |= self._tiles_of(group, keep=not aligned)

        def part(box: Box) -> Array:
            out = np.empty((self.channels, *extent(box)), self.dtype)
            for core, tile in tiles.items():
                if _meets(core, box):
                    place(out, box, tile.wait(), _voxels(core))
            return out

        # Without a GPU there is nothing to wait for, and the tiles can be forgotten.
        return part if self.run.engine.device.type == "cuda" else parts_of(part(box), box)

    def cost(self, box: Box) -> float:
        """From a trial with tiles of a box; each code is computed once, and stands for several voxels."""
        group = max(self._groups(box), key=len)

        def decode() -> None:
            for tile in self._through_network(group):
                tile.wait()

        decoding = seconds_of(decode) / sum(math.prod(LATENT_STRIDE * (b - a) for a, b in core) for core in group)
        return decoding + self.codes.cost() * math.prod(self.codes.shape) / math.prod(self.shape)

    # Tiles -----------------------------------------------------------------------------------------------------------

    def _groups(self, box: Box) -> Iterator[list[Core]]:
        """The tiles that a box meets, by their cores, each with those of its block that are like it."""
        blocks = [range(b.start // u, -(-b.stop // u)) for b, u in zip(box, self.unit, strict=True)]
        for block in product(*blocks):
            numbers = (
                range(at * n, min((at + 1) * n, len(axis))) for at, n, axis in zip(block, self.block, self.axes, strict=True)
            )
            alike: dict[Any, list[Core]] = {}
            for of_tile in product(*numbers):
                tiles = [axis[n] for axis, n in zip(self.axes, of_tile, strict=True)]
                alike.setdefault(tuple(tile.kind for tile in tiles), []).append(tuple(tile.core for tile in tiles))
            yield from (group for group in alike.values() if any(_meets(core, box) for core in group))

    def _wanted(self, core: Core) -> bool:
        return self.region is None or _meets(core, self.region)

    def _tiles_of(self, group: list[Core], keep: bool) -> dict[Core, Arriving]:
        """The wanted tiles of a group, by their cores."""
        wanted = [core for core in group if self._wanted(core)]
        if all(core in self._tiles for core in wanted):
            return {core: self._tiles.get(core) for core in wanted}
        made = dict(zip(group, self._through_network(group), strict=True))
        tiles = {core: made[core] for core in wanted}
        for core, tile in tiles.items() if keep else ():
            self._tiles.put(core, tile, tile.values.nbytes)
        return tiles

    def _through_network(self, cores: Sequence[Core]) -> list[Arriving]:
        """Cores in latents, alike → (C, z, y, x) voxels of each."""
        return self.passes(self._decode, cores, self._too_large)

    def _too_large(self, core: Core) -> Arriving:
        if _longest(core) == 1:
            raise no_memory("a tile of one latent", "a smaller --tile")
        self._largest = (_longest(core) + 1) // 2
        return self._in_halves(core)

    def _in_halves(self, core: Core) -> Arriving:
        lengths = [b - a for a, b in core]
        axis = lengths.index(max(lengths))
        start, stop = core[axis]
        middle = (start + stop) // 2
        halves = [(*core[:axis], part, *core[axis + 1 :]) for part in ((start, middle), (middle, stop))]
        parts = [self._through_network([half])[0] for half in halves]
        return Arriving(np.concatenate([part.wait() for part in parts], axis=axis + 1))

    def _decode(self, cores: Sequence[Core]) -> list[Arriving]:
        """As above, in one pass; a tile that is background or not wanted keeps its place."""
        if self._largest is not None and _longest(cores[0]) > self._largest:
            return [self._in_halves(core) for core in cores]
        stacks = [self._stack(core) if self._wanted(core) else None for core in cores]
        blank = np.broadcast_to(self.background(), (self.channels, *(LATENT_STRIDE * (b - a) for a, b in cores[0])))
        tiles = self._expand(stacks, cores) if any(stack is not None for stack in stacks) else [None] * len(cores)
        self.skipped += sum(tile is None and self._wanted(core) for core, tile in zip(cores, tiles, strict=True))
        return [Arriving(blank) if tile is None else tile for tile in tiles]

    def _windows(self, core: Core) -> list[Span]:
        return [(max(0, a - axis.before), min(axis.size, b + axis.after)) for (a, b), axis in zip(core, self.axes, strict=True)]

    def _margins(self, core: Core) -> list[Span]:
        """Latents of the window before and after the core."""
        return [(a - low, high - b) for (a, b), (low, high) in zip(core, self._windows(core), strict=True)]

    def _needed(self, windows: Sequence[Span]) -> tuple[Span, Span, Span]:
        """The codes under a window of the stack: slices, latents along rows, along columns."""
        first, last = self._pooled(windows[0])
        return (first * self.pooling, min(last * self.pooling, self.codes.shape[0])), windows[1], windows[2]

    def _pooled(self, window: Span) -> Span:
        """Planes before resizing under a window of the stack, with the neighbours that interpolation reads."""
        if self.resizing == 1:
            return window
        count = self.stack // self.resizing
        return max(0, window[0] // self.resizing - 1), min(count, -(-window[1] // self.resizing) + 1)

    @torch.inference_mode()
    def _stack(self, core: Core) -> Tensor | None:
        """What the generator reads of a tile, (1, d, y, x, z); None where there is nothing but background."""
        windows = self._windows(core)
        packed = self.codes.read(*self._needed(windows))
        if self.skip_empty and packed.empty.all():
            return None
        model, window = self.run.model, windows[0]
        first, last = self._pooled(window)
        with self.run.engine.computing():
            latent = model.unpack(packed_tensor(packed.codes, self.run.engine.device))
            short = (last - first) * self.pooling - len(latent)
            if short:  # the last group of pooled slices is incomplete
                latent = torch.cat([latent, latent[-1:].expand(short, *latent.shape[1:])])
            stack = model.restack(latent.movedim(0, -1)[None])
        skip = window[0] - first * self.resizing
        return stack[..., skip : skip + window[1] - window[0]]

    @torch.inference_mode()
    def _expand(self, stacks: Sequence[Tensor | None], cores: Sequence[Core]) -> list[Arriving | None]:
        """Stacks of cores → their voxels; in the place of one that is None, another one goes through the network."""
        other = next(stack for stack in stacks if stack is not None)
        batch = torch.cat([other if stack is None else stack for stack in stacks])
        batch = batch.contiguous(memory_format=torch.channels_last_3d)
        z, y, x = self._margins(cores[0])
        with self.run.engine.computing(), dropout(self.run.model.G["net_g"], self.seed, cores[0]):
            volumes = self.run.model.expand(batch, (y, x, z))
        return [
            None if stack is None else Arriving.of(self.to_grey(volume.movedim(-1, 1)))
            for stack, volume in zip(stacks, volumes, strict=True)
        ]


def _block(counts: Sequence[int], batch: int) -> tuple[int, int, int]:
    """How many of the tiles there are along each axis (z, y, x) make a batch: first along x."""
    x = min(batch, counts[2])
    y = min(batch // x, counts[1])
    return min(batch // (x * y), counts[0]), y, x


def _voxels(core: Core) -> list[Span]:
    return [(LATENT_STRIDE * a, LATENT_STRIDE * b) for a, b in core]


def _meets(core: Core, box: Box) -> bool:
    return all(a < b.stop and b.start < z for (a, z), b in zip(_voxels(core), box, strict=True))


def _longest(core: Core) -> int:
    return max(b - a for a, b in core)


def seconds_of(call: Callable[[], object]) -> float:
    """How long a call takes once it is warm: the first time memory is asked for, and what neighbours share is computed."""
    call()
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def parts_of(values: Array, box: Box) -> Part:
    """Parts of a box whose values (C, z, y, x) are all there."""
    return lambda part: values[(slice(None), *relative(part, box))]


def place(out: Array, box: Box, tile: Array, spans: Sequence[Span], *, add: bool = False) -> None:
    """Puts the part of a tile (C, ...) at ``spans`` that lies in a box into the box's array (C, ...), or adds it."""
    own = tuple(slice(*span) for span in spans)
    met = overlap(box, own)
    inside, source = (slice(None), *relative(met, box)), (slice(None), *relative(met, own))
    if add:
        out[inside] += tile[source]
    else:
        out[inside] = tile[source]


@contextmanager
def dropout(network: torch.nn.Module, seed: int | None, core: Sequence[Span]) -> Iterator[None]:
    """Dropout as in training, drawn from a seed and a place; without a seed nothing changes."""
    layers = [] if seed is None else [module for module in network.modules() if isinstance(module, torch.nn.Dropout)]
    if seed is not None:
        torch.manual_seed(int(np.random.SeedSequence([seed, *(a for a, _ in core)]).generate_state(1)[0]))
    for layer in layers:
        layer.train()
    try:
        yield
    finally:
        for layer in layers:
            layer.eval()
