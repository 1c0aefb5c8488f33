"""How likely each code is, given those beside it: a log-bilinear model (Mnih & Hinton 2007) in integers alone.

A code stands for a vector; what its left, upper and previous neighbours stand for predicts it linearly, and a code is the more
likely the nearer its vector lies to that; of rank 0 vectors have no numbers, and codes are as likely as they are frequent. In
large stores predictions are rounded, so that a code finds the frequencies that were made for others of the same prediction.
Everything that decides a bit of a stream is integer arithmetic (products of small integers are exact in float64), so that a
store is decoded alike on every machine; only fitting is not, and its result is kept with the codes.
"""

from __future__ import annotations

import base64
import math
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import count
from threading import Lock
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
_AT_ONCE = 128  # tables that are made at once: more leave the cache, and memory for them is asked for anew
_SEARCHED = 2048  # codes that look for theirs at once
_KEPT = 1 << 25  # bytes of tables at most

_ONE_THREAD = Lock()

Beside = Callable[[], NDArray[np.integer]]  # makes the codes beside each, (n, neighbours); as many as there are codes: none


@dataclass(frozen=True)
class ContextModel:
    """Scores of all codes for the codes beside them.

    Attributes:
        vectors: (codes, rank) int8, what a code stands for.
        matrices: (neighbours, rank, rank) int16, how each neighbour's vector predicts.
        rarity: (codes,) uint8, quarters of a bit that a code is less likely beside nothing.
        rounded: how many of their lowest bits predictions lose.
    """

    vectors: NDArray[np.int8]
    matrices: NDArray[np.int16]
    rarity: NDArray[np.uint8]
    rounded: int = 0

    @property
    def codes(self) -> int:
        """How many there are."""
        return len(self.vectors)

    def intervals(self, code: NDArray[np.integer], beside: Beside) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Length and begin of what each of n codes has of ``TOTAL``: the likelier, the more, and 1 at least."""
        length, begin = np.empty((2, len(code)), np.int64)
        for part, last, row in self._tables(len(code), beside):
            length[part], begin[part] = _interval(last, row, code[part])
        return length, begin

    def found(self, slot: NDArray[np.int64], beside: Beside) -> tuple[NDArray[np.int64], ...]:
        """Of n slots of ``TOTAL``, the codes that have them, and length and begin of the interval of each."""
        code, length, begin = np.empty((3, len(slot)), np.int64)
        for part, last, row in self._tables(len(slot), beside):
            own = slot[part].astype(np.uint16)
            code[part] = (last[row] >= own[:, None]).argmax(1) if self.vectors.size else last[0].searchsorted(own)
            length[part], begin[part] = _interval(last, row, code[part])
        return code, length, begin

    def _tables(self, n: int, beside: Beside) -> Iterator[tuple[slice, NDArray[np.uint16], NDArray[np.intp]]]:
        """Parts of n codes; tables (some, codes) of the last slot of every code; which of them each of the part has."""
        if not self.vectors.size:
            yield slice(n), self._alone, np.zeros(n, np.intp)
            return
        context, (vectors, matrices, *_) = beside(), self._exact
        for begin in range(0, n, _SEARCHED):
            part = slice(begin, begin + _SEARCHED)
            predicted = vectors[context[part]].reshape(-1, len(matrices)) @ matrices
            predicted = np.floor(predicted * 2.0**-self.rounded + 0.5)
            if self._radix is None:
                yield part, self._made(predicted), np.arange(len(predicted))
            else:
                yield part, *self._kept(predicted, (predicted @ self._radix).astype(np.int64).tolist())

    def _kept(self, predicted: NDArray[np.float64], keys: list[int]) -> tuple[NDArray[np.uint16], NDArray[np.intp]]:
        """The tables kept and those that they lacked for these predictions, each of its own key; which each has."""
        with _ONE_THREAD:
            if not self._store or len(self._store[0]) + len(keys) > len(self._store[1]):  # others may still read the former
                self._store[:] = {}, np.empty((_KEPT // (2 * self.codes), self.codes), np.uint16)
            known, tables = self._store
            if new := {key: n for n, key in enumerate(keys) if key not in known}:
                tables[len(known) : len(known) + len(new)] = self._made(predicted[list(new.values())])
                known.update(zip(new, count(len(known)), strict=False))
            return tables, np.fromiter(map(known.__getitem__, keys), np.intp, len(keys))

    def _made(self, predicted: NDArray[np.float64]) -> NDArray[np.uint16]:
        """Tables (n, codes) for as many predictions (n, rank)."""
        scores, weights = self._exact[2:]
        last = np.empty((len(predicted), self.codes), np.uint16)
        for begin in range(0, len(predicted), _AT_ONCE):
            part = predicted[begin : begin + _AT_ONCE]
            score = np.column_stack([part, np.ones(len(part))]) @ scores  # in 4096ths; rounded down with what follows
            best = np.floor(score.max(1, keepdims=True)) + (1 - 2.0**-SHIFT)
            np.subtract(best, score, out=score)
            weight = weights.take(score.astype(np.intp), mode="clip", out=score)
            weight /= weight.sum(1, keepdims=True) / (TOTAL - self.codes)
            frequency = weight.astype(np.int32)
            frequency += 1
            frequency[np.arange(len(part)), frequency.argmax(1)] += TOTAL - frequency.sum(1, dtype=np.int32)
            frequency[:, 0] -= 1
            last[begin : begin + _AT_ONCE] = frequency.cumsum(1, dtype=np.int32)
        return last

    @cached_property
    def _alone(self) -> NDArray[np.uint16]:
        """The only table of rank 0."""
        return self._made(np.zeros((1, 0)))

    @cached_property
    def _store(self) -> list[Any]:
        """Number of the table by its key, and the tables."""
        return []

    @cached_property
    def _radix(self) -> NDArray[np.float64] | None:
        """(rank,) by which rounded predictions are numbered; None where they are not rounded, or too many could be."""
        most = np.abs(self.vectors.astype(np.float64) @ self.matrices).max(1).sum(0) // 2.0**self.rounded + 1
        sides = np.cumprod([1, *(2 * most + 1)])
        return sides[:-1] if self.rounded and sides[-1] < 1 << 53 else None

    @cached_property
    def _exact(self) -> tuple[NDArray[Any], ...]:
        """Vectors, zero for no neighbour; stacked matrices; what scores a prediction, and rarity; weights by 32nds of a bit.

        float64 takes half the time of integers and is exact here: products stay far below 2^53; a quotient of integers below 2^40
        and 2^34 that is no integer lies further from the next one than it is rounded.
        """
        vectors = np.vstack([self.vectors, np.zeros((1, self.vectors.shape[1]))])
        rank = self.matrices.shape[2]
        matrices = self.matrices.reshape(len(NEIGHBOURS) * rank, rank).astype(np.float64)
        scores = np.vstack([vectors[:-1].T * 2.0 ** (self.rounded - SHIFT), -float(QUARTER) * self.rarity])
        return vectors, matrices, scores, _powers() * float(TOTAL - self.codes)

    def as_json(self) -> dict[str, Any]:
        """Shapes, and the numbers in base64 of zlib of little-endian bytes."""
        parts = {"vectors": self.vectors, "matrices": self.matrices.astype("<i2"), "rarity": self.rarity}
        packed = base64.b64encode(zlib.compress(b"".join(part.tobytes() for part in parts.values()), 9)).decode()
        rounded = {"rounded": self.rounded} if self.rounded else {}
        return {"codes": self.codes, "rank": self.vectors.shape[1], **rounded, "numbers": packed}

    @classmethod
    def from_json(cls, given: dict[str, Any]) -> ContextModel:
        """What :meth:`as_json` made.

        Raises:
            ValueError: it is something else.
        """
        if missing := {"codes", "rank", "numbers"} - given.keys():  # zarr takes a KeyError for a codec that it does not know
            raise ValueError(f"a context model without {', '.join(sorted(missing))}")
        codes, rank, rounded = int(given["codes"]), int(given["rank"]), int(given.get("rounded", 0))
        sizes = (codes * rank, 2 * len(NEIGHBOURS) * rank**2, codes)
        if not (0 < codes <= (MOST_CODES if rank else MOST_ALONE) and 0 <= rank <= 64 and 0 <= rounded <= 24):
            raise ValueError(f"a context model of {codes} codes and vectors of {rank} numbers, rounded by {rounded} bits")
        numbers = zlib.decompressobj().decompress(base64.b64decode(given["numbers"]), sum(sizes) + 1)
        if len(numbers) != sum(sizes):
            raise ValueError(f"a context model of {codes} codes has {sum(sizes)} bytes, not {len(numbers)}")
        vectors, matrices, rarity = (numbers[sum(sizes[:n]) : sum(sizes[: n + 1])] for n in range(3))
        return cls(
            np.frombuffer(vectors, np.int8).reshape(codes, rank),
            np.frombuffer(matrices, "<i2").reshape(len(NEIGHBOURS), rank, rank),
            np.frombuffer(rarity, np.uint8),
            rounded,
        )


def _interval(
    last: NDArray[np.uint16], row: NDArray[np.intp], code: NDArray[np.integer]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Length and begin of codes' intervals in their tables."""
    begin = np.where(code > 0, last[row, np.maximum(code, 1) - 1] + np.int64(1), 0)
    return last[row, code] - begin + 1, begin


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
