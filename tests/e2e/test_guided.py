"""A training with a lateral teacher through the commands: what it leaves, that it goes on, and what stops it."""

import json
import shutil

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_lateral import OPTIONS as LATERAL
from test_training import same

from inference import enhance
from sharing.exporting import export
from utils.errors import UserError
from volumes.open import open_volume

SMALL = ("--cropsize", 40, "--ngf", 8)
TWO = "--tc --direction x3d0_x3d1 --input_nc 2 --output_nc 2".split()
GUIDED = "--l1how dsp --downbranch 2 --cropz 8 --adv 0 --lbteach 3 --ema 0".split()


@pytest.fixture
def teacher(workspace):
    return workspace.train("lateral", *LATERAL, "--crops_per_volume", 2, *SMALL)


@pytest.mark.parametrize("baseline", ["--from_interpolation", "--from_teacher"])
def test_a_guided_training_says_by_whom_and_goes_on_exactly(workspace, teacher, baseline):
    options = (*GUIDED, baseline, "--lblateral", 0.5, "--teacher_planes", 4, "--log_steps", 2)
    whole = workspace.train("whole", *options, "--teacher", "tiny/lateral")
    record = json.loads(whole.teacher_record.read_text())
    assert record["run"] == str(teacher.path) and record["weights"] == "net_g_ema_model_epoch_2.pth"
    named = teacher.manifest.read()["epochs"]["2"]
    assert record["sha256"] == named[record["weights"]]
    assert not any("teacher" in key for key in torch.load(whole.last, weights_only=True)["state_dict"])
    workspace.train("broken", *options, "--teacher", str(teacher.path), "--n_epochs", 1)
    broken = workspace.train("broken", "--resume", "--n_epochs", 2)
    assert same(*(weights_of(run, ("encoder", "decoder", "quantize", "net_g")) for run in (whole, broken)))
    logged = EventAccumulator(str(whole.logs)).Reload().Tags()["scalars"]
    assert {"loss/generator/teacher", "loss/generator/lateral"} <= set(logged)
    taken_over = ["--teacher", "tiny/lateral"] if baseline == "--from_teacher" else []
    plain = workspace.train("plain", *options, "--lbteach", 0, *taken_over)
    assert plain.teacher_record.exists() == (baseline == "--from_teacher")
    assert not same(weights_of(whole, ["net_g"]), weights_of(plain, ["net_g"]))
    if baseline == "--from_teacher":
        taken, theirs = (torch.load(path, weights_only=True) for path in (whole.component("net_t", 2), named_weights(teacher)))
        assert all(torch.equal(taken[key], theirs[key]) for key in theirs)
    shutil.rmtree(teacher.path)
    volume = open_volume(workspace.data / "train" / "x3d0" / "a.tif")
    assert enhance(whole.path, volume).shape[0] == 4 * volume.shape[0]  # in use nobody asks for the teacher
    with pytest.raises(UserError, match="--teacher 'tiny/lateral': neither"):
        workspace.train("whole", "--resume", "--n_epochs", 3)


def test_an_exported_teacher_guides_alike(workspace, teacher, tmp_path):
    folder = export(teacher.path, tmp_path / "shared")
    options = (*GUIDED, "--from_teacher", "--n_epochs", 1)
    made = [workspace.train(name, *options, "--teacher", place) for name, place in (("a", teacher.path), ("b", folder))]
    assert same(*(weights_of(run, ("encoder", "net_g", "net_t"), 1) for run in made))
    (folder / "0.json").write_text((folder / "0.json").read_text() + " ")
    with pytest.raises(UserError, match=r"0\.json is damaged"):
        workspace.train("c", *options, "--teacher", folder)


def named_weights(teacher):
    return teacher.component("net_g", 2, ema=True)


def weights_of(run, parts, epoch=2):
    states = {part: torch.load(run.component(part, epoch), weights_only=True) for part in parts}
    return {f"{part}.{key}": value for part, state in states.items() for key, value in state.items()}


def test_a_teacher_that_changed_is_named_before_a_training_goes_on(workspace, teacher):
    workspace.train("run", *GUIDED, "--teacher", "tiny/lateral", "--n_epochs", 1)
    workspace.train("lateral", *LATERAL, "--crops_per_volume", 2, *SMALL, "--seed", 5, "--overwrite")
    with pytest.raises(UserError, match="has changed since this training began"):
        workspace.train("run", "--resume", "--n_epochs", 2)


def test_a_teacher_that_does_not_fit_stops_before_anything_is_made(workspace, teacher):
    shutil.copytree(workspace.data / "train" / "x3d0", workspace.data / "train" / "x3d1")
    for options, rule in [
        (["--teacher", "nobody"], "neither nobody nor"),
        (["--teacher", "tiny/lateral", "--nm", "01"], "nm=11, this training has 01"),
        (["--teacher", "tiny/lateral", "--l1how", "mean"], "the pick of its planes .*--l1how dsp"),
        (
            ["--teacher", "tiny/lateral", "--cropz", 4, "--downbranch", 1],
            "4 planes of a section .*a teacher with --uprate 8",
        ),
        (["--teacher", "tiny/lateral", *TWO], "has 1 channel.*this training 2"),
        (["--from_teacher"], "none is named; give --teacher RUN"),
        (
            ["--from_teacher", "--from_interpolation", "--teacher", "tiny/lateral"],
            "two things for the volume generator to add to",
        ),
        (["--from_teacher", "--teacher", "tiny/lateral", "--usp", 2, "--downbranch", 4], "set usp 1"),
    ]:
        with pytest.raises(UserError, match=rule):
            workspace.train("refused", *GUIDED, *options)
        assert not workspace.run("refused").path.exists()
