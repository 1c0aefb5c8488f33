"""The options that each model adds, as data (torch-free), composed from groups that the models share."""

from dataclasses import replace
from functools import partial
from typing import Any

from experiment.options import BASE_OPTIONS, Option

_geometry = partial(Option, group="geometry")
_network = partial(Option, group="networks")
_loss = partial(Option, group="losses")
_cut = partial(Option, group="CUT")

BRANCH = (
    _geometry("downbranch", int, 1, "max-pool the latent volume by this factor along z (2 for 4x)", ">=1"),
    _geometry("resizebranch", int, 1, "interpolate the latent volume by this factor along z", ">=1"),
    _geometry("spread", ("slices", "codes"), "slices", "what usp interpolates: slices, or between codes of the real ones alone"),
)

NETWORKS = (
    _network("netD", ("patch_16", "patch_8", "patch_4"), "patch_16", "discriminator of planes"),
    _network("ngf", int, 32, "width of the volume generator; 8*ngf = 4*ch of the autoencoder", ">=1"),
    _network("ndf", int, 64, "width of the discriminator of planes", ">=1"),
    _network("norm", ("batch", "instance", "group", "none"), "batch", "normalisation of the volume generator"),
    _network("mc", bool, True, "dropout 0.5 in the volume generator"),
    _network("input_nc", int, 1, "channels of the input; with tc 2", ">=1 <=2"),
    _network("output_nc", int, 1, "channels of the output; with tc 2", ">=1 <=2"),
    _network("final", str, "tanh", "accepted; the last activation is always tanh"),
)

AUTOENCODER = (
    _network("ldmyaml", str, "vqgan", "autoencoder: ldm/NAME.yaml (vqlocal: no seams; vqresidual: more bits), or a path"),
    _network("netG", ("ed023e",), None, "volume generator; unset: the yaml's interpolator, else ed023e"),
    _network("embed_dim", int, None, "channels of a code; unset: the yaml's", ">=1"),
    _network("tc", bool, False, "the two folders of direction are the channels of one volume"),
)

UNET = (
    _geometry("uprate", int, None, "planes per slice; unset: cropsize / slices, with which it must agree", ">=1"),
    _network("netG", ("edclean",), "edclean", "volume generator"),
    _network("gdim", ("1d_1d", "1d_3d", "3d_1d", "3d_3d"), "1d_3d", "convolutions of encoder_decoder"),
    _network("nocyc", bool, False, "leave the cycle out"),
    _loss("lambB", float, 1.0, "weight of the cycle's L1", ">=0"),
)

PROJECTION = (
    _loss("lamb", float, 10.0, "weight of the projected L1", ">=0"),
    _loss("l1how", ("max", "min", "mean", "dsp"), "max", "projection of a slab", aliases=("--l1",)),
    _loss("skipl1", int, 4, "slices per projected slab", ">=1"),
)

ADVERSARIAL = (
    _loss("adv", float, 1.0, "weight of the six-view adversarial term; 0 builds no net_d", ">=0"),
    _loss("adv_planes", int, 0, "planes drawn per view and step; 0 = all", ">=0"),
    _loss("gan_mode", ("vanilla", "lsgan", "hinge"), "vanilla", "adversarial loss of planes"),
)

RECONSTRUCTION = (
    _loss("slabtarget", ("pooled", "slice"), "pooled", "target of a slab: its slices projected alike, or (reference) the first"),
    _loss("lbm_ms_ssim", float, 0.0, "weight of MS-SSIM on ZY planes against the interpolated volume", ">=0"),
    _loss("perceptual_weight", float, None, "weight of LPIPS; unset: the yaml's, else 1", ">=0"),
)

_FROM_TEACHER = _network("from_teacher", bool, False, "it adds to what the teacher's network makes of the slices of its codes")
GUIDED = (
    _network("from_interpolation", bool, False, "the volume generator adds to interpolated slices, with which it then starts"),
    _loss("lblateral", float, 0.0, "weight of truth in 3-D: X or Y of the volume plays Z, judged on acquired slices", ">=0"),
    _loss("teacher", str, None, "run of the lateral model whose volume guides this one: a path, or a folder under LOGS"),
    _loss("teacher_planes", int, 0, "planes of each view that the teacher makes per step; 0 = all, and its whole volume", ">=0"),
    _loss("lbteach", float, 10.0, "weight of the L1 to the teacher's volume", ">=0"),
)

CUT = (
    _cut("nocut", bool, True, "no contrastive term; --no-nocut switches it on"),
    _cut("lbNCE", float, 0.0, "weight of the contrastive term", ">=0"),
    _cut("num_patches", int, 256, "patches per level", ">=1"),
    _cut("nce_T", float, 0.07, "temperature", ">0"),
    _cut("use_mlp", bool, False, "compare features through a trained MLP"),
    _cut("c_mlp", int, 256, "width of the MLP", ">=1"),
    _cut("fWhich", float, None, "weights of the four levels; unset: ones", ">=0", nargs="+"),
    _cut("nce_includes_all_negatives_from_minibatch", bool, False, "negatives from every item of the batch"),
)


