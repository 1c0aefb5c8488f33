"""Time of one training step, side by side: ``python benchmarks/step_time.py [--rounds N] [--device cpu|cuda]``.

Every variant runs in a process of its own, all of them in turn in each round; the result is the median over rounds of the
ratio to the first variant of the same round. Variants: the step as trained; the same with glibc's default handling of freed
memory (CPU); with 16 planes per view instead of all; in bf16. Writes benchmarks/results/step_time_<device>.json.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import RESULTS, small_model, write_result

VARIANTS = {
    "as trained": {},
    "memory returned to the system": {"keep": False},
    "16 planes per view": {"adv_planes": 16},
    "bf16": {"bf16": True},
}
STEPS = 4


def measure(variant: dict, device: str) -> float:
    """Seconds per step, the median of a few after one that warms up."""
    import torch

    from training.memory import keep_freed_memory

    if variant.get("keep", True):
        keep_freed_memory()
    model = small_model(adv_planes=variant.get("adv_planes", 0)).to(device)
    optimizers = model.configure_optimizers()[0]
    volume = torch.rand(1, 1, 64, 64, 8, device=device) * 2 - 1
    times = []
    for _ in range(STEPS + 1):
        start = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=variant.get("bf16", False)):
            out = model.generate({"img": [volume]})
            descend(optimizers[0], model.weigh(model.generator_losses(out)))
            descend(optimizers[1], model.weigh(model.discriminator_losses(out.detach())))
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def descend(optimizer, loss) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--variant", choices=VARIANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.variant:
        print(measure(VARIANTS[options.variant], options.device))
        return
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    names = [name for name in VARIANTS if options.device == "cpu" or "memory" not in name]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name in names:
            command = [sys.executable, __file__, "--variant", name, "--device", options.device]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            seconds[name].append(float(done.stdout.split()[-1]))
    ratios = {
        name: statistics.median(value / reference for value, reference in zip(values, seconds[names[0]], strict=True))
        for name, values in seconds.items()
    }
    setting = "crop 64, 8 slices, ch 32, ngf 16, ndf 16, batch 1, one generator and one discriminator step"
    content = {"on": options.device, "setting": setting, "seconds": seconds, "ratio_to_as_trained": ratios}
    write_result(RESULTS / f"step_time_{options.device}.json", content)


if __name__ == "__main__":
    main()
