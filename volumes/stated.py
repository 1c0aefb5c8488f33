"""What files say of their axes, units and lengths: the one place where that is understood, or refused by name."""

import logging
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from utils.errors import UserError

log = logging.getLogger("isoscope")

_AXES = {
    "t": "t time times timepoint timepoints frame frames",
    "c": "c ch channel channels",
    "z": "z depth plane planes slice slices section sections",
    "y": "y row rows height",
    "x": "x column columns col width",
}
AXES: Mapping[str, str] = {name: letter for letter, names in _AXES.items() for name in names.split()}

_PREFIXES = (  # name, symbol, power of ten in metres
    *(("", "", 0), ("deca", "da", 1), ("hecto", "h", 2), ("kilo", "k", 3), ("mega", "M", 6), ("giga", "G", 9), ("tera", "T", 12)),
    *(("deci", "d", -1), ("centi", "c", -2), ("milli", "m", -3), ("micro", "μ", -6), ("micro", "u", -6), ("nano", "n", -9)),
    *(("pico", "p", -12), ("femto", "f", -15), ("atto", "a", -18), ("peta", "P", 15), ("exa", "E", 18), ("zetta", "Z", 21)),
    *(("yotta", "Y", 24), ("zepto", "z", -21), ("yocto", "y", -24)),
)
_SYMBOLS = {f"{symbol}m": float(f"1e{power + 6}") for _, symbol, power in _PREFIXES}
_SYMBOLS |= {"Å": 1e-4, "A": 1e-4, "in": 25.4e3, '"': 25.4e3, "ft": 304.8e3, "yd": 914.4e3, "li": 25.4e3 / 12, "μ": 1.0}
_WORDS = {f"{prefix}meter": float(f"1e{power + 6}") for prefix, _, power in _PREFIXES}
_WORDS |= {"micron": 1.0, "angstrom": 1e-4, "ångström": 1e-4, "thou": 25.4, "mil": 25.4, "inch": 25.4e3, "inches": 25.4e3}
_WORDS |= {"foot": 304.8e3, "feet": 304.8e3, "yard": 914.4e3, "line": 25.4e3 / 12}
_LONGEST, _LARGEST = 2**26, 2**50  # of an axis, a row of which is held in memory; of all values
NO_LENGTH = ("", "pixel", "pixels", "voxel", "voxels", "px", "unknown", "none", "unit", "arbitrary", "reference frame")


def micrometres(unit: str | None) -> float | None:
    """How many µm a unit of length is, by its symbol or its name in any spelling; None for what is no length."""
    text = unicodedata.normalize("NFKC", str(unit or "").replace("\\u00B5", "µ")).strip().strip("\"'").strip()  # µ → μ, Å → Å
    word = text.lower().replace("metre", "meter")
    found = (_SYMBOLS.get(text), _WORDS.get(word), _WORDS.get(word.removesuffix("s")), _SYMBOLS.get(word))
    return next((factor for factor in found if factor is not None), None)


def length_um(path: Path, what: str, value: Any, unit: str | None, least: float = -math.inf) -> float | None:
    """A length in µm; None where there is none, or, with a warning, where its number or unit says nothing.

    Args:
        path: the file, and
        what: what it calls the length, for the warning.
        value: number or text; None: not stated.
        unit: as it is stated.
        least: what it must be above: 0 for a size.
    """
    factor = micrometres(unit)
    if value is None or (factor is None and str(unit or "").strip().lower() in NO_LENGTH):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if factor is None or not math.isfinite(number) or number <= least:
        log.warning("%s: %s is stated as %r %s, which is no length; it is taken as not known", path, what, value, unit)
        return None
    return number * factor


def plain_axes(path: Path, stated: Any, shape: Sequence[int]) -> Sequence[str]:
    """Names of the axes of an array: those that are stated, unless they are placeholders, else (T, C, Z, Y, X) from behind."""
    if not isinstance(stated, (list, tuple, str, type(None))):
        raise UserError(f"{path}: {str(stated)[:80]!r} are no names of axes; correct them")
    names = [str(name or "") for name in stated or ()]
    if any(name and not re.fullmatch(r"(dim|axis|phony_dim)_?\d+", name) for name in names):
        if len(names) != len(shape):
            raise UserError(f"{path}: axes {names} contradict the array of shape {tuple(shape)}")
        return names
    if len(shape) < 3 or any(size > 1 for size in shape[:-3]) or len(shape) > 5:
        raise UserError(
            f"{path}: an array of shape {tuple(shape)}; without names of its axes only (Z, Y, X) is a volume, "
            "save it as OME-Zarr or with names of its axes"
        )
    return "tczyx"[5 - len(shape) :]


