"""What the end-to-end replays share: our model with the fixture's settings and weights, its cases, its gradients."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiment.autoencoder import configure_autoencoder, read_autoencoder_yaml
from experiment.reading import default_settings
from models.base import BaseModel, Terms
from models.build import build_model
from models.CUT import Draw, PatchContrast, patch_nce
from models.options import MODEL_OPTIONS
from models.slice2volume import Generated, SliceToVolume
from networks.views import resample_z, to_slices, to_volume
from tests.parity.comparison import EXACT_F64, LOSS, Comparison
from tests.parity.golden import Golden
from tests.parity.volume import numpy_draw

ROOT = Path(__file__).resolve().parents[2]
ABSENT = ("net_g.conv7_g.", "net_gback.conv7_g.", "net_g.down", "netF.", "loss.logvar")  # see replay.MENDED and load_recipe
SLICE_DISCRIMINATOR = "loss.discriminator."  # the reference's name for our component `discriminator`
WHOLE_GRADIENT = 1e-3  # relative to its largest entry: single entries scatter more than norms when float32 sums are reordered
CASE = re.compile(r"(?P<f64>f64\.)?(?P<cut>cut|nocut)\.(?P<how>\w+)\.step(?P<step>\d+)\.[gd]\.")


@dataclass(frozen=True, order=True)
class Case:
    """One evaluation of both losses: with or without CUT, projection, generator steps done."""

    cut: bool
    how: str
    step: int

    @property
    def prefix(self) -> str:
        """The beginning of its keys."""
        return f"{'cut' if self.cut else 'nocut'}.{self.how}.step{self.step}."


def cases(golden: Golden, double: bool) -> list[Case]:
    """The cases that a file holds in float32 or in double precision."""
    matches = [match for key in golden if (match := CASE.match(key)) and bool(match["f64"]) == double]
    return sorted({Case(match["cut"] == "cut", match["how"], int(match["step"])) for match in matches})


def build(golden: Golden, name: str, loss: Mapping[str, Any], codebook: Mapping[str, Any], **settings: Any) -> SliceToVolume:
    """A slice model as the fixture describes it, LPIPS off; ``loss`` and ``codebook`` change the autoencoder's settings."""
    hparams = dict(golden.meta["hparams"]) | {"slabtarget": "slice", "perceptual_weight": 0.0} | settings
    if hparams.get("tc"):
        hparams |= {"input_nc": 2, "output_nc": 2}
    made = default_settings(MODEL_OPTIONS, name, **hparams)
    autoencoder = read_autoencoder_yaml(ROOT, made["ldmyaml"])
    autoencoder["ddconfig"] |= golden.meta["ddconfig"]
    autoencoder["loss"] |= dict(loss) | golden.meta.get("lossparams", {})
    if codebook:
        autoencoder["codebook"] |= codebook
    model = build_model({**made, "autoencoder": configure_autoencoder(autoencoder, made)})
    assert isinstance(model, SliceToVolume)
    return model


def load_recipe(model: BaseModel, weights: Mapping[str, np.ndarray], absent: tuple[str, ...] = ABSENT) -> None:
    """Every weight that the fixture lists goes into our components, and every one of ours comes from it.

    Left over may be what we do not build: second heads, ed023e's encode half, logvar, and MLPs of netF that no file uses.

    Raises:
        KeyError: the fixture lacks a weight of ours.
        ValueError: it has one that nobody takes.
    """
    left = {key.replace(SLICE_DISCRIMINATOR, "discriminator.", 1): value for key, value in weights.items()}
    for name, component in model.components().items():
        keys = component.state_dict()
        component.load_state_dict({key: torch.tensor(left.pop(f"{name}.{key}")) for key in keys})
    if orphans := [key for key in left if not key.startswith(absent)]:
        raise ValueError(f"weights that our model has no place for: {', '.join(sorted(orphans)[:5])}")


def reference_name(component: str, key: str) -> str:
    """The fixture's name of a parameter."""
    return f"{SLICE_DISCRIMINATOR if component == 'discriminator' else component + '.'}{key}"


def drawn_start(random: np.random.RandomState, depth: int, cropz: int) -> int:
    """The first slice, as the reference drew it: the last possible one never."""
    return int(random.randint(depth - cropz))


def encoded_volumes(c: Comparison, double: bool) -> list[Tensor]:
    """What our dataset would hand over: the z window, thinning and interpolation that the reference did inside the model.

    A second volume is the second channel of tc; otherwise the reference had no use for it.
    """
    settings = c.meta["hparams"]
    random = np.random.RandomState(c.meta.get("numpy_seed_generation", 5))
    volumes = [c.tensor(key, torch.float64 if double else torch.float32) for key in sorted(c.golden) if key.startswith("vol")]
    volumes = volumes if settings.get("tc") else volumes[:1]
    start = drawn_start(random, volumes[0].shape[-1], settings["cropz"])
    dsp, usp = settings.get("dsp", 1), settings.get("usp", 1)
    offset = int(random.randint(dsp)) if dsp > 1 else 0
    c.fact("z_init", [start, offset] if dsp > 1 else [start])
    kept = [volume[..., start : start + settings["cropz"]][..., offset::dsp] for volume in volumes]
    return [resample_z(volume, int(volume.shape[-1] * usp)) for volume in kept]


