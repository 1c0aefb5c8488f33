"""Volumes of grey values that are computed when they are asked for: any box of them, always from the same tiles."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from intensity.transform import Intensity
from utils.axes import SEEN_ALONG, as_planes, exchanged
from utils.boxes import Box, relative

Array = NDArray[Any]
Part = Callable[[Box], Array]  # values of a part of a box


class Field(ABC):
    """A volume (C, Z, Y, X) of grey values that is computed when it is asked for.

    Attributes:
        shape: (Z, Y, X).
        channels: C.
        block: (z, y, x) tiles that go through the network together.
        unit: (z, y, x) voxels of the cores of a block: boxes made of whole ones are computed without waste.
        intensities: of the channels; further channels have that of the last one.
        dtype: of the values.
        skip_empty: fill tiles of pure background instead of computing them.
        skipped: how many were filled.
    """

    shape: tuple[int, int, int]
    channels: int
    block: tuple[int, int, int] = (1, 1, 1)
    unit: tuple[int, int, int]
    intensities: Sequence[Intensity]
    dtype: np.dtype
    skip_empty: bool = True
    skipped: int = 0

    @abstractmethod
    def prefetch(self, box: Box) -> None:
        """Begin to read what :meth:`begin` of the same box will need."""

    @abstractmethod
    def begin(self, box: Box) -> Part:
        """Has the network compute a box.

        Returns:
            What gives the values (C, z, y, x) of any part of the box. It waits for a GPU where it has to, and may be called from
            any thread, while the next box is begun.
        """

    def render(self, box: Box) -> Array:
        """The box, (C, z, y, x)."""
        return self.begin(box)(box)

    @property
    @abstractmethod
    def lattice(self) -> dict[str, Any]:
        """The tiles, as plain JSON for the metadata."""

    def to_grey(self, values: Tensor) -> Tensor:
        """The network's values (C, ...) → grey values of the field's dtype, clipped to it, and rounded where it is an integer."""
        last, dtype = len(self.intensities) - 1, getattr(torch, self.dtype.name)
        grey = torch.stack([self.intensities[min(c, last)].to_grey(v) for c, v in enumerate(values.float())])
        limits = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
        return (grey if dtype.is_floating_point else grey.round()).clamp(limits.min, limits.max).to(dtype)


class TurnedField(Field):
    """A field whose axis z has changed places with the thick axis of the file that it was made of."""

    def __init__(self, field: Field, thick: str) -> None:
        self.field, self._thick = field, thick
        self.shape, self.block, self.unit = (exchanged(n, thick) for n in (field.shape, field.block, field.unit))
        self.channels, self.intensities, self.dtype = field.channels, field.intensities, field.dtype

    @property
    def lattice(self) -> dict[str, Any]:
        """As the field has it."""
        return self.field.lattice

    def prefetch(self, box: Box) -> None:
        """Lets the field read ahead."""
        self.field.prefetch(exchanged(box, self._thick))

    def begin(self, box: Box) -> Part:
        """The field's values, turned."""
        begun = self.field.begin(exchanged(box, self._thick))
        return lambda part: as_planes(begun(exchanged(part, self._thick)), SEEN_ALONG[self._thick])


def parts_of(values: Array, box: Box) -> Part:
    """Parts of a box whose values (C, z, y, x) are all there."""
    return lambda part: values[(slice(None), *relative(part, box))]
