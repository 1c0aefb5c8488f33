"""The seamless autoencoders (ldm/vqlocal.yaml, vqlinear.yaml): codes and slices from tiles are those of the whole slice."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from infer_runs import grey, make_run

import infer
from inference.decoding import SliceField
from inference.encoding import SliceEncoder
from inference.options import Options
from inference.passes import to_tensor
from inference.run import Run
from inference.source import Source
from inference.tiling import Axis
from taming.quantize import to_vectors
from utils.boxes import whole_box

SAMPLES = os.environ.get("ISOSCOPE_SAMPLES")
FLOAT = np.dtype(np.float32)


HALOS = {
    "vqlocal": {"stride": 8, "before": 9, "after": 10},
    "vqlinear": {"stride": 8, "before": 8, "after": 8},
    "vqlinear_ladder": {"stride": 16, "before": 8, "after": 8},
}
local = pytest.mark.parametrize("ldmyaml", HALOS)


def opened(tmp_path, values, ldmyaml, **options):
    high = float(values.max())
    options = {"codebook": {"levels": 1}} | options
    run = Run.load(make_run(tmp_path / "D" / "P", ldmyaml=ldmyaml, pooled=(0.0, high), **options))
    slices = Source(run, values, Options())
    _spread(run, slices)
    return run, slices, slices.intensities


@torch.no_grad()
def _spread(run, slices):
    """Encoder vectors of unit variance and codes among them, so that a gap of 1e-4 is small."""
    conv, quantizer = run.model.G["quant_conv"], run.model.G["quantize"]
    n, height, width = slices.shape
    pixels = torch.from_numpy(slices.read((slice(0, n), slice(0, min(height, 240)), slice(0, min(width, 128)))))
    vectors = to_vectors(run.model.encode(pixels)[0].moments)
    conv.weight.div_(vectors.std())
    conv.bias.div_(vectors.std())
    vectors = vectors[torch.randperm(len(vectors))] / vectors.std()
    for book, rest in quantizer.stages(vectors):
        chosen = rest[rest.any(dim=1)][: book.num_embeddings]
        book.weight[: len(chosen)] = chosen


@torch.inference_mode()
def of_whole_slices(run, slices):
    """Codes and what the encoder gave to the codebook, (n, h, w) and (n, h, w, d)."""
    n, height, width = slices.shape
    pixels = torch.from_numpy(slices.read((slice(0, n), slice(0, height), slice(0, width))))
    code, _ = run.model.encode(pixels)
    return code.indices.numpy(), code.moments.movedim(1, -1).numpy()


def of_tiles(run, slices):
    encoder = SliceEncoder(run, slices)
    return encoder, encoder.read(whole_box(encoder.shape)).codes


def assert_same_codes(run, slices, tiled):
    """DECISIONS 5: at least 99.99 % equal; where they differ, both codes are as near as rounding can tell."""
    codes, moments = of_whole_slices(run, slices)
    assert len(np.unique(codes)) > 50
    different = tiled != codes
    assert different.mean() <= 1e-4
    (book,) = (book.weight.numpy() for book in run.model.G["quantize"].codebooks)
    distances = [np.square(moments[different] - book[found[different]]).sum(axis=-1) for found in (tiled, codes)]
    assert (np.abs(distances[0] - distances[1]) < 1e-4).all()


@local
def test_tiled_codes_are_those_of_the_whole_slice(tmp_path, monkeypatch, ldmyaml):
    monkeypatch.setattr("inference.tiling.LOCAL_WINDOW", 67)
    run, slices, _ = opened(tmp_path, grey((1, 1201, 801)), ldmyaml)
    encoder, tiled = of_tiles(run, slices)
    assert (len(encoder.axes[1]), len(encoder.axes[2])) == ((3, 2) if run.stride == 8 else (2, 1))
    core = {"vqlocal": [47, 46], "vqlinear": [48, 47], "vqlinear_ladder": [34, 51]}[ldmyaml]
    assert encoder.lattice == {"slices": 1, "core": core, **HALOS[ldmyaml]}
    assert_same_codes(run, slices, tiled)


@local
def test_with_less_than_the_halo_codes_differ(tmp_path, monkeypatch, ldmyaml):
    """So the test above can fail."""
    monkeypatch.setattr("inference.tiling.LOCAL_WINDOW", 24)
    run, slices, _ = opened(tmp_path, grey((2, 264, 200)), ldmyaml)
    assert_same_codes(run, slices, of_tiles(run, slices)[1])
    monkeypatch.setattr(type(run.model), "slice_halo", lambda self, part: (16, 16))
    monkeypatch.setattr("inference.tiling.LOCAL_WINDOW", 8)
    codes, _ = of_whole_slices(run, slices)
    assert (of_tiles(run, slices)[1] != codes).mean() > 1e-3


@pytest.mark.skipif(not SAMPLES, reason="ISOSCOPE_SAMPLES, the folder of real volumes, is unset")
@local
def test_tiled_codes_of_a_real_slice(tmp_path, monkeypatch, ldmyaml):
    monkeypatch.setattr("inference.tiling.LOCAL_WINDOW", 24)
    real = tifffile.imread(Path(SAMPLES) / "fibsem_fib25_dev.tif")[100:103]
    run, slices, _ = opened(tmp_path, np.tile(real, (1, 2, 2)), ldmyaml)  # large against the halo
    encoder, tiled = of_tiles(run, slices)
    assert min(len(encoder.axes[1]), len(encoder.axes[2])) > 1
    assert_same_codes(run, slices, tiled)


@local
def test_raw_grid_from_tiles_is_the_decoder_on_whole_slices(tmp_path, monkeypatch, ldmyaml):
    run, slices, maps = opened(tmp_path, grey((2, 290, 53)), ldmyaml, codebook={"levels": 2})
    encoder, codes = of_tiles(run, slices)
    monkeypatch.setattr("inference.decoding.local_axis", lambda size, *halo: Axis(size, 3, *halo))
    field = SliceField(run, encoder, FLOAT)
    assert (len(field.axes[1]), len(field.axes[2])) == ((13, 3) if run.stride == 8 else (7, 2))
    with torch.inference_mode():
        recon = run.model.reconstruct(run.model.unpack(to_tensor(codes, torch.device("cpu"))))
    expected = maps[0].to_grey(recon[:, 0, :290, :53]).numpy()
    assert expected.std() > 5
    whole = tuple(slice(0, size) for size in field.shape)
    found = field.render(whole)[0]
    np.testing.assert_allclose(found, expected, atol=2e-2)
    box = (slice(1, 2), slice(31, 200), slice(20, 53))
    np.testing.assert_array_equal(SliceField(run, encoder, FLOAT).render(box)[0], found[box])
    assert field.lattice["decoding"] == {"core": [1, 3 * run.stride, 3 * run.stride], "overlap": [0, 0, 0], "exact": True}


def test_info_states_the_halo(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    infer.main(["info", str(make_run(tmp_path / "D" / "P", ldmyaml="vqlocal"))])
    assert "a halo of 71 pixels before and 78 after are exact" in caplog.text
    assert "sees 14 codes before and 14 after its own" in caplog.text
