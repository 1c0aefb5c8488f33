"""What a training needs: parameters, memory of a step, size of its checkpoints; measured on a small crop."""

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from experiment.teachers import folder_of_run
from models.base import BaseModel
from models.baseline import restorer_of
from models.build import build_model
from utils.errors import UserError
from utils.geometry import LATENT_STRIDE, Geometry, block_side
from utils.machine import total_memory
from utils.units import as_size

_SIDE = 32  # of the crop that is measured, at least
_STATES = 4  # of a parameter in memory: value, gradient, two moments of Adam
_MEASURED = 2**20  # voxels of a step's crops from which on its memory is measured before a training
_KEPT = 3  # of a parameter in last.ckpt: value, two moments


@dataclass(frozen=True)
class Requirements:
    """Needs of a training in 32 bits; mixed precision needs about half the memory.

    Attributes:
        parameters: of all networks.
        memory: bytes of a step: parameters with their states, and what the generator's pass keeps for its gradient.
        component_files: bytes that one regular save adds to checkpoints/.
        last_checkpoint: bytes of last.ckpt.
    """

    parameters: int
    memory: int
    component_files: int
    last_checkpoint: int

    def lines(self, settings: Mapping[str, Any], data: int) -> list[str]:
        """Disc and memory that the training of these settings takes, with so many bytes of data."""
        saves = math.ceil(settings["n_epochs"] / settings["epoch_save"])
        disc = saves * self.component_files + 3 * self.last_checkpoint  # last, the one before it, best
        lines = [
            f"disc: about {as_size(disc)} in the run folder ({saves} x {as_size(self.component_files)} of weights; last.ckpt, "
            f"the one before it and best.ckpt of {as_size(self.last_checkpoint)} each); the data have {as_size(data)}",
            f"memory: at least {as_size(self.memory)} on the GPU (or CPU) for a step in 32 bits, about half of it in bf16-mixed",
        ]
        if settings["preload"]:
            lines.append(f"main memory: preload keeps {as_size(data)} of decoded volumes")
        return lines


def with_restorer(settings: Mapping[str, Any], logs: Path) -> dict[str, Any]:
    """Settings with ``restorer``, how the network of a lateral run is built, where the model takes one over (``from_teacher``).

    It is kept with the run, which so can be used without its teacher.
    """
    if not settings.get("from_teacher") or settings.get("restorer"):
        return dict(settings)
    return {**settings, "restorer": restorer_of(folder_of_run("--teacher", settings["teacher"], logs))}


def predicted(settings: Mapping[str, Any]) -> Requirements | None:
    """What a training needs that is about to start; None, and nothing is measured, for crops that any machine holds.

    Raises:
        UserError: a step does not fit into the memory of this machine; the message says what to lower.
    """
    if settings["batch_size"] * settings["cropsize"] ** 3 < _MEASURED:
        return None
    needs, there = training_requirements(settings), total_memory()
    if torch.cuda.is_available():
        there = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    least = needs.memory * (1 if settings["precision"] == "32" else 0.5)
    if least > there:
        needed = f"a step needs at least {as_size(least)} of memory, of which this machine has {as_size(there)}"
        raise UserError(f"{needed}; use {smaller(settings)}")
    return needs


def smaller(settings: Mapping[str, Any]) -> str:
    """What to lower for a step that takes less memory."""
    found = [f"--batch_size {settings['batch_size'] // 2}"] if settings["batch_size"] > 1 else []
    found += ["--adv_planes 16"] if settings["adv"] and not 0 < settings["adv_planes"] <= 16 else []
    found += ["--precision bf16-mixed"] if settings["precision"] == "32" else []
    return " or ".join([*found, "a smaller --cropsize and --cropz"])


def require_room(model: BaseModel, folder: Path) -> None:
    """Refuses, as a UserError, a training whose first save would not fit where its folder is to be."""
    there = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    needed, free = (1 + 2 * _KEPT) * weights, shutil.disk_usage(there).free  # components, last.ckpt and the one before it
    if free < needed:
        raise UserError(
            f"{folder} needs {as_size(needed)} for the first save, and {there} has {as_size(free)} free; make room, or choose "
            "another place for runs with --logs"
        )


def training_requirements(settings: Mapping[str, Any]) -> Requirements:
    """Measures the needs of checked settings.

    A pass over a crop of about 32³ is scaled to the crop's voxels: every network is convolutional, and attention adds little.
    LPIPS and a teacher are left out.

    Args:
        settings: as for ``build_model``.
    """
    small = _small(settings)
    with torch.random.fork_rng(devices=[]):
        model = build_model(small, frozen=False)
        kept = _kept_by_a_pass(model, small)
    parameters = sum(p.numel() for p in model.parameters())
    voxels = settings["batch_size"] * (settings["cropsize"] / small["cropsize"]) ** 3
    weights = 4 * parameters
    return Requirements(parameters, _STATES * weights + round(kept * voxels), weights, _KEPT * weights)


def _small(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The same networks and losses on the smallest crop from 32³ on, or on a smaller crop itself, that keeps its factor."""
    geometry = Geometry.from_settings(settings)
    if "axial_sampling" in settings:  # slices by themselves (lateral): small as they are
        return {**settings, "cropz": geometry.slices, "dsp": 1, "usp": 1, "batch_size": 1}
    block = block_side(settings["autoencoder"]["ddconfig"]["ch_mult"]) if settings.get("autoencoder") else LATENT_STRIDE
    grain = math.lcm(block, geometry.factor * geometry.downbranch)  # divides cropsize, as any valid side
    side = min(-(-_SIDE // grain) * grain, geometry.cropsize)
    slices = side // geometry.factor
    changed: dict[str, Any] = {"cropsize": side, "cropz": slices, "dsp": 1, "usp": 1, "batch_size": 1}
    changed["skipl1"] = math.gcd(settings["skipl1"], slices)
    for name, value in (("netD", "patch_16"), ("lbm_ms_ssim", 0), ("uprate", None), ("lbteach", 0)):
        if name in settings:
            changed[name] = value
    return {**settings, **changed}


def _kept_by_a_pass(model: BaseModel, settings: Mapping[str, Any]) -> int:
    """Bytes that the generator's pass and losses save for the backward pass, without parameters."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}  # the tensors are held so that no two have the same address

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = tensor
        return tensor

    shape = (1, 1, settings["cropsize"], settings["cropsize"], settings["cropz"])
    count = len(settings["direction"].split("_"))
    batch = {"img": [torch.rand(shape) * 2 - 1 for _ in range(count)], "labels": torch.zeros(1, dtype=torch.int64)}
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        model.generator_losses(model.generate(batch | {"filenames": [""]}))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
