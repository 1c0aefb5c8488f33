"""Rules from measured numbers to settings; every recommendation must be a geometry that trains."""

from dataclasses import replace

import pytest

from dataloader.check import Measured, recommend
from experiment.reading import default_settings
from models.options import MODEL_OPTIONS
from utils.geometry import Geometry


def measured(**changes):
    typical = Measured((200, 512, 512), sampling=1.0, resolution=1.0, axial_cutoff=0.3, undersampled=False, median=0.5)
    return replace(typical, **changes)


@pytest.mark.parametrize("sampling", [None, 0.8, 1, 1.1, 1.6, 2, 3, 4, 5, 6.5, 8, 12, 16, 20])
@pytest.mark.parametrize("resolution", [1.0, 2.0])
@pytest.mark.parametrize("side", [40, 70, 100, 500])
def test_every_recommendation_trains_with_cubic_voxels(sampling, resolution, side):
    data = measured(shape=(300, side, side), sampling=sampling, resolution=resolution)
    found = recommend(data)
    geometry = Geometry.from_settings(default_settings(MODEL_OPTIONS, "ae0iso0tccutvqq", **found.settings))
    settings = found.settings
    assert geometry.factor == found.factor and settings["cropsize"] <= side and settings["cropz"] <= 300
    along_z = (sampling or 1) * settings["dsp"] / settings["usp"] / geometry.factor
    assert along_z == pytest.approx(1, rel=0.051)


def test_planes_that_lie_closer_than_any_crop_allows_are_no_crash():
    assert recommend(measured(sampling=1e-4)).settings == {}


def test_missing_planes_are_made_good_by_the_factor():
    found = recommend(measured(sampling=8, undersampled=True, resolution=3))
    assert found.factor == 8 and found.settings["dsp"] == 1 and found.settings["l1how"] == "mean"
    assert (found.settings["cropsize"], found.settings["cropz"]) == (128, 16)
    assert recommend(measured(sampling=4)).settings["downbranch"] == 2
    assert recommend(measured(sampling=5)).settings["usp"] == 1.25
    assert recommend(measured(sampling=8, median=0.1)).settings["l1how"] == "max"


def test_blurred_planes_are_thinned_to_one_per_resolution_length():
    found = recommend(measured(shape=(124, 86, 94), resolution=1.15, axial_cutoff=0.27))
    assert found.settings == {
        "dsp": 4,
        "l1how": "mean",
        "cropsize": 64,
        "cropz": 64,
        "usp": 1,
        "downbranch": 2,
        "resizebranch": 1,
    }
    assert found.factor == 4 and "one resolution length is 3.7 voxels" in found.reasons[0]
    assert recommend(measured(resolution=1.15, axial_cutoff=0.27, median=0.12)).settings["l1how"] == "mean"


def test_isotropic_volumes_have_nothing_to_restore():
    found = recommend(measured(resolution=0.8))
    assert "nothing to restore" in found.reasons[0] and found.settings["dsp"] == 8


def test_without_voxel_sizes_missing_planes_cannot_be_counted():
    found = recommend(measured(sampling=None, undersampled=True))
    assert not found.settings and found.factor is None and "--voxel" in found.reasons[0]
    assert "no voxel size" in recommend(measured(sampling=None)).reasons[0]


def test_volumes_without_room_for_a_crop():
    found = recommend(measured(shape=(3, 500, 500), sampling=8))
    assert not found.settings and "holds no crop of 32² pixels and 4 planes" in found.reasons[-1]
    found = recommend(measured(shape=(300, 40, 40), sampling=10))  # int(planes · 1.25) is never 4
    assert not found.settings and "another factor" in found.reasons[-1]
