"""benchmarks/quality.py: the operator of its sections, the opponents' data consistency, and a whole run that is gone on with."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.specimens import Degradation, fib25, rounded
from dataloader.phantom.phantom import PhantomScene, to_uint16
from evaluation.sections import interpolation_matrix
from writing.write import write_tiff

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def truth():
    return to_uint16(np.stack(list(PhantomScene(3, (64, 48, 48)).planes(0, 64))))


@pytest.mark.parametrize("factor", [4, 8])
def test_sections_are_planes_or_their_means(truth, factor):
    picked, mean = (Degradation(factor, how).sections(truth) for how in ("pick", "mean"))
    assert np.array_equal(picked, truth[factor // 2 :: factor])
    assert np.array_equal(mean, np.rint(truth.reshape(-1, factor, 48, 48).mean(1)).astype(np.uint16))
    blurred = Degradation(factor, "mean", 2.5).matrix(64)
    assert np.allclose(blurred.sum(1), 1)
    assert np.allclose(blurred[3, 3 * factor : 4 * factor], blurred[3, 3 * factor : 4 * factor][::-1])


def test_consistency_is_an_opponent_that_improves_on_cubic(truth):
    how = Degradation(8, "mean")
    sections = how.sections(truth)
    made, iterations = how.consistent(sections, truth)
    spline = interpolation_matrix("cubic", 8.0 * np.arange(8) + 3.5, np.arange(64.0))
    cubic = rounded(np.tensordot(spline, sections, 1), truth.dtype)
    assert iterations > 1
    error = [np.square(volume.astype(float) - truth).mean() for volume in (made, cubic)]
    assert error[0] < 0.99 * error[1]
    off = [np.abs(how.sections(volume).astype(float) - sections).mean() for volume in (made, cubic)]
    assert off[0] < 0.5 * off[1]


def test_training_and_judged_part_share_no_voxel(tmp_path):
    whole = np.arange(8 * 4 * 520, dtype=np.uint16).reshape(8, 4, 520)
    write_tiff(tmp_path / "fibsem_fib25_train.tif", whole)
    specimen = fib25(tmp_path, "fib25-aside", Degradation(8, "pick"))
    assert not np.intersect1d(specimen.train[0], specimen.truth).size


def test_one_run_trains_judges_and_goes_on(truth, tmp_path):
    write_tiff(tmp_path / "cube.tif", truth)
    words = ["--volume", tmp_path / "cube.tif", "--train", tmp_path / "cube.tif", "--how", "mean4", "--model", "tiny"]
    recipe = {"models": "lateral", "dataset": "x", "nm": "11", "cropsize": 32, "ngf": 8, "blocks": 1, "workers": 0, "lr": 0.002}
    (tmp_path / "lateral_tiny.json").write_text(json.dumps({"train": recipe}))
    words += [
        "--row",
        f"tiny={tmp_path / 'lateral_tiny.json'} @20",
        "--work",
        tmp_path / "work",
        "--output",
        tmp_path,
        "--minutes",
        5,
    ]

    def call():
        done = [sys.executable, ROOT / "benchmarks" / "quality.py", *words]
        subprocess.run([str(word) for word in done], check=True, capture_output=True, text=True, cwd=tmp_path)
        return json.loads((tmp_path / "quality.json").read_text())["cells"]

    cells = call()
    assert {f"cube mean4 {way} tiny small" for way in ("others", "itself")} < set(cells)
    assert cells["cube mean4 others tiny small"]["steps"] == 20
    assert cells["cube mean4 - cubic -"]["psnr_db"] < cells["cube mean4 - cubic + consistency -"]["psnr_db"]
    assert "| tiny | itself | small | 20 |" in (tmp_path / "quality.md").read_text()
    assert (tmp_path / "quality_cube_mean4_small.jpg").stat().st_size > 10_000
    made = [path.stat().st_mtime_ns for path in sorted((tmp_path / "work").rglob("*.tif"))]
    assert call() == cells
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "work").rglob("*.tif"))] == made
