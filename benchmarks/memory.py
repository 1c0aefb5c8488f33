"""Memory of a training step of the primary model by size of crop and batch: ``python benchmarks/memory.py``.

Nothing is computed: tensors have a shape only, and their bytes are counted while they are alive (weights, gradients, Adam's
moments, activations; not what a convolution needs for itself, nor Python: the process of the first row has a peak of 3.5 GiB on a
CPU, benchmarks/results/step_cpu.json). Widths are those of aisr.json; 16 planes per view or all; 32 bits or bf16. ``recomputed``:
with ``--recompute``. Writes benchmarks/results/memory.json.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch._subclasses import FakeTensorMode

from benchmarks.machine import RESULTS, command_line, write_result
from benchmarks.schedules import Step
from utils.machine import Alive

CROPS, BATCHES = (64, 128, 192, 256), (1, 2, 4, 8)


def step_gib(crop: int, batch: int, planes: int, bf16: bool, recomputed: bool) -> float:
    """GiB at the most during the second step of the published widths."""
    with FakeTensorMode(), Alive() as alive:
        step = Step("cpu", cropsize=crop, cropz=crop // 8, batch_size=batch, adv_planes=planes, recompute=recomputed)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            step.ours()
            step.ours()
        return alive.most / 2**30


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--crops", type=int, nargs="+", default=CROPS)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--results", type=Path, default=RESULTS / "memory.json")
    given = parser.parse_args()
    table = {}
    for planes, bf16, recomputed in ((0, False, False), (16, False, False), (16, True, False), (16, True, True)):
        name = f"{planes or 'all'} planes, {'bf16' if bf16 else '32 bits'}{', recomputed' if recomputed else ''}"
        table[name] = {
            f"crops of {crop}": {
                f"batch {batch}": round(step_gib(crop, batch, planes, bf16, recomputed), 2) for batch in given.batches
            }
            for crop in given.crops
        }
    write_result(given.results, {"counted_not_measured": "GiB of tensors alive", "gib": table})


if __name__ == "__main__":
    main()
