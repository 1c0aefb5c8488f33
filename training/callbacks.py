"""What a training leaves behind: checkpoints; how it stops, and gives way to other programs."""

import io
import logging
import math
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import TorchCheckpointIO
from pytorch_lightning.callbacks import Callback, Checkpoint

from dataloader.steady import DataLost
from experiment.rules import parse_duration
from experiment.runs import RunFolder, higher_is_better
from utils.errors import CTRL_C, SCHEDULERS
from utils.files import replaced
from utils.threads import Threads

log = logging.getLogger(__name__)

GO_ON = "what was saved before is as it was: make room and go on with --resume"
STOP_SIGNALS = (signal.SIGINT, *SCHEDULERS, signal.SIGHUP)  # the last one: the terminal was closed


class InPlace(TorchCheckpointIO):
    """Writes a checkpoint where it is to be: Lightning's own stages it in the temporary folder, which may be small or full."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """In one write, of which the operating system says whether the disc is full; torch's own says where it was."""
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        Path(path).write_bytes(buffer.getbuffer())


class RunKeeper(Checkpoint):
    """Writes checkpoints and turns signals and the time limit into a clean stop.

    A set of component files after every `epoch_save` epochs, after the last epoch and at a stop, never over a finished one;
    ``last.ckpt`` then too, and at any epoch end when `save_minutes` have passed; ``best.ckpt`` when the watched validation metric
    improves. A stop waits for the end of the accumulation window, because gradients are not saved; the first signal stops
    gracefully, a Ctrl-C after it at once (schedulers send several, none of which may break off a save).
    """

    def __init__(self, run: RunFolder, settings: Mapping[str, Any]) -> None:
        self.run, self.epoch_save, self.monitor = run, settings["epoch_save"], settings["monitor"]
        self.save_seconds, self.max_seconds = 60 * settings["save_minutes"], parse_duration(settings["max_time"])
        self.best: float | None = None
        self.reason = ""  # why the training is to stop
        self.stopped = False
        self._said = False
        self._started = self._saved = time.monotonic()
        self._handlers: dict[int, Any] = {}

    # Stopping

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Takes over the signals, after Lightning has set its own."""
        self._started = self._saved = time.monotonic()
        if trainer.is_global_zero:
            self.run.manifest.begin()
        if threading.current_thread() is threading.main_thread():
            nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            heard = [number for number in STOP_SIGNALS if not (nohup and number == signal.SIGHUP)]
            self._handlers = {number: signal.signal(number, self._on_signal) for number in heard}

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Gives the signals back."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}

    def _on_signal(self, number: int, frame: object) -> None:
        if self.reason and number == signal.SIGINT:
            sys.exit(CTRL_C)
        if not self.reason:
            self.reason = signal.Signals(number).name
            log.info("%s: stopping after this step; Ctrl-C to stop at once", self.reason)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Saves and stops in the middle of an epoch if asked to; at its end on_train_epoch_end does."""
        if self.max_seconds is not None and not self.reason and time.monotonic() - self._started > self.max_seconds:
            self.reason = "max_time"
        accumulate = pl_module.settings["accumulate_grad_batches"]
        if (batch_idx + 1) % accumulate or trainer.is_last_batch or not self._stop_wanted(trainer):
            return
        self.stopped = trainer.should_stop = True
        self._write_components(trainer, pl_module, trainer.current_epoch)
        self._write_last(trainer, pl_module)

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Saves what was trained before data were lost, between two steps; several processes cannot save where one has gone."""
        batches: int = trainer.fit_loop.epoch_loop.batch_progress.current.completed
        between = trainer.training and batches % pl_module.settings["accumulate_grad_batches"] == 0
        if isinstance(exception, DataLost) and between and trainer.world_size == 1:
            self._write_last(trainer, pl_module)

    def _stop_wanted(self, trainer: pl.Trainer) -> bool:
        if trainer.world_size == 1:
            return bool(self.reason)
        wanted = trainer.strategy.reduce_boolean_decision(bool(self.reason), all=False)
        self.reason = self.reason or ("another rank's stop" if wanted else "")
        return wanted

    # Saving

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Runs after the model's own epoch end, so that schedules are already stepped."""
        if self.stopped:
            return
        completed = trainer.current_epoch + 1
        stop = self._stop_wanted(trainer)
        due = completed % self.epoch_save == 0 or completed == trainer.max_epochs or stop
        if due:
            self._write_components(trainer, pl_module, completed)
        self._write_best(trainer, pl_module)
        late = time.monotonic() - self._saved >= self.save_seconds
        if trainer.strategy.reduce_boolean_decision(due or late, all=False):
            self._write_last(trainer, pl_module)
        if stop:
            self.stopped = trainer.should_stop = True

    def _write_components(self, trainer: pl.Trainer, pl_module: Any, completed: int) -> None:
        pl_module.require_savable()
        if not trainer.is_global_zero or completed in self.run.epochs():
            return
        written = []
        for ema in (False, True):
            for name, component in pl_module.components(ema).items():
                state = {k: v.detach().cpu().clone() for k, v in component.state_dict().items()}
                path = self.run.component(name, completed, ema)
                with replaced(path, GO_ON) as partial:
                    InPlace().save_checkpoint(state, partial)
                written.append(path)
        self.run.manifest.add_set(completed, written)

    def _write_best(self, trainer: pl.Trainer, pl_module: Any) -> None:
        value = pl_module.metric(self.monitor)
        if value is None:
            known = [name for name in trainer.callback_metrics if name.startswith("validation/")]
            if known and not self._said and trainer.is_global_zero:
                logged = ", ".join(known)
                log.warning("monitor=%s is not logged, so there will be no best.ckpt; logged are %s", self.monitor, logged)
                self._said = True
            return
        sign = -1 if higher_is_better(self.monitor) else 1
        if math.isfinite(value) and (self.best is None or sign * value < sign * self.best):
            self.best = value
            self._write(trainer, pl_module, self.run.best)

    def _write_last(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._write(trainer, pl_module, self.run.last)
        self._saved = time.monotonic()

    def _write(self, trainer: pl.Trainer, pl_module: Any, path: Path) -> None:
        pl_module.require_savable()
        with replaced(path, GO_ON) if trainer.is_global_zero else nullcontext(path) as partial:
            trainer.save_checkpoint(partial)  # every rank takes part; the first one writes
            if path == self.run.last and trainer.is_global_zero:
                self.run.manifest.keep_previous(partial)

    def state_dict(self) -> dict[str, Any]:
        """The best value so far goes into the checkpoint."""
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """And comes back."""
        self.best = state_dict["best"]


class GivesWay(Callback):
    """Every step is computed by the threads that other programs leave (utils.threads)."""

    threads: Threads | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begins to watch, once Lightning has shared the processors among its processes."""
        self.threads = Threads()
        self.threads.fit()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Looks at the load."""
        if self.threads is not None:
            self.threads.fit()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Gives the threads back."""
        if self.threads is not None:
            self.threads.release()
