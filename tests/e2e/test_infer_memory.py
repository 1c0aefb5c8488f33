"""What a command takes of a CPU's memory is foreseen, said, and refused where no machine of its size can do it."""

import logging
import re

import numpy as np
import pytest
from infer_commands import command, read
from infer_runs import grey, make_run

import inference.memory
from inference import Engine, Options, Run
from inference.decoding import isotropic_field
from inference.encoding import SliceEncoder
from inference.memory import require_memory
from inference.source import Source
from tests.outcomes import limited, measures_memory
from utils.errors import UserError
from utils.machine import held_memory
from writing.write import write_tiff

MODELS = {
    "vq": {},
    "residual": {"codebook": {"levels": 2}},
    "local": {"ldmyaml": "vqlocal"},
    "linear": {"ldmyaml": "vqlinear"},
    "interpolated": {"from_interpolation": True},
    "two channels": {"direction": "x3d0_x3d1", "tc": True, "input_nc": 2, "output_nc": 2},
    "kl": {"model": "ae0iso0tccut"},
    "kl, z": {"model": "ae0iso0tccut", "hbranch": "z"},
    "isoref": {"model": "IsoREF"},
    "lateral": {"model": "lateral", "uprate": 2, "axial_sampling": "mean", "blocks": 1},
}


def foreseen(said):
    return float(re.search(r"about ([\d.]+(?:e[+-]?\d+)?) GB of memory", said)[1]) * 1e9


@pytest.mark.parametrize("kind", MODELS)
def test_every_model_is_counted_and_computes_as_before(kind, tmp_path):
    how = dict(MODELS[kind])
    run = Run.load(make_run(tmp_path / "D" / "P", *filter(None, [how.pop("model", None)]), **how), engine=Engine.choose("cpu"))
    options, given = Options(), [grey((5, 44, 40), seed) for seed in range(run.channels)]
    with Source(run, given if run.channels > 1 else given[0], options) as source:
        field = isotropic_field(run, source, options, np.dtype(np.uint16))
        before = field.render(tuple(slice(0, size) for size in field.shape))
    with Source(run, given if run.channels > 1 else given[0], options) as source:
        field = isotropic_field(run, source, options, np.dtype(np.uint16))
        assert held_memory() < foreseen(require_memory(field)) * 1.06 < held_memory() + 2**30
        assert np.array_equal(field.render(tuple(slice(0, size) for size in field.shape)), before)
        if not run.restores:
            assert foreseen(require_memory(SliceEncoder(run, source))) * 1.06 > held_memory()


@measures_memory
@pytest.mark.parametrize(
    ("model", "how", "sides"),
    [
        ("ae0iso0tccutvqq", {"ngf": 16, "network": {"ch": 32}, "cropsize": 64, "cropz": 8, "mc": False}, (40, 64)),
        ("lateral", {"uprate": 8, "axial_sampling": "mean", "blocks": 1, "ngf": 32}, (64, 128)),
    ],
)
def test_the_peak_of_two_sizes_is_what_was_foreseen(model, how, sides, tmp_path, caplog):
    caplog.set_level(logging.INFO, "isoscope")
    run, taken = make_run(tmp_path / "D" / "P", model, **how), []
    for side in sides:
        write_tiff(tmp_path / "in.tif", grey((side // 8, side, side)))
        held = held_memory()
        with limited(2**34) as peak:
            words = ["enhance", "--run", run, "--input", tmp_path / "in.tif", "--output", tmp_path / "o.tif", "--overwrite"]
            command(*words, "--device", "cpu", "--tile", side)
        taken.append((foreseen(caplog.text) - held, peak[0]))
        caplog.clear()
    (small, of_small), (large, of_large) = taken
    assert 0.7 < (large - small) / (of_large - of_small) < 1.6, taken  # of libraries and threads, which are there once, no word
    assert large > 2 * small


@pytest.mark.parametrize("kind", ["vq", "lateral", "encode", "isoref"])
def test_what_cannot_fit_is_refused_before_anything_is_written(kind, tmp_path, monkeypatch):
    how = dict(MODELS.get(kind, {}))
    run = make_run(tmp_path / "D" / "P", *filter(None, [how.pop("model", None)]), **how)
    write_tiff(tmp_path / "in.tif", grey((5, 72, 72)))
    name, output = ("encode", "o.codes.zarr") if kind == "encode" else ("enhance", "o.ome.zarr")
    words = [name, "--run", run, "--input", tmp_path / "in.tif", "--output", tmp_path / output, "--device", "cpu"]
    monkeypatch.setattr(inference.memory, "total_memory", lambda: 10**8)
    with pytest.raises(
        UserError, match=r"needs about .* GB of memory, of which this machine has 0\.1 GB; use .*--precision bf16"
    ):
        command(*words)
    assert not list(tmp_path.glob(f"{output}*"))
    monkeypatch.undo()
    command(*words)
    assert name == "encode" or read(tmp_path / output).any()


def test_a_tile_that_would_fit_is_named(tmp_path, monkeypatch):
    run = Run.load(make_run(tmp_path / "D" / "P"), engine=Engine.choose("cpu"))
    with Source(run, grey((20, 160, 160)), Options()) as source:
        field = isotropic_field(run, source, Options(), np.dtype(np.uint16))
        monkeypatch.setattr(inference.memory, "held_memory", lambda: 0)
        needed = foreseen(require_memory(field))
        monkeypatch.setattr(inference.memory, "total_memory", lambda: int(0.7 * needed))
        with pytest.raises(UserError, match="use --tile 64 or --precision bf16"):
            require_memory(field)
