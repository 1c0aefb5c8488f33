"""The contrastive term that the models share: corresponding positions of two feature pyramids must recognise each other.

Park et al. 2020, "Contrastive learning for unpaired image-to-image translation": the query, features of what was generated, has
the gradient; the key, features of what it was generated from, has none.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from networks.losses import full_precision
from networks.views import gather_voxels
from utils.errors import UserError

Draw = Callable[[int], Tensor]


class PatchContrast(nn.Module):
    """Patch sampler and noise-contrastive estimation over the levels of a feature pyramid.

    State-dict keys ``mlp_<level>.0`` and ``mlp_<level>.2`` (the component netF); none without MLPs.
    """

    def __init__(self, channels: Sequence[int], settings: Mapping[str, Any]) -> None:
        """Builds the MLPs where asked for, weights N(0, 0.02²) and biases 0.

        Args:
            channels: feature channels of each level.
            settings: with the CUT options (models/options.py); a level of weight 0 in ``fWhich`` is not computed.

        Raises:
            UserError: ``fWhich`` has another length or is all zero, or there are fewer than two patches.
        """
        super().__init__()
        self.level_weights = tuple(settings["fWhich"] or (1.0,) * len(channels))
        self.num_patches, self.temperature = settings["num_patches"], settings["nce_T"]
        self.all_negatives, self.use_mlp = settings["nce_includes_all_negatives_from_minibatch"], settings["use_mlp"]
        if len(self.level_weights) != len(channels):
            raise UserError(
                f"fWhich={list(self.level_weights)} has {len(self.level_weights)} weights, but the features have "
                f"{len(channels)} levels; give one weight for each"
            )
        if not any(self.level_weights):
            raise UserError(f"fWhich={list(self.level_weights)} leaves no level to compare; set lbNCE to 0 or nocut instead")
        if self.num_patches < 2:
            raise UserError(f"num_patches={self.num_patches} leaves no negative to contrast with; take at least 2")
        if self.use_mlp:
            for level, width in enumerate(channels):
                first, second = nn.Linear(width, settings["c_mlp"]), nn.Linear(settings["c_mlp"], settings["c_mlp"])
                for linear in (first, second):
                    nn.init.normal_(linear.weight, std=0.02)
                    nn.init.zeros_(linear.bias)
                self.add_module(f"mlp_{level}", nn.Sequential(first, nn.ReLU(), second))

    def forward(self, query: Sequence[Tensor], key: Sequence[Tensor], draw: Draw = torch.randperm) -> Tensor:
        """The contrastive loss: mean over levels of weight times mean over positions.

        Args:
            query: features of the generated slices, a volume (B, C, X, Y, Z) for each level, with gradient.
            key: features of the original slices, the same shapes; no gradient goes to them.
            draw: a permutation of range(n); by default from torch's global generator.

        Returns:
            A scalar.

        Raises:
            ValueError: query and key differ in number or shape.
        """
        shapes = [[tuple(volume.shape) for volume in pyramid] for pyramid in (query, key)]
        if shapes[0] != shapes[1] or len(query) != len(self.level_weights):
            raise ValueError(
                f"query {shapes[0]} and key {shapes[1]} must have the same shapes and {len(self.level_weights)} levels: "
                "a position means the same place in both"
            )
        losses = []
        for level, weight in enumerate(self.level_weights):
            if not weight:
                continue
            ids = draw(query[level].shape[2:].numel())[: self.num_patches].to(query[level].device, non_blocking=True)
            vectors = self.sample(level, query[level], ids)
            with torch.no_grad():
                targets = self.sample(level, key[level], ids)
            if self.all_negatives:
                vectors, targets = (rows.flatten(0, 1).unsqueeze(0) for rows in (vectors, targets))
            losses.append(weight * patch_nce(vectors, targets, self.temperature).mean())
        return torch.stack(losses).sum() / len(self.level_weights)

    def sample(self, level: int, features: Tensor, ids: Tensor) -> Tensor:
        """Unit vectors of one level at given positions.

        Args:
            features: (B, C, X, Y, Z).
            ids: (P,) positions ``(x·Y + y)·Z + z``, shared by the batch.

        Returns:
            (B, P, C), or (B, P, c_mlp) with MLPs.
        """
        vectors = gather_voxels(features, ids)
        if self.use_mlp:
            vectors = self.get_submodule(f"mlp_{level}")(vectors)
        vectors = full_precision(vectors)
        return vectors / (torch.linalg.vector_norm(vectors, dim=-1, keepdim=True) + 1e-7)


def patch_nce(query: Tensor, key: Tensor, temperature: float) -> Tensor:
    """InfoNCE of each query with its own key against the other keys of its group (Park et al. 2020, eq. 2).

    Args:
        query: (G, P, C), unit vectors.
        key: (G, P, C), unit vectors; no gradient goes to them.
        temperature: divides the similarities.

    Returns:
        (G, P) losses in nats.
    """
    with torch.autocast(query.device.type, enabled=False):  # similarities over a temperature of 0.07 need more than 8 bits
        similarity = torch.bmm(full_precision(query), full_precision(key.detach()).mT) / temperature
        own = torch.arange(query.shape[1], device=query.device).expand(query.shape[:2])
        return functional.cross_entropy(similarity.flatten(0, 1), own.flatten(), reduction="none").unflatten(0, query.shape[:2])
