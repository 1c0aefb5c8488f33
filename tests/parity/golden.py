"""The fixture files: arrays by name, their description, and the weights that they do not store. numpy only."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np

META = "__meta__"


class Golden(dict[str, np.ndarray]):
    """The arrays of one file by key.

    Attributes:
        name: file name without suffix.
        meta: what the file says about itself, with ``kind`` at least.
    """

    def __init__(self, name: str, meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        super().__init__(arrays)
        self.name = name
        self.meta = meta

    def weights(self, manifest: str = "manifest") -> dict[str, np.ndarray]:
        """Arrays by state-dict key: from the shapes that the description lists under ``manifest``, else the stored ``w.*``."""
        shapes = self.meta.get(manifest)
        if shapes is None:
            return {key.removeprefix("w."): value for key, value in self.items() if key.startswith("w.")}
        prefix = self.meta.get("weight_prefix", "")
        return {key: recipe(prefix + key, shape) for key, shape in shapes.items()}


def load(path: Path) -> Golden:
    """Reads an ``.npz`` fixture.

    Raises:
        ValueError: the file does not describe itself.
    """
    with np.load(path, allow_pickle=False) as file:
        if META not in file.files:
            raise ValueError(f"{path} has no entry {META}, so it is no fixture")
        meta = json.loads(bytes(file[META]).decode())
        return Golden(path.stem, meta, {key: file[key] for key in file.files if key != META})


def save(path: Path, golden: Golden) -> None:
    """Writes what :func:`load` reads."""
    meta = np.frombuffer(json.dumps(golden.meta).encode(), np.uint8)
    np.savez_compressed(path, **{META: meta}, **golden)


def recipe(key: str, shape: tuple[int, ...] | list[int]) -> np.ndarray:
    """The weight that a state-dict key stands for: a function of key and shape alone.

    Normal numbers n of a generator seeded with the key's CRC-32; counters are 0, running means 0.1·n, running variances
    1 + 0.2·|n|, scalars 0, gains 1 + 0.1·n, biases 0.1·n, codebooks n, everything else n over the root of its fan-in.
    """
    normal = np.random.RandomState(zlib.crc32(key.encode()) & 0x7FFFFFFF).standard_normal(tuple(shape))
    last = key.rsplit(".", 1)[-1]
    if last == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if last == "running_mean":
        values = 0.1 * normal
    elif last == "running_var":
        values = 1 + 0.2 * np.abs(normal)
    elif not shape:
        values = np.zeros(())
    elif key.endswith("embedding.weight"):
        values = normal
    elif len(shape) == 1:
        values = 1 + 0.1 * normal if last == "weight" else 0.1 * normal
    else:
        values = normal / np.sqrt(np.prod(shape[1:]))
    return np.asarray(values).astype(np.float32)
