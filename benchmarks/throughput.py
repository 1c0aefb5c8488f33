"""``python benchmarks/throughput.py --run RUN``: voxels per second of enhance, encode and decode against the bare network.

End to end means from a volume on disc to a finished OME-Zarr: reading, normalisation, halos, rounding, compression, writing and
the pyramid. The bare network makes the same passes, halos included, on tensors that lie on the device already: each command's
calls of the network are counted by their shapes, and one of each kind is timed afterwards. Voxels are those of the isotropic
output, and of the raw input for encode. Volumes of 1, 4 and 16 times the size run in a process each, so that peak memory is that
of the size. The input is noise, of which no tile can be skipped and nothing compresses away. With OMP_NUM_THREADS=1 the seconds
of processor time are those of one core also where the machine is busy.

``--limit GIB`` is RLIMIT_DATA: the system refuses such a process any private memory (heap, tensors, buffers, thread stacks)
beyond it, whether touched or not; pages of mapped files, which the system may drop at any time, do not count there. With
``--shape 64 1450 1451 --scales 1 --limit 2`` an output of 4.3 GB is larger than the memory that there is for it.
"""

import argparse
import math
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import RESULTS, answer, clock, command_line, in_turn, write_result

SCALES = (1, 4, 16)


def main() -> None:
    parser = command_line(__doc__)
    add = parser.add_argument
    add("--run", type=Path, required=True, help="a training's folder; its weights do not matter, its widths do")
    add("--shape", type=int, nargs=3, default=(16, 256, 256), metavar=("Z", "Y", "X"), help="raw voxels at 1x")
    add("--scales", type=int, nargs="+", default=SCALES, help="times the raw voxels, square numbers")
    add("--limit", type=float, metavar="GIB", help="private memory that each process may have")
    add("--folder", type=Path, help="for the volumes, which are removed again; by default the system's for temporary files")
    add("--tile", type=int, help="as of infer.py")
    add("--batch", type=int, help="as of infer.py")
    add("--device", help="as of infer.py")
    add("--precision", choices=("32", "bf16"), help="as of infer.py")
    add("--results", type=Path, help="JSON to write; benchmarks/results/throughput_DEVICE_PRECISION.json by default")
    add("--variant", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.variant:
        return answer(measure(given))
    sizes = [size for (size,) in in_turn(__file__, given.scales, 1, *sys.argv[1:]).values()]
    first, largest = sizes[0]["peak_gib"], sizes[-1]
    summary = {
        "end_to_end_over_bare_network": {verb: found.get("of_bare_network") for verb, found in largest["verbs"].items()},
        "mvoxel_per_s": {verb: found["mvoxel_per_s"] for verb, found in largest["verbs"].items()},
        "memory_over_that_at_1x": {name: [round(s["peak_gib"][name] / first[name], 3) for s in sizes] for name in first},
    }
    results = given.results or RESULTS / f"throughput_{largest['device'].partition(':')[0]}_{largest['precision']}.json"
    write_result(results, {"run": given.run.name, **summary, "sizes": sizes})


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """One size: the volume grows along y and x."""
    import torch

    from inference import Engine, Options, Run, decode, encode, enhance
    from utils.machine import keep_freed_memory

    keep_freed_memory()  # as infer.py
    if given.limit:
        resource.setrlimit(resource.RLIMIT_DATA, (int(given.limit * 2**30),) * 2)
    engine = Engine.choose(given.device, given.precision)
    run = Run.load(given.run, engine=engine)
    options = Options(tile=given.tile, batch=given.batch)
    side = math.isqrt(given.variant)
    shape = (given.shape[0], given.shape[1] * side, given.shape[2] * side)
    isotropic = math.prod(shape) * run.factor * run.settings["usp"] / run.spread / run.settings["dsp"]
    verbs = {}
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        source, folder = Path(name, "raw.tif"), Path(name)
        write_noise(source, run, shape)
        calls = {
            "enhance": lambda: enhance(source, run, options, output=folder / "e.ome.zarr"),
            "encode": lambda: encode(source, run, folder / "c.codes.zarr", options),
            "decode": lambda: decode(folder / "c.codes.zarr", run, options=options, output=folder / "d.ome.zarr"),
        }
        if not hasattr(run.model, "pack"):  # no codes: an output is restored from its input, and its network is not timed alone
            calls = {"enhance": calls["enhance"]}
        passes = {}
        for verb, call in calls.items():
            started, used = time.perf_counter(), time.process_time()
            with counted(run.model, *(name for name in ("pack", "expand") if hasattr(run.model, name))) as passes[verb]:
                call()
            verbs[verb] = {"seconds": time.perf_counter() - started, "processor_seconds": time.process_time() - used}
    peak = {"process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}  # with pages of mapped files
    if engine.device.type == "cuda":
        peak["device"] = torch.cuda.max_memory_allocated() / 2**30
    for verb, found in verbs.items():
        count = math.prod(shape) if verb == "encode" else isotropic
        found["mvoxel_per_s"] = count / found["seconds"] / 1e6
        if passes[verb]:
            alone = bare_network(run, passes[verb])
            found |= {"bare_mvoxel_per_s": count / alone / 1e6, "of_bare_network": alone / found["seconds"]}
    how = {"scale": given.variant, "raw_shape": shape, "tile": given.tile, "batch": given.batch, "limit_gib": given.limit}
    return how | {"device": str(engine.device), "precision": engine.precision, "peak_gib": peak, "verbs": verbs}


def write_noise(path: Path, run: Any, shape: tuple[int, int, int]) -> None:
    from writing.write import write_tiff

    record = next(iter(run.record["directions"].values()))
    low, high = record["pooled"]["low"], record["pooled"]["high"]
    generator = np.random.default_rng(0)
    planes = (generator.uniform(low, high, shape[1:]).astype(record["dtype"]) for _ in range(shape[0]))
    write_tiff(path, planes, shape=shape, dtype=record["dtype"])


@contextmanager
def counted(model: Any, *names: str) -> Iterator[Counter[Any]]:
    """Counts a model's calls by method, shape of the tensor and other arguments."""
    calls: Counter[Any] = Counter()

    def counting(name: str, method: Any) -> Any:
        def call(values: Any, *others: Any) -> Any:
            calls[name, tuple(values.shape), others] += 1
            return method(values, *others)

        return call

    for name in names:
        setattr(model, name, counting(name, getattr(model, name)))
    yield calls
    for name in names:
        delattr(model, name)  # the class's own are there again


def bare_network(run: Any, passes: Counter[Any]) -> float:
    """Seconds of as many passes."""
    import torch

    seconds = 0.0
    with torch.inference_mode(), run.engine.computing():
        for (name, shape, others), count in passes.items():
            values = torch.randn(shape, device=run.engine.device)
            if values.dim() == 5:
                values = values.contiguous(memory_format=torch.channels_last_3d)
            seconds += count * clock(lambda n=name, v=values, o=others: getattr(run.model, n)(v, *o), run.engine.device.type)
    return seconds


if __name__ == "__main__":
    main()
