"""Trains and judges models where the truth is known: ``python benchmarks/quality.py [DATA] [--on VOLUME] [--model ROW]``.

DATA holds fibsem_fib25_train.tif, which is degraded and trained on, and fibsem_fib25_dev.tif, of which [:248, :248, :248] is
judged and nothing else done with; without DATA there are phantoms only (dense; nuclei; sparse neurites: noisy 16-bit sections,
blurred along z with sigma 2.5). ``--volume TRUTH [--train FILES]`` judges any other volume. Each is degraded 4x and 8x, by
picking a plane and by averaging, and each model is trained both ways: on the other volumes (``others``), and on the sections of
the judged volume alone, as users do (``itself``). All goes through train.py, infer.py and evaluate.py, with a fixed seed. A model
is a row: experiment files, one after the other, each with options; {lateral} in an option names the run of that row in the same
cell. The opponents, nearest, linear and cubic interpolation and cubic with data consistency, get the true operator as well.

``fib25-aside`` is for choosing settings: trained and judged on two parts of the training volume; ``--row "wide = fib25_lateral
--ngf 96"`` adds a row to try. Budgets are in optimiser steps: short for 3 minutes of one CPU thread, small for 10, full for 60.
``--minutes`` ends a call; the next one goes on, and finished cells are not redone (a row that changed needs another name).
Writes benchmarks/results/quality.json, quality.md (the table) and a picture of each volume and degradation.
"""

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image

from benchmarks.machine import RESULTS, ROOT, command_line, machine
from benchmarks.specimens import FIB25, Degradation, PhantomScene, Sparse, Specimen, fib25, phantom
from evaluation.grid import Request
from evaluation.measure import evaluate
from evaluation.report import plain
from experiment.reading import read_settings
from experiment.rules import reads_volume
from experiment.runs import RunFolder
from experiment.teachers import PROJECTIONS
from training import MODEL_OPTIONS
from utils.axes import to_memory
from utils.files import write_json, write_text
from utils.pictures import orthogonal_planes
from volumes.open import open_volume
from writing.write import write_tiff

BUDGETS = {"short": 0.25, "small": 1, "full": 6}  # times the steps of a row
EPOCHS, SHOWN = 10, 112  # of a training; voxels along a side of what pictures show
EVERY = slice(None, None, 4)  # planes that SSIM sees
PHANTOM_KINDS = {"phantom": (PhantomScene, None), "nuclei": (PhantomScene, 0), "neurites": (Sparse, None)}
PHANTOM_SIGMA = 2.5
CONSISTENT, TEXTURE = "cubic + consistency", "texture"
COLUMNS = {  # title: key, format
    "steps": ("steps", "d"),
    "min": ("train_minutes", ".1f"),
    "PSNR dB": ("psnr_db", ".2f"),
    "SSIM XZ": ("ssim_xz", ".3f"),
    "FSC z .5": ("fsc_z_0.5", ".1f"),
    "FSC z .143": ("fsc_z_0.143", ".1f"),
    "power 1/16-1/8": ("power_z_1/16-1/8", ".2f"),
    "power 1/8-1/4": ("power_z_1/8-1/4", ".2f"),
}
NOTES = """PSNR over all voxels (8 bit: peak 255; else the truth's range), SSIM the mean over every fourth XZ plane, FSC z the
period in voxels down to which a volume agrees with the truth along z at that threshold (smaller is better), power along z over
the truth's by period. Minutes of training are processor time of one thread on the machine that quality.json names.
*Cubic + consistency* is stopped where the truth says that it is best.
"""
ROWS = {  # experiment file and options, steps of the small budget
    "lateral": ("fib25_lateral", 12000),
    "contrast": (
        "fib25_lateral --init {lateral} --lateral_error squared --lbpower 0.002 --power 0.69 --lr 3e-4",
        4800,
    ),
    "codes": ("fib25 --teacher {lateral}", 1200),
    "codes, MS-SSIM": (
        "fib25 --models ae0iso0tccutvqqssim --teacher {lateral} --init {codes} --cropsize 104 --lbm_ms_ssim 0.1",
        100,
    ),
    "Gaussian": ("fib25 --models ae0iso0tccut --ldmyaml kllinear --lbNCE 0 --teacher {lateral}", 600),
    "IsoREF": ("fib25 --models IsoREF --from_interpolation --nocyc --lbNCE 0 --teacher {lateral}", 600),
    TEXTURE: ("texture --teacher {contrast}", 400),
}


