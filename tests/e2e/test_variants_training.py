"""Every model and mode through train.main: exact resume, components that reload, two processes that agree (on CPU, tiny)."""

import pytest
import torch

from models.build import build_model, load_components
from models.options import MODEL_OPTIONS
from tests.e2e.test_ddp import TWO, states
from tests.e2e.test_training import same
from tests.workspace import VARIANTS, signalled

HEAVY = {"translation", "kl_z", "isoref_nocyc", "ssim"}  # ssim needs crops > 96; the others differ little from their neighbours
EACH = [pytest.param(name, marks=pytest.mark.slow) if name in HEAVY else name for name in VARIANTS]


def component_weights(run, epoch):
    paths = sorted(run.checkpoints.glob(f"*_model_epoch_{epoch}.pth"))
    return {f"{p.name}.{k}": v for p in paths for k, v in torch.load(p, weights_only=True).items()}


def example(settings):
    """A batch as the model's loader gives it."""
    depth = int(settings["cropz"] * settings["usp"] / settings["dsp"])
    shape = (2, 1, settings["cropsize"], settings["cropsize"], depth)
    return {"img": [torch.rand(shape) * 2 - 1 for _ in settings["direction"].split("_")]}


@pytest.mark.parametrize("name", EACH)
def test_resume_is_bit_identical_and_components_reload(workspace, monkeypatch, name):
    """Resumed after an epoch, and stopped by a signal within one."""
    options = (*workspace.variant(name), "--epoch_save", 1, *(("--crops_per_volume", 2) if name == "lateral" else ()))
    whole = workspace.train("whole", *options)
    epoch = workspace.train("epoch", *options, "--n_epochs", 1)
    workspace.train("epoch", "--resume", "--n_epochs", 2)
    signalled(monkeypatch, 0)
    middle = workspace.train("middle", *options)
    monkeypatch.undo()
    assert not component_weights(middle, 1)
    workspace.train("middle", "--resume")
    for run in (epoch, middle):
        assert component_weights(whole, 2) and same(component_weights(whole, 2), component_weights(run, 2))
        ends = [torch.load(r.last, weights_only=True)["state_dict"] for r in (whole, run)]
        assert same(*ends)
    outputs = []
    for load in (lambda m: m.load_state_dict(ends[0]), lambda m: load_components(m, whole)):
        model = build_model(whole.stored_settings(MODEL_OPTIONS))
        load(model)
        with model.evaluating():
            torch.manual_seed(0)
            made = model.generate(example(model.settings))
            outputs.append(made.planes if name == "lateral" else made.volume)
    assert torch.equal(*outputs) and outputs[0].std() > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in VARIANTS if name not in ("ssim", "lateral")])  # lateral draws in every step
def test_two_processes_equal_one_with_the_doubled_batch(workspace, name):
    """One step, where nothing is drawn or shared within a batch; later a code or a maximum that ties amplifies rounding."""
    for file in ("tiny.yaml", "gaussian.yaml"):
        options = workspace.variant(name)  # writes gaussian.yaml
        text = (workspace.root / file).read_text().replace("disc_ndf: 4", "disc_ndf: 4, disc_weight: 0")
        codebook = "codebook: {initialise: uniform, revive_after: 0}\n" if file == "tiny.yaml" else ""
        (workspace.root / file).write_text(text + codebook)
    lr = 1e-5 if name.startswith("kl") else 0.01  # its reconstruction is a sum over pixels
    options += ["--norm", "none", "--no-mc", "--crops_per_volume", 1, "--n_epochs", 1, "--epoch_save", 1]
    (single,) = states(workspace, "single", "sgd", *options, "--lr", lr, "--batch_size", 2)
    first, second = states(workspace, "double", "sgd", *options, "--lr", lr, *TWO, ranks=2)
    (untrained,) = states(workspace, "untrained", "sgd", *options, "--lr", 1e-15, "--batch_size", 2)
    moved = 0
    for key, value in single.items():
        if value.is_floating_point():
            assert torch.equal(first[key], second[key]), key
            torch.testing.assert_close(first[key], value, rtol=1e-4, atol=1e-5)
            moved += not torch.allclose(value, untrained[key], rtol=1e-3, atol=1e-4)
    assert moved > 10


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ("kl", "isoref") else pytest.mark.slow) for name in VARIANTS]
)
def test_two_processes_hold_the_same_weights(workspace, name):
    options = (*workspace.variant(name), *TWO, "--n_epochs", 1, "--crops_per_volume", 3)
    first, second = states(workspace, "double", "adam", *options, ranks=2)
    for key, value in first.items():
        assert value.isfinite().all(), key
        if "running" not in key and "num_batches" not in key:
            assert torch.equal(value, second[key]), key
