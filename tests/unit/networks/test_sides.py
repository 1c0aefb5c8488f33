"""Two sides of a volume become one: each counts for the in-plane frequencies that it sees."""

import math

import pytest
import torch

from networks.sides import REACH, mean_of_sides

SIDE = 4 * REACH


def wave(period, axis):
    """A wave along X (2) or Y (3), (1, 1, SIDE, SIDE, 2)."""
    places = torch.arange(SIDE, dtype=torch.float32).view([-1 if a == axis else 1 for a in range(5)])
    return torch.cos(2 * math.pi * places / period).expand(1, 1, SIDE, SIDE, 2).clone()


@pytest.mark.parametrize(("axis", "expected"), [(2, 1.0), (3, 0.0)])
def test_a_wave_is_taken_from_the_planes_that_show_it(axis, expected):
    """XZ planes show waves along X; what they say of a wave along Y is left to YZ planes."""
    seen = wave(8.0, axis)
    middle = (..., slice(REACH, -REACH), slice(REACH, -REACH), slice(None))
    found, other = mean_of_sides(seen, 0 * seen)[middle], mean_of_sides(0 * seen, seen)[middle]
    torch.testing.assert_close(found, expected * seen[middle], atol=0.06, rtol=0)
    torch.testing.assert_close(found + other, seen[middle], atol=1e-5, rtol=0)


def test_what_is_the_same_everywhere_counts_alike():
    flat = torch.ones(2, 2, SIDE, SIDE, 3)
    made = mean_of_sides(flat, 3 * flat)
    torch.testing.assert_close(made[:, :, REACH:-REACH, REACH:-REACH], 2 * flat[:, :, REACH:-REACH, REACH:-REACH])


def test_sides_that_agree_are_not_touched_and_a_voxel_reaches_no_further_than_it_says():
    one = torch.rand(1, 2, SIDE, SIDE, 3)
    torch.testing.assert_close(mean_of_sides(one, one), one)
    changed = one.clone()
    changed[:, :, 2 * REACH, 2 * REACH, 1] += 5
    moved = (mean_of_sides(changed, one) - mean_of_sides(one, one)).abs().amax((0, 1)) > 1e-5
    places = moved.nonzero()
    assert places[:, 2].unique().tolist() == [1]
    assert (places[:, :2] - 2 * REACH).abs().max() <= REACH


def test_exchanged_axes_exchange_the_sides():
    one, other = torch.rand(1, 1, 20, 24, 3), torch.rand(1, 1, 20, 24, 3)
    there = mean_of_sides(other.transpose(2, 3), one.transpose(2, 3)).transpose(2, 3)
    torch.testing.assert_close(there, mean_of_sides(one, other))
