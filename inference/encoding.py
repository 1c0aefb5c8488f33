"""Slices to codes: tiles of a training crop, each position's code from the tile in whose core it lies."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from codes.store import Packed
from inference.options import Options
from inference.passes import Tiled, to_tensor
from inference.run import Run
from inference.source import Source
from inference.tiling import Axis, Tile, Tile3, core_box, local_axis, round_up, training_axis, window_box
from models.code_search import searched
from utils.boxes import Box, assembled, extent, relative
from utils.errors import UserError

GROUP = 16  # slices that are encoded at once

Window = tuple[NDArray[np.float32], NDArray[np.bool_]]  # (n, C, rows, columns) pixels, (n, h, w): which blocks are background


class SliceEncoder(Tiled[Window, Packed]):
    """Codes of a volume's slices, computed when they are asked for; boxes are of slices and latents.

    Rounding can tip a code between two that are equally near, so every pass is filled up.

    Attributes:
        shape: slices, latents along rows and columns.
        inner: rows and columns of pixels, without padding.
        intensities: of the channels.
        dtype: of codes: one byte up to 256 of them, else two; float16 for a posterior's mean, float32 for features.
    """

    keeps = True

    def __init__(self, run: Run, source: Source, *, batch: int | None = None, skip_empty: bool = True, effort: int = 0) -> None:
        if run.decodes_only:
            raise UserError(
                f"{run.path} holds what decodes its codes and no encoder; export the run itself for more: infer.py export RUN "
                "--output FOLDER"
            )
        kind = "float32" if run.model.from_encoder else "float16"
        if "quantize" in run.model.G:
            kind = "uint8" if run.settings["autoencoder"]["n_embed"] <= 256 else "uint16"
        super().__init__(run, source, np.dtype(kind), batch, skip_empty=skip_empty)
        self.source, self.inner, self.effort = source, source.inner, effort
        side = run.stride
        n, h, w = self.shape = (source.count, source.shape[1] // side, source.shape[2] // side)
        halo = run.model.slice_halo("encoder")
        if halo is None:
            rows, columns = (training_axis(size, int(run.settings["cropsize"]) // side) for size in (h, w))
        else:
            before, after = (round_up(pixels, side) // side for pixels in halo)
            rows, columns = (local_axis(size, before, after, full=True) for size in (h, w))
        self.axes = (Axis(n, min(GROUP, n) if halo is None else 1), rows, columns)
        self._blank: NDArray[Any] | None = None

    @property
    def lattice(self) -> dict[str, Any]:
        """Slices that are encoded at once, core (rows, columns) of a tile, and how far its window reaches beyond."""
        group, rows, columns = self.axes
        tile = {"core": [rows.core, columns.core], "before": rows.before, "after": rows.after}
        return {"slices": group.core, "stride": self.run.stride, **tile}

    def needed(self, tile: Tile3) -> Box:
        """Slices and pixels."""
        return window_box(tile, (1, self.run.stride, self.run.stride))

    def see(self, tile: Tile3, given: NDArray[np.float32]) -> Window | None:
        """The pixels of a tile, and which of its blocks are background."""
        empty = _blocks_empty(given, self.source.floors, self.run.stride)
        return None if self.skip_empty and empty.all() else (given, empty)

    def compute(self, tiles: Sequence[Tile3], seen: Sequence[Window]) -> list[Packed]:
        """The codes of cores."""
        pixels = np.concatenate([self._whole_group(tile, pixels) for tile, (pixels, _) in zip(tiles, seen, strict=True)])
        inputs = to_tensor(pixels, self.run.engine.device)
        packed = self._searched(inputs, tiles) if self.effort else self.network(tiles, inputs)
        codes = packed.to(torch.float32 if packed.dtype == torch.bfloat16 else packed.dtype).cpu().numpy()
        codes = codes.astype(self.dtype, copy=False).reshape(len(tiles), -1, *codes.shape[1:])
        return [self._core(*one) for one in zip(tiles, codes, (empty for _, empty in seen), strict=True)]

    def entrance(self, tile: Tile3) -> tuple[int, ...]:
        """Slices (N, C, X, Y)."""
        _, y, x = extent(self.needed(tile))
        return self.batch * self.axes[0].core, len(self.source.volumes), y, x

    def network(self, tiles: Sequence[Tile3], inputs: Tensor) -> Tensor:
        """Their codes (N, h, w, ...)."""
        return self.run.model.pack(inputs)

    def _searched(self, inputs: Tensor, tiles: Sequence[Tile3]) -> Tensor:
        """The codes that decode best; what tiles are filled up with beyond the slice does not count."""
        visible = inputs.new_zeros(len(tiles), 1, 1, *inputs.shape[-2:])
        for n, tile in enumerate(tiles):
            _, rows, columns = self.needed(tile)
            visible[n, ..., : max(0, self.inner[0] - rows.start), : max(0, self.inner[1] - columns.start)] = 1
        visible = visible.expand(-1, len(inputs) // len(tiles), *visible.shape[2:]).flatten(0, 1)
        return searched(self.run.model, inputs, visible, self.effort)

    def _whole_group(self, tile: Tile3, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """The last group of slices filled up with its last one, so that the network sees one shape only."""
        (start, stop), group = tile[0].window, self.axes[0].core
        missing = group - len(pixels) if stop == self.axes[0].size and start % group == 0 else 0
        return np.concatenate([pixels, pixels[-1:].repeat(missing, axis=0)]) if missing else pixels

    def blank(self, tile: Tile3) -> Packed:
        """The codes of pure background, computed once, for one slice."""
        if self._blank is None:
            self.skip_empty = False
            z, y, x = (Tile(side.window, side.window) for side in tile)
            self._blank = self._through_network([(z, y, x)])[z, y, x].codes[:1]
            self.skip_empty = True
        shape = (tile[0].core[1] - tile[0].core[0], *self._blank.shape[1:])
        return self._core(tile, np.broadcast_to(self._blank, shape), np.ones(shape[:3], bool))

    def _core(self, tile: Tile3, codes: NDArray[Any], empty: NDArray[np.bool_]) -> Packed:
        core = relative(core_box(tile), window_box(tile))
        return Packed(codes[core].copy(), empty[core].copy())

    def whole(self, box: Box, parts: Sequence[tuple[Box, Packed]]) -> Packed:
        """The codes of a box of slices and latents, from those of boxes that cover it."""
        return Packed(*(assembled(box, [(part, packed[n]) for part, packed in parts]) for n in (0, 1)))


def _blocks_empty(pixels: NDArray[np.float32], floors: NDArray[np.float32], step: int) -> NDArray[np.bool_]:
    """(n, C, step·h, step·w) → (n, h, w): blocks of pixels that are all at the floor (C, 1, 1)."""
    count, channels, height, width = pixels.shape
    blocks = pixels.reshape(count, channels, height // step, step, width // step, step)
    empty = (blocks[:, :, :, 0, :, 0] == floors).all(axis=1)
    k, y, x = np.nonzero(empty)  # most blocks are out of question by their first pixel
    empty[k, y, x] = (blocks[k, :, y, :, x] == floors).all(axis=(1, 2, 3))
    return empty


def slices_or_codes(run: Run, source: Source, options: Options) -> Source | SliceEncoder:
    """What a run makes its output of: the slices themselves, or their codes."""
    return source if run.restores else SliceEncoder(run, source, batch=options.batch, skip_empty=options.skip_empty)
