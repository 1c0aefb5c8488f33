"""Fits the model of codes by their neighbours: the only part of it where a processor's rounding has a say."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from codes.context_model import MOST_CODES, NEIGHBOURS, QUARTER, SHIFT, STEPS, TOTAL, ContextModel, contexts

_RANKS = (1, 2, 3, 4, 5, 6, 8)  # numbers of a vector that are tried
_COARSE = (1, 2, 4)  # quarters of a bit to which rank 0 rounds how rare codes are: coarser ones take fewer bytes
_SMALL = 1 << 17  # codes in all, up to which numbers that take fewer bytes pay
_ROUGH = (16, 2)  # there, to what vectors and rarity are rounded
_RANK, _ROUNDED = 4, 12  # beyond, and bits that predictions lose there: few tables serve all codes
_IMPROVED = 20  # steps towards a likelier model, there: they gain the bytes that rounding costs, or more
_SAMPLE = 20_000  # codes that the fit looks at
_FEWER = 4_000  # of them, where all codes are weighed against each other
_ITERATIONS = 3  # of the scaling that makes the codes as frequent as they are

Parameters = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]


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
    if total <= _SMALL:
        ranks = [rank for rank in _RANKS if rank <= most]
        models += [_whole(_gaussian(context, code, vectors, rank, _ROUGH[0]), *_ROUGH) for rank in ranks]
    elif most:
        start = _gaussian(context, code, vectors, min(_RANK, most), 1)
        models += [_whole(each, rounded=_ROUNDED) for each in (start, _likelier(context, code, start))]
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


def _gaussian(
    context: NDArray[np.integer], code: NDArray[np.integer], vectors: NDArray[np.floating], rank: int, step: int
) -> Parameters:
    """A Gaussian prediction by least squares, its quadratic terms in the bias; then codes are made as frequent as seen.

    Returns:
        What the codes stand for (codes, rank), in multiples of ``step``; matrices (neighbours x rank, rank); bias (codes,), nats.
    """
    share = np.bincount(code, minlength=len(vectors)) + 0.5
    share /= share.sum()
    centred = vectors.astype(np.float64) - share @ vectors
    axes = np.linalg.svd(centred * np.sqrt(share)[:, None], full_matrices=False)[2]
    e = centred @ axes[:rank].T
    e /= np.sqrt(share @ e**2) + 1e-9
    e = np.rint(e / _unit(e, step)) * _unit(e, step)  # from here on what the integers will say
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
    return e, matrices, bias


def _unit(e: NDArray[np.float64], step: int) -> float:
    """What ``step`` of a whole number stands for, so that all fit into a byte."""
    return float(np.abs(e).max() / (127 // step))


def _likelier(context: NDArray[np.integer], code: NDArray[np.integer], start: Parameters) -> Parameters:
    """The same after a few steps of L-BFGS (Liu & Nocedal 1989) on the likelihood of the codes; vectors learn, too."""
    import torch

    with torch.inference_mode(False), torch.enable_grad():
        beside, own = torch.from_numpy(context), torch.from_numpy(code.astype(np.int64))
        e, matrices, bias = learned = [torch.tensor(each, dtype=torch.float32, requires_grad=True) for each in start]
        optimiser = torch.optim.LBFGS(learned, max_iter=_IMPROVED, line_search_fn="strong_wolfe")

        def loss() -> torch.Tensor:
            optimiser.zero_grad()
            x = torch.cat([e, e.new_zeros(1, e.shape[1])])[beside].flatten(1)
            value = torch.nn.functional.cross_entropy(x @ matrices @ e.T + bias, own)
            value.backward()
            return value

        optimiser.step(loss)
    return e.detach().double().numpy(), matrices.detach().double().numpy(), bias.detach().double().numpy()


def _whole(parameters: Parameters, step: int = 1, rough: int = 1, rounded: int = 0) -> ContextModel:
    """In integers: vectors are multiples of ``step``, rarity of ``rough``."""
    e, matrices, bias = parameters
    scale, unit, rank = _unit(e, step) / step, STEPS / math.log(2), e.shape[1]
    return ContextModel(
        np.rint(e / scale).astype(np.int8),
        np.clip(np.rint(matrices * scale**2 * unit * 2**SHIFT), -32768, 32767).astype("<i2").reshape(-1, rank, rank),
        np.clip(np.rint((bias.max() - bias) * unit / QUARTER / rough) * rough, 0, 255).astype(np.uint8),
        rounded,
    )
