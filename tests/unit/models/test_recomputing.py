"""Activations that are computed again: the same step, the same running statistics, less that is kept."""

import copy

import torch
from torch.autograd.graph import saved_tensors_hooks

from benchmarks.schedules import Step

SMALL = {"cropsize": 64, "cropz": 8, "ldmyaml": "vqgan_small", "ngf": 16, "ndf": 8, "adv_planes": 4}


def test_a_step_is_the_same_and_keeps_less():
    plain, again = (Step("cpu", **SMALL, recompute=how) for how in (False, True))
    again.model.load_state_dict(plain.model.state_dict())
    again.batch = plain.batch
    losses, kept = [], []
    for step in (plain, again):
        step.model.perceptual = None
        sizes = {}
        torch.manual_seed(0)
        with saved_tensors_hooks(lambda t, sizes=sizes: (sizes.update({t.data_ptr(): t.nbytes}), t)[1], lambda t: t):
            losses.append(step.ours())
        kept.append(sum(sizes.values()))
    torch.testing.assert_close(*losses)
    assert kept[1] < kept[0] / 2
    for (name, one), other in zip(plain.model.state_dict().items(), again.model.state_dict().values(), strict=True):
        if "running" in name or "tracked" in name:  # weights move by Adam's sign of gradients that are nearly 0
            torch.testing.assert_close(one, other, msg=lambda text, name=name: f"{name}: {text}")


def test_an_averaged_copy_has_networks_of_its_own():
    model = Step("cpu", **SMALL, recompute=True).model
    copied = copy.deepcopy(model.G)
    latents = torch.rand(1, copied["net_g"].in_channels, 2, 2, 2)
    with torch.no_grad():
        copied["net_g"].conv7_k[0][0].weight.zero_()
        copied["net_g"].conv7_k[0][0].bias.zero_()
        assert not copied["net_g"](latents).any() and model.G["net_g"](latents).any()
