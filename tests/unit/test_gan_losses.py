"""Adversarial losses of logits and of views, and MS-SSIM: the reference's numbers and values by hand."""

import math

import pytest
import torch

from networks import losses
from networks.patchgan import PatchDiscriminator
from networks.views import isoref_views, six_views
from utils.errors import UserError


def logit_of(mean_plane):
    """A discriminator whose logit is the mean of the image."""
    return mean_plane.mean((1, 2, 3), keepdim=True)


@pytest.mark.parametrize("mode", ["vanilla", "lsgan"])
@pytest.mark.parametrize("real", [True, False])
def test_adversarial_matches_the_reference(golden, mode, real):
    reference = golden("gan_losses")
    logits = torch.from_numpy(reference["logits_real"])
    assert losses.adversarial(logits, real, mode).item() == pytest.approx(float(reference[f"adv_{mode}_{real}"]), rel=1e-5)
    if mode == "vanilla":
        stored = float(reference[f"ganloss_vanilla_class_{real}"])
        assert losses.adversarial(logits, real, mode).item() == pytest.approx(stored, rel=1e-5)
    assert losses.adversarial(logits, True, mode, generator=True) == losses.adversarial(logits, True, mode)


@pytest.mark.parametrize("name", ["hinge", "vanilla"])
def test_discriminator_losses_match_the_reference(golden, name):
    reference = golden("gan_losses")
    real, fake = (torch.from_numpy(reference[f"logits_{kind}"]) for kind in ("real", "fake"))
    actual = getattr(losses, f"{name}_discriminator")(real, fake)
    assert actual.item() == pytest.approx(float(reference[f"{name}_d"]), rel=1e-5)


def test_hinge_by_hand():
    logits = torch.tensor([-2.0, 0.5, 3.0])
    assert losses.adversarial(logits, True, "hinge").item() == pytest.approx((3 + 0.5 + 0) / 3)
    assert losses.adversarial(logits, False, "hinge").item() == pytest.approx((0 + 1.5 + 4) / 3)
    assert losses.adversarial(logits, True, "hinge", generator=True).item() == pytest.approx(-0.5)


def test_extreme_logits_stay_finite_and_half_precision_is_widened():
    assert losses.adversarial(torch.tensor([-1e4]), True, "vanilla").item() == pytest.approx(1e4)
    assert losses.adversarial(torch.zeros(3, dtype=torch.bfloat16), True, "vanilla").dtype == torch.float32
    double = losses.adversarial(torch.zeros(3, dtype=torch.float64), True, "vanilla")
    assert double.item() == pytest.approx(math.log(2), rel=1e-12)


def test_wgangp_is_refused_by_name():
    with pytest.raises(UserError, match="gan_mode='wgangp' is unknown; choose one of vanilla, lsgan, hinge"):
        losses.adversarial(torch.zeros(3), True, "wgangp")


def test_a_generator_does_not_want_to_be_found_out():
    with pytest.raises(ValueError, match="needs real=True"):
        losses.adversarial(torch.zeros(3), False, "hinge", generator=True)


@pytest.mark.parametrize("key", ["meanloss", "isoref_y_meanloss", "isoref_group0", "isoref_group1", "isoref_group2"])
def test_mean_over_views_matches_the_reference(golden, key):
    """The reference was run with the mean of the planes for a loss; minus that is the generator's hinge."""
    reference = golden("sixway")
    volume = torch.from_numpy(reference["x"])
    views = isoref_views(volume, int(key[-1])) if key.startswith("isoref_group") else six_views(volume)
    stored = reference[f"{key}_meanloss" if key.startswith("isoref_group") else key]
    actual = -losses.adversarial_views(logit_of, views, True, "hinge", generator=True)
    assert actual.item() == pytest.approx(float(stored), rel=1e-5)


