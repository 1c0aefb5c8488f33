"""Every model and mode learns from real volumes through the command line: 200 steps at small width (slow: minutes each).

FIB-SEM thinned along z; for two channels and for translation, nuclei and cytoplasm of one specimen.
"""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = os.environ.get("ISOSCOPE_SAMPLES")
FIBSEM = {"x3d0": "fibsem_fib25_quickstart.tif"}
CELLS = {"x3d0": "nuclei_cyto_rgb3d_ch0.tif", "x3d1": "nuclei_cyto_rgb3d_ch1.tif"}
SIDE = 10  # steps averaged at either end of the 200

EXPERIMENT = """
train:
  nm: "11"
  cropsize: 32
  cropz: 32
  dsp: 8
  crops_per_volume: 20
  workers: 0
  preload: true
  perceptual_weight: 0
  ldmyaml: {root}/narrow.yaml
  ngf: 8
  ndf: 16
  mc: false
  adv_planes: 16
  l1how: dsp
  skipl1: 1
  lr: 0.0005
  n_epochs: 10
  epoch_save: 10
  log_steps: 1
"""
NARROW = "extends: {}\nddconfig: {{ch: {}}}\nloss: {{disc_ndf: 16}}\n"
ISOREF = "--models IsoREF --dsp 2 --ngf 8"  # its cycle shows planes of 32 x 16 to a discriminator
SSIM = "--models ae0iso0tccutvqqssim --cropsize 104 --cropz 104 --ldmyaml {root}/thin.yaml --ngf 4"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SAMPLES, reason="ISOSCOPE_SAMPLES, the folder of real volumes, is unset"),
]

# Name: volumes, options, the terms that must fall.
CASES = {
    "vq": (FIBSEM, "", "projection recon"),
    "vq_cut": (FIBSEM, "--no-nocut --lbNCE 1", "projection recon nce"),
    "vq_cut_mlp": (FIBSEM, "--no-nocut --lbNCE 1 --use_mlp --c_mlp 32", "projection recon nce"),
    "vq_4x": (FIBSEM, "--dsp 4 --downbranch 2", "projection recon"),
    "vq_ssim": (FIBSEM, SSIM, "projection recon ms_ssim"),
    "kl_mid": (FIBSEM, "--models ae0iso0tccut --ldmyaml {root}/narrow_kl.yaml", "projection recon"),
    "kl_z": (FIBSEM, "--models ae0iso0tccut --ldmyaml {root}/narrow_kl.yaml --hbranch z", "projection recon"),
    "isoref": (FIBSEM, f"{ISOREF} --no-nocut", "projection cycle nce"),
    "isoref_nocyc": (FIBSEM, f"{ISOREF} --nocyc", "projection"),
    "two_channels": (CELLS, "--direction x3d0_x3d1 --tc --input_nc 2 --output_nc 2", "projection recon"),
    "translation": (CELLS, "--direction x3d0_x3d1", "projection recon"),
}


def train(root, volumes, options):
    """Runs train.py on the volumes; returns the run's folder."""
    for direction, name in volumes.items():
        folder = root / "data" / "real" / "train" / direction
        folder.mkdir(parents=True)
        shutil.copy(Path(SAMPLES) / name, folder / "volume.tif")
    (root / "real.yaml").write_text(EXPERIMENT.format(root=root))
    for name, (parent, ch) in {"narrow": ("vqgan", 16), "narrow_kl": ("ldmaex2", 16), "thin": ("vqgan", 8)}.items():
        (root / f"{name}.yaml").write_text(NARROW.format(parent, ch))
    places = ["--dataset", "real", "--data_root", root / "data", "--logs", root / "logs"]
    command = [sys.executable, "train.py", "--jsn", root / "real.yaml", "--prj", "slow", *places]
    subprocess.run([*map(str, command), *options.format(root=root).split()], cwd=ROOT, check=True)
    return root / "logs" / "real" / "slow"


@pytest.mark.parametrize("case", CASES)
def test_two_hundred_steps_lower_the_losses(case, tmp_path):
    volumes, options, falling = CASES[case]
    run = train(tmp_path, volumes, options)
    events = EventAccumulator(str(run / "logs"), size_guidance={"scalars": 0}).Reload()
    terms = [name for name in events.Tags()["scalars"] if name.startswith("loss/")]
    curves = {term: np.array([event.value for event in events.Scalars(term)]) for term in terms}
    for term, values in curves.items():
        logging.info("%s %s: %.4g -> %.4g", case, term, values[:SIDE].mean(), values[-SIDE:].mean())
    assert all(np.isfinite(values).all() for values in curves.values())
    for term in falling.split():
        values = curves[f"loss/generator/{term}"]
        assert len(values) == 200, term
        assert values[-SIDE:].mean() < 0.95 * values[:SIDE].mean(), term
