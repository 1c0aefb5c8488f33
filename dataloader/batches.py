"""Batches from worker processes that may be killed: new ones go on from the very crop."""

import logging
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from dataloader.sampler import CropSampler
from dataloader.steady import DataLost
from utils.errors import UserError

log = logging.getLogger("isoscope")
MOST_KILLED = 3  # times that worker processes are replaced in an epoch


class Batches(DataLoader[dict[str, Any]]):
    """A DataLoader of a :class:`CropSampler` whose worker processes are replaced where the system has killed them.

    Torch would raise wherever the program happens to be, within a step too; here it is met where the next batch is asked for,
    after at most five seconds.

    Raises:
        UserError: as a worker process has raised it, without its traceback; DataLost: they were killed too often.
    """

    sampler: CropSampler

    def __init__(self, dataset: Dataset[dict[str, Any]], sampler: CropSampler, batch_size: int, workers: int) -> None:
        super().__init__(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            num_workers=workers,
            persistent_workers=workers > 0,
            # others, which Python 3.14 prefers, import everything anew and outlive a first process that is killed
            multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_leave_stops_to_the_first_process,
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        skip, given, killed = self.sampler.skip, 0, 0
        while True:
            try:
                for batch in self._as_torch_has_it():
                    given += 1
                    yield batch
                return
            except UserError as error:
                raise type(error)(str(error).rpartition(f"{type(error).__name__}: ")[2].rstrip()) from None
            except (RuntimeError, OSError, EOFError) as error:
                if self.num_workers == 0 or str(error).startswith("Caught "):  # torch's word for what a worker has raised
                    raise
                killed += 1
                self._end_workers()
                if killed > MOST_KILLED:
                    raise DataLost(
                        f"processes that prepare crops were killed {killed} times in an epoch ({error}), as systems do where "
                        "memory ends: give fewer --workers (0: none), and go on with --resume"
                    ) from error
                log.warning("a process that prepares crops was killed (%s); new ones go on from the same crop", error)
                self.sampler.skip = skip + given * (self.batch_size or 1)

    def _as_torch_has_it(self) -> Iterator[Any]:
        """Its iterator, but its handler for the deaths of processes is taken back."""
        if threading.current_thread() is not threading.main_thread():
            return super().__iter__()
        before = signal.getsignal(signal.SIGCHLD)
        try:
            return super().__iter__()
        finally:
            signal.signal(signal.SIGCHLD, before or signal.SIG_DFL)

    def _end_workers(self) -> None:
        if (iterator := getattr(self._iterator, "_shutdown_workers", None)) is not None:
            iterator()
        self._iterator = None


def _leave_stops_to_the_first_process(worker: int) -> None:
    """Ctrl-C and a scheduler's signals go to all processes of a job; SIGTERM is also how torch ends the workers."""
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
