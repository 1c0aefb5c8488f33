"""A step of training, or of applying a run, side by side: ``python benchmarks/step_time.py [--what train|encode|decode]``.

Every variant runs in a process of its own, all of them in turn in each round; the result is the median over rounds of the
ratio to the first variant of the same round. A network has the widths of vqgan_small (ch 32, ngf 16, ndf 16). Writes
benchmarks/results/step_time_<device>.json, or with _encode and _decode before the ending. Variants of

train    one generator and one discriminator step, crop 64, 8 slices, batch 1: as trained; with glibc's default handling of freed
         memory (CPU); with 16 planes per view instead of all; in bf16
encode   a tile of 8 slices of 128x128: plain; with batch norms folded and channels last, as inference uses it; both in bf16
decode   likewise a tile of 128x128x128 voxels
"""

import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import RESULTS, answer, clock, command_line, in_turn, small_model, write_result

APPLIED: dict[str, dict[str, Any]] = {
    "plain": {},
    "folded, channels last": {"fast": True},
    "plain, bf16": {"bf16": True},
    "folded, channels last, bf16": {"fast": True, "bf16": True},
}
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "train": {
        "as trained": {},
        "memory returned to the system": {"keep": False},
        "16 planes per view": {"adv_planes": 16},
        "bf16": {"bf16": True},
    },
    "encode": APPLIED,
    "decode": APPLIED,
}
LATENTS, HALO = 16, ((4, 4), (4, 4), (3, 3))  # a decoding tile of 128³ voxels


def training(device: str, keep: bool = True, adv_planes: int = 0) -> Callable[[], object]:
    """A step of both optimizers."""
    import torch

    from utils.machine import keep_freed_memory

    if keep:
        keep_freed_memory()
    model = small_model(adv_planes=adv_planes).to(device)
    generator, discriminator = model.configure_optimizers()[0]
    volume = torch.rand(1, 1, 64, 64, 8, device=device) * 2 - 1

    def descend(optimizer: Any, loss: Any) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def step() -> None:
        out = model.generate({"img": [volume]})
        descend(generator, model.weigh(model.generator_losses(out)))
        descend(discriminator, model.weigh(model.discriminator_losses(out.detach())))

    return step


def applying(what: str, device: str, fast: bool = False) -> Callable[[], object]:
    """A tile through the encoder, or through the volume generator."""
    import torch

    from models.build import make_fast

    model = small_model(for_training=False).requires_grad_(False).eval().to(device)
    model = make_fast(model) if fast else model
    if what == "encode":
        slices = torch.rand(8, 1, 128, 128, device=device) * 2 - 1
        return lambda: model.pack(slices)
    stack = torch.randn(1, 4, *(LATENTS + a + b for a, b in HALO), device=device)
    stack = stack.contiguous(memory_format=torch.channels_last_3d) if fast else stack
    return lambda: model.expand(stack, HALO)


def measure(what: str, device: str, bf16: bool = False, **variant: Any) -> float:
    """Seconds of one variant."""
    import torch

    call = training(device, **variant) if what == "train" else applying(what, device, **variant)
    with torch.set_grad_enabled(what == "train"), torch.autocast(device, torch.bfloat16, enabled=bf16):
        return clock(call, device)


def main() -> None:
    parser = command_line(__doc__)
    parser.add_argument("--what", choices=VARIANTS, default="train")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--results", type=Path, help="JSON to write")
    parser.add_argument("--variant", help="of which only the seconds are said")
    given = parser.parse_args()
    variants = VARIANTS[given.what]
    if given.variant:
        return answer(measure(given.what, given.device, **variants[given.variant]))
    names = [name for name in variants if given.device == "cpu" or "memory" not in name]
    seconds = in_turn(__file__, names, given.rounds, "--what", given.what, "--device", given.device)
    ratios = {
        name: statistics.median(value / reference for value, reference in zip(values, seconds[names[0]], strict=True))
        for name, values in seconds.items()
    }
    ending = "" if given.what == "train" else f"_{given.what}"
    content = {"what": given.what, "on": given.device, "seconds": seconds, f"ratio_to_{names[0].replace(' ', '_')}": ratios}
    write_result(given.results or RESULTS / f"step_time_{given.device}{ending}.json", content)


if __name__ == "__main__":
    main()
