"""Vector quantisation with a learned codebook (van den Oord et al. 2017), plain and residual."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taming.codebook import CodebookRevival, codes_used, kmeans, nearest_code, perplexity

__all__ = [
    "CodebookRevival",
    "Quantized",
    "ResidualVectorQuantizer",
    "VectorQuantizer",
    "build_quantizer",
    "codes_used",
    "kmeans",
    "perplexity",
    "to_vectors",
]

SHORTEST = 1e-6  # length below which a vector has no direction


class Quantized(NamedTuple):
    """What a quantiser makes of z (N, d, h, w).

    Attributes:
        latent: the codes' vectors (N, d, h, w), float32; its gradient passes to z, see :func:`passed_on`.
        loss: scalar, commitment and codebook term.
        indices: (N, h, w) int64, with a last axis for the levels of a residual quantiser.
    """

    latent: Tensor
    loss: Tensor
    indices: Tensor


def passed_on(z: Tensor, codes: Tensor, gradient: str) -> Tensor:
    """The value of ``codes`` to the last bit, with a gradient for z; both (N, d, h, w) float32.

    Args:
        gradient: ``straight``: the gradient of the codes unchanged (Bengio et al. 2013). ``rotation``: turned by the rotation
            that turns z's direction into the code's, and scaled by the ratio of their lengths; then the angle between the
            gradient and the code becomes that between the gradient and z (Fifty et al. 2024).
    """
    linear = rotated(z, codes.detach()) if gradient == "rotation" else z
    return codes.detach() + (linear - linear.detach())  # the difference is exactly 0


def rotated(z: Tensor, codes: Tensor) -> Tensor:
    """λ·R·z, which equals ``codes`` up to rounding; R rotates the direction of each z into that of its code, λ = length ratio.

    R = 1 - 2·r·rᵀ + 2·q·eᵀ with unit vectors e of z, q of the codes and r of e + q (Householder form; Fifty et al. 2024).
    R and λ count as constants.
    """
    e, q = F.normalize(z.detach(), dim=1, eps=SHORTEST), F.normalize(codes, dim=1, eps=SHORTEST)
    r = F.normalize(e + q, dim=1, eps=SHORTEST)
    scale = codes.norm(dim=1, keepdim=True) / z.detach().norm(dim=1, keepdim=True).clamp_min(SHORTEST)
    return scale * (z - 2 * r * (r * z).sum(dim=1, keepdim=True) + 2 * q * (e * z).sum(dim=1, keepdim=True))


def to_vectors(latent: Tensor) -> Tensor:
    """(N, d, h, w) → one float32 row for each position, (N·h·w, d), ordered as indices.flatten(); detached."""
    return latent.detach().movedim(1, -1).flatten(0, -2).float()


class VectorQuantizer(nn.Module):
    """Replaces every position's vector by the nearest of a codebook. Key ``embedding.weight``.

    Args:
        n_embed: codes.
        embed_dim: channels d of a code.
        beta: weight of the commitment term (codebook term 1).
        legacy: the weights the other way round, commitment 1 and codebook ``beta``, as in older published trainings.
        gradient: how it passes from the codes to z, ``straight`` or ``rotation`` (:func:`passed_on`).
    """

    def __init__(
        self, n_embed: int, embed_dim: int, beta: float = 0.25, legacy: bool = False, gradient: str = "straight"
    ) -> None:
        super().__init__()
        self.beta = beta
        self.legacy = legacy
        self.gradient = gradient
        self.embedding = nn.Embedding(n_embed, embed_dim)
        nn.init.uniform_(self.embedding.weight, -1.0 / n_embed, 1.0 / n_embed)

    def forward(self, z: Tensor) -> Quantized:
        """(N, d, h, w) → :class:`Quantized` (van den Oord 2017, eq. 2 and 3)."""
        with torch.autocast(z.device.type, enabled=False):
            wide = z.to(torch.promote_types(z.dtype, torch.float32))
            indices = self.nearest(wide)
            codes = self.lookup(indices)
            commitment = F.mse_loss(wide, codes.detach())
            codebook = F.mse_loss(codes, wide.detach())
            loss = commitment + self.beta * codebook if self.legacy else self.beta * commitment + codebook
            return Quantized(passed_on(wide, codes, self.gradient), loss, indices)

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """Indices (N, h, w) of the codes nearest to z (N, d, h, w)."""
        n, _, h, w = z.shape
        return nearest_code(to_vectors(z), self.embedding.weight.float()).view(n, h, w)

    def lookup(self, indices: Tensor) -> Tensor:
        """Indices (N, h, w), any integer type → vectors (N, d, h, w)."""
        return self.embedding(indices.long()).movedim(-1, 1)

    def stages(self, vectors: Tensor) -> Iterator[tuple[nn.Embedding, Tensor]]:
        """The codebook and the vectors (M, d) that it quantises; see :meth:`ResidualVectorQuantizer.stages`."""
        yield self.embedding, vectors

    @property
    def codebooks(self) -> list[nn.Embedding]:
        """One per level."""
        return [self.embedding]


class ResidualVectorQuantizer(nn.Module):
    """A sum of codes: each level quantises what the previous ones left (Zeghidour et al. 2021, algorithm 1).

    The rate is levels·log2(n_embed) bits per position. Keys ``levels.L.embedding.weight``.

    Args:
        levels: codebooks.
        n_embed: codes per level.
        embed_dim: channels d of a code.
        beta, legacy, gradient: as :class:`VectorQuantizer`.
    """

    def __init__(
        self, levels: int, n_embed: int, embed_dim: int, beta: float = 0.25, legacy: bool = False, gradient: str = "straight"
    ) -> None:
        super().__init__()
        self.gradient = gradient
        if levels < 1:
            raise ValueError(f"levels={levels} of a residual quantiser must be at least 1")
        self.levels = nn.ModuleList(VectorQuantizer(n_embed, embed_dim, beta, legacy) for _ in range(levels))

    def forward(self, z: Tensor) -> Quantized:
        """(N, d, h, w) → :class:`Quantized`, indices (N, h, w, levels); the loss is the sum over levels."""
        with torch.autocast(z.device.type, enabled=False):
            wide = z.float()
            rest, total, losses, indices = wide, torch.zeros_like(wide), [], []
            for level in self._quantizers():
                quantized = level(rest)
                codes = quantized.latent.detach()
                rest, total = rest - codes, total + codes
                losses.append(quantized.loss)
                indices.append(quantized.indices)
            return Quantized(passed_on(wide, total, self.gradient), torch.stack(losses).sum(), torch.stack(indices, dim=-1))

    def lookup(self, indices: Tensor) -> Tensor:
        """Indices (N, h, w, levels), any integer type → vectors (N, d, h, w); fewer levels give a coarser latent."""
        if not 1 <= indices.shape[-1] <= len(self.levels):
            raise ValueError(f"indices have {indices.shape[-1]} levels, the codebook has {len(self.levels)}")
        parts = zip(self._quantizers(), indices.unbind(dim=-1), strict=False)
        codes = [level.lookup(part) for level, part in parts]
        return torch.stack(codes).sum(dim=0)

    def stages(self, vectors: Tensor) -> Iterator[tuple[nn.Embedding, Tensor]]:
        """Each level's codebook with the vectors (M, d) that it quantises.

        A level's codebook may be changed before the next one is asked for: the residual is taken with the changed one.
        """
        for level in self._quantizers():
            yield level.embedding, vectors
            codebook = level.embedding.weight.detach().float()
            vectors = vectors - codebook[nearest_code(vectors, codebook)]

    @property
    def codebooks(self) -> list[nn.Embedding]:
        """One per level."""
        return [level.embedding for level in self._quantizers()]

    def _quantizers(self) -> list[VectorQuantizer]:
        return cast(list[VectorQuantizer], list(self.levels))


def build_quantizer(
    n_embed: int, embed_dim: int, levels: int = 1, legacy: bool = False, gradient: str = "straight"
) -> VectorQuantizer | ResidualVectorQuantizer:
    """The quantiser of the settings: plain with one level, residual with more."""
    if levels == 1:
        return VectorQuantizer(n_embed, embed_dim, legacy=legacy, gradient=gradient)
    return ResidualVectorQuantizer(levels, n_embed, embed_dim, legacy=legacy, gradient=gradient)
