"""Fits the model of codes by their neighbours, in closed form: the only part of it where a processor's rounding has a say."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from codes.context_model import MOST_CODES, NEIGHBOURS, QUARTER, SHIFT, STEPS, TOTAL, ContextModel, contexts

_RANKS = (1, 2, 3, 4, 5, 6, 8)  # numbers of a vector that are tried
_COARSE = (1, 2, 4)  # quarters of a bit to which rank 0 rounds how rare codes are: coarser ones take fewer bytes
_SMALL = 1 << 17  # codes in all, up to which numbers that take fewer bytes pay
_ROUGH = (16, 2)  # there, to what vectors and rarity are rounded
_ROUNDED = 11  # beyond, bits that predictions lose: 0.13 % more bytes, a table for every 22 codes (443 904 of FIB-25)
_SAMPLE = 20_000  # codes that the fit looks at
_FEWER = 4_000  # of them, where all codes are weighed against each other
_ITERATIONS = 3  # of the scaling that makes the codes as frequent as they are


def fitted_model(samples: list[NDArray[np.integer]], vectors: NDArray[np.floating], total: int) -> ContextModel | None:
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
    rough, rounded = (_ROUGH, 0) if total <= _SMALL else ((1, 1), _ROUNDED)
    models += [replace(_of_rank(context, code, vectors, rank, *rough), rounded=rounded) for rank in _RANKS if rank <= most]
    costs = [_cost(model, context, code, total) for model in models]
    least = int(np.argmin(costs))
    return models[least] if costs[least] < total * math.log2(len(vectors)) / 8 else None


def _cost(model: ContextModel, context: NDArray[np.integer], code: NDArray[np.integer], total: int) -> float:
    """Bytes of so many codes like these, and of the model."""
    if model.vectors.size:
        code = code[:_FEWER]
    length, _ = model.intervals(code, lambda: context[:_FEWER])
    bits = -np.log2(length / TOTAL).mean()
    return bits / 8 * total + len(model.as_json()["numbers"])


def _alone(code: NDArray[np.integer], codes: int, coarse: int) -> ContextModel:
    """Rank 0."""
    share = np.bincount(code, minlength=codes) + 0.5
    bits = np.log2(share.max() / share)
    rarity = np.clip(np.rint(bits / coarse * 4) * coarse, 0, 255).astype(np.uint8)
    return ContextModel(np.zeros((codes, 0), np.int8), np.zeros((len(NEIGHBOURS), 0, 0), "<i2"), rarity)


def _of_rank(
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
    unit = STEPS / math.log(2)
    return ContextModel(
        np.rint(e / scale).astype(np.int8),
        np.clip(np.rint(matrices * scale**2 * unit * 2**SHIFT), -32768, 32767).astype("<i2").reshape(-1, rank, rank),
        np.clip(np.rint((bias.max() - bias) * unit / QUARTER / rough) * rough, 0, 255).astype(np.uint8),
    )
