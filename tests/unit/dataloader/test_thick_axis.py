"""Which axis is the thick one: told by voxel sizes or spectra, made z by prepare.py, and found so by the check."""

import json
import os
from contextlib import suppress
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter, gaussian_filter1d

import prepare
from dataloader.thick_axis import spectra_along, thick_axis
from utils.axes import SEEN_ALONG, as_planes
from volumes.open import open_volume
from writing.write import write_tiff

VOXEL = (2.0, 0.25, 0.25)
SAMPLES = os.environ.get("ISOSCOPE_SAMPLES")


@cache
def cells(shape=(96, 96, 96), seed=0):
    """Structure of every size that is alike along all axes, and a little noise."""
    draw = np.random.default_rng(seed)
    values = sum(gaussian_filter(draw.standard_normal(shape), sigma) * sigma**1.5 for sigma in (0.7, 1.5, 3))
    return (values / values.std() * 500 + 3000 + draw.normal(0, 5, shape)).astype(np.float32)


DEGRADED = {
    "as sharp": lambda v: v,
    "blurred": lambda v: gaussian_filter1d(v, 1.5, 0),
    "thinned": lambda v: v[4::8],
    "averaged": lambda v: v.reshape(-1, 8, *v.shape[1:]).mean(1),
}


@pytest.mark.parametrize("how", DEGRADED)
@pytest.mark.parametrize("axis", SEEN_ALONG)
def test_spectra_tell(how, axis):
    turned = as_planes(DEGRADED[how](cells()), SEEN_ALONG[axis])
    found = thick_axis([None], [spectra_along(turned, None)])
    assert (found and found[0]) == (None if how == "as sharp" or axis == "z" else axis)


@pytest.mark.skipif(SAMPLES is None, reason="ISOSCOPE_SAMPLES names no folder with real volumes")
@pytest.mark.parametrize("name", ["fibsem_fib25_dev", "mesospim_nuclei_c5", "nuclei_cyto_rgb3d_ch0", "nuclei_cyto_rgb3d_ch1"])
def test_spectra_of_real_volumes_tell(name):
    values = open_volume(Path(SAMPLES) / f"{name}.tif")[:]
    part = values[:, :160, :160]
    cases = [(part[4::8], True), (part[2::4], True), (part[:, :128, :128], False)] if "fib25" in name else [(values, True)]
    for part, coarse in cases:
        for axis, order in SEEN_ALONG.items():
            found = thick_axis([None], [spectra_along(as_planes(part, order), None)])
            assert (found and found[0]) == (axis if coarse and axis != "z" else None), (part.shape, axis)


def test_voxel_sizes_tell_before_spectra():
    blurred = spectra_along(as_planes(gaussian_filter1d(cells(), 1.5, 0), "yzx"), None)
    axis, reason = thick_axis([(0.25, 0.25, 2.0), None], [blurred])
    assert axis == "x" and reason == "voxels are 0.25 × 0.25 × 2 µm (z, y, x)"
    assert thick_axis([VOXEL], [blurred]) is None
    assert thick_axis([(0.25, 0.25, 0.3)], [blurred])[0] == "y"
    assert thick_axis([(2.0, 0.25, 2.0)], [{}]) is None  # two are
    assert spectra_along(cells(), VOXEL) == {} and spectra_along(cells()[:4], None).keys() <= {"y", "x"}


@pytest.fixture
def checked(tmp_path, monkeypatch, caplog):
    """Prepares a volume, checks it, and returns what is said and recorded."""
    (tmp_path / "env" / "jsn").mkdir(parents=True)
    (tmp_path / "env" / "env").write_text(json.dumps({"local": {"LOGS": "logs", "DATASET": "data"}}))
    options = {"models": "lateral", "dataset": "X", "cropsize": 32, "cropz": 4, "uprate": 8, "nm": "11", "crops_per_volume": 4}
    (tmp_path / "env" / "jsn" / "x.json").write_text(json.dumps({"train": options}))
    monkeypatch.setattr(prepare, "REPOSITORY", tmp_path)
    caplog.set_level("INFO")

    def both(*words):
        caplog.clear()
        prepare.main(["volumes", "--dataset", "X", "--val", "0", "--overwrite", "--normalise", "00", *map(str, words)])
        with suppress(SystemExit):  # a volume that is thin in-plane would stop a training as well
            prepare.main(["check", "--jsn", "x"])
        return caplog.text, json.loads((tmp_path / "logs" / "X" / "check" / "check.json").read_text())

    return both


@pytest.mark.parametrize(("axis", "order"), [("x", "xyz"), ("y", "yzx")])
@pytest.mark.parametrize("sized", [True, False])
def test_the_check_finds_it_and_prepare_turns_it(axis, order, sized, checked, tmp_path):
    values = cells()[4::8].astype(np.uint16)
    turned = np.ascontiguousarray(as_planes(values, order))
    sizes = [VOXEL["zyx".index(name)] for name in order] if sized else None
    write_tiff(tmp_path / "raw.tif", turned, voxel_um=sizes)
    said, content = checked("--input", tmp_path / "raw.tif")
    assert f"! the thick axis is {axis}, not z" in said and f"--thick {axis}" in said and content["thick_axis"] == axis
    assert "recommended:" not in said and content["recommended"] == {}
    words = [] if sized else ["--voxel", ",".join(str(VOXEL["zyx".index(name)]) for name in order)]
    said, content = checked("--input", tmp_path / "raw.tif", "--thick", axis, *words)
    assert "thick axis" not in said and content["thick_axis"] == "z" and content["problems"] == []
    made = open_volume(tmp_path / "data" / "X" / "train" / "x3d0" / "raw.tif")
    np.testing.assert_array_equal(made[:], values)
    assert made.voxel_um == pytest.approx(VOXEL)
    record = json.loads((tmp_path / "data" / "X" / "dataset.json").read_text())
    assert record["directions"]["x3d0"]["settings"]["thick"] == axis


def test_a_link_cannot_turn(checked, tmp_path, capsys):
    write_tiff(tmp_path / "raw.tif", cells()[:8])
    with pytest.raises(SystemExit):
        checked("--input", tmp_path / "raw.tif", "--link", "--thick", "x")
    assert "leave out --thick, or --link" in capsys.readouterr().err
