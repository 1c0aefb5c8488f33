"""What a replay compares, and the account of what it did with every entry of a fixture."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.parity.golden import Golden

ACTIVATION = 1e-5  # absolute
LOSS = 1e-5  # relative
NORM = 1e-4  # relative, of gradient norms
EXACT_F64 = 1e-6  # relative, of losses in double precision, which the fixtures store as float32
# Gradients that are zero in exact arithmetic (a bias before a norm, the bias of the attention keys) are rounding noise in both
# implementations. As shares of the largest norm of the same pass: below the first, both count as zero; the second is the
# resolution of all others.
ZERO_GRADIENT, GRADIENT_RESOLUTION = 1e-5, 1e-7
SPREADS = 3  # of an allowance for rounding, see Check
RUNNING_KEYS = ("running_mean", "running_var", "num_batches_tracked")

Values = Tensor | np.ndarray | float | int


@dataclass(frozen=True)
class Check:
    """One quantity: ours, the fixture's and how far apart they may be, ``absolute + relative * |fixture's|`` for each entry.

    To this comes :data:`SPREADS` times ``rounding``, the most that other rounding was seen to change.
    """

    key: str
    ours: np.ndarray
    reference: np.ndarray
    absolute: float
    relative: float
    rounding: np.ndarray | float = 0.0

    @property
    def deviation(self) -> float:
        """The largest difference; infinite where shapes differ or a value is not finite."""
        return float(self._difference().max(initial=0.0))

    @property
    def share(self) -> float:
        """The largest difference as a share of what is allowed; the check passes up to 1."""
        difference = self._difference()
        allowed = self.absolute + self.relative * np.abs(self.reference.astype(np.float64)) + SPREADS * self.rounding
        if difference.shape != allowed.shape:
            return np.inf
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = np.where(difference == 0, 0.0, difference / allowed)
        return float(np.nan_to_num(shares, nan=np.inf).max(initial=0.0))

    def against(self, reference: np.ndarray) -> Check:
        """The same check with another reference."""
        return replace(self, reference=reference)

    def rounded(self, other: Check) -> Check:
        """The same check, knowing what the same replay gave with other rounding. What must be equal must stay equal."""
        seen = other.against(self.ours)._difference() if self.absolute or self.relative else np.zeros(())
        return replace(self, rounding=np.maximum(self.rounding, np.where(np.isfinite(seen), seen, 0.0)))

    def _difference(self) -> np.ndarray:
        if self.ours.shape != self.reference.shape:
            return np.array([np.inf])
        difference = np.abs(self.ours.astype(np.float64) - self.reference.astype(np.float64))
        return np.where(np.isfinite(difference), difference, np.inf)


class Comparison:
    """Collects the checks of one fixture and remembers which entries served as inputs."""

    def __init__(self, golden: Golden) -> None:
        self.golden = golden
        self.meta = golden.meta
        self.checks: list[Check] = []
        self.inputs: set[str] = set()
        self.cut_off: set[str] = set()

    def array(self, key: str) -> np.ndarray:
        """An entry that the replay starts from."""
        self.inputs.add(key)
        return self.golden[key]

    def tensor(self, key: str, dtype: torch.dtype = torch.float32) -> Tensor:
        """The same as a tensor of its own memory."""
        return torch.tensor(self.array(key), dtype=dtype)

    def close(self, key: str, ours: Values, *, absolute: float = 0.0, relative: float = 0.0, first: int | None = None) -> None:
        """Compares an entry of the fixture, or only its first items. A missing entry fails."""
        reference = self.golden.get(key, np.array(np.nan))
        values = _array(ours)
        if first is not None:
            reference, values = reference[:first], values[:first]
            self.cut_off.add(f"{key}[{first}:]")
        self.checks.append(Check(key, values, reference, absolute, relative))

    def activation(self, key: str, ours: Tensor, relative: float = 0.0) -> None:
        """Compares at 1e-5 absolute."""
        self.close(key, ours, absolute=ACTIVATION, relative=relative)

    def gradient(self, key: str, ours: Tensor | None, *, relative: float = ACTIVATION, largest_norm: float = 0.0) -> None:
        """Compares entry by entry at ``relative`` times the largest entry; zeros as :meth:`gradient_norms` does."""
        values = np.array(np.nan) if ours is None else _array(ours)
        largest = float(np.abs(self.golden[key]).max())
        zero = ZERO_GRADIENT * largest_norm
        both = max(largest, float(np.abs(values).max()))
        self.close(key, values, absolute=zero if both <= zero else relative * largest)

    def fact(self, name: str, ours: Any, relative: float = 0.0, absolute: float = 0.0) -> None:
        """Compares a number of the description where it has one."""
        if name in self.meta:
            self.checks.append(Check(f"meta.{name}", np.asarray(ours), np.asarray(self.meta[name]), absolute, relative))

    def same(self, key: str, ours: Any, reference: Any) -> None:
        """Compares a value that lies somewhere else in the fixture."""
        self.checks.append(Check(key, np.asarray(ours), np.asarray(reference), 0.0, 0.0))

    def unaccounted(self) -> set[str]:
        """Entries, or parts of them, that were neither compared nor an input."""
        return self.golden.keys() - self.inputs - {check.key for check in self.checks} | self.cut_off

    def has(self, prefix: str) -> bool:
        """Whether any entry begins with the prefix."""
        return any(key.startswith(prefix) for key in self.golden)

    def gradient_norms(self, prefix: str, gradients: Mapping[str, Tensor | float | None]) -> float:
        """Compares the L2 norm of every parameter's gradient; entry and parameter must both exist. Returns the largest one."""
        stored = {key.removeprefix(prefix) for key in self.golden if key.startswith(prefix)}
        largest = max(float(self.golden[prefix + name]) for name in stored)
        for name in sorted(stored | gradients.keys()):
            gradient = gradients.get(name) if name in gradients else np.nan
            norm = float(gradient.double().norm()) if isinstance(gradient, Tensor) else gradient or 0.0
            both = max(norm, float(self.golden.get(prefix + name, np.inf)))
            share = ZERO_GRADIENT if both <= ZERO_GRADIENT * largest else GRADIENT_RESOLUTION
            self.close(prefix + name, norm, absolute=share * largest, relative=NORM)
        return largest

    def load(
        self, module: nn.Module, weights: Mapping[str, np.ndarray] | None = None, *, prefix: str = "", absent: Iterable[str] = ()
    ) -> None:
        """Loads weights strictly; where the fixture also stores them as ``w.*``, both must agree.

        Args:
            module: takes the weights.
            weights: by key; the fixture's own if None.
            prefix: only keys that begin with it count; it is cut off.
            absent: beginnings of keys (after the prefix) that the module does not have.
        """
        weights = self.golden.weights() if weights is None else weights
        for key, value in weights.items():
            if f"w.{key}" in self.golden and f"w.{key}" not in self.inputs:
                self.inputs.add(f"w.{key}")
                self.close(f"w.{key}", value, relative=1e-6)
        mine = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        kept = {key: torch.tensor(value) for key, value in mine.items() if not key.startswith(tuple(absent))}
        module.load_state_dict(kept, strict=True)


def parameter_gradients(module: nn.Module) -> dict[str, Tensor | None]:
    """The gradient of every parameter by name."""
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def _array(values: Values) -> np.ndarray:
    return values.detach().numpy() if isinstance(values, Tensor) else np.asarray(values)
