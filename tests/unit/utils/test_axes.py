"""Layouts by hand, for arrays and tensors alike, on unequal sizes; and nobody else moves an axis."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch

from utils import axes

ROOT = Path(__file__).resolve().parents[3]
PLACES = {"networks/views.py", "utils/axes.py"}
MOVES = {"movedim", "moveaxis", "transpose", "permute", "swapaxes", "swapdims", "rollaxis", "rearrange"}
# .T and .mT are not among them: matrices are transposed in linear algebra, and no axis of space moves


def test_axes_move_in_one_place():
    for path in sorted(ROOT.rglob("*.py")):
        place = path.relative_to(ROOT).as_posix()
        if place in PLACES or place.split("/")[0] in ("tests", ".venv"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else None
            assert name not in MOVES, f"{place}:{node.lineno} moves axes by {name}; add a layout to one of {sorted(PLACES)}"


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
@pytest.mark.parametrize(
    ("layout", "order"),
    [
        (axes.to_memory, (0, 2, 3, 1)),
        (axes.to_file, (0, 3, 1, 2)),
        (axes.channels_last, (0, 2, 3, 1)),
        (axes.channels_first, (0, 3, 1, 2)),
        (axes.levels_first, (3, 0, 1, 2)),
        (axes.levels_last, (1, 2, 3, 0)),
        (lambda values: axes.transposed(values, 1), (0, 2, 1, 3)),
        (lambda values: axes.transposed(values, 2), (0, 1, 3, 2)),
    ],
)
def test_layouts(kind, layout, order):
    values = np.arange(2 * 3 * 5 * 7).reshape(2, 3, 5, 7)
    np.testing.assert_array_equal(layout(kind(values)), values.transpose(order))


def test_layouts_of_three_axes():
    values = np.arange(30).reshape(2, 3, 5)
    for axis in range(3):
        np.testing.assert_array_equal(axes.planes_across(values, axis), np.moveaxis(values, axis, 0))
        np.testing.assert_array_equal(axes.lines_along(values, axis), np.moveaxis(values, axis, -1))
    np.testing.assert_array_equal(axes.as_planes(values, "yxz"), values.transpose(2, 0, 1))
    np.testing.assert_array_equal(axes.to_file(axes.to_memory(values)), values)


def test_layouts_are_views():
    values = np.zeros((2, 3, 5))
    assert np.shares_memory(axes.to_memory(values), values)
