"""Adversarial losses of logits and of views, and MS-SSIM: values by hand."""

import math

import pytest
import torch

from networks import losses
from networks.patchgan import PatchDiscriminator
from networks.views import six_views


def logit_of(mean_plane):
    """A discriminator whose logit is the mean of the image."""
    return mean_plane.mean((1, 2, 3), keepdim=True)


def test_hinge_by_hand():
    logits = torch.tensor([-2.0, 0.5, 3.0])
    assert losses.adversarial(logits, True, "hinge").item() == pytest.approx((3 + 0.5 + 0) / 3)
    assert losses.adversarial(logits, False, "hinge").item() == pytest.approx((0 + 1.5 + 4) / 3)
    assert losses.adversarial(logits, True, "hinge", generator=True).item() == pytest.approx(-0.5)
    for mode in ("vanilla", "lsgan"):
        assert losses.adversarial(logits, True, mode, generator=True) == losses.adversarial(logits, True, mode)


def test_extreme_logits_stay_finite_and_half_precision_is_widened():
    assert losses.adversarial(torch.tensor([-1e4]), True, "vanilla").item() == pytest.approx(1e4)
    assert losses.adversarial(torch.zeros(3, dtype=torch.bfloat16), True, "vanilla").dtype == torch.float32
    double = losses.adversarial(torch.zeros(3, dtype=torch.float64), True, "vanilla")
    assert double.item() == pytest.approx(math.log(2), rel=1e-12)


def test_a_generator_does_not_want_to_be_found_out():
    with pytest.raises(ValueError, match="needs real=True"):
        losses.adversarial(torch.zeros(3), False, "hinge", generator=True)


class CountingDiscriminator(PatchDiscriminator):
    calls = 0

    def forward(self, images):
        self.calls += 1
        return super().forward(images)


@pytest.mark.parametrize(("size", "calls"), [((32, 32, 32), 1), ((32, 32, 48), 3), ((32, 48, 64), 6)])
@pytest.mark.parametrize("mode", ("vanilla", "lsgan", "hinge"))
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


@pytest.mark.parametrize("mode", ("vanilla", "lsgan", "hinge"))
@pytest.mark.parametrize(("size", "calls"), [((32, 32, 32), 1), ((32, 32, 48), 3)])
def test_one_verdict_serves_both_sides(mode, size, calls):
    torch.manual_seed(0)
    net_d = CountingDiscriminator(1, 2).double().requires_grad_(False)  # as while the generator descends
    volume = torch.randn(2, 1, *size, dtype=torch.float64, requires_grad=True)
    verdict = losses.Verdict(net_d, volume, six_views, mode)
    fooling = verdict.fooling()
    (pushed,) = torch.autograd.grad(fooling, volume)
    wanted = losses.adversarial_views(net_d, six_views(volume), True, mode, generator=True)
    torch.testing.assert_close(fooling, wanted)
    torch.testing.assert_close(pushed, torch.autograd.grad(wanted, volume)[0])
    weights = list(net_d.requires_grad_().parameters())
    found = verdict.finding()
    wanted = losses.adversarial_views(net_d, six_views(volume.detach()), False, mode)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(*(torch.autograd.grad(loss, weights) for loss in (found, wanted)))
    assert net_d.calls == 3 * calls


def test_a_verdict_without_gradients_is_the_loss_alone():
    net_d = PatchDiscriminator(1, 2)
    volume = torch.randn(1, 1, 32, 32, 32)
    with torch.no_grad():
        fooling = losses.Verdict(net_d, volume, six_views, "vanilla").fooling()
        torch.testing.assert_close(fooling, losses.adversarial_views(net_d, six_views(volume), True, "vanilla", generator=True))
    assert all(weight.requires_grad for weight in net_d.parameters())


def test_a_batch_of_two_is_the_mean_of_two_volumes():
    net_d = PatchDiscriminator(1, 2)
    volume = torch.randn(2, 1, 32, 32, 32)
    both = losses.adversarial_views(net_d, six_views(volume), False, "vanilla")
    each = [losses.adversarial_views(net_d, six_views(item[None]), False, "vanilla") for item in volume]
    torch.testing.assert_close(both, torch.stack(each).mean())


def test_ms_ssim_of_equal_images_is_zero_and_its_gradient_is_finite():
    image = torch.rand(1, 2, 97, 100) * 2 - 1
    assert losses.ms_ssim_loss(image, image).item() == pytest.approx(0, abs=1e-6)
    noisy = (image + 0.1 * torch.randn_like(image)).requires_grad_()
    losses.ms_ssim_loss(noisy, image).backward()
    assert noisy.grad.isfinite().all()
    assert noisy.grad.abs().sum() > 0
