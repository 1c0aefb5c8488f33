"""Codebooks compared on real slices: ``python benchmarks/codebooks.py DATA [--steps N] [--seeds N] [--only NAME ...]``.

DATA holds fibsem_fib25_quickstart.tif, which is trained on, and fibsem_fib25_dev.tif, of which every 16th XY slice is judged.
Every variant is trained with the same seed through train.py (fp32), but the 2-D autoencoder alone: adv 0, lamb 0, disc_weight 0
and perceptual_weight 0 leave the error of the slices and the bottleneck's own term. Without a linear start: ldm vqgan_small, two
random crops of one slice of 64x64 per step, L1, Adam 5e-4 constant. With one (ldm vqlinear): six crops of 96x96, squared error,
Adam 8e-4 falling to 0 by a cosine in ten parts; "untrained" are principal components and k-means. Seconds are those of the whole
training on a busy core. It is judged in eval mode through ``encode`` and ``decode --grid raw``: codes used (each at least 10
times, per level), bits per pixel (nominal; entropy of the single codes; on disc) and PSNR of the slices (peak 255).

Each training has a process of its own; a comparison that was interrupted goes on. The rotation trick (Fifty et al. 2024) is no
setting of the product, because finite scalar quantisation did better here: the results have its figures, made at 59fedc0.
Writes benchmarks/results/codebooks.json.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import RESULTS, answer, command_line, in_turn, machine, write_result

STRIDE, AT_LEAST = 16, 10
UNTRAINED = "linear start, untrained"
FSQ = {"embed_dim": 3, "n_embed": 240, "ddconfig": {"z_channels": 3}, "codebook": {"grid": [8, 6, 5]}}
VARIANTS = {
    "plain": {},
    "finite scalar 8x6x5": FSQ,
    "residual, 2 levels": {"codebook": {"levels": 2}},
    "residual, 4 levels": {"codebook": {"levels": 4}},
    "plain, vqlocal": {"extends": "vqlocal_small"},
    UNTRAINED: {"extends": "vqlinear"},
    "linear start": {"extends": "vqlinear"},
    "linear start, twice the steps": {"extends": "vqlinear"},
    "linear start, residual, 2 levels": {
        "extends": "vqlinear_residual",
        "embed_dim": 16,
        "ddconfig": {"z_channels": 16},
        "codebook": {"levels": 2},
    },
    "linear start, residual, 4 levels": {"extends": "vqlinear_residual"},
    "linear start, finite scalar 12x5x4": {"extends": "vqlinear_fsq"},
    "linear start, ladder of 16x16": {"extends": "vqlinear_ladder"},
}
LONGER = {"linear start, twice the steps": 2}
SETTINGS = json.loads(Path(__file__).with_suffix(".json").read_text())["train"]
LINEAR = {"batch_size": 6, "cropsize": 96, "resizebranch": 12, "lr": 8e-4, "n_epochs": 10, "n_epochs_decay": 0, "epoch_save": 10}


def train_and_judge(name: str, data: Path, steps: int, seed: int) -> dict:
    import train
    from utils.machine import keep_freed_memory

    keep_freed_memory()
    settings = {**SETTINGS, **(LINEAR if name.startswith("linear") else {}), "seed": seed}
    steps *= LONGER.get(name, 1)
    if name == UNTRAINED:
        steps, settings = 1, {**settings, "lr": 1e-12, "n_epochs": 1, "epoch_save": 1}
    settings["crops_per_volume"] = settings["batch_size"] * steps // settings["n_epochs"]
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        started = time.monotonic()
        train.main(prepare(root, VARIANTS[name], data, settings))
        return {"steps": steps, "seconds": time.monotonic() - started} | judge(root, data)


def prepare(root: Path, variant: dict, data: Path, settings: dict) -> list[str]:
    """The folders and files of an experiment; the command line that trains it."""
    folder = root / "data" / "fib25" / "train" / "x3d0"
    folder.mkdir(parents=True)
    (folder / "quickstart.tif").symlink_to((data / "fibsem_fib25_quickstart.tif").resolve())
    own = {"extends": "vqgan_small", **variant, "loss": {"disc_weight": 0.0, "disc_ndf": 32}}
    (root / "own.yaml").write_text(json.dumps(own))  # JSON is YAML
    (root / "own.json").write_text(json.dumps({"train": {**settings, "ldmyaml": str(root / "own.yaml")}}))
    places = ["--data_root", root / "data", "--logs", root / "logs"]
    return [str(a) for a in ["--jsn", root / "own.json", "--prj", "run", *places]]


def judge(root: Path, data: Path) -> dict:
    import numpy as np
    import tifffile

    from codes.store import level_names
    from inference import Run, decode, encode

    run = Run.load(root / "logs" / "fib25" / "run")
    slices = tifffile.imread(data / "fibsem_fib25_dev.tif")[STRIDE // 2 :: STRIDE]
    store = encode(slices, run, root / "x.codes.zarr")
    levels, codes = store.about["levels"], store.about["codes"]
    indices = store.read(tuple(slice(0, size) for size in store.shape)).codes.reshape(-1, levels)
    counts = [np.bincount(level, minlength=codes) for level in indices.T]
    pixels = slices.size
    # positions cover slices padded to whole codes; nominal and entropy are per pixel of those
    entropies = [float(-(c[c > 0] / c.sum() * np.log2(c[c > 0] / c.sum())).sum()) for c in counts]
    decibels = []
    for count in range(1, levels + 1):  # of one store
        shown = decode(store, run, grid="raw", levels=count)
        decibels.append(10 * math.log10(255**2 / np.mean((shown.astype(float) - slices) ** 2)))
    return {
        "codes_used": [int((c >= AT_LEAST).sum()) for c in counts],
        "codes": [codes] * levels,
        "bits_per_pixel": levels * math.log2(codes) / run.stride**2,
        "bits_per_pixel_entropy": sum(entropies) / run.stride**2,
        "bits_per_pixel_on_disc": 8 * sum(store.bytes_of(name) for name in level_names(levels)) / pixels,
        "psnr_db": decibels[-1],
        "psnr_db_of_first_levels": decibels,
        "slices": list(slices.shape),
    }


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("data", type=Path, help="folder of the two volumes")
    parser.add_argument("--steps", type=int, default=300, help="generator steps of each training")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each variant, with seeds 1, 2, ...")
    parser.add_argument("--only", nargs="+", choices=VARIANTS, help="these variants alone")
    parser.add_argument("--output", type=Path, default=RESULTS / "codebooks.json")
    parser.add_argument("--variant", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        return answer(train_and_judge(options.variant, options.data, options.steps, options.seeds))
    result = json.loads(options.output.read_text()) if options.output.exists() else {}
    if result.get("steps") != options.steps:
        result = {"steps": options.steps, "variants": {}}
    for seed in range(1, options.seeds + 1):
        for name in options.only or VARIANTS:
            runs = result["variants"].setdefault(name, {})
            if str(seed) not in runs:
                words = (options.data, "--steps", options.steps, "--seeds", seed)
                runs[str(seed)] = in_turn(__file__, [name], 1, *words)[name][0] | {"commit": machine()["commit"]}
                write_result(options.output, result | {"setting": __doc__.split("\n\n")[1].replace("\n", " ")})
    show(result)


def show(result: dict) -> None:
    print(f"{'variant':36s} {'bit/pixel':>9s} {'entropy':>8s} {'PSNR dB':>16s}  codes used (>= {AT_LEAST} times)")
    for name, runs in result["variants"].items():
        every = list(runs.values())
        psnr = [one["psnr_db"] for one in every]
        spread = f" ± {statistics.stdev(psnr):.2f}" if len(psnr) > 1 else ""
        used = "; ".join(" ".join(map(str, one["codes_used"])) for one in every)
        entropy = statistics.mean(one["bits_per_pixel_entropy"] for one in every)
        print(f"{name:36s} {every[0]['bits_per_pixel']:9.3f} {entropy:8.3f} {statistics.mean(psnr):9.2f}{spread:7s}  {used}")


if __name__ == "__main__":
    main()
