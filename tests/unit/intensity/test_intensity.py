"""Grey values to prepared ones and back."""

import json

import numpy as np
import pytest
import torch

from intensity.transform import IntensityTransform
from utils.errors import UserError

TRANSFORMS = {
    "01": IntensityTransform("01", 100, 500),
    "11": IntensityTransform("11", 100, 500),
    "zrescale": IntensityTransform("zrescale", 100, 500, mean=2.4, std=0.2, limit=6),
}


@pytest.mark.parametrize("kind", TRANSFORMS)
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_there_and_back(kind, dtype):
    grey = np.arange(100, 501, dtype=dtype).reshape(1, 401)
    prepared = TRANSFORMS[kind].apply(grey)
    assert prepared.dtype == np.float32 and prepared.shape == grey.shape
    np.testing.assert_allclose(TRANSFORMS[kind].invert(prepared), grey, atol=1e-3)


@pytest.mark.parametrize("kind", TRANSFORMS)
def test_tensors_go_back_as_arrays_do(kind):
    values = np.linspace(-1.2, 1.2, 31, dtype=np.float32)
    back = TRANSFORMS[kind].invert(torch.from_numpy(values))
    assert back.dtype == torch.float32
    np.testing.assert_allclose(back.numpy(), TRANSFORMS[kind].invert(values), rtol=1e-6)


def test_values_by_hand():
    grey = np.array([0, 100, 200, 500, 900], np.uint16)
    np.testing.assert_allclose(TRANSFORMS["01"].apply(grey), [0, 0, 0.25, 1, 1], atol=1e-7)
    np.testing.assert_allclose(TRANSFORMS["11"].apply(grey), [-1, -1, -0.5, 1, 1], atol=1e-7)
    one = IntensityTransform("zrescale", 0, 999, mean=1.0, std=0.5, limit=2)
    np.testing.assert_allclose(one.apply(np.array([0.0, 9, 99, 999])), [-1, 0, 1, 1], atol=1e-7)  # 99 is two deviations away
    np.testing.assert_allclose(one.invert(np.array([-1.0, 0, 1])), [0, 9, 99])


def test_constants_are_legal():
    flat = np.full((2, 2), 7, np.uint8)
    for kind, expected in (("01", 0), ("11", -1), ("zrescale", 0)):
        transform = IntensityTransform(kind, 7, 7, mean=np.log10(8.0), std=0.0)
        assert (transform.apply(flat) == expected).all()
        np.testing.assert_allclose(transform.invert(transform.apply(flat)), 7)


def test_unchanged_values_keep_their_type_and_nothing_wraps_round():
    grey = np.array([0, 10, 255], np.uint8)
    assert IntensityTransform("00").apply(grey) is grey
    np.testing.assert_array_equal(IntensityTransform("00", 1.5, 300).apply(grey), np.array([2, 10, 255], np.uint8))
    assert IntensityTransform("00", -5, 20).apply(grey).dtype == np.uint8
    np.testing.assert_array_equal(IntensityTransform("00", -5, 20).apply(grey), [0, 10, 20])


@pytest.mark.parametrize("transform", [IntensityTransform("00"), IntensityTransform("00", 1, 2), *TRANSFORMS.values()])
def test_the_record_is_plain_json(transform):
    assert IntensityTransform.from_json(json.loads(json.dumps(transform.as_json()))) == transform


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"normalisation": "12"}, "normalisation='12' is unknown; known: 00, 01, 11, zrescale"),
        ({"normalisation": "11", "low": 3}, "needs the grey values low and high"),
        ({"normalisation": "11", "low": 3, "high": 1}, "low=3 must not exceed high=1"),
        ({"normalisation": "zrescale", "low": -1, "high": 1}, "clip the grey values at 0"),
        ({"normalisation": "11", "low": "a", "high": 1}, "X: the constants of an intensity transform must be numbers"),
        ({"low": 1}, "X: an intensity transform has the keys"),
    ],
)
def test_impossible_records(record, message):
    with pytest.raises(UserError) as error:
        IntensityTransform.from_json(record, "X")
    assert message in str(error.value)
