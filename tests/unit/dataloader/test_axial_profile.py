"""The axial profile that is estimated from volumes is the one they were made with; where it cannot be known, that is said."""

import numpy as np
import pytest
from scipy.ndimage import correlate1d, gaussian_filter

from dataloader.axial_profile import estimated_profile, full_width, side_spectra
from dataloader.phantom.phantom import ForwardModel, PhantomScene, observe

SCENES = [PhantomScene(seed, (128, 128, 128)) for seed in range(2)]
CAMERA = ForwardModel(1, "pick", (0.0, 0.0, 0.0))


@pytest.fixture(scope="module")
def truth():
    """Phantoms with 32 planes more on either side."""
    return [np.stack(list(scene.planes(-32, 160))) for scene in SCENES]


def gaussian(sigma):
    place = np.arange(-np.ceil(4 * sigma), np.ceil(4 * sigma) + 1)
    weights = np.exp(-0.5 * np.square(place / sigma)) if sigma else np.ones(1)
    return weights / weights.sum()


def transfer(taps, frequency):
    place = np.arange(len(taps)) - len(taps) // 2
    return np.asarray(taps) @ np.cos(2 * np.pi * place[:, None] * frequency)


def cored(share, core, tails):
    """A narrow core on long tails."""
    wide = gaussian(tails)
    narrow = np.pad(gaussian(core), (len(wide) - len(gaussian(core))) // 2)
    return share * narrow + (1 - share) * wide


def blurred(truth, profile, seed=0):
    rng = np.random.default_rng(seed)
    return [CAMERA.record(correlate1d(one, profile, axis=0)[32:-32], rng) for one in truth]


def estimate(volumes, step, sampling="pick"):
    return estimated_profile([found for volume in volumes if (found := side_spectra(volume, step))], sampling)


@pytest.mark.parametrize(("factor", "sampling"), [(4, "pick"), (8, "average")])
def test_the_microscope_of_the_phantom(factor, sampling):
    """Its point-spread function is a Gaussian of 2.5 voxels along z and 0.7 in-plane: beyond that one of 2.4."""
    sections = [np.stack(list(observe(scene, ForwardModel(factor, sampling)))) for scene in SCENES]
    found = estimate(sections, factor, "mean" if sampling == "average" else "pick")
    expected = gaussian((2.5**2 - 0.7**2) ** 0.5)
    assert np.abs(found.fitted - transfer(expected, found.frequency)).max() < 0.05
    assert found.width == pytest.approx(full_width(expected), rel=0.1) and found.width_error < 0.1 * found.width
    assert not list(found.doubts()) and not found.no_blur
    assert sum(found.taps) == pytest.approx(1) and found.taps == found.taps[::-1] and min(found.taps) >= 0


@pytest.mark.parametrize("profile", [gaussian(2.5), cored(0.5, 0.6, 4.0), cored(0.4, 0.0, 3.0)])
def test_profiles_of_narrow_core_and_long_tails(truth, profile):
    found = estimate(blurred(truth, profile), 1)
    assert np.abs(found.fitted - transfer(profile, found.frequency)).max() < 0.05
    assert found.taps[len(found.taps) // 2] == pytest.approx(profile.max(), rel=0.1)
    assert not list(found.doubts())


def test_it_differs_from_the_sampling_that_is_said(truth):
    """Means that are taken for single planes are blurred more."""
    sections = [one[32:-32].reshape(32, 4, 128, 128).mean(1) for one in truth]
    assert estimate(sections, 4, "mean").no_blur
    assert estimate(sections, 4, "pick").width > 2


def test_a_distance_that_is_a_fraction(truth):
    """Sections 2.5 voxels apart, interpolated between planes."""
    position = np.arange(51) * 2.5
    low, part = position.astype(int), (position % 1)[:, None, None]
    smooth = [correlate1d(one, gaussian(2.0), axis=0)[32:-31] for one in truth]
    sections = [(1 - part) * one[low] + part * one[low + 1] for one in smooth]
    found = estimate(sections, 2.5)
    assert np.abs(found.fitted - transfer(gaussian(2.0), found.frequency)).max() < 0.08


def test_what_is_not_blurred_is_said_to_be_sharp(truth):
    assert estimate([one[32:-32] for one in truth], 1).no_blur


def test_noise_of_the_sections_is_not_taken_for_detail(truth):
    """Noise that is smooth in-plane and white along z."""
    rng = np.random.default_rng(1)
    noise = [gaussian_filter(rng.normal(0, 0.1, (128, 128, 128)), (0, 0.8, 0.8)) for _ in truth]
    volumes = [correlate1d(one, gaussian(2.5), axis=0)[32:-32] + more for one, more in zip(truth, noise, strict=True)]
    found = estimate(volumes, 1)
    assert np.abs(found.fitted - transfer(gaussian(2.5), found.frequency)).max() < 0.06 and not list(found.doubts())


def test_noise_alone_tells_nothing():
    volume = np.random.default_rng(0).normal(100, 10, (64, 96, 96))
    assert "rise above the noise" in next(estimate([volume], 1).doubts())


def test_a_specimen_with_a_preferred_axis_is_recognised():
    volume = gaussian_filter(np.random.default_rng(0).standard_normal((80, 80, 80)), (2, 3.5, 2))
    assert any("preferred axis" in doubt for doubt in estimate([volume], 1).doubts())


def test_sharper_along_z_than_in_plane_is_doubted():
    volume = gaussian_filter(np.random.default_rng(0).standard_normal((96, 96, 96)), (1.5, 2, 2))
    assert any("z is sharper" in doubt for doubt in estimate([volume], 1).doubts())


def test_nothing_is_said_of_too_little():
    rng = np.random.default_rng(0)
    for volume, step in ((rng.normal(size=(7, 64, 64)), 1), (np.ones((64, 64, 64)), 1), (rng.normal(size=(32, 40, 40)), 8)):
        assert side_spectra(volume, step) is None
    assert estimated_profile([], "pick") is None


def test_volumes_of_other_windows_do_not_stop_it(truth):
    volumes = [*blurred(truth, gaussian(2.5)), np.random.default_rng(0).normal(size=(20, 30, 30))]
    assert estimate(volumes, 1).taps == estimate(volumes[:2], 1).taps
