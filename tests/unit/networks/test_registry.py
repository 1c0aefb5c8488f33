"""Every network that settings can name is built; every other name is refused with the list of known ones."""

import pytest

from networks.generators import GENERATORS, UNet3d, VolumeDecoder, build_generator
from networks.patchgan import DISCRIMINATORS, build_discriminator
from utils.errors import UserError


def test_known_names():
    assert list(GENERATORS) == ["ed023e", "edclean"]
    assert list(DISCRIMINATORS) == ["patch_16", "patch_8", "patch_4"]


def test_generators_get_their_values():
    decoder = build_generator("ed023e", nf=4, out_channels=2, norm="group", dropout=0.5)
    assert isinstance(decoder, VolumeDecoder)
    assert decoder.conv7_k[0][0].out_channels == 2
    assert decoder.conv5[1].p == 0.5
    unet = build_generator("edclean", in_channels=2, out_channels=1, nf=4, norm="none", dropout=0.0, encode="3d", decode="1d")
    assert isinstance(unet, UNet3d)
    assert unet.state_dict()["down0.0.conv.weight"].shape == (4, 2, 3, 3, 3)
    assert unet.state_dict()["up3.conv.weight"].shape == (16, 32, 3)


@pytest.mark.parametrize(("name", "reduction"), [("patch_16", 16), ("patch_8", 32), ("patch_4", 64)])
def test_discriminators_get_their_values(name, reduction):
    net_d = build_discriminator(name, in_channels=2, ndf=4)
    assert net_d.reduction == reduction
    assert net_d.state_dict()["model.0.weight"].shape == (4, 2, 4, 4)


@pytest.mark.parametrize("name", ["uneta", "ed023", ""])
def test_an_unknown_generator_is_named(name):
    with pytest.raises(UserError, match=f"netG='{name}' is unknown; choose one of ed023e, edclean"):
        build_generator(name, nf=4)


def test_an_unknown_discriminator_is_named():
    with pytest.raises(UserError, match="netD='patch_32' is unknown; choose one of patch_16, patch_8, patch_4"):
        build_discriminator("patch_32", in_channels=1, ndf=4)
