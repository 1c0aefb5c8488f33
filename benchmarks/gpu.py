"""What a GPU does with all of this, in one call: ``bash benchmarks/gpu.sh [--data FOLDER] [--device cpu] [--short]``.

In this order, each with the time that is left of ``--minutes``: the tests of tests/gpu; a training step, eager and compiled,
crops of 64 and 128; a training of three minutes by env/jsn/fib25_lateral.json on FOLDER/fibsem_fib25_train.tif thinned 8x,
applied to FOLDER/fibsem_fib25_dev.tif and judged; voxels per second of enhance, encode and decode. Into one folder, ``--output``
($OUT, or benchmarks/results/gpu): JSON, the report's pictures, what each stage said, summary.json. What was left out is said.
"""

import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import RESULTS, ROOT, command_line, machine

log = logging.getLogger(__name__)
TRAIN, DEV, SIDE, FACTOR = "fibsem_fib25_train.tif", "fibsem_fib25_dev.tif", 248, 8
CODES = (  # the published widths; weights do not matter for throughput
    "--env local --dataset fib25 --nm 11 --cropsize 64 --cropz 8 --perceptual_weight 0 --crops_per_volume 2 --n_epochs 1 "
    "--epoch_save 1 --workers 0"
)


@dataclass
class Kit:
    """Stages one after the other, none beyond the end.

    Attributes:
        output: the folder of results.
        end: time.monotonic() by which all is done.
        only: stages wanted; None: all.
        stages: what came of each, by name.
    """

    output: Path
    end: float
    only: list[str] | None = None
    stages: dict[str, Any] = field(default_factory=dict)

    def run(self, name: str, words: str | list[Any], *, least: float = 10, **environment: str) -> bool:
        """A script in a process of its own; True: it ended well. One for which too little time is left is left out."""
        if self.only is not None and name not in self.only:
            return self.skip(name, "not asked for")
        left = self.end - time.monotonic()
        if left < least:
            return self.skip(name, f"{left:.0f} s are left, it takes at least {least:.0f}")
        command = [sys.executable, *map(str, words.split() if isinstance(words, str) else words)]
        log.info("%s: %s", name, " ".join(command[1:]))
        started = time.monotonic()
        with (self.output / f"{name}.log").open("w") as said:
            try:
                how = {"stdout": said, "stderr": subprocess.STDOUT, "cwd": ROOT, "env": os.environ | environment}
                code = subprocess.run(command, timeout=left, check=False, **how).returncode  # type: ignore[call-overload]
            except subprocess.TimeoutExpired:
                code = None
        self.stages[name] = {"code": code, "seconds": round(time.monotonic() - started, 1)}
        if code != 0:
            end = (self.output / f"{name}.log").read_text().splitlines()[-5:]
            log.warning("%s: %s\n  %s", name, "out of time" if code is None else f"ended with {code}", "\n  ".join(end))
        return code == 0

    def skip(self, name: str, why: str) -> bool:
        self.stages[name] = {"skipped": why}
        return False

    def finish(self) -> None:
        """Writes summary.json, and says what was left out."""
        (self.output / "summary.json").write_text(json.dumps({**machine(), "stages": self.stages}, indent=1) + "\n")
        for name, stage in self.stages.items():
            log.info("%s: %s", name, f"SKIPPED, {stage['skipped']}" if "skipped" in stage else stage)
        log.info("all of it: %s", self.output)


