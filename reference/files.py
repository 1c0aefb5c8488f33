"""The reference's component files, read as data.

Nothing that a file names is imported or called, but for torch's makers of tensors.
"""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from utils.errors import UserError

COMPONENTS = frozenset(
    "encoder decoder quantize quant_conv post_quant_conv net_g net_gback netF net_d net_dzy net_dzx discriminator".split()
)
ALIAS = "second name"

# The reference's generators register their stages twice.
_ALIASES = {f"encoder.{i}.": f"down{i}." for i in range(4)}
_ALIASES |= {f"decoder.{i}.": f"{stage}." for i, stage in enumerate(("up3", "conv5", "up2", "conv6", "up1"))}

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


@dataclass(frozen=True)
class Source:
    """What one file holds.

    Attributes:
        path: the file.
        tensors: its state dict; every tensor on the CPU, with memory of its own.
        modules: stand-ins of all submodules by path (``""`` is the whole), if the file held a whole module.
        dropped: keys of the file that are not in ``tensors``, with the reason.
    """

    path: Path
    tensors: dict[str, Tensor] = field(default_factory=dict)
    modules: dict[str, StandIn] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of a tensor; a UserError says that there is none of that name."""
        if key not in self.tensors:
            raise UserError(f"{self.path} has no {key}; is it the component that its name says?")
        return tuple(self.tensors[key].shape)

    def numbers(self, pattern: str) -> set[int]:
        """The numbers that the group in a pattern finds at the beginning of keys."""
        return {int(found.group(1)) for key in self.tensors if (found := re.match(pattern, key))}


def component_files(folder: Path, epoch: int) -> dict[str, Path]:
    """The files ``<component>_model_epoch_<epoch>.pth`` of a folder by component.

    A file of the whole autoencoder loss counts as the component ``discriminator`` that is in it, if there is no other.

    Raises:
        UserError: not a folder, or there are none; the message lists the epochs that there are.
    """
    if not folder.is_dir():
        raise UserError(f"--from {folder} is not a folder")
    found: dict[int, dict[str, Path]] = {}
    for path in sorted(folder.iterdir()):
        if parts := re.fullmatch(r"(\w+)_model_epoch_(\d+)\.pth", path.name):
            found.setdefault(int(parts.group(2)), {})[parts.group(1)] = path
    if not COMPONENTS & found.get(epoch, {}).keys():
        others = f"it has the epochs {', '.join(map(str, sorted(found)))}" if found else "it has none of any epoch"
        raise UserError(f"--from {folder} has no files <component>_model_epoch_{epoch}.pth; {others}")
    files = found[epoch]
    if "loss" in files and "discriminator" not in files:
        files["discriminator"] = files.pop("loss")
    return files


def read_reference(files: Mapping[str, Path]) -> dict[str, Source]:
    """The components in files of the reference: keys without second names, and without what a wrapper has put before them."""
    return {name: _unwrapped(name, read_weights(path)) for name, path in files.items() if name in COMPONENTS}


def _unwrapped(component: str, source: Source) -> Source:
    def plain(key: str) -> str:
        for prefix in ("module.", "loss.", f"{component}."):
            key = key.removeprefix(prefix)
        return key

    made = Source(source.path, modules={plain(f"{module}.").rstrip("."): found for module, found in source.modules.items()})
    tensors = {plain(key): value for key, value in source.tensors.items()}
    aliases = _ALIASES if component.startswith("net_g") else {}
    for key, value in tensors.items():
        first = next((name + key.removeprefix(alias) for alias, name in aliases.items() if key.startswith(alias)), key)
        if first == key or first not in tensors:
            made.tensors[first] = value
        elif torch.equal(tensors[first], value):
            made.dropped[key] = f"{ALIAS} of {first}"
        else:
            raise UserError(
                f"{source.path}: {key} must equal {first}, whose second name it is, but does not; the file is not consistent"
            )
    return made


def read_weights(path: Path) -> Source:
    """The state dict in a file that holds one, or a whole pickled ``nn.Module``, whose classes need not exist.

    A UserError: the file cannot be read, is damaged or older than torch 1.6, or holds something else.
    """
    value, found = _read(path), Source(path)
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


def _walk(module: StandIn, path: str, found: Source, depth: int) -> None:
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


def _take(values: Mapping[Any, Any], prefix: str, found: Source) -> None:
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
