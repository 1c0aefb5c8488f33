"""Fixtures that REFERENCE §2 names and that are not at hand: reference.py fills them, benchmarks/parity.py replays them."""

import itertools

import numpy as np
import pytest
import torch

from tests.e2e import reference_networks as networks
from tests.e2e import reference_training as reference
from tests.e2e.reference_training import as_array
from tests.e2e.test_parity import GOLDENS, flipped, says_nothing
from tests.parity import models
from tests.parity import replay as parity
from tests.parity.golden import Golden, load

TAPS = {"1d": [3], "2d": [3, 3], "3d": [3, 3, 3]}


def relative(name, source, **meta):
    """A fixture with the entries and the description of another one; the description is its own copy."""
    golden = load(GOLDENS / f"{source}.npz")
    return Golden(name, golden.meta | meta, dict(golden))


def filled(golden, values, inputs=("vol", "noise")):
    """The fixture with new values for every entry but the inputs."""
    return Golden(golden.name, golden.meta, {k: golden[k] if k.startswith(inputs) else values[k] for k in golden})


def norms(prefix, weights, keys):
    """Entries of gradient norms after a backward pass."""
    return {k: as_array(weights[k.removeprefix(prefix)].grad.double().norm()) for k in keys if k.startswith(prefix)}


def assert_parity(golden, mended=()):
    """It passes, accounts for everything, and every compared number counts."""
    result, rng = parity.replay(golden), np.random.default_rng(0)
    assert result.passed, parity.describe(result)
    assert sorted(result.mended) == sorted(mended)
    deaf = [c.key for c in result.checks if not says_nothing(c) and c.against(flipped(c.reference, rng)).share <= 1]
    assert not deaf


# The slice models ----------------------------------------------------------------------------------------------------


def two_channels(manifest):
    """The shapes of a model with two channels."""
    changed = {"encoder.conv_in.weight": 1, "net_d.model.0.weight": 1, "net_g.down0.0.0.weight": 1}
    changed |= {f"net_g.conv7_{head}.0.0.{part}": 0 for head in "kg" for part in ("weight", "bias")}
    return {k: [2 if changed.get(k) == axis else n for axis, n in enumerate(shape)] for k, shape in manifest.items()}


@pytest.mark.parametrize(
    ("name", "source", "changes"),
    [
        pytest.param("e2e_vq_tc", "e2e_vq_base", {"tc": True, "input_nc": 2, "output_nc": 2}, marks=pytest.mark.slow),
        ("e2e_vq_lsgan", "e2e_vq_skip1", {"gan_mode": "lsgan"}),
        ("e2e_vq_usp2", "e2e_vq_skip1", {"cropz": 2, "usp": 2}),
        pytest.param("e2e_vq_usp2_deep", "e2e_vq_x4_downbranch2", {"cropz": 4, "usp": 2.0}, marks=pytest.mark.slow),
        ("e2e_kl_tc", "e2e_kl_mid", {"tc": True}),
    ],
)
def test_slice_models(name, source, changes):
    golden = relative(name, source)
    golden.meta["hparams"] = golden.meta["hparams"] | changes
    golden["vol1"] = golden["vol0"][:, :, ::-1].copy()  # the reference reads it with tc only
    if changes.get("tc"):
        golden.meta["manifest"] = two_channels(golden.meta["manifest"])
    values = {}
    for double in models.precisions(golden):
        cases = [(case.cut, case.how, case.step) for case in models.cases(golden, double)]
        made, facts = reference.SliceModel(golden, double).entries(cases)
        values |= made
    golden.meta |= {key: value for key, value in facts.items() if key in golden.meta}
    assert_parity(filled(golden, values))


# IsoREF --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("e2e_isoref_nocyc_nocut_3d", {"gdim": "3d_3d", "nocut": True, "l1how": "mean"}),
        ("e2e_isoref_nocyc_nocut_deep", {"nocut": True, "cropz": 4, "uprate": 8}),
        ("e2e_isoref_nocyc_cut", {"nocut": False, "uprate": 4}),
    ],
)
def test_isoref_without_the_cycle(name, changes):
    golden = relative(name, "e2e_isoref_cyc_cut")
    golden.meta["hparams"] = golden.meta["hparams"] | changes | {"nocyc": True}
    solid = golden.meta["hparams"]["gdim"] == "3d_3d"
    golden.meta["manifest"] = {
        key: shape + 2 * shape[2:] if solid and len(shape) == 3 else shape
        for key, shape in golden.meta["manifest"].items()
        if not key.startswith(("net_gback", "net_dz", "netF"))
    }
    gone = ("XupXback", "gback", "l1b", "dyy", "net_gback", "net_dz") + (("nce",) if changes["nocut"] else ())
    kept = Golden(name, golden.meta, {k: v for k, v in golden.items() if not any(part in k for part in gone)})
    values, facts = reference.isoref_entries(kept)
    kept.meta |= facts
    assert_parity(filled(kept, values))


