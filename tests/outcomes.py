"""What becomes of many odd inputs: a table, and whatever is neither success nor one clear error within its means."""

import resource
import signal
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest

from utils.errors import UserError

MOST_SECONDS, MOST_LETTERS = 2.0, 5000
_HANGS = {signal.ITIMER_PROF: 20, signal.ITIMER_REAL: 600}  # seconds of the processor and, where a call waits, by the clock
_HELD = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Hang(BaseException):
    """A call that did not end."""


class Outcomes:
    """What became of odd inputs: a table, and those that are no outcome.

    Args:
        most_seconds: of the processor, for one of them.
        most_bytes: that one may take beside what is held already; None: as much as it likes.
        folder: in which nothing may appear.
    """

    def __init__(self, most_seconds=MOST_SECONDS, most_bytes=None, folder=None):
        self.table, self.wrong = Counter(), []
        self.most_seconds, self.most_bytes, self.folder = most_seconds, most_bytes, folder

    def judge(self, kind, done, call, allowed=None):
        """Calls it; in the folder ``allowed`` anything may appear."""
        before = self._listed()
        started = time.process_time()
        with limited(self.most_bytes) as peak:
            try:
                call()
                outcome = "taken"
            except UserError as error:
                message, outcome = str(error), "refused"
                if len(message) > MOST_LETTERS:
                    self.wrong.append(f"{kind}: {done}: a message of {len(message)} letters: {message[:200]}")
            except (Exception, Hang) as error:
                outcome = type(error).__name__
                self.wrong.append(f"{kind}: {done}: {type(error).__name__}: {str(error)[:200]}")
        if (seconds := time.process_time() - started) > self.most_seconds:
            self.wrong.append(f"{kind}: {done}: {seconds:.1f} s")
        if self.most_bytes is not None and peak[0] > self.most_bytes:
            self.wrong.append(f"{kind}: {done}: {peak[0] / 2**20:.0f} MB")
        if unexpected := [path for path in self._listed() - before if allowed is None or not path.is_relative_to(allowed)]:
            self.wrong.append(f"{kind}: {done}: left {sorted(unexpected)[:5]}")
        self.table[kind, outcome] += 1

    def _listed(self):
        return set() if self.folder is None else set(self.folder.rglob("*"))

    def show(self):
        for (kind, outcome), count in sorted(self.table.items()):
            print(f"{kind:14} {outcome:12} {count}")
        assert not self.wrong, f"{len(self.wrong)} wrong:\n" + "\n".join(self.wrong[:40])


@contextmanager
def limited(most_bytes):
    """A hang becomes an exception, far more memory than that a MemoryError; afterwards the first entry is the peak beyond now."""

    def hangs(*_):
        raise Hang("no end")

    peak = [0]
    handlers = {number: signal.signal(number, hangs) for number in (signal.SIGALRM, signal.SIGPROF)}
    limits = resource.getrlimit(resource.RLIMIT_AS)
    before = 0
    if most_bytes is not None:
        _HELD[1].write_text("5")  # the peak is counted from here on
        before = _kilobytes("VmRSS")
        resource.setrlimit(resource.RLIMIT_AS, (1024 * _kilobytes("VmSize") + 4 * most_bytes, limits[1]))
    for timer, seconds in _HANGS.items():
        signal.setitimer(timer, seconds)
    try:
        yield peak
    finally:
        for timer in _HANGS:
            signal.setitimer(timer, 0)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if most_bytes is not None:
            resource.setrlimit(resource.RLIMIT_AS, limits)
            peak[0] = 1024 * (_kilobytes("VmHWM") - before)


def _kilobytes(what):
    return next(int(line.split()[1]) for line in _HELD[0].read_text().splitlines() if line.startswith(f"{what}:"))


measures_memory = pytest.mark.skipif(not _HELD[1].exists(), reason="peaks of memory are Linux's")
