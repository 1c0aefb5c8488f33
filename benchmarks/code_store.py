"""``python benchmarks/code_store.py --run RUN --texture VOLUME``: what the code store costs beside the networks.

The texture, mirrored at its borders, is encoded, and the store decoded, at 1 and 4 times a size, each in a process of its
own so that peak memory is that of the step. Seconds are of processor time, so that other programs on the machine do not
count: of the whole command, of the networks in it, and of the entropy coding (fitting its model, and the codec, in whichever
thread); their ratios are of what the larger size takes more. Random access: bytes read from disc for boxes of 64x64x64 at
random places, metadata of the arrays aside, over the bytes that the codes needed take on average: for boxes of codes, and
for regions of the decoded volume, whose tiles and halos need more codes than lie under the region.
"""

import argparse
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


from benchmarks.machine import RESULTS, answer, command_line, in_turn, write_result

SIDE = 64
BOXES = 20


def main() -> None:
    parser = command_line(__doc__)
    add = parser.add_argument
    add("--run", type=Path, required=True, help="a training's folder that makes codes")
    add("--texture", type=Path, required=True, help="a real volume, uint8")
    add("--folder", type=Path, required=True, help="for volumes and stores, which stay there")
    add("--shape", type=int, nargs=3, default=(64, 256, 256), metavar=("Z", "Y", "X"), help="raw voxels at 1x")
    add("--grid", choices=("isotropic", "raw"), default="isotropic", help="as of infer.py decode")
    add("--results", type=Path, default=RESULTS / "code_store_cpu.json", help="JSON to write")
    add("--variant", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.variant:
        return answer(measure(given, *given.variant.split()))
    given.folder.mkdir(parents=True, exist_ok=True)
    found = {
        name: one for name, (one,) in in_turn(__file__, [f"{v} {n}" for n in (1, 4) for v in VERBS], 1, *sys.argv[1:]).items()
    }
    summary = {verb: compared(found[f"{verb} 1"], found[f"{verb} 4"]) for verb in VERBS}
    write_result(
        given.results, {"run": given.run.name, "texture": given.texture.name, "grid": given.grid, **summary, "sizes": found}
    )


def compared(small: dict[str, Any], large: dict[str, Any]) -> dict[str, float]:
    """What the larger size takes more: imports, the first pass and fitting the model of the codes are once for a store."""
    more = {key: large["cpu_s"][key] - small["cpu_s"][key] for key in large["cpu_s"]}
    return {
        "coding_over_networks": round(more["coding"] / more["networks"], 4),
        "networks_over_whole": round(more["networks"] / more["whole"], 3),
        "seconds_once": round(small["cpu_s"]["whole"] - more["whole"] / 3, 3),
        "memory_at_4x_over_1x": round(large["peak_gib"] / small["peak_gib"], 3),
    }


def measure(given: argparse.Namespace, verb: str, scale: str) -> dict[str, Any]:
    """One step at one size: the volume grows along y and x."""
    from inference import Engine, Run

    side = 2 if scale == "4" else 1
    shape = (given.shape[0], given.shape[1] * side, given.shape[2] * side)
    run = Run.load(given.run, engine=Engine.choose("cpu", "32"))
    cpu = dict.fromkeys(("networks", "coding"), 0.0)
    with ExitStack() as watched:
        watched.enter_context(spent(cpu, "networks", run.model, "pack", "slices", "expand"))
        if run.model.baseline is not None:  # what the volume decoder adds to
            watched.enter_context(spent(cpu, "networks", type(run.model.baseline), "__call__"))
        started, began = time.process_time(), time.perf_counter()
        more = VERBS[verb](given, run, shape, given.folder / f"{scale}x", cpu)
        cpu["whole"], wall = time.process_time() - started, time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"raw_shape": shape, "cpu_s": {k: round(v, 3) for k, v in cpu.items()}, "wall_s": wall, "peak_gib": peak, **more()}


def textured(path: Path, shape: tuple[int, int, int]) -> Iterator[np.ndarray]:
    """Planes of a uint8 volume mirrored to a shape, times 64, with six bits of noise."""
    from utils.boxes import reflected
    from volumes.open import open_volume

    texture = open_volume(path)[:]
    planes, rows, columns = (reflected((0, size), side) for size, side in zip(shape, texture.shape, strict=True))
    generator = np.random.default_rng(0)
    for z in planes:
        plane = texture[z][np.ix_(rows, columns)].astype(np.uint16)
        yield plane * 64 + generator.integers(0, 64, plane.shape, dtype=np.uint16)


