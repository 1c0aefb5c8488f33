"""Whether what a path holds is as it was written: a volume, a code store, the weights of a run."""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import product
from pathlib import Path

from tqdm import tqdm

from codes.store import KEY, UNIT, CodeStore, stored_attributes
from experiment.runs import RunFolder
from models.options import MODEL_OPTIONS
from utils.boxes import Box, boxes, voxels_of
from utils.checksums import SUMS, check_checksums, unsealed
from utils.errors import UserError, printable
from utils.far import existing
from utils.files import read_mapping
from volumes.open import open_volume

_NO_CHECKSUMS = "no checksums were recorded; what can be read without them was read"


def verify(path: Path) -> tuple[list[str], list[str]]:
    """Reads all that a path holds.

    Returns:
        Lines on what was looked at; and a line for each thing that is damaged or missing.

    Raises:
        UserError: there is nothing.
    """
    path = existing(path)
    try:
        return _run(RunFolder(path)) if (path / "0.json").is_file() else _arrays(path)
    except UserError as error:  # it cannot even be opened
        return [], [str(error)]


def _arrays(path: Path) -> tuple[list[str], list[str]]:
    zarr = path / "zarr.json"
    changed = unsealed(path, stored_attributes(path)) if zarr.is_file() else None
    said = [] if changed is not None else [f"{path}: {_NO_CHECKSUMS}"]
    damaged = [f"{file} is other than it was written" for file in changed or ()]
    if zarr.is_file() and KEY in stored_attributes(path):
        store = CodeStore.open(path, damaged=True)
        damaged += _failing(boxes(store.shape, UNIT), store.read, path.name)
        return [f"{path}: codes of {store.shape} (slices, rows, columns)", *said], damaged
    first = open_volume(path, channel=0, time=0, scene=0)
    for scene in range(first.scenes):
        inside = open_volume(path, channel=0, time=0, scene=scene)
        for channel, time, level in product(range(inside.channels), range(inside.times), range(inside.levels)):
            volume = open_volume(path, channel=channel, time=time, scene=scene, level=level)
            damaged += _failing(volume.blocks(), volume.__getitem__, f"{path.name}, level {level}")
    return [f"{path}: {first.shape} (Z, Y, X), {first.channels} channel(s), {first.levels} level(s)", *said], damaged


def _run(run: RunFolder) -> tuple[list[str], list[str]]:
    manifest, epochs = run.manifest, run.epochs()
    checks: list[Callable[[], object]] = [partial(run.stored_settings, MODEL_OPTIONS)]
    checks += [partial(read_mapping, path, "record of a run") for path in sorted(run.path.glob("*.json"))]
    checks += [partial(manifest.check_set, epoch) for epoch in epochs]
    if (run.path / SUMS).is_file():
        checks.append(partial(check_checksums, run.path))
    damaged = list(dict.fromkeys(problem for check in checks if (problem := _problem(check))))
    said = f"{run.path}: weights of epochs {', '.join(map(str, epochs)) or 'none'}, and what a training goes on from"
    return [said] + [f"{run.path}: {_NO_CHECKSUMS}"] * (manifest.read() is None), damaged + manifest.damaged_checkpoints()


def _failing(parts: Iterable[Box], read: Callable[[Box], object], title: str) -> list[str]:
    """What is said of boxes that cannot be read, each once."""
    parts = list(parts)
    found: dict[str, None] = {}
    with tqdm(total=sum(map(voxels_of, parts)), desc=printable(title), unit="voxel", unit_scale=True, delay=1) as bar:
        for box in parts:
            if problem := _problem(partial(read, box)):
                found[problem] = None
            bar.update(voxels_of(box))
    return list(found)


def _problem(check: Callable[[], object]) -> str:
    try:
        check()
    except UserError as error:
        return str(error)
    return ""
