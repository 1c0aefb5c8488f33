"""Where a training's curves, settings and pictures go, and what is left of a try that was given up."""

import csv
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata as of_hparams

import train
from experiment.options import metric_name
from models.base import BaseModel
from tests.workspace import signalled, write_volume
from training.trackers import DESCRIPTIONS, PICTURE, hyper_parameters
from utils.errors import UserError

OPTIONS = ("--crops_per_volume", 2, "--log_steps", 2, "--picture_epochs", 1, "--workers", 0)


def validated(workspace):
    for number, name in enumerate(("a.tif", "b.tif")):
        write_volume(workspace.data / "val" / "x3d0" / name, number)
        write_volume(workspace.data / "truth" / "x3d0" / name, number, shape=(96, 48, 40))


def size_of(file):
    with Image.open(file) as opened:
        return opened.size


def events_of(run):
    return EventAccumulator(str(run.logs), size_guidance={"tensors": 0, "scalars": 0}).Reload()


def test_tensorboard_has_groups_descriptions_settings_and_pictures_at_their_step(workspace):
    validated(workspace)
    run = workspace.train("one", *OPTIONS)
    events = events_of(run)
    tags = events.Tags()
    groups = {"/".join(tag.split("/")[:-1]) for tag in tags["scalars"]}
    assert groups == {"loss/generator", "loss/discriminator", "codes", "validation", "training"}
    for tag in (*tags["scalars"], PICTURE):
        described = events.SummaryMetadata(tag).summary_description
        assert described and any(tag.startswith(known) and described == text for known, text in DESCRIPTIONS.items()), tag
    last = {events.Scalars(tag)[-1].step for tag in ("loss/generator/total", "validation/recon", "codes/used")}
    pictures = events.Tensors(PICTURE)
    assert [picture.step for picture in pictures] == [4, 8] and max(last) <= 8
    width, height, png = pictures[-1].tensor_proto.string_val
    assert png == run.picture(2).read_bytes() and (int(width), int(height)) == size_of(run.picture(2))
    content = events.PluginTagToContent("hparams")[of_hparams.SESSION_START_INFO_TAG]
    start = of_hparams.parse_session_start_info_plugin_data(content)
    assert start.hparams["cropsize"].number_value == 32 and start.hparams["autoencoder.n_embed"].number_value == 16
    assert not {"prj", "logs", "tracker", "save_minutes"} & set(start.hparams)


def test_pictures_have_the_truth_beside_them_in_the_range_of_their_input(workspace, monkeypatch):
    drawn = []
    from training import shown

    original = shown.orthogonal_planes

    def draw(panels, **how):
        drawn.append(panels)
        assert how["scale_of"] == "input (interpolated)"
        return original(panels, **how)

    monkeypatch.setattr(shown, "orthogonal_planes", draw)
    workspace.train("without", "--n_epochs", 1, *OPTIONS)
    validated(workspace)
    workspace.train("with", "--n_epochs", 1, *OPTIONS)
    assert "truth" not in drawn[0] and list(drawn[1])[-1] == "truth"
    assert drawn[1]["truth"].shape == drawn[1]["isotropic output"].shape == (1, 32, 32, 32)


def test_csv_files_keep_every_start(workspace):
    for options in (("--n_epochs", 1), ("--n_epochs", 2, "--resume")):
        run = workspace.train("one", "--tracker", "csv", *OPTIONS, *options)
    steps = []
    for start in (0, 1):
        folder = run.logs / "csv" / f"start_{start}"
        with (folder / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert {"loss/generator/total", "training/learning_rate_generator", "epoch", PICTURE} <= rows[0].keys()
        steps.append([int(row["step"]) for row in rows if row["loss/generator/total"]])
        (picture,) = (row for row in rows if row[PICTURE])
        assert picture[PICTURE] == str(run.picture(start + 1)) and int(picture["step"]) == 4 * (start + 1)
        assert "cropsize: 32" in (folder / "hparams.yaml").read_text()
    assert max(steps[0]) <= 4 < min(steps[1]) and not list(run.logs.glob("events*"))


@pytest.mark.slow  # the packages start programs and make databases
@pytest.mark.filterwarnings("ignore")  # those of other packages
def test_wandb_is_kept_offline_where_nobody_has_logged_in(workspace, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(workspace.root / "netrc"))
    for options in (("--n_epochs", 1), ("--n_epochs", 2, "--resume")):
        run = workspace.train("one", "--tracker", "wandb", *OPTIONS, *options)
    assert wandb.run is None
    known = json.loads((run.logs / "trackers.json").read_text())["wandb"]
    folders = sorted((run.logs / "wandb").glob("offline-run-*"))
    assert len(folders) == 2 and all(folder.name.endswith(known) for folder in folders)
    for folder in folders:
        (file,) = folder.glob("*.wandb")
        content = file.read_bytes()
        for word in (b"loss/generator/total", b"cropsize", b"trainer/global_step"):
            assert word in content, word
        (picture,) = folder.rglob("*.png")
        assert size_of(picture) == size_of(run.picture(1))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_mlflow_goes_on_with_the_same_entry(workspace, monkeypatch):
    pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    from mlflow.tracking import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for options in (("--n_epochs", 1), ("--n_epochs", 2, "--resume")):
        run = workspace.train("one", "--tracker", "mlflow", *OPTIONS, *options)
    client = MlflowClient(f"sqlite:///{run.logs.absolute() / 'mlflow.db'}")
    (entry,) = client.search_runs([client.get_experiment_by_name("tiny").experiment_id])
    assert entry.info.run_name == "one" and entry.info.status == "FINISHED"
    assert entry.data.params["cropsize"] == "32" and entry.data.params["n_epochs"] == "1"
    steps = [point.step for point in client.get_metric_history(entry.info.run_id, "loss/generator/total")]
    assert steps == sorted(set(steps)) and steps[-1] > 4
    names = [file.path for file in client.list_artifacts(entry.info.run_id, "pictures")]
    assert names == [f"pictures/{run.picture(epoch).name}" for epoch in (1, 2)]


def test_several_trackers_and_a_package_that_is_missing(workspace, monkeypatch):
    run = workspace.train("one", "--tracker", "tensorboard", "csv", "--n_epochs", 1)
    assert list(run.logs.glob("events*")) and (run.logs / "csv" / "start_0" / "metrics.csv").is_file()
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UserError, match=r"--tracker mlflow.*needs the package mlflow.*install -e '\.\[mlflow\]'"):
        workspace.train("two", "--tracker", "csv", "mlflow")
    assert not workspace.run("two").path.exists()
    with pytest.raises(UserError, match=r"tracker=tensorbord must be one of .*did you mean tensorboard"):
        workspace.train("two", "--tracker", "tensorbord")


