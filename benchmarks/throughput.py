"""``python benchmarks/throughput.py --run RUN``: voxels per second of enhance, encode and decode against the bare network.

End to end means from a volume on disc to a finished OME-Zarr: reading, normalisation, halos, rounding, compression, writing and
the pyramid. The bare network computes the same tiles, halos included, from tensors that lie on the device already: one tile of
each kind is timed, before and after, and counted. Voxels are those of the isotropic output, and of the raw input for encode.
Volumes of 1, 4 and 16 times the size run in a process each, so that peak memory is that of the size. The input is noise, of which
no tile can be skipped.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import RESULTS, answer, clock, command_line, in_a_process, write_result

SCALES = (1, 4, 16)
VERBS = ("enhance", "encode", "decode")


def main() -> None:
    parser = command_line(__doc__)
    add = parser.add_argument
    add("--run", type=Path, required=True, help="a training's folder; its weights do not matter, its widths do")
    add("--shape", type=int, nargs=3, default=(16, 256, 256), metavar=("Z", "Y", "X"), help="raw voxels at 1x")
    add("--tile", type=int, help="as of infer.py")
    add("--batch", type=int, help="as of infer.py")
    add("--device", help="as of infer.py")
    add("--precision", choices=("32", "bf16"), help="as of infer.py")
    add("--results", type=Path, help="JSON to write; benchmarks/results/throughput_DEVICE_PRECISION.json by default")
    add("--scale", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.scale:
        return answer(measure(given))
    sizes = []
    for scale in SCALES:
        sizes.append(in_a_process(__file__, *sys.argv[1:], "--scale", scale))
        logging.info("%s", json.dumps(sizes[-1], indent=1))
    first, largest = sizes[0]["peak_gib"], sizes[-1]
    summary = {
        "end_to_end_over_bare_network": {verb: largest[verb]["of_bare_network"] for verb in VERBS},
        "mvoxel_per_s": {verb: largest[verb]["mvoxel_per_s"] for verb in VERBS},
        "memory_over_that_at_1x": {name: [round(s["peak_gib"][name] / first[name], 3) for s in sizes] for name in first},
    }
    results = given.results or RESULTS / f"throughput_{largest['device'].partition(':')[0]}_{largest['precision']}.json"
    write_result(results, {"run": given.run.name, **summary, "sizes": sizes})


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """One size: the volume grows along y and x."""
    import torch

    from inference import Engine, Options, Run

    engine = Engine.choose(given.device, given.precision)
    run = Run.load(given.run, engine=engine)
    options = Options(tile=given.tile, batch=given.batch)
    side = math.isqrt(given.scale)
    shape = (given.shape[0], given.shape[1] * side, given.shape[2] * side)
    cuda = engine.device.type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "raw.tif"
        write_noise(source, run, shape)
        before, useful = bare_network(run, source, options)
        if cuda:  # the process's own peak cannot be forgotten
            torch.cuda.reset_peak_memory_stats()
        seconds = end_to_end(run, source, Path(folder), options)
        peak = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}  # with pages of mapped files
        if cuda:
            peak["device"] = torch.cuda.max_memory_allocated() / 2**30
        after, _ = bare_network(run, source, options)
    result: dict[str, Any] = {
        "scale": given.scale,
        "raw_shape": shape,
        "tile": given.tile,
        "batch": given.batch,
        "device": str(engine.device),
        "precision": engine.precision,
        "peak_gib": {name: round(gib, 3) for name, gib in peak.items()},
        "useful_fraction": {name: round(share, 3) for name, share in useful.items()},
    }
    for verb in VERBS:
        count = math.prod(shape) * (1 if verb == "encode" else run.geometry.factor * run.settings["usp"] / run.settings["dsp"])
        alone = (before[verb] + after[verb]) / 2
        result[verb] = {
            "mvoxel_per_s": round(count / seconds[verb] / 1e6, 3),
            "bare_mvoxel_per_s": round(count / alone / 1e6, 3),
            "of_bare_network": round(alone / seconds[verb], 3),
        }
    return result


def write_noise(path: Path, run: Any, shape: tuple[int, int, int]) -> None:
    from volumes.write import write_tiff

    record = next(iter(run.record["directions"].values()))
    low, high = record["pooled"]["low"], record["pooled"]["high"]
    generator = np.random.default_rng(0)
    planes = (generator.uniform(low, high, shape[1:]).astype(record["dtype"]) for _ in range(shape[0]))
    write_tiff(path, planes, shape=shape, dtype=record["dtype"])


def end_to_end(run: Any, source: Path, folder: Path, options: Any) -> dict[str, float]:
    """Seconds of each command."""
    from inference import decode, encode, enhance

    store = folder / "c.codes.zarr"
    calls: dict[str, Callable[[], object]] = {
        "enhance": lambda: enhance(run, source, options, output=folder / "e.ome.zarr"),
        "encode": lambda: encode(run, source, store, options),
        "decode": lambda: decode(store, run, options=options, output=folder / "d.ome.zarr"),
    }
    seconds = {}
    for verb in VERBS:
        started = time.perf_counter()
        calls[verb]()
        seconds[verb] = time.perf_counter() - started
    return seconds


def bare_network(run: Any, source: Path, options: Any) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of the network on the tiles of a volume, and how much of its arithmetic is for voxels that are kept."""
    import torch

    from inference.api import enhance_job
    from inference.source import Source

    field = enhance_job(run, Source(run, source, options), options).field
    with torch.inference_mode(), run.engine.computing():
        encoding, kept = bare_encoder(run, field.codes)
        decoding, useful = bare_decoder(run, field)
    return {"encode": encoding, "decode": decoding, "enhance": encoding + decoding}, {"encode": kept, "decode": useful}


def bare_encoder(run: Any, encoder: Any) -> tuple[float, float]:
    import torch

    tiles = math.prod(len(axis) for axis in encoder.axes)
    pixels, _ = encoder.see(tuple(axis[0] for axis in encoder.axes))
    window = torch.from_numpy(pixels).to(run.engine.device)
    stack = window.repeat(encoder.batch, 1, 1, 1)
    seconds = clock(lambda: run.model.pack(stack), run.engine.device.type) * tiles / encoder.batch
    computed = tiles * window.shape[0] * window.shape[2] * window.shape[3]
    return seconds, math.prod(encoder.source.shape) / computed


def bare_decoder(run: Any, field: Any) -> tuple[float, float]:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    kinds: Counter[Any] = Counter()
    for group in field.groups(field.tiles(tuple(slice(0, size) for size in field.shape))):
        tile = group[0]
        kinds[len(group), tuple(b - a for a, b in (side.core for side in tile)), tuple(side.margins for side in tile)] += 1
    width = run.model.G["decoder"].conv_in.in_channels
    seconds, needed, computed = 0.0, 0, 0

    def flops(*arguments: Any) -> int:
        with FlopCounterMode(display=False) as counter:
            run.model.expand(*arguments)
        return int(counter.get_total_flops())

    for (batch, (cz, cy, cx), (mz, my, mx)), count in kinds.items():
        stack = torch.randn(batch, width, cy + sum(my), cx + sum(mx), cz + sum(mz), device=run.engine.device)
        stack = stack.contiguous(memory_format=torch.channels_last_3d)
        seconds += count * clock(lambda s=stack, m=(my, mx, mz): run.model.expand(s, m), run.engine.device.type)
        needed += count * flops(stack[:, :, :cy, :cx, :cz])
        computed += count * flops(stack, (my, mx, mz))
    return seconds, needed / computed


if __name__ == "__main__":
    main()
