"""Arrays to the device and back, without either side waiting for the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Arriving:
    """An array that a GPU may still be computing and copying; on a CPU it is there at once.

    Attributes:
        values: the array, not to be read before :meth:`wait`.
        arrived: what to wait for; None: nothing.
    """

    values: NDArray[Any]
    arrived: torch.cuda.Event | None = None

    @property
    def nbytes(self) -> int:
        """Bytes in memory."""
        return self.values.nbytes

    @classmethod
    def of(cls, tensor: Tensor) -> Arriving:
        """A tensor on its way into (pinned) memory, behind what its device still has to do."""
        tensor = tensor.contiguous()
        if tensor.device.type != "cuda":
            return cls(tensor.numpy())
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        host.copy_(tensor, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record(torch.cuda.current_stream(tensor.device))
        return cls(host.numpy(), arrived)

    def wait(self) -> NDArray[Any]:
        """The array; may be called from any thread."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.values


def to_tensor(values: NDArray[Any], device: torch.device) -> Tensor:
    """An array on the device; codes of two bytes as int32, which every operation knows."""
    if values.dtype == np.uint16:
        values = values.astype(np.int32)
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
