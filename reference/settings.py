"""What the reference's weights say about the settings of their training."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from reference.files import Source
from utils.errors import UserError
from utils.settings.rules import check_settings

Settings = dict[str, Any]

_PATCHES = {12: "patch_16", 15: "patch_8", 18: "patch_4"}  # index of the last convolution in net_d
_NORMS = {"BatchNorm3d": "batch", "InstanceNorm3d": "instance", "GroupNorm": "group", "Identity": "none"}
_DIMENSIONS = {3: "1d", 4: "2d", 5: "3d"}  # rank of a convolution's weight
_MAY_DIFFER = frozenset({"nocut", "nocyc", "mc"})  # the user may leave these parts out
_UNTOLD = """cropsize cropz dsp usp downbranch resizebranch uprate skipl1 l1how hbranch nm""".split()  # no weight depends on them


Sources = Mapping[str, Source]


def model_of(names: Collection[str], where: Path) -> str:
    """The model that has components of these names.

    Raises:
        UserError: none has.
    """
    if "quantize" in names:
        return "ae0iso0tccutvqq"
    if "quant_conv" in names:
        return "ae0iso0tccut"
    if "net_g" in names and "encoder" not in names:
        return "IsoREF"
    raise UserError(
        f"{where} holds {', '.join(sorted(names))}, which is no complete model: needed are encoder, decoder, quant_conv, "
        "post_quant_conv and net_g, with quantize for the VQ models; or net_g alone for IsoREF"
    )


def settle(
    settings: Settings, given: Mapping[str, str], sources: Sources, autoencoder: Settings | None
) -> tuple[Settings, list[str]]:
    """The settings of a run that these weights fit.

    Args:
        settings: complete settings; what the weights say otherwise is changed.
        given: the settings that the user has set, and where.
        sources: the reference's components.
        autoencoder: content of ldm/<ldmyaml>.yaml; None for IsoREF.

    Returns:
        The settings with the resolved ``autoencoder`` and ``given``, as train.py stores them; remarks, one line each.

    Raises:
        UserError: a weight that tells a size is missing, or the settings break a rule.
    """
    if autoencoder is None:
        told = _isoref(sources)
    else:
        autoencoder = _with_weights(autoencoder, sources)
        told = _slice_model(sources, autoencoder)
    told |= _discriminator(sources) | _contrast(sources)
    told |= _norm(sources["net_g"], settings, given)
    told = {key: value for key, value in told.items() if not (key in _MAY_DIFFER and key in given)}
    notes = _remarks(settings, given, told)
    if autoencoder is not None:
        shown = {"n_embed": autoencoder.get("n_embed"), **autoencoder["ddconfig"]}
        notes.insert(1, "the autoencoder: " + ", ".join(f"{key} {_text(value)}" for key, value in shown.items()))
    return {**check_settings(settings | told, autoencoder), "given": dict(given)}, notes


def check_family(settings: Settings, names: Collection[str], where: Path) -> None:
    """Checks that the model of the settings has components of these names.

    Raises:
        UserError: another model has.
    """
    found = model_of(names, where)
    autoencoder, posterior = "ldmyaml" in settings, "hbranch" in settings
    wanted = "IsoREF" if not autoencoder else "ae0iso0tccut" if posterior else "ae0iso0tccutvqq"
    if found != wanted:
        raise UserError(
            f"models={settings['models']} does not fit the files, which are those of {found} ({', '.join(sorted(names))}); "
            f"give --models {found}, or the experiment file that they were trained with"
        )


def _remarks(settings: Settings, given: Mapping[str, str], told: Settings) -> list[str]:
    shown = ", ".join(f"{key} {_text(value)}" for key, value in sorted(told.items()))
    notes = [f"the weights say: {shown}"]
    for key, value in told.items():
        if key in given and settings[key] != value:
            notes.append(f"{key} is {_text(value)} by the weights, which win over {_text(settings[key])} from {given[key]}")
    untold = [f"{key} {_text(settings[key])}" for key in _UNTOLD if key in settings and key not in given]
    if untold:
        notes.append(f"neither the weights nor you say these, so they are the defaults: {', '.join(untold)}")
    return notes


def _text(value: Any) -> str:
    return {True: "true", False: "false", None: "unset"}[value] if value is None or isinstance(value, bool) else str(value)


# Models with a 2-D autoencoder ---------------------------------------------------------------------------------------


def _with_weights(autoencoder: Settings, sources: Sources) -> Settings:
    """The autoencoder settings with the sizes of the weights."""
    network = autoencoder["ddconfig"]
    made = {**autoencoder, "ddconfig": network | _autoencoder(sources, network["resolution"]), "loss": dict(autoencoder["loss"])}
    made["embed_dim"] = need(sources, "post_quant_conv").shape("weight")[1]
    if "quantize" in sources:
        made["n_embed"], made["embed_dim"] = sources["quantize"].shape("embedding.weight")
        made["codebook"] = autoencoder["codebook"] | {"levels": 1, "grid": []}
    if "discriminator" in sources:
        made["loss"]["disc_ndf"] = sources["discriminator"].shape("main.0.weight")[0]
    return made


def _autoencoder(sources: Sources, resolution: int) -> Settings:
    encoder, decoder = need(sources, "encoder"), need(sources, "decoder")
    ch, in_channels = encoder.shape("conv_in.weight")[:2]
    levels = range(len(encoder.numbers(r"down\.(\d+)\.")))
    widths = [encoder.shape(f"down.{level}.block.0.conv1.weight")[0] for level in levels]
    if any(width % ch for width in widths):
        raise UserError(f"{encoder.path}: the widths {widths} of its levels are no multiples of its base width {ch}")
    attention = [level for level in levels if encoder.numbers(rf"down\.{level}\.attn\.(\d+)\.")]
    z_channels = decoder.shape("conv_in.weight")[1]
    return {
        "ch": ch,
        "ch_mult": [width // ch for width in widths],
        "in_channels": in_channels,
        "out_ch": decoder.shape("conv_out.weight")[0],
        "z_channels": z_channels,
        "double_z": encoder.shape("conv_out.weight")[0] == 2 * z_channels,
        "num_res_blocks": len(encoder.numbers(r"down\.0\.block\.(\d+)\.")),
        "attn_resolutions": [resolution // 2**level for level in attention],
        "norm": "group",  # the reference knows no other, and always attends in the middle
        "mid_attention": True,
    }


def _slice_model(sources: Sources, autoencoder: Settings) -> Settings:
    volume = need(sources, "net_g")
    if "conv7_k.0.0.weight" not in volume.tensors:
        raise UserError(f"{volume.path} is not the generator ed023e, the only one that these models use: it has no conv7_k.0.0")
    output_nc, ngf = volume.shape("conv7_k.0.0.weight")[:2]
    channels = autoencoder["ddconfig"]["in_channels"]
    told = {"ngf": ngf, "output_nc": output_nc, "input_nc": channels, "tc": channels == 2, "embed_dim": autoencoder["embed_dim"]}
    return told | _dropout(volume)


# IsoREF --------------------------------------------------------------------------------------------------------------


def _isoref(sources: Sources) -> Settings:
    volume = need(sources, "net_g")
    ngf, input_nc = volume.shape("down0.0.conv.weight")[:2]
    halves = (len(volume.shape(f"{stage}.conv.weight")) for stage in ("down0.0", "up3"))
    encode, decode = (_DIMENSIONS.get(rank, "unknown") for rank in halves)
    if not {encode, decode} <= {"1d", "3d"}:
        raise UserError(f"{volume.path}: its halves convolve {encode} and {decode}; each must be 1d or 3d (2d is not supported)")
    told = {"ngf": ngf, "input_nc": input_nc, "output_nc": volume.shape("conv7_k.0.conv.weight")[0], "gdim": f"{encode}_{decode}"}
    return told | {"nocyc": "net_gback" not in sources} | _dropout(volume)


# Parts that they share -----------------------------------------------------------------------------------------------


def need(sources: Sources, name: str) -> Source:
    """The component of that name.

    Raises:
        UserError: there is none.
    """
    if name not in sources:
        known = next(iter(sources.values()))
        raise UserError(f"{known.path.parent} has no file of the component {name!r}, which the model needs")
    return sources[name]


def _discriminator(sources: Sources) -> Settings:
    if "net_d" not in sources:
        return {}
    net_d = sources["net_d"]
    last = max(net_d.numbers(r"model\.(\d+)\."), default=-1)
    if last not in _PATCHES:
        raise UserError(f"{net_d.path} is none of the known discriminators {', '.join(_PATCHES.values())}")
    return {"netD": _PATCHES[last], "ndf": net_d.shape("model.0.weight")[0]}


def _contrast(sources: Sources) -> Settings:
    if "netF" not in sources:
        return {}
    widths = {"c_mlp": sources["netF"].shape("mlp_0.0.weight")[0]} if "mlp_0.0.weight" in sources["netF"].tensors else {}
    return {"nocut": False} | widths


def _dropout(volume: Source) -> Settings:
    """Dropout leaves no weights; a whole module says its probability."""
    layer = volume.modules.get("conv5.1")
    if layer is None or not isinstance(layer.state, dict) or "p" not in layer.state:
        return {}
    return {"mc": layer.state["p"] > 0}


def _norm(volume: Source, settings: Settings, given: Mapping[str, str]) -> Settings:
    """The generator's norm: by its running statistics, its gains, or else the class of its layers."""
    layer = "up3.norm" if "up3.conv.weight" in volume.tensors else "up3.1"
    if f"{layer}.running_mean" in volume.tensors:
        return {"norm": "batch"}
    if f"{layer}.weight" in volume.tensors:
        return {"norm": "group"}
    kind = volume.modules[layer].kind.rpartition(".")[2] if layer in volume.modules else ""
    if kind in _NORMS:
        return {"norm": _NORMS[kind]}
    if "norm" in given and settings["norm"] in ("instance", "none"):
        return {}
    raise UserError(f"{volume.path} does not tell whether its norm was instance or none; give --norm instance or --norm none")
