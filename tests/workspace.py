"""A tiny experiment that trains in a second: two small volumes, narrow networks."""

import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import tifffile

import train
from experiment.runs import RunFolder
from training.callbacks import RunKeeper

TINY_AUTOENCODER = """
extends: vqgan
n_embed: 16
ddconfig: {ch: 8}
loss: {disc_ndf: 4}
"""
TINY_GAUSSIAN = TINY_AUTOENCODER.replace("vqgan", "ldmaex2").replace("n_embed: 16\n", "")
# Every model and mode, by the options that make it of the tiny experiment.
VARIANTS = {
    "vq": "",
    "cut": "--no-nocut --lbNCE 1 --use_mlp --c_mlp 8 --num_patches 8",
    "two_channels": "--direction x3d0_x3d1 --tc --input_nc 2 --output_nc 2",
    "translation": "--direction x3d0_x3d1",
    "kl": "--models ae0iso0tccut --ldmyaml {root}/gaussian.yaml",
    "kl_z": "--models ae0iso0tccut --ldmyaml {root}/gaussian.yaml --hbranch z",
    "isoref": "--models IsoREF --cropz 8 --usp 2 --no-nocut --num_patches 8",
    "isoref_nocyc": "--models IsoREF --nocyc",
    "lateral": "--models lateral --uprate 4 --axial_sampling mean --axial_sigma 0.8 --cropsize 40 --blocks 1 --ema 0 -b 2",
    "ssim": "--models ae0iso0tccutvqqssim --cropsize 104 --cropz 13 --skipl1 1 --adv_planes 4 --crops_per_volume 1",
}
TINY = {
    "dataset": "tiny",
    "nm": "11",
    "cropsize": 32,
    "cropz": 4,
    "crops_per_volume": 1,
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

    def variant(self, name):
        """The options of a model or mode, after making the files it needs."""
        (self.root / "gaussian.yaml").write_text(TINY_GAUSSIAN)
        size = {"shape": (14, 108, 106)} if name == "ssim" else {}
        for number, direction in enumerate(("x3d0", "x3d1")):
            for seed, file in enumerate(("a.tif", "b.tif")):
                write_volume(self.data / "train" / direction / file, 2 * number + seed, **size)
        return VARIANTS[name].format(root=self.root).split()

    def run(self, prj):
        return RunFolder(self.root / "logs" / "tiny" / prj)


def signalled(monkeypatch, batch, epoch=None, number=signal.SIGTERM):
    """Trainings of this process get a signal at the end of a batch (of an epoch), until the patch is undone."""
    original = RunKeeper.on_train_batch_end

    def interrupted(self, trainer, model, outputs, data, batch_idx):
        if batch_idx == batch and epoch in (None, trainer.current_epoch):
            os.kill(os.getpid(), number)
        original(self, trainer, model, outputs, data, batch_idx)

    monkeypatch.setattr(RunKeeper, "on_train_batch_end", interrupted)


def write_volume(path, seed, shape=(12, 48, 40), dtype=np.uint16):
    rng = np.random.default_rng(seed)
    z, y, x = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    waves = sum(np.sin(x * rng.uniform(0.1, 0.6) + y * rng.uniform(0.1, 0.6) + z * rng.uniform(0.1, 0.6)) for _ in range(5))
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(path, (1000 + 150 * waves + 20 * rng.standard_normal(shape)).astype(dtype))


def made_in(folder):
    made = Workspace(folder)
    for number, name in enumerate(("a.tif", "b.tif")):
        write_volume(made.data / "train" / "x3d0" / name, number)
    (folder / "tiny.yaml").write_text(TINY_AUTOENCODER)
    made.settings()
    return made


@pytest.fixture
def workspace(tmp_path):
    return made_in(tmp_path)
