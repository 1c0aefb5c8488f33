"""benchmarks/parity.py: every fixture at hand passes, every number counts, and variants that are not at hand are replayed too.

Everything that is known about fixtures lives in benchmarks/replay; no other test repeats it.
"""

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from benchmarks import parity
from benchmarks.replay.golden import Golden, load, save
from benchmarks.replay.volume import ConvOverXZ

GOLDENS = Path(__file__).parents[1] / "goldens"
NAMES = sorted(path.stem for path in GOLDENS.glob("*.npz"))
COMPONENTS = [name for name in NAMES if not name.startswith("e2e_")]
MODELS = [name for name in NAMES if name.startswith("e2e_")]


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
    """A gradient that is zero but for rounding, or a volume after chaos (see benchmarks/replay/rounding.py)."""
    zero = ("gnorm." in check.key or "grad." in check.key) and 0 < float(np.abs(check.reference).max()) <= check.absolute
    return zero or (check.key == "XupX_last" and check.absolute > 1)


@pytest.mark.parametrize("name", NAMES)
def test_every_compared_number_counts(name):
    rng = np.random.default_rng(0)
    checks = replayed(name).checks
    deaf = [c.key for c in checks if not says_nothing(c) and c.against(flipped(c.reference, rng)).share <= 1]
    assert not deaf
    assert all(c.key.endswith(".bias") or c.key == "XupX_last" for c in checks if says_nothing(c))


@pytest.mark.parametrize("name", [*COMPONENTS, *(pytest.param(name, marks=pytest.mark.slow) for name in MODELS)])
def test_one_flipped_number_in_a_file_fails(name, tmp_path):
    rng = np.random.default_rng(1)
    compared = sorted({c.key for c in replayed(name).checks if c.key in golden(name) and not says_nothing(c)})
    key = compared[rng.integers(len(compared))]
    save(tmp_path / f"{name}.npz", Golden(name, golden(name).meta, golden(name) | {key: flipped(golden(name)[key], rng)}))
    status, table = run(tmp_path)
    assert status == 1 and "FAIL" in table and table.endswith("0 passed, 1 failed\n")


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
    import torch

    layer, volume = ConvOverXZ(2, 3), torch.randn(2, 2, 4, 5, 6)
    whole = layer(volume)
    assert whole.shape == (2, 3, 4, 5, 6)
    for y in range(5):
        expected = torch.nn.functional.conv2d(volume[:, :, :, y], layer.weight, layer.bias, padding=1)
        torch.testing.assert_close(whole[:, :, :, y], expected)


# Variants of REFERENCE §2 that are not among the fixtures: their files have the shape of a relative's. Their numbers are missing,
# so only this is tested: the replay runs to its end, accounts for every entry, and what it compares is finite and of right shape.


def channels(manifest, keys):
    """The shapes of a two-channel model."""
    made = dict(manifest)
    for key, axis in keys.items():
        made[key] = [2 if k == axis else size for k, size in enumerate(made[key])]
    return made


