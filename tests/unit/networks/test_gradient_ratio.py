"""TensorBoard's gradient_ratio is the quantity that evaluate.py reports."""

import numpy as np
import pytest
import torch

from evaluation.metrics import Moments
from networks.losses import gradient_ratio


def test_it_is_the_report_s():
    volume = np.random.default_rng(0).random((7, 5, 6)).astype(np.float32).cumsum(axis=0)  # smooth along z
    moments = Moments()
    moments.add(volume, volume.shape, volume)
    memory = torch.from_numpy(volume).movedim(0, -1)[None, None]
    assert gradient_ratio(memory).item() == pytest.approx(moments.gradient_ratio((1, 1, 1)), rel=1e-6)


def test_a_constant_volume_has_a_number():
    assert gradient_ratio(torch.zeros(1, 1, 4, 4, 4)).item() == 0
