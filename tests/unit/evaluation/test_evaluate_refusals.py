"""evaluate.py: bad input is named with its remedy, and nothing is lost."""

import numpy as np
import pytest
from evaluate_files import SHAPE, refused, run, save, scene


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--truth", "truth.tif", "--input", "thin.tif"], "--factor 8 with --input-position pick"),
        (["--truth", "truth.tif", "--input", "thin.tif", "--input-position", "pick"], "needs --factor F"),
        (
            ["--truth", "truth.tif", "--input", "thin.tif", "--input-position", "pick", "--factor", "4"],
            "factor that fits is about 8",
        ),
        (["--truth", "truth.tif", "--input", "thin.tif", "--factor", "8"], "add --input-position"),
        (["--truth", "truth.tif", "--input", "thin.tif", "--thin", "8"], "drop one"),
        (["--truth", "truth.tif", "--thin", "30"], "lower --thin"),
        (["--truth", "truth.tif", "--thin", "0"], "at least 1"),
        (["--reconstruction", "recon.tif", "--thin", "8"], "name --truth T"),
        (["--reconstruction", "thin.tif", "--truth", "truth.tif", "--thin", "8"], "voxel size and translation only"),
        (["--reconstruction", "turned.tif", "--truth", "truth.tif", "--thin", "8"], "axes look permuted"),
        (["--reconstruction", "turned.tif", "--input", "thin.tif"], "rows and columns (Y, X) must agree"),
        (["--reconstruction", "recon.tif", "--input", "yzx.tif"], "the axes look permuted; store it as (Z, Y, X)"),
        (["--reconstruction", "recon.tif", "--input", "cut.tif"], "cut both to the same field of view"),
        (["--reconstruction", "constant.tif", "--truth", "truth.tif", "--thin", "8"], "reconstruction holds one value only (7)"),
        (["--reconstruction", "recon.tif", "--truth", "constant.tif", "--thin", "8"], "the truth holds one value only (7)"),
        (["--reconstruction", "nan.tif", "--truth", "truth.tif", "--thin", "8"], "NaN or infinite"),
        (["--reconstruction", "absent.tif"], "absent.tif"),
        (["--reconstruction", "empty"], "is an empty folder"),
        (["--reconstruction", "empty", "--channel", "1"], "is an empty folder"),
        (["--truth", "truth.tif", "--thin", "8", "--region", "0:50,:,:"], "must lie within 0:40"),
        (["--truth", "truth.tif", "--thin", "8", "--region", "0:20"], "must look like z0:z1,y0:y1,x0:x1"),
        (["--truth", "truth.tif", "--thin", "8", "--planes", "4"], "must look like start:stop"),
        (["--truth", "truth.tif", "--thin", "8", "--data-range", "big"], "must be auto, dtype, reference or a positive number"),
        (["--truth", "truth.tif", "--thin", "8", "--voxel", "1,2"], "--voxel"),
        (["--truth", "truth.tif", "--thin", "8", "--sample", "4"], "at least 16"),
        (["--thin", "8"], "nothing to evaluate"),
    ],
)
def test_mistakes_are_named_with_their_remedy(folder, tmp_path, capsys, options, expected):
    extra = {"turned.tif": scene((36, 40, 34)), "constant.tif": np.full(SHAPE, 7, np.uint8)}
    extra |= {"yzx.tif": scene()[4::8].transpose(1, 0, 2).copy(), "cut.tif": scene()[4::8, :30]}
    for name, array in extra.items():
        save(tmp_path / name, array)
    holes = scene().astype(np.float32)
    holes[3, 4, 5] = np.nan
    save(tmp_path / "nan.tif", holes)
    (tmp_path / "empty").mkdir()
    known = {path.name: path for place in (folder, tmp_path) for path in place.iterdir()}
    assert expected in refused(capsys, tmp_path, *(known.get(option, option) for option in options))


def test_earlier_evaluation_is_kept_without_overwrite(folder, tmp_path, capsys):
    arguments = ("--truth", folder / "truth.tif", "--thin", "8")
    run(tmp_path, *arguments)
    before = (tmp_path / "out" / "metrics.json").read_bytes()
    (tmp_path / "out" / "mine.txt").write_text("kept")
    with pytest.raises(SystemExit):
        run(tmp_path, *arguments)
    assert "--overwrite" in capsys.readouterr().err
    assert (tmp_path / "out" / "metrics.json").read_bytes() == before
    run(tmp_path, "--reconstruction", folder / "recon.tif", "--overwrite")
    assert not (tmp_path / "out" / "fsc.png").exists()  # of the earlier evaluation, which had a truth
    assert (tmp_path / "out" / "mine.txt").read_text() == "kept"


def test_failure_leaves_no_temporary_files(folder, tmp_path, capsys):
    save(tmp_path / "constant.tif", np.full(SHAPE, 7, np.uint8))
    refused(capsys, tmp_path, "--truth", tmp_path / "constant.tif", "--thin", "8")
    assert not (tmp_path / "out").exists()


def test_voxels_that_are_no_cubes_by_far_are_refused_against_a_truth(capsys, tmp_path):
    volume = save(tmp_path / "t.ome.tif", scene(), (40.0, 1.0, 1.0))
    message = refused(capsys, tmp_path, "--truth", volume, "--reconstruction", volume)
    assert "are as 40 x 1 x 1: (40, 34, 36) of them show no detail along all axes" in message
