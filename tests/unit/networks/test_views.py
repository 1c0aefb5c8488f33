"""Layouts: every element of every view, and projections by hand."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from networks import views

B, C, X, Y, Z = 2, 2, 3, 4, 5


@pytest.fixture
def volume():
    """Every voxel has a value of its own."""
    return torch.arange(B * C * X * Y * Z, dtype=torch.float32).reshape(B, C, X, Y, Z)


def test_slices_hold_the_planes_of_one_volume_together(volume):
    slices = views.to_slices(volume)
    assert slices.shape == (B * Z, C, X, Y)
    for b in range(B):
        for z in range(Z):
            torch.testing.assert_close(slices[b * Z + z], volume[b, :, :, :, z])


def test_to_volume_inverts_to_slices(volume):
    torch.testing.assert_close(views.to_volume(views.to_slices(volume), batch=B), volume)


def test_in_plane_transpose(volume):
    swapped = views.swap_in_plane(volume)
    assert swapped.shape == (B, C, Y, X, Z)
    for x, y in np.ndindex(X, Y):
        torch.testing.assert_close(swapped[:, :, y, x], volume[:, :, x, y])


def test_yz_planes_are_the_first_view(volume):
    torch.testing.assert_close(views.yz_planes(volume), views.six_views(volume)[0])


def test_every_voxel_of_the_six_views(volume):
    # value of the pixel (row i, column j) of plane n in volume b
    expected = [
        ((X, Z, Y), lambda b, n, i, j: volume[b, :, n, j, i]),
        ((X, Y, Z), lambda b, n, i, j: volume[b, :, n, i, j]),
        ((Y, Z, X), lambda b, n, i, j: volume[b, :, j, n, i]),
        ((Y, X, Z), lambda b, n, i, j: volume[b, :, i, n, j]),
        ((Z, X, Y), lambda b, n, i, j: volume[b, :, i, j, n]),
        ((Z, Y, X), lambda b, n, i, j: volume[b, :, j, i, n]),
    ]
    for view, ((planes, height, width), pixel) in zip(views.six_views(volume), expected, strict=True):
        assert view.shape == (B * planes, C, height, width)
        for b, n, i, j in np.ndindex(B, planes, height, width):
            torch.testing.assert_close(view[b * planes + n, :, i, j], pixel(b, n, i, j))


@pytest.mark.parametrize("family", [views.six_views, lambda volume, planes=0: views.isoref_views(volume, 1, planes)])
def test_drawn_planes_are_distinct_planes_of_every_volume(volume, family):
    torch.manual_seed(0)
    drawn = family(volume, planes=2)
    for view, every in zip(drawn, family(volume), strict=True):
        assert view.shape == (B * 2, *every.shape[1:])
        found = [[index for index, plane in enumerate(every) if torch.equal(plane, image)] for image in view]
        assert all(len(matches) == 1 for matches in found)
        assert len({matches[0] for matches in found}) == B * 2
        per_volume = len(every) // B
        assert [matches[0] // per_volume for matches in found] == [0, 0, 1, 1]


def test_drawn_planes_follow_the_global_generator(volume):
    torch.manual_seed(1)
    first, second = views.six_views(volume, planes=2), views.six_views(volume, planes=2)
    torch.manual_seed(1)
    again = views.six_views(volume, planes=2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert any(not torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("planes", [0, Z])
def test_all_planes_need_no_draw(volume, planes):
    before = torch.get_rng_state()
    for view, every in zip(views.six_views(volume, planes), views.six_views(volume), strict=True):
        torch.testing.assert_close(view, every)
    assert torch.equal(torch.get_rng_state(), before)


def test_minimum_projection_is_a_minimum():
    volume = torch.tensor([[3.0, 1.0, 2.0, 5.0, 4.0, 6.0, -9.0]]).reshape(1, 1, 1, 1, 7)
    assert views.project(volume, 3, 1, "min").flatten().tolist() == [1.0, 4.0]  # the incomplete third slab is dropped
    assert views.project(volume, 1, 2, "min").flatten().tolist() == [1.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("how", "slabtarget", "expected"),
    [
        ("max", "pooled", [3.0, 8.0]),
        ("min", "pooled", [1.0, 2.0]),
        ("mean", "pooled", [2.0, 5.0]),
        ("dsp", "pooled", [1.0, 8.0]),
        ("max", "slice", [1.0, 8.0]),
        ("mean", "slice", [1.0, 8.0]),
    ],
)
def test_target_of_a_slab(how, slabtarget, expected):
    slices = torch.tensor([1.0, 3.0, 8.0, 2.0]).reshape(1, 1, 1, 1, 4).expand(2, 1, 3, 4, 4)
    target = views.project_slices(slices, 2, how, slabtarget)
    assert target.shape == (2, 1, 3, 4, 2)
    assert target[1, 0, 2, 3].tolist() == expected


def test_projection_and_target_have_the_same_shape():
    for how in views.PROJECTIONS:
        generated, encoded = torch.zeros(2, 1, 3, 4, 48), torch.zeros(2, 1, 3, 4, 6)
        assert views.project(generated, 8, 3, how).shape == views.project_slices(encoded, 3, how).shape == (2, 1, 3, 4, 2)


def test_an_expanded_volume_projects_back_onto_its_slices():
    encoded = torch.rand(2, 1, 3, 4, 6)
    expanded = encoded.repeat_interleave(4, dim=-1)
    for how in views.PROJECTIONS:
        torch.testing.assert_close(views.project(expanded, 4, 2, how), views.project_slices(encoded, 2, how))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda volume: views.project(volume, 4, 1, "median"), "how='median'"),
        (lambda volume: views.project(volume, 8, 1, "max"), "a slab of 8 planes"),
        (lambda volume: views.project_slices(volume, 2, "max"), "skip=2 must divide the 5"),
    ],
)
def test_misuse_is_named(volume, call, message):
    with pytest.raises(ValueError, match=message):
        call(volume)


def test_resampling_equals_trilinear_interpolation(volume):
    actual = views.resample_z(volume, 13)
    torch.testing.assert_close(actual, functional.interpolate(volume, size=(X, Y, 13), mode="trilinear", align_corners=False))
    assert views.resample_z(volume, Z) is volume


def test_pooling_keeps_the_maximum_and_gives_the_first_of_equals_the_gradient():
    volume = torch.tensor([1.0, 4.0, 7.0, 7.0, 9.0]).reshape(1, 1, 1, 1, 5).requires_grad_()
    pooled = views.pool_z(volume, 2)
    assert pooled.flatten().tolist() == [4.0, 7.0]
    pooled.sum().backward()
    assert volume.grad.flatten().tolist() == [0.0, 1.0, 1.0, 0.0, 0.0]
    assert views.pool_z(volume, 1) is volume


@pytest.mark.parametrize(("factor", "planes"), [(8, [4, 12, 20]), (6, [3, 9, 15, 21]), (3, [1, 4, 7, 10, 13, 16, 19, 22])])
def test_generated_slices_are_the_middle_planes(factor, planes):
    volume = torch.arange(24.0).expand(1, 1, 2, 3, 24)
    assert views.project(volume, factor, 1, "dsp")[0, 0, 1, 2].tolist() == planes


def test_gathered_voxels_are_those_of_the_row_order(volume):
    ids = torch.tensor([0, (1 * Y + 2) * Z + 3, (2 * Y + 3) * Z + 4])
    vectors = views.gather_voxels(volume, ids)
    assert vectors.shape == (B, 3, C)
    for b in range(B):
        torch.testing.assert_close(vectors[b], torch.stack([volume[b, :, 0, 0, 0], volume[b, :, 1, 2, 3], volume[b, :, 2, 3, 4]]))


def test_spread_pixels_are_those_of_the_channels_and_lie_channels_last():
    features = torch.randn(2, 3 * 2 * 2, 5, 4)
    made = views.spread_pixels(features, 2, 2)
    assert torch.equal(made, functional.pixel_shuffle(features, 2)) and made.is_contiguous(memory_format=torch.channels_last)
    tall = views.spread_pixels(features, 4, 1)
    assert tall.shape == (2, 3, 20, 4) and torch.equal(tall[1, 2, 4:8, 3], features[1, 8:, 1, 3])
