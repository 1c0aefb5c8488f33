"""``prepare.py check --write NAME``: an experiment of the lateral model from what was found in the data."""

import json
import shutil

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, gaussian_filter1d

import prepare
from experiment.reading import read_settings
from models.options import MODEL_OPTIONS
from writing.write import write_tiff


@pytest.fixture
def repository(tmp_path, monkeypatch):
    (tmp_path / "env" / "jsn").mkdir(parents=True)
    (tmp_path / "env" / "env").write_text(json.dumps({"local": {"LOGS": "logs", "DATASET": "data"}}))
    shutil.copy(prepare.REPOSITORY / "env" / "jsn" / "lateral.json", tmp_path / "env" / "jsn")
    monkeypatch.setattr(prepare, "REPOSITORY", tmp_path)
    return tmp_path


def place(repository, values, voxel_um):
    path = repository / "data" / "X" / "train" / "x3d0" / "v.tif"
    path.parent.mkdir(parents=True)
    write_tiff(path, values, voxel_um=voxel_um)


def write(*options):
    prepare.main(["check", "--jsn", "lateral", "--dataset", "X", "--write", "mine", *options])


def refusal(capsys, *options):
    with pytest.raises(SystemExit):
        write(*options)
    return capsys.readouterr().err


def written(repository):
    return json.loads((repository / "env" / "jsn" / "mine.json").read_text())["train"]


def grey(shape):
    return (1000 + 400 * gaussian_filter(np.random.default_rng(0).standard_normal(shape), 1.5)).astype(np.uint16)


def test_sections_that_lie_apart(repository, capsys):
    place(repository, grey((96, 100, 120))[::4], (1.0, 0.25, 0.25))
    write()
    found = written(repository)
    assert (found["uprate"], found["cropsize"], found["nm"], found["dataset"]) == (4, 96, "11", "X")
    assert found["crops_per_volume"] == 2000 and "axial_taps" not in found and (found["ngf"], found["fine_width"]) == (32, 8)
    settings = read_settings(["--jsn", "mine", "--prj", "first"], MODEL_OPTIONS, repository).settings
    assert settings["models"] == "lateral" and settings["uprate"] == 4
    said = refusal(capsys)
    assert "already; choose another name, or add --overwrite" in said
    write("--overwrite", "--axial_sampling", "mean")
    assert written(repository)["axial_sampling"] == "mean"
    before = json.loads((repository / "env" / "jsn" / "mine.json.1").read_text())["train"]
    assert before == found


def test_the_command_line_wins_and_is_kept(repository):
    place(repository, grey((16, 100, 120)) / 4000, (1.15, 0.25, 0.25))
    write("--uprate", "4.6", "--axial_sampling", "mean", "--cropsize", "64")
    found = written(repository)
    assert (found["uprate"], found["axial_sampling"], found["cropsize"], found["nm"]) == (4.6, "mean", 64, "00")


def test_for_a_gpu_the_steps_are_as_many_of_larger_batches(repository, capsys):
    place(repository, grey((16, 100, 120)), (1.0, 0.25, 0.25))
    assert "settings of the lateral model, not of texture" in refusal(capsys, "--models", "texture", "--uprate", "4")
    write("--gpu")
    found = written(repository)
    assert (found["batch_size"], found["crops_per_volume"]) == (16, 500 * 16) and found["workers"] > 0
    assert "ngf" not in found
    with pytest.raises(SystemExit):
        prepare.main(["check", "--jsn", "lateral", "--dataset", "X", "--gpu"])
    assert "give --write NAME" in capsys.readouterr().err


def test_a_blur_that_can_be_trusted_is_written(repository):
    specimen = gaussian_filter(np.random.default_rng(0).standard_normal((96, 80, 80)), 1.5)
    place(repository, gaussian_filter1d(specimen, 2.5, axis=0).astype(np.float32), (0.25,) * 3)
    write("--axial_sampling", "mean")
    taps = written(repository)["axial_taps"]
    assert f'"axial_taps": [{", ".join(map(str, taps))}]' in (repository / "env" / "jsn" / "mine.json").read_text()
    notes = read_settings(["--jsn", "mine", "--prj", "x", "--axial_sampling", "pick"], MODEL_OPTIONS, repository).notes
    assert sum("env/jsn/mine.json are the blur beside the axial_sampling" in note for note in notes) == 1
    as_measured = read_settings(["--jsn", "mine", "--prj", "x"], MODEL_OPTIONS, repository).notes
    assert not any("axial_taps" in note for note in as_measured)
    assert written(repository)["uprate"] == 1 and max(taps) == pytest.approx(0.16, rel=0.05)


@pytest.mark.parametrize(
    ("voxel_um", "options", "said"),
    [
        (None, (), "give --uprate"),
        ((0.25,) * 3, (), "nothing to restore"),
        ((1.0, 0.25, 0.25), ("--models", "IsoREF"), "lateral model, not of IsoREF"),
        ((1.0, 0.25, 0.25), ("--cropsize", "512"), "a training would stop"),
        ((1.0, 0.25, 0.25), ("--write", "a/b"), "must be a name"),
    ],
)
def test_what_cannot_be_written(repository, capsys, voxel_um, options, said):
    place(repository, grey((64, 96, 96)), voxel_um)
    assert said in refusal(capsys, *options)
    assert not (repository / "env" / "jsn" / "mine.json").exists()
