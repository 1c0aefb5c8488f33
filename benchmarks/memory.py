"""Memory of a training step of the primary model by size of crop and batch: ``python benchmarks/memory.py``.

Nothing is computed: tensors have a shape only, and their bytes are counted while they are alive (weights, gradients, Adam's
moments, activations; not what a convolution needs for itself, nor Python: the process of the first row has a peak of 3.5 GiB on a
CPU, benchmarks/results/step_cpu.json). Widths are those of aisr.json; 16 planes per view or all; 32 bits or bf16. ``recomputed``:
with ``--recompute``. Writes benchmarks/results/memory.json.
"""

import sys
import weakref
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.machine import RESULTS, command_line, write_result
from benchmarks.schedules import Step

CROPS, BATCHES = (64, 128, 192, 256), (1, 2, 4, 8)


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors that operations make, as long as anything holds them.

    Attributes:
        now, most: bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


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
