"""One training step of the primary model under two schedules, side by side: ``python benchmarks/step.py [--device cuda]``.

The schedules are those of benchmarks/schedules.py, in one process in turn in each round; the result is the
median over rounds of the ratio to the first one of the same round. Ours: in 32 bits with all planes, with 16 planes per view, and
that in bf16. Of each: seconds (median, least and most), FLOPs, the rate achieved, and the peak memory of a process that makes no
other step. Then each part alone, forward and backward.

``--busy``: the step of env/jsn/mesospim.json on the threads that utils.threads leaves, on all threads, and on one, with and
without a program beside it that keeps one processor busy; each in a process of its own. Writes
benchmarks/results/step_<device>.json or busy_cpu.json.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import RESULTS, ROOT, answer, command_line, in_turn, write_result

SCHEDULES: dict[str, dict[str, Any]] = {
    "reference": {"of": "reference"},
    "ours": {"of": "ours"},
    "ours, 16 planes": {"of": "ours", "planes": 16},
    "ours, 16 planes, bf16": {"of": "ours", "planes": 16, "bf16": True},
}
SHORT = {"cropsize": 32, "cropz": 4, "ldmyaml": "vqgan_small", "ngf": 16, "ndf": 16}
Call = Callable[[], object]


def main() -> None:
    parser = command_line(__doc__)
    add = parser.add_argument
    add("--device", default="cpu", choices=("cpu", "cuda"))
    add("--rounds", type=int, default=5)
    add("--cropsize", type=int, default=64, help="planes along every side; as many eighths are slices")
    add("--short", action="store_true", help="small widths, a crop of 32, two rounds: whether it runs")
    add("--busy", action="store_true")
    add("--compile", action="store_true", help="also ours with torch.compile of net_g and net_d")
    add("--results", type=Path, help="JSON to write")
    add("--variant", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.busy:
        return beside_a_busy_processor(given)
    sizes: dict[str, Any] = {"cropsize": given.cropsize, "cropz": given.cropsize // 8, **(SHORT if given.short else {})}
    if given.compile:
        SCHEDULES["ours, 16 planes, bf16, compiled"] = {**SCHEDULES["ours, 16 planes, bf16"], "compiled": True}
    rounds = 2 if given.short else given.rounds
    if given.variant:
        return answer(peak_memory(given.device, sizes, given.variant))
    found = side_by_side(given.device, sizes, rounds) | {"parts": parts(given.device, sizes, rounds)}
    words = [
        "--device",
        given.device,
        "--cropsize",
        given.cropsize,
        *(["--short"] if given.short else []),
        *(["--compile"] if given.compile else []),
    ]
    memory = in_turn(__file__, SCHEDULES, 1, *words)
    for name, schedule in found["schedules"].items():
        schedule["peak_gib"] = memory[name][0]
    side = "" if sizes["cropsize"] == 64 else f"_{sizes['cropsize']}"
    results = given.results or RESULTS / f"step_{given.device}{side}.json"
    write_result(results, {"sizes": sizes, "rounds": rounds, **found})


def schedules(device: str, sizes: dict[str, Any], names: Iterable[str] = SCHEDULES) -> dict[str, Call]:
    """One step of each; the reference has a model of its own, as weights lie in memory otherwise."""
    import torch

    from benchmarks.schedules import Step
    from utils.machine import keep_freed_memory

    keep_freed_memory()
    steps = {kind: Step(device, **sizes) for kind in {_model_of(name) for name in names}}
    for (of, compiled), step in steps.items():
        if of == "reference":
            step.contiguous()
        if compiled:
            step.model.G["net_g"].compile()
            step.model.D["net_d"].compile()

    def call(of: str, planes: int = 0, bf16: bool = False, compiled: bool = False) -> None:
        step = steps[of, compiled]
        step.model.settings["adv_planes"] = planes
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            getattr(step, of)()

    return {name: lambda how=SCHEDULES[name]: call(**how) for name in names}  # type: ignore[misc]


def _model_of(name: str) -> tuple[str, bool]:
    """Schedules of one kind share a model."""
    return SCHEDULES[name]["of"], SCHEDULES[name].get("compiled", False)


def side_by_side(device: str, sizes: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Seconds, FLOPs and ratios of the schedules."""
    calls = schedules(device, sizes)
    compiled = {name: call for name, call in calls.items() if _model_of(name)[1]}  # whose FLOPs are those of before
    flops = {name: counted(call) for name, call in calls.items() if name not in compiled}
    flops |= dict.fromkeys(compiled, flops["ours, 16 planes, bf16"])
    for call in compiled.values():
        call()
    seconds = timed(calls, rounds, device)
    first = seconds["reference"]
    return {
        "schedules": {name: said(seconds[name], flops[name]) for name in calls},
        "times_faster_than_reference": {
            name: statistics.median(reference / value for value, reference in zip(values, first, strict=True))
            for name, values in seconds.items()
        },
    }


