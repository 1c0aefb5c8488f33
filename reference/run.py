"""Weights of the reference → a run of ours: the settings that the weights tell, and a model that holds them."""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiment.rules import check_settings
from experiment.runs import RunFolder
from models.base import BaseModel
from models.build import build_model
from reference.files import ALIAS, Source
from utils.errors import UserError
from utils.files import new_folder, write_json

Settings = dict[str, Any]

_PATCHES = {12: "patch_16", 15: "patch_8", 18: "patch_4"}  # index of the last convolution in net_d
_NORMS = {"BatchNorm3d": "batch", "InstanceNorm3d": "instance", "GroupNorm": "group", "Identity": "none"}
_DIMENSIONS = {3: "1d", 4: "2d", 5: "3d"}  # rank of a convolution's weight
_MAY_DIFFER = frozenset({"nocut", "nocyc", "mc"})  # the user may leave these parts out
_UNTOLD = """cropsize cropz dsp usp downbranch resizebranch uprate skipl1 l1how hbranch nm""".split()  # no weight depends on them

# Parts that the reference has and we have not. A key is dropped by name only where our component has no such key.
_DROPPED = {
    r"conv7_g\.": "second output, never used and never trained",
    r"down[0-3]\.": "encoding half of ed023e, never used",
    r"logvar$": "a constant that was never trained",
    r"perceptual_loss\.": "the fixed LPIPS network, which is not ours to store",
    r"mlp_[0-9]+\.": "MLPs of the contrastive term, which use_mlp is off for",
}
_UNKNOWN = "unknown: our network has no such part, its results may differ"
_COUNTER = ".num_batches_tracked"  # absent in files of torch < 0.4.1; it has no influence

Sources = Mapping[str, Source]


def model_of(names: Collection[str], where: Path) -> str:
    """The model that has components of these names; a UserError says that none has."""
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
    """The settings of a run that these weights fit, as train.py stores them, and remarks, one line each.

    What the weights say otherwise than the complete settings, or the autoencoder's (content of ldm/<ldmyaml>.yaml; None for
    IsoREF), is changed; ``given`` says what the user has set, and where.

    Raises:
        UserError: a weight that tells a size is missing, or the settings break a rule.
    """
    if autoencoder is None:
        told = _isoref(sources)
    else:
        autoencoder = _with_weights(autoencoder, sources)
        told = _slice_model(sources, autoencoder)
    told |= _losses(sources)
    told |= _unweighted(sources["net_g"], settings, given)
    told = {key: value for key, value in told.items() if not (key in _MAY_DIFFER and key in given)}
    notes = _remarks(settings, given, told)
    if autoencoder is not None:
        shown = {"n_embed": autoencoder.get("n_embed"), **autoencoder["ddconfig"]}
        notes.insert(1, "the autoencoder: " + ", ".join(f"{key} {_text(value)}" for key, value in shown.items()))
    return {**check_settings(settings | told, autoencoder), "given": dict(given)}, notes


def check_family(settings: Settings, names: Collection[str], where: Path) -> None:
    """Raises a UserError if another model than that of the settings has components of these names."""
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


