"""Grain: noise that belongs to places, the network that uses it, and the loss that sees stripes."""

import math

import pytest
import torch

from networks.grain import GrainMaker, noise_at
from networks.losses import power_error
from networks.sections import Sections


def places(*spans):
    return [torch.arange(start, stop)[None] for start, stop in spans]


def test_noise_of_a_part_is_that_of_the_whole():
    whole = noise_at(places((0, 12), (100, 120), (2**31, 2**31 + 9)), 2)
    part = noise_at(places((3, 7), (110, 112), (2**31 + 1, 2**31 + 4)), 2)
    assert torch.equal(part, whole[:, :, 3:7, 10:12, 1:4])


def test_noise_is_gaussian_and_neighbours_know_nothing_of_each_other():
    noise = noise_at(places((0, 64), (0, 64), (0, 64)), 2)[0]
    assert abs(noise.mean()) < 0.01 and abs(noise.std() - 1) < 0.01
    assert abs(noise.pow(4).mean() - 3) < 0.1 and noise.abs().max() < 6
    power = torch.fft.fftn(noise, dim=(1, 2, 3)).abs().square() / noise[0].numel()
    assert power.max() < 25  # of 524 288 exponential numbers of mean 1, none is twice the largest to be expected
    assert abs((noise[0] * noise[1]).mean()) < 0.01
    assert not torch.equal(noise[0].transpose(0, 1), noise[0])


def grain_maker(sections, channels=1):
    torch.manual_seed(0)
    network = GrainMaker(sections, channels, width=4)
    for block in network.body:
        torch.nn.init.normal_(block.second.weight)
    torch.nn.init.normal_(network.last.weight)
    return network.eval()


def test_sections_that_are_planes_get_no_grain():
    volume, where = torch.rand(1, 2, 16, 18, 24), places((0, 16), (0, 18), (4, 28))
    grain = grain_maker(Sections(8.0), 2)(volume, where)
    assert grain.shape == volume.shape
    assert (grain[..., ::8] == 0).all() and (grain[..., 1:8] != 0).all()
    assert (grain_maker(Sections(8.0, "mean"), 2)(volume, where) != 0).all()
    assert (grain_maker(Sections(8.0, profile=(0.25, 0.5, 0.25)), 2)(volume, where) != 0).all()


def test_what_is_beyond_the_halo_is_not_seen():
    network, side = grain_maker(Sections(8.0)), 48
    volume = torch.rand(1, 1, side, 8, 8)
    whole = network(volume, places((0, side), (0, 8), (0, 8)))
    for halo, equal in ((network.halo, True), (network.halo - 1, False)):
        seen = slice(24 - halo, side)
        part = network(volume[:, :, seen], places((24 - halo, side), (0, 8), (0, 8)))
        assert torch.allclose(part[:, :, halo:], whole[:, :, 24:], atol=1e-6) == equal


@torch.no_grad()
def test_grain_knows_no_place_in_plane():
    """Stripes of two pixels would differ between even and odd pixels."""
    grain = grain_maker(Sections(8.0))(torch.zeros(1, 1, 96, 96, 40), places((0, 96), (0, 96), (0, 40)))[0, 0, 16:-16, 16:-16]
    for turned in (grain, grain.transpose(0, 1)):
        assert turned[::2].var() / turned[1::2].var() == pytest.approx(1, abs=0.1)
        assert abs(turned[::2].mean() - turned[1::2].mean()) < 0.1 * turned.std()


def test_equal_power_is_no_error_and_four_times_as_much_is_its_logarithm():
    torch.manual_seed(0)
    slices = torch.rand(200, 1, 64, 64)
    assert power_error(slices, slices) < 0.03  # both orientations of the truth count
    assert power_error(2 * slices, slices) == pytest.approx(math.log(4), abs=0.03)
    assert power_error(torch.rand(200, 1, 40, 64), slices) < 0.06


def test_stripes_of_two_pixels_are_an_error_that_equal_power_elsewhere_does_not_hide():
    torch.manual_seed(0)
    slices = torch.randn(200, 1, 64, 64)
    stripes = slices + 2 * (torch.arange(64) % 2).float()
    assert power_error(stripes, slices) > 2 * power_error(torch.randn(200, 1, 64, 64), slices)


def test_too_few_frequencies_are_refused():
    with pytest.raises(ValueError, match="too few"):
        power_error(torch.rand(1, 1, 3, 64), torch.rand(1, 1, 64, 64))
