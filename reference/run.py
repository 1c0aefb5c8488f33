"""Weights of the reference → a run of ours."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.base import BaseModel
from models.build import build_model
from reference.files import ALIAS, Source
from reference.settings import Sources, need
from utils.errors import UserError
from utils.files import new_folder, write_json
from utils.runs import RunFolder

# Parts that the reference has and we have not. A key is dropped by name only where our component has no such key.
_DROPPED = {
    r"conv7_g\.": "second output, never used and never trained",
    r"down[0-3]\.": "encoding half of ed023e, never used",
    r"logvar$": "a constant that was never trained",
    r"perceptual_loss\.": "the fixed LPIPS network, which is not ours to store",
    r"mlp_[0-9]+\.": "MLPs of the contrastive term, which use_mlp is off for",
}
_UNKNOWN = "unknown: our network has no such part, its results may differ"
_COUNTER = ".num_batches_tracked"  # absent in files of torch < 0.4.1; it has no influence


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
            reasons.setdefault(ALIAS if reason.startswith(ALIAS) else reason, []).append(key)
        tail = [f"    dropped ({reason}): {_summed_up(keys)}" for reason, keys in reasons.items()]
        return head + tail + ([f"    missing, kept fresh: {_summed_up(self.missing)}"] if self.missing else [])


def _summed_up(keys: list[str]) -> str:
    return ", ".join(f"{part} ({count})" for part, count in Counter(key.split(".")[0] for key in keys).items())


def build_filled(settings: Mapping[str, Any], sources: Sources) -> tuple[BaseModel, list[Fitted]]:
    """The model of these settings with the reference's weights; fixed networks of losses are left out.

    A discriminator without a file keeps fresh weights, drawn from the settings' seed (the reference saved discriminators only if
    asked to); so does a component that has none.

    Raises:
        UserError: a needed component, key or shape is not there.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings["seed"])
        model = build_model(settings, frozen=False)
    return model, [
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


def refuse_existing(folder: Path) -> None:
    """Raises a UserError if there is anything at the place of the new run."""
    if folder.exists():
        raise UserError(f"{folder} exists already and is left alone; choose another --run")


def write_run(folder: Path, settings: Mapping[str, Any], model: BaseModel, epoch: int, report: Mapping[str, Any]) -> None:
    """Writes a run that ``train.py --init`` and ``infer.py`` take; the folder appears only when it is complete.

    Its intensity record is there where settings alone tell it: nm 00, set by the user, means values already in [-1, 1].

    Args:
        folder: must not be there yet.
        settings: complete, with ``given``.
        model: gives the weights.
        epoch: in the names of its files.
        report: becomes import.json.

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
        run.manifest.add_set(epoch, run.checkpoints.glob("*.pth"))
        if settings["nm"] == "00" and "nm" in settings["given"]:
            known = {"dtype": "float32", "pooled": {"low": -1.0, "high": 1.0}, "files": {}, "voxel_um": {}}
            directions = dict.fromkeys(settings["direction"].split("_"), known)
            write_json(run.dataset_record, {"nm": "00", "nm_clip": None, "directions": directions, "dataset": None})
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
