"""Crops per second of the loader alone, and what it reads for them: ``python benchmarks/loader.py DATA``.

DATA is the folder with fibsem_fib25_train.tif. Its values, repeated, lie as a TIFF of compressed tiles, as one of compressed
strips, as a chunked OME-Zarr, and as a plain TIFF larger than the private memory (RLIMIT_DATA) that its process may have. Crops
are those of ``--jsn``, an epoch of ``--crops``, drawn and cut in the order of a training, by one process without workers and
without ``preload``, each alone and with ``--neighbours``. Bytes read are those of read calls (/proc/self/io), from the cache of
the system or not; a crop's bytes are its voxels in the file's type. Beside it a step of the generator of ``--jsn`` on one
thread, in the same precision: what the loader must keep fed.

Then the listing: seconds and memory to list folders of 10, 1000 and 100 000 files (links to one small volume), and of a
check, which opens every file, up to 1000. Writes benchmarks/results/loader_cpu.json.
"""

import argparse
import json
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import RESULTS, ROOT, answer, command_line, in_turn, write_result

KINDS = ("TIFF, compressed tiles", "TIFF, compressed strips", "OME-Zarr, chunks", "TIFF, larger than memory")
FILES = (10, 1000, 100_000)
CHECKED = 1000  # files that a check opens at the most


