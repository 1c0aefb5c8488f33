"""The primary model with a structural term: ZY planes must resemble those of the interpolated input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from models.ae0iso0tccutvqq import Model as VQModel
from models.base import Terms
from models.slice2volume import Generated
from networks.losses import ms_ssim_loss
from networks.views import resample_z, zy_planes


class Model(VQModel):
    """VQ bottleneck and MS-SSIM (Wang et al. 2003) on ZY planes."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        """Args: as SliceToVolume; ``lbm_ms_ssim`` is the weight of the term."""
        super().__init__(settings)
        self.loss_weights["ms_ssim"] = settings["lbm_ms_ssim"]

    def generator_losses(self, out: Generated) -> Terms:
        """The VQ model's terms and 1 - MS-SSIM."""
        terms = super().generator_losses(out)
        if self.wants("ms_ssim"):
            interpolated = resample_z(out.target, out.volume.shape[-1])
            terms["ms_ssim"] = ms_ssim_loss(zy_planes(out.volume), zy_planes(interpolated))
        return terms
