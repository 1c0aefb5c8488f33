"""Replays of the 3-D side: generators, discriminator of planes, views, projections and their losses."""

from __future__ import annotations

import re

import numpy as np
import torch
from torch import Tensor, nn

from models.CUT import Draw, PatchContrast, patch_nce
from models.options import CUT
from networks import losses
from networks.generators import ConvBlock, UNet3d, VolumeDecoder
from networks.patchgan import PatchDiscriminator
from networks.views import isoref_views, project, six_views
from tests.parity.comparison import LOSS, RUNNING_KEYS, Comparison, parameter_gradients
from tests.parity.golden import recipe
from tests.parity.rounding import reference_order

SECOND_HEAD = "conv7_g."  # of the reference's generators; never trained, not built
ENCODE_HALF = "down"  # of the reference's ed023e; never used, not built


def volume_decoder(c: Comparison) -> None:
    """ed023e from latents: training pass with its gradients and statistics, evaluation from fresh statistics."""
    network = VolumeDecoder(c.meta["nf"], norm=c.meta["norm"])
    c.load(network, absent=(SECOND_HEAD, ENCODE_HALF))
    with torch.no_grad():
        c.activation("eval_out0", network.eval()(c.tensor("lat")))
    latents = c.tensor("lat").requires_grad_()
    volume = network.train()(latents)
    c.activation("train_out0", volume)
    (volume * c.tensor("dir")).sum().backward()
    c.gradient("grad_lat", latents.grad)
    c.gradient_norms("gnorm.", parameter_gradients(network))
    for name, buffer in network.named_buffers():
        if name.endswith(RUNNING_KEYS[:2]):
            c.activation(f"after.{name}", buffer, relative=LOSS)


class ConvOverXZ(nn.Conv2d):
    """The 2-D convolution over the XZ plane of every y, (B, C, X, Y, Z): known to the reference, refused by our settings."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__(inner, outer, 3, padding=1)

    def forward(self, volume: Tensor) -> Tensor:
        """The same size."""
        batch = len(volume)
        planes = volume.movedim(3, 1).flatten(0, 1)
        return super().forward(planes).unflatten(0, (batch, -1)).movedim(1, 3)


def _unet(c: Comparison, encode: str, decode: str, manifest: str) -> UNet3d:
    """Our U-Net with the file's weights. A half that the file calls 2d is our 3d one with other convolutions in it."""
    network = UNet3d(nf=c.meta["nf"], norm=c.meta["norm"], encode=encode.replace("2", "3"), decode=decode.replace("2", "3"))
    for path, block in network.named_modules():
        half = encode if path.startswith("down") else decode
        if half == "2d" and isinstance(block, ConvBlock):
            block.conv = ConvOverXZ(block.conv.in_channels, block.conv.out_channels)
    c.load(network, c.golden.weights(manifest), absent=(SECOND_HEAD,))
    return network.train()


@reference_order()
def unet(c: Comparison) -> None:
    """Edclean as named, and under ``raw_`` what IsoREF built of it: a decode dimension that begins with _ meant 3d."""
    encode, decode = c.meta["encode"], c.meta["decode"]
    _compare_unet(c, "", _unet(c, encode, decode, "manifest"))
    if c.has("raw_"):
        called = c.meta["decode_as_called_by_IsoREF"]
        _compare_unet(c, "raw_", _unet(c, encode, "3d" if called.startswith("_") else called, "manifest_raw"))


def _compare_unet(c: Comparison, prefix: str, network: UNet3d) -> None:
    """Features, output and, where the file has them, gradients.

    Batch norms over 8 values leave 1e-5 of rounding between two float32 results. 1d and 3d round as the reference did; what it
    did in 2d is not known, and compared with double precision.
    """
    dtype = torch.float64 if any(isinstance(m, ConvOverXZ) for m in network.modules()) else torch.float32
    network, x, direction = network.to(dtype), c.tensor("x", dtype).requires_grad_(), c.tensor("dir", dtype)
    features = network.encode(x)
    volume = network.decode(features)
    made = {f"feat{level}": feature for level, feature in enumerate(features)} | {"out0": volume}
    for key, value in made.items():
        if key == "out0" or prefix + key in c.golden:
            c.activation(prefix + key, value)
    (volume * direction).sum().backward()
    if f"{prefix}grad_x" in c.golden:
        c.gradient(f"{prefix}grad_x", x.grad)
    if c.has(f"{prefix}gnorm."):
        c.gradient_norms(f"{prefix}gnorm.", parameter_gradients(network))


def plane_discriminator(c: Comparison) -> None:
    """patch_16, patch_8 or patch_4: logits and gradients."""
    network = PatchDiscriminator(1, c.meta["ndf"], f"patch_{c.meta['kind'].rsplit('_', 1)[1]}")
    c.load(network)
    x = c.tensor("x").requires_grad_()
    y = network(x)
    c.activation("y", y)
    (y * c.tensor("dir")).sum().backward()
    c.gradient("grad_x", x.grad)
    c.gradient_norms("gnorm.", parameter_gradients(network))


