"""How sure a run is: the spread over passes with dropout, or over in-plane orientations; and what texture has invented."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from inference.decoding import isotropic_field
from inference.encoding import slices_or_codes
from inference.fields import Field, Part, parts_of
from inference.options import Options
from inference.run import Run
from inference.source import Source
from utils.axes import transposed
from utils.boxes import Box, extent
from utils.errors import UserError

_OTHER_NOISE = 2**24  # voxels further on: noise of texture differs between orientations, so that what is invented shows as spread
Pairs = Sequence[tuple[int, ...]]  # two numbers for each of rows, columns and planes


def spread_field(run: Run, source: Source, options: Options, passes: int) -> SpreadField:
    """The standard deviation over passes: with dropout where the run has it, else over in-plane orientations.

    Raises:
        UserError: fewer than two passes, or more orientations than there are.
    """
    if passes < 2:
        raise UserError(f"--uncertainty {passes}: at least 2 passes have a standard deviation")
    single = np.dtype(np.float32)
    if not run.restores and any(isinstance(module, nn.Dropout) and module.p > 0 for module in run.model.G["net_g"].modules()):
        codes = slices_or_codes(run, source, options)
        seeded = [isotropic_field(run, codes, single, options, seed) for seed in range(passes)]
        return SpreadField(seeded, "passes with dropout")
    if passes > 8:
        raise UserError(f"--uncertainty {passes}: without dropout in the run there are 8 in-plane orientations")
    turned = [replace(run, model=Turned(run.model, turn)) for turn in range(passes)]
    fields = [isotropic_field(one, slices_or_codes(one, source, options), single, options) for one in turned]
    return SpreadField(fields, "in-plane orientations")


class Passes(Field):
    """What follows from several passes, float32 grey values.

    Args:
        passes: fields of one shape, each computed in another way, with float32 grey values.
    """

    def __init__(self, passes: Sequence[Field]) -> None:
        first, self.passes = passes[0], tuple(passes)
        self.shape, self.channels, self.block, self.unit = first.shape, first.channels, first.block, first.unit
        self.intensities, self.dtype = first.intensities, np.dtype(np.float32)

    @property
    def lattice(self) -> dict[str, Any]:
        """That of every pass."""
        return self.passes[0].lattice

    def prefetch(self, box: Box) -> None:
        """Lets every pass read ahead."""
        for field in self.passes:
            field.prefetch(box)


class SpreadField(Passes):
    """The standard deviation over several passes; ``over`` says what differs between them."""

    def __init__(self, passes: Sequence[Field], over: str) -> None:
        super().__init__(passes)
        self.over = over

    def begin(self, box: Box) -> Part:
        """Welford's running variance over the passes."""
        mean = np.zeros((self.channels, *extent(box)), np.float32)
        squares = np.zeros_like(mean)
        for number, field in enumerate(self.passes, 1):
            values = field.render(box)
            delta = values - mean
            mean += delta / number
            squares += delta * (values - mean)
        return parts_of(np.sqrt(squares / max(1, len(self.passes) - 1)), box)


class InventedField(Passes):
    """What texture has added: the output minus the deterministic one."""

    def __init__(self, run: Run, source: Source, options: Options) -> None:
        both = (options, replace(options, texture=0.0))
        super().__init__([isotropic_field(run, source, np.dtype(np.float32), one) for one in both])

    def begin(self, box: Box) -> Part:
        """Their difference."""
        textured, deterministic = (field.render(box) for field in self.passes)
        return parts_of(textured - deterministic, box)


class Turned:
    """A model that sees all slices in another in-plane orientation, and whose results are turned back.

    Args:
        model: in evaluation mode.
        turn: one of the eight orientations: bit 0 mirrors rows, bit 1 columns, then bit 2 transposes.
    """

    def __init__(self, model: Any, turn: int) -> None:
        self.model, self.turn = model, turn

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def slice_halo(self, part: str) -> tuple[int, int] | None:
        """As wide before as after, whichever comes first in this orientation."""
        halo = self.model.slice_halo(part)
        return halo and (max(halo), max(halo))

    def pack(self, slices: Tensor) -> Tensor:
        """Slices (N, C, X, Y) → codes or features (N, h, w, ...)."""
        return self._back(self.model.pack(self._there(slices)), 1)

    def slices(self, unpacked: Tensor) -> Tensor:
        """What was packed → slices (N, 1, X, Y)."""
        return self._back(self.model.slices(self._there(unpacked)))

    def expand(self, stack: Tensor, margins: Pairs) -> Tensor:
        """Stacks (B, d, h, w, m) → volumes (B, C, X, Y, Z) without margins along X, Y and Z."""
        return self._back(self.model.expand(self._there(stack), self._sides(margins)))

    def restore(self, slices: Tensor, batch: int, parts: Pairs = (), **how: Any) -> Tensor:
        """Slices (B·Z, C, X, Y) of volumes → restored volumes (B, C, X, Y, Z), of parts along X, Y and Z where they are given."""
        turned = self._there(slices)
        if not parts:
            return self._back(self.model.restore(turned, batch))
        *in_plane, planes = parts
        margins = [(start, size - stop) for (start, stop), size in zip(in_plane, slices.shape[2:], strict=True)]
        *sides, _ = self._sides([*margins, planes])
        spans = [(before, size - after) for (before, after), size in zip(sides, turned.shape[2:], strict=True)]
        if "places" in how:
            rows, columns, upright = how["places"]
            rows, columns = (along.flip(1) if self.turn >> axis & 1 else along for axis, along in enumerate((rows, columns)))
            in_turn = (columns, rows) if self.turn & 4 else (rows, columns)
            how |= {"places": [along + self.turn * _OTHER_NOISE for along in in_turn] + [upright]}
        return self._back(self.model.restore(turned, batch, (*spans, planes), **how))

    def _sides(self, pairs: Pairs) -> Pairs:
        """What lies before and after along rows and columns, in this orientation; planes, the last pair, stay."""
        rows, columns = (pair[::-1] if self.turn >> axis & 1 else pair for axis, pair in enumerate(pairs[:2]))
        return (columns, rows, pairs[2]) if self.turn & 4 else (rows, columns, pairs[2])

    def _there(self, values: Tensor) -> Tensor:
        """(B, C, rows, columns, ...) into this orientation."""
        values = values.flip(self._mirrored(2))
        return transposed(values, 2) if self.turn & 4 else values

    def _back(self, values: Tensor, rows: int = 2) -> Tensor:
        """Out of it; ``rows`` is the axis of rows, that of columns follows."""
        if self.turn & 4:
            values = transposed(values, rows)
        return values.flip(self._mirrored(rows))

    def _mirrored(self, rows: int) -> list[int]:
        return [rows + axis for axis in (0, 1) if self.turn >> axis & 1]
