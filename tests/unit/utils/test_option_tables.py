"""The option tables of every model: the defaults of DECISIONS, names that are unique and leave old abbreviations alone."""

import json
from pathlib import Path

import pytest

from experiment.options import BASE_OPTIONS, ESTABLISHED, RETIRED
from experiment.reading import default_settings
from models.options import MODEL_OPTIONS

REPOSITORY = Path(__file__).resolve().parents[3]
VQ, KL, SSIM, ISOREF, LATERAL = "ae0iso0tccutvqq", "ae0iso0tccut", "ae0iso0tccutvqqssim", "IsoREF", "lateral"

# The option tables of DECISIONS §1 with their defaults (None: unset).
SHARED = {
    "models": VQ,
    "seed": 123,
    "resume": False,
    "init": None,
    "overwrite": False,
    "strict": False,
    "debug": False,
    "max_time": None,
    "direction": "x3d0",
    "nm": "00",
    "nm_clip": None,
    "precrop": 0,
    "resize": 0,
    "cropsize": 128,
    "cropz": 16,
    "rotate": True,
    "dsp": 1,
    "dsp_how": "pick",
    "usp": 1.0,
    "preload": False,
    "crops_per_volume": 1,
    "batch_size": 1,
    "netD": "patch_16",
    "ngf": 32,
    "ndf": 64,
    "norm": "batch",
    "mc": True,
    "input_nc": 1,
    "output_nc": 1,
    "lamb": 10.0,
    "l1how": "max",
    "skipl1": 4,
    "adv": 1.0,
    "adv_planes": 0,
    "gan_mode": "vanilla",
    "nocut": True,
    "lbNCE": 0.0,
    "num_patches": 256,
    "nce_T": 0.07,
    "use_mlp": False,
    "c_mlp": 256,
    "fWhich": None,
    "nce_includes_all_negatives_from_minibatch": False,
    "lr": 2e-4,
    "lr_g_factor": 1.0,
    "beta1": 0.5,
    "lr_policy": "cosine",
    "n_epochs": 10001,
    "n_epochs_decay": 100,
    "lr_decay_iters": 50,
    "epoch_save": 100,
    "accumulate_grad_batches": 1,
    "gradient_clip": 0.0,
    "ema": 0.0,
    "precision": None,
    "recompute": False,
    "devices": "auto",
    "num_nodes": 1,
    "strategy": "auto",
    "save_d": False,
    "on_nan": "stop",
    "unreadable_files": 0,
    "save_minutes": 10.0,
}
SLICES = SHARED | {
    "downbranch": 1,
    "resizebranch": 1,
    "ldmyaml": "vqgan",
    "netG": None,
    "embed_dim": None,
    "tc": False,
    "slabtarget": "pooled",
    "lbm_ms_ssim": 0.0,
    "perceptual_weight": None,
}
TABLES = {
    VQ: SLICES,
    SSIM: SLICES | {"models": SSIM, "lbm_ms_ssim": 1.0},
    KL: SLICES | {"models": KL, "ldmyaml": "ldmaex2", "lbNCE": 1.0, "hbranch": None},
    ISOREF: SHARED
    | {
        "models": ISOREF,
        "dsp_how": "mean",
        "skipl1": 1,
        "lbNCE": 1.0,
        "lambB": 1.0,
        "gdim": "1d_3d",
        "nocyc": False,
        "uprate": None,
        "netG": "edclean",
    },
    LATERAL: {
        "models": LATERAL,
        "uprate": None,
        "axial_sampling": "pick",
        "axial_sigma": 0.0,
        "axial_taps": None,
        "cropz": 2,
        "rotate": False,
        "batch_size": 4,
        "lr": 5e-4,
        "ema": 0.995,
        "ngf": 64,
    },
    "texture": {
        "models": "texture",
        "teacher": None,
        "uprate": None,
        "cropsize": 64,
        "cropz": 8,
        "batch_size": 1,
        "lr": 1e-3,
        "beta1": 0.9,
        "grain_width": 16,
        "lbstart": 30.0,
        "axial_noise": "missing",
    },
    "fused": {
        "models": "fused",
        "teacher": None,
        "uprate": None,
        "cropsize": 64,
        "cropz": 8,
        "batch_size": 1,
        "lr": 3e-4,
        "beta1": 0.9,
        "adv": 0.0,
        "fuse_width": 32,
        "fuse_blocks": 4,
    },
}


@pytest.mark.parametrize("model", MODEL_OPTIONS)
def test_every_option_of_the_decisions_has_its_default(model):
    settings = default_settings(MODEL_OPTIONS, model)
    assert {name: settings.get(name, "missing") for name in TABLES[model]} == TABLES[model]


@pytest.mark.parametrize("model", MODEL_OPTIONS)
def test_default_settings_survive_json_and_pass_their_own_checks(model):
    settings = default_settings(MODEL_OPTIONS, model, dataset="D")
    assert json.loads(json.dumps(settings)) == settings
    assert default_settings(MODEL_OPTIONS, model, **settings) == settings


def test_no_option_is_declared_twice():
    for own in ((), *MODEL_OPTIONS.values()):
        names = [key for option in own for key in option.keys]
        assert len(names) == len(set(names))
    base = [key for option in BASE_OPTIONS for key in option.keys]
    assert len(base) == len(set(base))
    assert not {*base, *(o.name for own in MODEL_OPTIONS.values() for o in own)} & set(RETIRED)


def test_names_of_ours_leave_the_established_abbreviations_alone():
    """No new name begins with an old option's name, or with what abbreviated one, but for those that DECISIONS chose itself."""
    chosen_by_decisions = {
        "accumulate_grad_batches",
        "adv_planes",
        "crops_per_volume",
        "dsp_how",
        "ema",
        "init",
        "nm_clip",
        "num_nodes",
        "on_nan",
        "overwrite",
        "precision",
        "save_minutes",
    }
    known = [
        own for name, own in MODEL_OPTIONS.items() if name not in (LATERAL, "texture", "fused")
    ]  # nobody has habits with these
    every = {option.name: option for own in (BASE_OPTIONS, *known) for option in own}
    old = ESTABLISHED - {"l1"}
    prefixes = {name[:n] for name in old for n in range(1, len(name) + 1)}
    established = {short for short in prefixes if sum(name.startswith(short) for name in old | {*RETIRED}) == 1} | old
    new = every.keys() - old
    assert {name for name in new if any(name.startswith(short) for short in established)} == chosen_by_decisions
    assert {"picture_epochs", "keep_pictures", "val_epochs", "log_steps", "monitor"} <= new
