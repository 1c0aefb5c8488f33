"""The recipe for a volume that is blurred along z and sampled isotropically, on a real one (set ISOSCOPE_SAMPLES)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import correlate1d

from dataloader.axial_profile import estimated_profile, side_spectra
from volumes.open import open_volume

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = os.environ.get("ISOSCOPE_SAMPLES", "")
RECIPE = json.loads((ROOT / "env/jsn/mesospim_lateral.json").read_text())["train"]

pytestmark = pytest.mark.skipif(not SAMPLES, reason="set ISOSCOPE_SAMPLES to the folder of sample volumes")


@pytest.fixture(scope="module")
def source():
    return Path(SAMPLES) / "mesospim_nuclei_c5.tif"


def command(*words):
    subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_its_profile_is_the_one_that_check_estimates(source):
    spectra = side_spectra(open_volume(source)[:], 1)
    found = estimated_profile([spectra], "pick")
    assert found.taps == pytest.approx(RECIPE["axial_taps"], abs=0.01) and not list(found.doubts())


@pytest.mark.slow
def test_nuclei_become_as_long_as_wide_without_rings(source, tmp_path):
    folder = tmp_path / "data" / "mesospim" / "train" / "x3d0"
    folder.mkdir(parents=True)
    (folder / source.name).symlink_to(source)
    run, output = tmp_path / "logs" / "mesospim" / "slow", tmp_path / "o.ome.tif"
    command(
        "train.py", "--jsn", "mesospim_lateral", "--prj", "slow", "--data_root", tmp_path / "data", "--logs", tmp_path / "logs"
    )
    command("infer.py", "enhance", "--run", run, "--input", source, "--output", output)
    command("evaluate.py", "--reconstruction", output, "--input", source, "--output", tmp_path / "report")
    report = json.loads((tmp_path / "report" / "metrics.json").read_text())
    detail = report["volumes"]["reconstruction"]["detail"]
    assert detail["z"]["half_width"] == pytest.approx((detail["y"]["half_width"] + detail["x"]["half_width"]) / 2, rel=0.1)
    assert detail["profile_undone"] and not any("rings" in sentence for sentence in report["verdict"]["sentences"])
    taps = np.array(RECIPE["axial_taps"])
    blurred = correlate1d(open_volume(output)[:].astype(float), taps / taps.sum(), axis=0)
    assert np.corrcoef(blurred.ravel(), open_volume(source)[:].ravel())[0, 1] > 0.97
