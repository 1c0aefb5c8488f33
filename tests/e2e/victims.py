"""Scripts of ours run as a user runs them, but forked from a process that has imported everything, to be killed from outside.

A start costs a second in place of eight. What a script is doing is marked in memory that both processes see.
"""

import functools
import importlib
import os
import random
import runpy
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
PHASES = ("elsewhere", "started", "step", "validation", "checkpoint", "picture", "writing", "finishing")
MARKED = (
    ("utils.errors", "reported", "started"),
    ("models.base", "BaseModel.training_step", "step"),
    ("models.base", "BaseModel.validation_step", "validation"),
    ("training.callbacks", "RunKeeper._write_components", "checkpoint"),
    ("training.callbacks", "RunKeeper._write", "checkpoint"),
    ("training.shown", "PictureWriter.draw", "picture"),
    ("writing.target", "VolumeTarget.write_region", "writing"),
    ("writing.target", "VolumeTarget.finish", "finishing"),
    ("codes.store", "CodeTarget.write", "writing"),
    ("codes.store", "CodeTarget.finish", "finishing"),
    ("dataloader.preparation", "_cut", "writing"),
    ("dataloader.preparation", "merge_record", "finishing"),
)


class Marks:
    """What a process does now, how often it began each phase, and how many seconds it spent there."""

    def __init__(self, path):
        new = not Path(path).exists()
        self.numbers = np.memmap(path, np.float64, "w+" if new else "r+", shape=(1 + 2 * len(PHASES),))

    @property
    def now(self):
        return PHASES[int(self.numbers[0])]

    def begun(self, phase):
        return int(self.numbers[1 + PHASES.index(phase)])

    def mean(self, phase):
        return self.numbers[1 + len(PHASES) + PHASES.index(phase)] / max(1, self.begun(phase))

    def watch(self, function, phase):
        number = PHASES.index(phase)

        @functools.wraps(function)
        def watched(*args, **more):
            outer, begun = self.numbers[0], time.monotonic()
            self.numbers[1 + number] += 1
            self.numbers[0] = number
            try:
                return function(*args, **more)
            finally:
                self.numbers[0] = outer
                self.numbers[1 + len(PHASES) + number] += time.monotonic() - begun

        return watched


def run(script, arguments, log, marks):
    """In the new process: the script as ``python SCRIPT ARGUMENTS`` runs it."""
    os.setsid()
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.argv, here = [str(ROOT / script), *arguments], Marks(marks)
    for module, name, phase in MARKED:
        holder = importlib.import_module(module)
        *parts, last = name.split(".")
        for part in parts:
            holder = getattr(holder, part)
        setattr(holder, last, here.watch(getattr(holder, last), phase))
    runpy.run_path(sys.argv[0], run_name="__main__")


@dataclass
class Victim:
    """A script of ours, started again and again in a folder for what it says."""

    context: object
    folder: Path
    starts: int = 0
    groups: set = field(default_factory=set)
    process: object = field(default=None, repr=False)

    def start(self, script: str, arguments: Sequence[object]) -> Marks:
        self.starts += 1
        self.folder.mkdir(exist_ok=True)
        self.log = self.folder / f"{self.starts}.txt"
        marks = Marks(self.folder / f"{self.starts}.marks")
        words = list(map(str, arguments))
        self.process = self.context.Process(target=run, args=(script, words, str(self.log), str(marks.numbers.filename)))
        self.process.start()
        return marks

    def end(self) -> int:
        """The code that it leaves with; of a signal that it died of, minus its number."""
        self.process.join(3000)
        assert self.process.exitcode is not None, f"it hangs: {self.log.read_text()[-2000:]}"
        self.groups.add(self.process.pid)
        return self.process.exitcode

    def leaves_nobody(self):
        """Within a minute the processes that it has started are gone."""
        deadline = time.monotonic() + 60
        while left := [pid for pid, group in _groups() if group in self.groups]:
            assert time.monotonic() < deadline, f"processes {left} are left behind"
            time.sleep(0.1)

    def whole(self, script, arguments) -> tuple[Marks, float]:
        """Undisturbed: its marks, and seconds until it does anything that is marked."""
        began = time.monotonic()
        marks = self.start(script, arguments)
        while marks.now == "elsewhere" and self.process.is_alive():
            time.sleep(0.001)
        started = time.monotonic() - began
        assert self.end() == 0, self.log.read_text()[-3000:]
        return marks, started

    def kill(self, marks, phase, times, delay, number) -> tuple[str, int]:
        """Sends a signal so many seconds after a phase has begun for the n-th time; what it did then, and how it ended."""
        while self.process.is_alive() and marks.begun(phase) < times:
            time.sleep(0.0003)
        time.sleep(delay)
        found = marks.now if self.process.is_alive() else "ended"
        if found != "ended":
            os.kill(self.process.pid, number)
        return found, self.end()


def _groups():
    """Living processes with their groups."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, group = stat.read_text().rpartition(")")[2].split()[:3]
        except (OSError, ValueError):
            continue
        if state != "Z":
            yield int(stat.parent.name), int(group)


def drawn(rng: random.Random, usual: Marks, started: float, phases: Sequence[str], signals: Sequence[int], most: int):
    """A moment and a signal: phase, its n-th time, seconds after its beginning, signal."""
    phase, number = rng.choice(phases), rng.choice(signals)
    if phase == "started":
        return phase, 1, rng.uniform(0, started), number
    times = rng.randint(1, max(1, min(most, usual.begun(phase))))
    return phase, times, rng.uniform(0, usual.mean(phase)), number


SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
