"""TIFF hyperstacks, and what all formats share: optional packages, levels."""

import re
import subprocess
import sys
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import tifffile
import zarr
from format_volumes import VALUES, nifti
from target_volumes import write_volume

import utils.packages
from utils.errors import UserError
from volumes.open import open_volume

ROOT = Path(__file__).resolve().parents[3]


INSTALL = r"\.venv/bin/pip install -e '\.\[(formats|…)\]'"  # as the pages have it


def test_no_advice_names_a_package_that_a_stranger_could_publish():
    files = [*ROOT.glob("*.py"), *ROOT.glob("*.md"), *ROOT.glob("[a-z]*/**/*.py")]
    advice = [path for path in files if ROOT / "tests" not in path.parents and "isoscopexx[" in path.read_text().lower()]
    assert not advice
    assert re.search(INSTALL, (ROOT / "docs/install.md").read_text())


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    nifti(tmp_path / "v.nii")
    mrcfile.new(tmp_path / "v.mrc", VALUES).close()

    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr(utils.packages.importlib, "import_module", absent)
    for name in ("v.nii", "v.mrc"):
        with pytest.raises(UserError, match=INSTALL):
            open_volume(tmp_path / name)
    with pytest.raises(UserError, match=INSTALL):
        write_volume(tmp_path / "w.nii.gz", VALUES)


def test_nothing_optional_or_slow_is_imported_for_a_tiff():
    code = (
        "import sys, sharing.info, volumes.open, writing.write\n"
        "assert not {'torch', 'zarr', 'numcodecs', 'tensorstore', 'nibabel', 'mrcfile'} & set(sys.modules), sorted(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("axes", ["TZCYX", "TZYX"])
@pytest.mark.parametrize("kind", ["imagej", "ome"])
def test_hyperstacks(kind, axes, tmp_path):
    values = np.random.default_rng(2).integers(0, 255, (3, 5, 2, 6, 9)).astype(np.uint8)
    values = values if "C" in axes else values[:, :, 0]
    tifffile.imwrite(tmp_path / "v.tif", values, metadata={"axes": axes}, **{kind: True})
    for time in range(3):
        volume = open_volume(tmp_path / "v.tif", time=time, channel=1 if "C" in axes else None)
        np.testing.assert_array_equal(volume[:], values[time, :, 1] if "C" in axes else values[time])
        assert (volume.times, volume.channels) == (3, 2 if "C" in axes else 1)
    with pytest.raises(UserError, match=r"time point 3 of 3"):
        open_volume(tmp_path / "v.tif", time=3, channel=0)
    with pytest.raises(UserError, match=r"3 time points .* choose one time point"):
        open_volume(tmp_path / "v.tif", channel=0)


def test_positions_are_those_of_the_plane_chosen_and_need_a_unit(tmp_path):
    def written(**plane):
        metadata = {"axes": "CZYX", "Plane": dict(plane)}
        tifffile.imwrite(tmp_path / "v.ome.tif", np.stack([VALUES[:2]] * 2), ome=True, metadata=metadata)
        return [open_volume(tmp_path / "v.ome.tif", channel=c).translation_um for c in (0, 1)]

    position = {"PositionX": [1000.0] * 4, "PositionY": [2.0] * 4, "PositionZ": [3.0, 4.0, 5.0, 6.0]}
    units = {"PositionXUnit": ["nm"] * 4, "PositionYUnit": ["µm"] * 4, "PositionZUnit": ["mm"] * 4}
    assert written(**position, **units) == [pytest.approx((3000, 2, 1)), pytest.approx((5000, 2, 1))]
    assert written(**position) == [None, None]  # OME's default is the frame of the microscope
    assert written(**units) == [None, None]


def test_levels_exist_in_ome_zarr_only(tmp_path):
    tifffile.imwrite(tmp_path / "v.tif", VALUES)
    with pytest.raises(UserError, match="level 1 of 1"):
        open_volume(tmp_path / "v.tif", level=1)
    zarr.create_array(str(tmp_path / "v.zarr"), data=VALUES)
    with pytest.raises(UserError, match="level 1 of 1"):
        open_volume(tmp_path / "v.zarr", level=1)


def written(path, values):
    if path.suffix == ".mrc":
        mrcfile.new(path, values).close()
    elif path.name == "tiles.tif":
        tifffile.imwrite(path, values, compression="zlib", tile=(64, 64))
    elif path.suffix == ".zarr":
        zarr.create_array(str(path), data=values, chunks=(16, 64, 64))
    elif path.suffix == "":
        path.mkdir()
        for z, plane in enumerate(values):
            tifffile.imwrite(path / f"{z}.tif", plane)
    else:
        write_volume(path, values)
    return path


@pytest.mark.parametrize("name", ["v.tif", "tiles.tif", "v.nii", "v.nii.gz", "v.mrc", "v.zarr", "v"])
def test_opening_reads_no_more_than_headers(name, tmp_path):
    counters = Path("/proc/self/io")
    if not counters.is_file():
        pytest.skip("needs /proc")
    values = np.random.default_rng(0).integers(0, 2**16, (64, 256, 256)).astype(np.uint16)  # 8 MiB
    path = written(tmp_path / name, values)
    open_volume(path)  # what has to be imported
    before = int(counters.read_text().split()[1])
    volume = open_volume(path)
    assert int(counters.read_text().split()[1]) - before < 2**20, "bytes read"
    np.testing.assert_array_equal(volume[3:5], values[3:5])
