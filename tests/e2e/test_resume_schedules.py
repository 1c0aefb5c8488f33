"""A resumed training that is given another end or another schedule, and what is watched in a run with validation data."""

import itertools
import logging
from types import SimpleNamespace

import pytest
import torch
from pytorch_lightning import LightningModule

from models.base import BaseModel
from tests.workspace import write_volume
from training.callbacks import RunKeeper


def rates(run):
    return [optimizer["param_groups"][0]["lr"] for optimizer in torch.load(run.last, weights_only=True)["optimizer_states"]]


@pytest.fixture
def first_rates(monkeypatch):
    """The generator's learning rate as each start of a training finds it."""
    seen = []
    original = BaseModel.on_train_epoch_start

    def watched(self):
        seen.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        original(self)

    monkeypatch.setattr(BaseModel, "on_train_epoch_start", watched)
    return seen


@pytest.fixture
def quick(workspace):
    workspace.settings(n_epochs=2, n_epochs_decay=0, epoch_save=9, crops_per_volume=1, adv_planes=4)
    write_volume(workspace.data / "val" / "x3d0" / "v.tif", 9)
    return workspace


def test_a_finished_schedule_that_goes_on_begins_at_its_new_rate(quick, first_rates):
    """At the end the cosine stands at 0; the first of two epochs more must not be trained with that."""
    run = quick.train("one")
    assert rates(run) == pytest.approx([0, 0], abs=1e-18)
    quick.train("one", "--resume", "--n_epochs", 4)
    assert first_rates == pytest.approx([2e-4, 1e-4, 1e-4, 2e-4 * 0.146447], rel=1e-5)


@pytest.mark.parametrize(
    ("before", "after", "rate"),
    [("plateau", "cosine", 2e-4 * 0.75), ("cosine", "plateau", 2e-4 * 0.75), ("step", "lambda", 2e-4 * 2 / 3)],
)
def test_another_policy_takes_over(quick, first_rates, before, after, rate):
    """After one of three epochs; plateau goes on from the rate that it finds."""
    original, RunKeeper.on_train_epoch_end = RunKeeper.on_train_epoch_end, stopping
    try:
        run = quick.train("one", "--lr_policy", before, "--n_epochs", 3)
    finally:
        RunKeeper.on_train_epoch_end = original
    assert run.epochs() == [1] and len(first_rates) == 1
    quick.train("one", "--resume", "--lr_policy", after)
    assert run.epochs() == [1, 3] and first_rates[1] == pytest.approx(rate, rel=1e-5)


def stopping(keeper, trainer, model, original=RunKeeper.on_train_epoch_end):
    keeper.reason = "the test"
    original(keeper, trainer, model)


def test_plateau_waits_for_the_validation(quick):
    """One of three epochs validates, the second: neither before nor after it is there a figure to judge by."""
    run = quick.train("one", "--lr_policy", "plateau", "--val_epochs", 2, "--n_epochs", 3)
    schedules = torch.load(run.last, weights_only=True)["lr_schedulers"]
    assert [schedule["last_epoch"] for schedule in schedules] == [1, 1]


def test_the_speed_counts_what_was_trained_since_the_resume(quick, monkeypatch):
    """By a clock that moves on by a second whenever it is looked at, at the beginning and at the end of an epoch."""
    speeds, seconds = [], itertools.count(1000)
    log, original = LightningModule.log, RunKeeper.on_train_batch_end

    def logged(model, name, value, **options):
        if name == "training/samples_per_second":
            speeds.append(value)
        log(model, name, value, **options)

    def stopped_after_two(keeper, trainer, model, outputs, batch, batch_idx):
        keeper.reason = keeper.reason or ("the test" if batch_idx == 1 else "")
        original(keeper, trainer, model, outputs, batch, batch_idx)

    monkeypatch.setattr(LightningModule, "log", logged)
    monkeypatch.setattr("models.base.time", SimpleNamespace(monotonic=lambda: next(seconds)))
    options = ("--crops_per_volume", 3, "--n_epochs", 1)
    with monkeypatch.context() as only_first:
        only_first.setattr(RunKeeper, "on_train_batch_end", stopped_after_two)
        quick.train("one", *options)
    speeds.clear()
    quick.train("one", "--resume")
    assert speeds == [4.0]  # of two volumes with three crops each


def test_a_metric_that_nobody_logs_is_said_once(quick, caplog):
    with caplog.at_level(logging.WARNING):
        run = quick.train("one", "--monitor", "val/typo")
    said = [r.message for r in caplog.records if "validation/typo" in r.message]
    assert len(said) == 1 and "validation/projection" in said[0]
    assert not run.best.exists()


def test_the_best_psnr_is_the_highest(quick, monkeypatch):
    values = iter([10.0, 30.0, 20.0])
    metrics = lambda *_: {"recon_psnr": torch.tensor(next(values))}  # noqa: E731
    monkeypatch.setattr("models.slice2volume.SliceToVolume.validation_metrics", metrics)
    run = quick.train("one", "--monitor", "val/recon_psnr", "--n_epochs", 3)
    assert torch.load(run.best, weights_only=True)["epoch"] == 1