@pytest.mark.parametrize(("encode", "decode"), [*itertools.product(TAPS, TAPS)])
def test_dimensions_of_the_unet(encode, decode):
    golden = relative(f"edclean_{encode}_{decode}", "edclean_3d_3d", encode=encode, decode=decode)
    golden.meta["decode_as_called_by_IsoREF"] = f"_{decode}"
    values = {}
    for prefix, manifest, decode_built in (("", "manifest", decode), ("raw_", "manifest_raw", "3d")):
        golden.meta[manifest] = {
            key: shape[:2] + TAPS[encode if key.startswith("down") else decode_built] if len(shape) == 5 else shape
            for key, shape in golden.meta[manifest].items()
        }
        weights, x = networks.trainable(golden.weights(manifest)), torch.tensor(golden["x"]).requires_grad_()
        features = networks.unet_encode(weights, x)
        volume = networks.unet_decode(weights, features)
        (volume * torch.tensor(golden["dir"])).sum().backward()
        values |= {f"{prefix}feat{level}": as_array(feature) for level, feature in enumerate(features)}
        values |= {f"{prefix}out0": as_array(volume), f"{prefix}grad_x": as_array(x.grad)}
        values |= norms(f"{prefix}gnorm.", weights, golden)
    second = ["out1", "raw_out1"]
    assert_parity(filled(golden, values | {k: golden[k] for k in second}, ("x", "dir")), mended=second)


# Single networks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["instance", "none"])
def test_norms_of_the_volume_decoder(norm):
    golden = relative(f"ed023e_{norm}", "ed023e_batch", norm=norm)
    normed = {key.rsplit(".", 1)[0] for key in golden.meta["manifest"] if "running_mean" in key}
    golden.meta["manifest"] = {k: v for k, v in golden.meta["manifest"].items() if k.rsplit(".", 1)[0] not in normed}
    gone = {f"gnorm.{layer}.{part}" for layer in normed for part in ("weight", "bias")}
    kept = Golden(golden.name, golden.meta, {k: v for k, v in golden.items() if "after." not in k and k not in gone})
    weights, latents = networks.trainable(kept.weights()), torch.tensor(kept["lat"]).requires_grad_()
    volume = networks.ed023e(weights, latents, norm)
    (volume * torch.tensor(kept["dir"])).sum().backward()
    values = {"train_out0": as_array(volume), "grad_lat": as_array(latents.grad)} | norms("gnorm.", weights, kept)
    values["eval_out0"] = as_array(networks.ed023e(weights, latents, norm, train=False))
    mended = [k for k in kept if k == "x" or "out1" in k or k.startswith(("full_", "feat"))]
    assert_parity(filled(kept, values | {k: kept[k] for k in mended}, ("lat", "dir")), mended)


def test_patch_8():
    golden = relative("patchD_8", "patchD_4", kind="registry patch_8")
    numbers = {"model.0": "model.0", "model.2": "model.2", "model.5": "model.5", "model.8": "model.8"}
    numbers |= {"model.14": "model.11", "model.18": "model.15"}
    parts = {f"{old}.{p}": f"{new}.{p}" for old, new in numbers.items() for p in ("weight", "bias")}
    golden.meta["manifest"] = {new: golden.meta["manifest"][old] for old, new in parts.items()}
    golden["x"] = np.ascontiguousarray(golden["x"][..., :64, :96])
    weights, x = networks.trainable(golden.weights()), torch.tensor(golden["x"]).requires_grad_()
    y = networks.plane_critic(weights, x)
    direction = np.random.default_rng(0).standard_normal(y.shape).astype(np.float32)
    (y * torch.tensor(direction)).sum().backward()
    kept = {k: v for k, v in golden.items() if not k.startswith("gnorm.")} | {f"gnorm.{new}": 0 for new in parts.values()}
    values = {"y": as_array(y), "grad_x": as_array(x.grad), "dir": direction} | norms("gnorm.", weights, kept)
    assert_parity(filled(Golden("patchD_8", golden.meta, kept), values, ("x",)))


def test_the_published_quantiser():
    golden = relative("vq_legacy_False", "vq_legacy_True", legacy=False)
    z, codebook = (torch.tensor(golden[key]).requires_grad_() for key in ("z", "codebook"))
    q, loss, indices = networks.quantise(codebook, z, legacy=False)
    values = {"q": q, "loss": loss, "idx": indices, "idx_bhw": indices.reshape(3, 5, 6)}
    values["entry"] = codebook[indices].reshape(3, 5, 6, 4).permute(0, 3, 1, 2)
    from_q = (q * torch.tensor(golden["dir"])).sum()
    for name, scalar in {"total": from_q + 10 * loss, "from_q": from_q, "from_loss": loss}.items():
        gradients = torch.autograd.grad(scalar, (z, codebook), retain_graph=True, allow_unused=True)
        values |= {f"grad_z_{name}": gradients[0], f"grad_codebook_{name}": gradients[1]}
    made = {key: as_array(value) for key, value in values.items() if value is not None}
    assert_parity(filled(golden, made, ("z", "codebook", "dir")))
