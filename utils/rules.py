"""Rules for values of JSON that anybody may have written: functions that say whether a value is what it has to be."""

import math
from collections.abc import Callable, Mapping
from typing import Any

Rule = Callable[[Any], bool]


def text(value: Any) -> bool:
    """Words."""
    return isinstance(value, str)


def number(value: Any) -> bool:
    """A finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def count(least: int = 1, most: int = 2**63 - 1) -> Rule:
    """A whole number between these, both included."""
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def each(rule: Rule, number: int | None = None) -> Rule:
    """A list, of so many entries where that is said, of which the rule holds."""
    return lambda value: isinstance(value, list) and number in (None, len(value)) and all(map(rule, value))


def entries(needed: Mapping[str, Rule], **more: Rule) -> Rule:
    """An object that has all of the needed entries, and of others, where it has them, sound ones."""

    def holds(value: Any) -> bool:
        if not isinstance(value, dict) or needed.keys() - value.keys():
            return False
        return all(rule(value[key]) for key, rule in {**needed, **more}.items() if key in value)

    return holds
