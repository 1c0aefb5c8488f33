"""Trainings through train.main: what they leave behind, how they stop, that they go on as if nothing had happened."""

import hashlib
import json
import logging
import os
import signal
import subprocess
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from experiment.runs import RunFolder
from inference import decode, encode, enhance
from models.base import BaseModel
from models.build import build_model, load_components
from models.options import MODEL_OPTIONS
from tests.workspace import signalled, write_volume
from training.callbacks import RunKeeper
from training.shown import Progress
from utils.errors import UserError

COMPONENTS = ("encoder", "decoder", "quantize", "quant_conv", "post_quant_conv", "net_g", "net_d", "discriminator")


def weights(run, epoch):
    return {
        f"{name}.{key}": value
        for name in COMPONENTS
        for key, value in torch.load(run.component(name, epoch), weights_only=True).items()
    }


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_a_run_leaves_everything_in_its_folder(workspace):
    run = workspace.train("one", "--ema", "0.9", "--log_steps", 2)
    settings = json.loads((run.path / "0.json").read_text())
    assert settings["cropsize"] == 32 and settings["autoencoder"]["n_embed"] == 16
    assert set(settings) >= {option.name for option in MODEL_OPTIONS["ae0iso0tccutvqq"]}
    assert (run.path / "ae0iso0tccutvqq.py").is_file() and run.dataset_record.is_file() and run.last.is_file()
    assert [p.name for p in run.pictures.iterdir()] == ["epoch_000002.png"]
    assert not (run.path / "run.lock").exists() and not list(run.path.rglob("*.partial"))
    logged = EventAccumulator(str(run.logs)).Reload().Tags()
    expected = {f"loss/generator/{term}" for term in ("projection", "recon", "views", "code", "total")}
    expected |= {"loss/discriminator/views_real", "loss/discriminator/views_fake", "codes/used", "codes/perplexity"}
    rates = {f"training/learning_rate_{side}" for side in ("generator", "discriminator")}
    assert expected | rates | {"training/samples_per_second"} <= set(logged["scalars"])
    assert "pictures/planes" in logged["tensors"]


