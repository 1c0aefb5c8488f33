"""What every test can use."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.parity.golden import Golden, load
from tests.workspace import workspace  # noqa: F401  (a fixture)
from utils import machine
from utils.errors import UserError
from volumes.open import open_volume
from writing.write import write_tiff

GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Golden]:
    """``golden("decoder")`` reads tests/goldens/decoder.npz: arrays by name, ``.meta`` and ``.weights()``.

    What these files hold is compared by benchmarks/parity.py alone; here they serve as data.
    """
    return lambda name: load(GOLDENS / f"{name}.npz")


@pytest.fixture(autouse=True, scope="session")
def steady_threads() -> None:
    """The load of the machine leaves the number of threads, and so the last bits, as they are; in other processes too."""
    os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same weights and noise each time."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def freed_memory() -> Iterator[None]:
    """A command that runs in the process of the tests leaves freed blocks to the system: a thousand hold gigabytes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(machine, "keep_freed_memory", lambda: None)
        yield


@pytest.fixture(autouse=True)
def messages(monkeypatch) -> None:
    """An experiment with ``debug`` makes the tracebacks of its process visible: not those of the next test."""
    monkeypatch.setattr(UserError, "shows_traceback", False)


@pytest.fixture
def voxels_read(tmp_path, monkeypatch) -> Callable[[Callable[[], object]], int]:
    """How many voxels of TIFF files are read while a call lasts."""
    write_tiff(tmp_path / "any.tif", np.zeros((2, 8, 8), np.uint8))
    kind, counts = type(open_volume(tmp_path / "any.tif")), []
    read_of_kind = kind._read

    def counted(self, *box):
        values = read_of_kind(self, *box)
        counts.append(values.size)
        return values

    monkeypatch.setattr(kind, "_read", counted)

    def count(call: Callable[[], object]) -> int:
        counts.clear()
        call()
        return sum(counts)

    return count
