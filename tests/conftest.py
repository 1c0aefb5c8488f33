"""What every test can use: golden fixtures, strict loading of their weights and the comparison of gradient norms."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.workspace import workspace  # noqa: F401  (a fixture)

GOLDENS = Path(__file__).parent / "goldens"
sys.path.insert(0, str(GOLDENS))

from load_golden import Golden, load  # noqa: E402  (its folder has to be on the path first)

LoadWeights = Callable[..., None]
CheckGradients = Callable[..., None]


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Golden]:
    """``golden("decoder")`` reads tests/goldens/decoder.npz: arrays by name, ``.meta`` and ``.weights()``."""
    return load


def _load_weights(module: nn.Module, weights: Mapping[str, np.ndarray], prefix: str = "", drop: tuple[str, ...] = ()) -> None:
    state = {
        key.removeprefix(prefix): torch.from_numpy(np.array(value))  # a copy: 0-d and read-only arrays too
        for key, value in weights.items()
        if key.startswith(prefix) and not key.removeprefix(prefix).startswith(drop)
    }
    assert state, f"no weight begins with {prefix!r}"
    module.load_state_dict(state, strict=True)


@pytest.fixture(scope="session")
def load_weights() -> LoadWeights:
    """``load_weights(module, golden.weights(), prefix="encoder.", drop=("conv7_g.",))`` loads strictly.

    Only keys that begin with ``prefix`` are used (it is cut off); of these, keys that begin with an entry of ``drop`` are
    left out.
    """
    return _load_weights


def _check_gradient_norms(
    module: nn.Module, reference: Mapping[str, np.ndarray], prefix: str = "gnorm.", rtol: float = 1e-4
) -> None:
    """Every stored norm must belong to a parameter and every parameter must have one.

    Gradients that are zero in exact arithmetic (a bias before a norm, the bias of the attention keys) are rounding noise in both
    implementations, so the absolute floor is 1e-7 of the largest norm.
    """
    norms = {key.removeprefix(prefix): float(value) for key, value in reference.items() if key.startswith(prefix)}
    parameters = dict(module.named_parameters())
    assert norms.keys() == parameters.keys()
    floor = 1e-7 * max(norms.values())
    for key, parameter in parameters.items():
        actual = 0.0 if parameter.grad is None else parameter.grad.double().norm().item()
        assert actual == pytest.approx(norms[key], rel=rtol, abs=floor), key


@pytest.fixture(scope="session")
def check_gradient_norms() -> CheckGradients:
    """``check_gradient_norms(module, golden, prefix="gnorm.")`` compares ``.grad`` of all parameters with the stored L2 norms."""
    return _check_gradient_norms


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test draws the same weights and noise each time."""
    torch.manual_seed(0)
