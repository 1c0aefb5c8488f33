"""The reference as REFERENCE.md words it: its losses and models, on the networks of reference_networks.py.

Slow and literal. It fills fixtures that are not at hand with numbers which benchmarks/parity.py must then reproduce; that it is
itself right is tested by the fixtures that are.
"""

from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F

from tests.e2e.reference_networks import (
    conv,
    decoder,
    ed023e,
    encoder,
    plane_critic,
    quantise,
    slice_critic,
    trainable,
    unet_decode,
    unet_encode,
)

STRIDE_OF_KEY = 8  # of the generated slices that the contrastive term looks at, whatever the factor


# Losses --------------------------------------------------------------------------------------------------------------


def slices_of(volume):
    return volume[0].permute(3, 0, 1, 2)


def volume_of(slices):
    return slices.permute(1, 2, 3, 0)[None]


def six(volume):
    v = volume[0]
    layouts = ((1, 0, 3, 2), (1, 0, 2, 3), (2, 0, 3, 1), (2, 0, 1, 3), (3, 0, 1, 2), (3, 0, 2, 1))
    return [v.permute(layout) for layout in layouts]


def verdict(logits, real, mode):
    target = torch.full_like(logits, float(real))
    return F.mse_loss(logits, target) if mode == "lsgan" else F.binary_cross_entropy_with_logits(logits, target)