TWO_CHANNELS = {"encoder.conv_in.weight": 1, "net_d.model.0.weight": 1, "net_g.down0.0.0.weight": 1} | {
    f"net_g.conv7_{head}.0.0.{part}": 0 for head in "kg" for part in ("weight", "bias")
}
VARIANTS = {
    "e2e_vq_tc": ("e2e_vq_base", {"tc": True, "input_nc": 2, "output_nc": 2}),
    "e2e_vq_lsgan": ("e2e_vq_skip1", {"gan_mode": "lsgan"}),
    "e2e_vq_usp2": ("e2e_vq_skip1", {"cropz": 2, "usp": 2}),
    "e2e_vq_usp2_deep": ("e2e_vq_x4_downbranch2", {"cropz": 4, "usp": 2.0}),
    "e2e_kl_tc": ("e2e_kl_mid", {"tc": True}),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_the_slice_models(name):
    source, changes = VARIANTS[name]
    made = Golden(name, dict(golden(source).meta), dict(golden(source)))
    made.meta = {key: value for key, value in made.meta.items() if key not in ("z_init", "vq_min_margin")}
    made.meta["hparams"] = made.meta["hparams"] | changes
    if changes.get("tc"):
        made["vol1"] = made["vol0"][:, :, ::-1].copy()
        made.meta["manifest"] = channels(made.meta["manifest"], TWO_CHANNELS)
    result = parity.replay(made)
    assert not result.problems
    for check in result.checks:
        assert np.isfinite(check.ours).all(), check.key
        if check.key in ("oriX", "XupX", "Xup"):
            assert check.ours.shape[1] == (2 if changes.get("tc") else 1)
        elif not changes.get("tc") or "grad." not in check.key:
            assert check.ours.shape == check.reference.shape, check.key


def test_isoref_without_cycle_and_contrast():
    source = golden("e2e_isoref_cyc_cut")
    gone = ("XupXback", "gback", "l1b", "nce", "dyy", "net_gback", "net_dzy", "net_dzx")
    arrays = {key: value for key, value in source.items() if not any(part in key for part in gone)}
    meta = dict(source.meta)
    meta["hparams"] = meta["hparams"] | {"gdim": "3d_3d", "nocyc": True, "nocut": True, "l1how": "mean"}
    meta["manifest"] = {
        key: shape + 2 * shape[2:] if "conv.weight" in key and len(shape) == 3 else shape
        for key, shape in meta["manifest"].items()
        if not key.startswith(("net_gback", "net_dz", "netF"))
    }
    result = parity.replay(Golden("e2e_isoref_nocyc_nocut_3d", meta, arrays))
    assert not result.problems and all(np.isfinite(check.ours).all() for check in result.checks)
    assert {check.key for check in result.checks if check.share <= 1} >= {"oriX", "Xup"}


@pytest.mark.parametrize("norm", ["instance", "none"])
def test_other_norms_of_the_volume_decoder(norm):
    source = golden("ed023e_batch")
    norms = {key.rsplit(".", 1)[0] for key in source.meta["manifest"] if "running_mean" in key}
    meta = source.meta | {"norm": norm}
    meta["manifest"] = {key: shape for key, shape in meta["manifest"].items() if key.rsplit(".", 1)[0] not in norms}
    kept = {
        k: v
        for k, v in source.items()
        if "after." not in k and not any(k == f"gnorm.{n}.{p}" for n in norms for p in ("weight", "bias"))
    }
    result = parity.replay(Golden(f"ed023e_{norm}", meta, kept))
    assert not result.problems and all(np.isfinite(check.ours).all() for check in result.checks)
    assert len(result.checks) > 15 and result.mended


@pytest.mark.parametrize(("encode", "decode"), [("1d", "3d"), ("2d", "2d"), ("1d", "1d")])
def test_other_dimensions_of_the_unet(encode, decode):
    taps = {"1d": [3], "2d": [3, 3], "3d": [3, 3, 3]}

    def manifest(decode):
        return {
            key: shape[:2] + taps[encode if key.startswith("down") else decode] if len(shape) == 5 else shape
            for key, shape in source.meta["manifest"].items()
        }

    source = golden("edclean_3d_3d")
    meta = source.meta | {"encode": encode, "decode": decode, "manifest": manifest(decode), "manifest_raw": manifest("3d")}
    result = parity.replay(Golden(f"edclean_{encode}_{decode}", meta, dict(source)))
    assert not result.problems and all(np.isfinite(check.ours).all() for check in result.checks)
    assert {f"feat{level}" for level in range(4)} | {"out0"} <= {check.key for check in result.checks}
    assert any("raw" in key and key != "raw_out1" for key in result.mended) == (decode != "3d")


def test_patch_8_and_the_published_quantiser():
    source = golden("patchD_4")
    shapes = source.meta["manifest"]
    meta = source.meta | {"kind": "registry patch_8"}
    short = ["model.0", "model.2", "model.5", "model.8", "model.14", "model.18"]
    renamed = dict(zip(short, ["model.0", "model.2", "model.5", "model.8", "model.11", "model.15"], strict=True))
    meta["manifest"] = {f"{new}.{part}": shapes[f"{old}.{part}"] for old, new in renamed.items() for part in ("weight", "bias")}
    arrays = {k: v for k, v in source.items() if not k.startswith("gnorm.")}
    arrays |= {
        f"gnorm.{new}.{part}": source[f"gnorm.{old}.{part}"] for old, new in renamed.items() for part in ("weight", "bias")
    }
    arrays |= {"y": np.zeros((2, 1, 4, 4), np.float32), "dir": np.ones((2, 1, 4, 4), np.float32)}
    assert not parity.replay(Golden("patchD_8", meta, arrays)).problems
    source = golden("vq_legacy_True")
    result = parity.replay(Golden("vq_legacy_False", source.meta | {"legacy": False}, dict(source)))
    different = {check.key for check in result.checks if check.share > 1}
    assert not result.problems
    assert different == {"grad_z_total", "grad_z_from_loss", "grad_codebook_total", "grad_codebook_from_loss"}
