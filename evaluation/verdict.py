"""What the numbers mean, in plain words."""

from __future__ import annotations

import math
from typing import Any

FIDELITY_DB, STRUCTURE, RESOLUTION, ISOTROPY_DB = 0.1, 0.005, 1.03, 0.5  # differences below these count as a tie
INVENTED, TRUSTED = 0.3, 0.143  # more of the truth's power than that, with less correlation than this, is invented detail
NYQUIST = 0.5


def _mean(*values: float | None) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return sum(known) / len(known) if known else None


def axial_ssim(numbers: dict[str, Any]) -> float | None:
    """Mean SSIM of the planes that contain z."""
    return _mean(numbers["ssim"]["xz"], numbers["ssim"]["yz"])


def axial_limit(numbers: dict[str, Any], threshold: float = 0.143) -> float:
    """Cycles per voxel up to which the volume agrees with the truth along z; 0.5 if it always does."""
    value = numbers["fsc"]["z"][f"at_{threshold}"]["cycles_per_voxel"]
    return NYQUIST if value is None else float(value)


def band_correlation(numbers: dict[str, Any], band: str) -> float | None:
    """Mean Fourier shell correlation along z within an octave such as ``1/8-1/4``."""
    low, high = (1 / float(edge.split("/")[1]) for edge in band.split("-"))
    curve = numbers["fsc"]["z"]
    pairs = zip(curve["cycles_per_voxel"], curve["correlation"], strict=True)
    return _mean(*(value for frequency, value in pairs if low < frequency <= high))


def best_baseline(volumes: dict[str, Any]) -> str | None:
    """The interpolation with the highest PSNR."""
    names = [name for name in volumes if name not in ("reconstruction", "truth")]
    return max(names, key=lambda name: volumes[name].get("psnr_db", -math.inf), default=None)


def verdict(volumes: dict[str, Any]) -> dict[str, Any]:
    """Headline and sentences on a measured comparison.

    Args:
        volumes: numbers per volume, as measure() returns them.

    Returns:
        ``headline`` and ``sentences``.
    """
    if "truth" not in volumes:
        return _alone(volumes)
    best = best_baseline(volumes)
    if "reconstruction" not in volumes:
        numbers = volumes[best] if best else {}
        return {
            "headline": "The bar to pass",
            "sentences": [
                f"No reconstruction was given. The best interpolation is {best}, with a PSNR of {numbers['psnr_db']:.2f} dB "
                f"and an SSIM of {axial_ssim(numbers) or math.nan:.3f} on the planes that contain z.",
                f"Along z it agrees with the truth down to {_period(axial_limit(numbers), numbers)}.",
            ],
        }
    return _against_truth(volumes, best)


def _against_truth(volumes: dict[str, Any], best: str | None) -> dict[str, Any]:
    own = volumes["reconstruction"]
    sentences = []
    headline = "Compared with the truth only: no input, so no interpolation to beat"
    if best is not None:
        other = volumes[best]
        fidelity = own["psnr_db"] - other["psnr_db"]
        reach = axial_limit(own)
        others = max(axial_limit(numbers) for name, numbers in volumes.items() if name not in ("reconstruction", "truth"))
        headline = _headline(_sign(fidelity, FIDELITY_DB), _sign(math.log(reach / others), math.log(RESOLUTION)))
        sentences.append(
            f"Voxel by voxel it is {abs(fidelity):.2f} dB {'closer to' if fidelity >= 0 else 'further from'} the truth than "
            f"{best}, the best interpolation ({own['psnr_db']:.2f} against {other['psnr_db']:.2f} dB)."
        )
        sentences += _structure(axial_ssim(own), axial_ssim(other), best)
        sentences.append(
            f"Along z it agrees with the truth down to {_period(reach, own)}, the best interpolation down to "
            f"{_period(others, own)} (Fourier shell correlation 0.143; shorter is finer)."
        )
    sentences += _texture(own, volumes[best] if best else None, best)
    return {"headline": headline, "sentences": sentences + _projection(own)}


def _structure(ours: float | None, theirs: float | None, best: str) -> list[str]:
    if ours is None or theirs is None:
        return []
    word = {
        1: "more similar to the truth's than",
        0: "about as similar to the truth's as",
        -1: "less similar to the truth's than",
    }
    return [
        f"On the planes that contain z, local structure is {word[_sign(ours - theirs, STRUCTURE)]} with {best} "
        f"(SSIM {ours:.3f} against {theirs:.3f})."
    ]


