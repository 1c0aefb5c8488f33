"""``prepare.py phantom``: where the data go, and that a second call finds them."""

import json

import pytest

import prepare
from volumes.open import open_volume

SMALL = ["--volumes", "1", "--validation", "1", "--shape", "16", "24", "32", "--factor", "4"]


def run(*arguments):
    prepare.main(["phantom", *SMALL, *map(str, arguments)])


def test_a_data_set_for_training_and_evaluation(tmp_path, caplog):
    caplog.set_level("INFO")
    run("--data_root", tmp_path / "data", "--channels", 2)
    folder = tmp_path / "data" / "phantom"
    for direction in ("x3d0", "x3d1"):
        for split, name in (("train", "phantom_000"), ("val", "phantom_001")):
            slices = open_volume(folder / split / direction / f"{name}.tif")
            truth = open_volume(folder / "truth" / direction / f"{name}.tif")
            assert slices.shape == (4, 24, 32) and slices.voxel_um == (1.0, 0.25, 0.25)
            assert truth.shape == (16, 24, 32) and truth.voxel_um == (0.25, 0.25, 0.25)
    assert f"phantom {folder}: 8 files written" in caplog.text


def test_a_second_call_writes_nothing(tmp_path, caplog):
    caplog.set_level("INFO")
    run("--data_root", tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tif")}
    run("--data_root", tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tif")} == before
    assert "complete already" in caplog.text


def test_paths_come_from_the_profile_then_the_environment_then_the_option(tmp_path, monkeypatch):
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "env").write_text(json.dumps({"local": {"LOGS": "logs", "DATASET": "data"}}))
    monkeypatch.setattr(prepare, "REPOSITORY", tmp_path)
    run()
    assert (tmp_path / "data" / "phantom" / "train" / "x3d0" / "phantom_000.tif").is_file()
    monkeypatch.setenv("DATASET", str(tmp_path / "by_variable"))
    run("--dataset", "a/b")
    assert (tmp_path / "by_variable" / "a" / "b" / "phantom.json").is_file()
    run("--data_root", tmp_path / "by_option")
    assert (tmp_path / "by_option" / "phantom" / "phantom.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "nowhere"], "no such machine profile"),
        (["--data_root", "missing/deep"], "missing/deep does not exist (machine profile local, path from command line"),
        (["--dataset", "../x"], "dataset=../x must be the name of a folder inside the run or data folder, without . or .."),
        (["--dataset", "./x"], "dataset=./x must be the name of a folder"),  # as train.py has it
        (["--factor", "5"], "16 planes are no multiple of factor=5; try 15"),
    ],
)
def test_mistakes_end_with_one_line(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    where = [] if {"--env", "--data_root"} & set(arguments) else ["--data_root", str(tmp_path)]
    with pytest.raises(SystemExit) as end:
        run(*where, *arguments)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not list(tmp_path.rglob("*.tif"))
