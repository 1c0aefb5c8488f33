"""The model as a training starts with it, and the Lightning trainer of a run."""

import logging
import pickle
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from experiment.runs import RunFolder
from experiment.teachers import folder_of_run, needs_teacher
from models.base import BaseModel
from models.build import build_model, load_components
from training.callbacks import GO_ON, GivesWay, InPlace, RunKeeper
from training.requirements import smaller
from training.shown import PictureWriter, Progress
from training.trackers import Tracking, build_loggers
from utils.errors import UserError, is_full
from utils.machine import in_bf16, lacks_memory, warn_of_cudnn
from utils.processes import several


def model_to_train(settings: Mapping[str, Any], logs: Path, record: Mapping[str, Any]) -> BaseModel:
    """The model of complete settings; a fresh training may start from another run (``--init``).

    Args:
        settings: of the training.
        logs: the folder of runs.
        record: what the training's dataset.json will say.

    Raises:
        UserError: weights that it needs are missing, damaged or do not fit, or those of a teacher are for other grey values.
    """
    if needs_teacher(settings):
        settings = {**settings, "teacher": str(folder_of_run("--teacher", settings["teacher"], logs))}
    model = build_model(settings)
    if model.teacher is not None:
        model.teacher.check_intensities(record)
    if settings["init"] and not settings["resume"]:
        initialise_from(model, settings["init"], logs)
    return model


def initialise_from(model: BaseModel, reference: str, logs: Path) -> int:
    """Starts a training from another run's weights (``--init RUN[@EPOCH]``); its codebook is then left alone.

    Discriminators, the contrastive term's perceptrons and the volume decoder, which a run of other losses has not, may be
    missing there.

    Args:
        reference: a run's folder, absolute, relative to the working directory or to `logs`, with the epoch after ``@``.
        logs: the folder of runs.

    Returns the epoch loaded; a UserError says that there is no such run or epoch, or that its weights do not fit.
    """
    name, _, epoch = reference.partition("@")
    if epoch and not epoch.isdigit():
        raise UserError(f"--init {reference!r}: the epoch after @ must be a number")
    folder = folder_of_run("--init", name, logs)
    model.weights_loaded = True
    # of what is lacking because that run's losses did not need it
    lacking = {*model.D, "netF"} | ({"net_g", "net_t"} if "encoder" in model.G else set())
    return load_components(model, RunFolder(folder), int(epoch) if epoch else None, dispensable=lacking)


def _quieten() -> None:
    """Lightning's hints that are wrong or useless here; its warnings stay."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (
        ".*isinstance.treespec, LeafSpec.*",
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*your dataloader is not resumable.*",  # our sampler is: DataModule.train_dataloader
        ".*lr_scheduler.step.* before .*optimizer.step.*",  # of discriminators whose losses do not act yet
    ):
        warnings.filterwarnings("ignore", message=message)


def device_count(devices: int | str) -> int:
    """How many processes a node runs: ``auto`` is every GPU, or one CPU process."""
    return max(1, torch.cuda.device_count()) if devices == "auto" else int(devices)


def require_devices(settings: Mapping[str, Any]) -> None:
    """Checks that this machine has the GPUs asked for; a machine without any runs so many processes on its CPU.

    Raises:
        UserError: it has fewer, or they cannot compute in the precision asked for.
    """
    wanted, there = device_count(settings["devices"]), torch.cuda.device_count()
    if torch.cuda.is_available() and wanted > there:
        raise UserError(f"devices={wanted}, but this machine has {there} GPUs; give --devices {there} or leave it out (auto)")
    precision_of(settings)
    warn_of_cudnn()


def precision_of(settings: Mapping[str, Any]) -> str:
    """The precision asked for; by default bf16-mixed on a GPU that has it, else 32 bits."""
    wanted = None if settings["precision"] is None else settings["precision"] == "bf16-mixed"
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return "bf16-mixed" if in_bf16(device, wanted) else "32"


def build_trainer(settings: Mapping[str, Any], run: RunFolder, sample: Mapping[str, Any], *, validates: bool) -> pl.Trainer:
    """Manual optimisation does accumulation and clipping itself; seeding needs our own sampler.

    Args:
        sample: the sample that the pictures show.
        validates: whether there is validation data.

    Raises:
        UserError: the schedule waits for a validation metric that there will not be.
    """
    if settings["lr_policy"] == "plateau" and settings["monitor"].startswith("validation/") and not validates:
        raise UserError(
            f"lr_policy plateau watches --monitor {settings['monitor']!r}, but there is no validation data; "
            "add the folder val/ beside train/, or watch a training loss such as --monitor loss/generator/projection"
        )
    _quieten()
    devices = device_count(settings["devices"])
    parallel = settings["strategy"] == "ddp" or devices * settings["num_nodes"] > 1
    return pl.Trainer(
        max_epochs=settings["n_epochs"],
        accelerator="gpu" if torch.cuda.is_available() else "cpu",
        devices=devices,
        num_nodes=settings["num_nodes"],
        # every backward pass leaves one side's parameters unused, which plain DDP refuses
        strategy="ddp_find_unused_parameters_true" if parallel else "auto",
        precision=precision_of(settings),  # type: ignore[arg-type]
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=settings["val_epochs"],
        log_every_n_steps=settings["log_steps"],
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=1.0 if validates else 0,
        logger=build_loggers(settings, run),
        plugins=[InPlace()],
        callbacks=[
            GivesWay(),
            Tracking(run, settings),
            PictureWriter(run, sample, settings),
            Progress(run, settings),
            RunKeeper(run, settings),
        ],
    )


@contextmanager
def explained(settings: Mapping[str, Any], run: RunFolder) -> Iterator[None]:
    """A UserError that says what can be done: memory, disc, another process that has gone, a checkpoint that is none.

    Ctrl-C stays what it is.
    """
    try:
        yield
    except OSError as error:
        if not is_full(error):
            raise
        raise UserError(f"{error.filename or run.path}: the disc is full; {GO_ON}") from error
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # before the first step signals are not ours
            raise KeyboardInterrupt from error
        raise
    except pickle.UnpicklingError as error:  # torch's words advise to execute what a stranger wrote
        raise UserError(
            f"{run.last} is no checkpoint of a training: it holds more than numbers and names, which is not executed; copy it "
            "again, or start anew with --overwrite"
        ) from error
    except (RuntimeError, MemoryError) as error:
        if several() and "by peer" in str(error):
            raise UserError(
                "another process of this training has ended: what it said stands above, or the system has killed it, as where "
                "memory ends; what was saved before is as it was: go on with --resume"
            ) from error
        if not lacks_memory(error):
            raise
        size = {name: settings[name] for name in ("batch_size", "cropsize", "ngf", "adv_planes")}
        raise UserError(
            f"memory does not suffice for a step with {', '.join(f'{name} {value}' for name, value in size.items())}; "
            f"use {smaller(settings)} (prepare.py check says what a step needs). "
            "What was saved before is as it was"
        ) from error
