"""One way to read a command line, for all scripts (torch-free)."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from utils.errors import UserError


class _Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of description and epilog, and says the default of every option that has one."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=118)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default, text = action.default, action.help
        if default is None or default is False or default == argparse.SUPPRESS or not text or "default" in text:
            return text
        return f"{text} (default: {' '.join(map(str, default)) if isinstance(default, tuple) else default})"


class Parser(argparse.ArgumentParser):
    """argparse as all scripts use it; sub-commands are Parsers too.

    Mistakes are UserErrors that name the help. Nothing is abbreviated. ``--ignore-voxels`` and ``--ignore_voxels`` are one
    option, whichever way it was declared. ``--debug`` (see :func:`utils.errors.reported`) is always there, but for debug=False.
    """

    def __init__(self, *args: Any, debug: bool = True, **settings: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, "formatter_class": _Help, **settings})
        if debug:
            self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def error(self, message: str) -> NoReturn:
        """Raises the UserError."""
        raise UserError(f"{message}; see {self.prog} --help")

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse does, with hyphens and underscores in the names of options taken for each other."""
        words = sys.argv[1:] if args is None else args
        return super().parse_known_args([as_declared(word, self._option_string_actions) for word in words], namespace)


def as_declared(word: str, flags: Any) -> str:
    """A word of the command line, spelled like the one of the flags that differs from it by hyphens and underscores alone."""
    flag, equals, value = word.partition("=")
    if not flag.startswith("--") or flag in flags:
        return word
    alike = (known for known in flags if known.startswith("--") and known.replace("_", "-") == flag.replace("_", "-"))
    return next(alike, flag) + equals + value
