"""The lateral model's output: planes of the volume seen from the side, restored within exact tiles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from inference.blended import HaloField, Values
from inference.run import Run
from inference.source import Options, Source
from inference.tiling import Axis, Tile3, round_up, window_box
from inference.transfer import to_tensor
from utils.axes import to_file
from volumes.volume import extent

_CORE = 128  # voxels along each side of a tile


class LateralField(HaloField):
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
        self.factor = run.geometry.factor
        self.channels = run.channels
        side = options.tile or _CORE
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
        return None if self.skip_empty and (values == self._floor[:, :, 0, 0].T[..., None, None]).all() else values

    def compute(self, tiles: Sequence[Tile3], seen: Sequence[Values]) -> list[Values]:
        """Restored tiles."""
        slices = to_tensor(np.concatenate(seen), self.run.engine.device)
        planes, *in_plane = self.inside(tiles[0])
        spans = [(side.start, side.stop) for side in in_plane]
        volumes = to_file(self.run.model.restore(slices, len(seen), spans)[..., planes])
        return list(np.ascontiguousarray(volumes.float().cpu().numpy()))

    def blank(self, tile: Tile3) -> Values:
        """Empty background."""
        return np.broadcast_to(self._floor, (self.channels, *extent(window_box(tile))))
