"""Paths that only a GPU takes: ``./run.sh test -m gpu tests/gpu``."""

import numpy as np
import pytest
import torch

from inference import Engine, enhance
from models.build import build_model, load_components

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_training_on_a_gpu(workspace, precision):
    run = workspace.train("one", "--precision", precision, "--workers", 2, "--ema", 0.9)
    assert run.epochs() == [2]
    for path in run.checkpoints.glob("*.pth"):
        state = torch.load(path, weights_only=True)
        assert all(value.device.type == "cpu" and value.isfinite().all() for value in state.values()), path.name


def test_generation_agrees_with_the_cpu(workspace):
    run = workspace.train("one")
    image = torch.rand(1, 1, 32, 32, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    volumes = []
    for device in ("cpu", "cuda"):
        model = build_model(run.stored_settings()).to(device)
        load_components(model, run)
        with model.evaluating():
            volumes.append(model.generate({"img": [image.to(device)]}).volume.cpu())
    torch.testing.assert_close(volumes[1], volumes[0], rtol=0, atol=2e-2)


def test_enhance_on_a_gpu_agrees_with_the_cpu(workspace):
    run = workspace.train("one")
    volume = np.random.default_rng(0).integers(500, 1500, (7, 52, 44)).astype(np.uint16)
    made = [enhance(run.path, volume, engine=Engine.choose(device, "32")) for device in ("cpu", "cuda")]
    assert made[0].shape == made[1].shape == (56, 52, 44)
    assert np.median(np.abs(made[0].astype(float) - made[1])) < 0.02 * np.ptp(made[0])


def test_values_arrive_behind_the_computation():
    from inference.transfer import Arriving

    factor = torch.randn(3000, 3000, device="cuda")
    expected = factor.cpu()
    for _ in range(3):
        expected = (expected @ factor.cpu()).tanh()
    made = factor
    for _ in range(3):
        made = (made @ factor).tanh()
    arriving = Arriving.of(made.T)
    del made
    torch.zeros(3000, 3000, device="cuda")  # may take the memory of what was copied, but later
    np.testing.assert_allclose(arriving.wait(), expected.T.numpy(), atol=0.05)
