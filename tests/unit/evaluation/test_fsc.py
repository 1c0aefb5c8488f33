"""Fourier shell correlation, spectra and decorrelation against closed forms and the full FFT."""

import numpy as np
import pytest

from evaluation.spectra import FourierShells, ShellCurve, axial_excess, decorrelation_cutoff, octave_power, tapered
from utils.spectra import power_spectrum


def correlation(a, b, spacing=(1, 1, 1), axis=None):
    shells = FourierShells(a.shape, spacing)
    return shells.correlation(shells.transform(a), shells.transform(b), axis)


def noise(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def low_passed(volume, cutoff, axes=(0, 1, 2)):
    """Every Fourier coefficient beyond the cut-off (cycles per voxel) is removed."""
    grids = np.meshgrid(*[np.fft.fftfreq(size) for size in volume.shape], indexing="ij")
    radius = np.sqrt(sum(grids[axis] ** 2 for axis in axes))
    return np.fft.ifftn(np.fft.fftn(volume) * (radius <= cutoff)).real


def full_fft_reference(a, b, spacing, axis):
    """The definition, with all coefficients and a loop over shells."""
    spectra = [np.fft.fftn(volume - volume.mean()) for volume in (a, b)]
    steps = [1 / (size * step) for size, step in zip(a.shape, spacing, strict=True)]
    grids = np.meshgrid(*[np.fft.fftfreq(size, step) for size, step in zip(a.shape, spacing, strict=True)], indexing="ij")
    radius = np.sqrt(sum(grid**2 for grid in grids))
    shell = np.floor(radius / max(steps) + 0.5)
    nyquist = min(0.5 / step for step in spacing) if axis is None else 0.5 / spacing[axis]
    inside = np.ones(a.shape, bool) if axis is None else np.abs(grids[axis]) >= np.cos(np.deg2rad(20)) * radius - 1e-9
    values = []
    for number in range(1, int(nyquist / max(steps) + 1e-6) + 1):
        chosen = (shell == number) & inside
        x, y = spectra[0][chosen], spectra[1][chosen]
        values.append(np.sum(x * y.conj()).real / np.sqrt(np.sum(abs(x) ** 2) * np.sum(abs(y) ** 2)) if chosen.any() else np.nan)
    return np.array(values)


@pytest.mark.parametrize("shape", [(16, 16, 16), (15, 17, 13), (12, 15, 18), (9, 20, 21)])
@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (0.04, 0.013, 0.0171)])
@pytest.mark.parametrize("axis", [None, 0, 1, 2])
def test_half_spectrum_equals_full_fft(shape, spacing, axis):
    a = noise(shape) + 3
    b = a + noise(shape, 1)
    curve = correlation(a, b, spacing, axis)
    expected = full_fft_reference(a, b, spacing, axis)
    np.testing.assert_allclose(curve.value, expected, atol=1e-12)
    width = max(1 / (size * step) for size, step in zip(shape, spacing, strict=True))
    np.testing.assert_allclose(curve.frequency, width * np.arange(1, len(expected) + 1))


@pytest.mark.parametrize("shape", [(8, 8, 8), (7, 9, 5)])
def test_shells_hold_every_coefficient_of_the_full_spectrum(shape):
    shells = FourierShells(shape)
    grids = np.meshgrid(*[np.fft.fftfreq(size) for size in shape], indexing="ij")
    radius = np.sqrt(sum(grid**2 for grid in grids))
    inside = np.floor(radius / shells.width + 0.5) < len(shells.frequency())
    assert shells.count().sum() == inside.sum()


def test_identical_volumes_correlate_fully():
    volume = noise((20, 24, 22))
    for axis in (None, 0, 1, 2):
        curve = correlation(volume, 5 * volume - 2, axis=axis)
        np.testing.assert_allclose(curve.value[np.isfinite(curve.value)], 1, atol=1e-9)
        assert curve.falls_below(0.143) is None


def test_inverted_volumes_correlate_to_minus_one():
    volume = noise((12, 12, 12))
    np.testing.assert_allclose(correlation(volume, -volume).value, -1, atol=1e-9)


def test_independent_noise_stays_within_its_standard_error():
    scores = []
    for seed in range(6):
        curve = correlation(noise((32, 30, 34), seed), noise((32, 30, 34), 100 + seed))
        scores.append(curve.value * np.sqrt(curve.count))
    spread = np.std(scores)
    assert abs(np.mean(scores)) < 4 / np.sqrt(np.size(scores))
    assert 0.8 < spread < 1.2  # the error that the counts predict, neither more nor less


@pytest.mark.parametrize("cutoff", [0.15, 0.31])
def test_low_pass_gives_its_cutoff(cutoff):
    volume = noise((48, 48, 48))
    curve = correlation(volume, low_passed(volume, cutoff))
    assert curve.falls_below(0.143) == pytest.approx(cutoff, abs=1.5 / 48)
    assert curve.falls_below(0.5) == pytest.approx(cutoff, abs=1.5 / 48)


def test_cone_sees_the_loss_of_its_own_axis_only():
    volume = noise((48, 48, 48))
    blurred = low_passed(volume, 0.125, axes=(0,))
    assert correlation(volume, blurred, axis=0).falls_below(0.5) == pytest.approx(0.125, abs=0.02)
    for axis in (1, 2):
        assert correlation(volume, blurred, axis=axis).falls_below(0.5) is None


