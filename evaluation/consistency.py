"""A volume projected back onto the sections of its input."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from evaluation.baselines import Candidate, Sections
from evaluation.comparison import Comparison
from evaluation.grids import average_position


def projections(sections: Sections) -> dict[str, tuple[float, NDArray[np.float64]]]:
    """The ways in which sections at these positions can have come from planes.

    Returns:
        Per way the offset of its first plane from the section's position, and the weights of the planes from there on:
        ``pick`` (the plane at the position), ``average`` (the mean of the planes around it; for odd factors both fit), else
        ``between`` (no weights: the two planes around the position, linearly).
    """
    factor = round(sections.step)
    ways: dict[str, tuple[float, NDArray[np.float64]]] = {}
    if sections.step == factor and sections.first == round(sections.first):
        ways["pick"] = (0.0, np.ones(1))
    corner = average_position(factor)
    if sections.step == factor > 1 and (sections.first - corner) == round(sections.first - corner):
        ways["average"] = (-corner, np.full(factor, 1 / factor))
    return ways or {"between": (0.0, np.zeros(0))}


def consistency(
    candidate: Candidate, sections: Sections, comparison: Comparison, data_range: float
) -> dict[str, dict[str, float]]:
    """Difference between a volume, projected back, and the input.

    Args:
        candidate: the volume.
        sections: the input.
        comparison: the region that counts; only sections whose planes lie wholly in it are compared.
        data_range: grey values that the PSNR refers to.

    Returns:
        Per way of projections(): ``rmse`` in grey values, ``psnr_db`` (infinite if identical), and how many ``sections`` were
        compared.
    """
    result = {}
    depth, rows, columns = comparison.region
    for way, (offset, weights) in projections(sections).items():
        starts = sections.first + sections.step * np.arange(sections.count) + offset
        length = len(weights) or 2
        inside = np.flatnonzero((starts >= depth.start) & (np.floor(starts) + length <= depth.stop))
        if not inside.size:
            continue
        squares = 0.0
        for chunk, band in _chunks(inside, rows, comparison, sections.step):
            begin, end = math.floor(starts[chunk[0]]), math.floor(starts[chunk[-1]]) + length
            matrix = _matrix(starts[chunk] - begin, weights, end - begin)
            projected = np.tensordot(matrix, candidate.block((slice(begin, end), band, columns)), axes=1)
            difference = projected - sections.read(int(chunk[0]), int(chunk[-1]) + 1, band, columns)
            squares += float(np.vdot(difference, difference))
        rmse = math.sqrt(squares / (inside.size * comparison.shape[1] * comparison.shape[2]))
        psnr = 20 * math.log10(data_range / rmse) if rmse > 0 else math.inf
        result[way] = {"rmse": rmse, "psnr_db": psnr, "sections": int(inside.size)}
    return result


def _matrix(starts: NDArray[np.float64], weights: NDArray[np.float64], planes: int) -> NDArray[np.float64]:
    """Weights (sections, planes) of every section that starts at a plane of a block, whole or (without weights) between two."""
    matrix = np.zeros((len(starts), planes))
    for row, start in zip(matrix, starts, strict=True):
        first = math.floor(start)
        share = start - first
        row[first : first + (len(weights) or 2)] = weights if len(weights) else (1 - share, share)
    return matrix


def _chunks(
    inside: NDArray[np.intp], rows: slice, comparison: Comparison, step: float
) -> Iterator[tuple[NDArray[np.intp], slice]]:
    planes, band = comparison.block_sides()
    count = max(1, int(planes / step))
    for k in range(0, len(inside), count):
        for y in range(rows.start, rows.stop, band):
            yield inside[k : k + count], slice(y, min(y + band, rows.stop))
