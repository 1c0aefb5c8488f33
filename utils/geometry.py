"""How encoded slices and isotropic planes correspond (torch-free; used by settings, data, models and inference)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

from utils.errors import UserError

LATENT_STRIDE = 8  # in-plane reduction of the 2-D encoder, and enlargement of the volume decoder along every axis


@dataclass(frozen=True)
class Geometry:
    """Sizes of one training crop.

    Attributes:
        cropsize: side of the isotropic cube in voxels; also the in-plane side of a slice.
        slices: encoded slices per crop, ``cropz * usp / dsp``.
        factor: isotropic planes per encoded slice.
        skip: encoded slices per projected slab (``skipl1``).
        downbranch, resizebranch: pooling and resizing of the latent volume along Z before it is decoded.
    """

    cropsize: int
    slices: int
    factor: int
    skip: int = 1
    downbranch: int = 1
    resizebranch: int = 1

    @classmethod
    def from_settings(
        cls,
        *,
        cropsize: int,
        cropz: int,
        dsp: int = 1,
        usp: float = 1,
        downbranch: int = 1,
        resizebranch: int = 1,
        skipl1: int = 1,
        free_factor: bool = False,
    ) -> Geometry:
        """The geometry that the settings ask for.

        Args:
            free_factor: the factor is ``cropsize / slices``, any integer (IsoREF), instead of
                ``8 * resizebranch / downbranch``.

        Raises:
            UserError: the result would not be a cube; the message prints the arithmetic and working values.
        """
        given = {"cropsize": cropsize, "cropz": cropz, "dsp": dsp, "usp": usp, "skipl1": skipl1}
        for name, value in (given | {"downbranch": downbranch, "resizebranch": resizebranch}).items():
            if value <= 0:
                raise UserError(f"{name}={value} must be positive")
        if cropsize % LATENT_STRIDE:
            below = max(LATENT_STRIDE, cropsize // LATENT_STRIDE * LATENT_STRIDE)
            raise UserError(f"cropsize={cropsize} must be a multiple of {LATENT_STRIDE}; try {below} or {below + LATENT_STRIDE}")
        slices = int(cropz * usp / dsp)
        if slices < 1:
            least = math.ceil(dsp / usp)
            raise UserError(f"cropz={cropz}·usp={usp}/dsp={dsp} leaves no slice to encode; raise cropz to at least {least}")
        if free_factor:
            if cropsize % slices:
                near = _nearest_divisors(cropsize, slices)
                raise UserError(
                    f"cropsize={cropsize} must be a multiple of the {slices} slices of a crop "
                    f"(cropz·usp/dsp = {cropz}·{usp}/{dsp}); slice counts that work: {near}"
                )
            factor = Fraction(cropsize, slices)
        else:
            factor = Fraction(LATENT_STRIDE * resizebranch, downbranch)
            _check_cube(cropsize, slices, factor, cropz, dsp, usp, downbranch, resizebranch)
        for name, value in {"downbranch": downbranch, "skipl1": skipl1}.items():
            if slices % value:
                raise UserError(
                    f"{name}={value} must divide the {slices} slices of a crop (cropz·usp/dsp = {cropz}·{usp}/{dsp}); "
                    f"values that work: {_nearest_divisors(slices, value)}"
                )
        return cls(cropsize, slices, int(factor), skipl1, downbranch, resizebranch)

    @property
    def slab(self) -> int:
        """Isotropic planes that one projection covers."""
        return self.factor * self.skip

    def plane_of_slice(self, k: int, l1how: str) -> float:
        """Isotropic plane (fractional) on which encoded slice k is centred; it covers ``[k*factor, (k+1)*factor)``."""
        return k * self.factor + (self.factor // 2 if l1how == "dsp" else (self.factor - 1) / 2)


def _check_cube(
    cropsize: int, slices: int, factor: Fraction, cropz: int, dsp: int, usp: float, downbranch: int, resizebranch: int
) -> None:
    planes = slices * factor
    if factor.denominator != 1:
        raise UserError(
            f"downbranch={downbranch} must divide 8·resizebranch = {LATENT_STRIDE * resizebranch}: a slice becomes a whole "
            f"number of planes; values that work: {_nearest_divisors(LATENT_STRIDE * resizebranch, downbranch)}"
        )
    if planes == cropsize:
        return
    arithmetic = (
        f"slices = int(cropz·usp/dsp) = int({cropz}·{usp}/{dsp}) = {slices}; planes per slice = 8·resizebranch/downbranch = "
        f"8·{resizebranch}/{downbranch} = {factor}; {slices}·{factor} = {planes}, but cropsize = {cropsize}"
    )
    remedies = []
    wanted = Fraction(cropsize) / factor  # slices
    if wanted.denominator == 1:
        least = math.ceil(wanted * dsp / Fraction(usp).limit_denominator(1000))
        if int(least * usp / dsp) == wanted:
            remedies.append(f"cropz={least}")
    if planes % LATENT_STRIDE == 0:
        remedies.append(f"cropsize={planes}")
    for down, resize in ((1, 1), (2, 1), (4, 1), (1, 2), (1, 4)):
        if (down, resize) != (downbranch, resizebranch) and slices * LATENT_STRIDE * resize == cropsize * down:
            remedies.append(f"downbranch={down} resizebranch={resize}")
    raise UserError(f"the output is not a cube: {arithmetic}. Try " + (" or ".join(remedies) or "cropz = cropsize·dsp/8"))


def _nearest_divisors(number: int, value: int) -> str:
    divisors = sorted((d for d in range(1, number + 1) if number % d == 0), key=lambda d: (abs(d - value), d))
    return ", ".join(str(d) for d in sorted(divisors[:3]))


def voxel_size(text: str | None) -> tuple[float, float, float] | None:
    """The value of ``--voxel``: ``z,y,x`` in µm.

    Raises:
        UserError: it is not written so.
    """
    if text is None:
        return None
    try:
        z, y, x = (float(part) for part in text.split(","))
    except ValueError:
        raise UserError(f"--voxel {text!r} must be three sizes in µm, z,y,x, for example 2,0.25,0.25") from None
    if not 0 < min(z, y, x) <= max(z, y, x) < float("inf"):
        raise UserError(f"--voxel {text!r}: sizes must be positive")
    return z, y, x
