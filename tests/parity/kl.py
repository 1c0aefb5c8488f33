"""Replays of the Gaussian model's end-to-end fixtures, adjusted as those of the primary model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch
from torch import Tensor

from ldm.bottleneck import DiagonalGaussian
from models.base import Terms
from models.slice2volume import Generated, SliceToVolume
from networks.views import to_slices
from tests.parity import models
from tests.parity.comparison import LOSS, Comparison

NAME = "ae0iso0tccut"


def training(c: Comparison) -> None:
    """Intermediates, and for every case all loss terms and gradients of both optimisers."""
    for double in models.precisions(c.golden):
        prefix = "f64." if double else ""
        model = models.build(c.golden, NAME, {}, {}, nocut=False)
        models.load_recipe(model, c.golden.weights())
        if double:
            model.double()
        volumes = models.encoded_volumes(c, double)
        with posterior_noise(c.tensor("noise0"), c.tensor("noise1")):
            out = model.generate({"img": volumes})
        models.compare_intermediates(c, prefix, model, out)
        _compare_posterior(c, prefix, model, out)
        out = out if double else models.with_reference_volume(c, out)
        model.contrast = lambda out, model=model: models.contrast_slices(c, model, out)
        for case in models.cases(c.golden, double):
            _compare_case(c, prefix + case.prefix, model, case, out, double)


@contextmanager
def posterior_noise(*noises: Tensor) -> Iterator[None]:
    """Samples of posteriors take these normal numbers, one after the other."""
    ours, left = DiagonalGaussian.sample, iter(noises)
    with patch.object(DiagonalGaussian, "sample", lambda self: ours(self, next(left).to(self.mean.dtype))):
        yield


def _compare_posterior(c: Comparison, prefix: str, model: SliceToVolume, out: Generated) -> None:
    posterior = DiagonalGaussian(out.code.moments)
    with torch.no_grad():
        mode = model.reconstruct(posterior.mean)
    made = {"moments": out.code.moments, "kl": posterior.kl(), "recon_mode": mode, "hbranch": out.pyramid[-1]}
    for key, value in made.items():
        if prefix + key in c.golden:
            c.activation(prefix + key, value, relative=LOSS)


def _compare_case(c: Comparison, prefix: str, model: SliceToVolume, case: models.Case, out: Generated, double: bool) -> None:
    rel = models.loss_tolerance(double)
    terms, total = models.evaluate(model, case, out)
    made = {"axx": terms["views"], "l1": terms["projection"], "sum": total}
    made |= {"nce": terms["nce"]} if case.cut else {}
    for key, value in made.items():
        c.close(f"{prefix}g.{key}", value, relative=rel)
    _close_rest(c, f"{prefix}g.ae_derived", total, [terms["views"], *_weighted(model, terms)], rel)
    models.compare_gradients(c, f"{prefix}g.", model, total, absent={"loss.logvar": _logvar_gradient(terms, out)})
    terms = model.discriminator_losses(out.detach())
    total, views = model.weigh(terms), terms["views_fake"] + terms["views_real"]
    c.close(f"{prefix}d.dxx_x", views, relative=rel)
    c.close(f"{prefix}d.sum", total, relative=rel)
    _close_rest(c, f"{prefix}d.disc_derived", total, [views], rel)
    models.compare_gradients(c, f"{prefix}d.", model, total)


def _weighted(model: SliceToVolume, terms: Terms) -> list[Tensor]:
    return [model.loss_weights[name] * terms[name] for name in ("projection", "nce") if name in terms]


def _close_rest(c: Comparison, key: str, total: Tensor, parts: list[Tensor], rel: float) -> None:
    """A term that the reference did not log: the file derives it as the sum minus the others, with the sum's rounding."""
    c.close(key, total - torch.stack(parts).sum(), relative=rel, absolute=rel * abs(float(total.detach())))


def _logvar_gradient(terms: Terms, out: Generated) -> float:
    """Of the reference's scalar s = 0 that no optimiser moved and we leave out: nll = Σ (rec / exp(s) + s) / slices."""
    return abs(to_slices(out.original)[0, :1].numel() - float(terms["recon"].detach()))
