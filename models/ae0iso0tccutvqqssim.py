"""The primary model with a structural term: ZY planes must resemble those of the interpolated input.

Every model of this family can have the term (``SliceToVolume.structure``); here its weight ``lbm_ms_ssim`` is 1 by default
(models/options.py).
"""

from models.ae0iso0tccutvqq import Model as VQModel


class Model(VQModel):
    """VQ bottleneck and MS-SSIM on ZY planes."""