@pytest.mark.parametrize("real", [True, False])
def test_six_views_through_patch_16_match_the_reference(golden, load_weights, real):
    reference, net_d = golden("sixway"), PatchDiscriminator(1, 8)
    load_weights(net_d, golden("patchD_16").weights())
    views = six_views(torch.from_numpy(reference["x32"]))
    loss = losses.adversarial_views(net_d, views, real, "vanilla")
    assert loss.item() == pytest.approx(float(reference[f"sixway_patch16_{real}"]), rel=1e-5)


class CountingDiscriminator(PatchDiscriminator):
    calls = 0

    def forward(self, images):
        self.calls += 1
        return super().forward(images)


@pytest.mark.parametrize(("size", "calls"), [((32, 32, 32), 1), ((32, 32, 48), 3), ((32, 48, 64), 6)])
@pytest.mark.parametrize("mode", losses.GAN_MODES)
def test_one_call_for_each_shape_equals_six_calls(size, calls, mode):
    torch.manual_seed(0)
    net_d = CountingDiscriminator(1, 2)
    volume = torch.randn(2, 1, *size)
    views = six_views(volume, planes=3)
    batched = losses.adversarial_views(net_d, views, True, mode)
    assert net_d.calls == calls
    single = torch.stack([losses.adversarial(net_d(view), True, mode) for view in views]).mean()
    torch.testing.assert_close(batched, single)


def test_views_count_equally_whatever_their_number_of_planes():
    many, few = torch.full((5, 1, 2, 2), 2.0), torch.full((1, 1, 2, 2), 8.0)
    assert losses.adversarial_views(logit_of, [many, few], True, "hinge", generator=True).item() == -5
    assert losses.adversarial_views(logit_of, [few, many], False, "lsgan").item() == (64 + 4) / 2


def test_gradients_through_the_batched_call_equal_those_of_six_calls():
    net_d = PatchDiscriminator(1, 2)
    volume = torch.randn(1, 1, 32, 32, 32, requires_grad=True)
    (batched,) = torch.autograd.grad(losses.adversarial_views(net_d, six_views(volume), True, "vanilla"), volume)
    single = torch.stack([losses.adversarial(net_d(view), True, "vanilla") for view in six_views(volume)]).mean()
    torch.testing.assert_close(batched, torch.autograd.grad(single, volume)[0])


def test_a_batch_of_two_is_the_mean_of_two_volumes():
    net_d = PatchDiscriminator(1, 2)
    volume = torch.randn(2, 1, 32, 32, 32)
    both = losses.adversarial_views(net_d, six_views(volume), False, "vanilla")
    each = [losses.adversarial_views(net_d, six_views(item[None]), False, "vanilla") for item in volume]
    torch.testing.assert_close(both, torch.stack(each).mean())


def test_ms_ssim_matches_the_reference(golden):
    reference = golden("ms_ssim")
    a, b = torch.from_numpy(reference["a"]), torch.from_numpy(reference["b"])
    assert 1 - losses.ms_ssim_loss(a, b).item() == pytest.approx(float(reference["value"]), rel=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert 1 - losses.ms_ssim_loss(a, b).item() == pytest.approx(float(reference["value"]), rel=1e-5)


def test_ms_ssim_of_equal_images_is_zero_and_its_gradient_is_finite():
    image = torch.rand(1, 2, 97, 100) * 2 - 1
    assert losses.ms_ssim_loss(image, image).item() == pytest.approx(0, abs=1e-6)
    noisy = (image + 0.1 * torch.randn_like(image)).requires_grad_()
    losses.ms_ssim_loss(noisy, image).backward()
    assert noisy.grad.isfinite().all()
    assert noisy.grad.abs().sum() > 0


def test_ms_ssim_names_a_crop_that_is_too_small():
    small = torch.zeros(1, 1, 96, 128)
    with pytest.raises(UserError, match=r"larger than 96 pixels, not 96 x 128; set cropsize to at least 104 or lbm_ms_ssim to 0"):
        losses.ms_ssim_loss(small, small)
