"""Files of ``torch.save``, zip and older format, read without executing anything in them; see reference.safe_pickle."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reference.safe_pickle import Name, PickleError, StandIn, read_pickle
from utils.errors import UserError

_MAGIC, _VERSION = 0x1950A86A20F9469CFC6C, 1001  # the first two pickles of the format before torch 1.6
_DEEPEST = 100  # modules inside modules
_PARTS = ("_parameters", "_buffers", "_modules")

_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Weights(NamedTuple):
    """What one file holds.

    Attributes:
        tensors: the state dict; every tensor on the CPU, with memory of its own.
        modules: the stand-ins of all submodules by path (``""`` is the whole); empty for a file that holds a state dict.
    """

    tensors: dict[str, Tensor]
    modules: dict[str, StandIn]


def read_weights(path: Path) -> Weights:
    """The state dict in a file that holds one, or a whole pickled ``nn.Module``.

    Raises:
        UserError: the file cannot be read, is damaged, or holds something else.
    """
    value = read_torch_file(path)
    found = Weights({}, {})
    try:
        if isinstance(value, StandIn):
            _walk(value, "", found, 0)
        elif isinstance(value, dict):
            _take(value, "", found)
        else:
            raise PickleError(f"it holds a {_kind(value)}")
    except PickleError as error:
        raise UserError(f"{path} must hold a state dict or an nn.Module: {error}") from error
    return found


def _walk(module: StandIn, path: str, found: Weights, depth: int) -> None:
    """Collects what ``state_dict()`` would, in the same order."""
    state = module.state
    if not isinstance(state, dict) or not all(isinstance(state.get(part), dict) for part in _PARTS):
        raise PickleError(f"{path or 'it'} is a {module.kind}, which has not the parts of a module")
    if depth > _DEEPEST:
        raise PickleError(f"{path} is inside itself")
    found.modules[path] = module
    prefix = f"{path}." if path else ""
    transient = state.get("_non_persistent_buffers_set")
    left_out = transient if isinstance(transient, set) else set()
    _take(state["_parameters"], prefix, found)
    _take({name: value for name, value in state["_buffers"].items() if name not in left_out}, prefix, found)
    for name, child in state["_modules"].items():
        if isinstance(child, StandIn):
            _walk(child, f"{prefix}{name}", found, depth + 1)
        elif child is not None:
            raise PickleError(f"{prefix}{name} is a {_kind(child)} and not a module")


def _take(values: Mapping[Any, Any], prefix: str, found: Weights) -> None:
    for name, value in values.items():
        if not isinstance(name, str):
            raise PickleError(f"it names a part by a {_kind(name)}")
        if value is None and found.modules:  # a layer without bias
            continue
        if not isinstance(value, Tensor):
            raise PickleError(f"{prefix}{name} is a {_kind(value)} and not a plain tensor")
        found.tensors[f"{prefix}{name}"] = value.clone()


def _kind(value: Any) -> str:
    return value.kind if isinstance(value, StandIn) else type(value).__name__


def read_torch_file(path: Path) -> Any:
    """The value that ``torch.save`` wrote: tensors and containers; objects of any other class are stand-ins.

    Raises:
        UserError: the file cannot be read, is damaged, or asks for something that is refused.
    """
    try:
        content = path.read_bytes()
        return _read_zip(content) if content.startswith(b"PK\x03\x04") else _read_legacy(content)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (PickleError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read as a file of torch.save: {' '.join(str(error).split())}") from error


# Both formats --------------------------------------------------------------------------------------------------------


class _Storages:
    """The typed memory that tensors are views of; each is made once, so that shared tensors stay shared while reading."""

    def __init__(self, allocate: Callable[[str, int], Tensor], most: int) -> None:
        """Args: allocate: key and bytes → that memory as uint8; most: bytes that all together may have."""
        self.allocate = allocate
        self.left = most
        self.bytes: dict[str, Tensor] = {}

    def refer(self, reference: Any) -> Any:
        """What a pickle refers to: ("storage", type, key, device, length, …), or ("module", class, …) around a class."""
        if not isinstance(reference, tuple) or len(reference) < 2 or not isinstance(reference[1], Name):
            raise PickleError("it refers to something that is neither storage nor module")
        if reference[0] == "module":
            return reference[1]
        _, kind, key, _, length, *view = reference
        if kind.module not in ("torch", "torch.cuda") or kind.name not in _DTYPES:
            raise PickleError(f"it holds a {kind}, which is not known")
        if not isinstance(key, str) or not isinstance(length, int) or length < 0 or any(v is not None for v in view):
            raise PickleError("one of its storages has no valid name or length")
        dtype = _DTYPES[kind.name]
        size = length * dtype.itemsize
        if key not in self.bytes:
            self.left -= size
            if self.left < 0:
                raise PickleError("its tensors would be larger than the file; it is truncated")
            self.bytes[key] = self.allocate(key, size)
        if len(self.bytes[key]) != size:
            raise PickleError(f"storage {key} has {len(self.bytes[key])} bytes and not {size}")
        return self.bytes[key].view(dtype)


def _tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """Stands for ``_rebuild_tensor_v2``; the view has to lie inside the storage, each element at a place of its own at most."""
    if not isinstance(storage, Tensor):
        raise PickleError(f"a tensor lies in a {_kind(storage)} and not in a storage of this file")
    if not all(isinstance(n, int) and n >= 0 for n in (offset, *size, *stride)) or len(size) != len(stride):
        raise PickleError("a tensor has no valid shape")
    count = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if count > len(storage) or (count and last >= len(storage)):
        raise PickleError(f"a tensor of shape {size} reaches beyond its storage of {len(storage)} values")
    return storage.as_strided(size, stride, offset if count else 0)


_BUILDERS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, *_: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *_: tensor,
}


def _uint8(content: bytes) -> Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)


# Zip: torch 1.6 and later --------------------------------------------------------------------------------------------


def _read_zip(content: bytes) -> Any:
    with zipfile.ZipFile(BytesIO(content)) as archive:
        pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise PickleError("it is a zip archive without data.pkl")
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}constants.pkl" in archive.namelist():
            raise PickleError("it is a TorchScript archive; save the module's state_dict() instead")
        if f"{root}byteorder" in archive.namelist() and _record(archive, f"{root}byteorder") != b"little":
            raise PickleError("it was written on a big-endian machine")

        storages = _Storages(lambda key, _: _uint8(_record(archive, f"{root}data/{key}")), len(content))
        return read_pickle(BytesIO(_record(archive, pickles[0])), _BUILDERS, storages.refer)


def _record(archive: zipfile.ZipFile, name: str) -> bytes:
    """One file of the archive, which torch never compresses (so that a small file cannot swell)."""
    try:
        if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
            raise PickleError(f"its part {name} is compressed")
        return archive.read(name)
    except (KeyError, EOFError, RuntimeError, NotImplementedError) as error:
        raise PickleError(f"its part {name} is missing or damaged") from error


# Before torch 1.6: five pickles, then the storages -------------------------------------------------------------------


def _read_legacy(content: bytes) -> Any:
    file = BytesIO(content)
    try:
        heading = [read_pickle(file), read_pickle(file)]
    except PickleError:
        heading = []
    if heading != [_MAGIC, _VERSION]:
        raise PickleError("it does not begin like one; is it truncated, or another kind of file?")
    system = read_pickle(file)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise PickleError("it was written on a big-endian machine")

    storages = _Storages(lambda _, size: torch.empty(size, dtype=torch.uint8), len(content))
    value = read_pickle(file, _BUILDERS, storages.refer)
    keys = read_pickle(file)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != set(storages.bytes):
        raise PickleError("its storages are not those that its tensors lie in")
    for key in keys:
        memory = storages.bytes[key]
        file.read(8)  # the length in elements, which the tensors have said already
        record = file.read(len(memory))
        if len(record) != len(memory):
            raise PickleError("it is truncated")
        memory.copy_(_uint8(record))
    return value
