"""Which of several processes this is: torchrun and srun say so in the environment."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from utils.errors import UserError

_PATIENCE = timedelta(days=30)  # one process may be done long before another


@dataclass(frozen=True)
class Processes:
    """Attributes: rank: number of this process; world: how many there are; local_rank: its number on this machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls) -> Processes:
        """Joins the other processes of a torchrun or srun command; alone where there are none.

        Raises:
            UserError: the environment names several processes but not where they meet.
        """
        found = _torchrun() or _slurm() or cls()
        if found.world > 1 and not dist.is_initialized():
            dist.init_process_group("gloo", rank=found.rank, world_size=found.world, timeout=_PATIENCE)
        return found

    @property
    def barrier(self) -> Callable[[], None] | None:
        """Waits for all; None for a process that is alone."""
        return self.wait if self.world > 1 else None

    def wait(self) -> None:
        """Waits for all processes."""
        if self.world > 1:
            dist.barrier()

    @contextmanager
    def first_alone(self, needed: bool) -> Iterator[None]:
        """Has the others wait until the first process is through, where that is needed."""
        if needed and self.rank:
            self.wait()
        yield
        if needed and not self.rank:
            self.wait()

    def share(self, count: int) -> range:
        """The consecutive part of ``count`` units that this process works on; neighbours share what they read."""
        return range(count * self.rank // self.world, count * (self.rank + 1) // self.world)

    def total(self, count: int) -> int:
        """The sum over all processes, each of which calls this."""
        if self.world == 1:
            return count
        found = torch.tensor(count)
        dist.all_reduce(found)
        return int(found)

    def leave(self) -> None:
        """Ends the common work."""
        if dist.is_initialized():
            dist.destroy_process_group()


def _torchrun() -> Processes | None:
    if "WORLD_SIZE" not in os.environ or "RANK" not in os.environ:
        return None
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if world > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        raise UserError(f"WORLD_SIZE={world} but MASTER_ADDR and MASTER_PORT are not set; start with torchrun")
    return Processes(rank, world, int(os.environ.get("LOCAL_RANK", 0)))


def _slurm() -> Processes | None:
    """The tasks of an srun step; a script that sbatch or salloc runs without srun is alone, however many tasks were reserved."""
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if tasks == 1:
        return None
    from pytorch_lightning.plugins.environments import SLURMEnvironment

    nodes = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_JOB_NODELIST") or "127.0.0.1"
    meeting = int(os.environ.get("SLURM_JOB_ID", 0)) + int(os.environ.get("SLURM_STEP_ID", 0))
    os.environ.setdefault("MASTER_ADDR", SLURMEnvironment.resolve_root_node_address(nodes))
    os.environ.setdefault("MASTER_PORT", str(15000 + meeting % 20000))
    return Processes(int(os.environ["SLURM_PROCID"]), tasks, int(os.environ["SLURM_LOCALID"]))
