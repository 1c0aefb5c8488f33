"""Codes chosen by what is decoded from them: slower to encode, closer at equal bytes, decoded as fast."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from taming.quantize import nearest_of_levels
from utils.axes import channels_first

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
    place of a code's; the code chosen for that is kept if the blocks around come closer. Levels are chosen together, or where
    a training decoded ``fewer``, too, one after the other, each for what is decoded where it is the last.

    Args:
        model: a SliceToVolume with a codebook.
        visible: (N, 1, X, Y), 1 for pixels that count, 0 for what a slice was filled up with.
    """
    slices, visible = slices.clone(), visible.clone()  # tensors made for inference have no gradient
    code, books = model.encode(slices)[0], [book.weight.float() for book in model.G["quantize"].codebooks]
    assert code.indices is not None
    groups = [[book] for book in books] if model.settings["autoencoder"]["codebook"]["fewer"] else [books]
    chosen, found = torch.zeros_like(code.latent), []
    start = code.indices.view(*code.indices.shape[:3], -1)[..., : len(groups[0])]
    for number, group in enumerate(groups):
        search = _Search(model, slices, visible, chosen, group)
        codes = search.run(search.nearest(code.moments.float()) if number else start, sweeps)
        chosen = search.vectors(codes)
        found.append(codes)
    return torch.cat(found, dim=-1).view_as(code.indices)


@dataclass(frozen=True)
class _Search:
    """For the codes of levels, with their codebooks, above the vectors (N, d, h, w) of those that are chosen."""

    model: Any
    slices: Tensor
    visible: Tensor
    chosen: Tensor
    books: Sequence[Tensor]

    def nearest(self, vectors: Tensor) -> Tensor:
        """Codes (N, h, w, levels) for vectors (N, d, h, w)."""
        return nearest_of_levels(vectors - self.chosen, self.books)

    def vectors(self, codes: Tensor) -> Tensor:
        """(N, d, h, w) of codes (N, h, w, levels), with those that are chosen."""
        parts = [F.embedding(level, book) for level, book in zip(codes.unbind(dim=-1), self.books, strict=True)]
        return self.chosen + channels_first(torch.stack(parts).sum(dim=0))

    def run(self, codes: Tensor, sweeps: int) -> Tensor:
        """Better codes (N, h, w, levels)."""
        vectors, side = self.vectors(codes), self.slices.shape[-1] // self.chosen.shape[-1]
        before, gradient = self.judged(vectors)
        probe = torch.randn(vectors.shape, generator=torch.Generator().manual_seed(0)).to(vectors)
        probe *= PROBE * vectors.norm() / probe.norm()
        bend = ((self.judged(vectors + probe)[1] - gradient) * probe).sum() / probe.square().sum().clamp_min(1e-12)
        bend = CAUTION * bend.clamp_min(1e-6)  # the error of a move is gradient * move + bend / 2 * move squared
        rows, columns = (torch.arange(size, device=codes.device) for size in vectors.shape[-2:])
        share = _sum(self.visible, side, side).div(side**2).clamp_min(LEAST_SEEN)  # of a block; so much less does a move matter
        places = ((columns + SHIFT * rows[:, None]) % APART)[..., None]
        for number in range(APART * sweeps):
            if number:
                before, gradient = self.judged(vectors)
            better = self.nearest(vectors - gradient / (bend * share[:, None]))
            tried = torch.where(places == number % APART, better, codes)
            worse = self.around(self.errors(self.vectors(tried))) > before
            codes = torch.where(worse[..., None], codes, tried)
            vectors = self.vectors(codes)
        return codes

    def judged(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """Squared error of each block and those around it (N, h, w), and the gradient of the sum of all."""
        vectors = vectors.detach().clone().requires_grad_()
        with torch.enable_grad():
            errors = self.errors(vectors)
            (gradient,) = torch.autograd.grad(errors.sum(), vectors)
        return self.around(errors.detach()), gradient

    def errors(self, vectors: Tensor) -> Tensor:
        """Squared errors of the decoded pixels (N, 1, X, Y)."""
        return (self.model.reconstruct(vectors) - self.slices[:, :1]).float().square() * self.visible

    def around(self, errors: Tensor) -> Tensor:
        """Sums of the errors in each block and those around it (N, h, w)."""
        side = self.slices.shape[-1] // self.chosen.shape[-1]
        return _sum(_sum(errors, side, side)[:, None], 2 * NEAR + 1, 1, NEAR)


def _sum(values: Tensor, side: int, step: int, padding: int = 0) -> Tensor:
    """(N, 1, H, W) → sums over squares (N, h, w)."""
    return F.avg_pool2d(values, side, step, padding, divisor_override=1)[:, 0]
