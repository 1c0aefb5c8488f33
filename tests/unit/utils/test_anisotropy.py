"""Where spectra fall to the noise, against blur and sampling that are known."""

import os
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from utils.spectra import anisotropy
from volumes.open import open_volume


def scene(sigma, shape=(64, 64, 64), noise=0.02, seed=0):
    """White structure of variance 1 under a Gaussian blur, and white noise."""
    rng = np.random.default_rng(seed)
    blurred = gaussian_filter(rng.standard_normal(shape), sigma, mode="wrap")
    return (blurred / blurred.std() + noise * rng.standard_normal(shape)).astype(np.float32)


def test_equal_blur_has_ratio_one():
    found = anisotropy(scene(1.5))
    assert found.ratio(None) == pytest.approx(1, abs=0.08)
    assert not found.undersampled


@pytest.mark.parametrize("factor", [1.5, 2, 3])
def test_the_ratio_is_that_of_the_blurs(factor):
    """A Gaussian's power is exp(-(2π f σ)²): it meets any level at f ∝ 1/σ (the other axes only scale it)."""
    assert anisotropy(scene((1.5 * factor, 1.5, 1.5))).ratio(None) == pytest.approx(factor, rel=0.12)


def test_voxel_sizes_turn_planes_into_lengths():
    thinned = scene(2.5, (160, 64, 64))[::2]
    found = anisotropy(thinned)
    assert found.ratio((2.0, 1.0, 1.0)) == pytest.approx(1, abs=0.1)
    assert found.ratio(None) == found.per_voxel == pytest.approx(0.5, abs=0.05)


def test_missing_planes_show_as_undersampling():
    isotropic = scene(1.5, (256, 48, 48))
    assert not anisotropy(isotropic).undersampled
    found = anisotropy(isotropic[::8])
    assert found.undersampled and found.cutoff[0] > 0.45
    assert found.ratio((8.0, 1.0, 1.0)) > 2


def test_the_floor_is_the_variance_of_the_noise():
    found = anisotropy(scene(2.5, noise=0.1) * 7)
    assert found.floor == pytest.approx(0.49, rel=0.1)


@pytest.mark.parametrize("volume", [np.zeros((7, 40, 40)), np.ones((16, 16, 16)), np.ones((16, 16, 7))])
def test_boxes_that_say_nothing(volume):
    assert anisotropy(volume) is None


@pytest.mark.skipif("ISOSCOPE_SAMPLES" not in os.environ, reason="ISOSCOPE_SAMPLES names no folder with real volumes")
@pytest.mark.parametrize(
    ("name", "x", "y", "z"),
    [
        ("fibsem_fib25_quickstart", 0.26, 0.34, 0.38),
        ("mesospim_nuclei_c5", 0.31, 0.30, 0.27),
        ("nuclei_cyto_rgb3d_ch0", 0.39, 0.42, 0.26),
        ("nuclei_cyto_rgb3d_ch1", 0.37, 0.42, 0.24),
    ],
)
def test_real_volumes_as_their_description_says(name, x, y, z):
    found = anisotropy(open_volume(Path(os.environ["ISOSCOPE_SAMPLES"]) / f"{name}.tif")[:])
    assert found.cutoff == pytest.approx((z, y, x), abs=0.012)