def adversarial(c: Comparison) -> None:
    """The adversarial losses of logits. wgangp is no mode of ours; its terms are the generator's hinge and minus that."""
    real, fake = c.tensor("logits_real"), c.tensor("logits_fake")
    for wanted in (True, False):
        for mode in ("vanilla", "lsgan"):
            c.close(f"adv_{mode}_{wanted}", losses.adversarial(real, wanted, mode), relative=LOSS)
        c.close(f"ganloss_vanilla_class_{wanted}", losses.adversarial(real, wanted, "vanilla"), relative=LOSS)
    critic = losses.adversarial(real, True, "hinge", generator=True)
    c.close("adv_wgangp_True", critic, relative=LOSS)
    c.close("adv_wgangp_False", -critic, relative=LOSS)
    c.close("hinge_d", losses.hinge_discriminator(real, fake), relative=LOSS)
    c.close(
        "vanilla_d", 0.5 * (losses.adversarial(real, True, "vanilla") + losses.adversarial(fake, False, "vanilla")), relative=LOSS
    )


def structural(c: Comparison) -> None:
    """MS-SSIM of two images."""
    c.close("value", 1 - losses.ms_ssim_loss(c.tensor("a"), c.tensor("b")), relative=LOSS)


def projections(c: Comparison) -> None:
    """Slab projections; the keys say factor, slices per slab and kind."""
    x = c.tensor("x")
    for key in c.golden:
        if match := re.fullmatch(r"up(\d+)_skip(\d+)_(max|mean|dsp)", key):
            c.activation(key, project(x, int(match[1]), int(match[2]), match[3]))


def _mean_of_planes(images: Tensor) -> Tensor:
    """The discriminator of the views' fixture: an image's logit is its mean."""
    return images.mean((1, 2, 3), keepdim=True)


def _mean_loss(views: list[Tensor]) -> Tensor:
    return -losses.adversarial_views(_mean_of_planes, views, True, "hinge", generator=True)


def views(c: Comparison) -> None:
    """The six views, IsoREF's groups and its three-discriminator variant, and their loss through patch_16."""
    x = c.tensor("x")
    for name, prefix in (("views", ""), ("isoref_y_view", "isoref_y_")):
        for index, view in enumerate(six_views(x)):
            c.close(f"{name}{index}", view)
        c.close(f"{prefix}meanloss", _mean_loss(six_views(x)), relative=LOSS)
    for group in range(3):
        c.close(f"isoref_group{group}_seed", _first_seed_of(group))
        for index, view in enumerate(isoref_views(x, group)):
            c.close(f"isoref_group{group}_view{index}", view)
        c.close(f"isoref_group{group}_meanloss", _mean_loss(isoref_views(x, group)), relative=LOSS)
    network = PatchDiscriminator(1, 8)
    state = {key: recipe(f"net_d.{key}", list(value.shape)) for key, value in network.state_dict().items()}
    network.load_state_dict({key: torch.tensor(value) for key, value in state.items()})
    for real in (True, False):
        loss = losses.adversarial_views(network, six_views(c.tensor("x32")), real, "vanilla")
        c.close(f"sixway_patch16_{real}", loss, relative=LOSS)


def _first_seed_of(group: int) -> int:
    """The smallest seed whose first draw of three is the group."""
    return next(seed for seed in range(100) if np.random.RandomState(seed).randint(3) == group)


def contrast(c: Comparison) -> None:
    """Sampler and criterion with and without MLPs; groups of negatives."""
    levels = range(4)
    roles = {role: [c.tensor(f"feat_{role}{level}") for level in levels] for role in "qk"}
    channels = [feature.shape[1] for feature in roles["q"]]
    for use_mlp in (False, True):
        run, draw = f"mlp{int(use_mlp)}_", numpy_draw(np.random.RandomState(3))
        settings = {option.name: option.default for option in CUT}
        settings |= {"num_patches": c.meta["num_patches"], "use_mlp": use_mlp, "c_mlp": c.meta["nc"]}
        module = PatchContrast(channels, settings)
        if use_mlp:
            c.load(module)
        query = [feature.clone().requires_grad_() for feature in roles["q"]]
        total = module(query, roles["k"], draw=numpy_draw(np.random.RandomState(3)))
        c.close(f"{run}total", total, relative=LOSS)
        total.backward()
        for level in levels:
            ids = draw(query[level][0, 0].numel())[: c.meta["num_patches"]]
            c.close(f"ids{level}", ids)
            rows = {role: module.sample(level, roles[role][level], ids) for role in "qk"}
            for role, vectors in rows.items():
                c.activation(f"{run}{role}{level}", vectors[0])
            c.activation(f"{run}loss{level}", patch_nce(rows["q"], rows["k"], c.meta["T"])[0], relative=LOSS)
            c.gradient(f"{run}gradq{level}", query[level].grad)
    rows = {role: c.tensor(f"nce2_{role}") for role in "qk"}
    halves = patch_nce(*(values.unflatten(0, (2, -1)) for values in rows.values()), c.meta["T"])
    c.activation("nce2_bs2", halves.flatten(), relative=LOSS)
    c.activation("nce2_allneg", patch_nce(rows["q"][None], rows["k"][None], c.meta["T"])[0], relative=LOSS)


def numpy_draw(generator: np.random.RandomState) -> Draw:
    """Permutations from a numpy generator, as the reference drew its patches."""
    return lambda count: torch.from_numpy(generator.permutation(count))
