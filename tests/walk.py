"""How far a reader has to walk: the functions of other files that a command enters before it computes anything."""

import inspect
import sys
from itertools import pairwise
from pathlib import Path
from traceback import walk_stack

ROOT = Path(__file__).resolve().parents[1]
INFERENCE = ("inference/", "writing/outputs.py", "utils/machine.py Engine.choose", "intensity/transform.py Intensity.")
CHECKS = ("require_", "refuse_")


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

    _until_arrived(command, profile, until)
    return steps


def stays(command, until, *, small):
    """Where a reader of a command stays before it enters ``until``: ``file function`` with which each stay begins.

    The rule of the table of walks in HOUSE.md, made exact so that of commit 6ea4a28 it gives what is written there. The reader
    follows the calls in the order in which the command makes them, and reads each function once, where it is called first. What
    follows in the file where he is belongs to the same stay. He does not open

    * functions of up to ``small`` lines, those inside others, and properties, which are facts; checks (``require_``,
      ``refuse_``), whose names say what they refuse; what ``Run.load`` calls; arithmetic of the lattice (inference/tiling.py);
    * other rooms than inference. What lay in it at 6ea4a28 counts where it is now: Engine, Intensity, inputs_and_outputs;
      but for Processes (who shares the work), which counts on neither side, like tiles.py then and tiling.py now.

    At 6ea4a28, ``small`` 6, to the first network: 22 stays in 10 files. ``small`` 3, to the first box that is begun ("until
    anything is computed"): 22 stays in 9 files, 13 returns, as in HOUSE.md. docs/architecture.md lists what they are today.
    """
    entered, settled = [], set()

    def profile(frame, event, _):
        code = frame.f_code
        if event != "call" or code in settled:
            return
        step = f"{Path(code.co_filename).relative_to(ROOT)} {code.co_qualname}" if code.co_filename.startswith(str(ROOT)) else ""
        named = step.startswith(INFERENCE) and code.co_flags & inspect.CO_OPTIMIZED and "<" not in step
        fact = isinstance(inspect.getattr_static(type(frame.f_locals.get("self")), code.co_name, None), property)
        checked = "tiling.py" in step or code.co_name == "__post_init__" or code.co_name.startswith(CHECKS)
        if not named or fact or checked or len(inspect.getsourcelines(code)[0]) <= small:
            settled.add(code)
        else:
            above = [up.f_code for up, _ in walk_stack(frame.f_back)]
            if not any(up.co_qualname == "Run.load" or up.co_name.startswith(CHECKS) for up in above):
                entered.append(step)
                settled.add(code)
        if code.co_qualname == until:
            raise _Arrived

    _until_arrived(command, profile, until)
    return [step for before, step in pairwise(["", *entered]) if before.split()[:1] != step.split()[:1]]


def _until_arrived(command, profile, until):
    before = sys.getprofile()
    sys.setprofile(profile)
    try:
        command()
    except _Arrived:
        return
    finally:
        sys.setprofile(before)
    raise AssertionError(f"{until} was never called")
