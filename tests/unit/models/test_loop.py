"""The training loop's parts: windows, schedules, who trains what."""

import resource
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from experiment.autoencoder import configure_autoencoder, read_autoencoder_yaml
from experiment.options import BASE_OPTIONS
from experiment.reading import default_settings, read_settings
from models.base import BaseModel, Window
from models.build import build_model, trainable
from models.options import MODEL_OPTIONS
from models.schedules import build_scheduler, multiplier
from tests.forks import together
from utils.machine import keep_freed_memory

ROOT = Path(__file__).resolve().parents[3]
PUBLISHED = sorted(path.stem for path in (ROOT / "env" / "jsn").iterdir())


def model_of(settings):
    autoencoder = None
    if "ldmyaml" in settings:
        autoencoder = configure_autoencoder(read_autoencoder_yaml(ROOT, settings["ldmyaml"]), settings)
    if settings.get("from_teacher"):
        settings = {**settings, "restorer": {"uprate": 8, "axial_sampling": "pick" if settings["l1how"] == "dsp" else "mean"}}
    with torch.device("meta"):
        return build_model({**settings, "autoencoder": autoencoder}, frozen=False)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_experiments_build(name, tmp_path):
    words = ["--jsn", name, "--prj", "x", "--dataset", "x", "--logs", str(tmp_path)]
    words += ["--uprate", "8"] if name in ("lateral", "texture") else []  # templates: prepare.py check --write says the rest,
    words += ["--cropz", "8", "--l1how", "dsp"] if name == "codes" else []  # or a teacher
    experiment = read_settings(words, MODEL_OPTIONS, ROOT)
    assert sum(p.numel() for p in model_of(experiment.settings).parameters()) > 1e5


@pytest.mark.parametrize("changes", [{}, {"nocut": False, "use_mlp": True, "lbNCE": 1.0}, {"adv": 0.0}, {"ema": 0.9}])
@pytest.mark.parametrize("name", sorted(MODEL_OPTIONS.keys() - {"fused"}))
def test_every_trainable_parameter_is_in_exactly_one_optimiser(name, changes):
    known = {option.name for option in (*BASE_OPTIONS, *MODEL_OPTIONS[name])}
    changes = {key: value for key, value in changes.items() if key in known}
    changes |= {"lateral": {"uprate": 4}, "texture": {"uprate": 4, "init": "RUN"}}.get(name, {})
    model = model_of(default_settings(MODEL_OPTIONS, name, **changes))
    model.on_fit_start()
    optimizers, schedulers = model.configure_optimizers()
    assert len(optimizers) == len(schedulers) == (2 if len(model.D) else 1)
    owned = [id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
    assert len(owned) == len(set(owned))
    assert set(owned) == {id(p) for p in model.parameters() if p.requires_grad}


def test_no_discriminator_no_second_optimiser():
    settings = default_settings(MODEL_OPTIONS, "ae0iso0tccutvqq", adv=0.0, perceptual_weight=0.0)
    autoencoder = configure_autoencoder(read_autoencoder_yaml(ROOT, "vqgan"), settings)
    autoencoder["loss"]["disc_weight"] = 0.0
    with torch.device("meta"):
        model = build_model({**settings, "autoencoder": autoencoder})
    assert len(model.D) == 0 and len(model.configure_optimizers()[0]) == 1
    assert model.discriminator_losses(None) == {}


def test_windows_of_an_epoch_that_accumulation_does_not_divide():
    windows = [Window.of(batch, 7, 3) for batch in range(7)]
    assert [w.size for w in windows] == [3, 3, 3, 3, 3, 3, 1]
    assert [w.closes for w in windows] == [False, False, True, False, False, True, True]


def test_cosine_and_lambda_hold_then_fall_to_zero():
    for policy in ("cosine", "lambda"):
        factor = multiplier({"lr_policy": policy, "n_epochs": 20, "n_epochs_decay": 10, "lr_decay_iters": 1})
        assert [factor(e) for e in (0, 10)] == [1, 1]
        assert factor(15) == pytest.approx(0.5)
        assert factor(20) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("key", "policy", "n_epochs", "hold"),
    [
        ("cosine_n10001", "cosine", 10001, 0),
        ("cosine_n200", "cosine", 200, 0),
        ("lambda", "lambda", 302, 201),
        ("step", "step", 9, 0),
    ],
)
def test_schedules_of_the_reference(golden, key, policy, n_epochs, hold):
    expected = golden("lr_schedules")[key][: n_epochs if policy == "lambda" else None]  # beyond its end the line goes on below 0
    factor = multiplier({"lr_policy": policy, "n_epochs": n_epochs, "n_epochs_decay": hold, "lr_decay_iters": 50})
    np.testing.assert_allclose([2e-4 * factor(epoch) for epoch in range(len(expected))], expected, rtol=1e-6, atol=1e-12)


def test_plateau_falls_when_the_metric_stays():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = build_scheduler(optimizer, {"lr_policy": "plateau", "monitor": "val/projection"})
    for _ in range(8):
        scheduler.step(1.0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2)


def test_a_metric_is_that_of_all_processes():
    """Two of them that decided by their own would save or slow down in different epochs; the other one's 4 is added by hand."""
    model = trainable(BaseModel)({})
    mine = torch.tensor(2.0)
    means = {"mean": lambda value: value.add_(4).div_(2)}
    strategy = SimpleNamespace(reduce=lambda value, reduce_op: means[reduce_op](value))
    model._trainer = SimpleNamespace(callback_metrics={"g/projection": mine}, strategy=strategy)
    assert model.metric("g/projection") == 3.0 and mine == 2.0
    assert model.metric("g/typo") is None


def new_pages(_, path):
    """Of a tensor that is smaller than one that was freed before."""
    keep_freed_memory()
    torch.ones(2**25)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
    path.write_text(str(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before))


def test_freed_memory_is_kept(tmp_path):
    """In a process of its own, because the setting cannot be taken back."""
    assert together(new_pages, tmp_path / "pages", world=1) == [0]
    if sys.platform == "linux":
        assert int((tmp_path / "pages").read_text()) < 2000, "64 MiB are 16384 pages"
