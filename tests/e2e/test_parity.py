"""benchmarks/parity.py: every fixture at hand passes, and every number counts. Variants not at hand: test_parity_variants.py.

Everything that is known about fixtures lives in tests/parity; no other test repeats it.
"""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.parity import replay as parity
from tests.parity import vq
from tests.parity.comparison import Comparison
from tests.parity.golden import Golden, load, save
from tests.parity.rounding import other_rounding
from tests.parity.volume import ConvOverXZ

GOLDENS = Path(__file__).parents[1] / "goldens"
NAMES = sorted(path.stem for path in GOLDENS.glob("*.npz"))
COMPONENTS = [name for name in NAMES if not name.startswith("e2e_")]
ONES = ("data", "decoder", "gaussian", "patchD_4", "projection", "vq_legacy_True")  # a few; the others are slow, or alike


@cache
def golden(name):
    return load(GOLDENS / f"{name}.npz")


@cache
def replayed(name):
    return parity.replay(golden(name))


def run(folder):
    table = []
    status = parity.main([str(folder)], table.append)
    return status, "".join(table)


@pytest.mark.parametrize("name", NAMES)
def test_fixture(name):
    result = replayed(name)
    assert result.passed, parity.describe(result)


def flipped(values, rng):
    """A copy in which one number is off by half of the largest, or by one."""
    changed = values.astype(np.float64)
    place = tuple(rng.integers(size) for size in values.shape)
    changed[place] += 0.5 * np.abs(changed).max() or 1.0
    return changed


def says_nothing(check):
    """A gradient that is zero but for rounding, or a volume after chaos (see tests/parity/rounding.py)."""
    zero = ("gnorm." in check.key or "grad." in check.key) and 0 < float(np.abs(check.reference).max()) <= check.absolute
    return zero or (check.key == "XupX_last" and check.absolute > 1)


@pytest.mark.parametrize("name", NAMES)
def test_every_compared_number_counts(name):
    rng = np.random.default_rng(0)
    checks = replayed(name).checks
    deaf = [c.key for c in checks if not says_nothing(c) and c.against(flipped(c.reference, rng)).share <= 1]
    assert not deaf
    assert all(c.key.endswith(".bias") or c.key == "XupX_last" for c in checks if says_nothing(c))


@pytest.mark.parametrize("name", [name if name in ONES else pytest.param(name, marks=pytest.mark.slow) for name in NAMES])
def test_one_flipped_number_in_a_file_fails(name, tmp_path):
    rng = np.random.default_rng(1)
    compared = sorted({c.key for c in replayed(name).checks if c.key in golden(name) and not says_nothing(c)})
    key = compared[rng.integers(len(compared))]
    save(tmp_path / f"{name}.npz", Golden(name, golden(name).meta, golden(name) | {key: flipped(golden(name)[key], rng)}))
    status, table = run(tmp_path)
    assert status == 1 and "FAIL" in table and table.endswith("0 passed, 1 failed\n")


@pytest.mark.parametrize("name", ["edclean_3d_3d", pytest.param("e2e_vq_dsp2", marks=pytest.mark.slow)])
def test_another_processor_passes_but_no_error(name):
    """Its rounding is imitated. The error is an output or a gradient norm that is 1 % off."""
    key = "out0" if name in COMPONENTS else "nocut.max.step0.g.gnorm.net_g.up3.0.weight"
    wrong = Golden(name, golden(name).meta, golden(name) | {key: golden(name)[key] * 1.01})
    with other_rounding(seed=100):
        result = parity.replay(golden(name))
        assert result.passed, parity.describe(result)
        assert not parity.replay(wrong).passed


def test_of_two_equally_near_codes_the_stored_one_counts():
    c = Comparison(Golden("e2e_vq_skip1", golden("e2e_vq_skip1").meta, dict(golden("e2e_vq_skip1"))))
    model = vq.build(c)
    codebook = model.G["quantize"].embedding.weight.detach()
    codes = torch.tensor(c.golden["indices"]).view(4, 4, 4)
    near, other = (codebook - codebook[codes[0, 0, 0]]).norm(dim=1).argsort()[:2]
    z = model.G["quantize"].lookup(codes).detach()
    z[0, :, 0, 0] = (codebook[near] + codebook[other]) / 2
    vq._keep_codes(c, model, double=False)
    for code in (near, other):
        codes[0, 0, 0] = code
        c.golden["indices"] = codes.flatten().numpy()
        assert torch.equal(model.bottleneck(z).indices, codes)
    c.golden["indices"] = torch.roll(codes, 1).flatten().numpy()
    assert torch.equal(model.bottleneck(z).indices.flatten()[1:], codes.flatten()[1:])  # none that is farther away


def test_the_table_of_a_passing_folder(tmp_path):
    for name in ("projection", "data"):
        save(tmp_path / f"{name}.npz", golden(name))
    status, table = run(tmp_path)
    lines = table.splitlines()
    assert status == 0 and lines[-1] == "2 passed, 0 failed"
    assert lines[-2].startswith("4 entries not compared because they are mended")
    assert [line.split()[0] for line in lines[1:3]] == ["data", "projection"] and all(
        line.endswith("pass") for line in lines[1:3]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g: g.meta.update(kind="something else"), "no replay knows a fixture of this name with kind 'something else'"),
        (lambda g: setattr(g, "name", "nonsense"), "no replay knows a fixture of this name"),
        (lambda g: g.update(new=np.zeros(3)), "new was not compared"),
        (lambda g: g.pop("x"), "the replay stopped: KeyError: 'x'"),
        (lambda g: g.update(y=g["y"][:1]), "y "),
        (lambda g: g.update(y=np.full_like(g["y"], np.nan)), "y "),
        (lambda g: g.pop("gnorm.model.0.bias"), "gnorm.model.0.bias "),
    ],
)
def test_what_cannot_be_compared_fails(change, message):
    changed = Golden("patchD_16", dict(golden("patchD_16").meta), dict(golden("patchD_16")))
    change(changed)
    result = parity.replay(changed)
    assert not result.passed and message in parity.describe(result)


def test_damaged_files_and_empty_folders_fail(tmp_path):
    assert run(tmp_path)[0] == run(tmp_path / "missing")[0] == parity.main([], str) == 2
    (tmp_path / "decoder.npz").write_bytes(b"no archive")
    np.savez(tmp_path / "encoder_doublez_True.npz", x=np.zeros(2))
    status, table = run(tmp_path)
    assert status == 1 and table.count("cannot be read") == 2 and table.endswith("0 passed, 2 failed\n")


def test_the_convolution_that_only_fixtures_know():
    layer, volume = ConvOverXZ(2, 3), torch.randn(2, 2, 4, 5, 6)
    whole = layer(volume)
    assert whole.shape == (2, 3, 4, 5, 6)
    for y in range(5):
        expected = torch.nn.functional.conv2d(volume[:, :, :, y], layer.weight, layer.bias, padding=1)
        torch.testing.assert_close(whole[:, :, :, y], expected)