def test_nothing_stays_of_a_try_that_was_given_up_before_its_first_save(workspace, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(BaseModel, "weigh", lambda self, terms: sum(terms.values()) * float("nan"))
        with pytest.raises(UserError, match="NaN"):
            workspace.train("one")
    aborted = workspace.run("one")
    assert list(aborted.logs.glob("events*"))
    run = workspace.train("one", *OPTIONS)
    assert len(list(run.logs.glob("events*"))) == 1


def test_what_came_after_the_last_checkpoint_is_not_shown_twice(workspace, monkeypatch):
    """A process that is killed has logged steps that the one that goes on trains again."""
    options = ("--log_steps", 1, "--n_epochs", 1, "--crops_per_volume", 3)
    signalled(monkeypatch, 1)
    workspace.train("one", *options)
    monkeypatch.undo()
    run = workspace.run("one")
    checkpoint = run.last.read_bytes(), run.manifest.path.read_bytes()
    signalled(monkeypatch, 4)
    workspace.train("one", "--resume")
    monkeypatch.undo()
    run.last.write_bytes(checkpoint[0])  # as if it had been killed before it saved
    run.manifest.path.write_bytes(checkpoint[1])
    workspace.train("one", "--resume")
    steps = [event.step for event in events_of(run).Scalars("loss/generator/total")]
    assert steps == list(range(6))
    assert len(list(run.logs.glob("events*"))) == 3


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("val/recon_psnr", "validation/recon_psnr"),
        ("g/projection", "loss/generator/projection"),
        ("d/views_real", "loss/discriminator/views_real"),
        ("codes_used", "codes/used"),
        ("validation/recon", "validation/recon"),
        ("valuable", "valuable"),
    ],
)
def test_former_names_of_metrics_are_understood(old, new):
    assert metric_name(old) == new


def test_a_run_that_watched_a_metric_by_its_former_name_goes_on(workspace):
    validated(workspace)
    run = workspace.train("one", "--n_epochs", 1)
    stored = json.loads((run.path / "0.json").read_text())
    (run.path / "0.json").write_text(json.dumps({k: v for k, v in {**stored, "monitor": "val/recon"}.items() if k != "tracker"}))
    assert train.main(workspace.arguments("one", "--resume", "--n_epochs", 2)) == 0
    assert json.loads((run.path / "1.json").read_text())["monitor"] == "validation/recon"


def test_settings_are_flat_and_complete(workspace):
    run = workspace.train("one", "--n_epochs", 1)
    flat = hyper_parameters(json.loads((run.path / "0.json").read_text()))
    assert flat["autoencoder.loss.disc_ndf"] == 4 and flat["fWhich"] == "null" and flat["lr"] == 2e-4 and flat["seed"] == 123
    assert all(isinstance(value, bool | int | float | str) for value in flat.values())


def test_truth_lies_where_the_sample_does(workspace):
    """Of a folder truth/, and of files that dsp thins."""
    from dataloader.data_multi import PairedImageDataset
    from writing.write import write_tiff

    rng = np.random.default_rng(0)
    whole = rng.integers(0, 200, (40, 24, 32)).astype(np.uint8)
    whole[0, 0, 0], whole[4, 0, 0] = 0, 255
    for place, volume in (("train", whole[::4]), ("truth", whole)):
        (workspace.root / "iso" / place / "a").mkdir(parents=True)
        write_tiff(workspace.root / "iso" / place / "a" / "v.tif", volume)
    how = {"cropsize": 16, "nm": "11", "rotate": True}
    one = PairedImageDataset(workspace.root / "iso" / "train", ["a"], cropz=4, **how)
    (found,) = one.truth(0)
    assert found.shape == (1, 16, 16, 16) and torch.equal(found[..., ::4], one.centre(0)["img"][0])
    thinned = PairedImageDataset(workspace.root / "iso" / "truth", ["a"], cropz=16, dsp=4, **how)
    assert torch.equal(thinned.truth(0)[0][..., ::4], thinned.centre(0)["img"][0])
    assert not PairedImageDataset(workspace.root / "iso" / "truth", ["a"], cropz=16, **how).truth(0)
