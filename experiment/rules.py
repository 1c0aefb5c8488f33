"""Rules between settings, checked before a training starts (torch-free). Single values are checked where they are read."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiment.autoencoder import configure_autoencoder, read_autoencoder_yaml, require_bottleneck
from utils.errors import UserError
from utils.geometry import LATENT_STRIDE, Geometry, block_side
from utils.places import require_folder_name

Settings = Mapping[str, Any]

PLANE_STRIDE = {"patch_16": 16, "patch_8": 32, "patch_4": 64}  # input pixels per logit of the discriminator of planes
MS_SSIM_SIDE = 96  # (7 - 1) * 2**4: pytorch-msssim wants more, for its 7-pixel window
LEVELS = 4
VOLUME_DECODER = "ed023e"  # the generator that reads a stack of latents


def settings_to_train(settings: Settings, repository: Path) -> dict[str, Any]:
    """What :func:`check_settings` makes of them with the autoencoder that they name."""
    return check_settings(settings, read_autoencoder_yaml(repository, settings["ldmyaml"]) if "ldmyaml" in settings else None)


def check_settings(settings: Settings, autoencoder: Mapping[str, Any] | None) -> dict[str, Any]:
    """The complete settings of any model after all checks, with the resolved ``autoencoder``.

    That is given as the content of ldm/<ldmyaml>.yaml; None for a model without one. The first rule that is broken is a
    UserError with values and remedy.
    """
    _check_run(settings)
    _check_folders(settings)
    geometry = Geometry.from_settings(settings)
    if "adv" in settings:
        _check_losses(settings, geometry)
    if autoencoder is None:
        return {**settings, "autoencoder": None}
    _check_autoencoder(settings, autoencoder)
    return {**settings, "autoencoder": configure_autoencoder(autoencoder, settings)}


def _check_run(s: Settings) -> None:
    parse_duration(s["max_time"])
    for name in ("prj", "dataset"):  # an imported run has none; a training cannot be without (reading)
        require_folder_name(name, "none" if s[name] is None else s[name])
    for one, other in (("resume", "overwrite"), ("resume", "init")):
        if s[one] and s[other]:
            raise UserError(f"--{one} and --{other} contradict each other; give one of them")
    if s["init"] and "@" in s["init"] and not s["init"].rpartition("@")[2].isdigit():
        raise UserError(f"init={s['init']} must be RUN or RUN@EPOCH with a whole number as epoch")
    if s["neighbours"] > 1 and s["crops_per_volume"] == 1:
        raise UserError(
            f"neighbours={s['neighbours']} has no effect with one crop of a volume an epoch; raise crops_per_volume, or omit it"
        )
    if s["models"] == "texture" and not (s["init"] or s["resume"] or s["teacher"]):
        raise UserError("teacher is not set: texture is added to what a lateral run gives; name it with --teacher RUN")


def _check_folders(s: Settings) -> None:
    folders, two_channels = s["direction"].split("_"), s.get("tc", False)
    if not all(folders):
        raise UserError(f"direction={s['direction']} must be folder names joined by single _, such as x3d0 or a_b")
    for name in folders:
        require_folder_name("direction", name)
    if two_channels and len(folders) != 2:
        raise UserError(f"tc needs two folders, one per channel; direction={s['direction']} names {len(folders)}; try x3d0_x3d1")
    translates = "tc" in s and ("axial_sampling" not in s or s["resume"])  # an old lateral run, of the first folder, goes on
    if len(folders) > (2 if translates or two_channels else 1):
        use = "at most two folders (input and target) without tc" if translates else "one folder"
        use += ", or two as the channels of one volume (--tc)" * ("tc" in s and len(folders) == 2)
        raise UserError(
            f"direction={s['direction']} names {len(folders)} folders, but {s['models']} uses {use}; leave the others out"
        )
    wanted, reason = (2, "with tc (two channels)") if two_channels else (1, "without tc (one channel)")
    if (s["input_nc"], s["output_nc"]) != (wanted, wanted):
        raise UserError(
            f"input_nc={s['input_nc']}, output_nc={s['output_nc']}: {reason} both must be {wanted}; "
            f"give --input_nc {wanted} --output_nc {wanted}" + (", or --tc" if s.get("tc") is False else "")
        )
    if adds := [name for name in ("from_interpolation", "from_teacher") if s.get(name)]:
        _check_baseline(s, adds)


def _check_baseline(s: Settings, adds: Sequence[str]) -> None:
    """What the volume generator adds to."""
    if len(adds) > 1:
        raise UserError(f"{' and '.join(adds)} are two things for the volume generator to add to; leave one of them out")
    if s.get("tc"):
        raise UserError(
            f"{adds[0]} adds to the slices that the codes give back, which have only the first channel of tc: train codes of "
            f"each channel alone, on a lateral run of its folder (--direction {s['direction'].split('_')[0]}), or give "
            f"--no-{adds[0]}"
        )
    if adds == ["from_teacher"] and not s["teacher"]:
        raise UserError("from_teacher takes the network of a lateral run, but none is named; give --teacher RUN")


def _check_losses(s: Settings, geometry: Geometry) -> None:
    # the discriminator's last instance normalisation needs more than one logit position on every kind of plane
    stride, side = PLANE_STRIDE[s["netD"]], geometry.cropsize
    if s["adv"] and side // stride < 2:
        raise UserError(
            f"netD={s['netD']} needs planes of at least {2 * stride}x{2 * stride}; raise cropsize={side} or use patch_16"
        )
    if s["adv"] and s.get("nocyc") is False and (side // stride) * (geometry.slices // stride) < 2:
        raise UserError(
            f"the cycle shows netD={s['netD']} planes of {side}x{geometry.slices} (cropsize x slices), too small for it; "
            f"use at least {stride} slices and a cropsize of {2 * stride}, or --nocyc"
        )
    if s.get("lbm_ms_ssim") and s["cropsize"] <= MS_SSIM_SIDE:
        least = MS_SSIM_SIDE + LATENT_STRIDE
        raise UserError(
            f"cropsize={s['cropsize']} is too small for MS-SSIM (its 7-pixel window at all scales needs > {MS_SSIM_SIDE}); "
            f"set cropsize to {least} or more, or lbm_ms_ssim 0"
        )
    if s.get("fWhich") is not None and len(s["fWhich"]) != LEVELS:
        raise UserError(f"fWhich has {len(s['fWhich'])} weights; the features have {LEVELS} levels: give {LEVELS}")


def _check_autoencoder(s: Settings, autoencoder: Mapping[str, Any]) -> None:
    network, gaussian = autoencoder["ddconfig"], "hbranch" in s
    name = s["ldmyaml"] if s["ldmyaml"].endswith(".yaml") else f"ldm/{s['ldmyaml']}.yaml"
    if network["double_z"] != gaussian:
        word, example = ("true", "ldmaex2") if gaussian else ("false", "vqgan")
        raise UserError(f"{name} does not fit {s['models']}, which needs ddconfig.double_z: {word}; try --ldmyaml {example}")
    _check_blocks(s, name, autoencoder)
    generator = s["netG"] or network["interpolator"]
    if generator != VOLUME_DECODER:
        raise UserError(f"{name}: interpolator={generator} is no volume generator of {s['models']}; known: {VOLUME_DECODER}")
    last = network["ch_mult"][-1]
    width = network["ch"] * last
    if autoencoder["start"] == "linear" and not s["nocut"]:
        raise UserError(
            f"{name} starts linearly and has no features at full resolution, which the contrastive term compares; give --nocut, "
            "or --ldmyaml vqlocal"
        )
    if autoencoder["start"] == "random" and LATENT_STRIDE * s["ngf"] != width:
        remedy = f"choose ch in {name} so that ch·{last} divides by 8" if width % 8 else f"set ngf {width // 8}"
        raise UserError(
            f"ngf={s['ngf']}: 8·ngf = {8 * s['ngf']} must equal ch·{last} = {width} of {name} (ch={network['ch']}); {remedy}"
        )
    embed_dim, z_channels = s["embed_dim"] or autoencoder["embed_dim"], network["z_channels"]
    if not gaussian or (s["hbranch"] or network.get("branch_point", "mid")) == "z":
        if embed_dim != z_channels:
            raise UserError(
                f"embed_dim={embed_dim} must equal z_channels={z_channels} of {name}: codes enter the decoder's first "
                f"layer without a projection; set embed_dim {z_channels}"
            )
    require_bottleneck(configure_autoencoder(autoencoder, s), s["models"], gaussian=gaussian, where=f"{name}: ")


def _check_blocks(s: Settings, name: str, autoencoder: Mapping[str, Any]) -> None:
    """What the levels of an autoencoder make of a slice: the volume decoder reads blocks of 8x8 pixels, and no others."""
    levels = autoencoder["ddconfig"]["ch_mult"]
    side = block_side(levels)
    if len(levels) == LEVELS:
        return
    if autoencoder["start"] == "random" or len(levels) < LEVELS:
        raise UserError(f"{name}: ch_mult={levels} must have {LEVELS} levels, which reduce slices by {LATENT_STRIDE}")
    if reads_volume(s):
        raise UserError(
            f"{name} has codes of {side}x{side} pixels, and the volume decoder reads those of {LATENT_STRIDE}x{LATENT_STRIDE}; "
            f"train the autoencoder alone (--adv 0 --lamb 0), or take {LEVELS} levels of ch_mult"
        )
    if s["cropsize"] % side:
        raise UserError(f"cropsize={s['cropsize']} must be a multiple of {side}, the side of a code's block of {name}")


def reads_volume(s: Settings) -> bool:
    """Whether any loss term of a model of slices reads the isotropic volume; else the 2-D autoencoder alone is trained."""
    contrast, teacher = s["lbNCE"] and not s["nocut"], s["teacher"] and s["lbteach"]
    return bool(s["adv"] or s["lamb"] or s["lbm_ms_ssim"] or s["lblateral"] or contrast or teacher)


def parse_duration(text: str | None) -> float | None:
    """Seconds of a duration written DD:HH:MM:SS, which may not be zero (UserError); None stays None."""
    if text is None:
        return None
    parts = re.fullmatch(r"(\d+):([01]\d|2[0-3]):([0-5]\d):([0-5]\d)", text)
    days, hours, minutes, seconds = (int(part) for part in parts.groups()) if parts else (0, 0, 0, 0)
    if not (total := ((days * 24 + hours) * 60 + minutes) * 60 + seconds):
        raise UserError(f"max_time={text} must be a time written DD:HH:MM:SS, such as 00:12:00:00 for twelve hours")
    return float(total)
