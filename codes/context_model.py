"""How likely each code is, given those beside it: a log-bilinear model (Mnih & Hinton 2007) in integers alone.

A code stands for a vector; what its left, upper and previous neighbours stand for predicts it linearly, and a code is the more
likely the nearer its vector lies to that; of rank 0 vectors have no numbers, and codes are as likely as they are frequent.
Everything that decides a bit of a stream is integer arithmetic (products of small integers are exact in float64), so that a
store is decoded alike on every machine; only fitting is not, and its result is kept with the codes.
"""

from __future__ import annotations

import base64
import math
import zlib
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

NEIGHBOURS = ((0, 0, -1), (0, -1, 0), (0, -1, -1), (0, -1, 1), (-1, 0, 0))  # slice, row, column
MOST_CODES = 1024  # beyond, tables of frequencies cost more than they save
MOST_ALONE = 1 << 14  # likewise, of rank 0
TOTAL = 1 << 16  # of the frequencies of all codes
_STEPS = 32  # scores are in 32nds of a bit
_LEAST = 24 * _STEPS  # a code this much less likely than the likeliest weighs nothing but its frequency of 1
_SHIFT = 12  # of products of vectors and matrices: bits below a 32nd
_QUARTER = _STEPS // 4  # the bias is in quarters of a bit
_RANKS = (1, 2, 3, 4, 5, 6, 8)  # numbers of a vector that are tried
_COARSE = (1, 2, 4)  # quarters of a bit to which rank 0 rounds how rare codes are: coarser ones take fewer bytes
_SMALL = 1 << 17  # codes in all, up to which numbers that take fewer bytes pay
_ROUGH = (16, 2)  # there, to what vectors and rarity are rounded
_SAMPLE = 20_000  # codes that the fit looks at
_FEWER = 4_000  # of them, where all codes are weighed against each other
_ITERATIONS = 3  # of the scaling that makes the codes as frequent as they are


