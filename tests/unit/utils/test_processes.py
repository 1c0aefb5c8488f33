"""Which process this is, as torchrun and srun say it in the environment."""

import os

import pytest
import torch.distributed as dist

from tests.forks import together
from utils.errors import UserError
from utils.processes import Processes

SRUN = {
    "SLURM_JOB_ID": "70003",
    "SLURM_STEP_ID": "4",
    "SLURM_STEP_NUM_TASKS": "6",
    "SLURM_STEP_NODELIST": "gpu[07-09]",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}


@pytest.fixture
def joined(monkeypatch):
    """An environment without launchers; the arguments with which the others are joined."""
    for name in list(os.environ):
        if name.startswith("SLURM_") or name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.delenv("MASTER_PORT")  # what the code sets is undone after the test
    monkeypatch.setenv("MASTER_ADDR", "x")
    monkeypatch.delenv("MASTER_ADDR")
    calls = []
    monkeypatch.setattr(dist, "init_process_group", lambda *names, **given: calls.append(given))
    return calls


def test_alone(joined):
    assert Processes.from_environment() == Processes(0, 1, 0) and not joined
    assert Processes().total(3) == 3


def test_torchrun(joined, monkeypatch):
    for name, value in {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="MASTER_ADDR and MASTER_PORT are not set"):
        Processes.from_environment()
    monkeypatch.setenv("MASTER_ADDR", "host")
    monkeypatch.setenv("MASTER_PORT", "1234")
    assert Processes.from_environment() == Processes(3, 4, 1)
    assert joined[0]["rank"] == 3 and joined[0]["world_size"] == 4


def test_tasks_of_srun_meet_on_the_first_node_of_their_step(joined, monkeypatch):
    for name, value in SRUN.items():
        monkeypatch.setenv(name, value)
    assert Processes.from_environment() == Processes(5, 6, 1)
    assert (os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]) == ("gpu07", str(15000 + 70007 % 20000))
    assert joined[0]["rank"] == 5


def test_a_batch_script_without_srun_is_alone(joined, monkeypatch):
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}.items():
        monkeypatch.setenv(name, value)
    assert Processes.from_environment() == Processes() and not joined


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_shares_are_disjoint_and_complete(world):
    shares = [Processes(rank, world).share(10) for rank in range(world)]
    assert [unit for part in shares for unit in part] == list(range(10))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def one_of_two(rank, meeting):
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    mine = Processes(rank, 2, rank)
    assert mine.slowest((0.002, 3.5)[rank]) == 3.5 and mine.total((0, 11)[rank]) == 11
    mine.leave()


def test_the_slowest_of_two_processes_is_the_time_that_they_took(tmp_path):
    """Of one piece of work the first process has nothing to do, and would be done in no time."""
    assert Processes().slowest(1.25) == 1.25
    assert together(one_of_two, f"file://{tmp_path}/meeting") == [0, 0]
