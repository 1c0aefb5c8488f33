"""A codebook's life: nearest codes, k-means initialisation, revival of unused codes, usage figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import torch
from torch import Tensor, nn

from utils.processes import first, gathered, of_first, summed

if TYPE_CHECKING:
    from taming.quantize import ResidualVectorQuantizer, VectorQuantizer

    Quantizer: TypeAlias = VectorQuantizer | ResidualVectorQuantizer

CHUNK = {"cpu": 512, "cuda": 65536}  # vectors compared at a time: the table fits a core's cache, or bounds a GPU's memory
VECTORS_PER_CODE = 10  # the least that k-means is asked to place a code from
ITERATIONS = 30  # of Lloyd at most: a start for training, not its result


@torch.no_grad()
def nearest_code(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest row of ``codebook`` (n, d) for each of ``vectors`` (M, d): (M,) int64, ties to the lowest.

    Squared Euclidean distances as sums of squared differences, channel by channel in float32: no cancellation, no matrix product
    of reduced precision, and the same result for a vector whatever the others are. On a CPU a product finds the same codes in a
    fifth of the time; where rounding could decide, for one vector in a thousand, the sums do.
    """
    plain = type(vectors) is Tensor and vectors.device.type == "cpu"  # no fake one, which only measures memory
    find = _nearest_by_product if plain and vectors.dtype == codebook.dtype else _nearest_by_sums
    with torch.autocast(vectors.device.type, enabled=False):
        return torch.cat([find(part, codebook) for part in vectors.split(CHUNK.get(vectors.device.type, 65536))])


def _nearest_by_sums(vectors: Tensor, codebook: Tensor) -> Tensor:
    distances = vectors.new_zeros(len(vectors), len(codebook))  # without an (M, n, d) intermediate
    for channel in range(vectors.shape[1]):
        difference = vectors[:, channel, None] - codebook[:, channel]
        distances.addcmul_(difference, difference)
    return distances.argmin(dim=1)


def _nearest_by_product(vectors: Tensor, codebook: Tensor) -> Tensor:
    """What :func:`_nearest_by_sums` finds, whose distances are off by a quarter of ``doubt`` at most (Higham 2002, 3.1).

    In double precision, which no setting of a processor's library makes less.
    """
    wide = codebook.double()
    squares = wide.square().sum(dim=1)
    table = torch.addmm(squares, vectors.double(), wide.T, alpha=-2)  # each distance less what all of a row have in common
    index = torch.from_numpy(table.numpy().argmin(1))  # a tenth of torch's time
    least = table.gather(1, index[:, None])
    second = table.scatter_(1, index[:, None], torch.inf).amin(dim=1)
    rounding, reach = torch.finfo(vectors.dtype), (vectors.norm(dim=1) + squares.max().sqrt()) ** 2
    doubt = 8 * (codebook.shape[1] + 8) * (rounding.eps * reach + rounding.tiny)
    unsure = ~(second - least[:, 0] > doubt)  # or not a number
    if unsure.any():
        index[unsure] = _nearest_by_sums(vectors[unsure], codebook)
    return index


def codes_used(counts: Tensor) -> Tensor:
    """How many codes were chosen at all; counts (..., n_embed) → (...,) int64."""
    return (counts > 0).sum(dim=-1)


def perplexity(counts: Tensor) -> Tensor:
    """How many equally frequent codes have the entropy of these counts (..., n_embed): (...,) float32; 0 where all are 0."""
    total = counts.sum(dim=-1, keepdim=True)
    entropy = torch.special.entr(counts / total.clamp_min(1)).sum(dim=-1)
    return torch.where(total.squeeze(-1) > 0, entropy.exp(), 0.0)