def main() -> None:
    parser = command_line(__doc__)
    add = parser.add_argument
    add("--device", default="cuda", choices=("cuda", "cpu"))
    add("--data", type=Path, metavar="FOLDER", help=f"with {TRAIN} and {DEV}")
    add("--output", type=Path, default=Path(os.environ.get("OUT", RESULTS / "gpu")))
    add("--minutes", type=float, default=9, help="after which all is done")
    add("--short", action="store_true", help="everything small: whether it runs")
    add("--only", nargs="+", metavar="STAGE", help="these stages alone")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    kit = Kit(given.output.resolve(), time.monotonic() + 60 * given.minutes - 5, given.only)
    short = ["--short"] if given.short else []
    tests = ["tests/gpu"] if given.device == "cuda" else ["tests/gpu/test_gpu_arithmetic.py"]
    options = ["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *tests]
    kit.run("tests", options, **({} if given.device == "cuda" else {"ISOSCOPE_GPU_TESTS_ON": "cpu"}))
    for side in (64, 128) if not short else (64,):
        compiled = ["--compile"] if given.device == "cuda" else []
        words = ["benchmarks/step.py", "--device", given.device, "--cropsize", side, *short, *compiled]
        kit.run(f"step_{side}", [*words, "--results", kit.output / f"step_{side}.json"])
    if given.device == "cpu":
        kit.skip("step_compiled", "torch.compile pays on a GPU alone")
    with tempfile.TemporaryDirectory() as name:
        on_a_cube(kit, given, Path(name))
    kit.finish()


def on_a_cube(kit: Kit, given: Any, folder: Path) -> None:
    """Training, its report, and throughput of what it made."""
    stages = ("train", "enhance", "evaluate", "throughput_lateral", "train_codes", "throughput_codes")
    missing = [name for name in (TRAIN, DEV) if given.data is None or not (given.data / name).is_file()]
    if missing:
        for name in stages:
            kit.skip(name, f"no {' and '.join(missing)} in --data")
        return
    places = ["--data_root", folder / "data", "--logs", folder / "logs"]
    write_sections(given.data, folder, 64 if given.short else SIDE)
    kit.run("prepare", ["prepare.py", "volumes", "--input", folder / "train.tif", "--dataset", "fib25", "--link", *places[:2]])
    size = "--n_epochs 1 --crops_per_volume 8 --epoch_save 1" if given.short else "--max_time 00:03:00"
    wide = "--ngf 64 --fine_width 16"  # a GPU has the time
    train = ["train.py", "--jsn", "fib25_lateral", "--prj", "lateral", *places, *size.split(), *wide.split()]
    run, volume = folder / "logs" / "fib25" / "lateral", folder / "enhanced.ome.tif"
    if kit.run("train", train, least=30):
        apply = ["infer.py", "enhance", "--run", run, "--input", folder / "dev.tif", "--output", volume, "--device", given.device]
        if kit.run("enhance", apply):
            judge = ["evaluate.py", "--reconstruction", volume, "--truth", folder / "truth.tif", "--input", folder / "dev.tif"]
            where = ["--input-position", "pick", "--factor", FACTOR, "--output", folder / "report"]
            if kit.run("evaluate", [*judge, *where]):
                for path in (folder / "report").iterdir():
                    if path.suffix in (".json", ".png", ".jpg", ".html"):
                        shutil.copy(path, kit.output)
        measure_throughput(kit, given, run, "lateral")
    if kit.run("train_codes", ["train.py", "--jsn", "aisr", "--prj", "codes", *places, *CODES.split()]):
        measure_throughput(kit, given, folder / "logs" / "fib25" / "codes", "codes")


def measure_throughput(kit: Kit, given: Any, run: Path, name: str) -> None:
    shape = (4, 64, 64) if given.short else (64, 512, 512)
    words = ["benchmarks/throughput.py", "--run", run, "--device", given.device, "--shape", *shape]
    scales = ["--scales", 1] if given.short else ["--scales", 1, 4]
    kit.run(f"throughput_{name}", [*words, *scales, "--results", kit.output / f"throughput_{name}.json"])


def write_sections(data: Path, folder: Path, side: int) -> None:
    """The training cube thinned, and of the other one the truth and the same."""
    from volumes.open import open_volume
    from writing.write import write_tiff

    whole, judged = open_volume(data / TRAIN)[:], open_volume(data / DEV)[:side, :side, :side]
    thinned = {"train": whole[FACTOR // 2 :: FACTOR], "dev": judged[FACTOR // 2 :: FACTOR], "truth": judged}
    for name, values in thinned.items():
        write_tiff(folder / f"{name}.tif", values)


if __name__ == "__main__":
    main()
