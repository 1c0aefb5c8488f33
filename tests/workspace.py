"""A tiny experiment that trains in a second: two small volumes, narrow networks."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tifffile

import train
from utils.runs import RunFolder

TINY_AUTOENCODER = """
extends: vqgan
n_embed: 16
ddconfig: {ch: 8}
loss: {disc_ndf: 4}
"""
TINY = {
    "dataset": "tiny",
    "nm": "11",
    "cropsize": 32,
    "cropz": 4,
    "crops_per_volume": 3,
    "workers": 0,
    "ngf": 4,
    "ndf": 4,
    "skipl1": 2,
    "perceptual_weight": 0,
    "n_epochs": 2,
    "epoch_save": 2,
    "picture_epochs": 2,
}


@dataclass
class Workspace:
    root: Path

    @property
    def data(self):
        return self.root / "data" / "tiny"

    def settings(self, **changes):
        (self.root / "tiny.json").write_text(json.dumps({"train": {**TINY, "ldmyaml": str(self.root / "tiny.yaml"), **changes}}))

    def arguments(self, prj, *options):
        places = ["--data_root", str(self.root / "data"), "--logs", str(self.root / "logs")]
        return ["--jsn", str(self.root / "tiny.json"), "--prj", prj, *places, *map(str, options)]

    def train(self, prj, *options):
        train.main(self.arguments(prj, *options))
        return self.run(prj)

    def run(self, prj):
        return RunFolder(self.root / "logs" / "tiny" / prj)


def write_volume(path, seed, shape=(12, 48, 40), dtype=np.uint16):
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    waves = sum(np.sin(x * rng.uniform(0.1, 0.6) + y * rng.uniform(0.1, 0.6) + z * rng.uniform(0.1, 0.6)) for _ in range(5))
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, (1000 + 150 * waves + 20 * rng.standard_normal(shape)).astype(dtype))


@pytest.fixture
def workspace(tmp_path):
    made = Workspace(tmp_path)
    for number, name in enumerate(("a.tif", "b.tif")):
        write_volume(made.data / "train" / "x3d0" / name, number)
    (tmp_path / "tiny.yaml").write_text(TINY_AUTOENCODER)
    made.settings()
    return made