def kmeans(vectors: Tensor, k: int, generator: torch.Generator | None = None) -> Tensor:
    """Centres (k, d) of Lloyd's algorithm (1982) from a k-means++ start (Arthur & Vassilvitskii 2007).

    It runs on the CPU, where the same vectors and generator state give the same centres to the last bit. An empty cluster starts
    again at the vector farthest from its centre. With fewer than k different vectors some centres coincide.

    Args:
        vectors: (M, d) with M >= k, finite.
        k: centres.
        generator: a CPU generator; torch's global one by default.
    """
    if len(vectors) < k:
        raise ValueError(f"{len(vectors)} vectors cannot make {k} centres; encode more slices or lower n_embed")
    points = vectors.detach().cpu().float()
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]  # each of the next by the squared distance from those
    distances = (points - points[chosen[0]]).square().sum(dim=1)
    for _ in range(k - 1):
        weights = distances if bool(distances.any()) else torch.ones_like(distances)
        chosen.append(int(torch.multinomial(weights, 1, generator=generator)))
        distances = torch.minimum(distances, (points - points[chosen[-1]]).square().sum(dim=1))
    centres, nearest = points[chosen], None
    for _ in range(ITERATIONS):
        previous, nearest = nearest, nearest_code(points, centres)
        if previous is not None and torch.equal(previous, nearest):
            break
        centres = _means(points, centres, nearest)
    return centres.to(vectors)


def _means(points: Tensor, centres: Tensor, nearest: Tensor) -> Tensor:
    """The mean of each centre's points; centres without a point move to the worst represented points."""
    k = len(centres)
    counts = torch.bincount(nearest, minlength=k)
    sums = torch.zeros(k, points.shape[1], dtype=torch.float64).index_add_(0, nearest, points.double())
    means = (sums / counts.clamp_min(1)[:, None]).float()
    empty = (counts == 0).nonzero().squeeze(1)
    distances = (points - centres[nearest]).square().sum(dim=1)
    means[empty] = points[distances.argsort(descending=True, stable=True)[: len(empty)]]
    return means


