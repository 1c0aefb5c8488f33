"""The axial operator against sums by hand, and the network that undoes it."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter1d

from networks.noise import Noise, measured_noise
from networks.plane_restorer import PlaneRestorer
from networks.sections import Sections, gaussian_profile, profile_of, resampled_rows
from networks.views import xz_planes, xz_volume, yz_planes, yz_volume
from utils.errors import UserError


def images(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_pick_and_mean_see_their_planes():
    x = images(2, 1, 24, 5)
    picked, truth = Sections(8).pair(x)
    assert torch.equal(picked, x[:, :, 4::8]) and torch.equal(truth, x)
    averaged, _ = Sections(8, "mean").pair(x)
    torch.testing.assert_close(averaged[:, :, 1], x[:, :, 8:16].mean(2))


def test_a_profile_blurs_before_the_sections_are_taken():
    x = images(1, 2, 64, 3)
    sections = Sections(4, "mean", gaussian_profile(1.5))
    made, truth = sections.pair(x)
    blurred = torch.from_numpy(gaussian_filter1d(x.numpy(), 1.5, axis=2, truncate=4))
    m = sections.margin
    assert m == 8 and torch.equal(truth, x[:, :, m:-m])
    torch.testing.assert_close(made[:, :, 0], blurred[:, :, m : m + 4].mean(2))


def test_a_profile_of_its_own_is_not_mirrored_twice():
    taps = profile_of(0.0, [0.2, 0.7, 0.1])
    x = torch.zeros(1, 1, 9, 1)
    x[0, 0, 4] = 1
    made, _ = Sections(1, profile=taps).pair(x)
    np.testing.assert_allclose(made[0, 0, :, 0], [0, 0, 0.1, 0.7, 0.2, 0, 0], atol=1e-6)  # a correlation: tap 0 looks backwards


def test_noise_is_what_averaging_removed():
    torch.manual_seed(0)
    noise = torch.randn(4, 1, 256, 64)
    made, _ = Sections(8, "mean", noise=Noise(1.0)).pair(noise)
    assert made.std() == pytest.approx(1.0, abs=0.03)


@pytest.mark.parametrize("sampling", ["pick", "mean"])
def test_sections_of_clean_images_get_all_of_it(sampling):
    torch.manual_seed(0)
    made, _ = Sections(8, sampling, noise=Noise(0.04)).pair(torch.zeros(4, 1, 256, 64), clean=True)
    assert made.std().item() == pytest.approx(0.2, rel=0.05)


def test_noise_is_measured_where_texture_is_least():
    rng = np.random.default_rng(0)
    places = np.linspace(0, 40, 240)
    smooth = gaussian_filter1d(np.sin(places)[:, None] + np.sin(0.7 * places)[None], 3, axis=0)[None].repeat(4, 0)
    smooth = 500 * (smooth - smooth.min())
    deviation = np.sqrt(400 + 2.0 * smooth)
    found = measured_noise(torch.from_numpy(smooth + deviation * rng.standard_normal(smooth.shape)))
    expected = torch.from_numpy(deviation) ** 2
    ratio = found.variance(torch.from_numpy(smooth)) / expected
    assert 0.75 < float(ratio.quantile(0.05)) and float(ratio.quantile(0.95)) < 1.25
    assert measured_noise(torch.full((2, 40, 40), 0.3)).offset == pytest.approx(0, abs=1e-9)


def test_a_fractional_factor_has_whole_planes_and_its_true_distance():
    sections = Sections(300 / 65)
    assert sections.planes == 5 and sections.step == pytest.approx(300 / 65 / 5)
    rows = torch.arange(60, dtype=torch.float64).view(1, 1, -1, 1)
    made, truth = sections.pair(rows)
    assert made.shape[2] * 5 == truth.shape[2]
    distances = made[0, 0, 1:, 0] - made[0, 0, :-1, 0]
    torch.testing.assert_close(distances[1:-1], torch.full_like(distances[1:-1], 300 / 65))


def test_resampling_is_exact_for_parabolas():
    rows = (torch.arange(40, dtype=torch.float64) ** 2).view(1, 1, -1, 1)
    made = resampled_rows(rows, 0.8, 40)[0, 0, 3:, 0]
    places = (torch.arange(3, 40, dtype=torch.float64) + 0.5) * 0.8 - 0.5
    torch.testing.assert_close(made, places**2)


@pytest.mark.parametrize("sampling", ["pick", "mean"])
def test_interpolation_keeps_lines_and_their_place(sampling):
    sections = Sections(8, sampling)
    line = (torch.arange(96, dtype=torch.float64) * 0.1).view(1, 1, -1, 1)
    made, truth = sections.pair(line)
    torch.testing.assert_close(sections.interpolated(made)[:, :, 16:-16], truth[:, :, 16:-16])


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        ({"factor": 17}, "between 1 and 16"),
        ({"factor": 1}, "--axial_sigma"),
        ({"factor": 4, "sampling": "max"}, "pick, mean"),
    ],
)
def test_what_is_no_operator_is_refused(values, rule):
    with pytest.raises(UserError, match=rule):
        Sections(**values)


def lively(sections, **size):
    torch.manual_seed(1)
    network = PlaneRestorer(sections, **size).double().eval()
    torch.nn.init.normal_(network.last.weight, std=0.1)
    return network


@pytest.mark.parametrize("factor", [1, 3, 8])
def test_an_untrained_network_interpolates(factor):
    sections = Sections(factor, profile=gaussian_profile(1.0))
    x = images(2, 2, 6, 10).float()
    torch.testing.assert_close(PlaneRestorer(sections, channels=2, width=8, blocks=1)(x), sections.interpolated(x))


@pytest.mark.parametrize("factor", [1, 4])
def test_a_part_with_its_halo_is_restored_as_in_the_whole(factor):
    sections = Sections(factor, profile=gaussian_profile(0.5))
    network = lively(sections, width=4, blocks=2, fine_width=3)
    rows, columns = network.halo
    x = images(1, 1, 2 * rows + 3, 2 * columns + 4)
    with torch.no_grad():
        whole = network(x)
        a, b = 2, 2
        part = network(x[:, :, a : a + 2 * rows + 1, b : b + 2 * columns + 2])
    inner = part[:, :, rows * factor : (rows + 1) * factor, columns : columns + 2]
    place = whole[:, :, (a + rows) * factor : (a + rows + 1) * factor, b + columns : b + columns + 2]
    torch.testing.assert_close(inner, place, rtol=0, atol=1e-12)


def test_planes_and_volumes_are_inverse():
    volume = images(2, 1, 2, 3, 5)
    assert torch.equal(xz_volume(xz_planes(volume), 2), volume) and torch.equal(yz_volume(yz_planes(volume), 2), volume)
    assert xz_planes(volume).shape == (6, 1, 5, 2) and yz_planes(volume).shape == (4, 1, 5, 3)
    assert torch.equal(xz_planes(volume)[4, 0, :, 1], volume[1, 0, 1, 1])
