"""Output volumes from tiles that overlap and are blended, where a network's result depends on the whole tile."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from inference.decoding import Codes, Field, Part, decoded_field, parts_of, place
from inference.encoding import GROUP, LOCAL_CORE, SliceEncoder
from inference.passes import Tiled, to_tensor
from inference.run import Run
from inference.source import Options, Source, interpolated
from inference.tiling import Axis, Tile3, round_up, training_axis, window_box
from utils.axes import to_file
from utils.geometry import LATENT_STRIDE
from volumes.volume import Box, corner, extent, moved, reflected

_LATERAL_CORE = 128  # voxels along each side of a tile of the lateral model

Values = NDArray[np.float32]  # the network's, (C, z, y, x)


class BlendedField(Tiled[Values, Values], Field):
    """Tiles of a training crop that overlap by a quarter, for networks whose result depends on the whole tile; blended.

    Attributes:
        axes: the lattice (z, y, x) in voxels; along an axis whose tiles do not overlap nothing is blended.
    """

    def tiles(self, box: Box) -> list[Tile3]:
        """The tiles whose windows meet a box."""
        spans = zip(self.axes, box, strict=True)
        z, y, x = ([axis[n] for n in axis.reaching((side.start, side.stop))] for axis, side in spans)
        return list(product(z, y, x))

    def cost(self, box: Box) -> float:
        """From a trial with a tile of the box."""
        return self.seconds(self.tiles(box))

    def lattice(self) -> dict[str, Any]:
        """Cores and overlaps in voxels."""
        exact = not any(axis.full for axis in self.axes)
        tiles = {"core": [a.core for a in self.axes], "overlap": [a.before + a.after for a in self.axes], "exact": exact}
        return {"decoding": tiles}

    def begin(self, box: Box) -> Part:
        """The box, summed tile by tile in the lattice's order."""
        total = np.zeros((self.channels, *extent(box)), np.float32)
        weight = np.zeros((1, *extent(box)), np.float32)
        for tile, values in self.computed(self.tiles(box)).items():
            ramp = np.ones((), np.float32)
            for axis, side in zip(self.axes, tile, strict=True):
                ramp = ramp[..., None] * axis.weights(side.core[0] // axis.core)
            window = window_box(tile)
            place(total, box, values * ramp, window, add=True)
            place(weight, box, ramp[None], window, add=True)
        return parts_of(self.to_grey(torch.from_numpy(total / weight[0])).numpy(), box)

    def join(self, parts: Sequence[Values], axis: int) -> Values:
        """A tile from its parts."""
        return np.concatenate(parts, axis=axis + 1)


class HaloField(BlendedField):
    """Tiles whose network reads what lies under a window, in units of its own, and a halo around it.

    Attributes:
        reach: (z, y, x): voxels of a unit, units that are read before and after the window, units that there are.
    """

    reach: tuple[tuple[int, int, int, int], ...]

    def needed(self, tile: Tile3) -> Box:
        """What a tile sees, in units."""
        sides = zip(window_box(tile), self.reach, strict=True)
        z, y, x = (
            slice(max(0, side.start // unit - before), min(count, -(-side.stop // unit) + after))
            for side, (unit, before, after, count) in sides
        )
        return z, y, x

    def inside(self, tile: Tile3) -> Box:
        """The window in the voxels of what its tile sees."""
        by = [-unit * side.start for side, (unit, *_) in zip(self.needed(tile), self.reach, strict=True)]
        return moved(window_box(tile), by)

    def kind(self, tile: Tile3) -> Hashable:
        """Sizes of the window and of what is seen, and where the one lies in the other."""
        return extent(window_box(tile)), extent(self.needed(tile)), corner(self.inside(tile))


class SliceField(HaloField):
    """The 2-D decoder's output on the grid of the encoded slices; one channel, the first where there are two.

    The tiles of a local autoencoder read its halo of codes instead: they are those of the whole slice, nothing is blended.
    """

    channels = 1

    def __init__(self, run: Run, codes: Codes, dtype: np.dtype, batch: int | None = None) -> None:
        super().__init__(run, batch, codes.recent)
        self.codes, self.intensities, self.dtype = codes, codes.intensities, dtype
        n, h, w = codes.shape
        self.shape = (n, codes.inner[0], codes.inner[1])
        halo = run.model.slice_halo("decoder")
        self.reach = ((1, 0, 0, n), *((LATENT_STRIDE, *(halo or (0, 0)), size) for size in (h, w)))
        if halo is None:
            rows, columns = (training_axis(LATENT_STRIDE * size, int(run.settings["cropsize"]), LATENT_STRIDE) for size in (h, w))
        else:
            rows, columns = (Axis(LATENT_STRIDE * size, LATENT_STRIDE * LOCAL_CORE) for size in (h, w))
        self.axes = (Axis(n, 1 if halo else min(n, GROUP)), rows, columns)
        self.unit = (self.axes[0].core, self.axes[1].core, self.axes[2].core)

    def lattice(self) -> dict[str, Any]:
        """That of the codes, too."""
        return {**super().lattice(), "encoding": self.codes.lattice()}

    def read_ahead(self, tile: Tile3) -> None:
        """Lets its codes be read."""
        self.codes.prefetch(self.needed(tile))

    def see(self, tile: Tile3) -> NDArray[Any]:
        """Its codes."""
        return self.codes.read(self.needed(tile)).codes

    def compute(self, tiles: Sequence[Tile3], seen: Sequence[NDArray[Any]]) -> list[Values]:
        """Slices of tiles, without their halo."""
        model, device = self.run.model, self.run.engine.device
        slices = model.reconstruct(model.unpack(to_tensor(np.concatenate(seen), device)))
        _, y, x = self.inside(tiles[0])
        return [part[None] for part in np.split(slices[:, 0, y, x].float().cpu().numpy(), len(tiles))]


class RestoredField(BlendedField):
    """IsoREF's output: the interpolated volume, sharpened in cubes of a training crop."""

    divisible = ()  # a smaller cube would have another result
    smallest = ("one cube of the training's crop", "--batch 1")

    def __init__(self, run: Run, source: Source, dtype: np.dtype, batch: int | None = None) -> None:
        super().__init__(run, batch, source.recent)
        self.source, self.intensities, self.dtype = source, source.intensities, dtype
        self.factor = run.geometry.factor
        self.channels = int(run.settings["output_nc"])
        planes = source.count * self.factor
        self.shape = (planes, *source.inner)
        sizes = (round_up(planes, LATENT_STRIDE), source.shape[1], source.shape[2])
        z, y, x = (training_axis(size, int(run.settings["cropsize"]), LATENT_STRIDE) for size in sizes)
        self.axes = (z, y, x)
        self.unit = (z.core, y.core, x.core)

    def see(self, tile: Tile3) -> Values:
        """A cube of the interpolated volume, (z, C, y, x); beyond the last plane it is mirrored."""
        _, rows, columns = window_box(tile)
        planes = reflected(tile[0].window, self.shape[0])
        positions = np.clip((planes + 0.5) / self.factor - 0.5, 0, self.source.count - 1)
        return interpolated(positions, self.source.count, lambda k: self.source.read(k, rows, columns))

    def compute(self, tiles: Sequence[Tile3], seen: Sequence[Values]) -> list[Values]:
        """Sharpened cubes."""
        slices = to_tensor(np.concatenate(seen), self.run.engine.device)
        restored = to_file(self.run.model.restore(slices, len(seen)))
        return list(np.ascontiguousarray(restored.float().cpu().numpy()))


class LateralField(HaloField):
    """Tiles that read the networks' halo of sections and pixels: they are those of the whole volume, and nothing is blended.

    Args:
        run: a lateral or a fused model.
        source: the sections.
        dtype: of the output.
        options: ``tile``, ``batch`` and ``skip_empty``.
    """

    divisible = (0, 1, 2)
    smallest = ("a tile of one section and 8 x 8 pixels", "a smaller --tile")

    def __init__(self, run: Run, source: Source, dtype: np.dtype, options: Options) -> None:
        super().__init__(run, options.batch, skip_empty=options.skip_empty, recent=source.recent)
        self.source, self.intensities, self.dtype = source, source.intensities, dtype
        self.factor = run.geometry.factor
        self.channels = run.channels
        side = options.tile or _LATERAL_CORE
        self.shape = (source.count * self.factor, *source.inner)
        halos = zip((self.factor, 1, 1), run.model.restore_halo, source.shape, strict=True)
        self.reach = tuple((unit, halo, halo, count) for unit, halo, count in halos)
        y, x = (Axis(size, side) for size in source.shape[1:])
        self.axes = (Axis(self.shape[0], round_up(side, self.factor)), y, x)
        self.unit = (self.axes[0].core, side, side)
        floors = [intensity.floor for intensity in source.intensities]
        self._floor = np.array(floors, np.float32)[:, None, None, None]

    def see(self, tile: Tile3) -> Values | None:
        """The sections around a tile, (k, C, y, x)."""
        values = self.source.read(*self.needed(tile))
        return None if self.skip_empty and (values == self._floor[:, 0]).all() else values

    def compute(self, tiles: Sequence[Tile3], seen: Sequence[Values]) -> list[Values]:
        """Restored tiles."""
        slices = to_tensor(np.concatenate(seen), self.run.engine.device)
        z, y, x = self.inside(tiles[0])
        parts = [(side.start, side.stop) for side in (y, x, z)]
        volumes = to_file(self.run.model.restore(slices, len(seen), parts))
        return list(np.ascontiguousarray(volumes.float().cpu().numpy()))

    def blank(self, tile: Tile3) -> Values:
        """Empty background."""
        return np.broadcast_to(self._floor, (self.channels, *extent(window_box(tile))))


def isotropic_field(run: Run, source: Source, options: Options, dtype: np.dtype) -> Field:
    """What a run makes of a volume, as its model does it."""
    if hasattr(run.model, "restore_halo"):
        return LateralField(run, source, dtype, options)
    if run.restores:
        return RestoredField(run, source, dtype, options.batch)
    encoder = SliceEncoder(run, source, batch=options.batch, skip_empty=options.skip_empty)
    return decoded_field(run, encoder, dtype, options)
