"""What a training says at its beginning and at its end."""

import signal
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl

from dataloader.data_multi import DataModule, PairedImageDataset
from dataloader.dataset_folders import read_record
from experiment.reading import COMMAND_LINE
from experiment.runs import RunFolder
from models.base import BaseModel
from training.callbacks import STOP_SIGNALS, RunKeeper
from training.requirements import Requirements, training_requirements
from training.trackers import where_to_look
from utils.command_line import command
from utils.errors import CTRL_C, TRY_AGAIN
from utils.units import as_size


def summary(trainer: pl.Trainer, model: BaseModel, run: RunFolder, data: DataModule, needs: Requirements | None) -> list[str]:
    """What is about to be trained and what it needs, in a few lines; ``needs`` that are known are not measured again."""
    s = model.settings
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in model.components().items()}
    sizes = ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in counts.items())
    reads_volume = "net_g" in model.G
    alone = [] if reads_volume else ["no loss term reads the isotropic volume: the autoencoder of slices is trained alone"]
    return [
        f"model: {s['models']}, {sum(counts.values()) / 1e6:.2f} M parameters ({sizes})",
        f"geometry: {_geometry(s, model.geometry)}",
        *alone,
        *_data(s, data, trainer.world_size),
        f"device: {trainer.num_devices} x {trainer.accelerator.name()}, {trainer.precision}; a step needs "
        f"{as_size((needs or training_requirements(s)).memory)} of memory or more"
        + (" in 32 bits, about half of it in this precision" if str(trainer.precision).startswith("bf16") else ""),
        f"run folder: {run.path}",
        f"pictures: {run.pictures}",
        *where_to_look(s, run),
    ]


def _geometry(s: Mapping[str, Any], geometry: Any) -> str:
    """The arithmetic of a crop."""
    side, slices = geometry.cropsize, geometry.slices
    taken = "".join(f" {sign} {key} {s[key]:g}" for sign, key in (("·", "usp"), ("/", "dsp")) if s[key] != 1)
    read = f"{s['cropz']} planes{taken} = {slices} slices of {side}² pixels" if taken else f"{slices} slices of {side}² pixels"
    if "axial_sampling" in s:
        blurred = ", blurred" * bool(s["axial_taps"] or s["axial_sigma"])
        how = f"sections {s['uprate']:g} pixels apart ({s['axial_sampling']}{blurred})"
        return f"{read}, made as coarse along one side as {how}; a section becomes {geometry.factor} plane(s)"
    how = f"{side}/{slices}" if "uprate" in s else f"8·{geometry.resizebranch}/{geometry.downbranch}"
    return f"{read}; {slices} · {geometry.factor} planes each ({how}) = a cube of {slices * geometry.factor}³ voxels"


def _data(s: Mapping[str, Any], data: DataModule, world: int) -> list[str]:
    train, val = data.train_set, data.val_set
    steps = len(train) // (world * s["batch_size"])
    volumes = f"{len(train.names)} volume{'s' * (len(train.names) != 1)}"
    return [
        f"data: {volumes} in {train.root / s['direction']}, {len(val.names) if val else 'none'} for validation, "
        f"{as_size(data.nbytes())}",
        f"{train.crops_per_volume} crops of each volume in batches of {s['batch_size'] * world} = {steps} steps an epoch, "
        f"{steps * s['n_epochs']} in {s['n_epochs']} epochs",
    ]


def closing(
    trainer: pl.Trainer, model: BaseModel, run: RunFolder, data: DataModule, given: Mapping[str, str]
) -> tuple[list[str], int]:
    """How the training ended and what to do next, and the code to leave with: 130 after Ctrl-C, 75 after another signal."""
    epochs = f"{max(run.epochs(), default=0)} of {trainer.max_epochs} epochs are in {run.checkpoints}"
    keeper = next(callback for callback in trainer.callbacks if isinstance(callback, RunKeeper))  # type: ignore[attr-defined]
    if not keeper.reason:
        return [f"done: {epochs}", *_next_steps(model, run, data)], 0
    code = {**{number.name: TRY_AGAIN for number in STOP_SIGNALS}, signal.SIGINT.name: CTRL_C}.get(keeper.reason, 0)
    typed = [name for name in ("jsn", "prj", "env", "logs", "data_root") if given.get(name) == COMMAND_LINE]
    typed += ["dataset"] if given.get("dataset", COMMAND_LINE) == COMMAND_LINE else []  # typed, or a teacher's
    words = [word for name in typed for word in (f"--{name}", str(model.settings[name]))]
    return [f"stopped by {keeper.reason}: {epochs}; go on with", f"  {command('train', *words, '--resume')}"], code


def _next_steps(model: BaseModel, run: RunFolder, data: DataModule) -> Iterable[str]:
    """The commands that apply the run to a volume of its data, and judge the result."""
    shown = data.val_set or data.train_set
    truth = shown.truth_of(0)
    count = 2 if model.settings.get("tc") else 1
    found = [] if truth else _raw(shown, count)
    volumes = list(dict.fromkeys(found)) or [str(shown.root / name / shown.names[0]) for name in shown.directions[:count]]
    judged = [volumes[0], *(["--channel", "0"] if count > 1 else [])]
    raw = found or shown.directions[0] not in read_record(shown.root.parent)["directions"]
    given = ("--input", *volumes, *([] if raw else ["--prepared"]), "--output")
    words: tuple[Any, ...] = ("infer", "encode", "--run", run.path, *given, run.path / "scan.codes.zarr")
    encoding = ["encode a volume:", f"  {command(*words)}"] if "encoder" in model.G else []
    if "net_g" not in model.G:
        return encoding
    made = run.path / "enhanced.ome.tif"
    known = ["--truth", truth] if truth else []
    invents = ["--texture", "0.5", "--invented"] if "grain_width" in model.settings else []
    return [
        "make a volume isotropic, and see how good it is:",
        f"  {command('infer', 'enhance', '--run', run.path, *given, made, *invents)}",
        f"  {command('evaluate', '--reconstruction', made, '--input', *judged, *known, '--output', run.path / 'report')}",
        *encoding,
    ]


def _raw(volumes: PairedImageDataset, count: int) -> list[str]:
    """The files, one for each channel, of which ``prepare.py`` has made a volume, if ``infer.py`` reads them without options."""
    found: list[str] = []
    options = {"thick": "z", "time": None, "scene": None, "voxel": None}
    for direction in volumes.directions[:count]:
        made = read_record(volumes.root.parent)["directions"].get(direction, {"sources": (), "settings": {}})
        settings = made["settings"]
        plain = all(settings.get(name, usual) == usual for name, usual in options.items())
        plain = plain and settings.get("channel") in (None, [0, 1][:count])
        found += [source["path"] for source in made["sources"] if plain and Path(source["path"]).exists()][:1]
        one_file = count > 1 and len(set(found)) == 1  # of two channels, which are read in order
        if settings.get("channel") is not None and not one_file:
            return []
    return found if len(found) == count else []
