"""The reference's order of float32 operations, where a replay depends on the last bit.

Adam divides gradients by their size, an absolute value or a maximum passes the gradient to one side, and a code flips: rounding
errors grow about a hundredfold per step of a trajectory, and by a hundred in the gradients of IsoREF's cycle. Our networks order
some operations otherwise; the component fixtures show that they are the same functions. Here they take the reference's order, so
that on processors like the one that made the fixtures, trajectory (with its two threads) and cycle agree to the last bit.
Elsewhere the bits of the volumes show the difference, and the rest of a trajectory is compared more loosely; whatever else is
beyond its tolerance is replayed with other rounding (parity.replay).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.module import register_module_forward_hook

from ldm.autoencoder import Attention
from ldm.bottleneck import Code
from models.slice2volume import SliceToVolume
from networks.generators import ConvAlongZ
from networks.losses import adversarial

LAST_BITS = 2.0**-21  # of a layer's mean size: about twice what instruction sets were seen to differ by
THREADS = 2  # of the machine that made the fixtures; sums are split among them


@contextmanager
def reference_order() -> Iterator[None]:
    """Inside, networks and losses round as the reference did.

    A limit of one thread (OMP_NUM_THREADS) is respected: on a busy machine, two that wait for each other take minutes.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(min(threads, THREADS))
    try:
        with ExitStack() as stack:
            stack.enter_context(patch.object(functional, "silu", _silu))
            stack.enter_context(patch.object(Attention, "forward", _attention))
            stack.enter_context(patch.object(ConvAlongZ, "forward", _convolution_along_z))
            stack.enter_context(patch("models.base.adversarial_views", _view_by_view))
            yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def other_rounding(seed: int) -> Iterator[None]:
    """Inside, every layer's float32 output is off by what another order of its sums may change."""
    generator = torch.Generator().manual_seed(seed)

    def nudge(layer: nn.Module, args: object, output: object) -> object:
        if not isinstance(output, Tensor) or output.dtype != torch.float32 or any(layer.children()):
            return None
        if isinstance(layer, nn.Embedding):  # it sums nothing
            return None
        return output + LAST_BITS * output.detach().abs().mean() * torch.randn(output.shape, generator=generator)

    hook = register_module_forward_hook(nudge)
    try:
        yield
    finally:
        hook.remove()


def round_codes(model: SliceToVolume) -> None:
    """The latent becomes z + (q - z), which is off by one rounding error; ours has the bits of the code q."""
    ours = model.bottleneck

    def bottleneck(moments: Tensor) -> Code:
        code = ours(moments)
        return code._replace(latent=moments + (code.latent - moments).detach())

    model.bottleneck = bottleneck


def _silu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(x)


def _attention(self: Attention, x: Tensor) -> Tensor:
    """Scores and sums as two matrix products instead of a fused kernel."""
    h = self.norm(x)
    q, k, v = (layer(h).flatten(2) for layer in (self.q, self.k, self.v))
    weights = torch.softmax(torch.bmm(q.mT, k) * q.shape[1] ** -0.5, dim=2)
    return x + self.proj_out(torch.bmm(v, weights.mT).unflatten(2, x.shape[2:]))


def _convolution_along_z(self: ConvAlongZ, volume: Tensor) -> Tensor:
    """A 1-D convolution of every line instead of a 2-D one of planes."""
    batch, _, x, y, _ = volume.shape
    lines = functional.conv1d(volume.movedim(1, 3).flatten(0, 2), self.weight, self.bias, padding=1)
    return lines.unflatten(0, (batch, x, y)).movedim(3, 1)


def _view_by_view(
    net_d: Callable[[Tensor], Tensor], views: Sequence[Tensor], real: bool, mode: str, *, generator: bool = False
) -> Tensor:
    """One call of the discriminator for each view instead of one for all of a shape."""
    if mode == "vanilla":
        logits = [net_d(view) for view in views]
        return torch.stack(
            [functional.binary_cross_entropy_with_logits(value, torch.full_like(value, float(real))) for value in logits]
        ).mean()
    return torch.stack([adversarial(net_d(view), real, mode, generator=generator) for view in views]).mean()
