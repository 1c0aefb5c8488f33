"""``prepare.py volumes``: raw files to training folders, with a record of what was done."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import tifffile

import prepare
from dataloader import dataset_folders, preparation
from dataloader.data_multi import DataModule
from intensity.transform import IntensityTransform
from utils.errors import UserError
from volumes.open import open_volume
from writing.write import write_tiff

VOXEL = (2.0, 0.5, 0.25)


def grey(seed, shape=(10, 40, 24)):
    return np.random.default_rng(seed).integers(100, 4000, shape).astype(np.uint16)


@pytest.fixture
def raw(tmp_path):
    """Four volumes in each of two folders; b = 2·a."""
    for k in range(4):
        for folder, factor in (("a", 1), ("b", 2)):
            (tmp_path / "raw" / folder).mkdir(parents=True, exist_ok=True)
            write_tiff(tmp_path / "raw" / folder / f"scan {k}.tif", grey(k) * np.uint16(factor), voxel_um=VOXEL)
    return tmp_path / "raw"


def run(root, *arguments):
    prepare.main(["volumes", "--data_root", str(root), "--dataset", "X", *map(str, arguments)])
    return json.loads((root / "X" / "dataset.json").read_text())["directions"]


def files(root):
    return sorted(str(path.relative_to(root / "X")) for path in (root / "X").rglob("*.tif"))


def refused(capsys, root, *arguments):
    with pytest.raises(SystemExit) as end:
        run(root, *arguments)
    assert end.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ")
    assert not list(root.rglob(".prepare.partial"))
    return error


def test_whole_volumes_of_which_the_last_is_for_validation(raw, tmp_path):
    record = run(tmp_path, "--input", raw / "a")["x3d0"]
    assert files(tmp_path) == [*(f"train/x3d0/scan_{k}.tif" for k in range(3)), "val/x3d0/scan_3.tif"]
    volume = open_volume(tmp_path / "X" / "train" / "x3d0" / "scan_1.tif")
    assert (volume.dtype, volume.voxel_um, volume.shape) == (np.float32, VOXEL, (10, 40, 24))
    assert (volume[:].min(), volume[:].max()) == (-1, 1)
    source = record["sources"][1]
    assert source["path"] == str(raw / "a" / "scan 1.tif") and source["files"] == {"train": 1}
    np.testing.assert_allclose(IntensityTransform.from_json(source["transform"]).invert(volume[:]), grey(1), atol=1e-3)
    assert record["transform"] == {"normalisation": "11", "low": 100.0, "high": 3999.0}
    assert record["settings"]["val"] is None


def test_a_training_reads_what_was_prepared(raw, tmp_path):
    run(tmp_path, "--input", raw / "a", "--input", raw / "b", "--direction", "a_b", "--patch", 8, 20, 20)
    data = DataModule(tmp_path / "X", ["a", "b"], cropsize=16, cropz=8, nm="00", rotate=False)
    data.check()
    assert len(data.train_set) == 3 * 2 * 2 * 2 and len(data.val_set) == 8
    assert data.train_set.intensity_record()["dataset"]["directions"]["a"]["settings"]["patch"] == [8, 20, 20]
    a, b = data.train_set[0]["img"]
    np.testing.assert_allclose(a, b, atol=2e-3)  # cut at the same places, each by its own range


def test_one_volume_is_split_along_its_rows_without_common_voxels(raw, tmp_path):
    record = run(tmp_path, "--input", raw / "a" / "scan 0.tif", "--patch", 5, 8, 8, "--normalise", "00")["x3d0"]
    assert record["sources"][0]["parts"] == {"train": [[0, 10], [0, 31], [0, 24]], "val": [[0, 10], [32, 40], [0, 24]]}
    assert record["sources"][0]["files"] == {"train": 2 * 4 * 3, "val": 2 * 1 * 3}
    patch = open_volume(tmp_path / "X" / "train" / "x3d0" / "scan_0003002001.tif")
    np.testing.assert_array_equal(patch[:], grey(0)[5:10, 23:31, 16:24])  # the last row of patches is shifted to the end
    np.testing.assert_array_equal(open_volume(tmp_path / "X" / "val" / "x3d0" / "scan_0000001000.tif")[:], grey(0)[:5, 32:, 8:16])


def test_without_room_for_validation_it_says_so(raw, tmp_path, caplog):
    caplog.set_level("INFO")
    run(tmp_path, "--input", raw / "a" / "scan 0.tif")
    assert "no validation data" in caplog.text and files(tmp_path) == ["train/x3d0/scan_0.tif"]
    assert "train on them with --dataset X --direction x3d0 --nm 00" in caplog.text
    assert re.search(r"prepare(\.py)? check --jsn lateral --dataset X --direction x3d0 --write X\n", caplog.text)


def test_background_is_skipped_in_all_directions_and_counted(tmp_path, caplog):
    caplog.set_level("INFO")
    a = np.full((4, 8, 16), 10, np.uint8)
    a[:, :, 8:] = 90
    write_tiff(tmp_path / "a.tif", a)
    write_tiff(tmp_path / "b.tif", 255 - a)
    record = run(
        tmp_path,
        "--input",
        tmp_path / "a.tif",
        "--input",
        tmp_path / "b.tif",
        "--direction",
        "p_q",
        "--patch",
        4,
        8,
        4,
        "--min_mean",
        50,
        "--val",
        0,
        "--normalise",
        "00",
    )
    assert files(tmp_path) == [f"train/{d}/a000{j:03d}000.tif" for d in "pq" for j in (2, 3)]
    assert record["q"]["sources"][0]["skipped"] == {"train": 2} and "2 patches skipped" in caplog.text
    assert (open_volume(tmp_path / "X" / "train" / "q" / "a000002000.tif")[:] == 165).all()


def test_thresholds_then_percentiles(raw, tmp_path):
    record = run(tmp_path, "--input", raw / "a" / "scan 0.tif", "--threshold", 500, 9999, "--percentile", 1, 90)["x3d0"]
    expected = np.percentile(grey(0), 90, method="inverted_cdf")
    assert record["transform"] == {"normalisation": "11", "low": 500.0, "high": expected}


def test_shared_constants_make_volumes_comparable(raw, tmp_path):
    write_tiff(raw / "a" / "bright.tif", grey(9) * np.uint16(3))
    record = run(tmp_path, "--input", raw / "a", "--scale", "dataset", "--normalise", "01")["x3d0"]
    assert {json.dumps(source["transform"]) for source in record["sources"]} == {json.dumps(record["transform"])}
    dim = open_volume(tmp_path / "X" / "val" / "x3d0" / "scan_3.tif")[:]
    np.testing.assert_allclose(dim, (grey(3) - 100.0) / (record["transform"]["high"] - 100), atol=1e-6)


def test_pooled_log_scores_are_those_of_all_voxels_together(raw, tmp_path):
    write_tiff(raw / "a" / "bright.tif", grey(9, (20, 24, 24)) * np.uint16(3))
    transform = run(tmp_path, "--input", raw / "a", "--normalise", "zrescale")["x3d0"]["transform"]
    logarithms = np.log10(np.concatenate([*(grey(k).ravel() for k in range(4)), grey(9, (20, 24, 24)).ravel() * 3.0]) + 1)
    assert transform["mean"] == pytest.approx(logarithms.mean(), rel=1e-9)
    assert transform["std"] == pytest.approx(logarithms.std(), rel=1e-9)


def test_the_published_tiles(golden, tmp_path):
    data = golden("data")
    tifffile.imwrite(tmp_path / "v.tif", data["tif"])
    for name, options, tolerance in (
        ("tiles_c", ["--normalise", "zrescale"], 1e-6),
        ("tiles_a", ["--percentile", 0.1, 99.9], 1e-2),  # percentiles there are interpolated between ranks
    ):
        run(
            tmp_path,
            "--input",
            tmp_path / "v.tif",
            "--val",
            0,
            "--patch",
            4,
            8,
            8,
            "--incomplete",
            "drop",
            "--overwrite",
            *options,
        )
        expected = {key.split(".p")[1]: value for key, value in data.items() if key.startswith(name)}
        assert files(tmp_path) == [f"train/x3d0/v{place}.tif" for place in sorted(expected)]
        for place, values in expected.items():
            made = open_volume(tmp_path / "X" / "train" / "x3d0" / f"v{place}.tif")[:]
            np.testing.assert_allclose(made, values, atol=tolerance)


def test_channels_of_one_file(tmp_path):
    both = np.stack([grey(1), grey(2)], axis=1)
    tifffile.imwrite(tmp_path / "both.tif", both, imagej=True, metadata={"axes": "ZCYX"})
    run(tmp_path, "--input", tmp_path / "both.tif", "--channel", 0, 1, "--direction", "x3d0_x3d1", "--normalise", "00")
    for channel in (0, 1):
        made = open_volume(tmp_path / "X" / "train" / f"x3d{channel}" / "both.tif")
        np.testing.assert_array_equal(made[:], both[:, channel])


def test_links_cost_nothing_and_fall_back(raw, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    run(tmp_path, "--input", raw / "a", "--link", "--val", 0.5)
    place = tmp_path / "X" / "val" / "x3d0" / "scan_3.tif"
    assert place.is_symlink() and Path(os.readlink(place)) == raw / "a" / "scan 3.tif"
    assert "--nm 11" in caplog.text

    def impossible(*_):
        raise OSError("not here")

    monkeypatch.setattr(preparation.os, "symlink", impossible)
    run(tmp_path, "--input", raw / "a", "--link", "--overwrite")
    assert os.path.samefile(place, raw / "a" / "scan 3.tif") and not place.is_symlink()
    monkeypatch.setattr(preparation.os, "link", impossible)
    run(tmp_path, "--input", raw / "a", "--link", "--overwrite")
    assert place.read_bytes() == (raw / "a" / "scan 3.tif").read_bytes() and "copy, since symbolic links" in caplog.text
    assert len(list((raw / "a").iterdir())) == 4  # replacing links leaves the originals alone


def test_another_direction_joins_and_only_ours_is_replaced(raw, tmp_path, capsys):
    run(tmp_path, "--input", raw / "a")
    assert run(tmp_path, "--input", raw / "b", "--direction", "x3d1").keys() == {"x3d0", "x3d1"}
    assert "replace it with --overwrite" in refused(capsys, tmp_path, "--input", raw / "b")
    run(tmp_path, "--input", raw / "b" / "scan 1.tif", "--overwrite")
    assert [name for name in files(tmp_path) if "x3d0" in name] == ["train/x3d0/scan_1.tif"]
    (tmp_path / "X" / "train" / "mine").mkdir()
    error = refused(capsys, tmp_path, "--input", raw / "b", "--direction", "mine", "--overwrite")
    assert "prepare.py has not made it" in error


def test_an_interrupted_call_leaves_the_data_set_as_it_was(raw, tmp_path, monkeypatch):
    run(tmp_path, "--input", raw / "a")
    before = {path: path.read_bytes() for path in (tmp_path / "X").rglob("*") if path.is_file()}

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(preparation, "write_tiff", stop)
    with pytest.raises(SystemExit) as end:
        run(tmp_path, "--input", raw / "b", "--overwrite")
    assert end.value.code == 130
    assert {path: path.read_bytes() for path in (tmp_path / "X").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_a_call_that_is_killed_between_its_folders_is_run_again(raw, tmp_path, monkeypatch, overwrite):
    """No training begins with the new train/ beside the old val/, or beside none."""
    if overwrite:
        run(tmp_path, "--input", raw / "a")
    prepare.main(["volumes", "--data_root", str(tmp_path), "--dataset", "Y", "--input", str(raw / "b")])
    put, places = dataset_folders.put_folder, []

    def killed(made, place):
        if places:
            raise KeyboardInterrupt
        places.append(place)
        put(made, place)

    monkeypatch.setattr(dataset_folders, "put_folder", killed)
    with pytest.raises(SystemExit):
        run(tmp_path, "--input", raw / "b", *overwrite)
    monkeypatch.undo()
    with pytest.raises(UserError, match="stopped as it put its folders in place; run the same command again"):
        dataset_folders.paired_names(tmp_path / "X" / "train", ["x3d0"])
    run(tmp_path, "--input", raw / "b")
    whole, again = ({p.relative_to(d): p.read_bytes() for p in d.rglob("*.tif")} for d in (tmp_path / "Y", tmp_path / "X"))
    assert whole == again and "unfinished" not in (tmp_path / "X" / "dataset.json").read_text()


def test_same_names_from_several_folders_are_kept_apart(raw, tmp_path):
    run(tmp_path, "--input", raw / "a" / "scan 0.tif", raw / "b" / "scan 0.tif")
    assert files(tmp_path) == ["train/x3d0/scan_0.tif", "val/x3d0/scan_0_2.tif"]


def test_memory_does_not_grow_with_the_volume(tmp_path, monkeypatch):
    tifffile.imwrite(tmp_path / "big.tif", np.broadcast_to(np.arange(40, dtype=np.uint16)[:, None, None], (40, 64, 64)))
    monkeypatch.setattr("dataloader.cutting._BUDGET", 64 * 64 * 3)
    largest = []
    original = preparation.Window.pieces

    def watched(self, box):
        self.budget = 64 * 64 * 3
        for piece in original(self, box):
            largest.append(piece.size)
            yield piece

    monkeypatch.setattr(preparation.Window, "pieces", watched)
    run(tmp_path, "--input", tmp_path / "big.tif", "--val", 0, "--min_mean", 1)
    assert max(largest) <= 64 * 64 * 3 and len(largest) > 20
    made = open_volume(tmp_path / "X" / "train" / "x3d0" / "big.tif")[:]
    np.testing.assert_allclose(made[:, 5, 7], np.arange(40) / 39 * 2 - 1, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--input", "a", "--direction", "p_q"], "1 --input for 2 directions (p, q)"),
        (["--input", "a", "--direction", "p_p"], "must be different folder names"),
        (["--input", "a", "--channel", "0", "1", "2", "--direction", "p_q"], "names 3 channels for 2 directions"),
        (["--input", "a", "--input", "b/scan 0.tif", "--direction", "p_q"], "found 4 for p, 1 for q"),
        (["--input", "a/scan 0.tif", "--input", "odd.tif", "--direction", "p_q"], "must have the same grid"),
        (["--input", "a", "--patch", "16", "8", "8"], "smaller than a patch of (16, 8, 8)"),
        (["--input", "a/scan 0.tif", "--patch", "8", "32", "8", "--val", "0.1"], "is too small to be split"),
        (["--input", "a", "--patch", "5", "8", "8", "--min_mean", "1e5"], "all 120 patches have a mean grey value below"),
        (["--input", "a", "--val", "1"], "val=1 must be a fraction"),
        (["--input", "a", "--direction", "../x"], "direction=../x must be the name of a folder inside"),
        (["--input", "a", "--percentile", "5", "1"], "must be LOW < HIGH within 0 to 100"),
        (["--input", "a", "--threshold", "5", "1"], "LOW must be less than HIGH"),
        (["--input", "a", "--link", "--patch", "4", "8", "8", "--normalise", "11"], "leave out --patch, --normalise"),
        (["--input", "a/scan 0.tif", "--link", "--val", "0.1"], "a single linked file cannot be split"),
        (["--input", "nan.tif"], "nan.tif (planes 0 to 1): 1 NaN"),
        (["--input", "nan.tif", "--normalise", "00"], "nan.tif: 1 NaN"),
        (["--input", "flat.tif"], "flat.tif: one value only (5), nothing can be learned from it; leave it out"),
        (["--input", "a", "--threshold", "0", "50"], "one value only (50)"),
        (["--input", "empty"], "a folder without volumes or slices"),
        (["--input", "negative.tif", "--normalise", "zrescale"], "clip negative values with --threshold 0"),
        (["--input", "a", "--voxel", "1,2"], "must be three sizes in µm, z,y,x"),
        (["--input", "a", "--voxel", "4,0.5,0.25"], "states the voxel size (2.0, 0.5, 0.25)"),
        (["--input", "none*.tif"], "no file matches this pattern"),
        (["--input", "missing.tif"], "missing.tif"),
        (["--input", "a", "--patches", "3"], "--patches is not an option; did you mean --patch? see prepare.py volumes --help"),
    ],
)
def test_mistakes_are_named_with_their_remedy(raw, tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(raw)
    write_tiff("odd.tif", grey(1, (10, 40, 25)))
    bad = np.ones((2, 8, 8), np.float32)
    bad[0, 0, 0] = 2
    write_tiff("negative.tif", -bad)
    bad[1, 2, 3] = np.nan
    write_tiff("nan.tif", bad)
    write_tiff("flat.tif", np.full((2, 8, 8), 5, np.uint8))
    Path("empty").mkdir()
    assert message in refused(capsys, tmp_path, *arguments)
    assert not list((tmp_path / "X").rglob("*.tif"))


def test_a_volume_without_contrast_among_others_is_told(raw, tmp_path, caplog):
    write_tiff(raw / "a" / "flat.tif", np.full((10, 40, 24), 5, np.uint16), voxel_um=VOXEL)
    with caplog.at_level("INFO"):
        run(tmp_path, "--input", raw / "a")
    assert "flat.tif: one value only (5), nothing can be learned from it" in caplog.text
    assert "train/x3d0/flat.tif" in files(tmp_path)


@pytest.mark.skipif("ISOSCOPE_SAMPLES" not in os.environ, reason="ISOSCOPE_SAMPLES names no folder with real volumes")
def test_real_volumes(tmp_path):
    samples = Path(os.environ["ISOSCOPE_SAMPLES"])
    run(
        tmp_path,
        "--input",
        samples / "mesospim_nuclei_c5.tif",
        "--patch",
        32,
        32,
        64,
        "--percentile",
        0.1,
        99.9,
        "--min_mean",
        400,
        "--voxel",
        "5,5,5",
    )
    record = run(
        tmp_path,
        "--input",
        samples / "nuclei_cyto_rgb3d_ch0.tif",
        "--input",
        samples / "nuclei_cyto_rgb3d_ch1.tif",
        "--direction",
        "x3d1_x3d2",
        "--patch",
        0,
        32,
        32,
        "--step",
        0,
        16,
        16,
        "--normalise",
        "zrescale",
    )
    skipped = record["x3d0"]["sources"][0]["skipped"]
    assert skipped["train"] > 0 and record["x3d0"]["sources"][0]["files"]["train"] > 0
    mesospim = DataModule(tmp_path / "X", ["x3d0"], cropsize=32, cropz=32)
    mesospim.check()
    pairs = DataModule(tmp_path / "X", ["x3d1", "x3d2"], cropsize=32, cropz=32)
    pairs.check()
    assert len(pairs.train_set) == 2 * 4  # rows 0 and 7 (shifted), columns 0, 16, 32 and 43 (shifted)
    ch0 = open_volume(samples / "nuclei_cyto_rgb3d_ch0.tif")
    back = IntensityTransform.from_json(record["x3d1"]["transform"])
    patch = open_volume(tmp_path / "X" / "train" / "x3d1" / "nuclei_cyto_rgb3d_ch0001001000.tif")[:]
    clipped = np.abs(patch) == 1
    np.testing.assert_allclose(back.invert(patch)[~clipped], ch0[:, 7:39, 16:48][~clipped], rtol=1e-5)