def encoded(given: argparse.Namespace, run: Any, shape: tuple[int, int, int], place: Path, cpu: dict[str, float]) -> Any:
    import codes.context_codec
    import codes.store
    from inference import Options, encode
    from writing.write import write_tiff

    source, path = place.with_suffix(".tif"), place.with_suffix(".codes.zarr")
    if not source.exists():
        write_tiff(source, textured(given.texture, shape), shape=shape, dtype="uint16")
    with spent(cpu, "coding", codes.store, "_fitted"), spent(cpu, "coding", codes.context_codec, "encoded"):
        store = encode(source, run, path, Options(normalise="volume"), overwrite=True)
    assert store is not None
    return lambda: {"codes": int(np.prod(store.shape)), "levels": store.about["levels"], "bytes": store.bytes_of()}


def decoded(given: argparse.Namespace, run: Any, shape: tuple[int, int, int], place: Path, cpu: dict[str, float]) -> Any:
    import codes.context_codec
    from codes.store import CodeStore
    from inference import Output, decode

    store = CodeStore.open(place.with_suffix(".codes.zarr"))
    output = Output(place.with_suffix(".ome.zarr"), overwrite=True)
    with spent(cpu, "coding", codes.context_codec, "decoded"):
        decode(store, run, grid=given.grid, output=output)
    return lambda: {"random_access": random_access(store, run, given.grid)}


VERBS = {"encode": encoded, "decode": decoded}


@contextmanager
def spent(into: dict[str, float], name: str, owner: Any, *methods: str) -> Iterator[None]:
    """Adds up the processor time of some functions, without what they call of each other."""
    inside = []

    def timed(function: Any) -> Any:
        def call(*words: Any, **how: Any) -> Any:
            if inside:
                return function(*words, **how)
            inside.append(True)
            started = time.thread_time()
            try:
                return function(*words, **how)
            finally:
                into[name] += time.thread_time() - started
                inside.clear()

        return call

    before = {method: getattr(owner, method) for method in methods}
    for method, function in before.items():
        setattr(owner, method, timed(function))
    try:
        yield
    finally:
        for method, function in before.items():
            setattr(owner, method, function)


def random_access(store: Any, run: Any, grid: str) -> dict[str, Any]:
    """Bytes read over bytes needed, median over random boxes, of codes and of the decoded volume."""
    from zarr.storage import LocalStore

    from codes.store import CodeStore, level_names
    from inference.decoding import SliceField, isotropic_field
    from inference.options import Options

    names, read, get = level_names(store.about["levels"]), [], LocalStore.get
    files = [file for name in names for file in (store.path / name / "c").rglob("*") if file.is_file()]
    of_code = sum(file.stat().st_size for file in files) / float(np.prod(store.shape))

    async def counted(self: Any, key: str, *words: Any, **how: Any) -> Any:
        found = await get(self, key, *words, **how)
        read.append(0 if found is None or "zarr.json" in key or self.root.name == "empty" else len(found))
        return found

    def needed(box: Any) -> list[Any]:
        kind = np.dtype(np.float32)
        field = SliceField(run, store, kind) if grid == "raw" else isotropic_field(run, store, kind, Options(region=box))
        return [field.needed(tile) for tile in field.tiles(box)]  # the store keeps chunks that it has read

    def ratio(boxes_under: Any, shape: Any) -> float | None:
        if min(shape) < SIDE:
            return None
        found = []
        for _ in range(BOXES):
            box = tuple(slice(start, start + SIDE) for start in (int(generator.integers(0, size - SIDE + 1)) for size in shape))
            fresh, asked = CodeStore.open(store.path), boxes_under(box)
            read.clear()
            for part in asked:
                fresh.read(part)
            covered = np.zeros(store.shape, bool)
            for part in asked:
                covered[part] = True
            found.append(sum(read) / (covered.sum() * of_code))
        return round(float(np.median(found)), 3)

    generator = np.random.default_rng(0)
    LocalStore.get = counted  # type: ignore[method-assign]
    try:
        of_codes = ratio(lambda box: [box], store.shape)
        volume = ratio(needed, (store.shape[0] * (1 if grid == "raw" else run.factor), *store.inner))
    finally:
        LocalStore.get = get  # type: ignore[method-assign]
    return {"bytes_of_a_code": of_code, "64_cubed_codes": of_codes, "64_cubed_voxels": volume}


if __name__ == "__main__":
    main()
