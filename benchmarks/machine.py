"""What benchmarks share: the clock, processes of their own, a small model, what a result was measured on, where it is written."""

import argparse
import json
import logging
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def command_line(doc: str | None) -> argparse.ArgumentParser:
    """A parser that shows a benchmark's description as it stands; messages go to the terminal."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    return argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)


def machine() -> dict[str, Any]:
    """Processor or GPU, threads, versions and commit: plain JSON for the head of a result."""
    import torch

    words = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False).stdout.strip()
    processor = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), processor)
    return {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else processor,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit,
    }


def clock(call: Callable[[], object], device: str, calls: int = 3) -> float:
    """The median of some calls after one for warming up, in seconds."""
    import torch

    found = []
    for _ in range(calls + 1):
        started = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return statistics.median(found[1:])


def in_turn(script: str, variants: Iterable[Any], rounds: int, *words: object) -> dict[Any, list[Any]]:
    """What a script answers to ``--variant``, each time in a process of its own; all variants in turn in each round."""
    found: dict[Any, list[Any]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, answers in found.items():
            command = [sys.executable, script, *map(str, words), "--variant", str(name)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            answers.append(json.loads(done.stdout.splitlines()[-1]))
            logging.info("%s: %s", name, json.dumps(answers[-1]))
    return found


def answer(content: Any) -> None:
    """The other end of ``in_turn``: JSON on the last line that is written."""
    sys.stdout.write("\n" + json.dumps(content) + "\n")


def write_result(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a result as JSON, under what it was measured on, and shows it."""
    text = json.dumps({**machine(), **content}, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
    logging.info("%s\nwritten: %s", text, path)


def fresh_model(for_training: bool = True, **settings: Any) -> Any:
    """The primary model of such settings, fresh and without the weights of LPIPS."""
    from experiment.autoencoder import configure_autoencoder, read_autoencoder_yaml
    from experiment.reading import default_settings
    from models.build import build_model
    from models.options import MODEL_OPTIONS

    complete = default_settings(MODEL_OPTIONS, "ae0iso0tccutvqq", **settings)
    autoencoder = configure_autoencoder(read_autoencoder_yaml(ROOT, complete["ldmyaml"]), complete)
    return build_model({**complete, "autoencoder": autoencoder}, for_training, frozen=False)
