"""Sections under interpolated slices, and planes between planes."""

import pytest
import torch

from dataloader.crops import Crop, CropSettings, read_crop
from experiment.reading import default_settings
from models.options import MODEL_OPTIONS
from models.sampling import Sampling, shifted
from volumes.volume import ArrayVolume


def sampling(usp, **changes):
    settings = default_settings(MODEL_OPTIONS, "ae0iso0tccutvqq", cropsize=64, cropz=8, usp=usp, l1how="dsp", **changes)
    return Sampling.from_settings(settings, "x")


@pytest.mark.parametrize(("usp", "branch"), [(2.0, {"downbranch": 2}), (4.0, {"downbranch": 4}), (1.0, {})])
def test_sections_are_found_again_under_the_slices_of_the_data_set(usp, branch):
    sections = torch.rand(16, 8, 8) * 2 - 1
    crop = CropSettings(cropsize=8, cropz=16, dsp=2, usp=usp, rotate=False)
    slices = torch.from_numpy(read_crop(ArrayVolume(sections.numpy()), Crop(0, 1, 0, 0), crop))[None, None]
    kept = sections[1::2].movedim(0, -1)[None, None]
    found = sampling(usp, **branch)
    torch.testing.assert_close(found.sections(slices), kept, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.slices(kept), slices, atol=1e-6, rtol=0)
    assert found.planes == 8 and found.centre == 4


def test_a_part_of_a_section_is_no_section():
    with pytest.raises(ValueError, match="7 slices"):
        sampling(2.0, downbranch=2).sections(torch.zeros(1, 1, 2, 2, 7))


@pytest.mark.parametrize("planes", [0.5, -0.5, 0])
def test_planes_between_planes(planes):
    ramp = torch.arange(12.0).expand(2, 1, 3, 4, 12)
    torch.testing.assert_close(shifted(ramp, planes)[..., 2:-2], ramp[..., 2:-2] + planes)
