"""The 2-D encoder and decoder: shapes, layers that settings name, and the halo of the local setting against perturbation."""

import pytest
import torch

from ldm.autoencoder import Attention, Decoder, Encoder, slice_norm

TINY = {"ch": 4, "ch_mult": (1, 2, 2, 4), "z_channels": 3}
LOCAL = TINY | {"norm": "batch", "mid_attention": False}


def test_published_parameter_counts():
    with torch.device("meta"):
        encoder, decoder = Encoder(ch=64), Decoder(ch=64)
    assert sum(p.numel() for p in encoder.parameters()) == 4_487_492
    assert sum(p.numel() for p in decoder.parameters()) == 7_440_641


def test_shapes_of_unequal_sides():
    features = Encoder(**TINY, in_channels=2, double_z=True)(torch.randn(3, 2, 40, 24))
    assert features.latent.shape == (3, 6, 5, 3)
    assert [tuple(p.shape) for p in features.pyramid] == [(3, 4, 40, 24), (3, 8, 20, 12), (3, 8, 10, 6), (3, 16, 5, 3)]
    assert features.branch is features.pyramid[-1]
    assert Decoder(**TINY, out_ch=2)(torch.randn(3, 3, 5, 2)).shape == (3, 2, 40, 16)


def test_side_that_is_no_multiple_of_the_reduction_is_refused():
    with pytest.raises(ValueError, match=r"slices of 40x28 pixels.*multiples of 8"):
        Encoder(**TINY)(torch.zeros(1, 1, 40, 28))


def test_attention_at_named_resolutions():
    """Resolution 256 names level 1 as 128 and level 3 as 32; both networks attend after each of their blocks there."""
    settings = TINY | {"attn_resolutions": [128, 32], "num_res_blocks": 2}
    encoder, decoder = Encoder(**settings), Decoder(**settings)

    def attentions(network):
        return sorted(name for name, module in network.named_modules() if isinstance(module, Attention) and "mid" not in name)

    assert attentions(encoder) == [f"down.{level}.attn.{i}" for level in (1, 3) for i in range(2)]
    assert attentions(decoder) == [f"up.{level}.attn.{i}" for level in (1, 3) for i in range(3)]
    decoder(encoder(torch.randn(1, 1, 16, 8)).latent).sum().backward()
    for network in (encoder, decoder):
        assert all(p.grad is not None for p in network.parameters())


def test_group_norm_groups_divide_any_width():
    assert slice_norm("group", 48).num_groups == 16
    assert slice_norm("group", 48).eps == 1e-6


def test_mid_attention_off_leaves_no_key():
    assert not any("attn" in key for key in Encoder(**LOCAL).state_dict())


def seeded(network):
    """Weights large enough that no dependence is lost to rounding."""
    generator = torch.Generator().manual_seed(7)
    for parameter in network.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) / max(1, parameter[0].numel()) ** 0.5
    return network.double().eval()


@pytest.mark.parametrize(("num_res_blocks", "ch_mult"), [(1, (1, 2, 2, 4)), (2, (1, 2, 2))])
def test_encoder_halo_is_exact(num_res_blocks, ch_mult):
    """Gradient of one latent: non-zero on exactly the pixels from ``before`` in front of its block to ``after`` behind it."""
    encoder = seeded(Encoder(**LOCAL | {"num_res_blocks": num_res_blocks, "ch_mult": ch_mult}))
    before, after = encoder.halo()
    reduction = 2 ** (len(ch_mult) - 1)
    centre = before // reduction + 1
    for axis in (2, 3):
        shape = [1, 1, reduction, reduction]
        shape[axis] = reduction * (centre + 1) + after + 2 * reduction
        shape[axis] -= shape[axis] % reduction
        x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        encoder(x).latent.select(axis, centre).sum().backward()
        touched = x.grad.abs().amax(dim=tuple({0, 1, 2, 3} - {axis})).nonzero().squeeze(1)
        assert touched[0] == reduction * centre - before
        assert touched[-1] == reduction * (centre + 1) - 1 + after


def test_encoder_halo_of_the_published_shape():
    assert Encoder(**LOCAL).halo() == (71, 78)


def test_decoder_halo_suffices_and_is_needed():
    decoder = seeded(Decoder(**LOCAL))
    before, after = decoder.halo()
    length = before + 1 + after + 4
    z = torch.randn(1, 3, 1, length, dtype=torch.float64, requires_grad=True)
    decoder(z)[..., 8 * (before + 2) : 8 * (before + 3)].sum().backward()
    touched = z.grad.abs().amax(dim=(0, 1, 2)).nonzero().squeeze(1)
    assert (touched[0], touched[-1]) == (2, length - 3)


def test_tile_with_halo_equals_the_whole_slice():
    encoder = seeded(Encoder(**LOCAL))
    x = torch.randn(1, 1, 16, 256, dtype=torch.float64)
    before, after = encoder.halo()
    start, stop = 13, 17  # latents asked for
    left = (8 * start - before) // 8 * 8
    tile = x[..., left : -(-(8 * stop + after) // 8) * 8]
    assert tile.shape[-1] < x.shape[-1]
    expected = encoder(x).latent[..., start:stop]
    torch.testing.assert_close(encoder(tile).latent[..., start - left // 8 : stop - left // 8], expected, rtol=1e-12, atol=1e-12)


def test_slice_wide_layers_have_no_halo():
    for settings in (LOCAL | {"norm": "group"}, LOCAL | {"norm": "instance"}, LOCAL | {"mid_attention": True}):
        assert Encoder(**settings).halo() is None
