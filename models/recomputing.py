"""Networks that compute their activations again in the backward pass instead of keeping them (Chen et al. 2016)."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

RECOMPUTED = ("encoder", "decoder", "net_g", "net_d")  # what holds nearly all activations of a step


def recompute(network: nn.Module) -> None:
    """Lets a network keep nothing but its input; dropout draws the same again, and gradients are the same up to rounding."""
    network.forward = partial(
        checkpoint, network.forward, use_reentrant=False, context_fn=lambda: (nullcontext(), _counted_once(network))
    )


@contextmanager
def _counted_once(network: nn.Module) -> Iterator[None]:
    """Running statistics stay: they have seen the batch already."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
