"""What commands ask of a machine: its device and arithmetic, how memory is kept, and whether it has ended."""

import ctypes
import logging
import os
import platform
import resource
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from utils.errors import UserError
from utils.threads import Threads
from utils.units import as_size

log = logging.getLogger("isoscope")

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # names of glibc's malloc.h
_LAYOUTS = {4: torch.channels_last, 5: torch.channels_last_3d}  # by axes
_CUDNN = 91500  # pytorch issues 166122, 166643 and 163539


def keep_freed_memory() -> None:
    """Lets glibc keep freed blocks for the next tensor instead of returning them to the system.

    A training step frees and asks for the same gigabytes again; each time the system would have to clear every page. Where the C
    library is another one nothing changes. benchmarks/step.py measures the effect.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_MAX, 0)
        library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def in_bf16(device: torch.device, wanted: bool | None = None) -> bool:
    """Whether to compute in bf16: as wanted, by default on a GPU that has this arithmetic (of NVIDIA's, those since Ampere).

    Older GPUs hold bf16 numbers, but have no convolutions of them.

    Raises:
        UserError: it is wanted on such a GPU.
    """
    if device.type != "cuda":
        return bool(wanted)
    with torch.cuda.device(device):
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        if wanted and not native:
            raise UserError(f"{torch.cuda.get_device_name()} has no bf16 arithmetic; use --precision 32")
    return native if wanted is None else wanted


def warn_of_cudnn() -> None:
    """Says where a GPU computes by a cuDNN whose 3-D convolutions in bf16 are wrong on large inputs, or slow."""
    version = torch.backends.cudnn.version() if torch.cuda.is_available() else None
    if version is not None and version < _CUDNN:
        log.warning(
            "cuDNN %d is older than 9.15, which mends wrong and slow 3-D convolutions in bf16; "
            "pip install --upgrade 'nvidia-cudnn-cu12>=9.15' (or -cu13, as torch.version.cuda says), or use --precision 32",
            version,
        )


def lay_channels_last(network: torch.nn.Module) -> None:
    """Lays the weights of convolutions of images and volumes with their channels last in memory, where a CPU takes less time.

    Unlike ``Module.to`` this also works on weights that are there by their shapes only.
    """
    for weight in network.parameters():
        if weight.dim() in _LAYOUTS:
            weight.data = weight.data.contiguous(memory_format=_LAYOUTS[weight.dim()])


def lacks_memory(error: Exception) -> bool:
    """Whether it says that a GPU or this machine has no memory left: PyTorch has no type of its own for some of these."""
    of_onednn = "could not create a primitive" in str(error)  # all that a convolution on a CPU says then
    if of_onednn or isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    from pytorch_lightning.utilities.memory import is_oom_error

    return is_oom_error(error)


def peak_memory() -> str:
    """The most memory that this process has had, of the machine and of a GPU."""
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    gpu = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return as_size(own) + (f", {as_size(gpu)} on the GPU" if gpu else "")


def held_memory() -> int:
    """Bytes of the machine's memory that this process has now; the most it has had where that is not known."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def total_memory() -> int:
    """Bytes of memory of this machine, or of the container that this process may not leave."""
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):  # of control groups, version 2 and 1
        try:
            there = min(there, int(Path("/sys/fs/cgroup", name).read_text()))
        except (OSError, ValueError):  # another version, or no limit
            continue
    return there


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors that operations make, as long as anything holds them; also of tensors that have only a shape.

    Attributes:
        now, most: bytes.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@dataclass(frozen=True)
class Engine:
    """Where and how networks are computed.

    Attributes:
        device: the device.
        precision: ``32`` or ``bf16`` (autocast).
        compile: whether torch.compile makes the volume generator.
        threads: of the CPU.
    """

    device: torch.device
    precision: str = "32"
    compile: bool = False
    threads: Threads = field(default_factory=Threads, compare=False, repr=False)

    @classmethod
    def choose(
        cls, device: str | None = None, precision: str | None = None, *, local_rank: int = 0, compile: bool = False
    ) -> Self:
        """The device asked for, else this process's GPU, else the CPU; bf16 on a GPU that has it unless asked otherwise.

        Raises:
            UserError: a GPU is asked for and there is none, there is no such device, or it has no bf16.
        """
        if device is None:
            device = f"cuda:{local_rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise UserError(f"--device {device}: PyTorch sees no GPU here; use --device cpu")
        try:
            chosen = torch.device(device)
        except RuntimeError as error:
            raise UserError(f"--device {device} is no device; use cpu, cuda or cuda:N") from error
        if chosen.type == "cuda" and chosen.index is not None and chosen.index >= torch.cuda.device_count():
            raise UserError(f"--device {device}: there are {torch.cuda.device_count()} GPUs, counted from cuda:0")
        if chosen.type == "cuda":
            warn_of_cudnn()
        bf16 = in_bf16(chosen, None if precision is None else precision == "bf16")
        return cls(chosen, "bf16" if bf16 else "32", compile)

    @property
    def batch(self) -> int:
        """Tiles that go through a network at once where nothing else is asked for."""
        return 8 if self.device.type == "cuda" else 1

    def record(self) -> Callable[[], None]:
        """What waits, in any thread, until the device has done all that it has been given by now."""
        if self.device.type != "cuda":
            return lambda: None
        return torch.cuda.current_stream(self.device).record_event().synchronize

    @contextmanager
    def computing(self) -> Iterator[None]:
        """The networks compute in this precision, by the threads that are free, and on a GPU by algorithms that repeat every bit.

        By default PyTorch takes algorithms that may not, and 32-bit convolutions read 10 bits of the mantissa (TF32).
        """
        cudnn: Any = torch.backends.cudnn
        before = cudnn.deterministic, cudnn.conv.fp32_precision
        cudnn.deterministic, cudnn.conv.fp32_precision = True, "ieee"
        self.threads.fit()
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
                yield
        finally:
            self.threads.release()
            cudnn.deterministic, cudnn.conv.fp32_precision = before
