"""Files of ``torch.save`` read as data: nothing that they name is imported or called, but for torch's makers of tensors."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from utils.errors import UserError

_DEEPEST = 100  # modules inside modules
_PARTS = ("_parameters", "_buffers", "_modules")


class StandIn:
    """What stands where a file asks for an object of a class, or for the result of a function, that torch does not vouch for.

    Attributes:
        kind: the full name of the class or function.
        state: what was to become the object's attributes, usually a dict by name.
    """

    kind = ""
    state: Any = None

    def __init__(self, *_: Any) -> None:
        """Takes whatever the class or function was to be called with."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Weights(NamedTuple):
    """What one file holds.

    Attributes:
        tensors: the state dict; every tensor on the CPU, with memory of its own.
        modules: the stand-ins of all submodules by path (``""`` is the whole); empty for a file that holds a state dict.
    """

    tensors: dict[str, Tensor]
    modules: dict[str, StandIn]


def read_weights(path: Path) -> Weights:
    """The state dict in a file that holds one, or a whole pickled ``nn.Module``, whose classes need not exist.

    Raises:
        UserError: the file cannot be read, is damaged or older than torch 1.6, or holds something else.
    """
    value = _read(path)
    found = Weights({}, {})
    try:
        if isinstance(value, StandIn):
            _walk(value, "", found, 0)
        elif isinstance(value, dict):
            _take(value, "", found)
        else:
            raise ValueError(f"it holds a {_kind(value)}")
    except ValueError as error:
        raise UserError(f"{path} must hold a state dict or an nn.Module: {error}") from error
    return found


def _read(path: Path) -> Any:
    """The value that was saved; objects of any class but tensors and containers are stand-ins."""
    try:
        with path.open("rb") as file:
            archive = file.read(4) == b"PK\x03\x04"
        if not archive:
            raise UserError(
                f"{path} cannot be read as a file of torch.save: it is truncated, another kind of file, or older than torch 1.6. "
                "Load and save an older file again by a newer torch, where its classes are at hand"
            )
        names = get_unsafe_globals_in_checkpoint(path)
        with (
            warnings.catch_warnings(action="ignore"),
            safe_globals([(type("StandIn", (StandIn,), {"kind": name}), name) for name in names]),
        ):
            return torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # a damaged file makes torch raise almost anything
        # torch's message ends with its reason; before it stands the advice to load the file without any protection
        lines = [line for line in str(error).splitlines() if line and not line.startswith("Check the documentation")]
        reason = lines[-1] if lines else type(error).__name__
        raise UserError(f"{path} cannot be read as a file of torch.save: {reason}") from error


def _walk(module: StandIn, path: str, found: Weights, depth: int) -> None:
    """Collects what ``state_dict()`` would, in the same order."""
    state = module.state
    if not isinstance(state, dict) or not all(isinstance(state.get(part), dict) for part in _PARTS):
        raise ValueError(f"{path or 'it'} is a {module.kind}, which has not the parts of a module")
    if depth > _DEEPEST:
        raise ValueError(f"{path} is inside itself")
    found.modules[path] = module
    prefix = f"{path}." if path else ""
    transient = state.get("_non_persistent_buffers_set")
    left_out = transient if isinstance(transient, set) else ()
    _take(state["_parameters"], prefix, found)
    _take({name: value for name, value in state["_buffers"].items() if name not in left_out}, prefix, found)
    for name, child in state["_modules"].items():
        if isinstance(child, StandIn):
            _walk(child, f"{prefix}{name}", found, depth + 1)
        elif child is not None:
            raise ValueError(f"{prefix}{name} is a {_kind(child)} and not a module")


def _take(values: Mapping[Any, Any], prefix: str, found: Weights) -> None:
    for name, value in values.items():
        if not isinstance(name, str):
            raise ValueError(f"it names a part by a {_kind(name)}")
        if value is None and found.modules:  # a layer without bias
            continue
        plain = isinstance(value, Tensor) and value.layout is torch.strided and not value.is_quantized
        if not plain or value.device.type != "cpu":
            raise ValueError(f"{prefix}{name} is a {_kind(value)} and not a plain tensor")
        if value.numel() * value.itemsize > value.untyped_storage().nbytes():  # it would swell when it gets memory of its own
            raise ValueError(f"{prefix}{name} of shape {tuple(value.shape)} is larger than its storage")
        found.tensors[f"{prefix}{name}"] = value.detach().clone()


def _kind(value: Any) -> str:
    return value.kind if isinstance(value, StandIn) else type(value).__name__