@dataclass(frozen=True)
class ContextModel:
    """Scores of all codes for the codes beside them.

    Attributes:
        vectors: (codes, rank) int8, what a code stands for.
        matrices: (neighbours, rank, rank) int16, how each neighbour's vector predicts.
        rarity: (codes,) uint8, quarters of a bit that a code is less likely beside nothing.
    """

    vectors: NDArray[np.int8]
    matrices: NDArray[np.int16]
    rarity: NDArray[np.uint8]

    @property
    def codes(self) -> int:
        """How many there are."""
        return len(self.vectors)

    def frequencies(self, context: NDArray[np.integer]) -> NDArray[np.int32]:
        """How often each code is to be expected of ``TOTAL``, (n, codes), at least once each.

        Args:
            context: (n, neighbours), the codes beside each; :attr:`codes` where there is none.
        """
        vectors, matrices, scores, weights = self._exact
        predicted = np.ones((len(context), len(scores)))
        np.matmul(vectors[context].reshape(len(context), -1), matrices, out=predicted[:, :-1])
        score = predicted @ scores  # in 4096ths; rounded down together with what follows
        best = np.floor(score.max(1, keepdims=True)) + (1 - 2.0**-_SHIFT)
        np.subtract(best, score, out=score)
        weight = weights.take(score.astype(np.intp), mode="clip", out=score)
        weight /= weight.sum(1, keepdims=True) / (TOTAL - self.codes)
        frequency = weight.astype(np.int32)
        frequency += 1
        frequency[np.arange(len(context)), frequency.argmax(1)] += TOTAL - frequency.sum(1, dtype=np.int32)
        return frequency

    @cached_property
    def alone(self) -> tuple[NDArray[np.int64], NDArray[np.int64]] | None:
        """Of rank 0 the frequencies (codes,), which are the same beside all codes, and their sums up to each; else None."""
        if self.vectors.shape[1]:
            return None
        frequency = self.frequencies(np.full((1, len(NEIGHBOURS)), self.codes))[0].astype(np.int64)
        return frequency, frequency.cumsum()

    @cached_property
    def _exact(self) -> tuple[NDArray[Any], ...]:
        """Vectors, zero for no neighbour; stacked matrices; what scores a prediction, and rarity; weights by 32nds of a bit.

        float64 takes half the time of integers and is exact here: products stay far below 2^53; a quotient of integers below 2^40
        and 2^34 that is no integer lies further from the next one than it is rounded.
        """
        vectors = np.vstack([self.vectors, np.zeros((1, self.vectors.shape[1]))])
        rank = self.matrices.shape[2]
        matrices = self.matrices.reshape(len(NEIGHBOURS) * rank, rank).astype(np.float64)
        scores = np.vstack([vectors[:-1].T * 2.0**-_SHIFT, -float(_QUARTER) * self.rarity])
        return vectors, matrices, scores, _powers() * float(TOTAL - self.codes)

    def as_json(self) -> dict[str, Any]:
        """Shapes, and the numbers in base64 of zlib of little-endian bytes."""
        parts = {"vectors": self.vectors, "matrices": self.matrices.astype("<i2"), "rarity": self.rarity}
        packed = base64.b64encode(zlib.compress(b"".join(part.tobytes() for part in parts.values()), 9)).decode()
        return {"codes": self.codes, "rank": self.vectors.shape[1], "numbers": packed}

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> ContextModel:
        """What :meth:`as_json` made.

        Raises:
            ValueError: it is something else.
        """
        if missing := {"codes", "rank", "numbers"} - given.keys():  # zarr takes a KeyError for a codec that it does not know
            raise ValueError(f"a context model without {', '.join(sorted(missing))}")
        codes, rank = int(given["codes"]), int(given["rank"])
        sizes = (codes * rank, 2 * len(NEIGHBOURS) * rank**2, codes)
        if not (0 < codes <= (MOST_CODES if rank else MOST_ALONE) and 0 <= rank <= 64):
            raise ValueError(f"a context model of {codes} codes and vectors of {rank} numbers")
        numbers = zlib.decompressobj().decompress(base64.b64decode(given["numbers"]), sum(sizes) + 1)
        if len(numbers) != sum(sizes):
            raise ValueError(f"a context model of {codes} codes has {sum(sizes)} bytes, not {len(numbers)}")
        vectors, matrices, rarity = (numbers[sum(sizes[:n]) : sum(sizes[: n + 1])] for n in range(3))
        return cls(
            np.frombuffer(vectors, np.int8).reshape(codes, rank),
            np.frombuffer(matrices, "<i2").reshape(len(NEIGHBOURS), rank, rank),
            np.frombuffer(rarity, np.uint8),
        )

    @classmethod
    def fit(cls, samples: list[NDArray[np.integer]], vectors: NDArray[np.floating], total: int) -> ContextModel | None:
        """The model with which so many codes take the fewest bytes, its own numbers included; None where none saves any.

        Args:
            samples: blocks of the codes, each (slices, rows, columns).
            vectors: (codes, dimensions), what the codes stand for.
            total: how many codes there are in all.
        """
        each = [(contexts(codes, len(vectors)), codes.ravel()) for codes in samples]
        context, code = np.concatenate([c for c, _ in each]), np.concatenate([s for _, s in each])
        models = [_alone(code, len(vectors), coarse) for coarse in _COARSE]
        chosen = np.random.default_rng(0).permutation(len(code))[:_SAMPLE]
        context, code = context[chosen], code[chosen]
        most = min(vectors.shape[1], len(vectors) - 1) if len(vectors) <= MOST_CODES else 0
        rough = _ROUGH if total <= _SMALL else (1, 1)
        models += [_fitted(context, code, vectors, rank, *rough) for rank in _RANKS if rank <= most]
        costs = [model._cost(context, code, total) for model in models]
        least = int(np.argmin(costs))
        return models[least] if costs[least] < total * math.log2(len(vectors)) / 8 else None

    def _cost(self, context: NDArray[np.integer], code: NDArray[np.integer], total: int) -> float:
        """Bytes of so many codes like these, and of the model."""
        if self.alone is not None:
            bits = -np.log2(self.alone[0][code] / TOTAL).mean()
        else:
            code = code[:_FEWER]
            bits = -np.log2(self.frequencies(context[:_FEWER])[np.arange(len(code)), code] / TOTAL).mean()
        return bits / 8 * total + len(self.as_json()["numbers"])


