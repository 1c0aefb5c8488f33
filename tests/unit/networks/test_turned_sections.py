"""A volume turned so that X is coarse: sections lie where the operator says, and only acquired slices judge the result."""

import pytest
import torch

from networks.sections import Sections, gaussian_profile
from networks.turned import acquired_error, turned_sections
from networks.views import to_slices, to_volume, xz_planes, xz_volume

OPERATORS = [
    Sections(4.0),
    Sections(4.0, "mean"),
    Sections(4.0, "pick", gaussian_profile(1.0)),
    Sections(1.0, "pick", gaussian_profile(1.5)),
    Sections(3.0, "mean", gaussian_profile(0.5)),
]


def specimen(sections, count=8, side=36):
    """An isotropic volume (1, 1, X, Y, Z), and the slices that the operator makes of it."""
    depth = (count + 4 * sections.lost) * sections.planes
    volume = torch.rand(1, 1, side, side, depth, generator=torch.Generator().manual_seed(2))
    acquired = xz_volume(sections.of_planes(xz_planes(volume)), 1)
    return volume[..., sections.lost * sections.planes : depth - sections.lost * sections.planes], acquired


def restored_without_fault(volume, sections):
    """What an ideal model makes of the turned volume: (B, C, Z, Y, X) without what the profile needs at both ends of X."""
    truth = to_volume(sections.truth(to_slices(volume)), 1)
    return truth.transpose(2, 4)


def test_planes_across_x_are_the_sections_of_the_turned_volume():
    volume, _ = specimen(Sections(4.0))
    turned = to_volume(turned_sections(volume, Sections(4.0)), 1)
    assert turned.shape == (1, 1, 32, 36, 9)
    assert torch.equal(turned[0, 0, :, :, 3], volume[0, 0, 14].T)  # plane 4·3 + 2 of X


@pytest.mark.parametrize("sections", OPERATORS)
def test_the_truth_has_no_error_and_anything_else_has(sections):
    volume, acquired = specimen(sections)
    made = restored_without_fault(volume, sections)
    assert acquired_error(made, acquired, sections) < 1e-6
    assert acquired_error(made + 0.1, acquired, sections) == pytest.approx(0.1, abs=1e-4)


def test_planes_that_nobody_acquired_judge_nothing():
    sections = Sections(4.0)
    volume, acquired = specimen(sections)
    made = restored_without_fault(volume, sections)
    made[:, :, [k for k in range(32) if k % 4 != 2]] = 9
    assert acquired_error(made, acquired, sections) == 0


def test_a_fractional_factor_has_planes_closer_than_pixels():
    sections = Sections(300 / 65, "mean", gaussian_profile(1.2))
    turned = turned_sections(torch.rand(2, 1, 64, 40, 35), sections)
    volume = to_volume(turned, 2)
    assert volume.shape[:4] == (2, 1, 34, 40)
    made = torch.zeros(2, 1, 34, 40, volume.shape[-1] * 5)
    error = acquired_error(made, torch.full((2, 1, 64, 40, 7), 0.5), sections)
    assert error == pytest.approx(0.5, abs=1e-5)
