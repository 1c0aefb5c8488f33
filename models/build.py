"""Models by name, and their weights from the component files of a run."""

import importlib
import logging
import pickle
from collections.abc import Container, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from experiment.options import as_text
from experiment.runs import RunFolder
from models.base import BaseModel
from models.options import MODEL_OPTIONS
from models.recomputing import RECOMPUTED, recompute
from networks.generators import VolumeDecoder
from utils.errors import UserError
from utils.machine import lay_channels_last
from utils.norms import fold_batch_norm

log = logging.getLogger("isoscope")


def build_model(settings: Mapping[str, Any], for_training: bool = True, *, frozen: bool = True) -> BaseModel:
    """The model that the settings name, from models/<name>.py, with fresh weights.

    Args:
        settings: complete, with the resolved ``autoencoder``.
        for_training: with what only a training needs: discriminators, the contrastive and the cycle's networks, loss weights.
        frozen: for a training, load the fixed networks of its loss terms (LPIPS), too.

    Raises:
        UserError: no such model, or the weights of a fixed network are missing.
    """
    name = settings["models"]
    if name not in MODEL_OPTIONS:
        raise UserError(f"models={name!r} is not a model; known: {', '.join(sorted(MODEL_OPTIONS))}")
    kind: type[BaseModel] = importlib.import_module(f"models.{name}").Model
    model = (trainable(kind) if for_training else kind)(settings, for_training)  # type: ignore[arg-type]  # a class is hashable
    if for_training and frozen:
        model.load_frozen()
    if "net_g" in model.G and isinstance(model.G["net_g"], VolumeDecoder) and settings["norm"] != "instance":
        lay_channels_last(model.G["net_g"])  # a fifth less time in 32 bits; more with instance norm
    if for_training and settings["recompute"]:
        for name, network in (*model.G.items(), *model.D.items()):
            if name in RECOMPUTED:
                recompute(network)
    return model


@cache
def trainable(kind: type[BaseModel]) -> type[BaseModel]:
    """The same class as a ``LightningModule``."""
    from pytorch_lightning import LightningModule

    return type(kind.__name__, (kind, LightningModule), {"__module__": kind.__module__, "__doc__": kind.__doc__})


def load_components(
    model: BaseModel,
    run: RunFolder,
    epoch: int | None = None,
    *,
    ema: bool = False,
    dispensable: Container[str] = (),
) -> int:
    """Loads component files of a run into a model of the same shape.

    Args:
        epoch: completed epochs of the checkpoint; None is the latest.
        ema: take averaged weights for the components that have them.
        dispensable: components that keep their fresh weights, with a warning, where the run has no file of them.

    Returns:
        The epoch loaded.

    Raises:
        UserError: not a run, no such epoch, a component is missing, or its weights do not fit.
    """
    available = run.epochs()
    if not available:
        raise UserError(
            f"{run.path} holds no weights yet (checkpoints/NAME_model_epoch_N.pth): a training writes them every epoch_save "
            "epochs, at its end, and on Ctrl-C"
        )
    chosen = available[-1] if epoch is None else epoch
    if chosen not in available:
        raise UserError(f"{run.path} has no checkpoint of epoch {epoch}; it has {', '.join(map(str, available))}")
    run.manifest.check_set(chosen)
    averaged = ema and any(run.component(name, chosen, ema=True).is_file() for name in model.G)
    for name, component in model.components().items():
        path = run.component(name, chosen, ema=averaged and name in model.G)
        if not path.is_file() and name in dispensable:
            log.warning("%s was trained without %s, which starts with fresh weights", run.path, name)
            continue
        if not path.is_file():
            raise UserError(f"{path} is missing; this run cannot supply the component {name!r}")
        state = _read(path)
        try:
            component.load_state_dict(state)
        except (RuntimeError, TypeError) as error:
            first, *others = str(error).splitlines()[1:] or [str(error)]
            raise UserError(
                f"{path} does not fit this model: {first.strip()}"
                + (f" (and {len(others)} more)" if others else "")
                + f"; the networks must be set as in {run.path} ({_set_there(model, run)})"
            ) from error
        bad = next((key for key, value in component.state_dict().items() if not bool(value.isfinite().all())), None)
        if bad is not None:
            raise UserError(f"{path}: {bad} is NaN or infinite; copy the file again or name another epoch")
    return chosen


def _set_there(model: BaseModel, run: RunFolder) -> str:
    """What a run sets otherwise than a model, of all that shapes networks; or, of imported weights, what that may be."""
    stored = run.stored_settings(MODEL_OPTIONS) if run.starts() >= 0 else {}
    found = shaped_otherwise(model.settings, stored)
    return ", ".join(f"{name} {as_text(value)}" for name, value in found.items()) or "ldmyaml, ngf, ndf, netD, norm, ..."


def shaped_otherwise(settings: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What shapes networks or volumes in other settings and differs from ``settings``, where both know it."""
    options = [option for known in MODEL_OPTIONS.values() for option in known if option.group in ("networks", "geometry")]
    names = dict.fromkeys(["models", *(option.name for option in options if option.name != "teacher")])
    return {name: other[name] for name in names if name in settings and name in other and settings[name] != other[name]}


def _read(path: Path) -> dict[str, Any]:
    """The tensors of a component file by name; nothing in it is executed."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, OSError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        reason = "these are no weights" if isinstance(error, pickle.UnpicklingError) else error  # torch's words are dangerous
        raise UserError(f"{path} cannot be read ({reason}); it is damaged: copy it again or name another epoch") from error


def make_fast(model: BaseModel) -> BaseModel:
    """Turns a loaded model into one that only computes: the same values up to rounding, sooner (results/layout_cpu.json).

    Batch norms become part of their convolutions, and weights lie with their channels last in memory.
    """
    model.requires_grad_(False).eval()
    if "net_g" in model.G:
        fold_batch_norm(model.G["net_g"])
    for name, part in model.G.items():
        if name == "encoder" or name.startswith("net_"):
            plane = any(parameter.dim() == 4 for parameter in part.parameters())  # a 2-D network
            part.to(memory_format=torch.channels_last if plane else torch.channels_last_3d)
    return model
