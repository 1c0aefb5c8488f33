"""Reading one object of settings from JSON or YAML, and the helpers of messages about them (torch-free)."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from utils.errors import UserError


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "") -> str:
    """A question to append to an error message, or the words of otherwise when no known word is near, regardless of case.

    Typing errors rarely change the first letter: a word that begins otherwise has to be very like the known one.
    """
    by_lower = {name.lower().lstrip("-"): name for name in known}
    typed = word.lower().lstrip("-–—")
    for near in difflib.get_close_matches(typed, by_lower, n=3, cutoff=0.6):
        if near[:1] == typed[:1] or difflib.SequenceMatcher(None, typed, near).ratio() >= 0.8:
            return f"; did you mean {by_lower[near]}?"
    return otherwise


class _Loader(yaml.SafeLoader):
    """YAML with the scalars of JSON: 1e-4 is a number, 00 and 1:00:00:00 and yes are text; a repeated key is an error."""

    # Spelled out instead of inherited: YAML 1.1 would read 01 in base 8, 1:00:00:00 in base 60, and 2e-4 as text.
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own declaration)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        _refuse_repeated([self.construct_object(key, deep=True) for key, _ in node.value])
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("null", r"null|~|", "n~"),
    ("bool", r"true|false", "tf"),
    ("int", r"[-+]?(0|[1-9]\d*)", "-+0123456789"),
    ("float", r"[-+]?(\.\d+|\d+\.\d*|(0|[1-9]\d*)(?=[eE]))([eE][-+]?\d+)?", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), [*_first, *([""] * (_tag == "null"))]
    )


def _refuse_repeated(keys: list[Any]) -> None:
    if repeated := sorted({str(key) for key in keys if keys.count(key) > 1}):
        raise ValueError(f"given twice: {', '.join(repeated)}")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _refuse_repeated([key for key, _ in pairs])
    return dict(pairs)


def read_mapping(path: Path, kind: str) -> dict[str, Any]:
    """The object in a JSON or YAML file.

    Args:
        path: ``.yaml`` and ``.yml`` are read as YAML, everything else as JSON.
        kind: what the file is, for messages.

    Raises:
        UserError: the file cannot be read or is no object with text keys, or a key is given twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix in (".yaml", ".yml"):
            found = yaml.load(text, _Loader)
        else:
            found = json.loads(text, object_pairs_hook=_unique)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path}: this {kind} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise UserError(f'{path}: the {kind} must be one object of named values, such as {{"name": value}}')
    return found
