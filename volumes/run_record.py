"""What a command of this project wrote about the run that made a file, taken from a file that anybody may have written."""

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger("isoscope")

Rule = Callable[[Any], bool]


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63


def _each(rule: Rule, number: int | None = None) -> Rule:
    return lambda value: isinstance(value, list) and number in (None, len(value)) and all(map(rule, value))


def _object(needed: Mapping[str, Rule], **more: Rule) -> Rule:
    """An object that has all of the needed entries, and of others, where it has them, sound ones."""

    def holds(value: Any) -> bool:
        if not isinstance(value, dict) or needed.keys() - value.keys():
            return False
        return all(rule(value[key]) for key, rule in {**needed, **more}.items() if key in value)

    return holds


def _steps(value: Any) -> bool:
    return _each(_number, 3)(value) and min(value) > 0


_FORM = _object({"code": _count, "affine_um": _each(_each(_number, 4), 3)})
_SPACE = _object({"voxel_um": _steps, "translation_um": _each(_number, 3)}, sform=_FORM, qform=_FORM)
_ENCODING = _object({"core": lambda value: _count(value) or _each(_count, 2)(value)}, stride=_count)
_RULES: Mapping[str, Rule] = {
    "run": _text,
    "weights": _text,
    "input": _object({}, files=_each(_text), shape=_each(_count, 3), dtype=_text, space=_SPACE),
    "place": _object({"origin": _each(_number, 3), "step": _steps}),
    "slices": _object(
        {"first": _number, "spacing": _number, "thinned": _count, "how": ("pick", "mean").__contains__, "first_kept": _number}
    ),
    "thick": lambda value: value in ("z", "y", "x"),
    "axial_taps": lambda value: _each(_number)(value) and len(value) % 2 == 1,
    "intensities": _each(lambda value: isinstance(value, dict)),
    "lattice": _object({}, encoding=lambda v: v is None or _ENCODING(v), decoding=_object({}, core=_each(_count, 3))),
    "region": _each(_each(lambda value: value == 0 or _count(value), 2), 3),
    "seams": lambda value: isinstance(value, dict) and all(map(_number, value.values())),
}
_OF_A_RUN = ("weights", "input")  # what a file that names a run says besides,
_OF_ITS_INPUT = {"files", "shape", "dtype"}  # and of its input


def run_record(path: Path, found: Mapping[str, Any]) -> Mapping[str, Any]:
    """The record if a command can have written it; else nothing, and a warning names the first entry that is wrong."""
    wrong = [key for key, rule in _RULES.items() if key in found and not rule(found[key])]
    if "run" in found or "place" in found:
        wrong += [key for key in _OF_A_RUN if key not in found]
        wrong += ["input"] if not wrong and _OF_ITS_INPUT - found["input"].keys() else []
    if wrong:
        log.warning("%s: what it records of the run that made it (%s) is damaged, and is not used", path, wrong[0])
    return {} if wrong else found
