"""Output volumes from tiles that overlap and are blended, where a network's result depends on the whole tile."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inference.encoding import GROUP, LOCAL_CORE, Codes, Recent
from inference.fields import CACHE_BYTES, Array, Field, packed_tensor, place, seconds_of, to_tensor
from inference.intensity import Intensity
from inference.run import Run
from inference.slices import Slices, interpolated
from inference.tiles import Axis, Span, reflected, round_up, training_axis
from utils.geometry import LATENT_STRIDE
from utils.volumes.volume import Box


class BlendedField(Field):
    """Tiles of a training crop that overlap by a quarter, for networks whose result depends on the whole tile; blended.

    Attributes:
        axes: the lattice (z, y, x) in voxels; along an axis whose tiles do not overlap nothing is blended.
    """

    axes: tuple[Axis, Axis, Axis]

    def __init__(self, run: Run, intensities: Sequence[Intensity], dtype: np.dtype) -> None:
        super().__init__(intensities, dtype)
        self.run = run
        self._tiles: Recent[NDArray[np.float32]] = Recent(CACHE_BYTES)

    @abstractmethod
    def compute(self, windows: list[Span]) -> NDArray[np.float32]:
        """The network's values of a tile, (C, z, y, x)."""

    def cost(self, box: Box) -> float:
        """From the tile at the middle of the lattice; the box does not matter."""
        tiles = [axis[len(axis) // 2] for axis in self.axes]
        windows = [tile.window for tile in tiles]
        self.compute(windows)
        return seconds_of(lambda: self.compute(windows)) / math.prod(tile.core[1] - tile.core[0] for tile in tiles)

    def lattice(self) -> dict[str, Any]:
        """Cores and overlaps in voxels."""
        exact = all(axis.full is False for axis in self.axes)
        return {"core": [a.core for a in self.axes], "overlap": [a.before + a.after for a in self.axes], "exact": exact}

    def render(self, box: Box) -> Array:
        """The box, summed tile by tile in the lattice's order."""
        spans = [(b.start, b.stop) for b in box]
        total = np.zeros((self.channels, *(b - a for a, b in spans)), np.float32)
        weight = np.zeros(total.shape[1:], np.float32)
        for numbers in product(*(axis.reaching(span) for axis, span in zip(self.axes, spans, strict=True))):
            tiles = [axis[n] for axis, n in zip(self.axes, numbers, strict=True)]
            windows = [tile.window for tile in tiles]
            if numbers not in self._tiles:
                made = self.compute(windows)
                self._tiles.put(numbers, made, made.nbytes)
            ramp = np.ones((), np.float32)
            for axis, n in zip(self.axes, numbers, strict=True):
                ramp = ramp[..., None] * axis.weights(n)
            place(total, box, self._tiles.get(numbers) * ramp, windows, add=True)
            place(weight[None], box, ramp[None], windows, add=True)
        return self.to_grey(torch.from_numpy(total / weight)).numpy()


class SliceField(BlendedField):
    """The 2-D decoder's output on the grid of the encoded slices; one channel, the first where there are two.

    The tiles of a local autoencoder read its halo of codes instead: they are those of the whole slice, nothing is blended.
    """

    channels = 1

    def __init__(
        self, run: Run, codes: Codes, inner: Sequence[int], intensities: Sequence[Intensity], dtype: np.dtype
    ) -> None:
        super().__init__(run, intensities[:1], dtype)
        self.codes = codes
        n, h, w = codes.shape
        self.shape = (n, int(inner[0]), int(inner[1]))
        halo = run.model.slice_halo("decoder")
        self._halo = halo or (0, 0)
        if halo is None:
            rows, columns = (
                training_axis(LATENT_STRIDE * size, int(run.settings["cropsize"]), LATENT_STRIDE) for size in (h, w)
            )
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

    @torch.inference_mode()
    def compute(self, windows: list[Span]) -> NDArray[np.float32]:
        """Slices of a tile, without its halo."""
        model, device = self.run.model, self.run.engine.device
        rows, columns = self._latents(windows[1], 1), self._latents(windows[2], 2)
        packed = self.codes.read(windows[0], rows, columns)
        with self.run.engine.autocast():
            slices = model.reconstruct(model.unpack(packed_tensor(packed.codes, device)))
        y, x = (
            slice(w[0] - LATENT_STRIDE * read[0], w[1] - LATENT_STRIDE * read[0])
            for w, read in ((windows[1], rows), (windows[2], columns))
        )
        return slices[:, 0, y, x].float().cpu().numpy()[None]


class RestoredField(BlendedField):
    """IsoREF's output: the interpolated volume, sharpened in cubes of a training crop."""

    def __init__(self, run: Run, slices: Slices, intensities: Sequence[Intensity], dtype: np.dtype) -> None:
        super().__init__(run, intensities, dtype)
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

    @torch.inference_mode()
    def compute(self, windows: list[Span]) -> NDArray[np.float32]:
        """One cube; beyond the last plane the volume is mirrored."""
        planes = reflected(windows[0], self.shape[0])
        positions = np.clip((planes + 0.5) / self.factor - 0.5, 0, self.slices.count - 1)

        def read(k: Span) -> NDArray[np.float32]:
            return np.moveaxis(self.slices.read(k, windows[1], windows[2]), 1, 0)

        cube = interpolated(positions, self.slices.count, read)
        volume = to_tensor(cube, self.run.engine.device).permute(1, 2, 3, 0)[None]
        with self.run.engine.autocast():
            restored = self.run.model.G["net_g"](volume.contiguous())[0]
        return np.ascontiguousarray(restored.movedim(-1, 1).float().cpu().numpy())
