"""The two autoencoder losses, composed of ldm/losses.py as the models do, against the reference at steps 0 to 3."""

import fixture_weights
import pytest
import torch
import torch.nn.functional as F

from ldm.bottleneck import DiagonalGaussian
from ldm.losses import adaptive_weight, disc_factor, generator_term, kl_reconstruction, vq_reconstruction
from networks.losses import hinge_discriminator
from taming.discriminator import NLayerDiscriminator

VQ = {"ndf": 8, "disc_start": 2, "disc_weight": 0.8}
KL = {"ndf": 64, "disc_start": 1, "disc_weight": 0.5, "kl_weight": 1e-6}


def tensor(array):
    return torch.from_numpy(array.copy())


@pytest.fixture
def parts(golden):
    """Target, reconstruction and the last layer's weight."""
    g = golden("ae_losses")
    last = tensor(g["last"]).requires_grad_()
    return g, tensor(g["target"]), F.conv2d(tensor(g["feat"]), last, padding=1), last


def recipe_discriminator(ndf):
    discriminator = NLayerDiscriminator(1, ndf)
    state = {k: torch.from_numpy(fixture_weights.value(f"loss.{k}", v.shape)) for k, v in prefixed(discriminator).items()}
    discriminator.load_state_dict({k.removeprefix("discriminator."): v for k, v in state.items()})
    return discriminator


def prefixed(discriminator):
    return {f"discriminator.{k}": v for k, v in discriminator.state_dict().items()}


def check(g, prefix, actual):
    """Relative 1e-5; every value stored under the prefix must be among ``actual``."""
    stored = {k.removeprefix(prefix): float(v) for k, v in g.items() if k.startswith(prefix)}
    assert stored.keys() == actual.keys()
    for name, value in actual.items():
        assert torch.as_tensor(value).item() == pytest.approx(stored[name], rel=1e-5, abs=1e-7), name


def generator_values(discriminator, nll, recon, last, step, settings):
    g_loss = generator_term(discriminator(recon))
    weight = settings["disc_weight"] * adaptive_weight(nll, g_loss, last)
    factor = disc_factor(step, settings["disc_start"])
    return {"g_loss": g_loss, "d_weight": weight, "disc_factor": factor, "nll_loss": nll}, weight * factor * g_loss


def discriminator_values(target, recon, step, settings):
    discriminator = recipe_discriminator(settings["ndf"])
    real, fake = discriminator(target), discriminator(recon.detach())
    loss = disc_factor(step, settings["disc_start"]) * hinge_discriminator(real, fake)
    return {"d": loss, "disc_loss": loss, "logits_real": real.mean(), "logits_fake": fake.mean()}


@pytest.mark.parametrize("step", range(4))
def test_vq_golden(parts, step):
    g, target, recon, last = parts
    codebook = g.meta["codebook_loss"]
    perceptual = torch.zeros(3, 1, 1, 1)
    nll = vq_reconstruction(target, recon, perceptual)
    values, adversarial = generator_values(recipe_discriminator(VQ["ndf"]), nll, recon, last, step, VQ)
    total = nll + adversarial + 1.0 * codebook
    values |= {"total": total, "total_loss": total, "quant_loss": codebook, "p_loss": perceptual.mean()}
    values |= {"rec_loss": (target - recon).abs().mean()} | discriminator_values(target, recon, step, VQ)
    check(g, f"vq_step{step}_", values)


@pytest.mark.parametrize("step", range(4))
def test_kl_golden(parts, step):
    g, target, recon, last = parts
    nll = kl_reconstruction(target, recon)
    kl = DiagonalGaussian(tensor(g["moments"])).kl().mean()
    values, adversarial = generator_values(recipe_discriminator(KL["ndf"]), nll, recon, last, step, KL)
    total = nll + KL["kl_weight"] * kl + adversarial
    values |= {"total": total, "total_loss": total, "kl_loss": kl, "logvar": 0.0}  # ours has no logvar: it never trained
    values |= {"rec_loss": (target - recon).abs().mean()} | discriminator_values(target, recon, step, KL)
    check(g, f"kl_step{step}_", values)


def test_perceptual_distances_spread_over_their_slices():
    slices, recon, perceptual = torch.zeros(2, 1, 3, 4), torch.full((2, 1, 3, 4), 0.5), torch.tensor([1.0, 3.0]).view(2, 1, 1, 1)
    assert vq_reconstruction(slices, recon, perceptual).item() == 0.5 + 2.0
    assert kl_reconstruction(slices, recon, perceptual).item() == 12 * (0.5 + 2.0)


def test_adaptive_weight_is_the_ratio_of_gradients_and_carries_none():
    w = torch.tensor([1.0, 2.0], requires_grad=True)
    weight = adaptive_weight(3.0 * w.sum(), 0.5 * w.sum(), w)
    assert weight.item() == pytest.approx(6.0, rel=1e-3)
    assert not weight.requires_grad
    assert adaptive_weight(1e9 * w.sum(), w.sum(), w).item() == 1e4


def test_adaptive_weight_keeps_the_graph():
    w = torch.ones(2, requires_grad=True)
    nll, g = w.square().sum(), w.sum()
    (nll + adaptive_weight(nll, g, w) * g).backward()
    torch.testing.assert_close(w.grad, torch.full((2,), 4.0), rtol=1e-3, atol=0)
