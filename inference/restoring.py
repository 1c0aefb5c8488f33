"""Output volumes of the models that make a volume of a volume, without codes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from inference.options import Options
from inference.passes import TiledField, to_tensor
from inference.run import Run
from inference.source import Source, between
from inference.tiling import Axis, Tile3, training_axis, window_box
from utils.axes import to_file
from utils.boxes import Box, extent, reflected, sample
from utils.geometry import LATENT_STRIDE

_LATERAL_CORE = 256  # voxels along each side of a tile of the lateral model

Values = NDArray[np.float32]  # of the network, (slices of the window, C, y, x)


class _OfSlices(TiledField[Values]):
    """A field whose network sees slices as they are."""

    def compute(self, tiles: Sequence[Tile3], seen: Sequence[Values]) -> list[Values]:
        """What is kept of tiles."""
        return self.arrays(self.network(tiles, to_tensor(np.concatenate(seen), self.run.engine.device)))


class RestoredField(_OfSlices):
    """IsoREF's output: the interpolated volume, sharpened in cubes of a training crop."""

    blends = keeps = True
    scale = (LATENT_STRIDE,) * 3
    divisible = ()  # a smaller cube would have another result
    smallest = ("one cube of the training's crop", "--batch 1")
    scratch = 2.4  # of volumes

    def __init__(self, run: Run, source: Source, dtype: np.dtype, batch: int | None = None) -> None:
        super().__init__(run, source, dtype, batch)
        self.source, self.factor = source, run.factor
        self.channels = int(run.settings["output_nc"])
        self.shape = (source.count * self.factor, *source.inner)
        crop = int(run.settings["cropsize"]) // LATENT_STRIDE
        z, y, x = (-(-size // LATENT_STRIDE) for size in self.shape)
        self.axes = (training_axis(z, crop), training_axis(y, crop), training_axis(x, crop))

    def needed(self, tile: Tile3) -> Box:
        """The slices between which its planes lie."""
        return between(self._positions(tile), self.source.count), *window_box(tile, self.scale)[1:]

    def see(self, tile: Tile3, given: Values) -> Values:
        """A cube of the interpolated volume."""
        return sample(given, self._positions(tile) - self.needed(tile)[0].start, axis=0)

    def _positions(self, tile: Tile3) -> NDArray[np.float64]:
        """Where its planes lie between slices; beyond the last plane they are mirrored."""
        planes = window_box(tile, self.scale)[0]
        places = reflected((planes.start, planes.stop), self.shape[0])
        return np.clip((places + 0.5) / self.factor - 0.5, 0, self.source.count - 1)

    def entrance(self, tile: Tile3) -> tuple[int, ...]:
        """Planes (B·Z, C, X, Y)."""
        z, y, x = extent(window_box(tile, self.scale))
        return self.batch * z, len(self.source.volumes), y, x

    def network(self, tiles: Sequence[Tile3], inputs: Tensor) -> Tensor:
        """Sharpened cubes."""
        return to_file(self.run.model.restore(inputs, len(tiles)))


class LateralField(_OfSlices):
    """The output of the lateral model and of those with texture, from exact tiles."""

    divisible = (0, 1, 2)
    smallest = ("a tile of one section and 8 x 8 pixels", "a smaller --tile")

    def __init__(self, run: Run, source: Source, dtype: np.dtype, options: Options) -> None:
        super().__init__(run, source, dtype, options.batch, skip_empty=options.skip_empty)
        self._texture = options.texture
        if options.texture:
            self.scratch = 2.4  # freed memory is kept in pieces: 4.3 to 5.0 GB were measured where 4.7 are foreseen
        self.source, self.channels, factor = source, run.channels, run.factor
        self.shape, self.scale = (source.count * factor, *source.inner), (factor, LATENT_STRIDE, LATENT_STRIDE)
        sections, *pixels = run.model.restore_halo
        rows, columns = (-(-halo // LATENT_STRIDE) for halo in pixels)
        side = options.tile or _LATERAL_CORE
        z, y, x = source.count, source.shape[1] // LATENT_STRIDE, source.shape[2] // LATENT_STRIDE
        core = side // LATENT_STRIDE
        self.axes = (Axis(z, -(-side // factor), sections, sections), Axis(y, core, rows, rows), Axis(x, core, columns, columns))

    def needed(self, tile: Tile3) -> Box:
        """Sections and pixels."""
        return window_box(tile, (1, *self.scale[1:]))

    def see(self, tile: Tile3, given: Values) -> Values | None:
        """The sections around a tile."""
        return None if self.skip_empty and (given == self.source.floors).all() else given

    def entrance(self, tile: Tile3) -> tuple[int, ...]:
        """Sections (B·n, C, X, Y)."""
        n, y, x = extent(self.needed(tile))
        return self.batch * n, self.channels, y, x

    def network(self, tiles: Sequence[Tile3], inputs: Tensor) -> Tensor:
        """Restored cores."""
        z, y, x = self.inside(tiles[0])
        parts = [(side.start, side.stop) for side in (y, x, z)]
        return to_file(self.run.model.restore(inputs, len(tiles), parts, **self._how(tiles, inputs)))

    def _how(self, tiles: Sequence[Tile3], inputs: Tensor) -> dict[str, Any]:
        """What texture needs: its share, and where rows, columns and planes of the windows lie, to which its noise belongs."""
        if not self._texture:
            return {}
        boxes = [window_box(tile, self.scale) for tile in tiles]
        places = [torch.stack([torch.arange(box[k].start, box[k].stop) for box in boxes]) for k in (1, 2, 0)]
        return {"texture": self._texture, "places": [along.to(inputs.device) for along in places]}
