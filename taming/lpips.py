"""Perceptual distance LPIPS (Zhang et al. 2018) with a frozen VGG16, computed by the weights of the ``lpips`` package."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.errors import UserError

WEIGHTS = "vgg16-397923af.pth"  # torchvision's name; the hexadecimal part begins the file's sha256


def examine_weights() -> tuple[Path, str]:
    """The VGG16 weights where torch hub keeps them, and what is wrong with them ("" if nothing), found without any network."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / WEIGHTS
    if not path.is_file():
        return path, "do not exist"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    expected = path.stem.rsplit("-", 1)[1]
    if digest.startswith(expected):
        return path, ""
    return path, f"are damaged or another file: sha256 begins with {digest[:8]}, not with {expected}; delete the file"


def find_weights() -> Path:
    """The VGG16 weights, checked.

    Raises:
        UserError: the file is missing or its content is not what its name says.
    """
    path, problem = examine_weights()
    if problem:
        raise UserError(
            f"the perceptual loss needs the VGG16 weights {path}, which {problem}. On a machine with internet access, run "
            "python -c \"import torchvision; torchvision.models.vgg16(weights='IMAGENET1K_V1')\" "
            f"and copy the file {WEIGHTS} (528 MB) to this place (TORCH_HOME moves it); "
            "or train without the perceptual loss: --perceptual_weight 0"
        )
    return path


def lpips_head(features_a: Sequence[Tensor], features_b: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
    """The distance of two images from their features (Zhang et al. 2018, eq. 1).

    Args:
        features_a: one (N, c, h, w) per layer.
        features_b: the same shapes.
        weights: one (1, c, 1, 1) per layer, the importance of its channels.

    Returns:
        (N, 1, 1, 1): over layers, the sum of the mean over positions of the weighted squared difference of unit vectors.
    """
    layers = zip(features_a, features_b, weights, strict=True)
    terms = [((_unit(a) - _unit(b)).square() * w).sum(dim=1, keepdim=True).mean(dim=(2, 3), keepdim=True) for a, b, w in layers]
    return torch.stack(terms).sum(dim=0)


def _unit(features: Tensor) -> Tensor:
    """Vectors over channels divided by their length + 1e-10; the gradient of a zero vector is finite."""
    return features / (torch.linalg.vector_norm(features, dim=1, keepdim=True) + 1e-10)


def _at_least_float32(features: Sequence[Tensor]) -> list[Tensor]:
    return [f.to(torch.promote_types(f.dtype, torch.float32)) for f in features]


class PerceptualLoss(nn.Module):
    """LPIPS of images in [-1, 1]; always in evaluation mode.

    The network is no registered child: its 14.7 M frozen weights belong in no optimiser, no checkpoint and no parameter count.
    ``.to()`` and its kin carry it all the same.

    Args:
        random_weights: for tests, where no VGG16 weights are at hand.

    Raises:
        UserError: the weights are missing or damaged.
    """

    def __init__(self, random_weights: bool = False) -> None:
        super().__init__()
        if not random_weights:
            find_weights()
        self._hidden = (_build_network(random_weights),)  # a tuple, which nn.Module does not look into

    @property
    def network(self) -> Any:
        """The package's module: ``scaling_layer``, ``net`` and the channel weights ``lin0`` ... ``lin4``."""
        return self._hidden[0]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PerceptualLoss:
        """Moves and casts the hidden network along with the module."""
        self.network._apply(fn)
        return super()._apply(fn, recurse)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Images (N, 1 or 3, H, W), H and W at least 16 → distances (N, 1, 1, 1); one channel is taken as grey."""
        features_a, features_b = self.network.net(self.scale(a)), self.network.net(self.scale(b))
        weights = [layer.model[-1].weight for layer in self.network.lins]
        with torch.autocast(a.device.type, enabled=False):
            return lpips_head(_at_least_float32(features_a), _at_least_float32(features_b), weights)

    def scale(self, images: Tensor) -> Tensor:
        """(N, 1 or 3, H, W) in [-1, 1] → the standardised colours (N, 3, H, W) that VGG16 was trained on."""
        if images.shape[1] not in (1, 3):
            raise ValueError(f"LPIPS takes 1 or 3 channels, not {images.shape[1]}; pass one channel at a time")
        return self.network.scaling_layer(images)


def _build_network(random_weights: bool) -> nn.Module:
    """The ``lpips`` package's module, imported here because torchvision and scipy make its import slow."""
    import lpips

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The parameter 'pretrained' is deprecated", UserWarning)
        warnings.filterwarnings("ignore", "Arguments other than a weight enum", UserWarning)
        network = lpips.LPIPS(net="vgg", pnet_rand=random_weights, verbose=False)
    return network.eval().requires_grad_(False)
