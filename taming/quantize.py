"""Vector quantisation with a learned codebook (van den Oord et al. 2017), plain and residual, or with a fixed grid."""

from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taming.codebook import nearest_code
from utils.axes import channels_first, channels_last


class Quantized(NamedTuple):
    """What a quantiser makes of z (N, d, h, w).

    Attributes:
        latent: the codes' vectors (N, d, h, w), float32; its gradient passes to z unchanged.
        loss: scalar, commitment and codebook term.
        indices: (N, h, w) int64, with a last axis for the levels of a residual quantiser.
    """

    latent: Tensor
    loss: Tensor
    indices: Tensor


def straight_through(z: Tensor, codes: Tensor) -> Tensor:
    """The value of ``codes`` to the last bit, whose gradient passes to z unchanged (Bengio et al. 2013)."""
    return codes.detach() + (z - z.detach())  # the difference is exactly 0


def to_vectors(latent: Tensor) -> Tensor:
    """(N, d, h, w) → one float32 row for each position, (N·h·w, d), ordered as indices.flatten(); detached."""
    return channels_last(latent.detach()).flatten(0, -2).float()


def nearest_of_levels(z: Tensor, codebooks: Sequence[Tensor]) -> Tensor:
    """Indices (N, h, w, levels): of each codebook (n, d) the code nearest to what those before it left of z (N, d, h, w)."""
    n, _, h, w = z.shape
    found, rest = [], to_vectors(z)
    for codebook in codebooks:
        found.append(nearest_code(rest, codebook))
        rest = rest - codebook[found[-1]]
    return torch.stack(found, dim=-1).view(n, h, w, -1)


class VectorQuantizer(nn.Module):
    """Replaces every position's vector by the nearest of a codebook. Key ``embedding.weight``.

    Args:
        n_embed: codes.
        embed_dim: channels d of a code.
        beta: weight of the commitment term (codebook term 1).
        legacy: the weights the other way round, commitment 1 and codebook ``beta``, as in older published trainings.
    """

    def __init__(self, n_embed: int, embed_dim: int, beta: float = 0.25, legacy: bool = False) -> None:
        super().__init__()
        self.beta = beta
        self.legacy = legacy
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
            return Quantized(straight_through(wide, codes), loss, indices)

    def _load_from_state_dict(self, state_dict: Mapping[str, Tensor], prefix: str, *rest: Any) -> None:
        """Weights of the retired setting rate_weight have counts ``seen``, which belong to the sum that their stores name."""
        if (key := f"{prefix}seen") in state_dict:
            self.register_buffer("seen", torch.empty_like(state_dict[key]))
        super()._load_from_state_dict(state_dict, prefix, *rest)

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """Indices (N, h, w) of the codes nearest to z (N, d, h, w)."""
        n, _, h, w = z.shape
        return nearest_code(to_vectors(z), self.embedding.weight.float()).view(n, h, w)

    def lookup(self, indices: Tensor) -> Tensor:
        """Indices (N, h, w), any integer type → vectors (N, d, h, w)."""
        return channels_first(self.embedding(indices.long()))

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
        legacy: as :class:`VectorQuantizer`.
        fewer: share of a training's slices whose sum ends after one of the first levels, drawn at random (Zeghidour 2021,
            "quantizer dropout"), so that decoders learn what fewer levels stand for.
    """

    def __init__(self, levels: int, n_embed: int, embed_dim: int, legacy: bool = False, fewer: float = 0.0) -> None:
        super().__init__()
        if levels < 1:
            raise ValueError(f"levels={levels} of a residual quantiser must be at least 1")
        self.fewer = fewer
        self.levels = nn.ModuleList(VectorQuantizer(n_embed, embed_dim, legacy=legacy) for _ in range(levels))

    def forward(self, z: Tensor) -> Quantized:
        """(N, d, h, w) → :class:`Quantized`, indices (N, h, w, levels); the loss is the sum over levels."""
        with torch.autocast(z.device.type, enabled=False):
            wide = z.float()
            rest, total, losses, indices = wide, torch.zeros_like(wide), [], []
            ends = self._ends(len(wide), wide.device)
            for number, level in enumerate(self._quantizers()):
                quantized = level(rest)
                codes = quantized.latent.detach()
                rest, total = rest - codes, total + codes * (number < ends)
                losses.append(quantized.loss)
                indices.append(quantized.indices)
            return Quantized(straight_through(wide, total), torch.stack(losses).sum(), torch.stack(indices, dim=-1))

    @torch.no_grad()
    def nearest(self, z: Tensor) -> Tensor:
        """Indices (N, h, w, levels): each level's of the codes nearest to what those before it left of z (N, d, h, w)."""
        return nearest_of_levels(z, [codebook.weight.float() for codebook in self.codebooks])

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

    def _ends(self, count: int, device: torch.device) -> Tensor:
        """After how many levels the sums of so many slices end, (N, 1, 1, 1)."""
        if not self.training or not self.fewer:
            return torch.full((count, 1, 1, 1), len(self.levels), device=device)
        fewer = torch.rand(count, 1, 1, 1, device=device) < self.fewer
        return torch.where(fewer, torch.randint(1, len(self.levels), fewer.shape, device=device), len(self.levels))

    def _quantizers(self) -> list[VectorQuantizer]:
        return cast(list[VectorQuantizer], list(self.levels))


