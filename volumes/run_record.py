"""What a command of this project wrote about the run that made a file, taken from a file that anybody may have written."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from utils.rules import Rule, count, each, entries, number, text

log = logging.getLogger("isoscope")


def _steps(value: Any) -> bool:
    return each(number, 3)(value) and min(value) > 0


_FORM = entries({"code": count(), "affine_um": each(each(number, 4), 3)})
_SPACE = entries({"voxel_um": _steps, "translation_um": each(number, 3)}, sform=_FORM, qform=_FORM)
_ENCODING = entries({"core": lambda value: count()(value) or each(count(), 2)(value)}, stride=count())
_RULES: Mapping[str, Rule] = {
    "run": text,
    "weights": text,
    "input": entries({}, files=each(text), shape=each(count(), 3), dtype=text, space=_SPACE),
    "place": entries({"origin": each(number, 3), "step": _steps}),
    "slices": entries(
        {"first": number, "spacing": number, "thinned": count(), "how": ("pick", "mean").__contains__, "first_kept": number}
    ),
    "thick": lambda value: value in ("z", "y", "x"),
    "axial_taps": lambda value: each(number)(value) and len(value) % 2 == 1,
    "intensities": each(lambda value: isinstance(value, dict)),
    "lattice": entries({}, encoding=lambda v: v is None or _ENCODING(v), decoding=entries({}, core=each(count(), 3))),
    "region": each(each(count(0), 2), 3),
    "seams": lambda value: isinstance(value, dict) and all(map(number, value.values())),
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
