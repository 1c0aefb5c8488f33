"""Output volumes: what a run makes of a volume; of codes the isotropic one, and the slices as the 2-D decoder has them."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from codes.store import CodeStore, Packed
from inference.encoding import GROUP, SliceEncoder
from inference.fields import Array, Field
from inference.options import Options
from inference.passes import TiledField, to_tensor
from inference.restoring import LateralField, RestoredField
from inference.run import Run
from inference.source import Source
from inference.tiling import Axis, Tile3, core_box, local_axis, training_axis, window_box
from intensity.transform import Intensity
from utils.axes import to_file, to_memory
from utils.boxes import Box, extent, region_within
from utils.errors import UserError
from utils.geometry import LATENT_STRIDE

Codes = SliceEncoder | CodeStore

_BYTES_PER_VOXEL = 3  # values of the finest level that are in memory at once, per channel of its width
_LOCAL_NORMS = ("batch", "none")  # without statistics of the whole volume
_CORES = (64, 32, 16)
# Of a tensor on a GPU. Beyond, convolutions may ask for many times their memory (PyTorch issue 95024), and some kernels have
# counted wrongly without an error (141831).
_MOST_ELEMENTS = 2**31


class SliceField(TiledField[Array]):
    """The 2-D decoder's output on the grid of the encoded slices; one channel, the first where there are two.

    Tiles of a local autoencoder are exact, those of another are training crops and blended. ``intensities`` may take the place of
    those of the codes.
    """

    channels = 1

    def __init__(
        self,
        run: Run,
        codes: Codes,
        dtype: np.dtype,
        batch: int | None = None,
        intensities: Sequence[Intensity] | None = None,
    ) -> None:
        super().__init__(run, codes, dtype, batch)
        self.codes, self.intensities = codes, intensities or codes.intensities
        n, h, w = codes.shape
        self.shape, self.scale = (n, *codes.inner), (1, run.stride, run.stride)
        halo = run.model.slice_halo("decoder")
        self.blends = halo is None
        crop = int(run.settings["cropsize"]) // run.stride
        rows, columns = (local_axis(size, *halo) if halo else training_axis(size, crop) for size in (h, w))
        self.axes = (Axis(n, 1 if halo else min(n, GROUP)), rows, columns)

    @property
    def lattice(self) -> dict[str, Any]:
        """That of the codes, too."""
        return {**super().lattice, "encoding": self.codes.lattice}

    def needed(self, tile: Tile3) -> Box:
        """Its codes."""
        return window_box(tile)

    def see(self, tile: Tile3, given: Packed) -> Array:
        """Its codes."""
        return given.codes

    def compute(self, tiles: Sequence[Tile3], seen: Sequence[Array]) -> list[Array]:
        """Slices of tiles."""
        unpacked = self.run.model.unpack(to_tensor(np.concatenate(seen), self.run.engine.device))
        return self.arrays(self.network(tiles, unpacked))

    def entrance(self, tile: Tile3) -> tuple[int, ...]:
        """Latents (B·n, d, h, w)."""
        n, y, x = extent(window_box(tile))
        return self.batch * n, _latent_width(self.run.model), y, x

    def network(self, tiles: Sequence[Tile3], inputs: Tensor) -> Tensor:
        """Their slices."""
        _, y, x = self.inside(tiles[0])
        return self.run.model.slices(inputs)[:, 0, y, x].unflatten(0, (len(tiles), 1, -1))


class IsotropicField(TiledField[tuple[Array, Array | None]]):
    """The volume decoder's output, from exact tiles: what the decoder makes of the whole stack at once.

    A model that adds to a volume made of the slices has these from a :class:`SliceField` of the same codes.

    Beyond the first and last slice, and beyond the padded rows and columns, each layer sees its own zeros, as at the edge of a
    training crop; everywhere else a tile sees as many latents as reach into it. Tiles of a block that are alike share a pass.
    Another ``batch`` may change the last bit (float32 on a CPU: by 1e-7), and so may a batch or a tile that was halved because
    memory did not suffice.

    Args:
        core: latents (z, y, x) of a tile's core.
        batch: tiles per pass at most.
        region: what will be asked for; tiles outside are not computed.
        skip_empty: fill tiles that see nothing but background.
        seed: dropout is active and drawn from this seed and the tile's place; None: it is not.
    """

    fill = False
    scale = (LATENT_STRIDE,) * 3
    divisible = (0, 1, 2)
    smallest = ("a tile of one latent", "a smaller --tile")
    scratch = 2.4  # measured 1.7 to 2.8, of volumes

    def __init__(
        self,
        run: Run,
        codes: Codes,
        dtype: np.dtype,
        *,
        core: Sequence[int],
        batch: int = 1,
        region: Box | None = None,
        skip_empty: bool = True,
        seed: int | None = None,
    ) -> None:
        super().__init__(run, codes, dtype, batch, skip_empty=skip_empty)
        self.codes, self.seed = codes, seed
        as_they_are = Intensity((), ())  # values of the network
        self.slices = SliceField(run, codes, np.dtype(np.float32), batch, [as_they_are]) if run.model.baseline else None
        self.channels = int(run.settings["output_nc"])
        n, h, w = codes.shape
        self.pooling, self.resizing = run.geometry.downbranch, run.geometry.resizebranch
        self.count = n * run.spread  # latents, between the codes too
        self.stack = -(-self.count // self.pooling) * self.resizing
        self.shape = (n * run.factor, codes.inner[0], codes.inner[1])
        self.region = region_within(region, [(0, size) for size in self.shape], "the output has voxels")
        sizes = zip((self.stack, h, w), core, run.model.volume_halo, strict=True)
        z, y, x = (Axis(size, int(c), halo, halo) for size, c, halo in sizes)
        self.axes = (z, y, x)
        self.block = block_of([len(z), len(y), len(x)], batch)

    @property
    def lattice(self) -> dict[str, Any]:
        """Cores and halos in latents, and the tiles that are computed together."""
        core, halo = [axis.core for axis in self.axes], [axis.before for axis in self.axes]
        tiles = {"core": core, "halo": halo, "block": list(self.block), "exact": True}
        slices = {} if self.slices is None else {"slices": self.slices.lattice["decoding"]}
        return {"decoding": tiles, **slices, "encoding": self.codes.lattice}

    def needed(self, tile: Tile3) -> Box:
        """The codes under a tile's window."""
        window, *sides = window_box(tile)
        latents, between = self._latents(window), self.run.model.between
        slices = slice(latents.start, latents.stop) if between is None else between.under(latents, self.codes.shape[0])
        return slices, *sides  # type: ignore[return-value]

    def _latents(self, window: slice) -> range:
        """Those that are pooled for a window of the stack, as far as there are any."""
        first, last = self._pooled(window)
        return range(first * self.pooling, min(last * self.pooling, self.count))

    def _pooled(self, window: slice) -> tuple[int, int]:
        """Planes before resizing under a window of the stack, with the neighbours that interpolation reads."""
        if self.resizing == 1:
            return window.start, window.stop
        count = self.stack // self.resizing
        return max(0, window.start // self.resizing - 1), min(count, -(-window.stop // self.resizing) + 1)

    def see(self, tile: Tile3, given: Packed) -> tuple[Array, Array | None] | None:
        """The codes under a tile's window, and the slices that its baseline is made of."""
        if self.skip_empty and given.empty.all():
            return None
        return given.codes, None if self.slices is None else self.slices.render(self._beneath(tile))

    def _beneath(self, tile: Tile3) -> Box:
        """The slices, rows and columns that the baseline of a tile's core depends on."""
        baseline, (planes, *pixels) = self.run.model.baseline, core_box(tile, self.scale)
        sizes = (LATENT_STRIDE * size for size in self.codes.shape[1:])
        wide = (
            slice(max(0, side.start - baseline.reach), min(size, side.stop + baseline.reach))
            for side, size in zip(pixels, sizes, strict=True)
        )
        return baseline.under(range(planes.start, planes.stop), self.codes.shape[0]), *wide  # type: ignore[return-value]

    def compute(self, tiles: Sequence[Tile3], seen: Sequence[tuple[Array, Array | None]]) -> list[Array]:
        """The voxels of cores, (C, z, y, x) grey values."""
        volumes = self.network(tiles, torch.cat([self._stack(tile, codes) for tile, (codes, _) in zip(tiles, seen, strict=True)]))
        if self.slices is not None:
            volumes = volumes + torch.cat([self._baseline(tile, slices) for tile, (_, slices) in zip(tiles, seen, strict=True)])
        return self.arrays(volumes)

    def entrance(self, tile: Tile3) -> tuple[int, ...]:
        """Stacks (B, d, h, w, m)."""
        z, y, x = extent(window_box(tile))
        return self.batch, _latent_width(self.run.model), y, x, z

    def network(self, tiles: Sequence[Tile3], inputs: Tensor) -> Tensor:
        """Their volumes (B, C, z, y, x), without the baseline."""
        z, y, x = (side.margins for side in tiles[0])
        with dropout(self.run.model.G["net_g"], self.seed, tiles[0]):
            return to_file(self.run.model.expand(inputs.contiguous(memory_format=torch.channels_last_3d), (y, x, z)))

    def _baseline(self, tile: Tile3, slices: Any) -> Tensor:
        """What the model adds to in a tile's core, (1, C, z, y, x)."""
        beneath, (planes, *pixels) = self._beneath(tile), core_box(tile, self.scale)
        values = to_memory(to_tensor(slices[None], self.run.engine.device))
        parts = [(side.start - wide.start, side.stop - wide.start) for side, wide in zip(pixels, beneath[1:], strict=True)]
        covered = range(planes.start, planes.stop)
        return to_file(self.run.model.baseline(values, covered, beneath[0].start, self.codes.shape[0], parts))

    def _stack(self, tile: Tile3, codes: Array) -> Tensor:
        """What the generator reads of a tile, (1, d, y, x, z)."""
        model, window = self.run.model, tile[0].window
        first, last = self._pooled(slice(*window))
        latent = model.unpack(to_tensor(codes, self.run.engine.device))
        latent = model.spread(latent, self._latents(slice(*window)), self.needed(tile)[0].start, self.codes.shape[0])
        short = (last - first) * self.pooling - len(latent)
        if short:  # the last group of pooled slices is incomplete
            latent = torch.cat([latent, latent[-1:].expand(short, *latent.shape[1:])])
        stack = model.restack(latent)
        skip = window[0] - first * self.resizing
        return stack[..., skip : skip + window[1] - window[0]]


def isotropic_field(run: Run, origin: Source | Codes, dtype: np.dtype, options: Options, seed: int | None = None) -> Field:
    """What a run makes of a volume, as its model does it, with tiles and passes as options and memory have them.

    Args:
        origin: what :func:`inference.encoding.slices_or_codes` gives, or a store.
        seed: see :class:`IsotropicField`.

    Raises:
        UserError: there is no volume decoder; or its norm sees the whole volume, which does not fit into one tile.
    """
    if isinstance(origin, Source):
        exact = hasattr(run.model, "restore_halo")
        return LateralField(run, origin, dtype, options) if exact else RestoredField(run, origin, dtype, options.batch)
    run.require_volume_decoder()
    core, batch = tiles_and_batch(run, options, origin.shape)
    field = IsotropicField(
        run,
        origin,
        dtype,
        core=(core,) * 3,
        batch=batch,
        region=options.region,
        skip_empty=options.skip_empty,
        seed=seed,
    )
    if run.settings["norm"] not in _LOCAL_NORMS and not options.approximate and max(map(len, field.axes)) > 1:
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


def tiles_and_batch(run: Run, options: Options, codes: Sequence[int]) -> tuple[int, int]:
    """Latents along a side of a decoding tile's core, and tiles per pass.

    A tile is what ``--tile`` says, else as memory allows. A pass has 1 on a CPU, 8 on a GPU, or what ``--batch`` says; on a GPU
    no more than there is room for: half of its memory suffices, and its kernels can count the elements.

    Args: ``codes``: slices, latents along rows and columns.

    Raises:
        UserError: a single tile is too large for a GPU.
    """
    tile, batch = options.tile, options.batch or run.engine.batch
    if run.engine.device.type != "cuda":
        return (tile or LATENT_STRIDE * _CORES[-1]) // LATENT_STRIDE, batch
    width, memory = run.settings["ngf"], torch.cuda.get_device_properties(run.engine.device).total_memory
    of_voxel = width * (2 if run.engine.precision == "bf16" else 4) * _BYTES_PER_VOXEL
    room = min(0.5 * memory / of_voxel, _MOST_ELEMENTS / width)  # voxels
    fitting = (core for core in _CORES if (LATENT_STRIDE * core + 4) ** 3 < room)
    core = tile // LATENT_STRIDE if tile else next(fitting, _CORES[-1])
    whole = (codes[0] * run.factor, LATENT_STRIDE * codes[1], LATENT_STRIDE * codes[2])
    voxels = math.prod(min(LATENT_STRIDE * core, size) + 4 for size in whole)
    if width * voxels >= _MOST_ELEMENTS:
        side = int((_MOST_ELEMENTS / width) ** (1 / 3) - 4) // LATENT_STRIDE * LATENT_STRIDE
        raise UserError(
            f"a tile of {LATENT_STRIDE * core} voxels needs tensors of {width * voxels:.3g} elements, which not every GPU "
            f"kernel can count; --tile {side} is the largest cube for ngf {width}"
        )
    return core, max(1, min(batch, int(room / voxels)))


def _latent_width(model: Any) -> int:
    """Numbers of each latent that codes are unpacked to."""
    first = model.G["net_g"] if model.from_encoder else model.G["decoder"].conv_in
    return next(layer.in_channels for layer in first.modules() if hasattr(layer, "in_channels"))


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
