"""Where curves, settings and pictures go (``--tracker``): TensorBoard, Weights & Biases, MLflow, CSV files.

By Lightning's loggers. All of them write into the run's folder ``logs/`` unless they are told of a server in their own ways
(``wandb login``, MLFLOW_TRACKING_URI). A resumed training goes on with the same entry of Weights & Biases and MLflow.
"""

import logging
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from PIL import Image
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities import rank_zero_only
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.data_compat import migrate_value
from torch.utils.tensorboard.summary import hparams

from experiment.options import BASE_OPTIONS, as_text
from experiment.runs import RunFolder
from models.options import MODEL_OPTIONS
from utils.files import read_mapping, write_json
from utils.packages import optional_package

log = logging.getLogger(__name__)

PICTURE = "pictures/planes"
DESCRIPTIONS = {  # of tags, by their beginning
    "loss/generator/total": "what the generator side descends: its terms, each times its weight",
    "loss/discriminator/total": "what the discriminators descend: their terms, each times its weight",
    "loss/generator/": "a term of the generator side, before its weight",
    "loss/discriminator/": "a term of the discriminators, before its weight",
    "codes/used": "codes that a step chose at least once; those of the codebook that are never used are lost bits",
    "codes/perplexity": "2 to the entropy of the codes of a step: as many equally likely codes would carry as much",
    "codes/revived": "codes that were long unused and were given a current encoder vector in this step",
    "validation/recon_psnr": "dB, of slices reconstructed from their codes; more is better",
    "validation/lateral_psnr": "dB, of rows restored from degraded slices; above interpolation_psnr, or it is of no use",
    "validation/interpolation_psnr": "dB, of cubic interpolation of the same rows",
    "validation/gradient_ratio": "gradients along z, relative to those in-plane: 1 is equally sharp, less is blurred along z",
    "validation/": "on the crops of val/, by the weights that infer.py takes; lower is better",
    "training/epoch": "the epoch, counted from 0",
    "training/samples_per_second": "crops that all processes trained on in a second",
    "training/learning_rate_": "of Adam",
    PICTURE: "middle planes of one sample that stays the same; black and white are percentiles 0.2 and 99.8 of its input",
}


def require_trackers(settings: Mapping[str, Any]) -> None:
    """Refuses, as a UserError, a tracker whose package is not installed."""
    for name, package in (("wandb", "wandb"), ("mlflow", "mlflow"), ("mlflow", "sqlalchemy"), ("mlflow", "alembic")):
        if name in tracked_by(settings):
            optional_package(package, f"--tracker {name}", name, "it")


def tracked_by(settings: Mapping[str, Any]) -> list[str]:
    """The trackers asked for."""
    return list(dict.fromkeys(settings["tracker"] or ["tensorboard"]))


def build_loggers(settings: Mapping[str, Any], run: RunFolder) -> list[Logger]:
    """The loggers of the trackers asked for; nothing is written yet."""
    return [_LOGGERS[name](settings, run) for name in tracked_by(settings)]


