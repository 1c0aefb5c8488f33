"""Every line of README does what it says: run one after the other in a checkout of their own, with shortened trainings."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dataloader.phantom.phantom import ForwardModel, PhantomScene, observe
from writing.write import write_tiff

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
NOT_HERE = {"./run.sh test"}  # which runs this
SHORT = {"n_epochs": 1, "epoch_save": 1, "picture_epochs": 1, "crops_per_volume": 8}


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """The files that git knows, an environment that is this one, and a volume named as README names it."""
    folder = tmp_path_factory.mktemp("checkout")
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout.decode().split("\0")
    for name in filter(None, files):
        if not name.startswith("tests/"):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (folder / ".venv" / "bin").mkdir(parents=True)
    python = folder / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    python.chmod(0o755)
    wanted = (ROOT / "pyproject.toml").read_text() + "# constraints\n" + (ROOT / "constraints.txt").read_text()
    (folder / ".venv" / "installed").write_text(wanted)
    for path in (folder / "env" / "jsn").glob("*.json"):
        if path.stem.startswith(("quickstart", "codes", "texture")):
            shorten(path)
    scene, model = PhantomScene(3, (128, 144, 144)), ForwardModel(psf_sigma=(0.5, 0.5, 0.5), sampling="pick")
    (folder / "raw").mkdir()
    write_tiff(folder / "raw" / "scan.tif", np.stack(list(observe(scene, model))), voxel_um=(0.8, 0.1, 0.1))
    return folder


def shorten(path):
    experiment = json.loads(path.read_text())
    path.write_text(json.dumps({"train": {**experiment["train"], **SHORT}}))


@pytest.mark.slow
def test_every_line_of_readme(checkout):
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.strip()]
    assert len(lines) >= 12
    for line in lines:
        if line.split("  ")[0].strip() in NOT_HERE:
            continue
        done = subprocess.run(["bash", "-c", line], cwd=checkout, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        if "--write mytissue" in line:
            shorten(checkout / "env" / "jsn" / "mytissue.json")
    for made in ("logs/phantom/quickstart/report/report.html", "isotropic.ome.tif", "isotropic2_preview.png", "part.ome.tif"):
        assert (checkout / made).is_file(), made
    assert json.loads((checkout / "report" / "metrics.json").read_text())["verdict"]["headline"]
    for block in blocks("python"):
        opened = "from volumes.open import open_volume\nvolume = open_volume('raw/scan.tif')[:]\n"
        code = f"{opened}{block}\nassert isotropic.shape[0] == 8 * volume.shape[0]"
        done = subprocess.run([sys.executable, "-c", code], cwd=checkout, env=environment(), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-4000:]


def environment():
    return {**os.environ, "PYTHONPATH": ".", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
