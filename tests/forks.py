"""Processes forked from one that has imported everything: a start costs a fraction of a second in place of seconds.

For tests of what processes do together, or of what a script of ours says; that a script starts by itself other tests tell.
"""

import multiprocessing
import os
import runpy
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from multiprocessing import forkserver
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
_PRELOADED = """pytest torch pytorch_lightning tensorboard.compat training.trainer training.record training.requirements
    dataloader.data_multi dataloader.preparation models.lateral models.ae0iso0tccutvqq models.IsoREF inference sharing
    training.messages s3fs httpx rich zarr numcodecs.zarr3 imagecodecs einops codes.context_codec tests.e2e.ddp_worker""".split()


@cache
def forks():
    """A context whose processes are forked from a server with our modules; once per session."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests' / 'e2e'}")
        patch.setenv("OMP_NUM_THREADS", "1")
        forkserver.ensure_running()
    return context


def together(target: Callable, *arguments: object, world: int = 2) -> list[int]:
    """``target(rank, *arguments)`` in so many processes, as a launcher starts them; the codes that they leave with."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    launched = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "NODE_RANK": "0", "WORLD_SIZE": str(world)}
    tasks = [
        forks().Process(target=_as_rank, args=(target, rank, {**launched, "LOCAL_RANK": str(rank)}, arguments))
        for rank in range(world)
    ]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join(600)
    assert not any(task.is_alive() for task in tasks), "they hang"
    return [task.exitcode for task in tasks]


def _as_rank(target, rank, environment, arguments):
    os.environ.update(environment if environment["WORLD_SIZE"] != "1" else {})
    target(rank, *arguments)


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def script(folder: Path, name: str, *arguments: object) -> Done:
    """What ``python NAME ARGUMENTS`` says and leaves with; its output passes through files in a folder."""
    out, err = folder / "stdout", folder / "stderr"
    process = forks().Process(target=_as_script, args=(name, list(map(str, arguments)), out, err))
    process.start()
    process.join(300)
    assert not process.is_alive(), "it hangs"
    return Done(process.exitcode, out.read_text(), err.read_text())


def _as_script(name, arguments, out, err):
    sys.stdout, sys.stderr = (os.fdopen(_instead(number, path), "w") for number, path in ((1, out), (2, err)))
    sys.argv = [str(ROOT / name), *arguments]
    runpy.run_path(sys.argv[0], run_name="__main__")


def _instead(number, path):
    """The file that takes the place of a standard stream."""
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    return number
