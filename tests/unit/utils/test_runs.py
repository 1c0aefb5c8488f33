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


def hold(folder, start, held):
    """Takes the lock at a moment; notes when it was held."""
    run = RunFolder(folder)
    while time.time() < start:
        pass
    try:
        with run.locked():
            begun = time.monotonic()
            time.sleep(0.02)
            held.put((begun, time.monotonic()))
    except UserError:
        held.put(None)


@pytest.mark.parametrize("stale", [False, True])
def test_a_lock_has_one_holder_however_closely_processes_start(tmp_path, stale):
    forked = multiprocessing.get_context("fork")
    for attempt in range(40):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        if stale:
            dead = {"host": socket.gethostname(), "pid": 2**22 + 1, "start": "long ago"}
            (folder / "run.lock").write_text(json.dumps(dead))
        held, start = forked.Queue(), time.time() + 0.05
        racing = [forked.Process(target=hold, args=(folder, start, held)) for _ in range(4)]
        for process in racing:
            process.start()
        times = sorted(found for found in (held.get(timeout=30) for _ in racing) if found)
        for process in racing:
            process.join()
        assert times, "nobody got it"
        assert all(end <= begun for (_, end), (begun, _) in pairwise(times)), "two holders"
        assert not (folder / "run.lock").exists()


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
