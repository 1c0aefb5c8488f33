"""A reader for napari (its plugin manifest is napari.yaml): code stores as layers that are decoded where one looks.

napari asks for planes as one moves; only the tiles that a plane touches are decoded, and the latest ones are kept (utils.recent).
"""

from collections.abc import Callable, Sequence
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from sharing.view import Layer, is_store, opened
from utils.axes import as_planes
from utils.boxes import Box
from utils.errors import UserError

Read = Callable[[str | Sequence[str]], list[tuple["LazyArray", dict[str, Any], str]]]


def reader_of(path: str | Sequence[str]) -> Read | None:
    """What reads a path, or several as one stack of layers; None where one of them is not a code store."""
    paths = _listed(path)
    try:
        stores = all(map(is_store, paths))
    except UserError:  # a group without attributes
        return None
    return layers_of if paths and stores else None


def layers_of(path: str | Sequence[str]) -> list[tuple["LazyArray", dict[str, Any], str]]:
    """The layers of code stores as napari takes them: array (z, y, x), its name, scale, place and range, and what it shows.

    In µm; where a store does not know its voxel size, in voxels of the input of the first one. Codes are hidden at first.

    Raises:
        UserError: a store is damaged, or there is no run that decodes it.
    """
    layers = opened(_listed(path))
    measured = all(layer.um is not None for layer in layers)
    return [_as_napari_has_it(layer, measured) for layer in layers]


def _as_napari_has_it(layer: Layer, measured: bool) -> tuple["LazyArray", dict[str, Any], str]:
    array = LazyArray(layer)
    place = layer.um if measured and layer.um is not None else layer.counted
    about: dict[str, Any] = {
        "name": layer.name,
        "scale": [place.step[axis] for axis in array.order],
        "translate": [place.first[axis] for axis in array.order],
        "units": ["um" if measured else "pixel"] * 3,
        "visible": layer.computed,
    }
    if layer.kind == "codes":
        return array, about, "labels"
    low, high = layer.limits
    return array, {**about, "contrast_limits": (low, max(high, low + 1e-6)), "multiscale": False}, "image"


def _listed(path: str | Sequence[str]) -> list[Path]:
    return [Path(path)] if isinstance(path, str) else [Path(one) for one in path]


class LazyArray:
    """A layer as an array (z, y, x) that is read, or computed, when it is indexed.

    Attributes:
        order: the layer's axes in the order z, y, x.
        shape, dtype, ndim: of the array.
    """

    ndim = 3

    def __init__(self, layer: Layer) -> None:
        """Nothing is read yet."""
        self.layer = layer
        self.order = [layer.axes.index(axis) for axis in "zyx"]
        self.shape = tuple(layer.shape[axis] for axis in self.order)
        self.dtype = layer.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> NDArray[Any]:
        """Numbers, slices, lists of numbers and ``...`` select as of a NumPy array; what lies between is read as well.

        Raises:
            IndexError: a number is beyond the array, or there are more indices than axes.
        """
        keys = list(key) if isinstance(key, tuple) else [key]
        if (dots := next((place for place, one in enumerate(keys) if one is Ellipsis), None)) is not None:
            keys[dots : dots + 1] = [slice(None)] * (self.ndim - len(keys) + 1)
        if len(keys) > self.ndim:
            raise IndexError(f"too many indices: {len(keys)} for an array of {self.ndim} axes")
        keys += [slice(None)] * (self.ndim - len(keys))
        wanted = [_selected(one, size) for one, size in zip(keys, self.shape, strict=True)]
        if any(np.size(numbers) == 0 for numbers in wanted):
            return np.empty([np.size(numbers) for numbers in wanted if np.ndim(numbers)], self.dtype)
        starts = [int(np.min(numbers)) for numbers in wanted]
        box = [slice(start, int(np.max(numbers)) + 1) for start, numbers in zip(starts, wanted, strict=True)]
        values = self._read(box)
        for axis in reversed(range(self.ndim)):
            values = np.take(values, wanted[axis] - starts[axis], axis=axis)
        return values

    def _read(self, box: Sequence[slice]) -> NDArray[Any]:
        """A box along z, y, x."""
        own: Box = tuple(box[self.order.index(axis)] for axis in range(self.ndim))  # type: ignore[assignment]
        return as_planes(self.layer[own], self.layer.axes)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:].astype(dtype or self.dtype, copy=False)


def _selected(key: Any, size: int) -> NDArray[Any]:
    """The numbers that an index of one axis selects: an array, or a single one."""
    if isinstance(key, slice):
        return np.arange(size)[key]
    numbers = np.asarray(key if np.ndim(key) else index(key))
    if numbers.size and not (-size <= numbers.min() and numbers.max() < size):
        raise IndexError(f"index {key} is beyond an axis of {size}")
    return numbers % size
