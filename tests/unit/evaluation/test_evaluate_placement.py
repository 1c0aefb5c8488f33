"""evaluate.py lays volumes together by voxel size and position, or refuses."""

import numpy as np
import pytest
from evaluate_files import SHAPE, numbers, refused, save, scene

from tests.unit.volumes.target_volumes import write_volume


def test_translation_lays_a_shorter_volume_where_it_belongs(tmp_path):
    truth = scene()
    save(tmp_path / "t.ome.tif", truth, (0.2, 0.2, 0.2), (0, 0, 0))
    save(tmp_path / "r.ome.tif", truth[5:33, 3:30, 4:], (0.2, 0.2, 0.2), (1.0, 0.6, 0.8))
    document = numbers(tmp_path, "--reconstruction", tmp_path / "r.ome.tif", "--truth", tmp_path / "t.ome.tif", "--thin", "8")
    assert document["grid"]["region"] == [[5, 33], [3, 30], [4, 36]]
    assert document["volumes"]["reconstruction"]["rmse"] == 0
    assert document["verdict"]["headline"] == "Better than interpolation"


def test_translation_of_half_a_plane_is_interpolated_and_said(tmp_path):
    z = np.indices((30, 20, 20))[0].astype(np.float32)
    ramp = 100 + 50 * np.sin(z / 6)
    save(tmp_path / "t.ome.tif", ramp, (0.1, 0.1, 0.1), (0, 0, 0))
    save(tmp_path / "r.ome.tif", 100 + 50 * np.sin((z + 0.5) / 6), (0.1, 0.1, 0.1), (0.05, 0, 0))
    document = numbers(tmp_path, "--reconstruction", tmp_path / "r.ome.tif", "--truth", tmp_path / "t.ome.tif", "--thin", "4")
    assert document["alignment"]["reconstruction"]["first_plane"] == 0.5
    assert document["grid"]["region"][0] == [1, 30]
    assert document["volumes"]["reconstruction"]["rmse"] < 0.05
    assert any("cubic spline" in note for note in document["notes"])


def test_input_is_placed_by_its_translation(tmp_path):
    truth = scene()
    save(tmp_path / "t.ome.tif", truth, (0.1, 0.1, 0.1), (0, 0, 0))
    averaged = truth.reshape(5, 8, *SHAPE[1:]).mean(1).astype(np.float32)
    save(tmp_path / "i.ome.tif", averaged, (0.8, 0.1, 0.1), (0.35, 0, 0))
    document = numbers(tmp_path, "--truth", tmp_path / "t.ome.tif", "--input", tmp_path / "i.ome.tif")
    assert document["alignment"]["input"]["first_plane"] == 3.5
    simulated = numbers(tmp_path, "--truth", tmp_path / "t.ome.tif", "--average", "8")
    assert document["volumes"]["cubic"]["psnr_db"] == pytest.approx(simulated["volumes"]["cubic"]["psnr_db"], abs=1e-6)
    assert list(document["volumes"]["cubic"]["consistency"]) == ["average"]


@pytest.mark.parametrize(
    ("voxel", "position", "expected"),
    [
        ((0.2, 0.3, 0.2), (0, 0, 0), "voxel sizes along Y differ"),
        ((0.2, 0.2, 0.2), (0, 0.07, 0), "whole voxels"),
        ((0.2, 0.2, 0.2), (90, 0, 0), "do not overlap"),
        ((1.6, 0.2, 0.2), (0, 0, 0), "name it with --input"),
    ],
)
def test_metadata_that_cannot_be_laid_together(tmp_path, capsys, voxel, position, expected):
    save(tmp_path / "t.ome.tif", scene(), (0.2, 0.2, 0.2), (0, 0, 0))
    save(tmp_path / "r.ome.tif", scene(), voxel, position)
    arguments = ("--reconstruction", tmp_path / "r.ome.tif", "--truth", tmp_path / "t.ome.tif", "--thin", "8")
    assert expected in refused(capsys, tmp_path, *arguments)


def test_equal_shapes_with_unequal_voxels_are_refused(tmp_path, capsys):
    save(tmp_path / "t.ome.tif", scene(), (0.2, 0.2, 0.2))
    save(tmp_path / "r.ome.tif", scene(), (0.3, 0.2, 0.2))
    arguments = ("--reconstruction", tmp_path / "r.ome.tif", "--truth", tmp_path / "t.ome.tif", "--thin", "8")
    assert "same shape but voxel sizes" in refused(capsys, tmp_path, *arguments)


def test_sections_that_equal_planes_of_the_truth_say_where_they_lie(tmp_path):
    """As of a truth that was thinned by truth[::8] and states no position, restored by infer.py."""
    truth = scene()
    save(tmp_path / "t.tif", truth)
    record = {
        "run": "a/b@2",
        "weights": "0" * 64,
        "place": {"origin": [-0.5, 0.0, 0.0], "step": [0.125, 1.0, 1.0]},
        "slices": {"first": 0.0, "spacing": 1.0, "thinned": 1, "how": "pick", "first_kept": 0.0},
        "input": {"files": ["a.tif"], "shape": [5, *SHAPE[1:]], "dtype": "uint8"},
    }
    for first in (0, 4):
        save(tmp_path / f"{first}.tif", truth[first::8])
        restored = np.roll(truth, 4 - first, axis=0)
        write_volume(tmp_path / f"{first}.ome.zarr", restored, attributes=record)
        files = (
            "--truth",
            tmp_path / "t.tif",
            "--input",
            tmp_path / f"{first}.tif",
            "--reconstruction",
            tmp_path / f"{first}.ome.zarr",
        )
        document = numbers(tmp_path, *files)
        assert document["alignment"]["input"]["first_plane"] == first
        assert document["alignment"]["reconstruction"]["first_plane"] == first - 4
        assert document["volumes"]["reconstruction"]["rmse"] == 0
        assert any("equal planes 0 + k·8 of the truth, not 4 + k·8" in note for note in document["notes"]) == (first == 0)
