"""Output volumes that are computed piece by piece: any box of them, always from the same tiles."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference.encoding import Codes
from inference.intensity import quantised
from inference.passes import Number, Recent, Tiled
from inference.run import Run
from inference.source import Options
from inference.tiling import Axis, Tile3, core_box, window_box
from inference.transfer import Arriving, packed_tensor
from utils.errors import UserError
from utils.geometry import LATENT_STRIDE
from volumes.intensity import Intensity
from volumes.volume import Box, overlap, relative, voxels_of, whole_box

Array = NDArray[Any]
Part = Callable[[Box], Array]  # values of a part of a box

_BYTES_PER_VOXEL = 3  # values of the finest level that are in memory at once, per channel of its width
_CORES = (64, 32, 16)
# Of a tensor on a GPU. Beyond, convolutions may ask for many times their memory (PyTorch issue 95024), and some kernels have
# counted wrongly without an error (141831).
_MOST_ELEMENTS = 2**31


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
        """Seconds that the network takes for a voxel, from a trial with a box once it is warm."""
        self.render(box)
        started = time.perf_counter()
        self.render(box)
        return (time.perf_counter() - started) / voxels_of(box)

    def to_grey(self, values: Tensor) -> Tensor:
        """The network's values (C, ...) → grey values of the field's dtype."""
        channels = [self.intensities[min(c, len(self.intensities) - 1)].to_grey(v) for c, v in enumerate(values.float())]
        return quantised(torch.stack(channels), self.dtype)


class IsotropicField(Tiled[Array, Arriving], Field):
    """The volume decoder's output, from exact tiles: what the decoder makes of the whole stack at once.

    Beyond the first and last slice, and beyond the padded rows and columns, each layer sees its own zeros, as at the edge of a
    training crop; everywhere else a tile sees as many latents as reach into it. Tiles of a block that are alike share a pass.
    Another ``batch`` may change the last bit (float32 on a CPU: by 1e-7), and so may a batch or a tile that was halved because
    memory did not suffice.

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
        recent: where recent tiles are kept.
    """

    scale = LATENT_STRIDE
    divisible = (0, 1, 2)
    smallest = ("a tile of one latent", "a smaller --tile")

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
        recent: Recent | None = None,
    ) -> None:
        Field.__init__(self, intensities, dtype)
        Tiled.__init__(self, run, batch, fill=False, skip_empty=skip_empty, recent=recent)
        self.codes, self.seed = codes, seed
        n, h, w = codes.shape
        self.pooling, self.resizing = run.geometry.downbranch, run.geometry.resizebranch
        self.stack = -(-n // self.pooling) * self.resizing
        self.shape = (n * run.geometry.factor, int(inner[0]), int(inner[1]))
        self.region = region or whole_box(self.shape)
        self.channels = int(run.settings["output_nc"])
        sizes = zip((self.stack, h, w), core, run.model.volume_halo, strict=True)
        z, y, x = self.axes = tuple(Axis(size, int(c), halo, halo) for size, c, halo in sizes)  # type: ignore[assignment]
        self.block = block_of([len(z), len(y), len(x)], batch)
        self.unit = tuple(LATENT_STRIDE * a.core * n for a, n in zip(self.axes, self.block, strict=True))  # type: ignore[assignment]
        floors = [self.intensities[min(c, len(self.intensities) - 1)].floor for c in range(self.channels)]
        self._background = self.to_grey(torch.tensor(floors)[:, None, None, None]).numpy()

    def lattice(self) -> dict[str, Any]:
        """Cores and halos in latents, and the tiles that are computed together."""
        core, halo = [axis.core for axis in self.axes], [axis.before for axis in self.axes]
        return {"core": core, "halo": halo, "block": list(self.block), "exact": True}

    def begin(self, box: Box) -> Part:
        """The box, from the tiles that meet it; they are kept where the box is not made of whole blocks."""
        sides = zip(box, self.unit, self.shape, strict=True)
        aligned = all(b.start % u == 0 and (b.stop % u == 0 or b.stop == s) for b, u, s in sides)
        made = self.computed(self.numbers(box), keep=not aligned)
        tiles = [(core_box(self.tile(number), LATENT_STRIDE), tile) for number, tile in made.items()]

        def part(box: Box) -> Array:
            out = np.empty((self.channels, *(b.stop - b.start for b in box)), self.dtype)
            for core, tile in tiles:
                if _meet(core, box):
                    place(out, box, tile.wait(), core)
            return out

        # Without a GPU there is nothing to wait for, and the tiles can be forgotten.
        return part if self.run.engine.device.type == "cuda" else parts_of(part(box), box)

    def cost(self, box: Box) -> float:
        """From a trial with tiles of a box; each code is computed once, and stands for several voxels."""
        return self.seconds(self.numbers(box)) / LATENT_STRIDE**3 + self.codes.cost() * math.prod(self.codes.shape) / math.prod(
            self.shape
        )

    def groups(self, numbers: Iterable[Number]) -> list[list[Number]]:
        """For each tile those of its block that are like it."""
        found: dict[Number, list[Number]] = {}
        for number in numbers:
            starts = [n // side * side for n, side in zip(number, self.block, strict=True)]
            sides = zip(starts, self.block, self.axes, strict=True)
            block = product(*(range(first, min(first + side, len(axis))) for first, side, axis in sides))
            kind = self.kind(self.tile(number))
            group = [(z, y, x) for z, y, x in block if self.kind(self.tile((z, y, x))) == kind]
            found[group[0]] = group
        return list(found.values())

    def kind(self, tile: Tile3) -> tuple[Any, ...]:
        """Places of core and margins."""
        return tuple(side.kind for side in tile)

    def wanted(self, tile: Tile3) -> bool:
        """Whether it meets the region."""
        return _meet(core_box(tile, LATENT_STRIDE), self.region)

    def _needed(self, tile: Tile3) -> Box:
        """The codes under a tile's window."""
        window, rows, columns = window_box(tile)
        first, last = self._pooled(window)
        return slice(first * self.pooling, min(last * self.pooling, self.codes.shape[0])), rows, columns

    def _pooled(self, window: slice) -> tuple[int, int]:
        """Planes before resizing under a window of the stack, with the neighbours that interpolation reads."""
        if self.resizing == 1:
            return window.start, window.stop
        count = self.stack // self.resizing
        return max(0, window.start // self.resizing - 1), min(count, -(-window.stop // self.resizing) + 1)

    def read_ahead(self, tile: Tile3) -> None:
        """Lets its codes be read."""
        self.codes.prefetch(self._needed(tile))

    def see(self, tile: Tile3) -> Array | None:
        """The codes under a tile's window."""
        packed = self.codes.read(self._needed(tile))
        return None if self.skip_empty and packed.empty.all() else packed.codes

    def compute(self, tiles: Sequence[Tile3], seen: Sequence[Array]) -> list[Arriving]:
        """The voxels of cores, (C, z, y, x) grey values."""
        stacks = torch.cat([self._stack(tile, codes) for tile, codes in zip(tiles, seen, strict=True)])
        stacks = stacks.contiguous(memory_format=torch.channels_last_3d)
        z, y, x = (side.margins for side in tiles[0])
        with dropout(self.run.model.G["net_g"], self.seed, tiles[0]):
            volumes = self.run.model.expand(stacks, (y, x, z))
        return [Arriving.of(self.to_grey(volume.movedim(-1, 1))) for volume in volumes]

    def _stack(self, tile: Tile3, codes: Array) -> Tensor:
        """What the generator reads of a tile, (1, d, y, x, z)."""
        model, window = self.run.model, tile[0].window
        first, last = self._pooled(slice(*window))
        latent = model.unpack(packed_tensor(codes, self.run.engine.device))
        short = (last - first) * self.pooling - len(latent)
        if short:  # the last group of pooled slices is incomplete
            latent = torch.cat([latent, latent[-1:].expand(short, *latent.shape[1:])])
        stack = model.restack(latent.movedim(0, -1)[None])
        skip = window[0] - first * self.resizing
        return stack[..., skip : skip + window[1] - window[0]]

    def blank(self, tile: Tile3) -> Arriving:
        """The grey value of empty background."""
        core = core_box(tile, LATENT_STRIDE)
        return Arriving(np.broadcast_to(self._background, (self.channels, *(side.stop - side.start for side in core))))

    def join(self, parts: Sequence[Arriving], axis: int) -> Arriving:
        """A tile from its parts."""
        return Arriving(np.concatenate([part.wait() for part in parts], axis=axis + 1))


def decoded_field(
    run: Run,
    codes: Codes,
    inner: Sequence[int],
    intensities: Sequence[Intensity],
    dtype: np.dtype,
    options: Options,
    *,
    seed: int | None = None,
    recent: Recent | None = None,
) -> IsotropicField:
    """The volume decoder's field, with tiles and passes as options and memory have them; arguments as of the class.

    Raises:
        UserError: the generator's norm sees the whole volume, which does not fit into one tile.
    """
    core = tile_core(run, options.tile)
    field = IsotropicField(
        run,
        codes,
        inner,
        intensities,
        dtype,
        core=core,
        batch=decoding_batch(run, options.batch, core, codes.shape),
        region=region_of(options.region, (codes.shape[0] * run.geometry.factor, inner[0], inner[1])),
        skip_empty=options.skip_empty,
        seed=seed,
        recent=recent,
    )
    if not run.local and not options.approximate and max(map(len, field.axes)) > 1:
        raise UserError(
            f"{run.name} uses norm {run.settings['norm']}, whose statistics are of the whole volume: tiles of it would differ. "
            "A volume of one tile is exact (--tile N, as memory allows); --approximate computes tiles all the same"
        )
    return field


def block_of(counts: Sequence[int], batch: int) -> tuple[int, int, int]:
    """How many of the tiles there are along each axis (z, y, x) make a batch: first along x."""
    x = min(batch, counts[2])
    y = min(batch // x, counts[1])
    return min(batch // (x * y), counts[0]), y, x


def region_of(region: Box | None, shape: Sequence[int]) -> Box:
    """The region asked for, or everything.

    Raises:
        UserError: it is empty or reaches beyond the volume.
    """
    whole = []
    for part, size, axis in zip(region or (slice(None),) * 3, shape, "zyx", strict=True):
        start, stop = part.start or 0, size if part.stop is None else part.stop
        if not 0 <= start < stop <= size:
            raise UserError(f"--region: {axis} {start}:{stop} is not within 0:{size}; the output is {tuple(shape)} (z, y, x)")
        whole.append(slice(start, stop))
    return whole[0], whole[1], whole[2]


def tile_core(run: Run, tile: int | None) -> tuple[int, int, int]:
    """Latents of a decoding tile's core: of ``--tile``, else as memory allows.

    Raises:
        UserError: ``--tile`` is no multiple of 8.
    """
    if tile is not None:
        if tile < LATENT_STRIDE or tile % LATENT_STRIDE:
            raise UserError(f"--tile {tile} must be a multiple of {LATENT_STRIDE}, such as 128")
        return (tile // LATENT_STRIDE,) * 3
    fitting = [c for c in _CORES if run.engine.device.type == "cuda" and (LATENT_STRIDE * c + 4) ** 3 < _room(run)]
    return ((fitting or _CORES[-1:])[0],) * 3


def decoding_batch(run: Run, asked: int | None, core: Sequence[int], codes: Sequence[int]) -> int:
    """Decoding tiles per pass: 1 on a CPU, 8 on a GPU, or as many as asked for; on a GPU no more than there is room for.

    Args:
        run: the model and where it is computed.
        asked: ``--batch``.
        core: latents (z, y, x) of a tile's core.
        codes: slices, latents along rows and columns.

    Raises:
        UserError: a single tile is too large for a GPU.
    """
    wanted = asked or run.engine.batch
    if run.engine.device.type != "cuda":
        return wanted
    whole = (codes[0] * run.geometry.factor, LATENT_STRIDE * codes[1], LATENT_STRIDE * codes[2])
    voxels = math.prod(min(LATENT_STRIDE * c, size) + 4 for c, size in zip(core, whole, strict=True))
    width = run.settings["ngf"]
    if width * voxels >= _MOST_ELEMENTS:
        side = int((_MOST_ELEMENTS / width) ** (1 / 3) - 4) // LATENT_STRIDE * LATENT_STRIDE
        raise UserError(
            f"a tile of {LATENT_STRIDE * core[0]} voxels needs tensors of {width * voxels:.3g} elements, which not every GPU "
            f"kernel can count; --tile {side} is the largest cube for ngf {width}"
        )
    return max(1, min(wanted, int(_room(run) / voxels)))


def _room(run: Run) -> float:
    """Voxels that can be decoded at once: half of the GPU's memory suffices, and its kernels can count the elements."""
    memory = torch.cuda.get_device_properties(run.engine.device).total_memory
    width = run.settings["ngf"] * (2 if run.engine.precision == "bf16" else 4) * _BYTES_PER_VOXEL
    return min(0.5 * memory / width, _MOST_ELEMENTS / run.settings["ngf"])


def _meet(box: Box, other: Box) -> bool:
    return all(a.start < b.stop and b.start < a.stop for a, b in zip(box, other, strict=True))


def parts_of(values: Array, box: Box) -> Part:
    """Parts of a box whose values (C, z, y, x) are all there."""
    return lambda part: values[(slice(None), *relative(part, box))]


def place(out: Array, box: Box, tile: Array, own: Box, *, add: bool = False) -> None:
    """Puts what a tile (C, ...) of a box of its own has of another box into that box's array (C, ...), or adds it."""
    met = overlap(box, own)
    inside, source = (slice(None), *relative(met, box)), (slice(None), *relative(met, own))
    if add:
        out[inside] += tile[source]
    else:
        out[inside] = tile[source]


@contextmanager
def dropout(network: torch.nn.Module, seed: int | None, tile: Tile3) -> Iterator[None]:
    """Dropout as in training, drawn from a seed and a place; without a seed nothing changes."""
    layers = [] if seed is None else [module for module in network.modules() if isinstance(module, torch.nn.Dropout)]
    if seed is not None:
        place = (side.core[0] for side in tile)
        torch.manual_seed(int(np.random.SeedSequence([seed, *place]).generate_state(1)[0]))
    for layer in layers:
        layer.train()
    try:
        yield
    finally:
        for layer in layers:
            layer.eval()
