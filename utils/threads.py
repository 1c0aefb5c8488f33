"""How many threads compute: those of the processors that other programs leave free."""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

log = logging.getLogger("isoscope")

FIRST, PERIOD = 0.3, 2.0  # seconds that the load is averaged over: before the first step, and from then on, at least
_LACKING, _SPARE = 0.5, 0.75  # of a processor: less is too little for the last thread; more is enough for one more


class Load(NamedTuple):
    """Seconds since any moment: those that passed, and those that other programs spent on the processors we may use."""

    clock: float
    others: float


def read_load() -> Load | None:
    """What Linux has counted; None on another system. Programs of lower priority give way by themselves and do not count."""
    try:
        ours = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines()]
    except (OSError, AttributeError):
        return None
    ticks = 0
    for name, *counts in lines:
        if name in ours:
            user, nice, system, _, _, interrupts, soft, stolen = map(int, counts[:8])
            ticks += user + system + interrupts + soft + stolen + (nice if os.nice(0) > 0 else 0)
    return Load(time.monotonic(), ticks / os.sysconf("SC_CLK_TCK") - time.process_time())


class Threads:
    """Keeps PyTorch's threads off the processors that other programs use.

    The threads of a convolution wait for each other in loops: libgomp's, and within a kernel oneDNN's, which no environment
    variable changes. Where one thread shares its processor, the others wait until the system lets it go on: with two threads on
    two processors, one of them busy, a training step takes ten times as long as with one (benchmarks/step.py --busy).

    The last bits of a sum depend on the number of threads, which stays where ``OMP_NUM_THREADS`` says it, and on a quiet machine.

    Attributes:
        most: threads on a quiet machine.
        now: those that the load leaves.
    """

    def __init__(self, read: Callable[[], Load | None] = read_load) -> None:
        self.most = self.now = torch.get_num_threads()
        self._read = read
        self._last = None if "OMP_NUM_THREADS" in os.environ or self.most == 1 else read()
        self._period = FIRST

    def fit(self) -> None:
        """Before a step or a tile: as many threads as the load since the last look leaves, where that was long enough ago."""
        if self._last is not None:
            passed = time.monotonic() - self._last.clock
            if self._period == FIRST:
                time.sleep(max(0.0, FIRST - passed))
            if self._period == FIRST or passed >= PERIOD:
                self._look(self._last)
        if torch.get_num_threads() != self.now:
            torch.set_num_threads(self.now)

    def release(self) -> None:
        """Gives PyTorch the threads again that it began with."""
        if torch.get_num_threads() != self.most:
            torch.set_num_threads(self.most)

    def _look(self, before: Load) -> None:
        load = self._read()
        assert load is not None
        self._last, self._period = load, PERIOD
        free = len(os.sched_getaffinity(0)) - (load.others - before.others) / (load.clock - before.clock)
        wanted = self.now
        if free < self.now - _LACKING:
            wanted = max(1, int(free + _LACKING))
        elif free >= self.now + _SPARE:
            wanted = min(self.most, int(free + 1 - _SPARE))
        if wanted < self.now == self.most:
            log.info(
                "other programs are using the processors: computing with %d of %d threads until they are free", wanted, self.most
            )
        self.now = wanted
