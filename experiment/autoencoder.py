"""Settings of autoencoders: ldm/*.yaml, checked and completed (torch-free)."""

import logging
import math
import os
from collections.abc import Mapping
from copy import copy, deepcopy
from pathlib import Path
from typing import Any

from experiment.options import Option
from utils.errors import UserError, did_you_mean
from utils.files import read_mapping
from utils.geometry import block_side

log = logging.getLogger("isoscope")


def _entry(kind: Any, default: Any = ..., limits: str = "", *, nargs: str | None = None) -> Option:
    """What an entry may be; without a default it has to be there, with the default None only some autoencoders have it."""
    return Option("", kind, default, limits=limits, nargs=nargs)


_WIDTH = ">=1 <=65536"
# Every entry of ldm/*.yaml. The files themselves say what the entries mean; what older files and runs lack has a default here,
# and what they have beyond that, None, is read over.
_AUTOENCODER: dict[str, Any] = {
    "embed_dim": _entry(int, limits=_WIDTH),
    "n_embed": _entry(int, None, ">=2 <=65536"),  # a code is stored in two bytes
    "start": _entry(("random", "linear"), "random"),
    "ddconfig": {
        **dict.fromkeys(("z_channels", "resolution", "in_channels", "out_ch", "ch"), _entry(int, limits=_WIDTH)),
        "num_res_blocks": _entry(int, limits=">=0 <=64"),
        **dict.fromkeys(("ch_mult", "attn_resolutions"), _entry(int, limits=_WIDTH, nargs="*")),
        "double_z": _entry(bool),
        "dropout": _entry(float, limits=">=0 <1"),
        "interpolator": _entry(str, "ed023e"),
        "branch_point": _entry(("mid", "z"), None),
        "norm": _entry(("group", "batch", "none"), "group"),
        "mid_attention": _entry(bool, True),
    },
    "loss": {
        "disc_conditional": _entry(bool),
        **dict.fromkeys(("disc_in_channels", "disc_ndf", "disc_start"), _entry(int)),
        "disc_weight": _entry(float),
        **dict.fromkeys(("codebook_weight", "kl_weight"), _entry(float, None)),
        "perceptual_weight": _entry(float, 1.0),
        "reconstruction": _entry(("absolute", "squared"), "absolute"),
    },
    "codebook": {
        "levels": _entry(int, 1, ">=1 <=32"),
        "fewer": _entry(float, 0.0, ">=0 <=1"),
        "grid": _entry(int, [], nargs="*"),
        "rate_weight": None,  # retired
        "initialise": _entry(("kmeans", "uniform")),
        "revive_after": _entry(int, limits=">=0 <=1000000000"),
        "legacy": _entry(bool),
    },
}


def read_autoencoder_yaml(repository: Path, name: str) -> dict[str, Any]:
    """The autoencoder settings of ldm/NAME.yaml (or of the path that NAME is), on top of the file that it extends.

    Entries of the file replace those of ``extends: OTHER`` one by one; null removes one. A UserError: no such file, a circle of
    extends, an unknown or missing key, or a value that is not allowed.
    """
    merged, path = _read_extended(repository, name, ())
    made = complete_autoencoder(merged, str(path))
    if made["loss"]["disc_conditional"]:
        raise UserError(f"{path}: loss.disc_conditional: true is not supported; set false")
    if made["start"] == "linear":
        _check_linear(made, str(path))
    codebook = made.get("codebook", {})
    if not (grid := codebook.get("grid")):
        return made
    # a grid of finite scalar quantisation is the whole codebook
    if min(grid) < 2:
        raise UserError(f"{path}: codebook.grid={grid}: every channel needs at least 2 values, such as [8, 6, 5]")
    codes, channels = math.prod(grid), len(grid)
    if (made.get("n_embed"), made["embed_dim"]) != (codes, channels):
        raise UserError(
            f"{path}: codebook.grid={grid} has {codes} codes of {channels} channels, but n_embed={made.get('n_embed')} "
            f"and embed_dim={made['embed_dim']}; set n_embed {codes}, embed_dim and ddconfig.z_channels {channels}"
        )
    if codebook["levels"] > 1 or codebook["legacy"]:
        raise UserError(f"{path}: codebook.grid is one level and nothing is learned; set levels 1 and legacy false, or remove it")
    return made


def _check_linear(made: Mapping[str, Any], path: str) -> None:
    """What a linear start needs; a UserError where the settings have something else."""
    network = made["ddconfig"]
    if network["norm"] == "group" or network["mid_attention"] or network["attn_resolutions"]:
        raise UserError(
            f"{path}: start: linear is local; set ddconfig.norm none or batch, mid_attention false and attn_resolutions []"
        )
    side = block_side(network["ch_mult"])
    if network["z_channels"] > (most := network["in_channels"] * side**2):
        raise UserError(
            f"{path}: z_channels={network['z_channels']} principal components of blocks of {side}x{side} pixels: there are "
            f"{most}; lower embed_dim and ddconfig.z_channels, to 12 for example"
        )


