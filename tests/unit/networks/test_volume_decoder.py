"""ed023e: shapes, batch independence and the halo that tiles need."""

import pytest
import torch
from torch import nn

from networks.generators import UNet3d, VolumeDecoder
from networks.views import to_slices, to_volume
from utils.norms import fold_batch_norm, make_norm


@pytest.mark.parametrize("norm", ["batch", "instance", "group", "none"])
@pytest.mark.parametrize("out_channels", [1, 2])
def test_every_axis_grows_eightfold(norm, out_channels):
    decoder = VolumeDecoder(nf=2, out_channels=out_channels, norm=norm, dropout=0.5)
    latents = torch.randn(2, decoder.in_channels, 2, 3, 5, requires_grad=True)
    volume = decoder(latents)
    assert volume.shape == (2, out_channels, 16, 24, 40)
    assert volume.abs().max() <= 1
    volume.sum().backward()
    assert latents.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in decoder.parameters())


@pytest.mark.parametrize("norm", ["instance", "group", "none"])
def test_volumes_of_a_batch_are_independent(norm):
    decoder = VolumeDecoder(nf=2, norm=norm)
    latents = torch.randn(2, 16, 2, 3, 5)
    with torch.no_grad():
        torch.testing.assert_close(decoder(latents), torch.cat([decoder(item[None]) for item in latents]))


def test_dropout_changes_no_key():
    assert VolumeDecoder(nf=2).state_dict().keys() == VolumeDecoder(nf=2, dropout=0.5).state_dict().keys()
    decoder, latents = VolumeDecoder(nf=2, norm="none", dropout=0.5), torch.randn(1, 16, 2, 2, 2)
    assert not torch.equal(decoder(latents), decoder(latents))
    decoder.eval()
    assert torch.equal(decoder(latents), decoder(latents))


@pytest.mark.parametrize("norm", ["batch", "none"])
@pytest.mark.parametrize("conv_in", [False, True])
def test_a_latent_reaches_exactly_the_halo(norm, conv_in):
    """Latents, along each axis, between a perturbed one and the farthest latent whose voxels change."""
    torch.manual_seed(0)
    decoder = VolumeDecoder(nf=2, norm=norm).double().eval()
    first = nn.Conv2d(4, 16, 3, padding=1).double()

    def decode(latents):
        return decoder(to_volume(first(to_slices(latents)), batch=1) if conv_in else latents)

    middle, size = 5, 11
    latents = torch.randn(1, 4 if conv_in else 16, size, size, size, dtype=torch.float64)
    perturbed = latents.clone()
    perturbed[:, :, middle, middle, middle] += 10
    with torch.no_grad():
        changed = (decode(perturbed) - decode(latents)).abs()[0, 0] > 1e-12
    for axis, expected in enumerate((VolumeDecoder.HALO + conv_in, VolumeDecoder.HALO + conv_in, VolumeDecoder.HALO)):
        planes = changed.movedim(axis, 0).flatten(1).any(1).nonzero().flatten()
        assert (middle - planes.min() // 8).item() == expected
        assert (planes.max() // 8 - middle).item() == expected


def test_group_norm_uses_the_greatest_common_divisor():
    assert [make_norm("group", channels).num_groups for channels in (4, 8, 24, 32, 48, 128)] == [4, 8, 8, 32, 16, 32]


def test_instance_norm_has_no_state():
    assert not make_norm("instance", 8).state_dict()


@pytest.mark.parametrize("build", [VolumeDecoder, UNet3d])
def test_folded_norms_change_nothing_but_rounding(build):
    network = build(nf=4, dropout=0.5).double().eval().requires_grad_(False)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.1)
            module.bias.normal_(0, 0.1)
            module.running_var.uniform_(0.01, 0.03)
            module.weight.uniform_(0.5, 1.5)
    volume = torch.randn(1, network.in_channels if build is VolumeDecoder else 1, 8, 8, 8, dtype=torch.float64)
    expected = network(volume)
    assert expected.std() > 0.01
    fold_batch_norm(network)
    assert not any(isinstance(module, nn.BatchNorm3d) for module in network.modules())
    torch.testing.assert_close(network(volume), expected, rtol=0, atol=1e-10)
