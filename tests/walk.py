"""How far a reader has to walk: the functions of other files that a command enters before it computes anything."""

import inspect
import sys
from itertools import pairwise
from pathlib import Path
from traceback import walk_stack

ROOT = Path(__file__).resolve().parents[1]


class _Arrived(BaseException):
    """The walk has reached what it looks for."""


def walk(command, until, *, chain=False):
    """Runs a command up to a function (``Class.method``); returns ``file function`` for those entered from another file.

    Each counts once, in order. What happens inside volumes/ (which format opens a file), writing/ and intensity/ (how its
    values are measured) is one step, and so are opening a run and foreseeing its memory; properties are read, not visited.
    ``chain``: only the calls that lead from the command line down to that function.
    """
    steps = []

    def file_of(frame):
        path = Path(frame.f_code.co_filename)
        function = frame.f_code.co_flags & inspect.CO_OPTIMIZED and not frame.f_code.co_name.startswith("<")
        known = function and path.is_relative_to(ROOT) and not {"tests", "site-packages"} & set(path.parts)
        return path.relative_to(ROOT).as_posix() if known else None

    def calls(frame):
        down = [f"{file_of(caller)} {caller.f_code.co_qualname}" for caller, _ in walk_stack(frame) if file_of(caller)][::-1]
        return [step for before, step in pairwise(down) if before.split()[0] != step.split()[0]]

    def opening(frame):
        return frame is not None and (frame.f_code.co_qualname in ("Run.load", "require_memory") or opening(frame.f_back))

    def profile(frame, event, _):
        here = file_of(frame) if event == "call" else None
        if here is None:
            return
        caller = frame.f_back
        while caller is not None and file_of(caller) is None:
            caller = caller.f_back
        there = None if caller is None else file_of(caller)
        step = f"{here} {frame.f_code.co_qualname}"
        inside = there is None or there == here or there.startswith(("volumes/", "writing/", "intensity/")) or opening(caller)
        owner = type(frame.f_locals.get("self"))
        read = isinstance(inspect.getattr_static(owner, frame.f_code.co_name, None), property)
        if not inside and not read and step not in steps:
            steps.append(step)
        if frame.f_code.co_qualname == until:
            if chain:
                steps[:] = calls(frame)
            raise _Arrived

    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        command()
    except _Arrived:
        return steps
    finally:
        sys.setprofile(before)
    raise AssertionError(f"{until} was never called")
