"""Time of one training step, side by side: ``python benchmarks/step_time.py [--rounds N] [--device cpu|cuda]``.

Every variant runs in a process of its own, all of them in turn in each round; the result is the median over rounds of the
ratio to the first variant of the same round. Variants: the step as trained; the same with glibc's default handling of freed
memory (CPU); with 16 planes per view instead of all; in bf16. Writes benchmarks/results/step_time_<device>.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

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

    from models.build import build_model
    from models.options import MODEL_OPTIONS
    from training.memory import keep_freed_memory
    from utils.settings.get_args import default_settings
    from utils.settings.make_config import configure_autoencoder, read_autoencoder_yaml

    if variant.get("keep", True):
        keep_freed_memory()
    sizes = {"cropsize": 64, "cropz": 8, "ldmyaml": "vqgan_small", "ngf": 16, "ndf": 16}
    settings = default_settings(
        MODEL_OPTIONS, "ae0iso0tccutvqq", **sizes, perceptual_weight=0.0, adv_planes=variant.get("adv_planes", 0)
    )
    autoencoder = configure_autoencoder(read_autoencoder_yaml(ROOT, settings["ldmyaml"]), settings)
    model = build_model({**settings, "autoencoder": autoencoder}).to(device)
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
    import torch

    names = [name for name in VARIANTS if options.device == "cpu" or "memory" not in name]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name in names:
            command = [sys.executable, __file__, "--variant", name, "--device", options.device]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            seconds[name].append(float(done.stdout.split()[-1]))
    first = seconds[names[0]]
    result = {
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads(), "device": options.device},
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "commit": subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True).strip(),
        "setting": "crop 64, 8 slices, ch 32, ngf 16, ndf 16, batch 1, one generator and one discriminator step",
        "seconds": seconds,
        "ratio_to_as_trained": {
            name: statistics.median(value / reference for value, reference in zip(seconds[name], first, strict=True))
            for name in names
        },
    }
    target = ROOT / "benchmarks" / "results" / f"step_time_{options.device}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps(result, indent=1) + "\n")
    for name in names:
        print(f"{name:32s} {statistics.median(seconds[name]):7.2f} s   x {result['ratio_to_as_trained'][name]:.2f}")


if __name__ == "__main__":
    main()
