"""A full disc: one message with the place and how to go on, no cut file, and what was saved before goes on to the same end."""

import errno
import shutil
import tempfile
from pathlib import Path

import pytest
import torch

from tests.workspace import made_in
from training import requirements
from training.callbacks import InPlace
from training.shown import PictureWriter
from utils.errors import UserError

OPTIONS = ("--epoch_save", 1, "--n_epochs", 2)


def full(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def weights(run):
    return torch.load(run.last, weights_only=True)["state_dict"]


def test_nothing_is_staged_outside_the_runs_folder(workspace, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(workspace.root / "a" / "folder" / "that is not there"))
    run = workspace.train("one")
    assert run.last.is_file() and run.epochs() == [2]


@pytest.fixture(scope="module")
def right(tmp_path_factory):
    """The weights that a training ends with where there is room."""
    return weights(made_in(tmp_path_factory.mktemp("whole")).train("whole", *OPTIONS))


@pytest.mark.parametrize("count", [5, 9, 10, 18])  # of 8 component files and a last.ckpt after each epoch
def test_a_checkpoint_that_does_not_fit_leaves_those_before_it(workspace, right, monkeypatch, count):
    calls, save = [], InPlace.save_checkpoint

    def last_one(self, checkpoint, path, storage_options=None):
        calls.append(path)
        save(self, checkpoint, path)
        if len(calls) == count:
            Path(path).write_bytes(Path(path).read_bytes()[:1000])  # as much as there was room for
            full()

    with monkeypatch.context() as patch:
        patch.setattr(InPlace, "save_checkpoint", last_one)
        with pytest.raises(UserError, match=r"/checkpoints/.*: the disc is full; what was saved before is as it was: make room"):
            workspace.train("one", *OPTIONS)
    run = workspace.run("one")
    assert not list(run.path.rglob("*partial*")) and not run.manifest.damaged_checkpoints()
    assert run.epochs() == list(range(1, count // 9 + 1))
    workspace.train("one", *(["--resume"] if run.manifest.trained() else OPTIONS))
    ours = weights(run)
    assert all(torch.equal(ours[key], right[key]) for key in right)


def test_whatever_else_does_not_fit_is_said_in_one_message(workspace, monkeypatch):
    monkeypatch.setattr(PictureWriter, "draw", full)
    with pytest.raises(UserError, match=r"logs/tiny/one: the disc is full; what was saved before is as it was"):
        workspace.train("one")
    assert not (workspace.run("one").path / "run.lock").exists()


def test_a_training_whose_first_save_does_not_fit_is_refused(workspace, monkeypatch):
    usage = shutil.disk_usage(workspace.root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10**6))
    with pytest.raises(UserError, match=r"one needs [\d.]+ MB for the first save, and .* has 1 MB free; make room, or .*--logs"):
        workspace.train("one")
    assert not workspace.run("one").path.exists()


def test_a_training_says_what_it_takes_and_a_step_that_does_not_fit_is_refused(workspace, monkeypatch, caplog):
    monkeypatch.setattr(requirements, "_MEASURED", 0)
    caplog.set_level("INFO")
    workspace.train("one")
    assert "disc: about" in caplog.text and "of memory or more" in caplog.text
    monkeypatch.setattr(requirements, "total_memory", lambda: 1000 * 1000)
    with pytest.raises(UserError, match=r"a step needs at least .* of memory, of which this machine has 1 MB; use .*--cropsize"):
        workspace.train("two", "--precision", "32")
    assert not workspace.run("two").path.exists()
