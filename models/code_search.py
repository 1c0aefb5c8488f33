"""Codes chosen by what is decoded from them: slower to encode, closer at equal bytes, decoded as fast."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

APART = 10  # one place of so many is changed at a time, each three from the next: their changes hardly meet
SHIFT = 3  # of the places that are changed, from a row to the next
NEAR = 1  # blocks on each side of a place in which a change has to pay
PROBE = 0.05  # of the vectors' size: a move that the decoder's curvature is measured by
LEAST_SEEN = 0.05  # of a block's pixels
CAUTION = 1.25  # on that curvature, which is a mean over directions


@torch.inference_mode(False)
@torch.no_grad()
def searched(model: Any, slices: Tensor, visible: Tensor, sweeps: int) -> Tensor:
    """Codes (N, h, w), or with a last axis of levels, of slices (N, C, X, Y); every place is tried ``sweeps`` times.

    Descent on the squared error of the decoded slices: its gradient and curvature say which vector would be better in the
    place of a code's; the code chosen for that is kept if the blocks around come closer.

    Args:
        model: a SliceToVolume with a codebook.
        visible: (N, 1, X, Y), 1 for pixels that count, 0 for what a slice was filled up with.
    """
    slices, visible = slices.clone(), visible.clone()  # tensors made for inference have no gradient
    quantizer, code = model.G["quantize"], model.encode(slices)[0]
    assert code.indices is not None
    codes, vectors = code.indices, code.latent
    side = slices.shape[-1] // vectors.shape[-1]

    def errors_of(vectors: Tensor) -> Tensor:
        """Squared errors of the decoded pixels (N, 1, X, Y)."""
        return (model.reconstruct(vectors) - slices[:, :1]).float().square() * visible

    def judged(vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Squared error of each block and those around it (N, h, w), and the gradient of the sum of all."""
        vectors = vectors.detach().clone().requires_grad_()
        with torch.enable_grad():
            errors = errors_of(vectors)
            (gradient,) = torch.autograd.grad(errors.sum(), vectors)
        return around(errors.detach()), gradient

    def around(errors: Tensor) -> Tensor:
        return _sum(_sum(errors, side, side)[:, None], 2 * NEAR + 1, 1, NEAR)

    before, gradient = judged(vectors)
    probe = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0)).to(vectors)
    probe *= PROBE * vectors.norm() / probe.norm()
    bend = ((judged(vectors + probe)[1] - gradient) * probe).sum() / probe.square().sum().clamp_min(1e-12)
    bend = CAUTION * bend.clamp_min(1e-6)  # the error of a move is gradient * move + bend / 2 * move squared
    rows, columns = (torch.arange(size, device=slices.device) for size in vectors.shape[-2:])
    share = _sum(visible, side, side).div(side**2).clamp_min(LEAST_SEEN)  # of a block; so much less does a move matter
    places = ((columns + SHIFT * rows[:, None]) % APART).expand(before.shape)
    for number in range(APART * sweeps):
        if number:
            before, gradient = judged(vectors)
        better = quantizer.nearest(vectors - gradient / (bend * share[:, None]))
        tried = torch.where(_of_levels(places == number % APART, codes), better, codes)
        worse = around(errors_of(quantizer.lookup(tried))) > before
        codes = torch.where(_of_levels(worse, codes), codes, tried)
        vectors = quantizer.lookup(codes)
    return codes


def _sum(values: Tensor, side: int, step: int, padding: int = 0) -> Tensor:
    """(N, 1, H, W) → sums over squares (N, h, w)."""
    return F.avg_pool2d(values, side, step, padding, divisor_override=1)[:, 0]


def _of_levels(places: Tensor, codes: Tensor) -> Tensor:
    """(N, h, w) for codes that may have a last axis of levels."""
    return places if codes.ndim == places.ndim else places[..., None]
