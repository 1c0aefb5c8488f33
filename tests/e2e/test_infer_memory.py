"""What a command takes of a CPU's memory is foreseen, said, and refused where no machine of its size can do it."""

import re
import subprocess
import sys

import numpy as np
import pytest
from infer_commands import command, quiet, read
from infer_runs import ROOT, grey, make_run

import inference.memory
from inference import Engine, Options, Run
from inference.decoding import isotropic_field
from inference.encoding import SliceEncoder, slices_or_codes
from inference.memory import require_memory
from inference.source import Source
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
    number, unit = re.search(r"about ([\d.]+) ([MG])B of memory", said).groups()
    return float(number) * {"M": 1e6, "G": 1e9}[unit]


@pytest.mark.parametrize("kind", MODELS)
def test_every_model_is_counted_and_computes_as_before(kind, tmp_path):
    how = dict(MODELS[kind])
    run = Run.load(make_run(tmp_path / "D" / "P", *filter(None, [how.pop("model", None)]), **how), engine=Engine.choose("cpu"))
    options, given = Options(), [grey((5, 44, 40), seed) for seed in range(run.channels)]
    with Source(run, given if run.channels > 1 else given[0], options) as source:
        field = isotropic_field(run, slices_or_codes(run, source, options), np.dtype(np.uint16), options)
        before = field.render(tuple(slice(0, size) for size in field.shape))
    with Source(run, given if run.channels > 1 else given[0], options) as source:
        field = isotropic_field(run, slices_or_codes(run, source, options), np.dtype(np.uint16), options)
        assert held_memory() < foreseen(require_memory(field)) * 1.06 < held_memory() + 2**30
        assert np.array_equal(field.render(tuple(slice(0, size) for size in field.shape)), before)
        if not run.restores:
            assert foreseen(require_memory(SliceEncoder(run, source))) * 1.06 > held_memory()


PEAK = """
import pathlib, re, runpy
runpy.run_path("infer.py", run_name="__main__")
status = pathlib.Path("/proc/self/status").read_text()  # ru_maxrss would count the process that this one was forked from
print("peak", int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) * 1024)
"""


@pytest.mark.slow  # a minute
@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize(
    ("model", "how", "sides"),
    [
        ("ae0iso0tccutvqq", {"ngf": 32, "network": {"ch": 64}, "cropsize": 64, "cropz": 8}, (64, 128)),
        ("lateral", {"uprate": 8, "axial_sampling": "mean", "blocks": 2, "ngf": 64}, (64, 192)),
    ],
)
def test_the_peaks_of_two_sizes_are_those_foreseen(model, how, sides, tmp_path):
    run, peaks, told = make_run(tmp_path / "D" / "P", model, **how), [], []
    for side in sides:
        write_tiff(tmp_path / "in.tif", grey((side // 8, side, side)))
        words = ["enhance", "--run", run, "--input", tmp_path / "in.tif", "--output", tmp_path / "o.tif", "--overwrite"]
        line = [sys.executable, "-c", PEAK, *map(str, [*words, "--device", "cpu", "--tile", side])]
        said = subprocess.run(line, cwd=ROOT, env=quiet(), capture_output=True, text=True, check=True).stdout
        told.append(foreseen(said))
        peaks.append(int(said.rpartition("peak")[2]))
    assert 0.8 < told[0] / peaks[0] < 1.3 and 0.8 < told[1] / peaks[1] < 1.3, (told, peaks)
    assert 0.4 < (told[1] - told[0]) / (peaks[1] - peaks[0]) < 1.6, (told, peaks)


@pytest.mark.parametrize("kind", ["vq", "lateral", "encode", "isoref"])
def test_what_cannot_fit_is_refused_before_anything_is_written(kind, tmp_path, monkeypatch):
    how = dict(MODELS.get(kind, {}))
    run = make_run(tmp_path / "D" / "P", *filter(None, [how.pop("model", None)]), **how)
    write_tiff(tmp_path / "in.tif", grey((5, 72, 72)))
    name, output = ("encode", "o.codes.zarr") if kind == "encode" else ("enhance", "o.ome.zarr")
    words = [name, "--run", run, "--input", tmp_path / "in.tif", "--output", tmp_path / output, "--device", "cpu"]
    monkeypatch.setattr(inference.memory, "total_memory", lambda: 10**8)
    with pytest.raises(UserError, match=r"needs about .* of memory, of which this machine has 100 MB; use .*--precision bf16"):
        command(*words)
    assert not list(tmp_path.glob(f"{output}*"))
    monkeypatch.undo()
    command(*words)
    assert name == "encode" or read(tmp_path / output).any()


def test_a_tile_that_would_fit_is_named(tmp_path, monkeypatch):
    run = Run.load(make_run(tmp_path / "D" / "P"), engine=Engine.choose("cpu"))
    with Source(run, grey((20, 160, 160)), Options()) as source:
        field = isotropic_field(run, slices_or_codes(run, source, Options()), np.dtype(np.uint16), Options())
        monkeypatch.setattr(inference.memory, "held_memory", lambda: 0)
        needed = foreseen(require_memory(field))
        monkeypatch.setattr(inference.memory, "total_memory", lambda: int(0.7 * needed))
        with pytest.raises(UserError, match="use --tile 64 or --precision bf16"):
            require_memory(field)
