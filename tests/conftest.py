"""What every test can use."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.parity.golden import Golden, load
from tests.workspace import workspace  # noqa: F401  (a fixture)

GOLDENS = Path(__file__).parent / "goldens"


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Golden]:
    """``golden("decoder")`` reads tests/goldens/decoder.npz: arrays by name, ``.meta`` and ``.weights()``.

    What these files hold is compared by benchmarks/parity.py alone; here they serve as data.
    """
    return lambda name: load(GOLDENS / f"{name}.npz")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same weights and noise each time."""
    torch.manual_seed(0)
