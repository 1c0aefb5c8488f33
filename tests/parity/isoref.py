"""Replays of IsoREF's end-to-end fixtures: runs that differ in the seed of numpy's generator, from which all draws come."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiment.reading import default_settings
from models.build import build_model
from models.IsoREF import Model, Restored
from models.options import MODEL_OPTIONS
from tests.parity import models
from tests.parity.comparison import Comparison
from tests.parity.rounding import reference_order
from tests.parity.volume import numpy_draw

NAME = "IsoREF"
ABSENT = ("net_g.conv7_g.", "net_gback.conv7_g.", "netF.")  # second heads; MLPs that no file uses
UPRATE = 8  # of the reference, where its settings named none
CYCLE = ("net_gback.", "net_dzy.", "net_dzx.")  # built only with the cycle


def build(c: Comparison) -> Model:
    """The model; what the reference did for every l1how, whatever its name, is the maximum projection.

    Its slabs were uprate planes thick, whether or not that was the crop's factor.
    """
    settings: dict[str, Any] = dict(c.meta["hparams"])
    settings = {"nocut": not c.has("run0.g.nce"), "nocyc": not c.has("run0.g.gback")} | settings | {"l1how": "max"}
    model = build_model(default_settings(MODEL_OPTIONS, NAME, **settings | {"uprate": None}))
    assert isinstance(model, Model)
    model.geometry = replace(model.geometry, factor=settings.get("uprate", UPRATE))
    return model


def training(c: Comparison) -> None:
    """Every run, in float32 and where the file has it in double precision; intermediates belong to the first."""
    for double in models.precisions(c.golden):
        prefix = "f64." if double else ""
        with nullcontext() if double else reference_order():
            for index, run in enumerate(c.meta["runs"]):
                if not c.has(f"{prefix}run{index}."):
                    continue
                model, out = _generate(c, run, double)
                if index == 0:
                    _compare_volumes(c, prefix, out)
                _compare_generator(c, f"{prefix}run{index}.g.", model, out, double)
                _compare_discriminator(c, f"{prefix}run{index}.d.", model, out, double)


def _generate(c: Comparison, run: dict[str, Any], double: bool) -> tuple[Model, Restored]:
    """One pass with the draws of a run: z start, swap, view group; the contrastive positions come after them."""
    model, random = build(c), np.random.RandomState(run["seed"])
    models.load_recipe(model, c.golden.weights(), ABSENT if model.cycle else ABSENT + CYCLE)
    volume = c.tensor("vol0")
    if double:
        model, volume = model.double(), volume.double()
    depth = c.meta["hparams"]["cropz"]
    start = models.drawn_start(random, volume.shape[-1], depth)
    swap, group = bool(random.randint(2)), int(random.randint(3))
    for name, ours in {"z_init": start, "transpose_xy": swap, "view_group_g": group}.items():
        if name in run:
            c.same(f"meta.seed{run['seed']}.{name}", ours, run[name])
    model.draw_swap = lambda: swap
    model.draw_view_group = lambda: group
    model.contrast = lambda out: _contrast(model, out, random)
    return model, model.generate({"img": [volume[..., start : start + depth]]})


def _contrast(model: Model, out: Restored, random: np.random.RandomState) -> Tensor:
    with torch.no_grad():
        generated = model.G["net_g"].encode(out.volume)
    return models.reference_contrast(model.G["netF"], out.pyramid, generated, numpy_draw(random))[0]


def _compare_volumes(c: Comparison, prefix: str, out: Restored) -> None:
    made = {"oriX": out.original, "Xup": out.interpolated, "XupX": out.volume, "XupXback": out.back}
    for key, value in made.items():
        if prefix + key in c.golden and value is not None:
            c.activation(prefix + key, value)


def _compare_generator(c: Comparison, prefix: str, model: Model, out: Restored, double: bool) -> None:
    terms = model.generator_losses(out)
    total = model.weigh(terms)
    names = {"axx": "views", "l1": "projection", "gback": "views_back", "l1b": "cycle", "nce": "nce"}
    _compare_terms(c, prefix, {key: terms.get(name) for key, name in names.items()} | {"sum": total}, double)
    models.compare_gradients(c, prefix, model, total)


def _compare_discriminator(c: Comparison, prefix: str, model: Model, out: Restored, double: bool) -> None:
    """The reference seeded again before this phase, so all draws are those of the generator's phase."""
    terms = model.discriminator_losses(out.detach())
    total = model.weigh(terms)
    made = {"dxx_x": terms["views_fake"] + terms["views_real"], "sum": total}
    made["dyy"] = terms["back_fake"] + terms["back_real"] if out.back is not None else None
    _compare_terms(c, prefix, made, double)
    models.compare_gradients(c, prefix, model, total)


def _compare_terms(c: Comparison, prefix: str, terms: dict[str, Tensor | None], double: bool) -> None:
    """Terms that we do not have are 0 where the file lists them."""
    for key, value in terms.items():
        if value is not None or prefix + key in c.golden:
            c.close(prefix + key, 0.0 if value is None else value, relative=models.loss_tolerance(double))
