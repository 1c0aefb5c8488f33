"""The lock of a run's folder, with processes that start at the same moment."""

import json
import multiprocessing
import os
import socket
import time
from itertools import pairwise

import pytest

from experiment.runs import RunFolder
from utils.errors import UserError


def race(folders, together, held):
    """Takes one lock after the other, each at the same moment as the others; notes when it was held."""
    for attempt, folder in enumerate(folders):
        run = RunFolder(folder)
        together.wait(30)
        start = (time.time() // 0.005 + 2) * 0.005
        while time.time() < start:
            pass
        try:
            with run.locked():
                begun = time.monotonic()
                time.sleep(0.02)
                held.put((attempt, begun, time.monotonic()))
        except UserError:
            held.put((attempt, None, None))


@pytest.mark.parametrize("stale", [False, True])
def test_a_lock_has_one_holder_however_closely_processes_start(tmp_path, stale):
    forked, folders = multiprocessing.get_context("fork"), [tmp_path / str(attempt) for attempt in range(80)]
    for folder in folders:
        folder.mkdir()
        if stale:
            dead = {"host": socket.gethostname(), "pid": 2**22 + 1, "start": "long ago"}
            (folder / "run.lock").write_text(json.dumps(dead))
    held, together = forked.Queue(), forked.Barrier(4)
    racing = [forked.Process(target=race, args=(folders, together, held)) for _ in range(4)]
    for process in racing:
        process.start()
    found = [held.get(timeout=30) for _ in racing for _ in folders]
    for process in racing:
        process.join()
    for attempt, folder in enumerate(folders):
        times = sorted((begun, end) for number, begun, end in found if number == attempt and begun)
        assert times, "nobody got it"
        assert all(end <= begun for (_, end), (begun, _) in pairwise(times)), "two holders"
        assert not (folder / "run.lock").exists()
    assert sum(begun is None for _, begun, _ in found) > len(folders), "they did not meet"


@pytest.mark.parametrize("content", ["", "garbage", "[1, 2]", '{"host": 5}'])
def test_a_lock_that_nobody_can_have_written_is_taken_over(tmp_path, content):
    (tmp_path / "run.lock").write_text(content)
    with RunFolder(tmp_path).locked():
        assert json.loads((tmp_path / "run.lock").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "run.lock").exists()


def test_a_lock_that_another_process_has_now_is_left_alone(tmp_path):
    other = json.dumps({"host": "another", "pid": 1, "start": "now"})
    with RunFolder(tmp_path).locked():
        (tmp_path / "run.lock").write_text(other)  # deleted by hand, and taken
    assert (tmp_path / "run.lock").read_text() == other


def test_overwrite_sets_everything_aside_but_the_lock(tmp_path):
    run = RunFolder(tmp_path / "one")
    (run.path / "checkpoints").mkdir(parents=True)
    (run.path / "checkpoints" / "last.ckpt").write_bytes(b"x")
    (run.path / "0.json").write_text("{}")
    with run.locked():
        run.prepare(resume=False, overwrite=True)
        assert (run.path / "run.lock").is_file()
        assert not list(run.checkpoints.iterdir())
    assert sorted(path.name for path in (tmp_path / "one.1").rglob("*")) == ["0.json", "checkpoints", "last.ckpt"]
