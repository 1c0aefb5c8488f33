"""How encoded slices and isotropic planes correspond (torch-free; used by settings, data, models and inference)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Self

from utils.errors import UserError

LATENT_STRIDE = 8  # in-plane reduction of the 2-D encoder, and enlargement of the volume decoder along every axis


def block_side(ch_mult: Sequence[int]) -> int:
    """Pixels along a side of the block that a code of an autoencoder of these levels stands for."""
    return int(2 ** (len(ch_mult) - 1))


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
    def from_settings(cls, settings: Mapping[str, Any]) -> Self:
        """The geometry that checked settings ask for.

        Planes per slice are 8·resizebranch/downbranch, or for a model with ``uprate`` (IsoREF) cropsize/slices, any integer. The
        lateral model, which takes slices by themselves, has crops of any depth, and ``uprate`` rounded up.

        Raises:
            UserError: the result would not be a cube, or uprate says otherwise; the message prints the arithmetic and values
                that work.
        """
        s = {"dsp": 1, "usp": 1, "downbranch": 1, "resizebranch": 1, "skipl1": 1, **settings}
        cropsize = s["cropsize"]
        sources = f"(cropz·usp/dsp = {s['cropz']}·{s['usp']}/{s['dsp']})"
        if cropsize % LATENT_STRIDE:
            below = max(LATENT_STRIDE, cropsize // LATENT_STRIDE * LATENT_STRIDE)
            raise UserError(f"cropsize={cropsize} must be a multiple of {LATENT_STRIDE}; try {below} or {below + LATENT_STRIDE}")
        slices = int(s["cropz"] * s["usp"] / s["dsp"])
        if slices < 1:
            least = math.ceil(s["dsp"] / s["usp"])
            given = f"cropz={s['cropz']}·usp={s['usp']}/dsp={s['dsp']}"
            raise UserError(f"{given} leaves no slice to encode; raise cropz to at least {least}")
        if "axial_sampling" in s:
            if s["uprate"] is None:
                raise UserError("uprate is not set: how many pixels two slices lie apart (vz / vxy), such as --uprate 8")
            return cls(cropsize, slices, math.ceil(s["uprate"] - 1e-6))
        if "uprate" not in s:
            factor = _factor(s, slices)
        elif cropsize % slices:
            near = _nearest_divisors(cropsize, slices)
            raise UserError(
                f"cropsize={cropsize} must be a multiple of the {slices} slices of a crop {sources}; "
                f"slice counts that work: {near}"
            )
        else:
            factor = cropsize // slices
            if s["uprate"] not in (None, factor):
                raise UserError(
                    f"uprate={s['uprate']} disagrees with the crop: cropsize/slices = {cropsize}/{slices} = {factor}; "
                    f"set uprate={factor} or leave it out"
                )
        for name in ("downbranch", "skipl1"):
            if slices % s[name]:
                near = _nearest_divisors(slices, s[name])
                raise UserError(f"{name}={s[name]} must divide the {slices} slices of a crop {sources}; values that work: {near}")
        return cls(cropsize, slices, factor, s["skipl1"], s["downbranch"], s["resizebranch"])

    @property
    def slab(self) -> int:
        """Isotropic planes that one projection covers."""
        return self.factor * self.skip

    def plane_of_slice(self, k: int, l1how: str) -> float:
        """Isotropic plane (fractional) on which encoded slice k is centred; it covers ``[k*factor, (k+1)*factor)``."""
        return k * self.factor + (self.factor // 2 if l1how == "dsp" else (self.factor - 1) / 2)


def _factor(s: Mapping[str, Any], slices: int) -> int:
    """Planes per slice, 8·resizebranch/downbranch, where the crop becomes a cube."""
    cropsize, dsp, usp = s["cropsize"], s["dsp"], s["usp"]
    downbranch, resizebranch = s["downbranch"], s["resizebranch"]
    factor, remainder = divmod(LATENT_STRIDE * resizebranch, downbranch)
    if remainder:
        raise UserError(
            f"downbranch={downbranch} must divide 8·resizebranch = {LATENT_STRIDE * resizebranch}: a slice becomes a whole "
            f"number of planes; values that work: {_nearest_divisors(LATENT_STRIDE * resizebranch, downbranch)}"
        )
    planes = slices * factor
    if planes == cropsize:
        return factor
    remedies = [f"cropsize={planes}"] if planes % LATENT_STRIDE == 0 else []
    if cropsize % factor == 0:
        least = math.ceil(cropsize // factor * dsp / Fraction(usp).limit_denominator(1000))
        if int(least * usp / dsp) * factor == cropsize:
            remedies.insert(0, f"cropz={least}")
    for down, resize in ((1, 1), (2, 1), (4, 1), (1, 2), (1, 4)):
        if (down, resize) != (downbranch, resizebranch) and slices * LATENT_STRIDE * resize == cropsize * down:
            remedies.append(f"downbranch={down} resizebranch={resize}")
    raise UserError(
        f"the output is not a cube: slices = int(cropz·usp/dsp) = int({s['cropz']}·{usp}/{dsp}) = {slices}; planes per slice = "
        f"8·resizebranch/downbranch = 8·{resizebranch}/{downbranch} = {factor}; {slices}·{factor} = {planes}, but cropsize = "
        f"{cropsize}. Try " + (" or ".join(remedies) or "cropz = cropsize·dsp/8")
    )


def _nearest_divisors(number: int, value: int) -> str:
    divisors = sorted((d for d in range(1, number + 1) if number % d == 0), key=lambda d: (abs(d - value), d))
    return ", ".join(str(d) for d in sorted(divisors[:3]))