def test_every_start_is_recorded(workspace, monkeypatch):
    """Command, commit, versions, and the data with sizes and checksums; a file that is large by its two ends."""
    write_volume(workspace.data / "val" / "x3d0" / "c.tif", 7)
    files = [workspace.data / split / "x3d0" / name for split, name in (("train", "a.tif"), ("train", "b.tif"), ("val", "c.tif"))]
    run = workspace.train("one", "--n_epochs", 1)
    start = json.loads((run.path / "start_0.json").read_text())
    listed = [(str(file), file.stat().st_size, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files]
    assert [(entry["file"], entry["bytes"], entry["sha256"]) for entry in start["data"]] == listed
    assert start["packages"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert start["command"] and start["device"] and start["python"]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=train.REPOSITORY, capture_output=True, text=True)
    assert start["commit"] == (head.stdout.strip() if head.returncode == 0 else None)
    monkeypatch.setattr("training.record._WHOLE", 2**10)
    monkeypatch.setattr("training.record._END", 2**6)
    workspace.train("one", "--n_epochs", 2, "--resume")
    again, content = json.loads((run.path / "start_1.json").read_text())["data"][0], files[0].read_bytes()
    assert again["sha256_of_first_and_last_64_bytes"] == hashlib.sha256(content[:64] + content[-64:]).hexdigest()


def test_components_reload_into_a_fresh_model(workspace):
    run = workspace.train("one")
    settings = run.stored_settings(MODEL_OPTIONS)
    image = torch.rand(2, 1, 32, 32, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    outputs = []
    checkpoint = torch.load(run.last, weights_only=True)
    for load in (lambda m: m.load_state_dict(checkpoint["state_dict"]), lambda m: load_components(m, run)):
        model = build_model(settings)
        load(model)
        with model.evaluating():
            outputs.append(model.generate({"img": [image]}).volume)
    assert torch.equal(*outputs)


def test_a_residual_codebook_trains_resumes_and_encodes(workspace):
    """Two levels from k-means to the code store, with codes revived on the way; a broken training ends with the same weights."""
    yaml = workspace.root / "tiny.yaml"
    text = yaml.read_text().replace("n_embed: 16", "n_embed: 80")  # a step has 64 positions, so that codes are always left over
    yaml.write_text(text + "codebook: {levels: 2, revive_after: 1}\n")
    whole = workspace.train("whole", "--ema", 0.9, "--log_steps", 2)
    workspace.train("broken", "--n_epochs", 1, "--ema", 0.9)
    broken = workspace.train("broken", "--n_epochs", 2, "--resume")
    assert same(weights(whole, 2), weights(broken, 2))
    assert {f"quantize.levels.{level}.embedding.weight" for level in range(2)} <= weights(whole, 2).keys()
    ends = [torch.load(run.last, weights_only=True)["state_dict"] for run in (whole, broken)]
    assert ends[0]["revival.unused_steps"].shape == (2, 80) and ends[0]["revival.initialised"]
    assert same(*ends)
    events = EventAccumulator(str(whole.logs)).Reload()
    for name in ("codes/used", "codes/perplexity"):
        each = [events.Scalars(f"{name}_level_{level}")[-1].value for level in range(2)]
        assert np.mean(each) == pytest.approx(events.Scalars(name)[-1].value) and min(each) > 1
    assert min(event.value for event in events.Scalars("codes/revived")) >= 2 * (80 - 64)

    volume = workspace.data / "train" / "x3d0" / "a.tif"
    store = encode(whole.path, volume, workspace.root / "x.codes.zarr")
    np.testing.assert_array_equal(decode(store), enhance(whole.path, volume))


def test_finite_scalars_train_and_their_grid_stays(workspace):
    yaml = workspace.root / "tiny.yaml"
    yaml.write_text(yaml.read_text().replace("n_embed: 16", "n_embed: 24") + "codebook: {grid: [2, 3, 2, 2], revive_after: 1}\n")
    run = workspace.train("one", "--n_epochs", 1, "--epoch_save", 1, "--ema", 0.9)
    fresh = build_model(run.stored_settings(MODEL_OPTIONS))
    for ema in (False, True):
        found = torch.load(run.component("quantize", 1, ema=ema), weights_only=True)
        assert same(found, fresh.G["quantize"].state_dict())
    state = torch.load(run.last, weights_only=True)["state_dict"]
    assert not torch.equal(state["G.quant_conv.weight"], fresh.G["quant_conv"].weight)


@pytest.fixture
def bars(monkeypatch):
    """What the progress of every training says: batches at its start and at its end."""
    made, start = [], Progress.on_train_start
    monkeypatch.setattr(Progress, "on_train_start", lambda self, *args: made.append(self) or start(self, *args))
    return made


def test_one_seed_one_set_of_weights_for_any_number_of_workers(workspace):
    found = [weights(workspace.train(f"w{n}", "--workers", n, "--n_epochs", 2, "--save_d"), 2) for n in (0, 1, 2)]
    assert same(found[0], found[1]) and same(found[0], found[2])
    assert not same(found[0], weights(workspace.train("other", "--seed", 7), 2))


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_after_an_epoch_is_bit_identical(workspace, bars, workers):
    options = ("--workers", workers, "--precision", "bf16-mixed" if workers else "32", "--accumulate_grad_batches", 4)
    options += ("--crops_per_volume", 3)
    whole = workspace.train("whole", *options, "--n_epochs", 2)
    broken = workspace.train("broken", *options, "--n_epochs", 1)
    workspace.train("broken", *options, "--n_epochs", 2, "--resume")
    assert same(weights(whole, 2), weights(broken, 2))
    assert (broken.path / "1.json").is_file()
    assert [(bar.first, bar.done) for bar in bars] == [(0, 12), (0, 6), (6, 12)]


@pytest.mark.parametrize(("workers", "batch"), [(0, 2), (2, 0)])
def test_resume_within_an_epoch_is_bit_identical(workspace, bars, monkeypatch, workers, batch):
    """SIGTERM in the second epoch: what was trained is saved, nothing is trained twice."""
    options = ("--workers", workers, "--crops_per_volume", 2, "--neighbours", 2, "--ema", 0.9)
    whole = workspace.train("whole", *options)
    with monkeypatch.context() as patch:
        signalled(patch, batch, epoch=1)
        broken = workspace.train("broken", *options)
    assert broken.epochs() == [1] and broken.last.is_file()
    workspace.train("broken", "--resume")
    stopped = 4 + batch + 1
    assert [(bar.first, bar.done) for bar in bars] == [(0, 8), (0, stopped), (stopped, 8)]
    assert same(weights(whole, 2), weights(broken, 2))
    ends = [torch.load(run.last, weights_only=True) for run in (whole, broken)]
    assert same(*(end["state_dict"] for end in ends))
    assert ends[0]["generator_steps"] == ends[1]["generator_steps"] == 8


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGHUP, 75)])
def test_who_started_a_training_learns_from_its_code_that_it_was_stopped(workspace, monkeypatch, number, code):
    """By Ctrl-C, by a scheduler, or since the terminal was closed: a script must not go on as if it were trained."""
    signalled(monkeypatch, 1, number=number)
    assert train.main(workspace.arguments("stopped")) == code
    monkeypatch.undo()
    assert train.main(workspace.arguments("stopped", "--resume")) == 0