def contexts(codes: NDArray[np.integer], none: int) -> NDArray[np.int64]:
    """The neighbours of every code of a block (slices, rows, columns), (n, neighbours); `none` outside of it."""
    d, h, w = codes.shape
    padded = np.full((d + 1, h + 1, w + 2), none, np.int64)
    padded[1:, 1:, 1:-1] = codes
    moved = [padded[1 + z : 1 + z + d, 1 + y : 1 + y + h, 1 + x : 1 + x + w].ravel() for z, y, x in NEIGHBOURS]
    return np.stack(moved, axis=1)


def _alone(code: NDArray[np.integer], codes: int, coarse: int) -> ContextModel:
    """Rank 0."""
    share = np.bincount(code, minlength=codes) + 0.5
    bits = np.log2(share.max() / share)
    rarity = np.clip(np.rint(bits / coarse * 4) * coarse, 0, 255).astype(np.uint8)
    return ContextModel(np.zeros((codes, 0), np.int8), np.zeros((len(NEIGHBOURS), 0, 0), "<i2"), rarity)


def _fitted(
    context: NDArray[np.integer], code: NDArray[np.integer], vectors: NDArray[np.floating], rank: int, step: int, rough: int
) -> ContextModel:
    """A Gaussian prediction by least squares, its quadratic terms in the bias; then codes are made as frequent as seen.

    Vectors are multiples of ``step``, rarity of ``rough``.
    """
    share = np.bincount(code, minlength=len(vectors)) + 0.5
    share /= share.sum()
    centred = vectors.astype(np.float64) - share @ vectors
    axes = np.linalg.svd(centred * np.sqrt(share)[:, None], full_matrices=False)[2]
    e = centred @ axes[:rank].T
    e /= np.sqrt(share @ e**2) + 1e-9
    scale = np.abs(e).max() / (127 // step * step)  # from here on what the integers will say
    e = np.rint(e / (step * scale)) * (step * scale)
    x = np.vstack([e, np.zeros(rank)])[context].reshape(len(context), -1)
    y, n = e[code], len(code)
    prediction = np.linalg.solve(x.T @ x + 1e-3 * n * np.eye(x.shape[1]), x.T @ y)
    precision = np.linalg.inv((y - x @ prediction).T @ (y - x @ prediction) / n + 1e-2 * np.eye(rank))
    matrices = prediction @ precision
    bias = np.log(share) - 0.5 * np.einsum("kd,de,ke->k", e, precision, e) + 0.5 * (e**2).sum(1)
    linear = x[:_FEWER] @ matrices @ e.T
    for _ in range(_ITERATIONS):
        score = bias + linear
        score = np.exp(score - score.max(1, keepdims=True))
        bias += 0.7 * np.log(share / ((score / score.sum(1, keepdims=True)).mean(0) + 1e-9))
    unit = _STEPS / math.log(2)
    return ContextModel(
        np.rint(e / scale).astype(np.int8),
        np.clip(np.rint(matrices * scale**2 * unit * 2**_SHIFT), -32768, 32767).astype("<i2").reshape(-1, rank, rank),
        np.clip(np.rint((bias.max() - bias) * unit / _QUARTER / rough) * rough, 0, 255).astype(np.uint8),
    )


@cache
def _powers() -> NDArray[np.int64]:
    """2^24 times 2^(-t/32) for t from 0 on, rounded down: 32nd roots as five exact integer square roots; the last one is 0."""

    def root(number: int) -> int:
        for _ in range(5):
            number = math.isqrt(number)
        return number

    return np.array([root(1 << 24 * _STEPS - t) for t in range(_LEAST)] + [0], np.int64)
