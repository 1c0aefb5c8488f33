"""Replays of the 2-D side: encoder, decoder, bottlenecks, their discriminator and their losses."""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from ldm.autoencoder import Attention, Decoder, Downsample, Encoder, ResBlock, Upsample
from ldm.bottleneck import DiagonalGaussian
from ldm.losses import RECONSTRUCTIONS, adaptive_weight, kl_reconstruction
from networks.losses import adversarial, hinge_discriminator
from taming.discriminator import NLayerDiscriminator
from taming.lpips import PerceptualLoss, lpips_head
from taming.quantize import VectorQuantizer, to_vectors
from tests.parity.comparison import LOSS, Comparison, parameter_gradients
from tests.parity.golden import recipe


def encoder(c: Comparison) -> None:
    """Outputs, kept features and gradients. Only the four block outputs leave our encoder; hooks listen to the others."""
    network = Encoder(**{k: v for k, v in c.meta["cfg"].items() if k != "out_ch"}, double_z=c.meta["double_z"])
    c.load(network)
    heard: dict[int, Tensor] = {}
    listened: dict[int, nn.Module] = {0: network.conv_in}
    listened |= {2 * level + 2: network.down[level].get_submodule("downsample") for level in range(3)}
    for index, module in listened.items():
        module.register_forward_hook(lambda module, args, output, index=index: heard.update({index: output}))
    x = c.tensor("x").requires_grad_()
    features = network(x)
    c.activation("h", features.latent)
    c.activation("hbranch", features.branch)
    for index, feature in heard.items() | {2 * level + 1: f for level, f in enumerate(features.pyramid)}.items():
        c.activation(f"hs{index}", feature)
    scalar = (features.latent * c.tensor("dir_h")).sum()
    scalar = scalar + sum((f * c.tensor(f"dir_hz{level}")).sum() for level, f in enumerate(features.pyramid))
    c.close("scalar", scalar, relative=LOSS)
    scalar.backward()
    c.gradient("grad_x", x.grad)
    c.gradient_norms("gnorm.", parameter_gradients(network))


def decoder(c: Comparison) -> None:
    """Reconstruction, the first layer alone and gradients."""
    network = Decoder(**{k: v for k, v in c.meta["cfg"].items() if k != "in_channels"})
    c.load(network)
    z = c.tensor("z").requires_grad_()
    y = network(z)
    c.activation("y", y)
    c.activation("conv_in_out", network.conv_in(z))
    (y * c.tensor("dir")).sum().backward()
    c.gradient("grad_z", z.grad)
    c.gradient_norms("gnorm.", parameter_gradients(network))


def blocks(c: Comparison) -> None:
    """The layers of the autoencoder one by one."""
    for name, layer in {"attn": Attention(32), "res": ResBlock(32, 64), "down": Downsample(32), "up": Upsample(32)}.items():
        c.load(layer, prefix=f"{name}.")
        c.activation(name, layer(c.tensor("x")))


def gaussian(c: Comparison) -> None:
    """The posterior; what our models do not need of it is that of a normal distribution with its moments."""
    close = partial(c.activation, relative=LOSS)
    posterior = DiagonalGaussian(c.tensor("moments"))
    for name in ("mean", "logvar", "std", "var"):
        close(name, getattr(posterior, name))
    close("mode", posterior.mean)
    close("sample", posterior.sample(c.tensor("noise")))
    close("kl", posterior.kl())
    ours, other = (Normal(p.mean, p.std) for p in (posterior, DiagonalGaussian(c.tensor("moments_other"))))
    close("kl_other", kl_divergence(ours, other).sum(dim=(1, 2, 3)))
    close("nll", -ours.log_prob(c.tensor("noise")).sum(dim=(1, 2, 3)))


def quantiser(c: Comparison) -> None:
    """Codes, loss and the gradients of <q, dir>, of the loss and of <q, dir> + 10·loss."""
    network = VectorQuantizer(c.meta["n_e"], c.meta["e_dim"], c.meta["beta"], legacy=c.meta["legacy"])
    network.load_state_dict({"embedding.weight": c.tensor("codebook")})
    z = c.tensor("z").requires_grad_()
    q = network(z)
    c.activation("q", q.latent)
    c.close("loss", q.loss, relative=LOSS)
    c.close("idx", q.indices.flatten())
    c.close("idx_bhw", q.indices)
    c.close("entry", network.lookup(q.indices))
    c.fact("min_margin", code_margin(z, network.embedding.weight), relative=1e-2)
    from_q = (q.latent * c.tensor("dir")).sum()
    for name, scalar in {"total": from_q + 10 * q.loss, "from_q": from_q, "from_loss": q.loss}.items():
        of_z, of_codes = torch.autograd.grad(scalar, (z, network.embedding.weight), retain_graph=True, allow_unused=True)
        c.gradient(f"grad_z_{name}", of_z)
        if name != "from_q":
            c.gradient(f"grad_codebook_{name}", of_codes)