def hyper_parameters(settings: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """What decides what is learned, by name; sections of the autoencoder's settings are flattened with dots.

    Where runs and data lie, and when something is saved or shown, is left out.
    """
    options = {option.name: option for option in (*BASE_OPTIONS, *MODEL_OPTIONS[settings["models"]])}
    kept = {name: settings[name] for name, option in options.items() if option.group != "run" and name in settings}
    kept |= {name: settings[name] for name in ("models", "seed", "init")}
    return dict(_flat({**kept, "autoencoder": settings.get("autoencoder") or {}}))


def _flat(block: Mapping[str, Any], beginning: str = "") -> Any:
    for name, value in block.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{beginning}{name}.")
        else:
            yield f"{beginning}{name}", value if isinstance(value, bool | int | float | str) else as_text(value)


class TensorBoard(TensorBoardLogger):
    """With a description of every curve, and settings that its table compares between runs."""

    def __init__(self, *args: Any, **options: Any) -> None:
        """As TensorBoardLogger."""
        super().__init__(*args, **options)
        self._described: set[str] = set()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Adds a point to each curve; the first one twice, because TensorBoard keeps descriptions of tensors alone."""
        for name, number in metrics.items():
            value = Summary.Value(tag="training/epoch" if name == "epoch" else name, simple_value=float(number))
            described = [] if value.tag in self._described else [_described(value)]
            self._described.add(value.tag)
            self.experiment.file_writer.add_summary(Summary(value=[*described, value]), step)

    @rank_zero_only
    def log_picture(self, file: Path, step: int) -> None:
        """Adds a picture."""
        with Image.open(file) as opened:
            width, height = opened.size
        shown = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=file.read_bytes())
        self.experiment.file_writer.add_summary(Summary(value=[_described(Summary.Value(tag=PICTURE, image=shown))]), step)

    @rank_zero_only
    def log_hyperparams(self, params: Any, metrics: Any = None, step: int | None = None) -> None:
        """The settings of the run; its metrics are all its curves."""
        self.hparams.update(params)  # type: ignore[union-attr]
        for part in hparams(dict(params), {})[1:]:
            self.experiment.file_writer.add_summary(part)

    @rank_zero_only
    def forget_from(self, step: int) -> None:
        """What was logged of this step and later ones is not shown: a try that went on after the last checkpoint."""
        self.experiment.file_writer.add_event(Event(step=step, session_log=SessionLog(status=SessionLog.START)))


def _described(value: Any) -> Any:
    """A number or picture as a tensor, with the description of its tag."""
    about = Summary.Value()
    about.CopyFrom(value)
    about.metadata.summary_description = next((text for tag, text in DESCRIPTIONS.items() if value.tag.startswith(tag)), "")
    return migrate_value(about)


class Tracking(Callback):
    """Tells the trackers of the settings, and of whether the training goes on from an earlier start."""

    def __init__(self, run: RunFolder, settings: Mapping[str, Any]) -> None:
        self.run, self.settings = run, settings

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Settings, and under which names the trackers know this run."""
        if not trainer.is_global_zero:
            return
        step = steps_done(trainer)
        for logger in trainer.loggers:
            if step and isinstance(logger, TensorBoard):
                logger.forget_from(step + 1)
            params = hyper_parameters(self.settings)
            if isinstance(logger, MLFlowLogger):  # which refuses other values than before
                before = logger.experiment.get_run(logger.run_id).data.params
                params = {name: value for name, value in params.items() if name not in before}
            logger.log_hyperparams(params)
        known = {name: logger.version for logger in trainer.loggers for name, kind in _ONLINE.items() if isinstance(logger, kind)}
        if known:
            write_json(_identities(self.run), known)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Ends what runs beside the training."""
        if "wandb" in tracked_by(self.settings):
            import_module("wandb").finish()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """The same."""
        self.teardown(trainer, pl_module, "fit")


def steps_done(trainer: pl.Trainer) -> int:
    """Batches so far: the step of every curve and picture (Lightning's global_step counts both optimisers)."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def log_picture(trainer: pl.Trainer, file: Path) -> None:
    """Shows a PNG file in every tracker, at the step of the curves; CSV files get its path."""
    step = steps_done(trainer)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoard):
            logger.log_picture(file, step)
        elif isinstance(logger, WandbLogger):
            logger.log_image(PICTURE, [str(file)], step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_artifact(logger.run_id, str(file), PICTURE.split("/")[0])
        else:
            logger.log_metrics({PICTURE: str(file)}, step)  # type: ignore[dict-item]


def where_to_look(settings: Mapping[str, Any], run: RunFolder) -> list[str]:
    """How the trackers asked for are looked at."""
    beside = Path(sys.executable).with_name("tensorboard")  # by its path, where the environment is not activated
    tensorboard = "tensorboard" if shutil.which("tensorboard") or not beside.is_file() else str(beside)
    said = {
        "tensorboard": f"TensorBoard: {shlex.join([tensorboard, '--logdir', str(run.path.parent)])}",
        "csv": f"CSV: {run.logs / 'csv'}",
        "mlflow": f"MLflow: {os.environ.get('MLFLOW_TRACKING_URI') or _database(run)}",
    }
    return [said[name] for name in tracked_by(settings) if name in said]


def _database(run: RunFolder) -> str:
    return f"sqlite:///{run.logs.absolute() / 'mlflow.db'}"


def _identities(run: RunFolder) -> Path:
    return run.logs / "trackers.json"


def _known_as(run: RunFolder, name: str) -> str | None:
    """Under which name a tracker knows this run."""
    path = _identities(run)
    return read_mapping(path, "list of trackers").get(name) if path.is_file() else None


def _tensorboard(settings: Mapping[str, Any], run: RunFolder) -> Logger:
    return TensorBoard(run.path, name=run.logs.name, version="", default_hp_metric=False)


def _csv(settings: Mapping[str, Any], run: RunFolder) -> Logger:
    """One file for each start: Lightning's logger deletes a file that is there."""
    return CSVLogger(run.logs, name="csv", version=f"start_{run.starts()}")


def _wandb(settings: Mapping[str, Any], run: RunFolder) -> Logger:
    """Where one has logged in, online; else offline, or what WANDB_MODE says."""
    place = {"project": settings["dataset"], "save_dir": run.logs}
    first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    if first and not os.environ.get("WANDB_MODE") and not import_module("wandb").login(prompt=False):
        place["mode"] = "offline"
        log.info("wandb: not logged in, so it is kept in %s; wandb sync sends it", run.logs / "wandb")
    return WandbLogger(name=settings["prj"], id=_known_as(run, "wandb"), **place)


def _mlflow(settings: Mapping[str, Any], run: RunFolder) -> Logger:
    """In the store that MLFLOW_TRACKING_URI names, else in a database of the run's own."""
    place: dict[str, Any] = {"tracking_uri": os.environ.get("MLFLOW_TRACKING_URI")}
    if not place["tracking_uri"]:
        run.logs.mkdir(parents=True, exist_ok=True)
        folder = run.logs.absolute()
        place = {"tracking_uri": _database(run), "artifact_location": (folder / "mlflow").as_uri()}
    return MLFlowLogger(settings["dataset"], settings["prj"], run_id=_known_as(run, "mlflow"), **place)


_LOGGERS: dict[str, Callable[[Mapping[str, Any], RunFolder], Logger]] = {
    "tensorboard": _tensorboard,
    "wandb": _wandb,
    "mlflow": _mlflow,
    "csv": _csv,
}
_ONLINE = {"wandb": WandbLogger, "mlflow": MLFlowLogger}
