"""The model as a training starts with it: fresh, or from another run's weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.base import BaseModel
from models.build import build_model, load_components
from utils.errors import UserError
from utils.runs import RunFolder


def model_to_train(settings: Mapping[str, Any], logs: Path) -> BaseModel:
    """The model of complete settings; a fresh training may start from another run (``--init``).

    Raises:
        UserError: weights that it needs are missing, damaged or do not fit.
    """
    model = build_model(settings)
    if settings["init"] and not settings["resume"]:
        initialise_from(model, settings["init"], logs)
    return model


def initialise_from(model: BaseModel, reference: str, logs: Path) -> int:
    """Starts a training from another run's weights (``--init RUN[@EPOCH]``); its codebook is then left alone.

    Discriminators and the contrastive term's perceptrons, which a run of other losses has not, may be missing there.

    Args:
        model: gets the weights.
        reference: a run's folder, absolute, relative to the working directory or to `logs`, with the epoch after ``@``.
        logs: the folder of runs.

    Returns:
        The epoch loaded.

    Raises:
        UserError: no such run or epoch, or its weights do not fit.
    """
    name, _, epoch = reference.partition("@")
    if epoch and not epoch.isdigit():
        raise UserError(f"--init {reference!r}: the epoch after @ must be a number")
    folder = next((path for path in (Path(name), logs / name) if path.is_dir()), None)
    if folder is None:
        raise UserError(f"--init {reference!r}: neither {name} nor {logs / name} is a folder")
    model.weights_loaded = True
    only_for_training = {*model.D, "netF"}
    return load_components(model, RunFolder(folder), int(epoch) if epoch else None, dispensable=only_for_training)
