"""One way to read a command line, for all scripts: parser, options that several have, regions and voxel sizes (torch-free)."""

import argparse
import logging
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TextIO

from tqdm import tqdm

from utils.errors import UserError, did_you_mean, printable
from utils.units import SIZES, are_sizes

REPOSITORY = Path(__file__).resolve().parents[1]


class Messages(logging.StreamHandler[TextIO]):
    """Shows what is logged; what a file says must not command the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without control characters."""
        return printable(super().format(record))

    def emit(self, record: logging.LogRecord) -> None:
        """The line, with the bars that are being shown below it."""
        with tqdm.external_write_mode(self.stream, nolock=True):  # which another process may hold
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Who has read enough, as ``head`` has, ends no work: the rest is said to nobody."""
        if isinstance(sys.exc_info()[1], BrokenPipeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())
        else:
            super().handleError(record)


class _Help(argparse.RawDescriptionHelpFormatter):
    """Keeps the lines of description and epilog, and says the default of every option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        default, text = action.default, action.help
        if isinstance(default, bool) or default in (None, argparse.SUPPRESS) or not text or "default" in text:
            return text
        return f"{text} (default: {' '.join(map(str, default)) if isinstance(default, tuple) else default})"


_HELP = partial(_Help, max_help_position=34, width=118)


class Parser(argparse.ArgumentParser):
    """argparse as all scripts use it; sub-commands are Parsers too.

    Mistakes are UserErrors that name the help. Nothing is abbreviated. ``--ignore-voxels`` and ``--ignore_voxels`` are one
    option, whichever way it was declared. ``--debug`` (see :func:`utils.errors.reported`) is always there, but for debug=False.
    """

    def __init__(self, *args: Any, debug: bool = True, **settings: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, "formatter_class": _HELP, **settings})
        if debug:
            self.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def error(self, message: str) -> NoReturn:
        """Raises the UserError, with what was probably meant: an option of another spelling, or a command before its options."""
        commands = next((action.choices for action in self._actions if isinstance(action, argparse._SubParsersAction)), {})
        if commands and not self._words[:1]:
            message = f"name a command: {', '.join(commands)}"
        elif commands and self._words[0].startswith("-"):
            message = f"the command ({', '.join(commands)}) comes first, then its options"
        said_by = commands.get(next(iter(self._words), ""), self)
        flags = said_by._option_string_actions
        typed = [word.partition("=")[0] for word in self._words if word.startswith("--")]
        meant = [f"{word} is not an option{near}" for word in typed if word not in flags and (near := did_you_mean(word, flags))]
        raise UserError(f"{' '.join(meant) or message + ';'} see {said_by.prog} --help")

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:  # type: ignore[override]
        """As argparse does, with hyphens and underscores in the names of options taken for each other."""
        words = sys.argv[1:] if args is None else args
        self._words = [as_declared(word, self._option_string_actions) for word in words]
        return super().parse_known_args(self._words, namespace)


def as_declared(word: str, flags: Any) -> str:
    """A word of the command line, spelled like the one of the flags that differs from it by hyphens and underscores alone."""
    flag, equals, value = word.partition("=")
    if not flag.startswith("--") or flag in flags:
        return word
    alike = (known for known in flags if known.startswith("--") and known.replace("_", "-") == flag.replace("_", "-"))
    return next(alike, flag) + equals + value