def test_time_limit_stops_and_can_be_resumed(workspace):
    workspace.settings(n_epochs=100000, max_time="00:00:00:02")
    run = workspace.train("limited")
    done = run.epochs()[-1]
    assert 0 <= done < 100000
    workspace.settings(n_epochs=done + 2)
    workspace.train("limited", "--resume", "--max_time", "00:01:00:00")
    assert run.epochs()[-1] == done + 2


def test_a_trained_folder_is_never_lost(workspace):
    run = workspace.train("one")
    before = weights(run, 2)
    with pytest.raises(UserError, match=r"already holds a training.*--resume.*--overwrite"):
        workspace.train("one")
    workspace.train("one", "--overwrite", "--seed", 5)
    assert same(before, weights(workspace.run("one.1"), 2))
    assert not same(before, weights(run, 2))


def test_resume_refuses_other_settings(workspace):
    run = workspace.train("one", "--ndf", 8)
    before = run.last.read_bytes()
    with pytest.raises(UserError, match=r"lr: 0.0002 in the run, 0.001 in command line"):
        workspace.train("one", "--resume", "--lr", 0.001)
    workspace.settings(lamb=5.0)
    with pytest.raises(UserError, match=r"lamb: 10.0 in the run, 5.0 in .*tiny.json"):
        workspace.train("one", "--resume")
    assert run.last.read_bytes() == before
    workspace.settings()
    workspace.train("one", "--resume", "--n_epochs", 3)  # ndf 8 was typed before and need not be typed again
    assert run.stored_settings(MODEL_OPTIONS)["ndf"] == 8 and run.epochs() == [2, 3]


def test_a_folder_in_use_is_refused_and_a_dead_lock_taken_over(workspace):
    run = workspace.run("one")
    run.path.mkdir(parents=True)
    host = os.uname().nodename
    lock = run.path / "run.lock"
    lock.write_text(json.dumps({"host": host, "pid": os.getppid(), "start": "now"}))
    with pytest.raises(UserError, match=f"in use by process {os.getppid()} on {host}"):
        workspace.train("one")
    lock.write_text(json.dumps({"host": "another", "pid": 1, "start": "now"}))
    with pytest.raises(UserError, match="on another"):
        workspace.train("one")
    lock.write_text(json.dumps({"host": host, "pid": 2**22 + 1, "start": "now"}))
    assert workspace.train("one").last.is_file()


def test_nan_stops_before_anything_is_saved(workspace, monkeypatch):
    run = workspace.train("one")
    before = run.last.read_bytes()
    original = BaseModel.weigh

    def broken(self, terms):
        return original(self, terms) * float("nan")

    monkeypatch.setattr(BaseModel, "weigh", broken)
    with pytest.raises(UserError, match="NaN or infinite at step"):
        workspace.train("one", "--resume", "--n_epochs", 4)
    assert run.last.read_bytes() == before