class FiniteScalarQuantizer(VectorQuantizer):
    """Bounds every channel by tanh and rounds it to a few values (Mentzer et al. 2023): the codebook is a grid that stays.

    There is no loss: an encoder that can only give bounded vectors needs no commitment, and a fixed grid none to follow it.

    Args:
        grid: values per channel; their product is the number of codes. A channel's values lie in [-1, 1].
    """

    reach: Tensor
    offset: Tensor
    unit: Tensor

    def __init__(self, grid: Sequence[int]) -> None:
        super().__init__(prod(grid), len(grid))
        sizes = torch.tensor(grid)
        steps = torch.cartesian_prod(*(torch.arange(n) - n // 2 for n in grid)).view(-1, len(grid))
        self.embedding = nn.Embedding.from_pretrained((steps / (sizes // 2)).float(), freeze=True)
        reach = (sizes - 1) * (1 + 1e-3) / 2  # a little more: tanh has to pass the last border
        offset = torch.where(sizes % 2 == 0, 0.5, 0.0)  # an even number of values lies beside 0
        for name, values in (("reach", reach), ("offset", offset), ("unit", (sizes // 2).float())):
            self.register_buffer(name, values[:, None, None], persistent=False)

    def forward(self, z: Tensor) -> Quantized:
        """(N, d, h, w) → :class:`Quantized`, the loss 0."""
        with torch.autocast(z.device.type, enabled=False):
            bounded = self.bounded(z.float())
            indices = self.nearest(bounded)  # on a grid, the nearest point has the nearest value of every channel
            return Quantized(straight_through(bounded, self.lookup(indices)), bounded.new_zeros(()), indices)

    def bounded(self, z: Tensor) -> Tensor:
        """Brings z (N, d, h, w) into the range of the grid; 0 stays 0 up to the offset of an even number of values."""
        return (torch.tanh(z + torch.atanh(self.offset / self.reach)) * self.reach - self.offset) / self.unit


def build_quantizer(
    n_embed: int, embed_dim: int, levels: int = 1, legacy: bool = False, grid: Sequence[int] = (), fewer: float = 0.0
) -> VectorQuantizer | ResidualVectorQuantizer:
    """The quantiser of the settings: plain with one level, residual with more, finite scalar with a grid."""
    if grid:
        return FiniteScalarQuantizer(grid)
    if levels == 1:
        return VectorQuantizer(n_embed, embed_dim, legacy=legacy)
    return ResidualVectorQuantizer(levels, n_embed, embed_dim, legacy, fewer)
