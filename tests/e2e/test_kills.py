"""Commands that are killed at random moments and started again end bit for bit as if nothing had happened.

With ``KILLS=FILE`` the outcomes are added to that JSON file, one list of kills per family.
"""

import logging
import os
import random
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from infer_runs import grey, make_run
from victims import SIGNALS, Victim, drawn
from workspace import TINY_AUTOENCODER, Workspace, write_volume

from tests.forks import forks
from utils.files import read_mapping, write_json
from volumes.open import open_volume
from writing.write import write_tiff

pytestmark = pytest.mark.slow
SEED = 16
TRAINING = ("started", "step", "validation", "checkpoint", "checkpoint", "picture")
COMMAND = ("started", "writing", "writing", "finishing")
AT_ONCE = {signal.SIGKILL: -9, signal.SIGTERM: 75, signal.SIGUSR1: 75, signal.SIGINT: 130}
OPTIONS = {"save_minutes": 0, "crops_per_volume": 2, "picture_epochs": 3, "epoch_save": 2, "ema": 0.9}
log = logging.getLogger("isoscope")


@pytest.fixture(scope="module")
def context():
    return forks()


def told(family, kills):
    """The table of outcomes: kills by signal and by what was being done, and what the process left with."""
    counted = Counter((row["signal"], row["during"], row["code"]) for row in kills)
    for (number, during, code), count in sorted(counted.items()):
        log.info("%-28s %-8s %-12s code %4d: %d", family, number, during, code, count)
    if "KILLS" in os.environ:
        path = Path(os.environ["KILLS"])
        rows = read_mapping(path, "table") if path.is_file() else {}
        write_json(path, {**rows, family: kills})


def survived(context, tmp_path, family, wanted, phases, whole, going_on, script, signals=SIGNALS, rounds=9):
    """Kills a command so many times, starting it again each time until it ends; a new one where that is too early.

    ``whole`` are the arguments of an undisturbed one; ``going_on(number of the round)`` those of the next start, and at the end
    compares.
    """
    rng = random.Random(f"{SEED} {family}")
    usual, started = Victim(context, tmp_path / "whole").whole(script, whole)
    kills = []
    for number in range(rounds * wanted):
        victim, left = Victim(context, tmp_path / f"round_{number}"), None
        while left != 0:
            arguments, done = going_on(number)
            marks = victim.start(script, arguments)
            if len(kills) < wanted:
                plan = drawn(rng, usual, started, phases, signals, 3)
                found, left = victim.kill(marks, *plan)
                sent = signal.Signals(plan[-1])
                if _whole_already(victim, left):
                    break
                if found != "ended":
                    kills.append({"signal": sent.name, "during": found, "code": left, "round": number})
                    assert left in (AT_ONCE[sent], 0), victim.log.read_text()[-2000:]
                    assert "Traceback" not in victim.log.read_text(), victim.log.read_text()[-3000:]
                else:
                    assert left == 0, victim.log.read_text()[-3000:]
            else:
                left = victim.end()
                if _whole_already(victim, left):
                    break
                assert left == 0, victim.log.read_text()[-3000:]
        victim.leaves_nobody()
        done()
        if len(kills) >= wanted:
            break
    assert len(kills) >= wanted
    told(family, kills)


def _whole_already(victim, left):
    """Whether a command of inference or preparation was killed after its output had appeared: it is not made again."""
    said = victim.log.read_text()
    return left == 2 and victim.starts > 1 and " exists; " in said and "--overwrite" in said


def same(first, second):
    """Of anything that a checkpoint holds."""
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def same_run(whole, broken):
    ends = [torch.load(run.last, weights_only=True) for run in (whole, broken)]
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step", "generator_steps", "callbacks"):
        assert same(*(end[key] for end in ends)), (key, *(end[key] for end in ends if key == "callbacks"))
    assert set(whole.epochs()) <= set(broken.epochs())
    for epoch in whole.epochs():
        broken.manifest.check_set(epoch)
        for path in whole.manifest.set_of(epoch):
            assert same(*(torch.load(p, weights_only=True) for p in (path, broken.checkpoints / path.name))), path
    assert not list(broken.checkpoints.glob(".*")) and not (broken.path / "run.lock").exists()