@pytest.mark.parametrize("accumulate", [1, 2])
def test_steps_whose_numbers_are_not_finite_are_left_out_if_asked(workspace, monkeypatch, caplog, accumulate):
    """A gradient alone, and a loss; what is trained before and after stands."""
    weigh, calls = BaseModel.weigh, {"weigh": 0}

    def weighed(self, terms):
        calls["weigh"] += 1
        total = weigh(self, terms)
        if calls["weigh"] == 3:
            total.register_hook(lambda gradient: gradient * float("nan"))
        if calls["weigh"] == 7:
            terms["recon"].mul_(float("inf"))
            return weigh(self, terms)
        return total

    monkeypatch.setattr(BaseModel, "weigh", weighed)
    run = workspace.train("one", "--on_nan", "skip", "--accumulate_grad_batches", accumulate, "--n_epochs", 3)
    said = [record.message for record in caplog.records if record.message.startswith("step left out")]
    assert any("a gradient NaN or infinite at step" in line and ".tif" in line for line in said)
    assert any("recon" in line for line in said)
    state = torch.load(run.last, weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in state.values())
    checkpoint = torch.load(run.last, weights_only=True)
    assert checkpoint["generator_steps"] == 6 // accumulate - len(said)


def test_too_many_steps_in_a_row_stop_although_they_may_be_left_out(workspace, monkeypatch):
    monkeypatch.setattr(BaseModel, "weigh", lambda self, terms: sum(terms.values()) * float("nan"))
    monkeypatch.setattr("models.base.MOST_LEFT_OUT", 3)
    with pytest.raises(UserError, match=r"NaN or infinite at step 0 \(.*tif.*\); 3 steps before it were left out"):
        workspace.train("one", "--on_nan", "skip")


def test_memory_that_does_not_suffice_is_explained_and_what_was_saved_stays(workspace, monkeypatch):
    run = workspace.train("one", "--batch_size", 2)
    before = {path: path.read_bytes() for path in run.checkpoints.iterdir()}

    def too_large(self, batch):
        torch.empty(2**50)

    monkeypatch.setattr(type(build_model(run.stored_settings(MODEL_OPTIONS))), "generate", too_large)
    with pytest.raises(UserError, match=r"does not suffice for a step with batch_size 2, .*--batch_size 1 or --adv_planes 16 or"):
        workspace.train("one", "--resume", "--n_epochs", 4)
    assert {path: path.read_bytes() for path in run.checkpoints.iterdir()} == before


@pytest.mark.parametrize("kind", ["parameters", "buffers"])
def test_weights_that_are_not_finite_are_never_saved(workspace, monkeypatch, kind):
    """As after a gradient that overflows in an epoch's last step, where no loss tells of it any more."""
    run = workspace.train("one", "--epoch_save", 1)
    before = {path: path.read_bytes() for path in run.checkpoints.iterdir()}
    after_batch = BaseModel.after_batch

    def overflow(self, out, stepped):
        if self.current_epoch == 2 and self.trainer.is_last_batch:
            with torch.no_grad():
                next(getattr(self.G["net_g"], kind)()).select(0, -1).fill_(float("inf"))
        return after_batch(self, out, stepped)

    monkeypatch.setattr(type(build_model(run.stored_settings(MODEL_OPTIONS))), "after_batch", overflow)
    with pytest.raises(UserError, match=r"weights became NaN or infinite by step 6 \(first G.net_g.*nothing was saved since"):
        workspace.train("one", "--resume", "--n_epochs", 4)
    assert {path: path.read_bytes() for path in run.checkpoints.iterdir()} == before


@pytest.mark.parametrize("metric", [float("nan"), float("inf")])
def test_a_metric_that_is_not_a_number_is_never_the_best(metric, tmp_path):
    keeper = RunKeeper(RunFolder(tmp_path), {"epoch_save": 1, "save_minutes": 1, "monitor": "val/recon", "max_time": None})
    written = []
    keeper._write = lambda trainer, model, path: written.append(path)
    for value in (metric, 0.5, metric, 0.7, 0.4):
        keeper._write_best(None, SimpleNamespace(metric=lambda _, value=value: value))
    assert keeper.best == 0.4 and len(written) == 2


