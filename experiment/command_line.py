"""The command line of a training: abbreviated options, and the parser that prints ``--help`` (torch-free)."""

import argparse
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiment.options import ESTABLISHED, GROUPS, RETIRED, Option, as_text
from utils.command_line import Parser, as_declared
from utils.errors import UserError, did_you_mean

FIRST_PASS = ("jsn", "models", "env")  # decide which options there are, so they are never abbreviated
USAGE = "python train.py --jsn NAME --prj SUBDIR [option ...]"


def first_pass(argv: Sequence[str]) -> argparse.Namespace:
    """What decides the rest: jsn, models, env (None where not given) and help; abbreviations are not read."""
    parser = Parser(prog="train.py", debug=False, add_help=False)
    for name in FIRST_PASS:
        parser.add_argument(f"--{name}")
    parser.add_argument("-h", "--help", action="store_true")
    return parser.parse_known_args(list(argv))[0]


def read_command_line(
    argv: Sequence[str], options: Sequence[Option], foreign: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, str], list[str]]:
    """The checked values that a command line gives, its abbreviations ``{"--crops": "--cropsize"}``, and its retired options.

    A UserError: an option is unknown or one of the ``foreign`` (option → models that have it), is ambiguous, abbreviates one of
    FIRST_PASS, or refuses its value.
    """
    spelled, abbreviations = _spelled_out(argv, options, foreign)
    found, rest = make_parser(options, {}).parse_known_args(spelled)
    if rest:
        raise UserError(f"not understood: {' '.join(rest)}; booleans are written --name or --no-name, without a value")
    by_name = {option.name: option for option in options}
    values = {name: by_name[name].checked(value, f"--{name}") for name, value in vars(found).items() if name in by_name}
    return values, abbreviations, [name.removeprefix("retired ") for name in vars(found) if name not in by_name]


def _spelled_out(argv: Sequence[str], options: Sequence[Option], foreign: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """The command line with every abbreviated option written in full, and what was read as what."""
    known = dict.fromkeys(["--help", *(f"--{name}" for name in RETIRED)], True)  # flag → whether users knew it before us
    for option in options:
        known |= {f"--{key}": key in ESTABLISHED for key in option.keys}
        known |= {f"--no-{option.name}": False} if option.type is bool else {}
    spelled: list[str] = []
    read: dict[str, str] = {}
    unknown: list[str] = []
    for word in (as_declared(word, known) for word in argv):
        flag, equals, value = word.partition("=")
        name = flag.lstrip("-–—")  # dashes that a text program has made longer are meant as an option too
        if flag in known or len(word) < 3 or not word.startswith(("--", "–", "—")):
            spelled.append(word)
            continue
        found = [full for full in known if flag.startswith("--") and full.replace("-", "_").startswith(flag.replace("-", "_"))]
        found = [full for full in found if known[full]] or found  # names of ours take no abbreviation away
        if len(found) > 1:
            raise UserError(f"{flag} is ambiguous: it may mean {', '.join(sorted(found))}; write more of it")
        if not found and name in foreign:
            unknown.append(f"{flag} is an option of {foreign[name]}, not of this model")
        elif not found:
            unknown.append(f"{flag} is not an option{did_you_mean(name, known, '; --help lists them all')}")
        elif found[0][2:] in FIRST_PASS:
            raise UserError(f"{flag}: write {found[0]} in full; it decides which options there are")
        else:
            read[flag] = found[0]
            spelled.append(found[0] + equals + value)
    if unknown:
        raise UserError(". ".join(unknown))
    return spelled, read


def make_parser(options: Iterable[Option], defaults: Mapping[str, tuple[Any, str]]) -> Parser:
    """A parser of these options, in groups, that fills in no defaults.

    ``--help`` shows ``defaults``, option → effective default and where it comes from; else the option's own.
    """
    retired = textwrap.fill(f"Retired, accepted and ignored: {', '.join(RETIRED)}.", 118)
    parser = Parser(prog="train.py", usage=USAGE, debug=False, argument_default=argparse.SUPPRESS, epilog=retired)
    groups = {name: parser.add_argument_group(name) for name in GROUPS}
    for option in options:
        default, source = defaults.get(option.name, (option.default, "default"))
        limits = f" ({option.limits})" if option.limits else ""
        effective = "" if default is None else f" [{source}: {as_text(default)}]"
        how: dict[str, Any] = {"help": f"{option.help}{limits}{effective}".replace("%", "%%"), "dest": option.name}
        if option.type is bool:
            how["action"] = argparse.BooleanOptionalAction
        else:
            kind = "INT" if option.type is int else "NUMBER" if option.type is float else "TEXT"
            how["metavar"] = f"{{{','.join(option.type)}}}" if isinstance(option.type, tuple) else kind
            how["nargs"] = option.nargs
        flags = sorted((f"--{option.name}", *option.aliases), key=lambda flag: flag.startswith("--"))  # -b before --batch_size
        groups[option.group].add_argument(*flags, **how)
    for name in RETIRED:
        parser.add_argument(f"--{name}", nargs="*", dest=f"retired {name}", help=argparse.SUPPRESS)
    return parser
