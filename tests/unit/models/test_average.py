"""Averaged weights beside a codebook whose dead codes are replaced."""

import copy

import torch
from test_variants import build, crop

from taming.codebook import CodebookLife
from taming.quantize import ResidualVectorQuantizer, VectorQuantizer


def test_the_average_of_a_replaced_code_starts_anew():
    for quantizer, levels in ((VectorQuantizer(6, 2), 1), (ResidualVectorQuantizer(3, 6, 2), 3)):
        revival, averaged = CodebookLife(6, levels, revive_after=5), copy.deepcopy(quantizer).requires_grad_(False)
        for parameter in averaged.parameters():
            parameter += 100
        revival.unused_steps[:, 2:4] = 5
        before = [parameter.clone() for parameter in averaged.parameters()]
        assert revival.revive(quantizer, torch.rand(50, 2), averaged=averaged) == 2 * levels
        for raw, average, old in zip(quantizer.parameters(), averaged.parameters(), before, strict=True):
            assert torch.equal(average[2:4], raw[2:4])
            assert torch.equal(average[[0, 1, 4, 5]], old[[0, 1, 4, 5]])


def test_training_passes_its_average_on(request):
    model = build("ae0iso0tccutvqq", request.config.rootpath, perceptual_weight=0, cropz=4, ema=0.999)
    model.on_fit_start()
    model.ema_G.update_parameters(model.G)
    raw, average = (part["quantize"].embedding.weight for part in (model.G, model.components(ema=True)))
    model.revival.unused_steps.fill_(99)
    old = raw.detach().clone()
    out = model.generate(crop(4))
    logged = model.after_batch(out, stepped=True)
    dead = (raw != old).any(dim=1)
    assert logged["codes/revived"] == dead.sum() > 0 and not dead.all()
    assert torch.equal(average, raw)
    model.after_batch(out, stepped=False)
