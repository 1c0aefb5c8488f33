"""What is measured of volumes: extremes and percentiles against numpy, bad voxels, refusals."""

import numpy as np
import pytest

from intensity.statistics import Normalisation, scan, transform_of
from utils.errors import UserError
from volumes.volume import ArrayVolume


class Blocks(ArrayVolume):
    """Gives itself out in many small blocks."""

    def blocks(self, voxels=100):
        return super().blocks(voxels)


def test_constants_by_hand():
    values = np.array([5, 10, 20, 30, 35], np.float32)
    volume = ArrayVolume(np.array([10, 12, 30], np.float32).reshape(3, 1, 1))
    np.testing.assert_allclose(transform_of(volume, Normalisation("01")).apply(values), [0, 0, 0.5, 1, 1])
    np.testing.assert_allclose(transform_of(volume, Normalisation("11")).apply(values), [-1, -1, 0, 1, 1])
    np.testing.assert_allclose(transform_of(volume, Normalisation("00")).apply(values), values)


@pytest.mark.parametrize(("nm", "value"), [("01", 0), ("11", -1)])
def test_a_constant_volume_is_legal(nm, value):
    values = np.full((3, 4, 5), 42, np.uint16)
    for clip in (None, (1.0, 99.0)):
        transform = transform_of(ArrayVolume(values), Normalisation(nm, percentile=clip))
        assert (transform.low, transform.high) == (42, 42)
        assert (transform.apply(values.astype(np.float32)) == value).all()


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "float32", "float64"])
def test_the_range_is_minimum_and_maximum(dtype):
    values = (np.random.default_rng(0).random((5, 7, 31)) * 200).astype(dtype)
    assert scan(Blocks(values), None) == (values.astype(np.float32).min(), values.astype(np.float32).max())


@pytest.mark.parametrize("clip", [(0.0, 100.0), (0.1, 99.9), (2.0, 60.0)])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16"])
def test_integer_percentiles_are_exact(dtype, clip):
    values = np.random.default_rng(1).normal(60, 20, (5, 7, 31)).astype(dtype)
    low, high = np.percentile(values, clip, method="inverted_cdf")
    assert scan(Blocks(values), clip) == (low, high)


@pytest.mark.parametrize("passes", [1, 2])
@pytest.mark.parametrize("outlier", [None, 1e6])
@pytest.mark.parametrize("clip", [(0.0, 100.0), (0.1, 99.9), (2.0, 60.0)])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_float_percentiles_are_exact_with_outliers(dtype, clip, outlier, passes, monkeypatch):
    monkeypatch.setattr("intensity.statistics._MOST_KEPT", 0 if passes == 2 else 2**25)
    values = np.random.default_rng(2).normal(0, 1, (5, 7, 31)).astype(dtype)
    if outlier and dtype != "float16":
        values[0, 0, 0] = outlier
    told = []
    volume = Blocks(values)
    assert scan(volume, clip, told.append) == tuple(np.percentile(values.astype(np.float32), clip, method="inverted_cdf"))
    assert sum(told) == values.size * Normalisation("11", percentile=clip).passes(volume) == values.size * passes


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
