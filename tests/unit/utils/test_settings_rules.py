"""The rules between settings."""

from pathlib import Path

import pytest

from experiment.autoencoder import read_autoencoder_yaml
from experiment.reading import default_settings
from experiment.rules import check_settings
from models.options import MODEL_OPTIONS
from utils.errors import UserError
from utils.geometry import Geometry

REPOSITORY = Path(__file__).resolve().parents[3]
VQ, KL, SSIM, ISOREF = "ae0iso0tccutvqq", "ae0iso0tccut", "ae0iso0tccutvqqssim", "IsoREF"


def check(model=VQ, **overrides):
    settings = default_settings(MODEL_OPTIONS, model, **{"dataset": "D", "prj": "p", **overrides})
    autoencoder = read_autoencoder_yaml(REPOSITORY, settings["ldmyaml"]) if "ldmyaml" in settings else None
    check_settings(settings, autoencoder)
    return settings


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        *((model, {"uprate": 4.6, "init": "RUN"} if model in ("lateral", "texture", "fused") else {}) for model in MODEL_OPTIONS),
        (VQ, {"cropz": 32, "downbranch": 2}),
        (VQ, {"cropz": 32, "dsp": 2}),
        (VQ, {"cropz": 8, "usp": 2}),
        (VQ, {"cropz": 8, "resizebranch": 2}),
        (VQ, {"cropsize": 64, "cropz": 64, "dsp": 4, "downbranch": 2}),
        (VQ, {"cropsize": 32, "cropz": 4, "ldmyaml": "vqgan_small", "ngf": 16}),
        (VQ, {"tc": True, "direction": "x3d0_x3d1", "input_nc": 2, "output_nc": 2}),
        ("lateral", {"direction": "a_b", "uprate": 4, "resume": True}),  # of a version that trained on the first folder alone
        (VQ, {"direction": "a_b", "nm": "11", "nm_clip": [0.1, 99.9], "precrop": 256, "resize": 128}),
        (VQ, {"max_time": "00:12:00:00", "init": "logs/D/other@20", "prj": "week2/first", "fWhich": [1, 1, 0, 0]}),
        (SSIM, {"cropsize": 104, "cropz": 13, "skipl1": 1}),
        (KL, {"ldmyaml": "ldmaex2B", "hbranch": "z"}),
        (KL, {"embed_dim": 8}),
        (ISOREF, {"cropz": 32, "uprate": 4}),
        (ISOREF, {"cropsize": 48, "cropz": 16, "nocyc": True, "l1how": "maxmin"}),
    ],
)
def test_settings_that_work(model, settings):
    check(model, **settings)


