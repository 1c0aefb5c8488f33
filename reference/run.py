"""Weights of the reference's component files → a run of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.base import BaseModel
from models.build import build_model
from reference.reference_settings import Source, Sources, need
from reference.torch_file import read_weights
from utils.errors import UserError
from utils.files import new_folder, write_json
from utils.runs import RunFolder

COMPONENTS = frozenset(
    "encoder decoder quantize quant_conv post_quant_conv net_g net_gback netF net_d net_dzy net_dzx discriminator".split()
)

# The reference's generators register their stages twice.
_STAGES = ("up3", "conv5", "up2", "conv6", "up1")
_ALIASES = {f"encoder.{i}.": f"down{i}." for i in range(4)} | {f"decoder.{i}.": f"{stage}." for i, stage in enumerate(_STAGES)}

# Parts that the reference has and we have not. A key is dropped by name only where our component has no such key.
_DROPPED = {
    r"conv7_g\.": "second output, never used and never trained",
    r"down[0-3]\.": "encoding half of ed023e, never used",
    r"logvar$": "a constant that was never trained",
    r"perceptual_loss\.": "the fixed LPIPS network, which is not ours to store",
    r"mlp_[0-9]+\.": "MLPs of the contrastive term, which use_mlp is off for",
}
_ALIAS = "second name"
_UNKNOWN = "unknown: our network has no such part, its results may differ"
_COUNTER = ".num_batches_tracked"  # absent in files of torch < 0.4.1; it has no influence


# Reading -------------------------------------------------------------------------------------------------------------


def component_files(folder: Path, epoch: int) -> dict[str, Path]:
    """The files ``<component>_model_epoch_<epoch>.pth`` of a folder by component.

    A file of the whole autoencoder loss counts as the component ``discriminator`` that is in it, if there is no other.

    Raises:
        UserError: not a folder, or there are none; the message lists the epochs that there are.
    """
    if not folder.is_dir():
        raise UserError(f"--from {folder} is not a folder")
    found: dict[int, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        if parts := re.fullmatch(r"(\w+)_model_epoch_(\d+)\.pth", path.name):
            found.setdefault(int(parts.group(2)), {})[parts.group(1)] = path
    if not COMPONENTS & found.get(epoch, {}).keys():
        others = f"it has the epochs {', '.join(map(str, sorted(found)))}" if found else "it has none of any epoch"
        raise UserError(f"--from {folder} has no files <component>_model_epoch_{epoch}.pth; {others}")
    files = found[epoch]
    if "loss" in files and "discriminator" not in files:
        files["discriminator"] = files.pop("loss")
    return files


def read_reference(files: Mapping[str, Path]) -> dict[str, Source]:
    """The components in files of the reference; nothing in the files is executed.

    Raises:
        UserError: a file cannot be read.
    """
    return {name: _read(name, path) for name, path in files.items() if name in COMPONENTS}


def _read(name: str, path: Path) -> Source:
    weights = read_weights(path)
    tensors: dict[str, Tensor] = {}
    dropped: dict[str, str] = {}
    plain = {_without_prefix(name, key): value for key, value in weights.tensors.items()}
    for key, value in plain.items():
        first = _without_alias(name, key)
        if first == key or first not in plain:
            tensors[first] = value
        elif torch.equal(plain[first], value):
            dropped[key] = f"{_ALIAS} of {first}"
        else:
            raise UserError(
                f"{path}: {key} must equal {first}, whose second name it is, but does not; the file is not consistent"
            )
    modules = {_without_prefix(name, f"{module}.").rstrip("."): stand_in for module, stand_in in weights.modules.items()}
    return Source(path, tensors, modules, dropped)


def _without_prefix(component: str, key: str) -> str:
    """A key without what a wrapper around the component has put in front of it."""
    for prefix in ("module.", "loss.", f"{component}."):
        key = key.removeprefix(prefix)
    return key


def _without_alias(component: str, key: str) -> str:
    if component.startswith("net_g"):
        for alias, name in _ALIASES.items():
            if key.startswith(alias):
                return name + key.removeprefix(alias)
    return key


# Fitting -------------------------------------------------------------------------------------------------------------


@dataclass
class Fitted:
    """What became of one component's keys.

    Attributes:
        file: where it came from; None for a component that starts with fresh weights.
        used: keys that were taken.
        dropped: keys of the file that were not, with the reason.
        missing: keys of ours that the file has not, which keep their fresh values.
    """

    name: str
    file: str | None = None
    used: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report for a person; parts are summed up by the first word of their keys."""
        if self.file is None and self.missing:
            return [f"{self.name}: no file, starts with fresh weights ({len(self.missing)} keys)"]
        head = [f"{self.name}: {len(self.used)} keys used, {len(self.dropped)} dropped, {len(self.missing)} missing"]
        reasons: dict[str, list[str]] = {}
        for key, reason in self.dropped.items():
            reasons.setdefault(_ALIAS if reason.startswith(_ALIAS) else reason, []).append(key)
        tail = [f"    dropped ({reason}): {_summed_up(keys)}" for reason, keys in reasons.items()]
        return head + tail + ([f"    missing, kept fresh: {_summed_up(self.missing)}"] if self.missing else [])


