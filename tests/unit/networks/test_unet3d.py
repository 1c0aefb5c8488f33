"""edclean: both dimensions of both halves, every norm."""

import pytest
import torch
from torch import nn

from networks.generators import ConvAlongZ, UNet3d

SIZE = (8, 16, 24)


def test_convolution_along_z_is_conv1d_on_every_line():
    along, line = ConvAlongZ(3, 4), nn.Conv1d(3, 4, 3, padding=1)
    line.load_state_dict(along.state_dict())
    volume = torch.randn(2, 3, 2, 3, 5)
    result = along(volume)
    assert result.shape == (2, 4, 2, 3, 5)
    for x in range(2):
        for y in range(3):
            torch.testing.assert_close(result[:, :, x, y], line(volume[:, :, x, y]))


@pytest.mark.parametrize("encode", ["1d", "3d"])
@pytest.mark.parametrize("decode", ["1d", "3d"])
def test_shapes_of_weights_and_features(encode, decode):
    unet = UNet3d(in_channels=2, out_channels=3, nf=4, encode=encode, decode=decode)
    taps = {"1d": (3,), "3d": (3, 3, 3)}
    state = unet.state_dict()
    assert state["down0.0.conv.weight"].shape == (4, 2, *taps[encode])
    assert state["down3.2.conv.weight"].shape == (32, 32, *taps[encode])
    assert state["up3.conv.weight"].shape == (16, 32, *taps[decode])
    assert state["conv7_k.0.conv.weight"].shape == (3, 8, *taps[decode])
    assert "down0.0.norm.weight" not in state
    volume = torch.randn(2, 2, *SIZE)
    features = unet.encode(volume)
    assert [tuple(feature.shape) for feature in features] == [
        (2, 4 * 2**level, *(side // 2**level for side in SIZE)) for level in range(4)
    ]
    refined = unet.decode(features)
    assert refined.shape == (2, 3, *SIZE)
    assert refined.abs().max() <= 1


def test_neither_dimensions_nor_dropout_change_a_key():
    keys = UNet3d(nf=4, encode="3d", decode="3d").state_dict().keys()
    for encode, decode in (("1d", "3d"), ("3d", "1d")):
        assert UNet3d(nf=4, encode=encode, decode=decode, dropout=0.5).state_dict().keys() == keys


@pytest.mark.parametrize("norm", ["batch", "instance", "group", "none"])
@pytest.mark.parametrize(("encode", "decode"), [("1d", "3d"), ("3d", "1d")])
def test_every_norm_trains(norm, encode, decode):
    unet = UNet3d(nf=2, norm=norm, dropout=0.5, encode=encode, decode=decode)
    unet(torch.randn(2, 1, 16, 16, 16)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in unet.parameters())


@pytest.mark.parametrize("norm", ["instance", "group", "none"])
def test_volumes_of_a_batch_are_independent(norm):
    unet = UNet3d(nf=2, norm=norm)
    volume = torch.randn(2, 1, *SIZE)
    volume[1] *= 3
    with torch.no_grad():
        torch.testing.assert_close(unet(volume), torch.cat([unet(item[None]) for item in volume]))


def test_encoding_1d_mixes_no_lines_before_pooling():
    unet = UNet3d(nf=2, norm="none", encode="1d")
    volume = torch.randn(1, 1, 8, 8, 8)
    changed = volume.clone()
    changed[:, :, 3, 4] += 1
    with torch.no_grad():
        difference = (unet.encode(changed)[0] - unet.encode(volume)[0]).abs().sum((0, 1, 4))
    assert difference.nonzero().tolist() == [[3, 4]]


def test_a_side_that_cannot_be_halved_is_named():
    with pytest.raises(ValueError, match=r"multiple of 8.*\(1, 1, 8, 8, 12\)"):
        UNet3d(nf=2).encode(torch.zeros(1, 1, 8, 8, 12))