def _read_extended(repository: Path, name: str, seen: tuple[str, ...]) -> tuple[dict[str, Any], Path]:
    folder = repository / "ldm"
    path = folder / f"{name}.yaml"
    if not os.path.isfile(path) and name.endswith(".yaml"):
        path = repository / name
    if not os.path.isfile(path):  # a name may be longer than any file's
        known = sorted(file.stem for file in folder.glob("*.yaml"))
        raise UserError(f"there are no autoencoder settings {folder / name}.yaml; known: {', '.join(known)}")
    if name in seen:
        raise UserError(f"{path}: extends goes round in a circle: {' → '.join((*seen, name))}")
    content = read_mapping(path, "file of autoencoder settings")
    if (parent := content.pop("extends", None)) is not None:
        content = _merge(_read_extended(repository, str(parent), (*seen, name))[0], content)
    return content, path


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return {key: value for key, value in merged.items() if value is not None}


def complete_autoencoder(found: Any, label: str, inside: str = "", table: Mapping[str, Any] = _AUTOENCODER) -> dict[str, Any]:
    """The settings of a file or run, their values checked, and with defaults for what older ones do not have.

    ``label`` and ``inside``, a section with a dot at its end, name the place in the messages of UserErrors: an unknown or missing
    key, or a value that ``table`` does not allow.
    """
    if not isinstance(found, dict):
        raise UserError(f"{label}: {inside[:-1]} must be an object with the keys {', '.join(table)}")
    for key in found.keys() - table.keys():
        raise UserError(f"{label}: unknown key {inside}{key}{did_you_mean(key, table, '.')} Known: {', '.join(table)}")
    made: dict[str, Any] = {}
    for key, entry in table.items():
        if entry is None:
            if found.get(key):
                log.warning("%s: %s%s: retired, ignored", label, inside, key)
            continue
        default = entry.default if isinstance(entry, Option) else None if key == "codebook" else ...
        if key in found and isinstance(entry, Option):
            made[key] = entry.checked(found[key], f"{label}: {inside}{key}")
        elif key in found:
            made[key] = complete_autoencoder(found[key], label, f"{inside}{key}.", entry)
        elif default is ...:
            raise UserError(f"{label}: {inside}{key} is missing; ldm/vqgan.yaml says what it means")
        elif default is not None:
            made[key] = copy(default)
    return {key: made[key] for key in {**found, **made} if key in made}  # in the order of the file


def require_bottleneck(autoencoder: Mapping[str, Any], model: str, *, gaussian: bool, where: str) -> None:
    """Refuses an autoencoder without the entries of a Gaussian posterior, or else those of a codebook."""
    codebook = [("", "n_embed"), ("", "codebook"), ("loss", "codebook_weight")]
    for section, key in [("loss", "kl_weight")] if gaussian else codebook:
        if key not in (autoencoder[section] if section else autoencoder):
            raise UserError(f"{where}{section + '.' if section else ''}{key} is missing, which {model} needs")
    if gaussian and autoencoder["loss"]["reconstruction"] != "absolute":
        raise UserError(f"{where}{model} has no codebook: loss.reconstruction: squared is for the VQ models; remove it")
    if gaussian and autoencoder["start"] == "linear" and autoencoder["ddconfig"].get("branch_point") != "z":
        raise UserError(f"{where}start: linear has no features in the middle of its encoder; set ddconfig.branch_point z")


def configure_autoencoder(autoencoder: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The autoencoder settings with what the run's settings say otherwise; everything unset is resolved.

    embed_dim, hbranch (branch_point), perceptual_weight and netG (interpolator) of the run win; tc means two input channels;
    the 2-D discriminator sees as many channels as the reconstruction has.
    """
    made = deepcopy(dict(autoencoder))
    network, loss = made["ddconfig"], made["loss"]
    if settings["embed_dim"] is not None:
        made["embed_dim"] = settings["embed_dim"]
    if settings["tc"]:
        network["in_channels"] = 2
    network["interpolator"] = settings["netG"] or network["interpolator"]
    if "hbranch" in settings:
        network["branch_point"] = settings["hbranch"] or network.get("branch_point", "mid")
    if settings["perceptual_weight"] is not None:
        loss["perceptual_weight"] = settings["perceptual_weight"]
    loss["disc_in_channels"] = network["out_ch"]
    return made
