"""Replays of the data side: intensities, layout, tiles, and the learning rates over epochs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.optim import SGD

from dataloader.cutting import Lattice
from intensity.statistics import Normalisation, transform_of
from intensity.transform import IntensityTransform
from models.schedules import build_scheduler
from tests.parity.comparison import Comparison
from utils.axes import to_memory
from utils.boxes import whole_box
from volumes.volume import ArrayVolume, Volume

INTENSITY = 2e-6  # absolute, in a range of 1 or 2: the last bits of float32
TILE = (4, 8, 8)


def intensities(c: Comparison) -> None:
    """Normalised volumes, memory layout and the three sets of tiles."""
    values = c.array("tif")
    volume = ArrayVolume(values)
    for nm in ("00", "01", "11"):
        c.close(f"norm_{nm}", transform_of(volume, Normalisation(nm)).apply(values), absolute=INTENSITY)
    c.close("sample_nocrop", to_memory(values)[None])
    for limit in (1, 6):
        transform = transform_of(volume, Normalisation("zrescale", limit=limit))
        c.close(f"z_rescale{limit}", transform.apply(values), absolute=INTENSITY)
    low, high = np.percentile(values, (0.1, 99.9))  # interpolated between ranks; ours are values that occur
    _compare_tiles(c, "a", volume, IntensityTransform("11", float(low), float(high)))
    # The reference asked for half-tile steps here and made whole ones: its step only says how many tiles it tries.
    _compare_tiles(c, "b", volume, transform_of(volume, Normalisation("01", threshold=(20, 200))), order=(1, 2, 0))
    _compare_tiles(c, "c", volume, transform_of(volume, Normalisation("zrescale", limit=6)))


def _compare_tiles(
    c: Comparison, name: str, volume: Volume, transform: IntensityTransform, order: Sequence[int] = (0, 1, 2)
) -> None:
    for place, box in Lattice(TILE, incomplete="drop").patches(whole_box(volume.shape)):
        c.close(f"tiles_{name}.p{place}", transform.apply(volume[box]).transpose(order), absolute=INTENSITY)


def learning_rates(c: Comparison) -> None:
    """The learning rate of every epoch, with constants that give the reference's schedules where those were not broken."""
    shape = {"n_epochs": c.meta["n_epochs"], "n_epochs_decay": 0, "lr_decay_iters": c.meta["lr_decay_iters"]}
    for key in ("cosine_n10001", "cosine_n200"):
        _compare_rates(c, key, "cosine", shape | {"n_epochs": int(key.removeprefix("cosine_n"))})
    _compare_rates(c, "step", "step", shape)
    _compare_rates(c, "plateau", "plateau", shape, c.array("plateau_metric"))
    # The reference's rate passes through 0 after epoch 302 and becomes negative.
    _compare_rates(c, "lambda", "lambda", shape | {"n_epochs": 302, "n_epochs_decay": 201}, first=303)


def _compare_rates(
    c: Comparison,
    key: str,
    policy: str,
    shape: Mapping[str, Any],
    metric: np.ndarray | None = None,
    first: int | None = None,
) -> None:
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=c.meta["lr"])
    scheduler = build_scheduler(optimizer, {"lr_policy": policy, "monitor": "val/projection", **shape})
    rates = []
    for epoch in range(len(c.golden[key])):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step(*([] if metric is None else [metric[epoch]]))
    c.close(key, np.array(rates), relative=1e-9, absolute=1e-15, first=first)
