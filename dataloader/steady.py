"""Data while a training reads them for days: passing trouble is waited for, lasting trouble is named, files may be left out."""

import logging
import time

import numpy as np
import torch

from utils.errors import UserError
from utils.far import FarPath
from volumes.open import open_volume
from volumes.volume import Volume, reason

log = logging.getLogger("isoscope")
WAITS = (0.2, 0.8, 2.0)  # seconds before a file is tried once more


class DataLost(UserError):
    """Data that can be read no more, met before the next batch of a training was whole: the model is as the last one left it."""


class SteadyVolume(Volume):
    """A volume that is tried again where it cannot be read, and that has to stay what it was when it was opened.

    A file that was written anew meanwhile is opened again and read on, with a warning, where shape and dtype are the same.

    Raises:
        DataLost: after some tries the file is missing, damaged or unreadable, or holds values of another shape or dtype.
    """

    def __init__(self, volume: Volume) -> None:
        for name in Volume.__annotations__:
            setattr(self, name, getattr(volume, name))
        self._open = volume
        self._state: list[tuple[int, int]] | None = self._on_disc()

    def _on_disc(self) -> list[tuple[int, int]]:
        """What changes with every file that is written: bytes and time of its files; of far ones nothing is known."""
        near = [file for file in self.files or (self.path,) if not isinstance(file, FarPath)]
        return [(found.st_size, found.st_mtime_ns) for found in (file.stat() for file in near)]

    def _read(self, planes: range, rows: slice, columns: slice) -> np.ndarray:
        problem = ""
        for wait in (0.0, *WAITS):
            time.sleep(wait)
            try:
                if self._state is None:
                    self._open_anew()
                values = self._open[planes.start : planes.stop : planes.step, rows, columns]
                if self._on_disc() == self._state:
                    if problem:
                        log.warning("%s: %s; read after another try", self.path, problem)
                    return values
                problem = "it was written anew while in use"
            except (OSError, UserError) as error:
                problem = (isinstance(error, OSError) and error.strerror) or reason(error)
            self._state = None
        raise DataLost(f"{self.path} cannot be read ({problem}; tried {1 + len(WAITS)} times in {sum(WAITS):g} s)")

    def _open_anew(self) -> None:
        state, volume = self._on_disc(), open_volume(self.path)
        if (volume.shape, volume.dtype) != (self.shape, self.dtype):
            raise UserError(f"it is {volume.shape} {volume.dtype} now, was {self.shape} {self.dtype}")
        self._open, self._state = volume, state


class LeftOut:
    """Which files of a data set are left out since they became unreadable; known to all worker processes of a training.

    Args:
        files: how many there are.
        most: how many may be left out.
    """

    def __init__(self, files: int, most: int) -> None:
        self._flags, self.most = torch.zeros(files, dtype=torch.bool).share_memory_(), most

    def stand_in(self, label: int) -> int:
        """The number of a file, or of the next one that is not left out; its own, for it to be named, where all are."""
        flags = self._flags.tolist()
        return next((k for k in (*range(label, len(flags)), *range(label)) if not flags[k]), label)

    def add(self, label: int, problem: DataLost) -> None:
        """Leaves a file out; DataLost: too many are."""
        self._flags[label] = True
        number = int(self._flags.sum())
        if number > self.most or number == len(self._flags):
            raise DataLost(
                f"{problem}; put it back as it was and go on with --resume; --unreadable_files N trains on while no more than "
                f"N files (now {self.most}) are missed"
            ) from problem
        log.warning("%s: left out until the training is started again; file %d of at most %d", problem, number, self.most)
