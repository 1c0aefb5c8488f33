"""The lateral model's output: planes of the volume seen from the side, restored within exact tiles."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np

from inference.blended import BlendedField, Values
from inference.run import Run
from inference.source import Options, Source
from inference.tiling import Axis, Tile3, round_up, window_box
from inference.transfer import to_tensor
from utils.axes import to_file
from utils.errors import UserError
from utils.geometry import LATENT_STRIDE
from volumes.volume import Box, extent

_CORE = 128  # voxels along each side of a tile


class LateralField(BlendedField):
    """Tiles that read the network's halo of sections and pixels: they are those of the whole volume, and nothing is blended.

    Args:
        run: a lateral model.
        source: the sections.
        dtype: of the output.
        options: ``tile``, ``batch`` and ``skip_empty``.
    """

    divisible = (0, 1, 2)
    smallest = ("a tile of one section and 8 x 8 pixels", "a smaller --tile")

    def __init__(self, run: Run, source: Source, dtype: np.dtype, options: Options) -> None:
        super().__init__(run, options.batch, skip_empty=options.skip_empty, recent=source.recent)
        self.source, self.intensities, self.dtype = source, source.intensities, dtype
        self.factor, self.halo = run.geometry.factor, run.model.restore_halo
        self.channels = run.channels
        side = options.tile or _CORE
        if side < LATENT_STRIDE or side % LATENT_STRIDE:
            raise UserError(f"--tile {side} must be a multiple of {LATENT_STRIDE}, such as {_CORE}")
        self.shape = (source.count * self.factor, *source.inner)
        y, x = (Axis(size, side) for size in source.shape[1:])
        self.axes = (Axis(self.shape[0], round_up(side, self.factor)), y, x)
        self.unit = (self.axes[0].core, side, side)
        floors = [intensity.floor for intensity in source.intensities]
        self._floor = np.array(floors, np.float32)[:, None, None, None]

    def _needed(self, tile: Tile3) -> Box:
        """Sections, rows and columns that a tile sees."""
        sections, *pixels = self.halo
        z, *sides = window_box(tile)
        k = slice(max(0, z.start // self.factor - sections), min(self.source.count, -(-z.stop // self.factor) + sections))
        y, x = (
            slice(max(0, side.start - halo), min(size, side.stop + halo))
            for side, halo, size in zip(sides, pixels, self.source.shape[1:], strict=True)
        )
        return k, y, x

    def kind(self, tile: Tile3) -> Hashable:
        """Sizes of the tile and of what it sees, and where the one lies in the other."""
        return self._inside(tile), extent(self._needed(tile))

    def _inside(self, tile: Tile3) -> tuple[tuple[int, int], ...]:
        """Where the tile begins and ends in what is restored of what it sees, (z, y, x)."""
        k, y, x = self._needed(tile)
        starts = (k.start * self.factor, y.start, x.start)
        return tuple((side.start - start, side.stop - start) for side, start in zip(window_box(tile), starts, strict=True))

    def see(self, tile: Tile3) -> Values | None:
        """The sections around a tile, (k, C, y, x)."""
        values = self.source.read(*self._needed(tile))
        return None if self.skip_empty and (values == self._floor[:, :, 0, 0].T[..., None, None]).all() else values

    def compute(self, tiles: Sequence[Tile3], seen: Sequence[Values]) -> list[Values]:
        """Restored tiles."""
        slices = to_tensor(np.concatenate(seen), self.run.engine.device)
        planes, *in_plane = self._inside(tiles[0])
        volumes = to_file(self.run.model.restore(slices, len(seen), in_plane)[..., slice(*planes)])
        return list(np.ascontiguousarray(volumes.float().cpu().numpy()))

    def blank(self, tile: Tile3) -> Values:
        """Empty background."""
        return np.broadcast_to(self._floor, (self.channels, *extent(window_box(tile))))