_SHARED: dict[str, dict[str, Any]] = {
    "--run": {"type": Path, "required": True, "help": "a training's folder"},
    "--epoch": {"type": int, "metavar": "N", "help": "completed epochs of the weights; the latest by default"},
    "--weights": {
        "choices": ("ema", "raw"),
        "help": "averaged over the last steps, or those of the last step; by default averaged ones where the training made them",
    },
    "--device": {"help": "cpu, cuda, cuda:1; by default a GPU where there is one"},
    "--channel": {"type": int, "metavar": "N", "help": "channel of multi-channel files, counted from 0"},
    "--time": {"type": int, "metavar": "N", "help": "time point of a time series"},
    "--scene": {"type": int, "metavar": "N", "help": "scene, position, series or data set of a file of several, counted from 0"},
    "--normalise": {
        "choices": ("run", "volume", "percentile"),
        "default": "run",
        "help": "grey values: the constants of the run, the run's rule on this volume, or its percentiles 0.1 to 99.9",
    },
    "--dsp": {
        "type": int,
        "metavar": "N",
        "help": "keep every N-th slice, instead of the run's dsp; 1: the input is thinned already",
    },
    "--force-range": {"action": "store_true", "help": "go on although most grey values lie outside those of the training"},
    "--ignore-voxels": {"action": "store_true", "help": "go on although voxel sizes of run and input differ"},
    "--thick": {
        "choices": ("z", "y", "x"),
        "help": "the axis along which the input is coarse, where that is not z; outputs keep the input's axes",
    },
    "--voxel": {"metavar": "z,y,x", "help": "voxel size in µm where the files state none"},
}


def add_shared(place: Any, *flags: str, **changes: Any) -> None:
    """Adds options that several scripts have to a parser or a group of it, with other settings of argparse's."""
    for flag in flags:
        place.add_argument(flag, **{**_SHARED[flag], **changes})


def chosen(given: argparse.Namespace, kind: Any) -> dict[str, Any]:
    """What the command line says of a dataclass's fields; a command that lacks an option leaves its default."""
    return {field.name: getattr(given, field.name) for field in fields(kind) if hasattr(given, field.name)}


def parse_slice(text: str, option: str) -> slice:
    """``a:b`` or ``a:b:s`` of non-negative whole numbers, each may be left out, that select something; else a UserError."""
    parts = text.split(":")
    if not 2 <= len(parts) <= 3 or not all(part.strip() == "" or part.strip().isdecimal() for part in parts):
        raise UserError(f"{option} {text!r} must look like start:stop or start:stop:step, for example 0:248")
    numbers = [int(part) if part.strip() else None for part in parts]
    if len(numbers) == 3 and numbers[2] == 0:
        raise UserError(f"{option} {text!r}: the step must be at least 1")
    start, stop = numbers[0] or 0, numbers[1]
    if stop is not None and stop <= start:
        raise UserError(f"{option} {text!r} is empty: it must stop after it starts")
    return slice(*numbers)


def parse_region(text: str | None) -> tuple[slice, slice, slice] | None:
    """``--region z0:z1,y0:y1,x0:x1`` in voxels, not empty (UserError); a number that is left out means the volume's border."""
    if text is None:
        return None
    spans = text.split(",")
    if len(spans) != 3 or any(span.count(":") != 1 for span in spans):
        raise UserError(f"--region {text!r} must look like z0:z1,y0:y1,x0:x1, for example 0:128,0:512,0:512")
    z, y, x = (parse_slice(span, "--region") for span in spans)
    return z, y, x


def voxel_size(text: str | None) -> tuple[float, float, float] | None:
    """The value of ``--voxel``: ``z,y,x`` in µm; anything else is a UserError."""
    if text is None:
        return None
    try:
        z, y, x = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--voxel {text!r} must be three sizes in µm, z,y,x, for example 2,0.25,0.25") from None
    if not are_sizes((z, y, x)):
        raise UserError(f"--voxel {text!r}: sizes must be {SIZES}")
    return z, y, x


def command(script: str, *words: Any) -> str:
    """A script's command line as one types it here: by python, where that is this one, else by run.sh or by its path."""
    here = Path(sys.executable)
    if (found := shutil.which("python")) and Path(found).absolute() == here.absolute():
        door = ["python", f"{script}.py"]
    elif here.is_relative_to(REPOSITORY / os.environ.get("ISOSCOPE_VENV", ".venv")):
        door = ["./run.sh", script]
    else:
        door = [str(here), f"{script}.py"]
    return shlex.join([*door, *map(str, words)])
