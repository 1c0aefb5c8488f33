"""What the processes of a training decide together, so that all of them hold the same; alone where there is one."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


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