def geometry(settings: dict[str, Any], how: Degradation) -> list[Any]:
    """The options that say how the sections were made, to a model of any kind."""
    if "axial_sampling" in settings:
        return ["--uprate", how.factor, "--axial_sampling", how.sampling, "--axial_sigma", how.sigma]
    options = ["--cropz", settings["cropsize"] // how.factor, "--l1how", PROJECTIONS[how.sampling]]
    if settings["models"] == "IsoREF":
        return options
    return [] if of_slices(settings) else [*options, "--downbranch", 8 // how.factor]


def of_slices(settings: dict[str, Any]) -> bool:
    """Whether a row trains the autoencoder of slices alone, for other rows to begin with."""
    return "ldmyaml" in settings and not reads_volume(settings)


@dataclass
class Bench:
    """Where everything lies, how long it may take, and what is known so far."""

    work: Path
    output: Path
    budget: str
    stops: float
    cells: dict[str, Any]

    def cell(self, name: str, specimen: Specimen, how: Degradation, way: str, row: str) -> None:
        """Trains and judges one row."""
        budget = "-" if row == CONSISTENT else self.budget
        key = f"{name} {how.name} {way} {row} {budget}"
        if key in self.cells or time.monotonic() > self.stops:
            return
        folder = self.work / f"{name}_{how.name}"
        self.write_data(folder, specimen, how)
        restored, about = folder / f"{way}_{row}_{budget}.tif", {}
        if row == CONSISTENT:
            made, about["iterations"] = how.consistent(open_volume(folder / "input.tif")[:], open_volume(folder / "truth.tif")[:])
            write_tiff(restored, made)
        else:
            about = self.train(folder, how, way, row)
            if not about:
                return
            files = ["--input", folder / "input.tif", "--output", restored, "--overwrite"]
            files += ["--texture", 1] if row == TEXTURE else []
            about["infer_minutes"] = command("infer.py", "enhance", "--run", about.pop("run"), *files) / 60
        position = {"mean": "average"}.get(how.sampling, how.sampling)
        request = Request(
            restored, folder / "truth.tif", folder / "input.tif", input_position=position, factor=how.factor, planes=EVERY
        )
        volumes = evaluate(request, restored.with_suffix(".report"), overwrite=True)["volumes"]
        cells = {f"{name} {how.name} - {method} -": numbers(volumes[method]) for method in ("nearest", "linear", "cubic")}
        self.save(cells | {key: about | numbers(volumes["reconstruction"]) | {"commit": machine()["commit"]}})

    def write_data(self, folder: Path, specimen: Specimen, how: Degradation) -> None:
        """The sections of a cell as data sets of train.py, and the judged volume's beside its truth."""
        if (folder / "truth.tif").exists():
            return
        train, sections = specimen.degraded(how)
        for way, stacks in {"others": train, "itself": [sections]}.items():
            for number, stack in enumerate(stacks):
                path = folder / "data" / way / "train" / "x3d0" / f"{number}.tif"
                path.parent.mkdir(parents=True, exist_ok=True)
                write_tiff(path, stack)
        write_tiff(folder / "input.tif", sections)
        write_tiff(folder / "truth.tif", specimen.truth[: len(sections) * how.factor])

    def train(self, folder: Path, how: Degradation, way: str, row: str) -> dict[str, Any]:
        """Trains a row, or goes on with it; what it took, or nothing where time ran out or it makes no volume."""
        runs = {name: RunFolder(folder / "logs" / way / f"{name}_{self.budget}") for name in ROWS}
        run, clock = runs[row], runs[row].path / "seconds"
        recipe, *given = shlex.split(ROWS[row][0].format_map({name: shlex.quote(str(one.path)) for name, one in runs.items()}))
        places = ["--data_root", folder / "data", "--logs", folder / "logs", "--dataset", way]
        words = ["--jsn", recipe, "--prj", run.path.name, *places]
        settings = read_settings([*map(str, words), *given], MODEL_OPTIONS, ROOT).settings
        batch = settings["batch_size"] * settings["accumulate_grad_batches"]
        samples = len(list((folder / "data" / way / "train" / "x3d0").iterdir())) * EPOCHS
        every = max(1, round(ROWS[row][1] * BUDGETS[self.budget] * batch / samples))
        if EPOCHS not in run.epochs():
            length = ["--crops_per_volume", every, "--n_epochs", EPOCHS, "--epoch_save", EPOCHS, "--picture_epochs", EPOCHS]
            more = ["--resume"] if (run.checkpoints / "last.ckpt").exists() else [*length, *geometry(settings, how), *given]
            left = 0 if np.isinf(self.stops) else max(1, round(self.stops - time.monotonic()))
            ends = ["--max_time", f"00:{left // 3600:02}:{left // 60 % 60:02}:{left % 60:02}"] if left else []
            spent = command("train.py", *words, *more, *ends) + (float(clock.read_text()) if clock.exists() else 0)
            write_text(clock, f"{spent:.1f}")
        if EPOCHS not in run.epochs() or of_slices(settings):
            return {}
        return {
            "run": run.path,
            "recipe": ROWS[row][0],
            "steps": every * samples // batch,
            "train_minutes": float(clock.read_text()) / 60,
        }

    def save(self, cells: dict[str, Any]) -> None:
        """Adds cells to the numbers, which another process may have added to, and makes the table."""
        self.cells = finished(self.output) | self.cells | cells
        write_json(self.output / "quality.json", plain({**machine(), "cells": dict(sorted(self.cells.items()))}))
        write_text(self.output / "quality.md", table(self.cells))

    def draw(self, name: str, how: Degradation) -> None:
        """One picture of what there is of a volume and degradation, from the middle of the judged volume."""
        folder = self.work / f"{name}_{how.name}"
        shown = {"cubic interpolation with data consistency": folder / f"-_{CONSISTENT}_-.tif"}
        for way in ("others", "itself"):
            cells = {row: folder / f"{way}_{row}_{self.budget}.tif" for row in ROWS}
            shown |= {f"{row}, trained on {way}": path for row, path in cells.items()}
        shown = {label: path for label, path in shown.items() if path.exists()} | {"truth": folder / "truth.tif"}
        if len(shown) < 3:
            return
        middle = [slice((size - SHOWN) // 2, (size + SHOWN) // 2) for size in open_volume(folder / "truth.tif").shape]
        panels = {label: to_memory(open_volume(path)[tuple(middle)]) for label, path in shown.items()}
        picture = orthogonal_planes(panels, title=f"{name}, {how.name}, budget {self.budget}")
        Image.fromarray(picture).save(self.output / f"quality_{name}_{how.name}_{self.budget}.jpg", quality=80)


def command(script: str, *words: Any) -> float:
    """One of the project's commands, on one thread; its messages go to the terminal.

    Returns:
        Seconds of processor time, which on one thread are those of a quiet machine.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    subprocess.run([sys.executable, script, *map(str, words)], cwd=ROOT, check=True, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = command_line(__doc__)
    add = parser.add_argument
    add("data", type=Path, nargs="?", help="folder of the FIB-25 volumes")
    add("--volume", type=Path, help="the truth of another volume")
    add("--train", type=Path, nargs="+", default=[], help="isotropic volumes to train on, with --volume")
    add("--on", nargs="+", default=("fib25", *PHANTOM_KINDS), help="these volumes alone; also fib25-aside")
    add("--how", nargs="+", default=("pick8", "mean8", "pick4", "mean4"), help="these degradations alone")
    add("--way", nargs="+", default=("others", "itself"), help="trained this way alone")
    add("--model", nargs="+", help="these rows alone")
    add("--row", action="append", default=[], metavar="NAME=RECIPE[@STEPS]", help="one more model")
    add("--budget", choices=BUDGETS, default="small")
    add("--minutes", type=float, default=float("inf"), help="no training goes on beyond")
    add("--work", type=Path, default=ROOT / "logs" / "quality", help="data, runs and volumes of this benchmark")
    add("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    for text in options.row:
        name, _, recipe = text.partition("=")
        recipe, _, steps = recipe.partition("@")
        ROWS[name.strip()] = recipe.strip(), int(steps or ROWS["lateral"][1])
    options.output.mkdir(parents=True, exist_ok=True)
    stops = time.monotonic() + 60 * options.minutes
    bench = Bench(options.work.resolve(), options.output.resolve(), options.budget, stops, finished(options.output))
    for name, (sigma, make) in specimens(options).items():
        for how in (Degradation(factor, sampling, sigma) for factor in (8, 4) for sampling in ("pick", "mean")):
            if how.name not in options.how:
                continue
            specimen = make(how)
            for way, row in [*product(options.way, options.model or ROWS), ("-", CONSISTENT)]:
                bench.cell(name, specimen, how, way, row)
            bench.draw(name, how)


def finished(output: Path) -> dict[str, Any]:
    """Cells that are known already."""
    known = output / "quality.json"
    return json.loads(known.read_text())["cells"] if known.exists() else {}


def specimens(options: argparse.Namespace) -> dict[str, tuple[float, Callable[[Degradation], Specimen]]]:
    """The volumes asked for: their axial blur, and what makes them once the degradation is known."""
    if options.volume:
        train, truth = [open_volume(path)[:] for path in options.train], open_volume(options.volume)[:]
        return {options.volume.name.partition(".")[0]: (0.0, lambda how: Specimen(train, truth))}
    found: dict[str, tuple[float, Any]] = {}
    if options.data:
        found = {name: (0.0, partial(fib25, options.data, name)) for name in FIB25}
    found |= {name: (PHANTOM_SIGMA, partial(phantom, *kind)) for name, kind in PHANTOM_KINDS.items()}
    return {name: made for name, made in found.items() if name in options.on}


def numbers(volume: dict[str, Any]) -> dict[str, Any]:
    """What is kept of an evaluation."""
    limits = {f"fsc_z_{at}": volume["fsc"]["z"][f"at_{at}"]["period_voxels"] for at in (0.5, 0.143)}
    power = {f"power_z_{band}": value for band, value in volume["power_over_truth"]["z"].items()}
    projected = {f"consistency_{way}_db": found["psnr_db"] for way, found in volume["consistency"].items()}
    similar = {f"ssim_{planes}": volume["ssim"][planes] for planes in ("xz", "yz")}
    return {"psnr_db": volume["psnr_db"], **similar, **limits, **power, **projected}


def table(cells: dict[str, dict[str, Any]]) -> str:
    """Markdown, one table for each volume and degradation, the closest volume last.

    Args:
        cells: by "VOLUME DEGRADATION WAY MODEL BUDGET".
    """
    groups: dict[tuple[str, str], list[list[str]]] = {}
    for key, cell in sorted(cells.items(), key=lambda one: one[1]["psnr_db"]):
        name, how, way, rest = key.split(" ", 3)
        known = [format(cell[k], form) if cell.get(k) is not None else "-" for k, form in COLUMNS.values()]
        model, _, budget = rest.rpartition(" ")
        groups.setdefault((name, how), []).append([model, way, budget, *known])
    lines = ["# Quality beside the truth", "", "Made by `python benchmarks/quality.py`."]
    titles = ["model", "trained on", "budget", *COLUMNS]
    for (name, how), rows in sorted(groups.items()):
        lines += ["", f"## {name}, {how}", "", _line(titles), _line(["---"] * len(titles)), *map(_line, rows)]
    return "\n".join([*lines, "", NOTES])


def _line(words: list[str]) -> str:
    return f"| {' | '.join(words)} |"


if __name__ == "__main__":
    main()
