"""patch_16, patch_8 and patch_4: keys, sizes, and independence of the images of a batch."""

import pytest
import torch

from experiment.rules import PLANE_STRIDE
from networks.patchgan import PatchDiscriminator

KEYS = {16: (0, 2, 5, 8, 12), 8: (0, 2, 5, 8, 11, 15), 4: (0, 2, 5, 8, 11, 14, 18)}


@pytest.mark.parametrize("patch", [16, 8, 4])
def test_keys(patch):
    expected = {f"model.{index}.{kind}" for index in KEYS[patch] for kind in ("weight", "bias")}
    assert PatchDiscriminator(1, 2, f"patch_{patch}").state_dict().keys() == expected


@pytest.mark.parametrize(("name", "reduction"), PLANE_STRIDE.items())
@pytest.mark.parametrize("channels", [1, 2])
def test_one_logit_per_patch_as_the_rules_of_settings_have_it(name, reduction, channels):
    net_d = PatchDiscriminator(channels, 2, name)
    assert net_d(torch.randn(3, channels, 2 * reduction, 3 * reduction)).shape == (3, 1, 2, 3)


def test_parameter_count_of_the_default():
    assert sum(parameter.numel() for parameter in PatchDiscriminator(1, 64).parameters()) == 2_762_689


@pytest.mark.parametrize(("name", "side"), PLANE_STRIDE.items())
def test_smallest_plane(name, side):
    assert PatchDiscriminator(1, 2, name)(torch.randn(1, 1, side, 2 * side)).shape == (1, 1, 1, 2)


def test_images_of_a_batch_are_independent():
    net_d = PatchDiscriminator(1, 4)
    images = torch.randn(3, 1, 32, 48) * torch.tensor([1.0, 5.0, 0.2]).reshape(3, 1, 1, 1)
    torch.testing.assert_close(net_d(images), torch.cat([net_d(image[None]) for image in images]))