@dataclass(frozen=True)
class Choice:
    """Which volume of a file that holds several; all count from 0, None stands for the only one."""

    channel: int | None = None
    time: int | None = None
    scene: int | None = None
    level: int = 0


def choose(path: Path, what: str, number: int | None, count: int, layout: str = "") -> int:
    """The number of the channel, time point or scene (``what``) to read, of so many; None chooses the only one.

    A UserError, which names the file and its layout, says that there are several and none was chosen, or that there are fewer.
    """
    if number is None and count > 1:
        raise UserError(f"{path}: {count} {what}s{layout}; choose one {what}: --{what.split()[0]} 0 is the first")
    if number is not None and not 0 <= number < count:
        raise UserError(f"{path}: {what} {number} of {count}; {what}s count from 0")
    return number or 0


class Layout:
    """How the axes of a stored array make (Z, Y, X) volumes, of which one is chosen.

    Args:
        path: the file, for messages.
        names: of the axes as they are stored; a name that is none of an image's is passed over where the axis has one entry.
        sizes: of the array.
        choice: channel and time point.

    Attributes:
        axes: t, c, z, y or x for every axis; - for one that was passed over.
        sizes: of the array.
        shape: (Z, Y, X).
        channels, times: how many there are.

    Raises:
        UserError: the axes are not those of a volume, or there is nothing as chosen.
    """

    def __init__(self, path: Path, names: Sequence[str], sizes: Sequence[int], choice: Choice) -> None:
        self.axes = "".join(AXES.get(str(name).lower(), "-") for name in names)
        stated = f"axes {', '.join(map(str, names))} of shape {tuple(sizes)}"
        unknown = [name for name, axis, n in zip(names, self.axes, sizes, strict=True) if axis == "-" and n > 1]
        known = self.axes.replace("-", "")
        if unknown or len(set(known)) < len(known) or not {"y", "x"} <= set(known):
            raise UserError(
                f"{path}: {stated} are not a volume (Z, Y, X) with optional channels and time points; write the axes into the "
                "file, or save it with them (OME-Zarr, OME-TIFF or an ImageJ hyperstack)"
            )
        if "z" not in known:
            raise UserError(f"{path}: a 2-D image ({stated}); a volume has an axis z")
        if min(sizes) < 1:
            raise UserError(f"{path}: an empty array ({stated}); remove it")
        if max(sizes) > _LONGEST or math.prod(sizes) > _LARGEST:
            raise UserError(f"{path}: {stated} are not an image's: more than {_LONGEST} along an axis, or {_LARGEST} in all")
        self.sizes, self._path, self._stated = tuple(sizes), path, stated
        lengths = dict(zip(self.axes, sizes, strict=True))
        self.shape = (lengths["z"], lengths["y"], lengths["x"])
        self.channels, self.times = lengths.get("c", 1), lengths.get("t", 1)
        self._at = {
            "c": choose(path, "channel", choice.channel, self.channels, f" ({stated})"),
            "t": choose(path, "time point", choice.time, self.times, f" ({stated})"),
        }

    @property
    def order(self) -> str:
        """The letters of z, y and x as they follow each other in the file."""
        return "".join(axis for axis in self.axes if axis in "zyx")

    def key(self, planes: Any = slice(None), rows: Any = slice(None), columns: Any = slice(None)) -> tuple[Any, ...]:
        """The index of a box in the stored array; the result has the axes of ``order``."""
        space = {"z": planes, "y": rows, "x": columns}
        return tuple(space.get(axis, self._at.get(axis, 0)) for axis in self.axes)

    def planes(self) -> NDArray[np.intp]:
        """Numbers of the planes (of the axes ``page``) that hold the volume, in the order of the file."""
        sizes = [1 if n in self.page else size for n, size in enumerate(self.sizes)]
        if any(size > 1 for size in sizes[self.page[0] + 1 :]):
            raise UserError(f"{self._path}: {self._stated}: planes with channels or time points in them; save it as (C, Z, Y, X)")
        return np.arange(math.prod(sizes)).reshape(sizes)[self.key()].ravel()

    @property
    def page(self) -> tuple[int, int]:
        """Which two axes make a plane of the file: the fastest of z, y and x."""
        *_, rows, columns = (n for n, axis in enumerate(self.axes) if axis in "zyx")
        return rows, columns