def code_margin(z: Tensor, codebook: Tensor) -> float:
    """The smallest gap between the squared distances to the nearest and to the second nearest code."""
    distances = torch.cdist(to_vectors(z).double(), codebook.detach().double()).square()
    nearest = distances.topk(2, largest=False).values
    return float((nearest[:, 1] - nearest[:, 0]).min())


def slice_discriminator(c: Comparison) -> None:
    """Training pass, running statistics after it, gradients; evaluation with the recipe's statistics."""
    network = NLayerDiscriminator(1, c.meta["ndf"], c.meta["n_layers"])
    c.load(network)
    x = c.tensor("x").requires_grad_()
    c.activation("y_eval", network.eval()(x))
    y = network.train()(x)
    c.activation("y_train", y)
    (y * c.tensor("dir")).sum().backward()
    c.gradient("grad_x", x.grad)
    c.gradient_norms("gnorm.", parameter_gradients(network))
    for name, buffer in network.named_buffers():
        c.activation(f"after.{name}", buffer, relative=LOSS)


def perceptual(c: Comparison) -> None:
    """LPIPS from given features, whole and layer by layer, and the colour scaling of a grey image."""
    a, b, weights = ([c.tensor(f"{name}{layer}") for layer in range(5)] for name in ("fa", "fb", "lin"))
    c.close("value", lpips_head(a, b, weights), relative=LOSS)
    for layer in range(5):
        one = slice(layer, layer + 1)
        c.close(f"per{layer}", lpips_head(a[one], b[one], weights[one]), relative=LOSS)
    c.activation("scaled", _any_perceptual_loss().scale(c.tensor("x1")))


@cache
def _any_perceptual_loss() -> PerceptualLoss:
    """Its weights do not matter here, but drawing them takes a second."""
    return PerceptualLoss(random_weights=True)


def losses(c: Comparison) -> None:
    """Both autoencoder losses for both optimisers, with every part that the reference logged, at steps 0 to 3."""
    last = c.tensor("last").requires_grad_()
    recon, target = F.conv2d(c.tensor("feat"), last, padding=1), c.tensor("target")
    absolute = (target - recon).abs().mean()
    kl = DiagonalGaussian(c.tensor("moments")).kl().mean()
    for step in range(4):
        vq = {"rec_loss": absolute, "quant_loss": c.meta["codebook_loss"], "p_loss": 0.0}
        weighed = _weigh(RECONSTRUCTIONS["absolute"](target, recon), target, recon, last, step, ndf=8, start=2, weight=0.8)
        total = weighed["nll_loss"] + weighed.pop("adversarial") + c.meta["codebook_loss"]
        _compare_losses(c, f"vq_step{step}_", vq | weighed | {"total": total, "total_loss": total})
        gauss = {"rec_loss": absolute, "kl_loss": kl, "logvar": 0.0}  # ours has no logvar: it never trained
        weighed = _weigh(kl_reconstruction(target, recon), target, recon, last, step, ndf=64, start=1, weight=0.5)
        total = weighed["nll_loss"] + weighed.pop("adversarial") + 1e-6 * kl
        _compare_losses(c, f"kl_step{step}_", gauss | weighed | {"total": total, "total_loss": total})


def _weigh(
    nll: Tensor, target: Tensor, recon: Tensor, last: Tensor, step: int, *, ndf: int, start: int, weight: float
) -> dict[str, Any]:
    """The adversarial parts, composed as the models do; every pass of the discriminator begins with fresh statistics."""
    network, factor = NLayerDiscriminator(1, ndf), float(step >= start)
    state = {key: recipe(f"loss.discriminator.{key}", list(value.shape)) for key, value in network.state_dict().items()}
    network.load_state_dict({key: torch.tensor(value) for key, value in state.items()})
    g = adversarial(network(recon), True, "hinge", generator=True)
    adaptive = weight * adaptive_weight(nll, g, last)
    real, fake = network(target), network(recon.detach())
    d = factor * hinge_discriminator(real, fake)
    made = {"nll_loss": nll, "g_loss": g, "d_weight": adaptive, "disc_factor": factor, "adversarial": adaptive * factor * g}
    return made | {"d": d, "disc_loss": d, "logits_real": real.mean(), "logits_fake": fake.mean()}


def _compare_losses(c: Comparison, prefix: str, ours: dict[str, Any]) -> None:
    for name, value in ours.items():
        c.close(prefix + name, value, relative=LOSS, absolute=1e-7)
