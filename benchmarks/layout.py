"""``python benchmarks/layout.py``: what folding batch norms, channels last and bf16 bring when a run is applied.

One encoding tile and one decoding tile at the widths of vqgan_small (ch 32, ngf 16), every variant in turn in each round of one
process. The result is the median over rounds of the ratio to the plain model in float32 of the same round, in time of this
process's threads, which other work on the machine disturbs less than the clock on the wall.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import RESULTS, small_model, write_result

LATENTS, HALO = 16, ((4, 4), (4, 4), (3, 3))  # a decoding tile of 128³ voxels
SLICES, SIDE = 8, 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--latents", type=int, default=LATENTS, help="side of the decoding tile's core")
    parser.add_argument("--results", type=Path, default=RESULTS / "layout_cpu.json")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    write_result(given.results, {"rounds": given.rounds, **ratios(variants(given.latents), given.rounds)})


def variants(latents: int) -> dict[str, dict[str, Callable[[], Any]]]:
    """Calls of the encoder and of the volume generator, plain and as inference uses them, in both precisions."""
    import torch

    from models.build import make_fast

    models = {
        "plain": small_model(for_training=False).requires_grad_(False).eval(),
        "folded, channels last": make_fast(small_model(for_training=False)),
    }
    slices = torch.rand(SLICES, 1, SIDE, SIDE) * 2 - 1
    stack = torch.randn(1, 4, *(latents + a + b for a, b in HALO))
    dense = {"plain": stack, "folded, channels last": stack.contiguous(memory_format=torch.channels_last_3d)}

    def call(model: Any, part: str, precision: str, name: str) -> Callable[[], Any]:
        def run() -> Any:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                return model.pack(slices) if part == "encode" else model.expand(dense[name], HALO)

        return run

    return {
        part: {f"{name}, {p}": call(model, part, p, name) for p in ("32", "bf16") for name, model in models.items()}
        for part in ("encode", "decode")
    }


def ratios(calls: dict[str, dict[str, Callable[[], Any]]], rounds: int) -> dict[str, Any]:
    """Median over rounds of the ratio to the first variant, after a round that warms up."""
    found = {}
    for part, named in calls.items():
        seconds: dict[str, list[float]] = {name: [] for name in named}
        for _ in range(rounds + 1):
            for name, run in named.items():
                started = time.process_time()
                run()
                seconds[name].append(time.process_time() - started)
        first = next(iter(seconds.values()))
        found[part] = {
            name: round(statistics.median(a / b for a, b in zip(values[1:], first[1:], strict=True)), 3)
            for name, values in seconds.items()
        }
    return found


if __name__ == "__main__":
    main()
