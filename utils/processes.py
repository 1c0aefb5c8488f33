"""The processes of one command: how they share the work of inference, and what those of a training decide together."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

from utils.errors import UserError

_PATIENCE = timedelta(days=30)  # one process may be done long before another


@dataclass(frozen=True)
class Processes:
    """Attributes: rank: number of this process; world: how many there are; local_rank: its number on this machine."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls) -> Self:
        """Joins the other processes of a torchrun or srun command; alone where there are none.

        Raises:
            UserError: the environment names several processes but not where they meet.
        """
        environment, found = os.environ, cls()
        tasks = int(environment.get("SLURM_STEP_NUM_TASKS", 1))
        if {"WORLD_SIZE", "RANK"} <= environment.keys():
            found = cls(*(int(environment.get(name, 0)) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
            if found.world > 1 and not {"MASTER_ADDR", "MASTER_PORT"} <= environment.keys():
                raise UserError(f"WORLD_SIZE={found.world} but MASTER_ADDR and MASTER_PORT are not set; start with torchrun")
        elif tasks > 1:  # of an srun step; a script that sbatch or salloc runs without srun is alone, whatever was reserved
            from pytorch_lightning.plugins.environments import SLURMEnvironment

            found = cls(int(environment["SLURM_PROCID"]), tasks, int(environment["SLURM_LOCALID"]))
            nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or "127.0.0.1"
            meeting = int(environment.get("SLURM_JOB_ID", 0)) + int(environment.get("SLURM_STEP_ID", 0))
            environment.setdefault("MASTER_ADDR", SLURMEnvironment.resolve_root_node_address(nodes))
            environment.setdefault("MASTER_PORT", str(15000 + meeting % 20000))
        if found.world > 1 and not dist.is_initialized():
            dist.init_process_group("gloo", rank=found.rank, world_size=found.world, timeout=_PATIENCE)
        return found

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
        return int(summed(torch.tensor(count)))

    def slowest(self, seconds: float) -> float:
        """The longest time of all processes, each of which calls this."""
        if self.world == 1:
            return seconds
        found = torch.tensor(seconds, dtype=torch.float64)
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return float(found)

    def leave(self) -> None:
        """Ends the common work."""
        if dist.is_initialized():
            dist.destroy_process_group()


# Of a training, so that all of them hold the same; alone where there is one ---------------------------------------------


def several() -> bool:
    """Whether torch.distributed is in use."""
    return dist.is_available() and dist.is_initialized()


def first() -> bool:
    """Whether this is the process whose results count."""
    return not several() or dist.get_rank() == 0


def gathered(rows: Tensor) -> Tensor:
    """Rows (M, d) of all ranks in the order of ranks; every rank gives as many as the one that has fewest."""
    if not several():
        return rows
    count = torch.tensor(len(rows), device=rows.device)
    dist.all_reduce(count, op=dist.ReduceOp.MIN)
    rows = rows[: int(count)].contiguous()
    parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, rows)
    return torch.cat(parts)


def summed(values: Tensor) -> Tensor:
    """The sum over all ranks, in place."""
    if several():
        dist.all_reduce(values)
    return values


def of_first(values: Tensor) -> Tensor:
    """The first rank's values on all of them; the other ranks give a tensor of the same shape."""
    values = values.contiguous()
    if several():
        dist.broadcast(values, src=0)
    return values
