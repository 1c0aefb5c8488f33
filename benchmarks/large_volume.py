"""``python benchmarks/large_volume.py --run RUN --texture VOLUME``: a volume larger than memory through infer.py.

The input is made of the texture, mirrored at its borders until it is large enough, with noise in the low bits, so that no tile is
empty and nothing compresses away. infer.py then runs with RLIMIT_DATA: the system refuses it any private memory (heap, tensors,
buffers, thread stacks) beyond the limit, whether touched or not. Pages of mapped files, which the system may drop at any time, do
not count there; the resident set with them is sampled beside it. Started again after an interruption it continues.
"""

from __future__ import annotations

import math
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import ROOT, command_line, write_result
from utils.boxes import reflected
from volumes.open import open_volume
from volumes.write import write_tiff

GIB = 2**30
_FIELDS = {"VmRSS": "resident_with_file_pages", "RssAnon": "resident_private", "VmData": "limited"}


def main() -> None:
    parser = command_line(__doc__)
    add = parser.add_argument
    add("--run", type=Path, required=True, help="a training's folder")
    add("--texture", type=Path, required=True, help="a real volume that no background fills, uint8")
    add("--folder", type=Path, required=True, help="for input and output, which stay there")
    add("--shape", type=int, nargs=3, default=(64, 1450, 1451), metavar=("Z", "Y", "X"), help="of the raw input")
    add("--format", default=".ome.zarr", help="ending of the output")
    add("--dtype", default="float32", help="of the output")
    add("--precision", default="bf16", choices=("32", "bf16"))
    add("--limit", type=float, default=2.0, metavar="GIB", help="RLIMIT_DATA")
    add("--results", type=Path, help="JSON to write")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    source = given.folder / "raw.tif"
    if not source.exists():
        write_tiff(source, textured(given.texture, given.shape), shape=given.shape, dtype="uint16", voxel_um=(0.08, 0.01, 0.01))
    output = given.folder / f"isotropic{given.format}"
    words = [sys.executable, ROOT / "infer.py", "enhance", "--run", given.run, "--input", source, "--output", output]
    words += ["--normalise", "volume", "--dtype", given.dtype, "--precision", given.precision]
    found = {**watched([str(word) for word in words], given.limit), **described(output)}
    head = {"run": given.run.name, "texture": given.texture.name, "precision": given.precision}
    write_result(given.results or given.folder / "result.json", {**head, **found})


def textured(path: Path, shape: tuple[int, int, int]) -> Iterator[np.ndarray]:
    """Planes of a uint8 volume mirrored to a shape, times 64, with six bits of noise."""
    texture = open_volume(path)[:]
    planes, rows, columns = (reflected((0, size), side) for size, side in zip(shape, texture.shape, strict=True))
    generator = np.random.default_rng(0)
    for z in planes:
        plane = texture[z][np.ix_(rows, columns)].astype(np.uint16)
        yield plane * 64 + generator.integers(0, 64, plane.shape, dtype=np.uint16)


def watched(words: list[str], limit: float) -> dict[str, Any]:
    """Runs a command under the limit; its peaks in GiB, and the seconds that it took."""
    started, most = time.monotonic(), dict.fromkeys(_FIELDS, 0.0)
    size = int(limit * GIB)
    with subprocess.Popen(words, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (size, size))) as process:
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        while process.poll() is None:
            with suppress(OSError):  # it has just ended
                for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                    name, _, value = line.partition(":")
                    if name in _FIELDS:
                        most[name] = max(most[name], int(value.split()[0]) / 2**20)
            time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"infer.py ended with {process.returncode}; the same command goes on")
    peaks = {name: round(most[field], 3) for field, name in _FIELDS.items()}
    return {"limit_gib": limit, "peak_gib": peaks, "seconds_of_the_last_attempt": round(time.monotonic() - started, 1)}


def described(output: Path) -> dict[str, Any]:
    """Size of an output, and what says that it was computed: no tile filled, no plane flat."""
    volume = open_volume(output)
    depth, height, width = volume.shape
    planes = np.linspace(0, depth - 1, 9).astype(int)
    deviations = [float(volume[int(z) : int(z) + 1, : min(height, 512), : min(width, 512)].std()) for z in planes]
    return {
        "shape": list(volume.shape),
        "dtype": volume.dtype.name,
        "gigabytes": math.prod(volume.shape) * volume.dtype.itemsize / 1e9,
        "work": volume.attributes["work"],
        "least_standard_deviation_of_a_plane": min(deviations),
    }


if __name__ == "__main__":
    main()
