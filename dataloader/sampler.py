"""The order of the samples: a function of seed and epoch alone, so that a resumed run sees what an unbroken one would."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import Sampler

from utils.errors import UserError

if TYPE_CHECKING:
    import pytorch_lightning as pl


APART = 12  # batches from a sample to the next of its neighbours


class CropSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, index) for one of several processes.

    Training: the permutation of an epoch is cut into global batches of ``world * batch_size``; the incomplete rest is
    dropped (other samples in every epoch), so every process has the same number of full batches, and the processes
    together see the batches that a single one with the larger batch would. Validation (``shuffle=False``): file order
    and epoch 0; the first samples are repeated at the end until every process has equally many.

    Attributes:
        skip: samples of this process to leave out of the next iteration, once (resuming within an epoch).
        groups: how many there are of samples that need the same part of a file; their numbers differ by multiples of this. They
            follow each other 12 batches apart, which mixes parts and gives all to the same one of 2, 3, 4, 6 or 12 workers.
    """

    def __init__(self, length: int, batch_size: int, *, seed: int = 0, rank: int = 0, world: int = 1, shuffle: bool = True):
        self.groups, self._together = length, world * batch_size
        self.length, self.seed, self.rank, self.world, self.shuffle = length, seed, rank, world, shuffle
        self.epoch = 0
        self.skip = 0
        if not shuffle:
            self._total = -(-length // world) * world
            return
        self._total = length // self._together * self._together
        if self._total == 0:
            need = f"batch_size={batch_size}" + (f" on {world} processes" if world > 1 else "")
            raise UserError(
                f"{length} samples in an epoch are fewer than one batch ({need}); "
                f"set crops_per_volume at least {-(-self._together // length)} times as high, or lower batch_size"
            )

    def __len__(self) -> int:
        return self._total // self.world

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration (Lightning calls it too)."""
        self.epoch = epoch

    def continue_at(self, epochs: int, samples: int) -> None:
        """Go on after so many epochs and, in the next one, samples of this process; all of them: the next is about to begin."""
        self.epoch, self.skip = (epochs + 1, 0) if samples >= len(self) else (epochs, samples)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        skip, self.skip = self.skip, 0
        if self.shuffle:
            order = self._mixed(np.random.default_rng([self.seed, self.epoch]).permutation(self.groups))
        else:
            order = np.arange(self.length)
        mine = np.resize(order, self._total)[self.rank :: self.world]
        epoch = self.epoch if self.shuffle else 0
        for index in mine[skip:]:
            yield epoch, int(index)

    def _mixed(self, groups: np.ndarray) -> np.ndarray:
        """The samples of some groups in turns, then of the next ones; last of the groups that fill batches, and of the rest."""
        some = APART * self._together
        ends = sorted({*range(some, len(groups), some), len(groups) // self._together * self._together})
        turns = self.groups * np.arange(-(-self.length // self.groups))[:, None]
        order = np.concatenate([(turns + part).ravel() for part in np.split(groups, ends)])
        return order[order < self.length]


def done_so_far(trainer: pl.Trainer) -> tuple[int, int]:
    """Whole epochs that are done, and batches of the one that was broken off, as Lightning counts them.

    All its batches where it was stopped after the last one: then the next epoch is about to begin. Known before Lightning tells
    anyone the epoch of a resumed training.
    """
    epoch: Any = trainer.fit_loop.epoch_progress.current
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress.current  # of the last epoch, where none is broken off
    return epoch.processed, batches.processed if epoch.ready > epoch.processed else 0
