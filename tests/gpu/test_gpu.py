"""Paths that only a GPU takes: ``./run.sh test -m gpu tests/gpu``."""

import numpy as np
import pytest
import torch

from inference import Engine, Options, Run, decode, encode, enhance
from inference.api import enhance_job
from inference.passes import to_array
from inference.source import Source
from inference.uncertainty import spread_field
from models.build import build_model, load_components
from models.options import MODEL_OPTIONS
from tests.workspace import VARIANTS

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
        model = build_model(run.stored_settings(MODEL_OPTIONS)).to(device)
        load_components(model, run)
        with model.evaluating():
            volumes.append(model.generate({"img": [image.to(device)]}).volume.cpu())
    torch.testing.assert_close(volumes[1], volumes[0], rtol=0, atol=2e-2)


def noise(shape=(7, 52, 44)):
    return np.random.default_rng(0).integers(500, 1500, shape).astype(np.uint16)


def opened(run, device, **how):
    return Run.load(run.path, engine=Engine.choose(device, "32", **how))


def difference(made, expected):
    """The median, in parts of the range: single codes may tip over, and change all that hangs on them."""
    assert made.shape == expected.shape and made.dtype == expected.dtype
    return np.median(np.abs(made.astype(float) - expected)) / np.ptp(expected)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_model_trains_on_a_gpu_and_enhances_as_on_the_cpu(workspace, name):
    run = workspace.train("one", *workspace.variant(name))
    volume = noise((2, 7, 52, 44)) if name == "two_channels" else noise()
    made, expected = (enhance(opened(run, device), volume) for device in ("cuda", "cpu"))
    assert difference(made, expected) < 0.02


@pytest.mark.parametrize("name", ["vq", "kl_z"])
def test_codes_give_the_same_bits_for_every_region_on_a_gpu(workspace, tmp_path, name):
    """With more tiles per pass than the region needs, and while earlier tiles are still on their way from the GPU."""
    run, volume = opened(workspace.train("one", *workspace.variant(name)), "cuda"), noise()
    options, region = Options(tile=16, batch=5), (slice(3, 50), slice(9, 40), slice(20, 44))
    store = encode(run, volume, tmp_path / "c.codes.zarr", options)
    whole = decode(store, run, options=options)
    assert np.array_equal(whole, enhance(run, volume, options))
    part = decode(store, run, options=Options(tile=16, batch=5, region=region))
    assert np.array_equal(part, whole[region])
    raw, expected = (decode(store, opened(workspace.run("one"), device), grid="raw") for device in ("cuda", "cpu"))
    assert difference(raw, expected) < 0.02


def test_orientations_and_a_compiled_network_agree_with_the_cpu(workspace):
    run = workspace.train("one", "--no-mc")  # dropout draws other numbers on a GPU
    made = []
    for one in (opened(run, "cuda", compile=True), opened(run, "cpu")):
        source = Source(one, noise(), Options())
        job = enhance_job(one, source, Options())
        spread = spread_field(one, source, Options(), 3)
        made.append([field.render(job.region) for field in (job.field, spread)])
    for on_gpu, on_cpu in zip(*made, strict=True):
        assert difference(on_gpu, on_cpu) < 0.02


def test_memory_that_ends_halves_batch_and_tile_and_the_result_stays(workspace):
    run, volume = opened(workspace.train("one"), "cuda"), noise((16, 256, 256))
    options = Options(tile=128, batch=4)
    expected = enhance(run, volume, options)
    needed = torch.cuda.max_memory_allocated()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    try:
        torch.cuda.set_per_process_memory_fraction(0.4 * needed / total)
        job = enhance_job(run, Source(run, volume, options), options)
        made = job.field.render(job.region)[0]
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert job.field.batch < 4  # it did run out
    assert difference(made, expected) < 0.02


def test_values_arrive_behind_the_computation():
    factor = torch.randn(3000, 3000, device="cuda")
    expected = factor.cpu()
    for _ in range(3):
        expected = (expected @ factor.cpu()).tanh()
    made = factor
    for _ in range(3):
        made = (made @ factor).tanh()
    arriving, arrived = to_array(made.T), Engine.choose("cuda").record()
    del made
    torch.zeros(3000, 3000, device="cuda")  # may take the memory of what was copied, but later
    arrived()
    np.testing.assert_allclose(arriving, expected.T.numpy(), atol=0.05)
