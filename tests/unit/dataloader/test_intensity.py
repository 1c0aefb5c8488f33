"""The constants of the intensities: hand-computed values, percentiles against numpy, refusals."""

import numpy as np
import pytest

from dataloader import intensity
from dataloader.intensity import Range, normalise, scan
from utils.errors import UserError
from volumes.volume_io import ArrayVolume


class Blocks(ArrayVolume):
    """Gives itself out in many small blocks."""

    def blocks(self, voxels=100):
        return super().blocks(voxels)


def test_constants_by_hand():
    values = np.array([5, 10, 20, 30, 35], np.float32)
    np.testing.assert_allclose(normalise(values, "01", Range(10, 30)), [0, 0, 0.5, 1, 1])
    np.testing.assert_allclose(normalise(values, "11", Range(10, 30)), [-1, -1, 0, 1, 1])
    np.testing.assert_allclose(normalise(values, "00", None), values)
    with pytest.raises(ValueError, match="needs the range"):
        normalise(values, "11", None)


@pytest.mark.parametrize(("nm", "value"), [("01", 0), ("11", -1)])
def test_a_constant_volume_is_legal(nm, value):
    values = np.full((3, 4, 5), 42, np.uint16)
    for clip in (None, (1.0, 99.0)):
        limits = scan(ArrayVolume(values), clip)
        assert limits == Range(42, 42)
        assert (normalise(values.astype(np.float32), nm, limits) == value).all()


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32", "float64"])
def test_the_range_is_minimum_and_maximum(dtype):
    values = (np.random.default_rng(0).random((5, 7, 31)) * 200).astype(dtype)
    assert scan(Blocks(values), None) == Range(values.astype(np.float32).min(), values.astype(np.float32).max())


@pytest.mark.parametrize("clip", [(0.0, 100.0), (0.1, 99.9), (2.0, 60.0)])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16"])
def test_integer_percentiles_are_exact(dtype, clip):
    values = np.random.default_rng(1).normal(60, 20, (5, 7, 31)).astype(dtype)
    low, high = np.percentile(values, clip, method="inverted_cdf")
    assert scan(Blocks(values), clip) == Range(low, high)


@pytest.mark.parametrize("outlier", [None, 1e6])
@pytest.mark.parametrize("clip", [(0.0, 100.0), (0.1, 99.9), (2.0, 60.0)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_float_percentiles_hold_with_outliers(dtype, clip, outlier):
    values = np.random.default_rng(2).normal(0, 1, (5, 7, 31)).astype(dtype)
    if outlier and dtype != "float16":
        values[0, 0, 0] = outlier
    told = []
    volume = Blocks(values)
    limits = scan(volume, clip, told.append)
    expected = np.percentile(values.astype(np.float64), clip, method="inverted_cdf")
    np.testing.assert_allclose([limits.low, limits.high], expected, atol=np.ptp(values.astype(np.float64)) / 2**31)
    assert sum(told) == values.size * intensity.passes(volume, clip)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("clip", [None, (1.0, 99.0)])
def test_nan_and_infinite_voxels_are_found_and_placed(bad, clip):
    values = np.zeros((9, 10, 10), np.float32)
    values[4, 3, 2] = bad
    with pytest.raises(UserError, match=r"v\.tif \(planes 4 to 4\): 1 NaN or infinite"):
        scan(Blocks(values, "v.tif"), clip)


def test_values_beyond_float32_count_as_infinite():
    with pytest.raises(UserError, match="NaN or infinite"):
        scan(ArrayVolume(np.full((1, 2, 3), 1e200)), None)


def test_nm_00_tolerates_one_voxel_in_a_thousand():
    values = np.linspace(-1.05, 1.05, 2000, dtype=np.float32)
    values[:2] = 3
    intensity.check_unit_range(values, "v.tif")
    values[2] = -3
    with pytest.raises(UserError, match=r"v\.tif: nm=00 expects .* 0\.15 % .* \(-3 to 3\); use --nm 11"):
        intensity.check_unit_range(values, "v.tif")
    with pytest.raises(UserError, match=r"v\.tif: 2000 NaN"):
        intensity.check_unit_range(np.full(2000, np.nan, np.float32), "v.tif")


@pytest.mark.parametrize(
    ("nm", "clip", "message"),
    [
        ("10", None, "known: 00"),
        ("00", (1.0, 99.0), "no effect with nm=00"),
        ("11", (50.0, 50.0), "LOW < HIGH"),
        ("11", (-1.0, 99.0), "LOW < HIGH"),
        ("01", (1.0, 101.0), "LOW < HIGH"),
    ],
)
def test_options_that_make_no_sense_are_refused(nm, clip, message):
    with pytest.raises(UserError, match=message):
        intensity.check_options(nm, clip)
