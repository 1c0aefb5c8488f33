"""Several restorations of one volume: each has its report, together they are a curve of fidelity against power."""

import json

import numpy as np
import pytest
from evaluate_files import refused, save, scene
from scipy.ndimage import gaussian_filter1d

import evaluate
from evaluation import metrics
from evaluation.report import unsupported


@pytest.fixture
def volumes(tmp_path):
    """The truth, and two restorations of it: one blurred along z, one with as much noise as the blur has taken."""
    truth = scene((48, 40, 40))
    blurred = gaussian_filter1d(truth.astype(np.float32), 2.0, axis=0)
    noisy = blurred + np.random.default_rng(1).normal(0, 12, truth.shape)
    save(tmp_path / "truth.tif", truth)
    for name, values in {"smooth": blurred, "textured": noisy}.items():
        save(tmp_path / f"{name}.tif", np.clip(values, 0, 255).astype(np.uint8))
    return tmp_path


def compared(folder, *options):
    files = [str(folder / f"{name}.tif") for name in ("smooth", "textured")]
    evaluate.main(["--reconstruction", *files, "--output", str(folder / "out"), *options])
    return json.loads((folder / "out" / "tradeoff.json").read_text())


def test_the_curve_has_each_restoration_and_each_interpolation(volumes):
    document = compared(volumes, "--truth", str(volumes / "truth.tif"), "--thin", "4")
    points = {point["name"]: point for point in document["points"]}
    assert [*points][:2] == ["smooth", "textured"] and {"nearest", "linear", "cubic"} <= points.keys()
    assert points["textured"]["power"]["1/8-1/4"] > 2 * points["smooth"]["power"]["1/8-1/4"]
    assert points["textured"]["fidelity"] < points["smooth"]["fidelity"]
    own = json.loads((volumes / "out" / "smooth" / "metrics.json").read_text())["volumes"]["reconstruction"]
    assert points["smooth"]["fidelity"] == own["psnr_db"]
    assert points["smooth"]["power"]["1/16-1/8"] == own["power_over_truth"]["z"]["1/16-1/8"]
    assert (volumes / "out" / "tradeoff.png").stat().st_size > 10_000


def test_interpolations_are_measured_once_and_equal_those_of_a_single_evaluation(volumes, monkeypatch):
    measured, options = [], ("--truth", str(volumes / "truth.tif"), "--thin", "4")
    ssim = metrics.ssim
    monkeypatch.setattr(metrics, "ssim", lambda *given: measured.append(1) or ssim(*given))
    compared(volumes, *options)
    assert len(measured) == 2 + 3  # two restorations, three interpolations
    evaluate.main(["--reconstruction", str(volumes / "textured.tif"), "--output", str(volumes / "alone"), *options])
    together, alone = (json.loads((volumes / at / "metrics.json").read_text()) for at in ("out/textured", "alone"))
    assert together == alone


def test_without_a_truth_it_is_consistency_against_the_power_in_plane(volumes):
    save(volumes / "input.tif", scene((48, 40, 40))[2::4])
    places = "--input-position", "pick", "--factor", "4"
    document = compared(volumes, "--input", str(volumes / "input.tif"), *places)
    own = json.loads((volumes / "out" / "textured" / "metrics.json").read_text())
    assert any("does not support" in sentence for sentence in own["verdict"]["sentences"])
    assert "input" in document["fidelity"] and "in-plane" in document["power"]
    assert all(point["fidelity"] > 10 for point in document["points"] if point["name"] in ("smooth", "textured"))


def test_two_of_one_name_and_nothing_to_compare_with_are_refused(volumes, capsys, tmp_path):
    file = volumes / "smooth.tif"
    assert "rename one" in refused(capsys, tmp_path, "--reconstruction", file, file, "--truth", volumes / "truth.tif")
    assert "--truth T" in refused(capsys, tmp_path, "--reconstruction", file, volumes / "textured.tif")


def test_power_that_consistency_does_not_support_is_named():
    own = {"axial_power_db": {"1/32-1/16": 0.0, "1/16-1/8": -2.0, "1/8-1/4": -3.0, "1/4-1/2": -12.0}}
    (sentence,) = unsupported(own, 8)
    assert "8 to 16 voxels (63%), 4 to 8 voxels (50%)" in sentence and "2 to 4" not in sentence and "16 to 32" not in sentence
    assert unsupported(own, None) == [] == unsupported(own, 1.0)