def hinge(real, fake):
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def project(volume, factor, skip, how):
    if how == "dsp":
        return volume[..., factor // 2 :: factor * skip]
    slabs = volume.unfold(4, factor * skip, factor * skip)
    return slabs.max(-1).values if how == "max" else slabs.mean(-1)


def patch_term(original, generated, random, patches):
    """The contrastive term without MLPs, with the positions drawn from the generated features, and these positions."""
    losses, drawn = [], []
    for q, k in zip(original, generated, strict=True):
        rows = [feature[0].permute(1, 2, 3, 0).flatten(0, 2) for feature in (q, k.detach())]
        ids = torch.from_numpy(random.permutation(len(rows[1]))[:patches])
        q, k = (r[ids] / (r[ids].norm(dim=1, keepdim=True) + 1e-7) for r in rows)
        own, others = (q * k).sum(1, keepdim=True), (q @ k.T).masked_fill(torch.eye(len(ids), dtype=torch.bool), -10.0)
        logits = torch.cat([own, others], 1) / 0.07
        losses.append(F.cross_entropy(logits, torch.zeros(len(ids), dtype=torch.int64)))
        drawn.append(ids)
    return sum(losses) / 4, drawn


def gradient_entries(prefix, weights, total, only=()):
    """Norms of all gradients under ``gnorm.`` and whole ones under ``grad.``."""
    for value in weights.values():
        value.grad = None
    total.backward(retain_graph=True)
    made = {}
    for key, value in weights.items():
        if value.grad is not None and (not only or key.startswith(tuple(only))):
            made[f"{prefix}gnorm.{key}"] = value.grad.double().norm()
            made[f"{prefix}grad.{key}"] = value.grad.clone()
    return made


# The slice models ----------------------------------------------------------------------------------------------------

GENERATOR = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.", "net_g.", "loss.logvar")
DISCRIMINATOR = ("net_d.", "loss.discriminator.")


class SliceModel:
    """One generation of the VQ or the KL model, and its losses."""

    def __init__(self, golden, double=False):
        self.meta, self.golden, self.double = golden.meta, golden, double
        self.h = {"dsp": 1, "usp": 1, "downbranch": 1, "resizebranch": 1, "lamb": 10, "gan_mode": "vanilla", "tc": False}
        self.h |= golden.meta["hparams"]
        self.w = trainable(golden.weights(), double)
        self.kl = "ldmyaml" in self.h
        self.loss = {"disc_start": 1, "disc_weight": 0.5} if self.kl else {"disc_start": 250001, "disc_weight": 0.8}
        self.loss |= golden.meta.get("lossparams", {})
        self.factor = int((self.h["cropsize"] // self.h["cropz"]) * self.h["dsp"] / self.h["usp"])

    def array(self, key):
        tensor = torch.tensor(self.golden[key])
        return tensor.double() if self.double else tensor

    def encode(self, volume):
        h, levels = encoder(self.w / "encoder.", slices_of(volume))
        return h, levels

    def prepared(self):
        """The volume that is encoded, and what was drawn."""
        h, random = self.h, np.random.RandomState(5)
        volumes = [self.array(key) for key in (("vol0", "vol1") if h["tc"] else ("vol0",))]
        start = random.randint(volumes[0].shape[-1] - h["cropz"])
        volumes = [volume[..., start : start + h["cropz"]] for volume in volumes]
        drawn = [int(start)]
        if h["dsp"] > 1:
            drawn.append(int(random.randint(h["dsp"])))
            volumes = [volume[..., drawn[1] :: h["dsp"]] for volume in volumes]
        if h["usp"] != 1:
            size = (*volumes[0].shape[2:4], int(volumes[0].shape[4] * h["usp"]))
            volumes = [F.interpolate(volume, size=size, mode="trilinear") for volume in volumes]
        return torch.cat(volumes, 1) if h["tc"] else volumes[0], drawn

    def generate(self):
        original, drawn = self.prepared()
        w, g = self.w, SimpleNamespace(oriX=original, drawn=drawn)
        raw, levels = self.encode(original)
        moments = conv(w, "quant_conv", raw)
        g.hz = [volume_of(level) for level in levels]
        if self.kl:
            mean, logvar = moments.chunk(2, 1)
            std = (logvar.clamp(-30, 20) / 2).exp()
            latent, branch = (mean + std * self.array(f"noise{i}") for i in range(2))
            g.code_loss = 0.5 * (mean**2 + std**2 - 1 - logvar.clamp(-30, 20)).sum((1, 2, 3))
            g.entries = {"moments": moments, "kl": g.code_loss, "hbranch": levels[-1]}
            g.entries["recon_mode"] = decoder(w / "decoder.", conv(w, "post_quant_conv", mean))
        else:
            latent, g.code_loss, indices = quantise(w["quantize.embedding.weight"], moments)
            branch = latent
            g.entries = {"h": moments, "quant": latent, "qloss": g.code_loss, "indices": indices}
            g.margin = code_margin(moments, w["quantize.embedding.weight"])
        g.recon = decoder(w / "decoder.", conv(w, "post_quant_conv", latent))
        g.XupX = ed023e(w / "net_g.", volume_of(levels[-1]) if self.h.get("hbranch") == "mid" else self.lifted(branch))
        g.Xup = F.interpolate(original, size=(self.h["cropsize"],) * 3, mode="trilinear")
        g.entries |= {"oriX": original, "XupX": g.XupX, "Xup": g.Xup, "reconstructions": g.recon}
        g.entries |= {f"hz{i}": level for i, level in enumerate(g.hz)}
        return g

    def lifted(self, latent):
        stack = volume_of(latent)
        if self.h["downbranch"] > 1:
            stack = F.max_pool3d(stack, (1, 1, self.h["downbranch"]))
        if self.h["resizebranch"] != 1:
            stack = F.interpolate(stack, scale_factor=(1, 1, self.h["resizebranch"]), mode="trilinear")
        return volume_of(conv(self.w / "decoder.", "conv_in", slices_of(stack), padding=1))

    def seen(self, images, real):
        return sum(verdict(plane_critic(self.w / "net_d.", view), real, self.h["gan_mode"]) for view in images) / len(images)

    def generator(self, g, how, cut, step):
        """Terms by the reference's names."""
        h, target = self.h, slices_of(g.oriX)[:, :1]
        skip = h["skipl1"]
        terms = {"axx": self.seen(six(g.XupX), True)}
        terms["l1"] = (project(g.XupX, self.factor, skip, how) - g.oriX[..., ::skip]).abs().mean()
        absolute = (target - g.recon).abs()
        nll = absolute.mean()
        if self.kl:
            s = self.w["loss.logvar"]
            nll = (absolute / s.exp() + s).sum() / len(target)
        fooled, last = -slice_critic(self.w / "loss.discriminator.", g.recon).mean(), self.w["decoder.conv_out.weight"]
        sizes = [torch.autograd.grad(value, last, retain_graph=True)[0].norm() for value in (nll, fooled)]
        share = (sizes[0] / (sizes[1] + 1e-4)).clamp(0, 1e4).detach() * self.loss["disc_weight"]
        ae = nll + share * float(step >= self.loss["disc_start"]) * fooled
        ae = ae + (1e-6 * g.code_loss.mean() if self.kl else g.code_loss)
        total = terms["axx"] + h["lamb"] * terms["l1"] + ae + (0 if self.kl else g.code_loss)
        terms |= {"ae_derived": ae} if self.kl else {"ae": ae, "vq": g.code_loss}
        if cut:
            with torch.no_grad():
                _, generated = self.encode(g.XupX[..., STRIDE_OF_KEY // 2 :: STRIDE_OF_KEY])
            random = np.random.RandomState(9)
            terms["nce"], g.ids = patch_term(g.hz, [volume_of(k) for k in generated], random, h["num_patches"])
            total = total + h["lbNCE"] * terms["nce"]
        return terms | {"sum": total}

    def discriminator(self, g, step):
        real, fake = slices_of(g.oriX), g.recon.detach()
        dxx = self.seen(six(g.XupX.detach()), False) + self.seen([real], True)
        critic = self.w / "loss.discriminator."
        disc = float(step >= self.loss["disc_start"]) * hinge(slice_critic(critic, real[:, :1]), slice_critic(critic, fake))
        return {"dxx_x": dxx, ("disc_derived" if self.kl else "disc"): disc, "sum": dxx + disc}

    def entries(self, cases):
        """Everything that a fixture with these cases (cut, how, step) may hold."""
        g = self.generate()
        made = dict(g.entries)
        for cut, how, step in cases:
            prefix = f"{'cut' if cut else 'nocut'}.{how}.step{step}."
            for side, terms in (("g", self.generator(g, how, cut, step)), ("d", self.discriminator(g, step))):
                made |= {f"{prefix}{side}.{key}": value for key, value in terms.items()}
                only = GENERATOR if side == "g" else DISCRIMINATOR
                made |= gradient_entries(f"{prefix}{side}.", self.w, terms["sum"], only)
        made |= {f"patch_ids{level}": ids for level, ids in enumerate(getattr(g, "ids", ()))}
        facts = {"z_init": g.drawn, "uprate": self.factor} | ({} if self.kl else {"vq_min_margin": g.margin})
        return {("f64." if self.double else "") + key: as_array(value) for key, value in made.items()}, facts


def code_margin(moments, codebook):
    rows = moments.detach().movedim(1, -1).reshape(-1, moments.shape[1]).double()
    nearest = ((rows[:, None] - codebook.detach().double()) ** 2).sum(2).sort(1).values
    return float((nearest[:, 1] - nearest[:, 0]).min())


# IsoREF --------------------------------------------------------------------------------------------------------------


def isoref_entries(golden):
    """Everything that an IsoREF fixture may hold, for the seeds that its description lists."""
    h = {"lamb": 10, "uprate": 8, "nocyc": not any(k.startswith("net_gback.") for k in golden.meta["manifest"])}
    h |= golden.meta["hparams"]
    made, runs = {}, []
    for index, seed in enumerate(run["seed"] for run in golden.meta["runs"]):
        w, random = trainable(golden.weights()), np.random.RandomState(seed)
        original = torch.tensor(golden["vol0"])
        start = int(random.randint(original.shape[-1] - h["cropz"]))
        original = original[..., start : start + h["cropz"]]
        swap = random.randint(2) == 1
        original = original.transpose(2, 3) if swap else original
        interpolated = F.interpolate(original, size=(h["cropsize"],) * 3, mode="trilinear")
        features = unet_encode(w / "net_g.", interpolated)
        volume = unet_decode(w / "net_g.", features)
        group = int(random.randint(3))
        runs.append({"seed": seed, "z_init": start, "transpose_xy": bool(swap), "view_group_g": group})
        g, d = _isoref_losses(w, h, original, interpolated, features, volume, group, random)
        for side, terms, only in (("g", g, ("net_g.", "net_gback.")), ("d", d, ("net_d",))):
            made |= {f"run{index}.{side}.{key}": value for key, value in terms.items()}
            made |= gradient_entries(f"run{index}.{side}.", w, terms["sum"], only)
        if index == 0:
            made |= {"oriX": original, "Xup": interpolated, "XupX": volume}
    return {key: as_array(value) for key, value in made.items()}, {"runs": runs}


def _isoref_losses(w, h, original, interpolated, features, volume, group, random):
    assert h["nocyc"], "the fixture with the cycle is at hand"
    views = six(volume)[2 * group : 2 * group + 2]
    flipped = [views[0].flip(2), views[1].flip(3)] if group < 2 else views

    def seen(images, real):
        return sum(verdict(plane_critic(w / "net_d.", view), real, "vanilla") for view in images) / len(images)

    g = {"axx": seen([*views, *flipped], True)}
    g["l1"] = (
        (project(volume, h["uprate"], h["skipl1"], "max") - project(interpolated, h["uprate"], h["skipl1"], "max")).abs().mean()
    )
    g["sum"] = g["axx"] + h["lamb"] * g["l1"]
    if not h.get("nocut", True):
        g["nce"], _ = patch_term(features, unet_encode(w / "net_g.", volume.detach()), random, h["num_patches"])
        g["sum"] = g["sum"] + h["lbNCE"] * g["nce"]
    fake = [view.detach() for view in (*views, *flipped)]
    d = {"dxx_x": seen(fake, False) + seen([slices_of(original)], True)}
    return g, d | {"sum": d["dxx_x"]}


def as_array(value):
    return value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