def _with_weights(autoencoder: Settings, sources: Sources) -> Settings:
    """The autoencoder settings with the sizes of the weights."""
    encoder, decoder = need(sources, "encoder"), need(sources, "decoder")
    ch, in_channels = encoder.shape("conv_in.weight")[:2]
    levels = range(len(encoder.numbers(r"down\.(\d+)\.")))
    widths = [encoder.shape(f"down.{level}.block.0.conv1.weight")[0] for level in levels]
    if any(width % ch for width in widths):
        raise UserError(f"{encoder.path}: the widths {widths} of its levels are no multiples of its base width {ch}")
    attention = [level for level in levels if encoder.numbers(rf"down\.{level}\.attn\.(\d+)\.")]
    z_channels = decoder.shape("conv_in.weight")[1]
    sizes = {
        "ch": ch,
        "ch_mult": [width // ch for width in widths],
        "in_channels": in_channels,
        "out_ch": decoder.shape("conv_out.weight")[0],
        "z_channels": z_channels,
        "double_z": encoder.shape("conv_out.weight")[0] == 2 * z_channels,
        "num_res_blocks": len(encoder.numbers(r"down\.0\.block\.(\d+)\.")),
        "attn_resolutions": [autoencoder["ddconfig"]["resolution"] // 2**level for level in attention],
        "norm": "group",  # the reference knows no other, and always attends in the middle
        "mid_attention": True,
    }
    made = {**autoencoder, "ddconfig": autoencoder["ddconfig"] | sizes, "loss": dict(autoencoder["loss"])}
    made["embed_dim"] = need(sources, "post_quant_conv").shape("weight")[1]
    if "quantize" in sources:
        made["n_embed"], made["embed_dim"] = sources["quantize"].shape("embedding.weight")
        made["codebook"] = autoencoder["codebook"] | {"levels": 1, "grid": []}
    if "discriminator" in sources:
        made["loss"]["disc_ndf"] = sources["discriminator"].shape("main.0.weight")[0]
    return made


def _slice_model(sources: Sources, autoencoder: Settings) -> Settings:
    volume = need(sources, "net_g")
    if "conv7_k.0.0.weight" not in volume.tensors:
        raise UserError(f"{volume.path} is not the generator ed023e, the only one that these models use: it has no conv7_k.0.0")
    output_nc, ngf = volume.shape("conv7_k.0.0.weight")[:2]
    channels = autoencoder["ddconfig"]["in_channels"]
    told = {"ngf": ngf, "output_nc": output_nc, "input_nc": channels, "tc": channels == 2, "embed_dim": autoencoder["embed_dim"]}
    return told


def _isoref(sources: Sources) -> Settings:
    volume = need(sources, "net_g")
    ngf, input_nc = volume.shape("down0.0.conv.weight")[:2]
    halves = (len(volume.shape(f"{stage}.conv.weight")) for stage in ("down0.0", "up3"))
    encode, decode = (_DIMENSIONS.get(rank, "unknown") for rank in halves)
    if not {encode, decode} <= {"1d", "3d"}:
        raise UserError(f"{volume.path}: its halves convolve {encode} and {decode}; each must be 1d or 3d (2d is not supported)")
    told = {"ngf": ngf, "input_nc": input_nc, "output_nc": volume.shape("conv7_k.0.conv.weight")[0], "gdim": f"{encode}_{decode}"}
    return told | {"nocyc": "net_gback" not in sources}


def need(sources: Sources, name: str) -> Source:
    """The component of that name; a UserError says that there is none."""
    if name not in sources:
        known = next(iter(sources.values()))
        raise UserError(f"{known.path.parent} has no file of the component {name!r}, which the model needs")
    return sources[name]


def _losses(sources: Sources) -> Settings:
    told: Settings = {}
    if (net_d := sources.get("net_d")) is not None:
        last = max(net_d.numbers(r"model\.(\d+)\."), default=-1)
        if last not in _PATCHES:
            raise UserError(f"{net_d.path} is none of the known discriminators {', '.join(_PATCHES.values())}")
        told |= {"netD": _PATCHES[last], "ndf": net_d.shape("model.0.weight")[0]}
    if (contrast := sources.get("netF")) is not None:
        told |= {"nocut": False}
        if "mlp_0.0.weight" in contrast.tensors:
            told |= {"c_mlp": contrast.shape("mlp_0.0.weight")[0]}
    return told


def _unweighted(volume: Source, settings: Settings, given: Mapping[str, str]) -> Settings:
    """The generator's dropout, if a whole module says it, and its norm: by running statistics, gains or class of its layers."""
    dropout = volume.modules.get("conv5.1")
    told = {"mc": dropout.state["p"] > 0} if dropout and isinstance(dropout.state, dict) and "p" in dropout.state else {}
    layer = "up3.norm" if "up3.conv.weight" in volume.tensors else "up3.1"
    kind = volume.modules[layer].kind.rpartition(".")[2] if layer in volume.modules else ""
    if f"{layer}.running_mean" in volume.tensors:
        return {**told, "norm": "batch"}
    if f"{layer}.weight" in volume.tensors:
        return {**told, "norm": "group"}
    if kind in _NORMS:
        return {**told, "norm": _NORMS[kind]}
    if "norm" in given and settings["norm"] in ("instance", "none"):
        return told
    raise UserError(f"{volume.path} does not tell whether its norm was instance or none; give --norm instance or --norm none")


@dataclass
class Fitted:
    """What became of one component's keys.

    Attributes:
        file: where it came from; None for a component that starts with fresh weights.
        used: keys that were taken.
        dropped: keys of the file that were not, with the reason.
        missing: keys of ours that the file has not, which keep their fresh values.
    """

    name: str
    file: str | None = None
    used: list[str] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report for a person; parts are summed up by the first word of their keys."""
        if self.file is None and self.missing:
            return [f"{self.name}: no file, starts with fresh weights ({len(self.missing)} keys)"]
        head = [f"{self.name}: {len(self.used)} keys used, {len(self.dropped)} dropped, {len(self.missing)} missing"]
        reasons: dict[str, list[str]] = {}
        for key, reason in self.dropped.items():
            reasons.setdefault(ALIAS if reason.startswith(ALIAS) else reason, []).append(key)
        tail = [f"    dropped ({reason}): {_summed_up(keys)}" for reason, keys in reasons.items()]
        return head + tail + ([f"    missing, kept fresh: {_summed_up(self.missing)}"] if self.missing else [])


def _summed_up(keys: list[str]) -> str:
    return ", ".join(f"{part} ({count})" for part, count in Counter(key.split(".")[0] for key in keys).items())


def build_filled(settings: Mapping[str, Any], sources: Sources) -> tuple[BaseModel, list[Fitted]]:
    """The model of these settings with the reference's weights; fixed networks of losses are left out.

    A discriminator without a file keeps fresh weights, drawn from the settings' seed (the reference saved discriminators only if
    asked to); so does a component that has none.

    Raises:
        UserError: a needed component, key or shape is not there.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings["seed"])
        model = build_model(settings, frozen=False)
    return model, [
        Fitted(name, missing=list(component.state_dict()))
        if name not in sources and (name in model.D or not component.state_dict())
        else _fill(name, component, need(sources, name))
        for name, component in model.components().items()
    ]