def main() -> None:
    parser = command_line(__doc__)
    add = parser.add_argument
    add("data", type=Path, metavar="DATA")
    add("--jsn", nargs="+", default=["fib25_lateral", "fib25"], help="experiments of env/jsn whose crops are drawn")
    add("--crops", type=int, default=2048)
    add("--neighbours", type=int, nargs="+", default=[1, 32])
    add("--limit", type=float, default=2.0, metavar="GIB", help="private memory beside the volume that is larger")
    add("--rounds", type=int, default=3)
    add("--files", type=int, nargs="+", default=FILES)
    add("--folder", type=Path, help="for the volumes, which are removed again")
    add("--results", type=Path, default=RESULTS / "loader_cpu.json")
    add("--variant", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.variant:
        kind, _, which = given.variant.partition(": ")
        return answer(step_seconds(which) if kind == "step" else listed(given, int(which)) if kind == "files" else read(given))
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        write_volumes(given.data, Path(name), given.limit)
        words = [given.data, "--crops", given.crops, "--limit", given.limit, "--folder", name]
        content = {jsn: of_experiment(jsn, given.neighbours, given.rounds, words) for jsn in given.jsn}
        counts = in_turn(__file__, [f"files: {count}" for count in given.files], 1, *words)
    listing = {variant.removeprefix("files: "): found for variant, (found,) in counts.items()}
    write_result(given.results, {"crops": given.crops, "experiments": content, "listing": listing})


def of_experiment(jsn: str, neighbours: list[int], rounds: int, words: list[Any]) -> dict[str, Any]:
    """Medians over rounds, in which all kinds take turns with the step."""
    ways = [f"{jsn}: {kind}, neighbours {number}" for kind in KINDS for number in neighbours]
    found = in_turn(__file__, [f"step: {jsn}", *ways], rounds, *words)
    step, batch = statistics.median(found.pop(f"step: {jsn}")), settings_of(jsn)["batch_size"]
    kinds = {}
    for variant, answers in found.items():
        crops = statistics.median(each["crops_per_s"] for each in answers)
        read_for = answers[0]["bytes_read_per_byte_of_crops"]
        kinds[variant.partition(": ")[2]] = {
            "crops_per_s": round(crops, 1), "times_what_the_model_takes": round(crops * step / batch, 1),
            "bytes_read_per_byte_of_crops": round(read_for, 2),
        }  # fmt: skip
    return {"seconds_per_step": round(step, 3), "kinds": kinds}


def write_volumes(data: Path, folder: Path, limit: float) -> None:
    """The four volumes; the plain one is a quarter larger than the memory."""
    import tifffile
    import zarr

    from volumes.open import open_volume

    values = np.tile(open_volume(data / "fibsem_fib25_train.tif")[:], (1, 2, 2))
    tifffile.imwrite(folder / "0.tif", values, tile=(128, 128), compression="zlib")
    tifffile.imwrite(folder / "1.tif", values, rowsperstrip=16, compression="zlib")
    array = zarr.create_array(
        folder / "2.zarr", shape=values.shape, chunks=(16, 128, 128), dtype=values.dtype, dimension_names=list("zyx")
    )
    array[:] = values
    times = int(1.25 * limit * 2**30 / values.nbytes) + 1
    with tifffile.TiffWriter(folder / "3.tif", bigtiff=True) as file:
        shape = (times * len(values), *values.shape[1:])
        file.write((plane for _ in range(times) for plane in values), shape=shape, dtype=values.dtype, contiguous=True)


def settings_of(jsn: str) -> dict[str, Any]:
    """The complete settings of an experiment."""
    from experiment.reading import default_settings
    from models.options import MODEL_OPTIONS

    own = json.loads((ROOT / "env" / "jsn" / f"{jsn}.json").read_text())["train"]
    model = own.pop("models")
    return default_settings(MODEL_OPTIONS, model, **{k: v for k, v in own.items() if k not in ("env", "teacher", "from_teacher")})


def read(given: argparse.Namespace) -> dict[str, float]:
    """Crops per second of one kind of file, and bytes read for each byte of a crop."""
    from dataloader.data_multi import DataModule
    from dataloader.steady import SteadyVolume
    from volumes.open import open_volume

    jsn, kind, neighbours = given.variant.replace(", neighbours ", ": ").split(": ")
    settings = settings_of(jsn) | {"workers": 0, "preload": False, "crops_per_volume": given.crops, "neighbours": int(neighbours)}
    if "larger" in kind:
        resource.setrlimit(resource.RLIMIT_DATA, (int(given.limit * 2**30),) * 2)
    place = given.folder / "set" / "train" / "x3d0" / "v.tif"  # stands for the volume, of whatever format
    place.parent.mkdir(parents=True, exist_ok=True)
    place.touch()
    number = KINDS.index(kind)
    volume = open_volume(given.folder / f"{number}.{'zarr' if number == 2 else 'tif'}")
    data = DataModule.from_settings(settings | {"dataset": "set"}, given.folder)
    data.train_set._volumes["x3d0", place.name] = SteadyVolume(volume)
    data.train_set.check({volume.path: (0.0, 255.0)})
    before, started = bytes_read(), time.perf_counter()
    crops = sum(len(batch["labels"]) for batch in data.train_dataloader())
    seconds = time.perf_counter() - started
    size = settings["cropsize"] ** 2 * settings["cropz"] * volume.dtype.itemsize
    return {"crops_per_s": crops / seconds, "bytes_read_per_byte_of_crops": (bytes_read() - before) / size / crops}


def bytes_read() -> int:
    """Of all read calls of this process so far."""
    return int(Path("/proc/self/io").read_text().split()[1])


def resident_mib() -> float:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def step_seconds(jsn: str, steps: int = 5) -> float:
    """A training step of the experiment's model on one thread, without a teacher."""
    import torch

    from experiment.autoencoder import configure_autoencoder, read_autoencoder_yaml
    from models.base import BaseModel
    from models.build import build_model

    torch.set_num_threads(1)
    settings = settings_of(jsn)
    yaml = settings.get("ldmyaml")
    autoencoder = configure_autoencoder(read_autoencoder_yaml(ROOT, yaml), settings) if yaml else None
    model: BaseModel = build_model({**settings, "autoencoder": autoencoder}, frozen=False)
    optimizer, *_ = model.configure_optimizers()[0]
    side = settings["cropsize"]
    batch = {"img": [torch.rand(settings["batch_size"], 1, side, side, settings["cropz"])]}
    seconds = []
    for _ in range(steps + 1):
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=settings["precision"] == "bf16-mixed"):
            optimizer.zero_grad()
            model.weigh(model.generator_losses(model.generate(batch))).backward()
            optimizer.step()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def listed(given: argparse.Namespace, count: int) -> dict[str, float]:
    """Seconds and MiB of listing a folder of so many files, and of a check where they are not too many."""
    from dataloader.data_multi import PairedImageDataset
    from writing.write import write_tiff

    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        folder = Path(name, "train", "x3d0")
        folder.mkdir(parents=True)
        values = np.random.default_rng(0).integers(0, 255, (16, 64, 64), np.uint8)
        for index in range(count):
            if index % 10_000:  # a file has no more than so many links
                (folder / f"{index:06}.tif").hardlink_to(folder / f"{index // 10_000 * 10_000:06}.tif")
            else:
                write_tiff(folder / f"{index:06}.tif", values)
        before, started = resident_mib(), time.perf_counter()
        dataset = PairedImageDataset(Path(name, "train"), ["x3d0"], nm="11", cropsize=64, cropz=8)
        dataset[0, 0]
        found = {"seconds_to_the_first_crop": time.perf_counter() - started}
        found["mib"] = resident_mib() - before
        if count <= CHECKED:
            started = time.perf_counter()
            dataset.check()
            found["seconds_of_a_check"] = time.perf_counter() - started
    return {key: round(value, 3) for key, value in found.items()}


if __name__ == "__main__":
    main()