def _sign(difference: float, tie: float) -> int:
    return 0 if abs(difference) < tie else int(math.copysign(1, difference))


def _headline(fidelity: int, resolution: int) -> str:
    if fidelity >= 0 and resolution >= 0:
        return "Better than interpolation" if fidelity + resolution else "As good as interpolation, not better"
    if fidelity < 0 and resolution > 0:
        return "Finer true detail along z than interpolation, at the price of larger voxel-wise errors"
    if fidelity > 0:
        return "Closer voxel by voxel than interpolation, but with less true detail along z"
    return "Not better than interpolation"


def _period(frequency: float, numbers: dict[str, Any]) -> str:
    if frequency >= NYQUIST:
        return "the voxel grid itself"
    text = f"periods of {1 / frequency:.1f} voxels"
    known = numbers["fsc"]["z"]["at_0.143"]
    if known["cycles_per_um"]:
        scale = known["cycles_per_um"] / known["cycles_per_voxel"]
        text += f" ({1 / (frequency * scale):.3g} µm)"
    return text


def _texture(own: dict[str, Any], other: dict[str, Any] | None, best: str | None) -> list[str]:
    sentences = []
    for band in ("1/16-1/8", "1/8-1/4"):
        power, agreement = own["power_over_truth"]["z"].get(band), band_correlation(own, band)
        if power is None or agreement is None:
            continue
        long, short = (edge.split("/")[1] for edge in band.split("-"))
        compared = ""
        if other is not None and band in other["power_over_truth"]["z"]:
            compared = f" ({best}: {other['power_over_truth']['z'][band]:.0%})"
        text = f"In detail with periods of {short} to {long} voxels along z it holds {power:.0%} of the truth's power{compared}"
        if power > INVENTED and agreement < TRUSTED:
            text += f", but correlates with the truth by only {agreement:.2f} there: treat detail of that size as invented"
        else:
            text += f" and correlates with the truth by {agreement:.2f} there"
        sentences.append(text + ".")
    return sentences


PROJECTED = {
    "pick": "Read at the input's sections",
    "average": "Averaged over the input's sections",
    "between": "Read between planes, at the input's sections",
}


def _projection(own: dict[str, Any]) -> list[str]:
    sentences = []
    for way, value in own.get("consistency", {}).items():
        exact = not math.isfinite(value["psnr_db"])
        closeness = "exactly" if exact else f"with a PSNR of {value['psnr_db']:.1f} dB"
        sentences.append(f"{PROJECTED[way]}, it reproduces the measured input {closeness}.")
    return sentences


def _alone(volumes: dict[str, Any]) -> dict[str, Any]:
    own = volumes["reconstruction"]
    sentences = [
        "Without a truth these numbers tell whether the volume is isotropic and true to its input, not whether detail is real."
    ]
    headline = "No truth: isotropy and consistency only"
    period = {axis: own["decorrelation"][axis]["period_voxels"] for axis in "zyx"}
    lateral = _mean(period["y"], period["x"])
    if period["z"] is not None and lateral is not None:
        sentences.append(
            f"By decorrelation the finest structures have periods of {period['z']:.1f} voxels along z and {lateral:.1f} in-plane."
        )
    tilt = own["anisotropy_db"]
    if tilt is not None:
        sentences.append(f"Power along z and in-plane differ by {tilt:.1f} dB on average (0 is isotropic).")
    others = {name: numbers["anisotropy_db"] for name, numbers in volumes.items() if name != "reconstruction"}
    known = {name: value for name, value in others.items() if value is not None}
    if tilt is not None and known:
        sentences.append("For comparison: " + ", ".join(f"{name} {value:.1f} dB" for name, value in known.items()) + ".")
        other = "its input" if "input" in known else "interpolation"
        word = {1: "more", 0: "about as", -1: "less"}[_sign(min(known.values()) - tilt, ISOTROPY_DB)]
        headline = f"No truth: {word} isotropic {'as' if word == 'about as' else 'than'} {other}"
    return {"headline": headline, "sentences": sentences + _projection(own)}