def test_geometry_of_the_models():
    slices = Geometry.from_settings(check(VQ, cropz=32, downbranch=2))
    assert (slices.factor, slices.slices, slices.slab) == (4, 32, 16)
    free = Geometry.from_settings(check(ISOREF, cropsize=96, cropz=32, dsp=2))
    assert (free.factor, free.slices, free.skip) == (6, 16, 1)


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (VQ, {"downbranch": 3}, r"downbranch=3 must divide 8·resizebranch = 8: .*values that work: 1, 2, 4"),
        (VQ, {"cropz": 32}, r"not a cube: .*32·8 = 256, but cropsize = 128. Try cropz=16 or cropsize=256 or downbranch=2"),
        (VQ, {"cropz": 50, "usp": 0.3}, r"not a cube: .*int\(50·0.3/1\) = 15; .*15·8 = 120, but cropsize = 128. Try cropz=54"),
        (VQ, {"cropsize": 100}, r"cropsize=100 must be a multiple of 8; try 96 or 104"),
        (VQ, {"skipl1": 3}, r"skipl1=3 must divide the 16 slices"),
        (VQ, {"cropz": 1, "dsp": 4}, r"leaves no slice to encode; raise cropz to at least 4"),
        (VQ, {"cropz": 1, "usp": 0.3}, r"leaves no slice to encode; raise cropz to at least 4"),
        (ISOREF, {"cropz": 24}, r"cropsize=128 must be a multiple of the 24 slices"),
        (ISOREF, {"cropz": 32, "uprate": 8}, r"uprate=8 disagrees .* 128/32 = 4; set uprate=4"),
        (VQ, {"ngf": 16}, r"8·ngf = 128 must equal ch·4 = 256 of ldm/vqgan.yaml \(ch=64\); set ngf 32"),
        (VQ, {"ldmyaml": "vqgan_small"}, r"must equal ch·4 = 128 .*set ngf 16"),
        (VQ, {"ldmyaml": "ldmaex2"}, r"does not fit ae0iso0tccutvqq, which needs ddconfig.double_z: false; try --ldmyaml vqgan"),
        (KL, {"ldmyaml": "vqgan"}, r"does not fit ae0iso0tccut, which needs ddconfig.double_z: true; try --ldmyaml ldmaex2"),
        (VQ, {"embed_dim": 8}, r"embed_dim=8 must equal z_channels=4 of ldm/vqgan.yaml"),
        (KL, {"embed_dim": 8, "hbranch": "z"}, r"embed_dim=8 must equal z_channels=4"),
        (VQ, {"tc": True, "input_nc": 2, "output_nc": 2}, r"tc needs two folders.*names 1; try x3d0_x3d1"),
        (VQ, {"tc": True, "direction": "a_b"}, r"input_nc=1, output_nc=1: with tc .*both must be 2"),
        (VQ, {"input_nc": 2, "output_nc": 2}, r"without tc .*both must be 1; .*, or --tc"),
        (VQ, {"direction": "a_b_c"}, r"direction=a_b_c names 3 folders, but ae0iso0tccutvqq uses at most two"),
        ("lateral", {"direction": "a_b", "uprate": 4}, r"lateral uses one folder, or two as the channels of one volume \(--tc\)"),
        (
            VQ,
            {"tc": True, "direction": "a_b", "input_nc": 2, "output_nc": 2, "from_teacher": True},
            r"codes of each channel alone, on a lateral run of its folder \(--direction a\), or give --no-from_teacher",
        ),
        (ISOREF, {"direction": "a_b"}, r"direction=a_b names 2 folders, but IsoREF uses one folder"),
        (VQ, {"direction": "../a_b"}, r"direction=\.\./a must be the name of a folder inside"),
        (VQ, {"direction": "a__b"}, r"direction=a__b must be folder names joined by single _"),
        (
            SSIM,
            {"cropsize": 96, "cropz": 12},
            r"cropsize=96 is too small for MS-SSIM .*cropsize to 104 or more, or lbm_ms_ssim 0",
        ),
        (VQ, {"cropsize": 24, "cropz": 3, "skipl1": 1}, r"netD=patch_16 needs planes of at least 32x32"),
        (VQ, {"cropsize": 64, "cropz": 8, "netD": "patch_4"}, r"netD=patch_4 needs planes of at least 128x128"),
        (ISOREF, {"cropz": 8}, r"the cycle shows netD=patch_16 planes of 128x8 .*or --nocyc"),
        (VQ, {"fWhich": [1, 1]}, r"fWhich has 2 weights; the features have 4 levels"),
        (VQ, {"max_time": "12h"}, r"max_time=12h must be a time written DD:HH:MM:SS"),
        (VQ, {"prj": "../x"}, r"prj=../x must be the name of a folder"),
        (VQ, {"dataset": "/x"}, r"dataset=/x must be the name of a folder"),
        (VQ, {"resume": True, "overwrite": True}, r"--resume and --overwrite contradict"),
        (VQ, {"resume": True, "init": "a"}, r"--resume and --init contradict"),
        (VQ, {"init": "a@last"}, r"init=a@last must be RUN or RUN@EPOCH"),
        (VQ, {"neighbours": 8}, r"neighbours=8 has no effect with one crop of a volume an epoch; raise crops_per_volume"),
    ],
)
def test_broken_rules_are_named_with_their_remedy(model, settings, message):
    with pytest.raises(UserError, match=message):
        check(model, **settings)


def test_without_a_plane_discriminator_small_crops_are_fine():
    check(VQ, adv=0, cropsize=24, cropz=3, skipl1=1)


def test_yaml_without_what_the_bottleneck_needs():
    settings = check(VQ)
    vqgan = read_autoencoder_yaml(REPOSITORY, "vqgan")
    with pytest.raises(UserError, match=r"ldm/vqgan.yaml: n_embed is missing, which ae0iso0tccutvqq needs"):
        check_settings(settings, {key: value for key, value in vqgan.items() if key != "n_embed"})
    flat = vqgan | {"ddconfig": vqgan["ddconfig"] | {"ch_mult": [1, 2, 4]}}
    with pytest.raises(UserError, match=r"ch_mult=\[1, 2, 4\] must have 4 levels"):
        check_settings(settings, flat)


@pytest.mark.parametrize("generator", ["edclean", "ed023"])
def test_a_generator_that_cannot_read_latents(tmp_path, generator):
    path = tmp_path / "own.yaml"
    path.write_text(f"extends: vqgan\nddconfig: {{interpolator: {generator}}}\n")
    with pytest.raises(UserError, match=f"^{path}: interpolator={generator} is no volume generator .*known: ed023e"):
        check(VQ, ldmyaml=str(path))
    check(VQ, ldmyaml=str(path), netG="ed023e")
