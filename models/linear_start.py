"""The first state of a linear autoencoder (ldm.linear) and of what lies around its bottleneck, from the first training data."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from ldm.linear import LinearDecoder, LinearEncoder, blocks_of, start_linearly
from taming.quantize import FiniteScalarQuantizer, to_vectors
from utils.axes import channels_first
from utils.errors import UserError
from utils.processes import gathered, of_first

if TYPE_CHECKING:
    from models.slice2volume import SliceToVolume

FIRST_BLOCKS = 25_600  # of pixels, all ranks together, that a linear start is computed from at least
FIRST_LOGVAR = -9.0  # of a Gaussian code: noise of a hundredth of the range
GRID_REACH = 0.6  # a standard deviation of a component before the tanh of finite scalar quantisation: of 0.4 to 1 the best start


@torch.no_grad()
def first_rows(model: "SliceToVolume", count: int, rows: Callable[[Tensor], Tensor]) -> Tensor:
    """This rank's share of what the first training samples hold.

    Args:
        count: rows wanted of all ranks together, at least.
        rows: slices (N, C, X, Y) → (M, c), one row for each position for example.
    """
    dataset = model.trainer.train_dataloader.dataset  # type: ignore[union-attr]
    wanted, found, number = math.ceil(count / model.trainer.world_size), [], model.global_rank
    while sum(map(len, found)) < wanted:
        sample = default_collate([dataset[number // len(dataset), number % len(dataset)]])
        original, _ = model.sources({"img": [image.to(model.device) for image in sample["img"]]})
        found.append(rows(model.to_encode(original)))
        number += model.trainer.world_size
    return torch.cat(found)


def begin_linearly(model: "SliceToVolume", count: int) -> None:
    """Principal components of the first blocks of all ranks; the 1x1 convolutions pass them on as they are.

    Raises:
        UserError: the data have fewer different blocks than the codebook codes.
    """
    encoder, decoder = model.G["encoder"], model.G["decoder"]
    assert isinstance(encoder, LinearEncoder) and isinstance(decoder, LinearDecoder)
    blocks = gathered(first_rows(model, count, lambda slices: blocks_of(slices, encoder.stride)))
    codes, different = model.settings["autoencoder"].get("n_embed", 1), len(blocks.unique(dim=0))
    if different < codes:
        raise UserError(
            f"the training data have {different} different blocks of {encoder.stride}x{encoder.stride} pixels, fewer than "
            f"n_embed={codes} codes; lower n_embed, or train on more data"
        )
    start_linearly(encoder, decoder, blocks)
    for layer in (model.G["quant_conv"], model.G["post_quant_conv"]):
        nn.init.dirac_(layer.weight)
        nn.init.zeros_(layer.bias)
    with torch.no_grad():  # beyond the means, where the bottleneck is Gaussian
        model.G["quant_conv"].bias[len(encoder.linear.weight) :] = FIRST_LOGVAR  # type: ignore[index, operator]
    if "quantize" in model.G and isinstance(model.G["quantize"], FiniteScalarQuantizer):
        vectors = first_rows(model, count, lambda slices: to_vectors(model.encode(slices)[0].moments))
        _fit_to_grid(model, gathered(vectors))


@torch.no_grad()
def _fit_to_grid(model: "SliceToVolume", components: Tensor) -> None:
    """Has the 1x1 convolutions spread principal components (M, d) over a grid, and bring its values back best."""
    into = GRID_REACH / components.std(dim=0).clamp_min(1e-6)
    grid = channels_first((components * into)[:, None, None])
    codes = to_vectors(model.G["quantize"](grid).latent)
    back = (components * codes).sum(dim=0) / codes.square().sum(dim=0).clamp_min(1e-6)  # least squares
    for layer, scale in ((model.G["quant_conv"], into), (model.G["post_quant_conv"], back)):
        layer.weight.copy_(of_first(torch.diag(scale))[..., None, None])