def _with(options: tuple[Option, ...], **changes: dict[str, Any]) -> tuple[Option, ...]:
    """Options with other fields, ``_with(options, lbNCE={"default": 1.0})``; those they lack are taken from every model's."""
    own = {option.name: option for option in options}
    base = {option.name: option for option in BASE_OPTIONS}
    return tuple(replace(own.get(name) or base[name], **changes.get(name, {})) for name in {**own, **changes})


VQ = BRANCH + AUTOENCODER + NETWORKS + PROJECTION + RECONSTRUCTION + ADVERSARIAL + GUIDED + (_FROM_TEACHER,) + CUT
KL = (
    *_with(VQ, ldmyaml={"default": "ldmaex2"}, lbNCE={"default": 1.0}),
    _network("hbranch", ("mid", "z"), None, "where the volume branches off: mid (encoder) or z (sample); unset: the yaml's"),
)
ISOREF = _with(
    UNET + NETWORKS + PROJECTION + ADVERSARIAL + GUIDED + CUT,
    dsp_how={"default": "mean"},
    skipl1={"default": 1},
    lbNCE={"default": 1.0},
    l1how={"type": ("max", "min", "mean", "dsp", "maxmin")},
    ngf={"help": "width of the volume generator"},
)

SECTIONS = (
    _network("blocks", int, 8, "residual blocks of the 2-D network", ">=1"),
    _network("fine_width", int, 16, "features of the 2-D network's last layers, on the fine grid", ">=1"),
    _geometry("uprate", float, None, "pixels between two slices, vz / vxy, such as 8 or 4.6 (required)", ">=1 <=16"),
    _geometry("axial_sampling", ("pick", "mean"), "pick", "what a slice sees of the planes it stands for: one, or their mean"),
    _geometry("axial_sigma", float, 0.0, "blur along z before the slices are taken: sigma of a Gaussian in pixels", ">=0"),
    _geometry("axial_taps", float, None, "the same, measured: an odd number of taps one pixel apart", ">=0", nargs="+"),
    _geometry("axial_noise", bool, True, "give degraded slices the noise again that blur and mean remove, as measured"),
)
PLANES = _with(
    SECTIONS + tuple(option for option in NETWORKS + AUTOENCODER if option.name in ("ngf", "input_nc", "output_nc", "tc")),
    cropz={"default": 2},
    draw={"default": "content"},
    rotate={"default": False},
    batch_size={"default": 4},
    lr={"default": 5e-4},
    ema={"default": 0.995},
    gradient_clip={"default": 1.0},
    n_epochs_decay={"default": 0},
    monitor={"default": "validation/lateral"},
    ngf={"default": 64, "help": "features of the 2-D network"},
)
LATERAL = (
    *PLANES,
    _loss("lateral_error", ("absolute", "squared"), "absolute", "how restored rows differ from the truth"),
    _loss("lbpower", float, 0.0, "weight of the power restored at periods of one to two sections", ">=0"),
    _loss("power", float, 0.7, "of the slices' power there, the share that lbpower asks for", ">0 <=1"),
)

_TEACHER = _network("teacher", str, None, "finished lateral run whose network is taken: a path, or a folder under LOGS")
_OF_LATERAL = {
    "ngf": {"help": "features of the 2-D network, as in the lateral run"},
    "blocks": {"help": "residual blocks of the 2-D network, as in the lateral run"},
    "fine_width": {"help": "features of its last layers, on the fine grid, as in the lateral run"},
}
TEXTURE = _with(
    (
        *(option for option in PLANES if option.name != "axial_noise"),
        _network("grain_width", int, 16, "features of the 3-D network that makes grain", ">=1"),
        _TEACHER,
        _loss("lbstart", float, 30.0, "weight of the squared difference from the lateral run's volume", ">=0"),
    ),
    cropsize={"default": 64},
    cropz={"default": 8},
    batch_size={"default": 1},
    lr={"default": 1e-3},
    beta1={"default": 0.9},
    monitor={"default": "validation/power"},
    **_OF_LATERAL,
)
FUSED = _with(
    PLANES
    + ADVERSARIAL
    + tuple(option for option in NETWORKS if option.name in ("netD", "ndf"))
    + (
        _network("fuse_width", int, 32, "features of the 3-D network", ">=1"),
        _network("fuse_blocks", int, 4, "residual blocks of the 3-D network", ">=1"),
        _TEACHER,
    ),
    cropsize={"default": 64},
    cropz={"default": 8},
    batch_size={"default": 1},
    lr={"default": 3e-4},
    beta1={"default": 0.9},
    adv={"default": 0.0},
    **_OF_LATERAL,
)

MODEL_OPTIONS: dict[str, tuple[Option, ...]] = {
    "ae0iso0tccutvqq": VQ,
    "ae0iso0tccut": KL,
    "ae0iso0tccutvqqssim": _with(VQ, lbm_ms_ssim={"default": 1.0}),
    "IsoREF": ISOREF,
    "lateral": LATERAL,
    "texture": TEXTURE,
    "fused": FUSED,
}
