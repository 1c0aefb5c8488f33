"""What benchmarks share: what a result was measured on, where it is written, a small model to measure."""

from __future__ import annotations

import json
import logging
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def machine() -> dict[str, Any]:
    """Processor or GPU, threads, versions and commit: plain JSON for the head of a result."""
    import torch

    words = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False).stdout.strip()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    threads = torch.get_num_threads()
    return {
        "device": device,
        "threads": threads,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def write_result(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a result as JSON, under what it was measured on, and shows it."""
    text = json.dumps({**machine(), **content}, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n")
    logging.info("%s\nwritten: %s", text, path)


def small_model(for_training: bool = True, **changes: Any) -> Any:
    """The primary model at the widths of vqgan_small (ch 32, ngf 16, ndf 16) on crops of 64, fresh and without LPIPS."""
    from models.build import build_model
    from models.options import MODEL_OPTIONS
    from utils.settings.autoencoder import configure_autoencoder, read_autoencoder_yaml
    from utils.settings.reading import default_settings

    sizes = {"cropsize": 64, "cropz": 8, "ldmyaml": "vqgan_small", "ngf": 16, "ndf": 16, "perceptual_weight": 0.0}
    settings = default_settings(MODEL_OPTIONS, "ae0iso0tccutvqq", **sizes, **changes)
    autoencoder = configure_autoencoder(read_autoencoder_yaml(ROOT, settings["ldmyaml"]), settings)
    return build_model({**settings, "autoencoder": autoencoder}, for_training)
