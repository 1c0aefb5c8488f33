"""The lattice: what it covers, what it sees, and that it depends on nothing but the volume."""

import numpy as np
import pytest

from inference.tiling import LOCAL_WINDOW, Axis, Tile, local_axis, round_up, training_axis
from utils.boxes import reflected


@pytest.mark.parametrize("size", [1, 3, 8, 9, 16, 17, 31, 100])
@pytest.mark.parametrize(("core", "before", "after"), [(4, 0, 0), (5, 3, 3), (6, 1, 2), (16, 4, 4)])
@pytest.mark.parametrize("full", [False, True])
def test_cores_cover_once_and_windows_hold_their_halo(size, core, before, after, full):
    axis = Axis(size, core, before, after, full)
    tiles = [axis[n] for n in range(len(axis))]
    assert [place for tile in tiles for place in range(*tile.core)] == list(range(size))
    for tile in tiles:
        start, stop = tile.window
        assert 0 <= start <= max(0, tile.core[0] - before) and min(size, tile.core[1] + after) <= stop <= size
        if full:
            assert stop - start == min(size, before + core + after)
        assert tile.margins == (tile.core[0] - start, stop - tile.core[1])


def test_one_window_by_hand():
    axis = Axis(10, 4, 2, 1)
    assert axis[1] == Tile((4, 8), (2, 9))
    assert axis[2] == Tile((8, 10), (6, 10))
    with pytest.raises(IndexError):
        axis[3]


def test_training_tiles_are_crops_with_a_quarter_overlap():
    axis = training_axis(50, 16)
    windows = [axis[n].window for n in range(len(axis))]
    assert all(stop - start == 16 for start, stop in windows)
    assert windows == [(0, 16), (10, 26), (22, 38), (34, 50)]
    assert axis[3].core == (36, 50)
    assert len(training_axis(16, 16)) == len(training_axis(7, 16)) == 1
    assert training_axis(7, 16)[0].window == (0, 7)


@pytest.mark.parametrize("full", [False, True])
def test_windows_of_a_local_network_are_few_and_alike(full):
    for size in range(1, 4 * LOCAL_WINDOW):
        axis = local_axis(size, 9, 10, full=full)
        sides = [axis[n].window[1] - axis[n].window[0] for n in range(len(axis))]
        assert max(sides) <= LOCAL_WINDOW and len(axis) == (1 if size <= LOCAL_WINDOW else len(axis))
        if size <= LOCAL_WINDOW:
            assert sides == [size]
        else:  # no fewer windows would do, and no shorter ones
            assert (len(axis) - 1) * (LOCAL_WINDOW - 19) < size and sum(sides) <= size + len(axis) * 20
            assert not full or len(set(sides)) == 1


def test_blending_weights_sum_to_one_after_normalisation_and_never_vanish():
    axis = training_axis(50, 16)
    total = np.zeros(50)
    for number in range(len(axis)):
        weights = axis.weights(number)
        assert weights.min() > 0 and weights.max() == 1
        total[slice(*axis[number].window)] += weights
    assert total.min() >= 1 - 1e-6
    assert axis.weights(0)[0] == axis.weights(len(axis) - 1)[-1] == 1


def test_tiles_that_meet_a_span():
    axis = Axis(20, 5, 3, 3)
    assert list(axis.covering((4, 11))) == [0, 1, 2]
    assert list(axis.covering((5, 10))) == [1]
    assert list(axis.reaching((5, 7))) == [0, 1]


@pytest.mark.parametrize("size", [1, 2, 3, 5, 11])
def test_reflection_is_numpys(size):
    padded = np.pad(np.arange(size), (0, 8), mode="reflect") if size > 1 else np.zeros(9)
    np.testing.assert_array_equal(reflected((0, size + 8), size), padded)


def test_rounding_up():
    assert [round_up(n, 8) for n in (1, 8, 9)] == [8, 8, 16]
