"""Volumes at addresses through the commands: prepared, trained on, enhanced, judged, looked at; nothing is written there."""

import json

import numpy as np
import pytest
import tifffile
import torch
from infer_commands import VOXEL, command, read
from infer_runs import grey, make_run

import evaluate
import prepare
from experiment.runs import RunFolder
from inference import enhance
from tests.far_server import serving
from tests.workspace import write_volume
from utils import far
from utils.errors import UserError
from volumes.open import open_volume
from writing.target import VolumeTarget
from writing.target_plan import plan_target


@pytest.fixture
def served(tmp_path, monkeypatch):
    monkeypatch.setattr(far, "FIRST_WAIT", 0.001)
    (tmp_path / "far").mkdir()
    with serving(tmp_path / "far") as server:
        yield server


def put(served, name, values, **stated):
    path = served.folder / name
    target = VolumeTarget(path, plan_target(path, shape=values.shape, dtype=values.dtype, **stated), overwrite=False)
    for box in target.boxes:
        target.write_region(box, values[box])
    target.finish()
    return f"{served.address}/{name}"


def test_enhance_info_and_evaluate(served, tmp_path, caplog):
    run, values = make_run(tmp_path / "D" / "P", "lateral", uprate=4.0, blocks=1), grey((6, 37, 43))
    address = put(served, "in.ome.zarr", values, voxel_um=VOXEL)
    command("enhance", "--run", run, "--input", address, "--output", tmp_path / "out.ome.zarr")
    np.testing.assert_array_equal(read(tmp_path / "out.ome.zarr"), enhance(values, run))
    np.testing.assert_array_equal(enhance(address, run), enhance(values, run))
    second = put(served, "more.ome.zarr", values[:3], voxel_um=VOXEL)
    command("enhance", "--run", run, "--input", address, second, "--output", tmp_path / "folder")
    assert open_volume(tmp_path / "folder" / "in.ome.zarr").attributes["input"]["files"] == ["in.ome.zarr"]
    evaluate.main(["--reconstruction", str(tmp_path / "out.ome.zarr"), "--input", address, "--output", str(tmp_path / "report")])
    assert json.loads((tmp_path / "report" / "metrics.json").read_text())["files"]["input"]["path"] == address
    caplog.set_level("INFO")
    command("info", address)
    assert f"{address}: (6, 37, 43) uint16 (Z, Y, X)" in caplog.text


def test_a_server_that_goes_away_stops_the_command_and_the_same_goes_on(served, tmp_path):
    run, values = make_run(tmp_path / "D" / "P", "lateral", uprate=4.0, blocks=1), grey((6, 37, 43))
    address = put(served, "in.ome.zarr", values, voxel_um=VOXEL)
    (served.folder / "in.ome.zarr" / "zarr.json").rename(tmp_path / "away")
    words = ("enhance", "--run", run, "--input", address, "--output", tmp_path / "out.ome.zarr")
    with pytest.raises(UserError, match="no OME-Zarr image or Zarr array is there"):
        command(*words)
    (tmp_path / "away").rename(served.folder / "in.ome.zarr" / "zarr.json")
    served.failing.update({f"in.ome.zarr/0/c/{z}/0/0": 99 for z in range(3)})
    with pytest.raises(UserError, match=r"asked 5 times .*run the same command again"):
        command(*words)
    assert not (tmp_path / "out.ome.zarr").exists()
    served.failing.clear()
    command(*words)
    np.testing.assert_array_equal(read(tmp_path / "out.ome.zarr"), enhance(values, run))


@pytest.mark.parametrize("link", [False, True])
def test_prepare_and_train(served, tmp_path, workspace, link):
    """Copied, or where it lies: the same crops, so the same weights; workers are forked after it was opened."""
    sources = sorted((workspace.data / "train" / "x3d0").glob("*.tif"))
    addresses = [put(served, f"{path.stem}.ome.zarr", tifffile.imread(path)) for path in sources]
    words = ["volumes", "--data_root", tmp_path / "data", "--dataset", "far", "--val", 0, "--normalise", "00"]
    prepare.main([str(word) for word in [*words, *(["--link"] if link else []), "--input", *addresses]])
    names = {path.name for path in (tmp_path / "data" / "far" / "train" / "x3d0").iterdir()}
    assert names == {f"{name}.{'url' if link else 'tif'}" for name in "ab"}
    record = json.loads((tmp_path / "data" / "far" / "dataset.json").read_text())["directions"]["x3d0"]
    assert [source["path"] for source in record["sources"]] == addresses
    options = ("--models", "lateral", "--uprate", 4, "--cropsize", 40, "--blocks", 1, "--n_epochs", 1, "--crops_per_volume", 2)
    served.asked.clear()
    workspace.train("run", *options, "--dataset", "far", "--workers", 1)
    assert bool(served.asked) == link
    made = [torch.load(workspace.train("run", *options).component("net_g", 1))]
    made.append(torch.load(RunFolder(tmp_path / "logs" / "far" / "run").component("net_g", 1)))
    assert all(torch.equal(made[0][key], made[1][key]) for key in made[0])


def test_nothing_is_written_there(served, tmp_path, capsys):
    run = make_run(tmp_path / "D" / "P")
    write_volume(tmp_path / "in.tif", 0)
    for words in (
        ("enhance", "--run", run, "--input", tmp_path / "in.tif", "--output", "s3://bucket/out.ome.zarr"),
        ("enhance", "--run", run, "--input", tmp_path / "in.tif", tmp_path / "in.tif", "--output", "s3://bucket/out"),
        ("encode", "--run", run, "--input", tmp_path / "in.tif", "--output", "https://host/x.codes.zarr"),
        ("export", run, "--output", "s3://bucket/run"),
    ):
        with pytest.raises(UserError, match=r"://.*far places are only read"):
            command(*words)
    with pytest.raises(SystemExit):
        evaluate.main(["--reconstruction", str(tmp_path / "in.tif"), "--output", "s3://b/report"])
    assert "far places are only read" in capsys.readouterr().err
    with pytest.raises(UserError, match="codes are decoded on the machine where they lie"):
        command("decode", "--codes", f"{served.address}/x.codes.zarr", "--output", tmp_path / "x.tif")
    assert not list(tmp_path.glob("*s3*")) and not list(tmp_path.glob("*http*"))


def test_data_and_runs_lie_here(workspace):
    with pytest.raises(UserError, match="far places are only read"):
        workspace.train("x", "--data_root", "s3://bucket/data")
