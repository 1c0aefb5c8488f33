"""What infer.py says of its own results: consistency, uncertainty, seams."""

import json
import logging

import numpy as np
import pytest
from infer_commands import command, read, refused
from infer_runs import grey

from volumes.open import open_volume
from writing.write import write_tiff


def test_trust(run, volume, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    out = tmp_path / "o.ome.zarr"
    base = ["enhance", "--run", run, "--input", volume, "--output", out]
    command(*base, "--consistency", "--uncertainty", "3", "--preview")
    planes = read(out).astype(np.float32).reshape(3, 8, 37, 43)
    difference = planes.max(axis=1) - grey((3, 37, 43))
    np.testing.assert_allclose(read(tmp_path / "o_consistency.ome.zarr"), difference, atol=0.05)
    errors = json.loads((tmp_path / "o_consistency.json").read_text())["channels"][0]
    assert errors["slices"][1]["rmse"] == pytest.approx(float(np.sqrt((difference[1] ** 2).mean())), rel=1e-3)
    spread = read(tmp_path / "o_uncertainty.ome.zarr")
    assert spread.dtype == np.float32 and spread.shape == (24, 37, 43) and spread.mean() > 1  # dropout
    assert (tmp_path / "o_preview.png").stat().st_size > 1000
    assert open_volume(tmp_path / "o_consistency.ome.zarr").translation_um == pytest.approx((0, 0, 0))  # the input's grid
    refused("exists; choose another name", *base, "--consistency", "--uncertainty", "3")
    (tmp_path / "o_uncertainty.ome.zarr").rename(tmp_path / "kept.ome.zarr")
    command(*base, "--consistency", "--uncertainty", "3")  # as after an interruption
    assert "o_consistency.ome.zarr is finished" in caplog.text
    np.testing.assert_array_equal(read(tmp_path / "o_uncertainty.ome.zarr"), read(tmp_path / "kept.ome.zarr"))


def test_seams_are_measured_recorded_and_few(run, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    write_tiff(tmp_path / "in.tif", grey((2, 90, 130)))
    out = tmp_path / "o.ome.zarr"
    command("enhance", "--run", run, "--input", tmp_path / "in.tif", "--output", out, "--tile", "32")
    attributes = open_volume(out).attributes
    assert attributes["lattice"]["encoding"]["core"] == [3, 3] and attributes["lattice"]["decoding"]["core"] == [4, 4, 4]
    plane_pairs = read(out).astype(np.float32)
    borders = {"encoding": 24, "decoding": 32}
    for name, core in borders.items():
        change = [np.abs(np.diff(plane_pairs, axis=axis)).mean(axis=(0, 3 - axis)) for axis in (1, 2)]
        at = np.concatenate([c[core - 1 :: core] for c in change])
        elsewhere = np.concatenate([np.delete(c[7::8], np.s_[core // 8 - 1 :: core // 8]) for c in change])
        assert attributes["seams"][name] == pytest.approx(at.mean() / elsewhere.mean(), rel=0.15)  # some planes there, all here
    assert attributes["seams"]["decoding"] < 1.2 and attributes["seams"]["encoding"] < 1.5
    command("info", out)
    assert f"change {attributes['seams']['encoding']:.3g} times as much" in caplog.text