def test_spacing_sets_the_unit_of_frequency():
    volume = noise((32, 32, 32))
    blurred = low_passed(volume, 0.25)
    per_um = correlation(volume, blurred, (0.01, 0.01, 0.01)).falls_below(0.143)
    assert per_um == pytest.approx(25, abs=150 / 32)


def test_axis_with_larger_voxels_ends_at_its_own_nyquist():
    shells = FourierShells((16, 32, 32), (2.0, 1.0, 1.0))
    assert shells.frequency(0)[-1] == pytest.approx(0.25)
    assert shells.frequency(1)[-1] == pytest.approx(0.5)
    assert shells.frequency()[-1] == pytest.approx(0.25)


def test_crossing_is_interpolated_between_shells():
    curve = ShellCurve(np.array([0.1, 0.2, 0.3, 0.4]), np.array([1.0, np.nan, 0.8, 0.3]), np.ones(4))
    assert curve.falls_below(0.5) == pytest.approx(0.36)
    assert curve.falls_below(0.2) is None


def test_the_standard_error_of_a_crossing_is_the_scatter_of_repeated_measurements():
    """Signal of falling power and white noise: Fourier coefficients of known correlation, through the taper."""
    shape, found, errors = (48, 48, 48), [], []
    shells = FourierShells(shape)
    grids = np.meshgrid(*[np.fft.fftfreq(size) for size in shape], indexing="ij")
    fall = np.exp(-(sum(grid**2 for grid in grids)) / (2 * 0.12**2))
    for seed in range(24):
        signal = np.fft.ifftn(np.fft.fftn(noise(shape, seed)) * fall).real
        spectra = [shells.transform(tapered(signal + 0.3 * noise(shape, 1000 * k + seed))) for k in (1, 2)]
        where, error = shells.correlation(*spectra, 0).crossing(0.5)
        found.append(where)
        errors.append(error)
    expected = 0.12 * np.sqrt(-np.log(0.3**2))  # there signal and noise have equal power
    assert np.mean(found) == pytest.approx(expected, abs=shells.width)
    assert 0.7 < np.mean(errors) / np.std(found) < 2  # no smaller than the scatter, and of its size


def test_a_crossing_that_is_never_reached_has_an_error():
    where, error = ShellCurve(np.arange(1, 25) / 48, np.full(24, 0.2), np.full(24, 9.0)).crossing(0.143)
    assert where is None and error > 0.1  # 0.2 ± 0.2 may be below anywhere


def test_taper_ends_at_zero_and_leaves_the_middle():
    result = tapered(noise((24, 20, 16)) + 40)
    for face in (result[0], result[-1], result[:, 0], result[:, :, -1]):
        assert abs(face).max() == 0
    assert result[12].std() > 0.5


def test_spectrum_of_white_noise_is_flat_at_its_variance():
    frequency, power = power_spectrum(3 * noise((40, 64, 64)), 0)
    assert frequency[-1] == 0.5
    assert power[2:].mean() == pytest.approx(9, rel=0.03)


def test_spectrum_of_a_wave_has_its_peak_there():
    z = np.arange(64)[:, None, None]
    frequency, power = power_spectrum(np.broadcast_to(np.sin(2 * np.pi * z / 8), (64, 5, 6)), 0)
    assert frequency[power.argmax()] == pytest.approx(1 / 8)


def test_octaves_split_at_their_periods():
    frequency = np.array([1 / 40, 1 / 16, 1 / 8, 1 / 4, 1 / 2])
    power = np.array([9.0, 1.0, 2.0, 3.0, 4.0])
    assert octave_power(frequency, power) == {"1/32-1/16": 1.0, "1/16-1/8": 2.0, "1/8-1/4": 3.0, "1/4-1/2": 4.0}


def test_axial_excess_is_zero_for_isotropic_noise_and_negative_for_blur():
    volume = noise((64, 64, 64))
    shells = FourierShells(volume.shape)
    same = axial_excess(shells, shells.transform(volume))
    assert all(abs(same[band]) < 0.5 for band in ("1/8-1/4", "1/4-1/2"))
    blurred = (volume + np.roll(volume, 1, 0)) / 2  # |cos(pi f)| squared
    tilted = axial_excess(shells, shells.transform(blurred))
    assert tilted["1/8-1/4"] == pytest.approx(-1.7, abs=0.7)
    assert tilted["1/4-1/2"] == pytest.approx(-7, abs=1.5)


@pytest.mark.parametrize("cutoff", [0.14, 0.3])
def test_decorrelation_finds_a_sharp_cutoff(cutoff):
    volume = low_passed(noise((48, 48, 48)), cutoff) + 1e-3 * noise((48, 48, 48), 1)
    shells = FourierShells(volume.shape)
    assert decorrelation_cutoff(shells, shells.transform(volume)) == pytest.approx(cutoff, abs=1.6 / 48)


def test_decorrelation_is_per_axis():
    volume = low_passed(noise((48, 48, 48)), 0.15, axes=(0,)) + 1e-3 * noise((48, 48, 48), 1)
    shells = FourierShells(volume.shape)
    spectrum = shells.transform(volume)
    along_z = decorrelation_cutoff(shells, spectrum, 0)
    along_y = decorrelation_cutoff(shells, spectrum, 1)
    assert along_z == pytest.approx(0.15, abs=0.04)
    assert along_y is None or along_y > 0.3


def test_decorrelation_finds_nothing_in_white_noise():
    volume = noise((32, 32, 32))
    shells = FourierShells(volume.shape)
    found = decorrelation_cutoff(shells, shells.transform(volume))
    assert found is None or found > 0.4
