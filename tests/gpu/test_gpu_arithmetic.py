"""What a GPU computes, against the CPU and against itself.

``ISOSCOPE_GPU_TESTS_ON=cpu`` lets a machine without a GPU run them, to see that they run.
"""

import copy
import os

import numpy as np
import pytest
import torch
from torch.nn import functional

from benchmarks.schedules import Step
from inference import Engine, Options, Run, enhance

DEVICE = "cuda" if torch.cuda.is_available() else os.environ.get("ISOSCOPE_GPU_TESTS_ON")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(DEVICE is None, reason="needs a CUDA device")]

TINY = {"cropsize": 32, "cropz": 4, "ldmyaml": "vqlocal_small", "ngf": 16, "ndf": 8, "mc": False, "skipl1": 2}


@pytest.fixture
def exact():
    """32-bit convolutions and products of 32 bits, by algorithms that repeat every bit."""
    with Engine(torch.device(DEVICE)).computing():
        matmul = torch.backends.cuda.matmul.fp32_precision
        torch.backends.cuda.matmul.fp32_precision = "ieee"
        yield
        torch.backends.cuda.matmul.fp32_precision = matmul


def step_of(device, weights=None, batch=None):
    torch.manual_seed(0)
    step = Step(device, **TINY)
    step.model.perceptual = None
    if weights is not None:
        step.model.load_state_dict(weights)
        step.batch = {"img": [image.to(device) for image in batch["img"]]}
    return step


def after_a_step(device, weights, batch, bf16=False):
    """Loss, and how far the step has moved each weight."""
    step = step_of(device, weights, batch)
    with torch.autocast(device, torch.bfloat16, enabled=bf16):
        loss = float(step.ours())
    moved = {name: value.cpu() - weights[name] for name, value in step.model.state_dict().items() if value.is_floating_point()}
    return loss, moved


@pytest.fixture(scope="module")
def start():
    step = step_of("cpu")
    return copy.deepcopy(step.model.state_dict()), step.batch


def test_a_step_is_that_of_the_cpu(start, exact):
    (expected, on_cpu), (loss, moved) = after_a_step("cpu", *start), after_a_step(DEVICE, *start)
    assert loss == pytest.approx(expected, rel=1e-3)
    for name in ("G.net_g.conv7_k.0.0.weight", "G.decoder.conv_out.weight"):
        agree = functional.cosine_similarity(moved[name].flatten(), on_cpu[name].flatten(), dim=0)  # of Adam's first step: signs
        assert agree > 0.95, name


def test_a_step_in_bf16_is_near(start, exact):
    (expected, _), (loss, moved) = after_a_step(DEVICE, *start), after_a_step(DEVICE, *start, bf16=True)
    assert loss == pytest.approx(expected, rel=0.05)
    assert all(bool(value.isfinite().all()) for value in moved.values())


@pytest.mark.parametrize("bf16", [False, True])
def test_inference_repeats_every_bit(start, exact, bf16):
    step = step_of(DEVICE, *start)
    with torch.inference_mode(), torch.autocast(DEVICE, torch.bfloat16, enabled=bf16), step.model.evaluating():
        first, second = (step.model.generate(step.batch).volume for _ in range(2))
    assert torch.equal(first, second)


def test_a_convolution_of_more_than_two_to_the_31_numbers_in_bf16():
    """cuDNN 9.10 computed it wrongly (pytorch issue 166643): both ends are compared with 32 bits."""
    large = DEVICE == "cuda"
    if large and torch.cuda.get_device_properties(0).total_memory < 40 * 2**30:
        pytest.skip("needs 40 GB of GPU memory")
    channels, side, depth = (8, 640, 672) if large else (2, 16, 24)
    values = torch.randn(1, channels, side, side, depth, device=DEVICE, dtype=torch.bfloat16)
    assert not large or values.numel() > 2**31
    kernel = torch.randn(4, channels, 3, 3, 3, device=DEVICE, dtype=torch.bfloat16) / (channels * 27) ** 0.5
    for layout in (torch.contiguous_format, torch.channels_last_3d):
        made = functional.conv3d(values.contiguous(memory_format=layout), kernel.contiguous(memory_format=layout))
        for part in (slice(0, 6), slice(side - 6, side)):
            expected = functional.conv3d(values[:, :, part].float(), kernel.float())
            found = made[:, :, part.start : part.start + 4].float()
            torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)
        del made


def test_a_lateral_volume_is_the_same_for_every_region_and_number_of_tiles(workspace):
    run = workspace.train("one", *workspace.variant("lateral"))
    opened = Run.load(run.path, engine=Engine.choose(DEVICE, "32"))
    volume = np.random.default_rng(0).integers(500, 1500, (9, 52, 44)).astype(np.uint16)
    whole = enhance(volume, opened, Options(tile=32))
    region = (slice(3, 30), slice(9, 40), slice(20, 44))
    assert np.array_equal(enhance(volume, opened, Options(tile=32, region=region)), whole[region])
