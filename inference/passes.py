"""Several passes over one volume: how much they differ, and volumes turned in-plane."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from inference.fields import Array, Field
from utils.volumes.volume import Box


class SpreadField(Field):
    """The standard deviation over several passes, float32 grey values.

    Args:
        passes: fields of one shape, each computed in another way, with float32 grey values.
    """

    def __init__(self, passes: Sequence[Field]) -> None:
        super().__init__(passes[0].intensities, np.dtype(np.float32))
        self.passes = tuple(passes)
        self.shape, self.channels, self.unit = passes[0].shape, passes[0].channels, passes[0].unit

    def lattice(self) -> dict[str, Any]:
        """That of every pass."""
        return {**self.passes[0].lattice(), "passes": len(self.passes)}

    def prefetch(self, box: Box) -> None:
        """Lets every pass read ahead."""
        for field in self.passes:
            field.prefetch(box)

    def render(self, box: Box) -> Array:
        """Welford's running variance over the passes."""
        mean = np.zeros((self.channels, *(b.stop - b.start for b in box)), np.float32)
        squares = np.zeros_like(mean)
        for number, field in enumerate(self.passes, 1):
            values = field.render(box)
            delta = values - mean
            mean += delta / number
            squares += delta * (values - mean)
        return np.sqrt(squares / max(1, len(self.passes) - 1))


class TurnedField(Field):
    """A field of a volume that was mirrored or transposed in-plane, turned back.

    Args:
        field: of the turned volume.
        turn: number of the orientation, 0 to 7, as in :func:`turned`.
    """

    def __init__(self, field: Field, turn: int) -> None:
        super().__init__(field.intensities, field.dtype)
        self.field, self.turn, self.channels = field, turn, field.channels
        z, y, x = field.shape
        self.shape = (z, x, y) if turn & 4 else (z, y, x)
        self.unit = (field.unit[0], field.unit[2], field.unit[1]) if turn & 4 else field.unit

    def lattice(self) -> dict[str, Any]:
        """That of the turned field."""
        return self.field.lattice()

    def prefetch(self, box: Box) -> None:
        """Lets the turned field read ahead."""
        self.field.prefetch(turned_box(box, self.shape, self.turn))

    def render(self, box: Box) -> Array:
        """The same voxels, turned back."""
        return turned(self.field.render(turned_box(box, self.shape, self.turn)), self.turn, back=True)


def turned(values: Array, turn: int, *, back: bool = False) -> Array:
    """One of the eight in-plane orientations of (..., Y, X): bit 0 mirrors rows, bit 1 columns, then bit 2 transposes."""
    steps: list[Callable[[Array], Array]] = []
    if turn & 1:
        steps.append(lambda v: v[..., ::-1, :])
    if turn & 2:
        steps.append(lambda v: v[..., ::-1])
    if turn & 4:
        steps.append(lambda v: v.swapaxes(-1, -2))
    for step in reversed(steps) if back else steps:
        values = step(values)
    return np.ascontiguousarray(values)


def turned_box(box: Box, shape: Sequence[int], turn: int) -> Box:
    """Where the box of a volume (Z, Y, X) lies after the volume was turned."""
    z, y, x = box
    if turn & 1:
        y = slice(shape[1] - y.stop, shape[1] - y.start)
    if turn & 2:
        x = slice(shape[2] - x.stop, shape[2] - x.start)
    return (z, x, y) if turn & 4 else (z, y, x)
