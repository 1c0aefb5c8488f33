"""Networks that compute their activations again in the backward pass instead of keeping them (Chen et al. 2016)."""

from contextlib import nullcontext
from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

RECOMPUTED = ("encoder", "decoder", "net_g", "net_d")  # what holds nearly all activations of a step


def recompute(network: nn.Module) -> None:
    """Lets a network keep nothing but its input; dropout draws the same again, and gradients are the same up to rounding."""
    network.forward = partial(
        checkpoint, network.forward, use_reentrant=False, context_fn=lambda: (nullcontext(), _CountedOnce(network))
    )


class _CountedOnce:
    """Inside, running statistics stay, as they have seen the batch already; entered anew for every backward pass."""

    def __init__(self, network: nn.Module) -> None:
        self._norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]

    def __enter__(self) -> None:
        self._before = [(norm.momentum, norm.num_batches_tracked) for norm in self._norms]
        for norm in self._norms:
            norm.momentum, norm.num_batches_tracked = 0.0, None

    def __exit__(self, *error: object) -> None:
        for norm, (momentum, count) in zip(self._norms, self._before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