def compare_intermediates(c: Comparison, prefix: str, model: SliceToVolume, out: Generated) -> None:
    """What every slice model has; entries that the file does not hold are passed over."""
    batch = out.original.shape[0]
    made = {"oriX": out.original, "Xup": resample_z(out.original, out.volume.shape[-1]), "XupX": out.volume}
    made |= {"reconstructions": out.recon} | {f"hz{level}": to_volume(f, batch) for level, f in enumerate(out.pyramid)}
    for key, value in made.items():
        if prefix + key in c.golden:
            c.activation(prefix + key, value)
    c.fact("uprate", model.geometry.factor)


def with_reference_volume(c: Comparison, out: Generated) -> Generated:
    """The reference's bits of the isotropic volume with our gradient.

    Of two nearly equal planes they decide which one a maximum projection passes its gradient to.
    """
    return replace(out, volume=torch.tensor(c.golden["XupX"]) + (out.volume - out.volume.detach()))


def reference_contrast(
    netf: PatchContrast, original: list[Tensor], generated: list[Tensor], draw: Draw
) -> tuple[Tensor, list[Tensor]]:
    """The contrastive term with the reference's roles: the original's features are the query, the generated ones the key.

    The published roles, which we train with, are the other way round. Positions are drawn from the key's and used for both, even
    where it has fewer of them.

    Returns:
        The term and the positions of each level.
    """
    terms, positions = [], []
    for level, (query, key) in enumerate(zip(original, generated, strict=True)):
        ids = draw(key.shape[2:].numel())[: netf.num_patches]
        rows = [netf.sample(level, features, ids) for features in (query, key.detach())]
        terms.append(netf.level_weights[level] * patch_nce(rows[0], rows[1], netf.temperature).mean())
        positions.append(ids)
    return torch.stack(terms).sum() / len(terms), positions


def contrast_slices(c: Comparison, model: SliceToVolume, out: Generated) -> Tensor:
    """The same for slice models: the key is every eighth generated slice from the fourth on, whatever the factor."""
    random = np.random.RandomState(c.meta["numpy_seed_backward_g"])
    batch = out.original.shape[0]
    with torch.no_grad():
        generated = model.G["encoder"](to_slices(out.volume[..., 4::8])).pyramid
    query, key = ([to_volume(feature, batch) for feature in pyramid] for pyramid in (out.pyramid, generated))
    term, positions = reference_contrast(model.G["netF"], query, key, numpy_draw(random))
    for level, ids in enumerate(positions):
        if f"patch_ids{level}" in c.golden:
            c.close(f"patch_ids{level}", ids)
    return term


def compare_gradients(
    c: Comparison,
    prefix: str,
    model: BaseModel,
    total: Tensor,
    absent: Mapping[str, float] | None = None,
) -> None:
    """Norms of the gradients of one side, and the whole ones that the file holds.

    Args:
        c: the comparison.
        model: whose gradients.
        prefix: of the side's entries, ending in ``g.`` or ``d.``.
        total: what the side descends.
        absent: norms of what we do not have, computed otherwise.
    """
    if not c.has(f"{prefix}gnorm."):
        return
    model.zero_grad()
    total.backward(retain_graph=True)
    side = model.G if prefix.endswith("g.") else model.D
    gradients: dict[str, Any] = {
        reference_name(component, key): parameter.grad
        for component, module in side.items()
        for key, parameter in module.named_parameters()
        if component != "netF"  # only with MLPs has it parameters; the reference held some that it did not use
    }
    largest = c.gradient_norms(f"{prefix}gnorm.", gradients | dict(absent or {}))
    for name, gradient in gradients.items():
        if f"{prefix}grad.{name}" in c.golden:
            c.gradient(f"{prefix}grad.{name}", gradient, relative=WHOLE_GRADIENT, largest_norm=largest)


def loss_tolerance(double: bool) -> float:
    """Relative, of a loss."""
    return EXACT_F64 if double else LOSS


def evaluate(model: SliceToVolume, case: Case, out: Generated) -> tuple[Terms, Tensor]:
    """The generator's terms of a case and their weighted sum."""
    model.settings["l1how"] = case.how
    model.generator_steps = case.step
    model.loss_weights["nce"] = model.settings["lbNCE"] if case.cut else 0.0
    terms = model.generator_losses(out)
    return terms, model.weigh(terms)


def precisions(golden: Golden) -> Iterator[bool]:
    """Whether to replay in double precision: first not, then yes where the file has such values."""
    yield False
    if any(key.startswith("f64.") for key in golden):
        yield True
