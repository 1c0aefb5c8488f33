"""What a training shows while it runs: pictures of one sample, and how far it is."""

import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.utils.data import default_collate
from tqdm import tqdm

from dataloader.sampler import done_so_far
from experiment.runs import RunFolder
from training.trackers import log_picture
from utils.pictures import keep_newest, orthogonal_planes, save_png
from utils.units import as_time

log = logging.getLogger(__name__)

_BLOCKS = "▁▂▃▄▅▆▇█"


class PictureWriter(Callback):
    """Every few epochs one labelled picture of the same sample, as PNG and in the trackers."""

    def __init__(self, run: RunFolder, sample: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
        """Of one sample of the dataset (DataModule.sample), every ``picture_epochs``; the newest ``keep_pictures`` files stay."""
        self.run, self.every, self.keep = run, settings["picture_epochs"], settings["keep_pictures"]
        self.batch = default_collate([{"img": sample["img"], "filenames": sample["filenames"]}])
        truth = sample["truth"] if settings.get("tc") else sample["truth"][-1:]  # what two folders translate to is the second
        self.truth = torch.cat(truth) if truth else None

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Draws after every `every` epochs and after the last one."""
        completed = trainer.current_epoch + 1
        due = completed % self.every == 0 or completed == trainer.max_epochs
        if due and trainer.is_global_zero:
            self.draw(trainer, pl_module, completed)

    def draw(self, trainer: pl.Trainer, pl_module: Any, completed: int) -> None:
        """Writes the picture of the model as it is now."""
        moved = {"img": [image.to(pl_module.device) for image in self.batch["img"]]}
        panels: dict[str, Tensor] = pl_module.preview(moved)
        *_, last = panels.values()
        if self.truth is not None and self.truth.shape == last.shape:
            panels["truth"] = self.truth
        image = orthogonal_planes(
            {name: volume.float().cpu().numpy() for name, volume in panels.items()},
            title=f"{self.batch['filenames'][0]}, after {completed} epochs",
            scale_of=next(iter(panels)),  # the same in all pictures
        )
        file = self.run.picture(completed)
        save_png(file, image)
        keep_newest(self.run.pictures, "epoch_*.png", self.keep)
        log_picture(trainer, file)


class Progress(Callback):
    """How far the training is: one bar for all epochs in a terminal, else a line now and then; a line with every picture."""

    SHOWN = ("loss/generator/lateral", "loss/generator/projection", "loss/generator/recon", "codes/used")
    LINE = "loss/generator/total"
    FIRST, PAUSE, SHARE = 10.0, 60.0, 0.01  # without a terminal: seconds to the first line, between two, and of the whole
    LOOK = 1.0  # seconds between two looks at the losses, each of which waits for the device

    def __init__(self, run: RunFolder, settings: Mapping[str, Any]) -> None:
        self.run, self.monitor = run, settings["monitor"]
        self.bar: tqdm | None = None
        self.done = self.total = self.first = 0  # batches; those at the start of this one
        self.started = self.looked = self.said = 0.0
        self.seen: list[float] = []
        self.values: dict[str, float] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Opens the bar where a resumed training left it."""
        batches = int(trainer.num_training_batches)
        if trainer.is_global_zero:
            epochs, within = done_so_far(trainer)
            self.first = self.done = epochs * batches + within
            self.total = (trainer.max_epochs or 0) * batches
            self.started = self.looked = time.monotonic()
            self.said = self.started - self.PAUSE + self.FIRST
            how: dict[str, Any] = {"unit": "step", "dynamic_ncols": True, "mininterval": 1, "disable": None}
            self.bar = tqdm(total=self.total, initial=self.done, **how)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Moves on by one batch."""
        if self.bar is None:
            return
        self.done += 1
        now = time.monotonic()
        if now - self.looked >= self.LOOK or self.done == self.first + 1:
            self._look(trainer, now)
        self.bar.update()
        each = (now - self.started) / (self.done - self.first)
        left = (self.total - self.done) * each
        if self.bar.disable and self.done < self.total and now - self.said >= max(self.PAUSE, self.SHARE * left):
            self.said = now
            where = f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}, step {self.done} of {self.total}"
            losses = "".join(f", {name} {value:.3g}" for name, value in self.values.items())
            log.info("%s%s; %s a step, %s left", where, losses, as_time(each), as_time(left))

    def _look(self, trainer: pl.Trainer, now: float) -> None:
        """Takes note of the losses, and shows them beside the bar."""
        assert self.bar is not None
        self.looked = now
        metrics = trainer.callback_metrics
        self.values = {name: float(metrics[name]) for name in self.SHOWN if name in metrics}
        if self.LINE in metrics:
            self.seen.append(float(metrics[self.LINE]))
        self.bar.set_description(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", refresh=False)
        self.bar.set_postfix({name.split("/", 1)[-1]: f"{value:.3g}" for name, value in self.values.items()}, refresh=False)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Says what came of the training so far, where there is a picture of it."""
        picture = self.run.picture(trainer.current_epoch + 1)
        if self.bar is None or not picture.is_file():
            return
        self._look(trainer, time.monotonic())
        watched = trainer.callback_metrics.get(self.monitor)
        known = [] if watched is None else [f"{self.monitor} {float(watched):.4g}"]
        course = f"{self.LINE} {sparkline(self.seen)} {self.seen[-1]:.3g}" if self.seen else ""
        log.info("after epoch %d: %s", trainer.current_epoch + 1, ", ".join([course, *known, str(picture)]))

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """What is said of it gets a line of its own."""
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Closes the bar."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def sparkline(values: Sequence[float], width: int = 16) -> str:
    """The course of values in so many characters or fewer, each the mean of its share; the lowest is the smallest value."""
    finite = [value for value in values if math.isfinite(value)]
    parts = [part for part in np.array_split(np.array(finite, np.float64), min(width, len(finite)) or 1) if part.size]
    means = np.array([part.mean() for part in parts])
    if not means.size:
        return ""
    low, high = means.min(), means.max()
    levels = np.rint((means - low) / (high - low or 1) * (len(_BLOCKS) - 1)).astype(int)
    return "".join(_BLOCKS[level] for level in levels)
