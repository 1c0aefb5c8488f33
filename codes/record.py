"""What a code store says of itself (attribute ``isoscope_codes``), taken from a file that anybody may have written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.far import ADDRESS
from utils.rules import Rule, count, each, entries, number, text
from utils.units import are_sizes
from volumes.volume import READABLE

KEY = "isoscope_codes"
VERSION = 7
MOST_LEVELS = 64
_DTYPES = {"codebook": ("uint8", "uint16"), "gaussian": ("float16",)}


def _lengths(value: Any) -> bool:
    return value is None or each(number, 3)(value)


def _sizes(value: Any) -> bool:
    return _lengths(value) and are_sizes(value or ())


def _name(value: Any) -> bool:
    return text(value) and value != ""


_SIZES = count(1, 2**40)
_RULES: dict[str, tuple[str, Rule]] = {
    "kind": ("codebook or gaussian", _DTYPES.__contains__),
    "shape": ("three sizes (slices, rows, columns)", each(_SIZES, 3)),
    "inner": ("two sizes (rows and columns of pixels)", each(_SIZES, 2)),
    "levels": (f"1 to {MOST_LEVELS}", count(1, MOST_LEVELS)),
    "dimensions": ("1 to 65536", count(1, 2**16)),
    "factor": ("1 to 65536", count(1, 2**16)),
    "slice_voxel_um": ("three sizes, or null", _sizes),
    "slice_translation_um": ("three lengths, or null", _lengths),
    "intensities": ("a list", lambda value: isinstance(value, list)),
    "input": ("an object with shape and dtype", entries({"shape": each(_SIZES, 3), "dtype": _name})),
    "output_dtype": ("a type of values", READABLE[1:].__contains__),
}
_SINCE_4 = {"background": ("true or false", lambda value: isinstance(value, bool))}  # whether there is an array of it
_OF_DECODING: dict[str, tuple[str, Rule]] = {
    "run": ("a name", _name),
    "run_path": ("a path", _name),
    "epoch": ("a number of epochs", count(0, 2**40)),
    "weights": ("a SHA-256", _name),
    "lattice": ("an object", lambda value: isinstance(value, dict)),
    "normalisation": ("a name", _name),
}

# What a record says of most stores: an entry that is just so is not written, and read as if it were.
_USUAL: dict[str, Any] = {
    "axial_taps": [1.0],
    "background": False,
    "dtype": "uint8",
    "kind": "codebook",
    "l1how": "max",
    "levels": 1,
    "model": "ae0iso0tccutvqq",
    "normalisation": "run",
    "output_dtype": "uint8",
    "slice_translation_um": None,
    "slice_voxel_um": None,
    "slices": {"first": 0.0, "spacing": 1.0, "thinned": 1, "how": "pick", "first_kept": 0.0},
}

OF_DECODING = tuple(_OF_DECODING)  # what decoding needs besides


def brief(about: Mapping[str, Any]) -> dict[str, Any]:
    """A record as it is written, from which :func:`record_in` makes the whole one."""
    return {key: value for key, value in about.items() if key not in _USUAL or value != _USUAL[key]}


def record_in(store: Path, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The record among a store's attributes, if it is one that codes can be read by.

    Raises:
        UserError: there is none, it is of a newer version, or something in it is missing or cannot be; the message names it.
    """
    if KEY not in attributes:
        raise UserError(f"{store} is not a code store: it was not written by infer.py encode")
    about = attributes[KEY]
    version = about.get("version") if isinstance(about, dict) else None
    if version not in range(1, VERSION + 1):
        raise UserError(f"{store} is of version {version!r:.40}, this program reads 1 to {VERSION}; encode it again")
    about = about if version in range(1, 6) else _USUAL | about
    _check(store, about, _RULES)
    _check(store, about, {key: rule for key, rule in (_OF_DECODING | _SINCE_4).items() if key in about})
    rules = {"dtype": (f"one of {', '.join(_DTYPES[about['kind']])}", _DTYPES[about["kind"]].__contains__)}
    if about["kind"] == "codebook":
        rules["codes"] = ("1 to 65536", count(1, 2**16))
    _check(store, about, rules)
    return about


def holds_codes(folder: Path) -> bool:
    """Whether a folder is a code store."""
    return (folder / "zarr.json").is_file() and KEY in stored_attributes(folder)


def stored_attributes(folder: Path) -> dict[str, Any]:
    """The attributes of a Zarr 3 group; a UserError: there is none."""
    check_inside(folder, folder / "zarr.json")
    try:
        found = json.loads((folder / "zarr.json").read_text(encoding="utf-8"))["attributes"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        far = (
            "; codes are decoded on the machine where they lie: copy the folder to this one"
            if ADDRESS.fullmatch(str(folder))
            else ""
        )
        raise UserError(f"{folder} is not a code store ({error}){far}") from error
    if not isinstance(found, dict):
        raise UserError(f"{folder} is not a code store (its attributes are no object)")
    return found


def _check(store: Path, about: Mapping[str, Any], rules: Mapping[str, tuple[str, Rule]]) -> None:
    for key, (what, holds) in rules.items():
        value = about.get(key)
        try:
            fine = holds(value)
        except TypeError:  # a list has no hash
            fine = False
        if not fine:
            shown = repr(value) if key in about else "missing"
            raise UserError(f"{store}: its {key} is {shown[:80]} and must be {what}; copy or encode it again")


def check_inside(store: Path, file: Path) -> None:
    """That a file of a store lies in it, and is no link out of it; a UserError says where it leads."""
    if not (leads := file.resolve()).is_relative_to(store.resolve()):
        raise UserError(f"{file} is a link that leads out of the store, to {leads}; copy the store itself, links followed")
