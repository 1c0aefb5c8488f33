"""Checking single values, reading abbreviated options, and the parser that prints ``--help`` (torch-free)."""

from __future__ import annotations

import argparse
import json
import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from utils.command_line import Parser, as_declared
from utils.errors import UserError
from utils.settings.base_options import GROUPS, RETIRED, Option
from utils.settings.read_mapping import did_you_mean

FIRST_PASS = ("jsn", "models", "env")  # decide which options there are, so they are never abbreviated
USAGE = "python train.py --jsn NAME --prj SUBDIR [option ...]"
_COMPARISONS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
_KINDS: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


# Values --------------------------------------------------------------------------------------------------------------


def checked_value(option: Option, value: Any, where: str) -> Any:
    """The value as the option's type, from a file's JSON value or the command line's text.

    Args:
        option: what the value is for.
        value: a JSON value, or text.
        where: what the message starts with, such as ``"env/jsn/aisr.json: cropsize"`` or ``"--cropsize"``.

    Raises:
        UserError: wrong type, count, choice or range.
    """
    if option.nargs is None:
        return _checked_item(option, value, where)
    items = value if isinstance(value, list) else [value]
    if isinstance(option.nargs, int) and len(items) != option.nargs:
        raise UserError(f"{where}={_json(value)} must be a list of {option.nargs} values; it has {len(items)}")
    if not items:
        raise UserError(f"{where}=[] must be a list of at least one value")
    return [_checked_item(option, item, where) for item in items]


def _checked_item(option: Option, value: Any, where: str) -> Any:
    try:
        converted = _convert(option, value)
    except (ValueError, TypeError, OverflowError):
        kind = _KINDS.get(option.type, f"of this kind: {option.help}")
        raise UserError(f"{where}={_json(value)} must be {kind}") from None
    if option.choices and converted not in option.choices:
        similar = did_you_mean(str(converted), option.choices)
        why = f" ({option.why})" if option.why else ""
        raise UserError(f"{where}={_json(value)} must be one of {', '.join(option.choices)}{why}{similar}")
    for limit in option.limits.split():
        sign = limit.rstrip("0123456789.-")
        if not _COMPARISONS[sign](converted, float(limit[len(sign) :])):
            raise UserError(f"{where}={_json(value)} must be {option.limits.replace(' ', ' and ')}")
    return converted


def _convert(option: Option, value: Any) -> Any:
    if option.type is bool:
        if value in ("true", "false"):
            return value == "true"
        if not isinstance(value, bool):
            raise ValueError
        return value
    if isinstance(value, bool):
        # an option that is off at 0 may be switched off by false
        if value or option.type not in (int, float) or option.default != 0:
            raise ValueError
        value = 0
    if not isinstance(value, (str, int, float)):
        raise ValueError
    if option.type is int and isinstance(value, float) and not value.is_integer():
        raise ValueError
    converted = option.type(value)
    if isinstance(converted, float) and not math.isfinite(converted):
        raise ValueError
    return converted


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


# Abbreviations -------------------------------------------------------------------------------------------------------


@dataclass
class CommandLine:
    """What the command line says.

    Attributes:
        values: checked values by option name, only those given.
        abbreviations: ``{"--crops": "--cropsize"}``.
        retired: retired options given.
    """

    values: dict[str, Any] = field(default_factory=dict)
    abbreviations: dict[str, str] = field(default_factory=dict)
    retired: list[str] = field(default_factory=list)


def _flags(options: Iterable[Option]) -> dict[str, bool]:
    """Every long flag, and whether it was there before us."""
    known = {"--help": True} | {f"--{name}": True for name in RETIRED}
    for option in options:
        known[f"--{option.name}"] = not option.ours
        known |= {alias: True for alias in option.aliases if alias.startswith("--")}
        if option.type is bool:
            known[f"--no-{option.name}"] = False
    return known


def _full_flag(short: str, known: Mapping[str, bool]) -> list[str]:
    """The flags that an abbreviation may mean; flags older than ours come first, so that none of ours changes a habit."""
    old = [flag for flag, was_there in known.items() if was_there and flag.startswith(short)]
    return old or [flag for flag in known if flag.startswith(short)]


