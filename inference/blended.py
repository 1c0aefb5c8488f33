"""Output volumes from tiles that overlap and are blended, where a network's result depends on the whole tile."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Hashable, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inference.batches import Passes, no_memory
from inference.decoding import CACHE_BYTES, Field, Part, parts_of, place, seconds_of
from inference.encoding import GROUP, LOCAL_CORE, Codes, Recent
from inference.run import Run
from inference.source import Slices, interpolated
from inference.tiling import Axis, reflected, round_up, training_axis
from inference.transfer import packed_tensor, to_tensor
from utils.geometry import LATENT_STRIDE
from volumes.intensity import Intensity
from volumes.volume import Box, Span

Windows = tuple[Span, ...]  # of a tile in voxels (z, y, x)
Values = NDArray[np.float32]  # the network's, (C, z, y, x)


class BlendedField(Field):
    """Tiles of a training crop that overlap by a quarter, for networks whose result depends on the whole tile; blended.

    Attributes:
        axes: the lattice (z, y, x) in voxels; along an axis whose tiles do not overlap nothing is blended.
    """

    axes: tuple[Axis, Axis, Axis]

    def __init__(self, run: Run, intensities: Sequence[Intensity], dtype: np.dtype, batch: int | None = None) -> None:
        super().__init__(intensities, dtype)
        self.run = run
        self.passes = Passes(batch or run.engine.batch, fill=True)
        self._tiles: Recent[Values] = Recent(CACHE_BYTES)

    @abstractmethod
    def compute(self, tiles: Sequence[Windows]) -> list[Values]:
        """The network's values of tiles that are alike, in one pass."""

    @abstractmethod
    def alike(self, tile: Windows) -> Hashable:
        """What is equal for tiles that may share a pass."""

    @abstractmethod
    def too_large(self, tile: Windows) -> Values:
        """A tile that does not fit into memory, made in parts.

        Raises:
            UserError: it has none.
        """

    def cost(self, box: Box) -> float:
        """From a pass of the tile at the middle of the lattice; the box does not matter."""
        tiles = [axis[len(axis) // 2] for axis in self.axes]
        windows = tuple(tile.window for tile in tiles)
        seconds = seconds_of(lambda: self._through_network([windows])) / self.passes.size
        return seconds / math.prod(tile.core[1] - tile.core[0] for tile in tiles)

    def lattice(self) -> dict[str, Any]:
        """Cores and overlaps in voxels."""
        exact = all(axis.full is False for axis in self.axes)
        return {"core": [a.core for a in self.axes], "overlap": [a.before + a.after for a in self.axes], "exact": exact}

    def begin(self, box: Box) -> Part:
        """The box, summed tile by tile in the lattice's order."""
        spans = [(b.start, b.stop) for b in box]
        total = np.zeros((self.channels, *(b - a for a, b in spans)), np.float32)
        weight = np.zeros(total.shape[1:], np.float32)
        numbers = list(product(*(axis.reaching(span) for axis, span in zip(self.axes, spans, strict=True))))
        for at, values in self._computed(numbers).items():
            windows = self._windows(at)
            ramp = np.ones((), np.float32)
            for axis, n in zip(self.axes, at, strict=True):
                ramp = ramp[..., None] * axis.weights(n)
            place(total, box, values * ramp, windows, add=True)
            place(weight[None], box, ramp[None], windows, add=True)
        return parts_of(self.to_grey(torch.from_numpy(total / weight)).numpy(), box)

    def _computed(self, numbers: Sequence[tuple[int, ...]]) -> dict[tuple[int, ...], Values]:
        """Tiles by their numbers, in this order; those that were not kept go through the network, like by like."""
        groups: dict[Hashable, list[tuple[int, ...]]] = {}
        for at in numbers:
            if at not in self._tiles:
                groups.setdefault(self.alike(self._windows(at)), []).append(at)
        made: dict[tuple[int, ...], Values] = {}
        for group in groups.values():
            made.update(zip(group, self._through_network([self._windows(at) for at in group]), strict=True))
        found = {at: made[at] if at in made else self._tiles.get(at) for at in numbers}
        for at, values in made.items():
            self._tiles.put(at, values, values.nbytes)
        return found

    def _windows(self, numbers: Sequence[int]) -> Windows:
        return tuple(axis[n].window for axis, n in zip(self.axes, numbers, strict=True))

    def _through_network(self, tiles: Sequence[Windows]) -> list[Values]:
        return self.passes(self.compute, tiles, self.too_large)


class SliceField(BlendedField):
    """The 2-D decoder's output on the grid of the encoded slices; one channel, the first where there are two.

    The tiles of a local autoencoder read its halo of codes instead: they are those of the whole slice, nothing is blended.
    """

    channels = 1

    def __init__(
        self,
        run: Run,
        codes: Codes,
        inner: Sequence[int],
        intensities: Sequence[Intensity],
        dtype: np.dtype,
        batch: int | None = None,
    ) -> None:
        super().__init__(run, intensities[:1], dtype, batch)
        self.codes = codes
        n, h, w = codes.shape
        self.shape = (n, int(inner[0]), int(inner[1]))
        halo = run.model.slice_halo("decoder")
        self._halo = halo or (0, 0)
        if halo is None:
            rows, columns = (training_axis(LATENT_STRIDE * size, int(run.settings["cropsize"]), LATENT_STRIDE) for size in (h, w))
        else:
            rows, columns = (Axis(LATENT_STRIDE * size, LATENT_STRIDE * LOCAL_CORE) for size in (h, w))
        self.axes = (Axis(n, 1 if halo else min(n, GROUP)), rows, columns)
        self.unit = (self.axes[0].core, self.axes[1].core, self.axes[2].core)

    def prefetch(self, box: Box) -> None:
        """Lets the codes be read."""
        spans = [(b.start, b.stop) for b in box]
        tiles = [[axis[n].window for n in axis.reaching(span)] for axis, span in zip(self.axes, spans, strict=True)]
        k, y, x = ((found[0][0], found[-1][1]) for found in tiles)
        self.codes.prefetch(k, self._latents(y, 1), self._latents(x, 2))

    def _latents(self, pixels: Span, axis: int) -> Span:
        before, after = self._halo
        return max(0, pixels[0] // LATENT_STRIDE - before), min(self.codes.shape[axis], pixels[1] // LATENT_STRIDE + after)

    def _read_of(self, tile: Windows) -> tuple[Span, Span]:
        return self._latents(tile[1], 1), self._latents(tile[2], 2)

    def alike(self, tile: Windows) -> Hashable:
        """Sizes of the window and of the halo that is read with it."""
        sizes = [stop - start for start, stop in tile]
        read = self._read_of(tile)
        halos = [(w[0] - LATENT_STRIDE * r[0], LATENT_STRIDE * r[1] - w[1]) for w, r in zip(tile[1:], read, strict=True)]
        return *sizes, *halos

    @torch.inference_mode()
    def compute(self, tiles: Sequence[Windows]) -> list[Values]:
        """Slices of tiles, without their halo."""
        model, device = self.run.model, self.run.engine.device
        codes = [self.codes.read(tile[0], *self._read_of(tile)).codes for tile in tiles]
        with self.run.engine.computing():
            slices = model.reconstruct(model.unpack(packed_tensor(np.concatenate(codes), device)))
        windows = zip(tiles[0][1:], self._read_of(tiles[0]), strict=True)
        y, x = (slice(w[0] - LATENT_STRIDE * read[0], w[1] - LATENT_STRIDE * read[0]) for w, read in windows)
        return [part[None] for part in np.split(slices[:, 0, y, x].float().cpu().numpy(), len(tiles))]

    def too_large(self, tile: Windows) -> Values:
        """Half of the slices at a time."""
        first, last = tile[0]
        if last - first == 1:
            raise no_memory("one slice of a tile", "--batch 1")
        middle = (first + last) // 2
        halves = [(part, *tile[1:]) for part in ((first, middle), (middle, last))]
        return np.concatenate([self._through_network([half])[0] for half in halves], axis=1)


class RestoredField(BlendedField):
    """IsoREF's output: the interpolated volume, sharpened in cubes of a training crop."""

    def __init__(
        self, run: Run, slices: Slices, intensities: Sequence[Intensity], dtype: np.dtype, batch: int | None = None
    ) -> None:
        super().__init__(run, intensities, dtype, batch)
        self.slices = slices
        self.factor = run.geometry.factor
        self.channels = int(run.settings["output_nc"])
        planes = slices.count * self.factor
        self.shape = (planes, *slices.inner)
        sizes = (round_up(planes, LATENT_STRIDE), slices.shape[1], slices.shape[2])
        z, y, x = (training_axis(size, int(run.settings["cropsize"]), LATENT_STRIDE) for size in sizes)
        self.axes = (z, y, x)
        self.unit = (z.core, y.core, x.core)

    def prefetch(self, box: Box) -> None:
        """Nothing: interpolation reads little for each tile."""

    def alike(self, tile: Windows) -> Hashable:
        """All are of one size."""
        return None

    @torch.inference_mode()
    def compute(self, tiles: Sequence[Windows]) -> list[Values]:
        """Cubes; beyond the last plane the volume is mirrored."""
        cubes = np.stack([self._cube(tile) for tile in tiles])
        volumes = to_tensor(cubes, self.run.engine.device).permute(0, 2, 3, 4, 1)
        with self.run.engine.computing():
            restored = self.run.model.restore(volumes.contiguous())
        return list(np.ascontiguousarray(restored.movedim(-1, 2).float().cpu().numpy()))

    def _cube(self, tile: Windows) -> Values:
        """A cube of the interpolated volume, (z, C, y, x)."""
        planes = reflected(tile[0], self.shape[0])
        positions = np.clip((planes + 0.5) / self.factor - 0.5, 0, self.slices.count - 1)

        def read(k: Span) -> NDArray[np.float32]:
            return np.moveaxis(self.slices.read(k, tile[1], tile[2]), 1, 0)

        return interpolated(positions, self.slices.count, read)

    def too_large(self, tile: Windows) -> Values:
        """A smaller cube would have another result."""
        raise no_memory("one cube of the training's crop", "--batch 1")
