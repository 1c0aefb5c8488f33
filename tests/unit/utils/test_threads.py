"""Threads give way to other programs, and come back."""

import logging
import subprocess
import sys
import time

import pytest
import torch

from utils import threads as module
from utils.threads import FIRST, Load, Threads, read_load


@pytest.fixture
def machine(monkeypatch):
    """Eight processors and a clock; other programs take what ``others`` says, and 3 s pass before each step."""

    class Machine:
        seconds = taken = others = 0.0
        set_to = 8

        def read(self):
            return Load(self.seconds, self.taken)

        def steps(self, keeper, count=1):
            for _ in range(count):
                self.seconds += 3
                self.taken += 3 * self.others
                keeper.fit()
            return self.set_to

    made = Machine()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(module.time, "monotonic", lambda: made.seconds)
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: made.set_to)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: setattr(made, "set_to", number))
    return made


@pytest.mark.parametrize(("others", "left"), [(0, 8), (0.4, 8), (1, 7), (2.7, 5), (8, 1)])
def test_as_many_threads_as_other_programs_leave(machine, others, left, caplog):
    keeper = Threads(machine.read)
    machine.others = others
    with caplog.at_level(logging.INFO):
        assert machine.steps(keeper, 5) == left
    assert len(caplog.messages) == (left < 8)
    machine.others = 0
    assert machine.steps(keeper) == 8


def test_a_load_at_the_limit_does_not_change_them_to_and_fro(machine):
    keeper = Threads(machine.read)
    machine.others = 0.6
    assert machine.steps(keeper) == 7
    for machine.others in (0.4, 0.6, 0.3, 0.7):
        assert machine.steps(keeper) == 7


def test_looks_rarely(machine):
    keeper = Threads(machine.read)
    machine.steps(keeper)
    machine.taken += 1e6
    machine.seconds += module.PERIOD / 2
    keeper.fit()
    assert machine.set_to == 8


def test_a_number_that_was_asked_for_stays(machine, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    keeper = Threads(machine.read)
    machine.others = 8
    assert machine.steps(keeper, 3) == 8


def test_released_threads_are_those_of_before(machine):
    keeper = Threads(machine.read)
    machine.others = 8
    assert machine.steps(keeper) == 1
    keeper.release()
    assert machine.set_to == 8
    keeper.fit()
    assert machine.set_to == 1


def test_a_system_that_counts_nothing_leaves_them(machine):
    keeper = Threads(lambda: None)
    assert machine.steps(keeper, 3) == 8


def test_a_busy_program_is_counted_and_our_own_time_is_not():
    before, own = read_load(), time.process_time()
    if before is None:
        pytest.skip("this system does not count")
    while time.process_time() < own + FIRST:
        pass
    after = read_load()
    passed = after.clock - before.clock
    assert (after.others - before.others + FIRST) / passed < len(module.os.sched_getaffinity(0)) + 0.2  # not counted twice
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(1)
    finally:
        busy.kill()
        busy.wait()
    beside = read_load()
    assert (beside.others - after.others) / (beside.clock - after.clock) > 0.3  # a share of what may be a crowded machine