def _fill(name: str, component: nn.Module, source: Source) -> Fitted:
    wanted = component.state_dict()
    fitted = Fitted(name, str(source.path), dropped=dict(source.dropped))
    state, wrong = dict(wanted), []
    for key, value in source.tensors.items():
        if key not in wanted:
            fitted.dropped[key] = next((reason for part, reason in _DROPPED.items() if re.match(part, key)), _UNKNOWN)
        elif value.shape != wanted[key].shape:
            wrong.append(f"{key} has the shape {tuple(value.shape)} instead of {tuple(wanted[key].shape)}")
        else:
            fitted.used.append(key)
            state[key] = value.to(wanted[key].dtype)
    absent = [key for key in wanted if key not in source.tensors]
    fitted.missing = [key for key in absent if key.endswith(_COUNTER)]
    wrong += [f"{key} is missing" for key in absent if not key.endswith(_COUNTER)]
    if wrong:
        raise UserError(f"{source.path} does not fit the component {name!r} of these settings: {'; '.join(wrong)}")
    component.load_state_dict(state)
    return fitted


def write_run(folder: Path, settings: Mapping[str, Any], model: BaseModel, epoch: int, report: Mapping[str, Any]) -> None:
    """Writes a run that ``train.py --init`` and ``infer.py`` take; the folder appears only when it is complete.

    Its intensity record is there where settings alone tell it: nm 00, set by the user, means values already in [-1, 1]. The
    report becomes import.json. A UserError: there is something at that place, or it cannot be written.
    """
    with new_folder(folder) as partial:
        run = RunFolder(partial)
        run.checkpoints.mkdir()
        run.write_settings(settings)
        for name, component in model.components().items():
            with run.component(name, epoch).open("wb") as file:  # of a path torch does not say that the disc is full
                torch.save(dict(component.state_dict()), file)
        run.manifest.add_set(epoch, run.checkpoints.glob("*.pth"))
        if settings["nm"] == "00" and "nm" in settings["given"]:
            known = {"dtype": "float32", "pooled": {"low": -1.0, "high": 1.0}, "files": {}, "voxel_um": {}}
            directions = dict.fromkeys(settings["direction"].split("_"), known)
            write_json(run.dataset_record, {"nm": "00", "nm_clip": None, "directions": directions, "dataset": None})
        write_json(partial / "import.json", report)
        run.copy_source(Path(__file__).parents[1] / "models" / f"{settings['models']}.py")


def as_report(files: Mapping[str, Path], epoch: int, fitted: list[Fitted], notes: list[str]) -> dict[str, Any]:
    """What import.json holds: where the weights came from and what became of every key."""
    used = {part.name for part in fitted if part.file}
    return {
        "from": str(next(iter(files.values())).parent),
        "epoch": epoch,
        "notes": notes,
        "components": [asdict(part) for part in fitted],
        "files_not_used": sorted(path.name for name, path in files.items() if name not in used),
    }
