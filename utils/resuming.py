"""Where a training goes on, as Lightning counts it."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl


def done_so_far(trainer: pl.Trainer) -> tuple[int, int]:
    """Whole epochs that are done, and batches of the one that was broken off.

    All its batches where it was stopped after the last one: then the next epoch is about to begin. Known before Lightning tells
    anyone the epoch of a resumed training.
    """
    epoch: Any = trainer.fit_loop.epoch_progress.current
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current  # of the last epoch, where none is broken off
    return epoch.processed, batches.processed if epoch.ready > epoch.processed else 0