def expand(argv: Sequence[str], options: Sequence[Option], foreign: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """The command line with every abbreviated option spelled out, and what was read as what.

    Args:
        argv: the words of the command line.
        options: base and model options.
        foreign: options of other models → the model that has them, for messages.

    Raises:
        UserError: an option is unknown or ambiguous, or abbreviates one of FIRST_PASS.
    """
    known = _flags(options)
    spelled: list[str] = []
    read: dict[str, str] = {}
    unknown: list[str] = []
    for token in (as_declared(word, known) for word in argv):
        flag, equals, value = token.partition("=")
        if not _is_long(flag) or flag in known:
            spelled.append(token)
            continue
        found = _full_flag(flag, known) if flag.startswith("--") else []
        if len(found) > 1:
            raise UserError(f"{flag} is ambiguous: it may mean {', '.join(sorted(found))}; write more of it")
        if not found:
            unknown.append(_unknown(flag, known, foreign))
            continue
        if found[0][2:] in FIRST_PASS:
            raise UserError(f"{flag}: write {found[0]} in full; it decides which options there are")
        read[flag] = found[0]
        spelled.append(found[0] + equals + value)
    if unknown:
        raise UserError(". ".join(unknown))
    return spelled, read


def _is_long(token: str) -> bool:
    """Whether a token is meant as a long option; dashes that a text program has made longer count too."""
    return len(token) > 2 and (token.startswith("--") or token[0] in "–—")


def _unknown(flag: str, known: Mapping[str, bool], foreign: Mapping[str, str]) -> str:
    name = flag.lstrip("-–—")
    if name in foreign:
        return f"{flag} is an option of {foreign[name]}, not of this model"
    return f"{flag} is not an option{did_you_mean(f'--{name}', known, '; --help lists them all')}"


# Parser --------------------------------------------------------------------------------------------------------------


def make_parser(options: Iterable[Option], defaults: Mapping[str, tuple[Any, str]]) -> argparse.ArgumentParser:
    """A parser of these options, in groups; it fills in no defaults and knows no abbreviations.

    Args:
        options: base and model options.
        defaults: option → effective default and where it comes from, for ``--help``.
    """
    parser = Parser(
        prog="train.py",
        usage=USAGE,
        debug=False,
        argument_default=argparse.SUPPRESS,
        epilog=f"Retired, accepted and ignored: {', '.join(RETIRED)}.",
    )
    by_group = {name: [option for option in options if option.group == name] for name in GROUPS}
    for name, members in by_group.items():
        group = parser.add_argument_group(name) if members else parser
        for option in members:
            _add(group, option, _help(option, *defaults.get(option.name, (option.default, "default"))))
    for name in RETIRED:
        parser.add_argument(f"--{name}", nargs="*", dest=f"retired {name}", help=argparse.SUPPRESS)
    return parser


def _add(group: argparse._ActionsContainer, option: Option, text: str) -> None:
    flags = (*(alias for alias in option.aliases if not alias.startswith("--")), f"--{option.name}")
    flags += tuple(alias for alias in option.aliases if alias.startswith("--"))
    if option.type is bool:
        group.add_argument(*flags, action=argparse.BooleanOptionalAction, dest=option.name, help=text)
        return
    kind = "INT" if option.type is int else "NUMBER" if option.type is float else "TEXT"
    metavar = "{" + ",".join(option.choices) + "}" if option.choices else kind
    group.add_argument(*flags, nargs=option.nargs, metavar=metavar, dest=option.name, help=text)


def _help(option: Option, default: Any, source: str) -> str:
    limits = f" ({option.limits})" if option.limits else ""
    effective = "" if default is None else f" [{source}: {_json(default)}]"
    return f"{option.help}{limits}{effective}".replace("%", "%%")


def read_command_line(argv: Sequence[str], options: Sequence[Option], foreign: Mapping[str, str]) -> CommandLine:
    """The checked values of a command line.

    Raises:
        UserError: anything on it that is not understood.
    """
    spelled, read = expand(argv, options, foreign)
    found, rest = make_parser(options, {}).parse_known_args(spelled)
    if rest:
        raise UserError(f"not understood: {' '.join(rest)}; booleans are written --name or --no-name, without a value")
    given = vars(found)
    by_name = {option.name: option for option in options}
    retired = [name.removeprefix("retired ") for name in given if name.startswith("retired ")]
    values = {name: checked_value(by_name[name], value, f"--{name}") for name, value in given.items() if name in by_name}
    return CommandLine(values, read, retired)


def first_pass(argv: Sequence[str]) -> argparse.Namespace:
    """What decides the rest: jsn, models, env (None where not given) and help; abbreviations are not read."""
    parser = Parser(prog="train.py", debug=False, add_help=False)
    for name in FIRST_PASS:
        parser.add_argument(f"--{name}")
    parser.add_argument("-h", "--help", action="store_true")
    return parser.parse_known_args(list(argv))[0]
