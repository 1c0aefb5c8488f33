"""Run folders with random weights, small enough to be applied to whole volumes in a test."""

from pathlib import Path

import numpy as np
import torch

from experiment.autoencoder import configure_autoencoder, read_autoencoder_yaml
from experiment.options import BASE_OPTIONS
from experiment.reading import default_settings
from experiment.runs import RunFolder
from models.build import build_model
from models.options import MODEL_OPTIONS
from utils.files import write_json

torch.set_num_threads(1)  # these networks are too small for more

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"cropsize": 32, "cropz": 4, "ngf": 4, "ndf": 4, "skipl1": 1, "dataset": "D", "prj": "P", "perceptual_weight": 0.0}


def make_run(
    folder, model="ae0iso0tccutvqq", *, nm="11", pooled=(0.0, 1000.0), voxel_um=None, network=(), codebook=(), **overrides
):
    """A finished training: settings, dataset.json and component checkpoints of epoch 3."""
    known = {option.name for option in (*BASE_OPTIONS, *MODEL_OPTIONS[model])}
    small = {key: value for key, value in SMALL.items() if key in known}
    if model == "ae0iso0tccut":
        small["ldmyaml"] = "ldmaex2"
    settings = default_settings(MODEL_OPTIONS, model, **{**small, "nm": nm, **overrides})
    autoencoder = None
    if "ldmyaml" in settings:
        autoencoder = read_autoencoder_yaml(ROOT, settings["ldmyaml"])
        autoencoder["ddconfig"] |= {"ch": 8, **dict(network)}
        if codebook:
            autoencoder["codebook"] |= dict(codebook)
        autoencoder = configure_autoencoder(autoencoder, settings)
    settings = {**settings, "autoencoder": autoencoder, "given": {}}
    if settings.get("from_teacher"):
        how = "pick" if settings["l1how"] == "dsp" else settings["l1how"]
        planes = settings["cropsize"] // settings["cropz"]
        settings["restorer"] = {"uprate": planes, "axial_sampling": how, "ngf": 8, "blocks": 1, "fine_width": 6}
    run = RunFolder(Path(folder))
    run.prepare(resume=False, overwrite=False)
    run.write_settings(settings)
    torch.manual_seed(1)
    built = build_model(settings, for_training=model != "fused", frozen=False)
    _lively(built)
    for name, part in built.components().items():
        torch.save(part.state_dict(), run.component(name, 3))
    low, high = pooled
    directions = {
        d: {"dtype": "uint16", "pooled": {"low": low, "high": high}, "files": {}, "voxel_um": {"a.tif": voxel_um}}
        for d in settings["direction"].split("_")
    }
    write_json(run.dataset_record, {"nm": nm, "nm_clip": None, "directions": directions, "dataset": None})
    return run.path


@torch.no_grad()
def _lively(model):
    """Codes that differ from place to place, normalisation statistics that are not trivial, outputs that are not flat."""
    for module in model.G.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm3d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.3, 0.6)
    for name in ("net_g", "net_t"):
        if name in model.G and "last" in dict(model.G[name].named_children()):
            model.G[name].last.weight.normal_(0, 0.1)  # of an untrained lateral model it is zero
    if model.settings.get("from_interpolation") or model.settings.get("from_teacher"):
        for parameter in model.G["net_g"].conv7_k.parameters():
            parameter.normal_(0, 0.1)  # zero at the start
        if "decoder" in model.G:
            model.G["decoder"].conv_out.weight.mul_(10)
    if model.settings.get("norm") == "none" and "net_g" in model.G:
        for module in model.G["net_g"].modules():
            if isinstance(module, torch.nn.Conv3d | torch.nn.ConvTranspose3d):
                module.weight.mul_(2)
    if "quantize" in model.G:
        for part in (model.G["encoder"], model.G["decoder"]):
            if hasattr(part, "linear"):  # beside it the residual networks are zero before a training
                part.conv_out.weight.normal_(0, 0.1)
        pixels = torch.rand(8, model.settings["input_nc"], 32, 32) * 2 - 1
        moments = model.G["quant_conv"](model.G["encoder"](pixels).latent).movedim(1, -1).flatten(0, 2)
        for book in model.G["quantize"].codebooks:
            chosen = moments[torch.randint(len(moments), (book.num_embeddings,))]
            book.weight.copy_(3 * chosen + 0.5 * torch.randn_like(chosen))


def whole(field):
    """The box of a field's whole volume."""
    return tuple(slice(0, size) for size in field.shape)


def grey(shape, seed=0, dtype="uint16", high=1000):
    """A volume of smooth structure and noise."""
    z, y, x = np.meshgrid(*(np.arange(n) for n in shape), indexing="ij")
    smooth = np.sin(y / 5 + z) + np.cos(x / 7 - z)
    noise = np.random.default_rng(seed).normal(0, 0.4, shape)
    values = (smooth + noise + 3) / 6
    return (np.clip(values, 0, 1) * high).astype(dtype)