@pytest.mark.parametrize(
    ("family", "wanted", "options", "phases"),
    [
        ("vq", 32, "--n_epochs 20", TRAINING),
        ("isoref_two_workers", 20, "--n_epochs 16 --models IsoREF --nocyc --workers 2", TRAINING),
        ("lateral", 22, "--n_epochs 16", TRAINING),
        ("two_processes", 6, "--n_epochs 6 --devices 2 --strategy ddp --epoch_save 1", ("checkpoint",)),
    ],
)
def test_trainings(context, tmp_path, family, wanted, options, phases):
    made = Workspace(tmp_path)
    (tmp_path / "tiny.yaml").write_text(TINY_AUTOENCODER)
    for split, name, seed in (("train", "a.tif", 0), ("train", "b.tif", 1), ("val", "c.tif", 2)):
        write_volume(made.data / split / "x3d0" / name, seed)
    made.settings(**OPTIONS)
    words = [*options.split(), *(made.variant("lateral") if family == "lateral" else ())]

    def going_on(number):
        run = made.run(f"broken_{number}")
        more = ["--resume"] if run.manifest.trained() else words
        return made.arguments(f"broken_{number}", *more), lambda: same_run(made.run("whole"), run)

    survived(context, tmp_path, family, wanted, phases, made.arguments("whole", *words), going_on, "train.py")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("killed") / "D" / "P")


def arrays(path):
    """Every array of a store or value of a volume."""
    if path.suffix == ".tif":
        return {"": tifffile.imread(path)}
    return {str(file.relative_to(path)): np.fromfile(file, np.uint8) for file in path.rglob("*/c/**/*") if file.is_file()}


@pytest.mark.parametrize(
    ("command", "output"),
    [
        ("enhance", "out.ome.zarr"),
        ("enhance", "out.ome.tif"),
        ("encode", "out.codes.zarr"),
        ("decode", "out.ome.zarr"),
    ],
)
def test_inference(context, run, tmp_path, command, output):
    volume = tmp_path / "in.tif"
    write_tiff(volume, grey((4, 140, 540)), voxel_um=(0.8, 0.1, 0.1))
    words = ["--run", run, "--input", volume]
    if command == "decode":
        codes = tmp_path / "in.codes.zarr"
        assert Victim(context, tmp_path / "codes").whole("infer.py", ["encode", *words, "--output", codes])
        words = ["--codes", codes]
    words = [command, *words, *(("--tile", 64) if command != "encode" else ())]

    def going_on(number):
        place = tmp_path / f"{number}_{output}"

        def compared():
            first, second = arrays(tmp_path / output), arrays(place)
            assert first.keys() == second.keys() and all(np.array_equal(first[key], second[key]) for key in first)
            assert command == "encode" or np.array_equal(open_volume(tmp_path / output)[:], open_volume(place)[:])
            assert not [path for path in tmp_path.iterdir() if f"{number}_{output}." in path.name or path.name.startswith(".")]

        return [*words, "--output", place], compared

    family = f"{command} {output.partition('.')[2]}"
    survived(context, tmp_path, family, 8, COMMAND, [*words, "--output", tmp_path / output], going_on, "infer.py")


def test_preparing(context, tmp_path):
    write_tiff(tmp_path / "in.tif", grey((16, 100, 200)), voxel_um=(0.8, 0.1, 0.1))
    words = ["volumes", "--input", tmp_path / "in.tif", "--patch", 8, 32, 32, "--percentile", 1, 99]

    def place(name):
        return [*words, "--dataset", name, "--data_root", tmp_path / "data"]

    def going_on(number):
        def compared():
            first, second = (tmp_path / "data" / name for name in ("whole", f"broken_{number}"))
            names = [sorted(str(path.relative_to(folder)) for path in folder.rglob("*")) for folder in (first, second)]
            assert names[0] == names[1]
            for name in names[0]:
                if name.endswith(".tif"):
                    assert (first / name).read_bytes() == (second / name).read_bytes()
            records = [read_mapping(folder / "dataset.json", "record")["directions"]["x3d0"] for folder in (first, second)]
            assert records[0]["sources"] == records[1]["sources"] and records[0]["transform"] == records[1]["transform"]
            assert {path.name for path in (tmp_path / "data").iterdir()} <= {"whole", *(f"broken_{k}" for k in range(number + 1))}

        return place(f"broken_{number}"), compared

    survived(context, tmp_path, "prepare", 10, COMMAND, place("whole"), going_on, "prepare.py")
