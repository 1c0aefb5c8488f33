"""The primary model: slices pass through a learned codebook (van den Oord et al. 2017; Esser et al. 2021)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from ldm.bottleneck import Code
from models.base import Terms
from models.slice2volume import Generated, SliceToVolume
from networks.views import to_slices
from taming.codebook import CodebookRevival, codes_used, perplexity
from taming.quantize import build_quantizer, to_vectors


class Model(SliceToVolume):
    """VQ bottleneck: a position's code is the index of the nearest of n_embed vectors, of a residual codebook one per level."""

    betas = (0.5, 0.9)

    def add_bottleneck(self, autoencoder: dict[str, Any]) -> None:
        """Codebook and the 1x1 convolutions around it."""
        width, z_channels = autoencoder["embed_dim"], autoencoder["ddconfig"]["z_channels"]
        codebook = autoencoder["codebook"]
        kind = {key: value for key, value in codebook.items() if key not in ("initialise", "revive_after")}
        self.G["quantize"] = build_quantizer(autoencoder["n_embed"], width, **kind)
        self.G["quant_conv"] = nn.Conv2d(z_channels, width, 1)
        self.G["post_quant_conv"] = nn.Conv2d(width, z_channels, 1)
        fixed = codebook["legacy"] or bool(codebook.get("grid"))  # as the reference left it, or not learned
        self.kmeans = codebook["initialise"] == "kmeans" and not fixed
        revive_after = 0 if fixed else codebook["revive_after"] * self.settings["accumulate_grad_batches"]
        self.revival = CodebookRevival(autoencoder["n_embed"], len(self.G["quantize"].codebooks), revive_after)

    def add_losses(self, s: dict[str, Any], autoencoder: dict[str, Any]) -> None:
        """The bottleneck's own term besides."""
        super().add_losses(s, autoencoder)
        self.loss_weights["code"] = autoencoder["loss"]["codebook_weight"]

    def bottleneck(self, moments: Tensor) -> Code:
        """Nearest codes, straight-through."""
        return Code(*self.G["quantize"](moments), moments)

    def code_losses(self, code: Code) -> Terms:
        """Codebook and commitment loss."""
        return {"code": code.loss}

    def initialise(self) -> None:
        """k-means over encoder vectors of all ranks: a codebook drawn blindly is mostly never used."""
        if self.kmeans:
            self.revival.initialise(self.G["quantize"], self._encoder_vectors(), self._generator())

    @torch.no_grad()
    def _encoder_vectors(self) -> Tensor:
        """This rank's share of the vectors, (M, embed_dim), from its first training samples."""
        dataset = self.trainer.train_dataloader.dataset  # type: ignore[union-attr]
        wanted = math.ceil(self.revival.vectors_needed / self.trainer.world_size)
        vectors: list[Tensor] = []
        number = self.global_rank
        while sum(len(v) for v in vectors) < wanted:
            sample = default_collate([dataset[number // len(dataset), number % len(dataset)]])
            original, _ = self.sources({"img": [image.to(self.device) for image in sample["img"]]})
            vectors.append(to_vectors(self.encode(to_slices(original))[0].moments))
            number += self.trainer.world_size
        return torch.cat(vectors)

    def after_batch(self, out: Generated, stepped: bool) -> dict[str, Tensor | float]:
        """Watches how the codebook is used and revives codes that no slice has chosen for long."""
        assert out.code.indices is not None
        counts = self.revival.observe(out.code.indices)
        used, spread = codes_used(counts).float(), perplexity(counts)
        logged: dict[str, Tensor | float] = {"codes_used": used.mean(), "perplexity": spread.mean()}
        if len(counts) > 1:
            for level in range(len(counts)):
                logged |= {f"codes_used/level_{level}": used[level], f"perplexity/level_{level}": spread[level]}
        if stepped and not self.weights_loaded:
            vectors = to_vectors(out.code.moments)
            averaged = self.components(ema=True).get("quantize")
            logged["codes_revived"] = float(self.revival.revive(self.G["quantize"], vectors, self._generator(), averaged))
        return logged

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.settings["seed"] + self.generator_steps)
