"""The autoencoder that starts linearly: principal components, its reach, what it refuses."""

import numpy as np
import pytest
import torch

from ldm.linear import LinearDecoder, LinearEncoder, blocks_of, start_linearly

SHAPE = {"ch": 4, "z_channels": 5, "num_res_blocks": 2}
MULTIPLES = [(1, 2, 2, 4), (1, 1, 2, 2, 4)]


def slices(count, channels, side):
    torch.manual_seed(0)
    coarse = torch.randn(count, channels, side // 4, side // 4)
    return torch.nn.functional.interpolate(coarse, scale_factor=4, mode="bilinear") + 0.1 * torch.randn(
        count, channels, side, side
    )


@torch.no_grad()
@pytest.mark.parametrize("multiples", MULTIPLES)
@pytest.mark.parametrize("channels", [1, 2])
def test_it_starts_as_the_projection_onto_principal_components(channels, multiples):
    encoder = LinearEncoder(**SHAPE, ch_mult=multiples, in_channels=channels)
    decoder = LinearDecoder(**SHAPE, ch_mult=multiples, lifted=24)
    side, pixels = encoder.stride, slices(12, channels, 64) + 0.3
    start_linearly(encoder, decoder, blocks_of(pixels, side))
    # by numpy, from blocks cut out by hand
    cut = pixels.unfold(2, side, side).unfold(3, side, side).permute(0, 2, 3, 1, 4, 5).reshape(-1, channels, side * side)
    rows = cut.double().numpy()
    mean = rows.mean(axis=(0, 2), keepdims=True)
    flat = (rows - mean).reshape(len(rows), -1)
    components = np.linalg.svd(flat, full_matrices=False)[2][:5]
    projected = (flat @ components.T @ components).reshape(rows.shape) + mean
    latent = encoder(pixels).latent
    assert latent.shape == (12, 5, 64 // side, 64 // side)
    found = blocks_of(decoder(latent), side)
    np.testing.assert_allclose(found.numpy(), projected[:, 0], atol=1e-4)
    assert np.square(projected - rows).mean() < 0.8 * rows.var()  # so it is not the mean alone


def test_the_residual_networks_take_part_after_the_first_steps():
    encoder, decoder = LinearEncoder(**SHAPE), LinearDecoder(**SHAPE, lifted=24)
    parameters = [*encoder.parameters(), *decoder.parameters()]
    idle = {id(p) for p in decoder.conv_in.parameters()}  # the volume's
    optimizer, pixels = torch.optim.Adam(parameters, 1e-3), slices(2, 1, 32)
    for _ in range(2):
        optimizer.zero_grad()
        (decoder(encoder(pixels).latent) - pixels).square().mean().backward()
        optimizer.step()
    assert all(p.grad.any() for p in parameters if id(p) not in idle)


@torch.no_grad()
@pytest.mark.parametrize("multiples", MULTIPLES)
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_the_halo_is_what_the_networks_reach(part, multiples):
    """By what changes when one place of the input changes: as far as the halo says, and no farther."""
    side, count = 2 ** (len(multiples) - 1), 49
    encoding = part == "encoder"
    network = (LinearEncoder if encoding else LinearDecoder)(**SHAPE, ch_mult=multiples).double()
    network.conv_out.weight.normal_()
    changed = torch.zeros(1, 1 if encoding else 5, 2 * side if encoding else 2, count * (side if encoding else 1)).double()
    before, after = network.halo()
    here = changed.shape[-1] // 2
    other = changed.clone()
    other[..., here] = 1
    first, second = (network(image) for image in (changed, other))
    different = (first.latent != second.latent if encoding else first != second).any(dim=(0, 1, 2))[None, :]
    places = different[0].nonzero().flatten()
    # latent b - 1 reads pixels up to s·b + after - 1, latent a those from s·a - before on; of the decoder the other way round
    own = range(count) if encoding else range(count * side)
    reached = [
        k
        for k in own
        if (side * k - before <= here < side * (k + 1) + after if encoding else k // side - before <= here <= k // side + after)
    ]
    assert set(places.tolist()) <= set(reached)
    if encoding:
        assert [int(places[0]), int(places[-1])] == [reached[0], reached[-1]]
    else:  # in whole latents
        assert [int(places[0]) // side, int(places[-1]) // side] == [reached[0] // side, reached[-1] // side]


def test_slices_that_are_no_whole_blocks_are_refused():
    with pytest.raises(ValueError, match="slices of 5x16 pixels cannot be encoded"):
        LinearEncoder(**SHAPE)(torch.zeros(1, 1, 5, 16))
