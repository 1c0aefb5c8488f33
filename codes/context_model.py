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
STEPS = 32  # scores are in 32nds of a bit
_LEAST = 24 * STEPS  # a code this much less likely than the likeliest weighs nothing but its frequency of 1
SHIFT = 12  # of products of vectors and matrices: bits below a 32nd
QUARTER = STEPS // 4  # the bias is in quarters of a bit


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
        best = np.floor(score.max(1, keepdims=True)) + (1 - 2.0**-SHIFT)
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
        scores = np.vstack([vectors[:-1].T * 2.0**-SHIFT, -float(QUARTER) * self.rarity])
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


def contexts(codes: NDArray[np.integer], none: int) -> NDArray[np.int64]:
    """The neighbours of every code of a block (slices, rows, columns), (n, neighbours); `none` outside of it."""
    d, h, w = codes.shape
    padded = np.full((d + 1, h + 1, w + 2), none, np.int64)
    padded[1:, 1:, 1:-1] = codes
    moved = [padded[1 + z : 1 + z + d, 1 + y : 1 + y + h, 1 + x : 1 + x + w].ravel() for z, y, x in NEIGHBOURS]
    return np.stack(moved, axis=1)


@cache
def _powers() -> NDArray[np.int64]:
    """2^24 times 2^(-t/32) for t from 0 on, rounded down: 32nd roots as five exact integer square roots; the last one is 0."""

    def root(number: int) -> int:
        for _ in range(5):
            number = math.isqrt(number)
        return number

    return np.array([root(1 << 24 * STEPS - t) for t in range(_LEAST)] + [0], np.int64)
