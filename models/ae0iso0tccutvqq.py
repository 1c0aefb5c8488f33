"""The primary model: slices pass through a learned codebook (van den Oord et al. 2017; Esser et al. 2021)."""

from typing import Any

import torch
from torch import Tensor, nn

from ldm.bottleneck import Code
from models.linear_start import FIRST_BLOCKS, begin_linearly, first_rows
from models.slice2volume import Generated, SliceToVolume
from taming.codebook import CodebookLife
from taming.quantize import build_quantizer, to_vectors


class Model(SliceToVolume):
    """VQ bottleneck: a position's code is the index of the nearest of n_embed vectors, of a residual codebook one per level."""

    betas = (0.5, 0.9)
    code_term = ("code", "codebook_weight")

    def add_bottleneck(self, autoencoder: dict[str, Any]) -> None:
        """Codebook and the 1x1 convolutions around it."""
        width, z_channels, codebook = autoencoder["embed_dim"], autoencoder["ddconfig"]["z_channels"], autoencoder["codebook"]
        kind = {key: value for key, value in codebook.items() if key not in ("initialise", "revive_after")}
        self.G["quantize"] = build_quantizer(autoencoder["n_embed"], width, **kind)
        self.G["quant_conv"] = nn.Conv2d(z_channels, width, 1)
        self.G["post_quant_conv"] = nn.Conv2d(width, z_channels, 1)
        self.revival = CodebookLife.from_settings(self.G["quantize"], codebook, self.settings["accumulate_grad_batches"])

    def bottleneck(self, moments: Tensor) -> Code:
        """Nearest codes, straight-through."""
        return Code(*self.G["quantize"](moments), moments)

    def initialise(self) -> None:
        """k-means over encoder vectors of all ranks: a codebook drawn blindly is mostly never used."""
        if self.weights_loaded:
            return
        count = self.revival.vectors_needed
        if self.settings["autoencoder"]["start"] == "linear":
            count = max(count, FIRST_BLOCKS)
            begin_linearly(self, count)
        if self.revival.from_data:
            vectors = first_rows(self, count, lambda slices: to_vectors(self.encode(slices)[0].moments))
            self.revival.initialise(self.G["quantize"], vectors, self._generator())

    def after_batch(self, out: Generated, stepped: bool) -> dict[str, Tensor | float]:
        """Watches how the codebook is used and revives codes that no slice has chosen for long."""
        assert out.code.indices is not None
        logged = self.revival.usage(self.revival.observe(out.code.indices))
        if stepped and not self.weights_loaded:
            vectors, averaged = to_vectors(out.code.moments), self.components(ema=True).get("quantize")
            logged["codes/revived"] = float(self.revival.revive(self.G["quantize"], vectors, self._generator(), averaged))
        return logged

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.settings["seed"] + self.generator_steps)