class CodebookLife(nn.Module):
    """Starts a codebook from data and replaces codes that fell out of use (Dhariwal et al. 2020, "Jukebox", random restarts).

    All decisions are taken over all ranks of torch.distributed, where it is initialised, and leave identical codebooks.
    The state is in the buffers, so that a resumed training continues the same.

    Args:
        n_embed: codes per level.
        levels: of a residual quantiser, else 1.
        revive_after: steps without use after which a code is replaced; 0 never replaces.
        from_data: whether a training is to call :meth:`initialise`.

    Attributes:
        unused_steps: (levels, n_embed) int64, steps since each code was last chosen.
        initialised: bool, whether :meth:`initialise` ran.
    """

    unused_steps: Tensor
    initialised: Tensor

    def __init__(self, n_embed: int, levels: int = 1, revive_after: int = 100, from_data: bool = True) -> None:
        super().__init__()
        self.revive_after, self.from_data = revive_after, from_data
        self.register_buffer("unused_steps", torch.zeros(levels, n_embed, dtype=torch.int64))
        self.register_buffer("initialised", torch.tensor(False))
        self._none_dead_for = 0  # calls of observe before which no code can have been unused for long enough

    @classmethod
    def from_settings(cls, quantizer: Quantizer, codebook: Mapping[str, Any], accumulate: int) -> Self:
        """What the autoencoder's block ``codebook`` asks for; ``accumulate`` batches make a step.

        A grid is not learned, and ``legacy`` leaves the codebook as the reference did.
        """
        fixed = codebook["legacy"] or bool(codebook.get("grid"))
        revive_after = 0 if fixed else codebook["revive_after"] * accumulate
        books = quantizer.codebooks
        return cls(books[0].num_embeddings, len(books), revive_after, codebook["initialise"] == "kmeans" and not fixed)

    @property
    def vectors_needed(self) -> int:
        """How many encoder vectors, all ranks together, :meth:`initialise` asks for at least."""
        return VECTORS_PER_CODE * self.unused_steps.shape[1]

    @torch.no_grad()
    def initialise(self, quantizer: Quantizer, vectors: Tensor, generator: torch.Generator | None = None) -> None:
        """Sets the codebook, level by level, to the k-means centres of encoder vectors (M, d) of all ranks.

        Raises:
            ValueError: fewer than 10 vectors per code, all ranks together.
        """
        vectors = gathered(vectors.detach().float())
        if len(vectors) < self.vectors_needed:
            raise ValueError(
                f"{len(vectors)} encoder vectors are too few to initialise {self.unused_steps.shape[1]} codes; "
                f"at least {self.vectors_needed} are needed: encode more slices, or lower n_embed"
            )
        for codebook, inputs in quantizer.stages(vectors):
            centres = torch.empty_like(codebook.weight)
            if first():
                centres = kmeans(inputs, codebook.num_embeddings, generator)
            _assign(codebook.weight, slice(None), centres)
        self.unused_steps.zero_()
        self.initialised.fill_(True)

    @torch.no_grad()
    def observe(self, indices: Tensor) -> Tensor:
        """Counts one step's codes, (N, h, w) or (N, h, w, levels), over all ranks.

        Returns:
            How often each code was chosen, (levels, n_embed) int64.
        """
        levels = len(self.unused_steps)
        per_level = indices.reshape(-1, levels).T
        counts = torch.zeros_like(self.unused_steps).scatter_add_(1, per_level, torch.ones_like(per_level))
        summed(counts)
        self._none_dead_for -= 1
        self.unused_steps.copy_(torch.where(counts > 0, 0, self.unused_steps + 1))
        return counts

    @staticmethod
    def usage(counts: Tensor) -> dict[str, Tensor | float]:
        """What :meth:`observe` counted, as figures to log; of several levels also each one's."""
        figures = {"codes/used": codes_used(counts).float(), "codes/perplexity": perplexity(counts)}
        logged: dict[str, Tensor | float] = {name: values.mean() for name, values in figures.items()}
        if len(counts) > 1:
            logged |= {f"{name}_level_{i}": value for name, values in figures.items() for i, value in enumerate(values)}
        return logged

    @torch.no_grad()
    def revive(
        self,
        quantizer: Quantizer,
        vectors: Tensor,
        generator: torch.Generator | None = None,
        averaged: nn.Module | None = None,
    ) -> int:
        """Replaces codes unused for ``revive_after`` steps by current encoder vectors (M, d); call it after the optimiser's step.

        Args:
            quantizer: changed in place.
            vectors: this rank's vectors; the replacements are drawn from those of all ranks.
            generator: a CPU generator; only rank 0's decides.
            averaged: the running average of the quantiser's weights, if there is one. The average of a replaced code starts anew
                from its new vector: a mean with that of the dead code would stand for neither, for as long as the memory is.

        Returns:
            How many codes were replaced.
        """
        if self.revive_after <= 0 or self._none_dead_for > 0:
            return 0
        self._none_dead_for = self.revive_after - int(self.unused_steps.max())  # a GPU is waited for as rarely as that
        if self._none_dead_for > 0:
            return 0
        dead = self.unused_steps >= self.revive_after
        vectors, replaced = gathered(vectors.detach().float()), 0
        averages = list(averaged.parameters()) if averaged is not None else []  # one codebook per level, as in the quantiser
        for level, (codebook, inputs) in enumerate(quantizer.stages(vectors)):
            drawn = torch.randperm(len(inputs), generator=generator)[: int(dead[level].sum())].to(inputs.device)
            rows = dead[level].nonzero().squeeze(1)[: len(drawn)]  # too few vectors: the other codes wait for the next step
            _assign(codebook.weight, rows, inputs[drawn])
            if averages:
                averages[level][rows] = codebook.weight[rows].to(averages[level])
            self.unused_steps[level, rows] = 0
            replaced += len(rows)
        return replaced


def _assign(codebook: Tensor, rows: slice | Tensor, values: Tensor) -> None:
    """codebook[rows] = values of rank 0, on all ranks."""
    codebook[rows] = of_first(values.to(codebook))
