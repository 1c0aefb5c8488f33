"""Checkpoints are whole or not there: killed, cut, flipped, mixed and missing ones are named, and nothing finished is lost."""

import json
import logging
import re
import shutil
from pathlib import Path

import pytest
import torch
from workspace import TINY_AUTOENCODER, Workspace, write_volume

from inference import Engine, Run
from models.build import build_model, load_components
from models.options import MODEL_OPTIONS
from tests.workspace import signalled
from training.callbacks import RunKeeper
from utils.errors import UserError

CPU = Engine.choose("cpu")


def files(run):
    return {path.name: path.read_bytes() for path in run.checkpoints.iterdir()}


def flip(path):
    """One bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


class Killed(BaseException):
    """What stands for SIGKILL: nothing after it is done."""


def killed_at(monkeypatch, count, epoch=None):
    """A training dies as it writes its count-th component file (of an epoch)."""
    import training.callbacks

    original, seen = training.callbacks.replaced, []

    def dying(path, *how):
        if "_model_epoch_" in path.name and (epoch is None or path.name.endswith(f"_{epoch}.pth")):
            seen.append(path)
            if len(seen) == count:
                raise Killed
        return original(path, *how)

    monkeypatch.setattr("training.callbacks.replaced", dying)


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    """A run of two epochs, both saved with averages."""
    made = Workspace(tmp_path_factory.mktemp("ready"))
    write_volume(made.data / "train" / "x3d0" / "a.tif", 0)
    (made.root / "tiny.yaml").write_text(TINY_AUTOENCODER)
    made.settings()
    return made.train("one", "--ema", 0.9, "--epoch_save", 1)


@pytest.fixture
def trained(ready, workspace):
    """A copy of it to be spoilt, beside data and settings."""
    shutil.copytree(ready.path, workspace.run("one").path)
    return workspace.run("one")


def test_a_stop_within_an_epoch_leaves_finished_epochs_alone(workspace, monkeypatch):
    run = workspace.train("one", "--epoch_save", 1, "--n_epochs", 2)
    before = files(run)
    signalled(monkeypatch, 0)
    workspace.train("one", "--resume", "--n_epochs", 3)
    after = files(run)
    assert {name: after[name] for name in before if name.endswith(".pth")} == {n: b for n, b in before.items() if n.endswith("h")}
    assert after["last.ckpt"] != before["last.ckpt"] and after["last.previous.ckpt"] == before["last.ckpt"]
    assert run.epochs() == [1, 2]


def test_a_set_that_is_not_whole_is_not_there_and_the_training_goes_on_to_the_same_end(workspace, monkeypatch):
    options = ("--epoch_save", 1, "--n_epochs", 3, "--ema", 0.9)
    whole = workspace.train("whole", *options)
    killed_at(monkeypatch, 12, epoch=2)
    with pytest.raises(Killed):
        workspace.train("broken", *options)
    monkeypatch.undo()
    broken = workspace.run("broken")
    assert broken.component("net_g", 2).is_file() and broken.epochs() == [1]
    assert Run.load(broken.path, engine=CPU).epoch == 1
    with pytest.raises(UserError, match="no checkpoint of epoch 2; it has 1"):
        workspace.train("other", "--init", f"{broken.path}@2")
    workspace.train("broken", "--resume")
    for path in whole.checkpoints.glob("*.pth"):
        first, second = (torch.load(p, weights_only=True) for p in (path, broken.checkpoints / path.name))
        assert all(torch.equal(first[key], second[key]) for key in first)
    assert broken.epochs() == [1, 2, 3]


@pytest.mark.parametrize("count", [2, 9, "last"])
def test_a_first_save_that_was_killed_is_no_dead_end(workspace, monkeypatch, count):
    if count == "last":
        monkeypatch.setattr(RunKeeper, "_write_last", lambda *_: (_ for _ in ()).throw(Killed))
    else:
        killed_at(monkeypatch, count)
    with pytest.raises(Killed):
        workspace.train("one", "--ema", 0.9)
    monkeypatch.undo()
    with pytest.raises(UserError, match=r"nothing to resume.*start without --resume"):
        workspace.train("one", "--resume")
    run = workspace.train("one", "--ema", 0.9)
    assert run.epochs() == [2] and run.last.is_file()
    assert list(workspace.run("one.1").checkpoints.glob("*.pth"))  # put aside, never deleted


def spoil_bit(run):
    flip(run.component("encoder", 2))
    return "encoder_model_epoch_2.pth is damaged or of another save: its SHA-256 is [0-9a-f]{64}, written was [0-9a-f]{64}; copy"


def spoil_discriminator(run):
    run.component("net_d", 2).unlink()
    return "net_d_model_epoch_2.pth is missing.*copy the epoch's files again"


def spoil_average(run):
    run.component("net_g", 2, ema=True).unlink()
    return "net_g_ema_model_epoch_2.pth is missing"


def spoil_mixed(run):
    shutil.copy(run.component("decoder", 1, ema=True), run.component("decoder", 2, ema=True))
    return "decoder_ema_model_epoch_2.pth is damaged or of another save"


def spoil_extra(run):
    shutil.copy(run.component("net_d", 2), run.component("netF", 2))
    return "netF_model_epoch_2.pth is damaged or of another save.*written was nothing"


def spoil_manifest(run):
    path = run.checkpoints / "manifest.json"
    path.write_text(path.read_text()[:-40])
    return r"manifest.json: this list of checkpoints cannot be read"


@pytest.mark.parametrize("spoil", [spoil_bit, spoil_discriminator, spoil_average, spoil_mixed, spoil_extra, spoil_manifest])
def test_a_damaged_or_mixed_set_is_named_by_every_reader(workspace, trained, spoil):
    message = spoil(trained)
    with pytest.raises(UserError, match=message):
        Run.load(trained.path, engine=CPU)
    with pytest.raises(UserError, match=message):
        workspace.train("two", "--init", str(trained.path))
    if spoil is not spoil_manifest:
        assert Run.load(trained.path, 1, engine=CPU).epoch == 1


def old(run):
    """As an older version left it."""
    (run.checkpoints / "manifest.json").unlink()


def test_weights_that_are_no_numbers_are_named(trained):
    old(trained)
    path = trained.component("decoder", 2, ema=True)
    state = torch.load(path, weights_only=True)
    state["conv_in.bias"][0] = float("nan")
    torch.save(state, path)
    with pytest.raises(UserError, match=r"decoder_ema_model_epoch_2.pth: conv_in.bias is NaN or infinite"):
        Run.load(trained.path, engine=CPU)


def test_a_missing_average_beside_averages_is_named_in_an_old_run(trained):
    old(trained)
    trained.component("encoder", 2, ema=True).unlink()
    with pytest.raises(UserError, match=r"encoder_ema_model_epoch_2.pth is missing"):
        Run.load(trained.path, engine=CPU)
    model = build_model(trained.stored_settings(MODEL_OPTIONS))
    assert load_components(model, trained) == 2  # raw weights are another matter


def test_garbage_in_an_old_run_gives_no_dangerous_advice(trained):
    old(trained)
    trained.component("encoder", 2, ema=True).write_bytes(b"garbage" * 100)
    with pytest.raises(UserError, match=r"encoder_ema_model_epoch_2.pth cannot be read") as refusal:
        Run.load(trained.path, engine=CPU)
    assert "weights_only" not in str(refusal.value)


def cut(path):
    path.write_bytes(path.read_bytes()[:1000])


def empty(path):
    path.write_bytes(b"")


def garbage(path):
    path.write_bytes(b"garbage" * 1000)


@pytest.mark.parametrize("spoil", [cut, empty, garbage, flip, Path.unlink])
def test_a_damaged_last_checkpoint_is_named_and_the_one_before_it_taken(trained, spoil):
    spoil(trained.last)
    before = trained.manifest.previous
    path, damage = trained.manifest.to_resume()
    assert path == before and re.search(r"last.ckpt (is damaged: its SHA-256|does not exist)", damage)
    spoil(before)
    with pytest.raises(UserError, match=r"nothing to resume: \S+last.ckpt .*; \S+last.previous.ckpt .*--overwrite.*--init"):
        trained.manifest.to_resume()


@pytest.mark.parametrize("spoil", [cut, empty, garbage, flip])
def test_a_damaged_last_checkpoint_of_an_old_run_is_named(trained, spoil):
    old(trained)
    trained.manifest.previous.unlink()
    assert trained.manifest.to_resume() == (trained.last, "")
    spoil(trained.last)
    with pytest.raises(UserError, match=r"last.ckpt is damaged \(.*last.previous.ckpt does not exist"):
        trained.manifest.to_resume()


@pytest.mark.parametrize("spoil", [garbage, flip])
def test_a_training_goes_on_from_the_checkpoint_before_a_damaged_one_to_the_same_end(workspace, caplog, spoil):
    run = workspace.train("one", "--epoch_save", 1)
    sets, end = files(run), torch.load(run.last, weights_only=True)["state_dict"]
    before = run.manifest.previous.read_bytes()
    spoil(run.last)
    with caplog.at_level(logging.WARNING):
        workspace.train("one", "--resume")
    assert re.search(r"/last.ckpt is damaged: .*; going on from \S+last.previous.ckpt", caplog.text)
    again = torch.load(run.last, weights_only=True)["state_dict"]
    assert all(torch.equal(end[key], again[key]) for key in end)
    assert run.manifest.previous.read_bytes() == before  # the damaged one did not take its place
    assert {name: files(run)[name] for name in sets if name.endswith(".pth")} == {
        n: b for n, b in sets.items() if n.endswith("h")
    }


def test_an_old_run_that_goes_on_keeps_its_epochs_and_gets_hashes(workspace):
    trained = workspace.train("one", "--epoch_save", 1)
    old(trained)
    workspace.train("one", "--resume", "--n_epochs", 3)
    assert trained.epochs() == [1, 2, 3]
    assert set(json.loads((trained.checkpoints / "manifest.json").read_text())["epochs"]) == {"1", "2", "3"}
    flip(trained.component("encoder", 1))
    with pytest.raises(UserError, match=r"encoder_model_epoch_1.pth is damaged"):
        Run.load(trained.path, 1, engine=CPU)