def _summed_up(keys: list[str]) -> str:
    counts: dict[str, int] = {}
    for key in keys:
        counts[key.split(".")[0]] = counts.get(key.split(".")[0], 0) + 1
    return ", ".join(f"{part} ({count})" for part, count in counts.items())


def fresh_model(settings: Mapping[str, Any]) -> BaseModel:
    """The model of these settings, its weights drawn from their seed; it cannot be trained: fixed networks are left out."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings["seed"])
        return build_model(settings, frozen=False)


def fill(model: BaseModel, sources: Sources) -> list[Fitted]:
    """Puts the reference's weights into a model of ours.

    A discriminator without a file keeps its fresh weights (the reference saved them only if asked to); so does a component that
    has none.

    Raises:
        UserError: a needed component, key or shape is not there.
    """
    return [
        Fitted(name, missing=list(component.state_dict()))
        if name not in sources and (name in model.D or not component.state_dict())
        else _fill(name, component, need(sources, name))
        for name, component in model.components().items()
    ]


def _fill(name: str, component: nn.Module, source: Source) -> Fitted:
    wanted = component.state_dict()
    fitted = Fitted(name, str(source.path), dropped=dict(source.dropped))
    state, wrong = dict(wanted), []
    for key, value in source.tensors.items():
        if key not in wanted:
            fitted.dropped[key] = next((reason for part, reason in _DROPPED.items() if re.match(part, key)), _UNKNOWN)
        elif value.shape != wanted[key].shape:
            wrong.append(f"{key} has the shape {tuple(value.shape)} instead of {tuple(wanted[key].shape)}")
        else:
            fitted.used.append(key)
            state[key] = value.to(wanted[key].dtype)
    absent = [key for key in wanted if key not in source.tensors]
    fitted.missing = [key for key in absent if key.endswith(_COUNTER)]
    wrong += [f"{key} is missing" for key in absent if not key.endswith(_COUNTER)]
    if wrong:
        raise UserError(f"{source.path} does not fit the component {name!r} of these settings: {'; '.join(wrong)}")
    component.load_state_dict(state)
    return fitted


# Writing -------------------------------------------------------------------------------------------------------------


def refuse_existing(folder: Path) -> None:
    """Raises a UserError if there is anything at the place of the new run."""
    if folder.exists():
        raise UserError(f"{folder} exists already and is left alone; choose another --run")


def intensity_record(settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """The run's intensity record where settings alone tell it: nm 00, set by the user, means values already in [-1, 1]."""
    if settings["nm"] != "00" or "nm" not in settings["given"]:
        return None
    known = {"dtype": "float32", "pooled": {"low": -1.0, "high": 1.0}, "files": {}, "voxel_um": {}}
    directions = dict.fromkeys(settings["direction"].split("_"), known)
    return {"nm": "00", "nm_clip": None, "directions": directions, "dataset": None}


def write_run(folder: Path, settings: Mapping[str, Any], model: BaseModel, epoch: int, report: Mapping[str, Any]) -> None:
    """Writes a run that ``train.py --init`` and ``infer.py`` take; the folder appears only when it is complete.

    The report becomes import.json.

    Raises:
        UserError: there is something at that place, or it cannot be written.
    """
    refuse_existing(folder)
    with new_folder(folder) as partial:
        run = RunFolder(partial)
        run.checkpoints.mkdir()
        run.write_settings(settings)
        for name, component in model.components().items():
            with run.component(name, epoch).open("wb") as file:  # of a path torch does not say that the disc is full
                torch.save(dict(component.state_dict()), file)
        record = intensity_record(settings)
        if record is not None:
            write_json(run.dataset_record, record)
        write_json(partial / "import.json", report)
        run.copy_source(Path(__file__).parents[1] / "models" / f"{settings['models']}.py")


def as_report(files: Mapping[str, Path], epoch: int, fitted: list[Fitted], notes: list[str]) -> dict[str, Any]:
    """What import.json holds: where the weights came from and what became of every key."""
    used = {part.name for part in fitted if part.file}
    return {
        "from": str(next(iter(files.values())).parent),
        "epoch": epoch,
        "notes": notes,
        "components": [asdict(part) for part in fitted],
        "files_not_used": sorted(path.name for name, path in files.items() if name not in used),
    }
