"""Perceptual distance LPIPS (Zhang et al. 2018) with a frozen VGG16, computed by the weights of the ``lpips`` package."""

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from utils.errors import UserError
from utils.frozen import Frozen
from utils.machine import lay_channels_last

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
    """The VGG16 weights; a UserError says that the file is missing or its content is not what its name says."""
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
        features_a, features_b: one (N, c, h, w) per layer.
        weights: one (1, c, 1, 1) per layer, the importance of its channels.

    Returns:
        (N, 1, 1, 1): over layers, the sum of the mean over positions of the weighted squared difference of unit vectors.
    """
    terms = []
    for *pair, weight in zip(features_a, features_b, weights, strict=True):  # the gradient of a zero vector is finite
        a, b = (x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-10) for x in pair)
        terms.append(((a - b).square() * weight).sum(dim=1, keepdim=True).mean(dim=(2, 3), keepdim=True))
    return torch.stack(terms).sum(dim=0)


class PerceptualLoss(Frozen):
    """LPIPS of images in [-1, 1]; ``network`` is the package's module, of 14.7 M weights.

    Args:
        random_weights: for tests, where no VGG16 weights are at hand.

    Raises:
        UserError: the weights are missing or damaged.
    """

    def __init__(self, random_weights: bool = False) -> None:
        if not random_weights:
            find_weights()
        import lpips  # here, because torchvision and scipy make it slow

        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The parameter 'pretrained' is deprecated", UserWarning)
            warnings.filterwarnings("ignore", "Arguments other than a weight enum", UserWarning)
            super().__init__(lpips.LPIPS(net="vgg", pnet_rand=random_weights, verbose=False))
        lay_channels_last(self.network)  # a tenth less time

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Images (N, 1 or 3, H, W), H and W at least 16 → distances (N, 1, 1, 1); one channel is taken as grey."""
        features_a, features_b = self.network.net(self.scale(a)), self.network.net(self.scale(b))
        weights = [layer.model[-1].weight for layer in self.network.lins]
        with torch.autocast(a.device.type, enabled=False):
            wide_a, wide_b = ([f.to(torch.promote_types(f.dtype, torch.float32)) for f in fs] for fs in (features_a, features_b))
            return lpips_head(wide_a, wide_b, weights)

    def scale(self, images: Tensor) -> Tensor:
        """(N, 1 or 3, H, W) in [-1, 1] → the standardised colours (N, 3, H, W) that VGG16 was trained on."""
        if images.shape[1] not in (1, 3):
            raise ValueError(f"LPIPS takes 1 or 3 channels, not {images.shape[1]}; pass one channel at a time")
        return self.network.scaling_layer(images)