def parts(device: str, sizes: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Forward and backward of each network alone, in 32 bits and in bf16."""
    import torch

    from benchmarks.schedules import Step
    from networks.views import six_views

    step = Step(device, **sizes)
    model, side = step.model, sizes["cropsize"]
    with torch.no_grad():
        out = model.generate(step.batch)
        stack = model.restack(out.code.latent)
        planes = torch.cat(six_views(out.volume, 16))
        slices = out.recon
    networks: dict[str, Callable[[], Any]] = {
        "encoder": lambda: model.G["encoder"](slices).latent,
        "decoder": lambda: model.reconstruct(out.code.latent),
        "net_g": lambda: model.expand(stack),
        "net_d, 16 planes per view": lambda: model.D["net_d"](planes),
        "discriminator": lambda: model.D["discriminator"](slices),
        "LPIPS": lambda: model.perceptual(slices, slices.clone().requires_grad_()),
    }

    def call(network: Callable[[], Any], bf16: bool) -> None:
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            network().float().sum().backward()

    calls: dict[str, Call] = {
        name + suffix: lambda network=network, bf16=bf16: call(network, bf16)  # type: ignore[misc]
        for name, network in networks.items()
        for suffix, bf16 in (("", False), (", bf16", True))
    }
    flops = {name: counted(call) for name, call in calls.items()}
    seconds = timed(calls, rounds, device)
    return {name: said(seconds[name], flops[name]) for name in calls} | {"planes": planes.shape[0], "side": side}


def timed(calls: dict[str, Call], rounds: int, device: str) -> dict[str, list[float]]:
    """Seconds of every call in every round; they were called once before."""
    import torch

    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            if device == "cuda":
                torch.cuda.synchronize()
            started = time.perf_counter()
            call()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def counted(call: Call) -> int:
    """FLOPs of a call; two for a multiplication with addition."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def said(seconds: list[float], flops: int) -> dict[str, Any]:
    median = statistics.median(seconds)
    return {
        "seconds": {"median": round(median, 4), "least": round(min(seconds), 4), "most": round(max(seconds), 4)},
        "gflop": round(flops / 1e9, 1),
        "gflop_per_s": round(flops / median / 1e9, 1),
    }


def peak_memory(device: str, sizes: dict[str, Any], variant: str) -> float:
    """GiB: of the device, on a CPU of the process."""
    import torch

    call = schedules(device, sizes, [variant])[variant]
    for _ in range(2):
        call()
    if device == "cuda":
        return round(torch.cuda.max_memory_allocated() / 2**30, 2)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


# A busy machine ----------------------------------------------------------------------------------------------------------

THREADS = {"fitted": {}, "one": {"OMP_NUM_THREADS": "1"}, "all": {"OMP_NUM_THREADS": str(os.cpu_count())}}


def beside_a_busy_processor(given: argparse.Namespace) -> None:
    """Seconds per step, quiet and not."""
    if given.variant:
        return answer(steps_of_mesospim())
    found: dict[str, dict[str, list[float]]] = {"quiet": {}, "one processor busy": {}}
    for _ in range(given.rounds):
        for state, seconds in found.items():
            with busy_program() if "busy" in state else quiet():
                for name, environment in THREADS.items():
                    seconds.setdefault(name, []).append(alone(environment))
    ratios = {
        state: {n: round(statistics.median(a / b for a, b in zip(v, of["one"], strict=True)), 3) for n, v in of.items()}
        for state, of in found.items()
    }
    results = given.results or RESULTS / "busy_cpu.json"
    write_result(results, {"settings": "env/jsn/mesospim.json", "seconds_per_step": found, "times_those_of_one_thread": ratios})


def alone(environment: dict[str, str]) -> float:
    own = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, __file__, "--busy", "--variant", "steps"]
    done = subprocess.run(command, env=own | environment, stdout=subprocess.PIPE, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


@contextmanager
def busy_program() -> Any:
    program = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        program.kill()
        program.wait()


@contextmanager
def quiet() -> Any:
    yield


def steps_of_mesospim(steps: int = 8, enough: float = 30) -> float:
    """The median step after the first one, of eight or of as many as half a minute holds."""
    import torch

    from benchmarks.schedules import Step
    from utils.threads import Threads

    settings = json.loads((ROOT / "env" / "jsn" / "mesospim.json").read_text())["train"]
    settings = {key: value for key, value in settings.items() if key not in ("env", "models")}
    threads, step = Threads(), Step("cpu", **settings)
    step.model.perceptual = None
    seconds: list[float] = []
    while len(seconds) <= steps and sum(seconds) < enough:
        started = time.perf_counter()
        threads.fit()
        with torch.autocast("cpu", torch.bfloat16):
            step.ours()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:] or seconds)


if __name__ == "__main__":
    main()
