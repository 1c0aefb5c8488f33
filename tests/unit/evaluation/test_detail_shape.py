"""How long detail is along z and in-plane, and the rings that a wrong profile makes: measured, and said in words."""

import numpy as np
import pytest
from scipy.fft import fft, ifft
from scipy.ndimage import gaussian_filter, gaussian_filter1d

from evaluation.report import verdict
from evaluation.spectra import detail_shape


@pytest.fixture(scope="module")
def bodies():
    """Bright bodies on a dark background, (96, 80, 80)."""
    rng = np.random.default_rng(0)
    values = np.zeros((96, 80, 80))
    values[tuple(rng.integers(0, side, 400) for side in values.shape)] = 1
    return gaussian_filter(values, 1.5, mode="wrap")


def sharpened(volume, sigma, noise=1e-3):
    """Wiener's deconvolution along z by a Gaussian."""
    transfer = np.exp(-2 * (np.pi * sigma * np.fft.fftfreq(len(volume))) ** 2)[:, None, None]
    return ifft(fft(volume, axis=0) * transfer / (transfer**2 + noise), axis=0).real


def said(volume, undone):
    own = {"decorrelation": {axis: {"period_voxels": None} for axis in "zyx"}, "anisotropy_db": None}
    return " ".join(
        verdict({"reconstruction": own | {"detail": {"profile_undone": undone, **detail_shape(volume)}}})["sentences"]
    )


def test_what_is_isotropic_is_as_long_as_wide(bodies):
    found = detail_shape(bodies)
    assert found["z"]["half_width"] == pytest.approx(found["y"]["half_width"], rel=0.1)
    text = said(bodies, True)
    assert "Detail is as long along z as in-plane" in text and "rings" not in text and "too wide" not in text


def test_what_is_blurred_along_z_is_longer(bodies):
    assert "times as long along z as in-plane" in said(gaussian_filter1d(bodies, 3, axis=0, mode="wrap"), False)


def test_a_profile_that_is_too_wide_leaves_rings_and_short_bodies(bodies):
    blurred = gaussian_filter1d(bodies, 1.5, axis=0, mode="wrap")
    wrong, right = sharpened(blurred, 2.5), sharpened(blurred, 1.5)
    assert detail_shape(wrong)["z"]["lobe"] < -0.1
    assert "Dark rings" in said(wrong, True) and "too wide" in said(wrong, True)
    assert "Dark rings" not in said(right, True) and "Detail is as long along z as in-plane" in said(right, True)
    assert "Dark rings" not in said(wrong, False)  # structure that is found, not made


def test_lengths_are_in_shortest_sides(bodies):
    whole, thinned = detail_shape(bodies), detail_shape(bodies[::2], (2.0, 1.0, 1.0))
    for name in "zyx":
        assert thinned[name]["half_width"] == pytest.approx(whole[name]["half_width"], rel=0.15)


def test_a_volume_of_one_value_has_no_detail():
    assert detail_shape(np.full((20, 20, 20), 7))["z"]["lobe"] == 0
