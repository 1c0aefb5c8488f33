"""``python benchmarks/throughput.py --run RUN``: voxels per second of enhance, encode and decode against the bare network.

End to end means from a volume on disc to a finished OME-Zarr, with reading, normalisation, halos, rounding, compression and
writing; voxels are those of the isotropic output (of the raw input for encode). The bare network computes the same tiles, halos
included, from tensors that lie on the device already. Each size runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

SCALES = (1, 4, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--shape", type=int, nargs=3, default=(16, 256, 256), metavar=("Z", "Y", "X"), help="raw voxels at 1x")
    parser.add_argument("--tile", type=int, help="as of infer.py")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "throughput.json")
    parser.add_argument("--scale", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if given.scale:
        sys.stdout.write(json.dumps(measure(given.run, given.shape, given.scale, given.tile)) + "\n")
        return
    sizes = []
    for scale in SCALES:
        words = [sys.executable, __file__, *sys.argv[1:], "--scale", str(scale)]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
        sizes.append(json.loads(done.stdout.splitlines()[-1]))
        logging.info("%s", sizes[-1])
    memory = [size["peak_gib"] for size in sizes]
    content = {**machine(), "run": given.run.name, "sizes": sizes, "memory_growth": max(memory) / min(memory) - 1}
    given.results.parent.mkdir(parents=True, exist_ok=True)
    given.results.write_text(json.dumps(content, indent=1) + "\n")
    logging.info("written: %s", given.results)


def measure(run_path: Path, shape: tuple[int, int, int], scale: int, tile: int | None) -> dict[str, Any]:
    """One size: the volume grows along y, then x."""
    from inference import Options, Run, commands
    from inference.codes import CodeStore
    from inference.processes import Processes
    from utils.volumes.volume_io import open_volume, write_tiff

    run = Run.load(run_path)
    options, extras, alone = Options(tile=tile, normalise="run"), commands.Extras(), Processes()
    grown = (shape[0], shape[1] * math.isqrt(scale), shape[2] * math.isqrt(scale))
    record = next(iter((run.record or {"directions": {}})["directions"].values()))
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "raw.tif"
        generator = np.random.default_rng(0)
        low, high = record["pooled"]["low"], record["pooled"]["high"]
        planes = (generator.uniform(low, high, grown[1:]).astype(record["dtype"]) for _ in range(grown[0]))
        write_tiff(source, planes, shape=grown, dtype=record["dtype"])
        volumes = [open_volume(source)]
        voxels = grown[0] * run.geometry.factor * grown[1] * grown[2]
        timed = {}
        for name, call in {
            "enhance": lambda: commands.enhance(run, volumes, Path(folder) / "e.ome.zarr", options, extras, alone),
            "encode": lambda: commands.encode(run, volumes, Path(folder) / "c.codes.zarr", options, extras, alone),
            "decode": lambda: commands.decode(
                run, CodeStore.open(Path(folder) / "c.codes.zarr"), Path(folder) / "d.ome.zarr", "isotropic", options,
                extras, alone,
            ),
        }.items():  # fmt: skip
            started = time.perf_counter()
            call()
            timed[name] = time.perf_counter() - started
        peak = peak_gib(run)
        bare, useful = bare_network(run, volumes, options)
    result: dict[str, Any] = {"scale": scale, "raw_shape": list(grown), "peak_gib": peak, "useful_fraction": useful}
    for name, seconds in timed.items():
        count = math.prod(grown) if name == "encode" else voxels
        result[name] = {"mvoxel_per_s": count / seconds / 1e6, "of_bare_network": bare[name] / seconds}
    return result


def bare_network(run: Any, volumes: Any, options: Any) -> tuple[dict[str, float], float]:
    """Seconds of the network alone on the tiles of a volume, one resident tile of each kind timed and multiplied; useful part."""
    import torch

    from inference.jobs import enhance_job

    field = enhance_job(run, volumes, options).field
    encoder = field.codes
    windows = torch.from_numpy(encoder._window((0, 0, 0))).to(run.engine.device).movedim(0, 1)
    keys = math.ceil(encoder.shape[0] / encoder.lattice.group) * len(encoder.lattice.rows) * len(encoder.lattice.columns)
    seconds, decoding, needed, computed = {}, 0.0, 0, 0
    with torch.inference_mode(), run.engine.autocast():
        seconds["encode"] = keys * clock(lambda: run.model.pack(windows), run)
        latent = run.model.unpack(run.model.pack(windows))
        kinds: dict[Any, int] = {}
        for z in range(len(field.axes[0])):
            for y in range(len(field.axes[1])):
                for x in range(len(field.axes[2])):
                    tiles = [axis[n] for axis, n in zip(field.axes, (z, y, x), strict=True)]
                    kind = tuple((tile.core[1] - tile.core[0], tile.margins) for tile in tiles)
                    kinds[kind] = kinds.get(kind, 0) + 1
        for kind, count in kinds.items():
            (cz, mz), (cy, my), (cx, mx) = kind
            size = (cy + sum(my), cx + sum(mx), cz + sum(mz))
            stack = torch.randn(1, latent.shape[1], *size, device=run.engine.device)
            decoding += count * clock(lambda stack=stack, m=(my, mx, mz): run.model.expand(stack, m), run)
            needed += count * cz * cy * cx
            computed += count * math.prod(size)
    seconds["decode"] = decoding
    seconds["enhance"] = seconds["encode"] + decoding
    return seconds, needed / computed


def clock(call: Any, run: Any) -> float:
    """The faster of two calls after one for warming up, in seconds."""
    import torch

    found = []
    for _ in range(3):
        started = time.perf_counter()
        call()
        if run.engine.device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return min(found[1:])


def peak_gib(run: Any) -> float:
    """Peak memory of the device: of the process on a CPU."""
    import torch

    if run.engine.device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def machine() -> dict[str, Any]:
    import torch

    words = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False).stdout.strip()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or platform.machine()
    return {
        "device": device, "threads": torch.get_num_threads(), "torch": torch.__version__,
        "python": platform.python_version(), "commit": commit,
    }  # fmt: skip


if __name__ == "__main__":
    main()
