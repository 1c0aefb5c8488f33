"""A fixed network beside a model: the judge of a loss term, whose weights are those of somebody else's training."""

from collections.abc import Callable
from typing import Any, Self

from torch import Tensor, nn


class Frozen(nn.Module):
    """Holds a network in evaluation mode, without gradients, in no optimiser, no checkpoint and no parameter count.

    The network is no registered child; ``.to()`` and its kin carry it all the same. A loss term derives from this class.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._hidden = (network.eval().requires_grad_(False),)  # a tuple, which nn.Module does not look into

    @property
    def network(self) -> Any:
        """The fixed network."""
        return self._hidden[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.network._apply(fn)
        return super()._apply(fn, recurse)
