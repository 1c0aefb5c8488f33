"""Changes of layout outside the networks, for arrays and tensors alike; networks/views.py has those of training.

No other module of ours moves an axis. A file's volume is (Z, rows, columns), in memory it is (X=rows, Y=columns, Z): Z moves, and
nothing is transposed in-plane.
"""

from collections.abc import Sequence
from typing import Any, TypeVar

from einops import rearrange

Values = TypeVar("Values", bound=Any)  # numpy array or tensor; the result is a view where that is possible
Side = TypeVar("Side")

SEEN_ALONG = {"z": "zyx", "y": "yzx", "x": "xyz"}  # the axes of a file whose thick axis has changed places with z


def to_memory(planes: Values) -> Values:
    """(..., Z, X, Y) of a file → (..., X, Y, Z)."""
    return rearrange(planes, "... z x y -> ... x y z")


def to_file(volume: Values) -> Values:
    """(..., X, Y, Z) → (..., Z, X, Y), as a file has it."""
    return rearrange(volume, "... x y z -> ... z x y")


def channels_last(values: Values) -> Values:
    """(N, C, ...) → (N, ..., C)."""
    return rearrange(values, "n c ... -> n ... c")


def channels_first(values: Values) -> Values:
    """(N, ..., C) → (N, C, ...)."""
    return rearrange(values, "n ... c -> n c ...")


def inputs_first(weights: Values) -> Values:
    """Weights of a convolution (out, in, ...) → as a transposed convolution has them, (in, out, ...)."""
    return rearrange(weights, "o i ... -> i o ...")


def levels_first(codes: Values) -> Values:
    """(Z, rows, columns, L) → (L, Z, rows, columns)."""
    return rearrange(codes, "z x y l -> l z x y")


def levels_last(codes: Values) -> Values:
    """(L, Z, rows, columns) → (Z, rows, columns, L)."""
    return rearrange(codes, "l z x y -> z x y l")


def transposed(values: Values, rows: int) -> Values:
    """The in-plane transpose: axis ``rows``, 1 or 2, and that of columns behind it change places."""
    return rearrange(values, ("n x y ... -> n y x ...", "n c x y ... -> n c y x ...")[rows - 1])


def planes_across(volume: Values, axis: int) -> Values:
    """The planes of (Z, Y, X) across an axis, that axis first: (Z, Y, X), (Y, Z, X) or (X, Z, Y)."""
    return rearrange(volume, ("z y x -> z y x", "z y x -> y z x", "z y x -> x z y")[axis])


def lines_along(volume: Values, axis: int) -> Values:
    """The lines of (Z, Y, X) along an axis, that axis last: (Y, X, Z), (Z, X, Y) or (Z, Y, X)."""
    return rearrange(volume, ("z y x -> y x z", "z y x -> z x y", "z y x -> z y x")[axis])


def as_planes(values: Values, axes: str) -> Values:
    """Values (..., three axes) that are named, such as ``xzy``, as (..., Z, rows, columns)."""
    return rearrange(values, f"... {' '.join(axes)} -> ... z y x")


def exchanged(sides: Sequence[Side], thick: str) -> tuple[Side, Side, Side]:
    """What belongs to the axes (z, y, x), a size or a slice each, with z and the thick axis having changed places.

    The same once more undoes it, and so does ``as_planes(values, SEEN_ALONG[thick])`` for values.
    """
    z, y, x = (sides["zyx".index(axis)] for axis in SEEN_ALONG[thick])
    return z, y, x
