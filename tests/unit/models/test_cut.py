"""PatchContrast: its criterion by hand, its directions, and what a batch contrasts with."""

import numpy as np
import pytest
import torch

from models.CUT import PatchContrast, patch_nce
from models.options import CUT
from utils.errors import UserError

SIZES = ((6, 2, 3, 5), (4, 1, 2, 3))


def pyramid(batch=1, scale=1.0):
    return [scale * torch.randn(batch, *size) for size in SIZES]


def contrast_of(channels, **changed):
    return PatchContrast(channels, {option.name: option.default for option in CUT} | changed)


def numpy_draw(seed):
    generator = np.random.RandomState(seed)
    return lambda n: torch.from_numpy(generator.permutation(n))


def test_by_hand():
    query = torch.eye(3).unsqueeze(0)
    key = query[:, [0, 2, 1]]  # the first finds its own, the others find each other's
    expected = [np.log(np.exp(1) + 2) - 1, np.log(np.exp(1) + 2), np.log(np.exp(1) + 2)]
    np.testing.assert_allclose(patch_nce(query, key, 1.0)[0], expected, rtol=1e-6)


def test_a_batch_of_two_is_the_mean_of_two_volumes():
    contrast = contrast_of((6, 4), num_patches=4)
    query, key = pyramid(2), pyramid(2)
    both = contrast(query, key, numpy_draw(0))
    each = [contrast([q[i : i + 1] for q in query], [k[i : i + 1] for k in key], numpy_draw(0)) for i in range(2)]
    torch.testing.assert_close(both, torch.stack(each).mean())


def test_all_negatives_contrasts_with_the_other_volumes_too():
    contrast = contrast_of((6, 4), num_patches=4, nce_includes_all_negatives_from_minibatch=True)
    query, key = pyramid(2), pyramid(2)
    draw = numpy_draw(0)
    expected = 0.0
    for level in range(2):
        ids = draw(query[level][0, 0].numel())[:4]
        rows = [contrast.sample(level, role[level], ids).reshape(1, -1, SIZES[level][0]) for role in (query, key)]
        expected = expected + patch_nce(*rows, 0.07).mean() / 2
    actual = contrast(query, key, numpy_draw(0))
    torch.testing.assert_close(actual, expected)
    assert actual > contrast_of((6, 4), num_patches=4)(query, key, numpy_draw(0))


def test_levels_are_weighted_and_a_weight_of_zero_draws_nothing():
    query, key = pyramid(), pyramid()

    def loss(*weights):
        return contrast_of((6, 4), num_patches=4, fWhich=weights)(query, key, numpy_draw(0))

    torch.testing.assert_close(loss(3.0, 0.0), 3 * loss(1.0, 0.0))
    torch.testing.assert_close(loss(1.0, 2.0), loss(1.0, 1.0) * 2 - loss(1.0, 0.0))
    only_second = contrast_of((4,), num_patches=4)(query[1:], key[1:], numpy_draw(0)) / 2
    torch.testing.assert_close(loss(0.0, 1.0), only_second)


def test_positions_follow_the_global_generator():
    contrast, query, key = contrast_of((6, 4), num_patches=3), pyramid(), pyramid()
    torch.manual_seed(0)
    first, second = contrast(query, key), contrast(query, key)
    torch.manual_seed(0)
    assert contrast(query, key) == first != second


def test_only_the_query_and_the_perceptrons_have_a_gradient():
    contrast = contrast_of((6, 4), use_mlp=True, c_mlp=16)
    query, key = ([volume.requires_grad_() for volume in pyramid()] for _ in range(2))
    contrast(query, key).backward()
    assert all(volume.grad.abs().sum() > 0 for volume in query)
    assert all(volume.grad is None for volume in key)
    assert all(parameter.grad is not None for parameter in contrast.parameters())


def test_equal_features_are_recognised():
    contrast, features = contrast_of((6, 4)), pyramid(2)
    assert contrast(features, features) < contrast(features, pyramid(2))


def test_perceptrons_start_small_and_only_where_asked_for():
    assert not contrast_of((6, 4)).state_dict()
    torch.manual_seed(0)
    state = contrast_of((64, 128), use_mlp=True).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == {
        "mlp_0.0.weight": (256, 64),
        "mlp_0.0.bias": (256,),
        "mlp_0.2.weight": (256, 256),
        "mlp_0.2.bias": (256,),
        "mlp_1.0.weight": (256, 128),
        "mlp_1.0.bias": (256,),
        "mlp_1.2.weight": (256, 256),
        "mlp_1.2.bias": (256,),
    }
    for key, value in state.items():
        if key.endswith("bias"):
            assert not value.any()
        else:
            assert value.std().item() == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("use_mlp", [False, True])
def test_half_precision_is_widened(use_mlp):
    contrast, query, key = contrast_of((6, 4), use_mlp=use_mlp, c_mlp=16), pyramid(), pyramid()
    full = contrast(query, key, numpy_draw(3))
    with torch.autocast("cpu", torch.bfloat16):
        mixed = contrast(query, key, numpy_draw(3))
    assert mixed.dtype == torch.float32
    assert mixed.item() == pytest.approx(full.item(), rel=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fWhich": [1.0, 1.0, 1.0]}, r"fWhich=\[1.0, 1.0, 1.0\] has 3 weights, but the features have 2 levels"),
        ({"fWhich": [0.0, 0.0]}, "leaves no level to compare"),
        ({"num_patches": 1}, "num_patches=1 leaves no negative"),
    ],
)
def test_settings_that_cannot_work_are_named(options, message):
    with pytest.raises(UserError, match=message):
        contrast_of((6, 4), **options)


def test_query_and_key_must_correspond():
    contrast, features = contrast_of((6, 4)), pyramid()
    with pytest.raises(ValueError, match="must have the same shapes and 2 levels"):
        contrast(features, [volume[..., :-1] for volume in features])
    with pytest.raises(ValueError, match="must have the same shapes and 2 levels"):
        contrast(features[:1], features[:1])