def test_validation_logs_metrics_and_keeps_the_best(workspace):
    for name in ("a.tif", "b.tif"):
        source = workspace.data / "train" / "x3d0" / name
        (workspace.data / "val" / "x3d0").mkdir(parents=True, exist_ok=True)
        (workspace.data / "val" / "x3d0" / name).write_bytes(source.read_bytes())
    run = workspace.train("one", "--lr_policy", "plateau")
    assert run.best.is_file()
    logged = EventAccumulator(str(run.logs)).Reload().Tags()["scalars"]
    assert {"validation/recon", "validation/recon_psnr", "validation/projection", "validation/gradient_ratio"} <= set(logged)


def test_plateau_names_a_metric_that_is_not_logged(workspace):
    with pytest.raises(UserError, match=r"no validation data; add the folder val/.*--monitor loss/generator/projection"):
        workspace.train("one", "--lr_policy", "plateau")
    with pytest.raises(UserError, match=r"--monitor 'loss/generator/projections', which is not logged; known: .*r/projection"):
        workspace.train("one", "--lr_policy", "plateau", "--monitor", "g/projections")


def test_init_starts_from_weights_and_leaves_the_codebook_alone(workspace):
    first = workspace.train("first")
    second = workspace.train("second", "--init", str(first.path), "--n_epochs", 1, "--lr", 1e-12)
    before, after = weights(first, 2), weights(second, 1)
    for key, value in before.items():
        if "running" not in key and "num_batches" not in key:
            np.testing.assert_allclose(after[key], value, atol=1e-8)
    assert not torch.load(second.last, weights_only=True)["state_dict"]["revival.initialised"]
    with pytest.raises(UserError, match="no checkpoint of epoch 7; it has 2"):
        workspace.train("third", "--init", f"{first.path}@7")
    with pytest.raises(UserError, match=r"net_d_model_epoch_2.pth does not fit.*: size mismatch for .*and \d+ more.*\(ndf 4\)$"):
        workspace.train("third", "--init", str(first.path), "--ndf", 8)


def test_init_may_add_a_discriminator_that_the_other_run_had_not(workspace, caplog):
    first = workspace.train("first", "--adv", 0, "--n_epochs", 1)
    assert not first.component("net_d", 1).exists()
    with caplog.at_level(logging.WARNING):
        second = workspace.train("second", "--init", str(first.path), "--n_epochs", 1)
    assert "trained without net_d" in caplog.text
    assert second.component("net_d", 1).is_file()
    first.component("encoder", 1).unlink()
    with pytest.raises(UserError, match="cannot supply the component 'encoder'"):
        workspace.train("third", "--init", str(first.path))


def test_pictures_are_bounded(workspace):
    run = workspace.train("one", "--n_epochs", 5, "--picture_epochs", 1, "--keep_pictures", 2)
    assert sorted(p.name for p in run.pictures.iterdir()) == ["epoch_000004.png", "epoch_000005.png"]


def test_command_line_reports_mistakes_without_a_traceback(workspace, capsys, monkeypatch):
    import runpy

    def call(*options):
        monkeypatch.setattr("sys.argv", ["train.py", *workspace.arguments("one", *options)])
        with pytest.raises(SystemExit) as end:
            runpy.run_path(train.__file__, run_name="__main__")
        return end.value.code, capsys.readouterr().err

    code, message = call("--cropz", 5)
    assert code == 2 and message.startswith("error: the output is not a cube") and "Traceback" not in message
    with pytest.raises(UserError):
        monkeypatch.setattr("sys.argv", ["train.py", *workspace.arguments("one", "--cropz", 5, "--debug")])
        runpy.run_path(train.__file__, run_name="__main__")


def test_ctrl_c_before_the_first_step(workspace, monkeypatch):
    """Signals are Python's until then, and Lightning would leave with 1."""

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(RunKeeper, "on_train_start", interrupted)
    handler = signal.getsignal(signal.SIGINT)  # Lightning has it ignored from then on
    try:
        with pytest.raises(KeyboardInterrupt):
            workspace.train("one")
    finally:
        signal.signal(signal.SIGINT, handler)
