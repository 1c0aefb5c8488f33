"""What an evaluation leaves: the numbers in plain words, JSON, and a report of one HTML file by the template report.html."""

import base64
import math
from functools import partial
from pathlib import Path
from typing import Any

from utils.pages import page
from utils.units import as_length

FIDELITY_DB, STRUCTURE, ISOTROPY_DB = 0.1, 0.005, 0.5  # differences below these count as a tie
ERRORS = 2  # standard errors, of a difference of resolutions that is significant
INVENTED, TRUSTED = 0.3, 0.143  # more of the truth's power than that, with less correlation than this, is invented detail
ALIKE = 0.1  # relative difference of lengths that are called equal
RING = 0.03  # correlation lower than that in-plane by more than this is a ring
NYQUIST = 0.5  # cycles per voxel
STEPS = {"nearest": ", whose steps pass for detail"}  # so that it is no rival in isotropy
PROJECTED = {
    "pick": "Read at the input's sections",
    "average": "Averaged over the input's sections",
    "between": "Read between planes, at the input's sections",
}

Numbers = dict[str, Any]  # of one volume, as in metrics.json


def plain(value: Any) -> Any:
    """The same with None for NaN and infinity, which JSON does not know."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def slice_text(part: slice) -> str:
    """``a:b:s`` as on the command line."""
    return ":".join("" if number is None else str(number) for number in (part.start, part.stop, part.step))


def render(document: dict[str, Any], figures: dict[str, Path]) -> str:
    """The report as HTML, by what metrics.json holds (NaN and infinity for null) and the PNG files of its figures.

    Whatever stems from files and users is escaped.
    """
    return page(
        Path(__file__).with_name("report.html"),
        document=document,
        figures={name: base64.b64encode(path.read_bytes()).decode() for name, path in figures.items()},
        cells_of=partial(table_line, document["volumes"]),
        nyquist=NYQUIST,
        times=lambda sides: "×".join(f"{side:g}" for side in sides),
    )


def table_line(volumes: dict[str, Any], key: str, form: str, best: str, bound: float | None) -> list[dict[str, Any]]:
    """One line of the table, a cell for each volume.

    Args:
        volumes: numbers per volume.
        key: where the number stands in those of a volume, names separated by spaces.
        form: format of the number.
        best: ``high`` or ``low`` is marked, and what reads the same; empty where no value is better in itself. The truth competes
            with nobody.
        bound: the best value that can be told, which also stands for a limit that was never reached (None in metrics.json).

    Returns:
        ``name`` of the volume, ``text`` and whether it is the ``best``; empty if no volume has such a number.
    """
    known: dict[str, float] = {}
    for name, numbers in volumes.items():
        value: Any = numbers
        for part in key.split():  # NaN: a metric that this volume does not have
            value = value.get(part, math.nan) if isinstance(value, dict) else math.nan
        value = bound if value is None else value
        if value is not None and not math.isnan(value):
            known[name] = float(value)
    if not known:
        return []
    texts = dict.fromkeys(volumes, "–")
    for name, value in known.items():
        reached = bound is not None and (value <= bound if best == "low" else value >= bound)
        texts[name] = "∞" if math.isinf(value) else ("≤ " if best == "low" else "≥ ") * reached + form.format(value)
    rivals = [name for name in known if name != "truth"]
    marked = None
    if best and len(rivals) > 1:
        marked = texts[(max if best == "high" else min)(rivals, key=known.__getitem__)]
    return [{"name": name, "text": text, "best": name in rivals and text == marked} for name, text in texts.items()]


def verdict(volumes: dict[str, Numbers], step: float | None = None) -> dict[str, Any]:
    """``headline`` and ``sentences`` on a measured comparison, the numbers of every volume as in metrics.json.

    ``step`` is the distance of two sections of the input in planes, where it is known.
    """
    baselines = {name: numbers for name, numbers in volumes.items() if name not in ("reconstruction", "truth")}
    if "truth" not in volumes:
        headline, sentences = _without_truth(volumes["reconstruction"], baselines)
        sentences += unsupported(volumes["reconstruction"], step)
    elif "reconstruction" in volumes:
        headline, sentences = _against_truth(volumes["reconstruction"], baselines)
    else:
        best = max(baselines, key=lambda name: baselines[name]["psnr_db"])
        numbers = baselines[best]
        headline = "The bar to pass"
        sentences = [
            f"No reconstruction was given. The best interpolation is {best}, with a PSNR of {numbers['psnr_db']:.2f} dB "
            f"and an SSIM of {axial_ssim(numbers) or math.nan:.3f} on the planes that contain z.",
            f"Along z it agrees with the truth down to {_period(axial_limit(numbers), numbers)}.",
        ]
    for way, value in volumes.get("reconstruction", {}).get("consistency", {}).items():
        exact = not math.isfinite(value["psnr_db"])
        closeness = "exactly" if exact else f"with a PSNR of {value['psnr_db']:.1f} dB ({value['data_range']:g} grey values)"
        blurred = "Blurred again along z by the profile of its run and " if "profile_taps" in value else ""
        how = blurred + PROJECTED[way][0].lower() + PROJECTED[way][1:] if blurred else PROJECTED[way]
        sentences.append(f"{how}, it reproduces the measured input {closeness}.")
    return {"headline": headline, "sentences": sentences}


def axial_ssim(numbers: Numbers) -> float | None:
    """Mean SSIM of the planes that contain z."""
    return _mean(numbers["ssim"]["xz"], numbers["ssim"]["yz"])


def axial_limit(numbers: Numbers, threshold: str = "at_0.143") -> float:
    """Cycles per voxel up to which the volume agrees with the truth along z; 0.5 if it always does."""
    value = numbers["fsc"]["z"][threshold]["cycles_per_voxel"]
    return NYQUIST if value is None else float(value)


def finer(own: Numbers, baselines: dict[str, Numbers]) -> tuple[int, str]:
    """Whether true detail along z is finer (1) than any baseline's, coarser (-1), or neither; and a sentence with the figures.

    Both hold beyond ERRORS standard errors of the difference at a correlation of 0.143; finer only where the crossing of 0.5 is
    not below the best baseline's.
    """
    best = max(baselines.values(), key=axial_limit)
    reach, other = axial_limit(own), axial_limit(best)
    error = math.hypot(*(numbers["fsc"]["z"]["at_0.143"]["standard_error"] for numbers in (own, best)))
    sign = 0 if abs(reach - other) <= ERRORS * error else _sign(reach - other, 0)
    text = (
        f"Along z it agrees with the truth down to {_period(reach, own)}, the best interpolation down to {_period(other, best)} "
        "(Fourier shell correlation 0.143; shorter is finer)"
    )
    if not sign:
        return 0, f"{text}: no difference beyond {ERRORS} standard errors."
    strict, others = axial_limit(own, "at_0.5"), max(axial_limit(numbers, "at_0.5") for numbers in baselines.values())
    if sign > 0 and strict < others:
        periods = f"{1 / strict:.1f} against {1 / others:.1f} voxels"
        return 0, f"{text}, but it falls below 0.5 earlier ({periods}), so that its true detail is not called finer."
    return sign, f"{text}."


def _against_truth(own: Numbers, baselines: dict[str, Numbers]) -> tuple[str, list[str]]:
    if not baselines:
        return "Compared with the truth only: no input, so no interpolation to beat", _texture(own, "", {})
    best = max(baselines, key=lambda name: baselines[name]["psnr_db"])
    other = baselines[best]
    fidelity = own["psnr_db"] - other["psnr_db"]
    sentences = [
        f"Voxel by voxel it is {abs(fidelity):.2f} dB {'closer to' if fidelity >= 0 else 'further from'} the truth than "
        f"{best}, the best interpolation ({own['psnr_db']:.2f} against {other['psnr_db']:.2f} dB)."
    ]
    ours, theirs = axial_ssim(own), axial_ssim(other)
    if ours is not None and theirs is not None:
        word = {
            1: "more similar to the truth's than",
            0: "about as similar to the truth's as",
            -1: "less similar to the truth's than",
        }
        sentences.append(
            f"On the planes that contain z, local structure is {word[_sign(ours - theirs, STRUCTURE)]} with {best} "
            f"(SSIM {ours:.3f} against {theirs:.3f})."
        )
    detail, sentence = finer(own, baselines)
    sentences.append(sentence)
    closer = _sign(fidelity, FIDELITY_DB)
    headline = "Not better than interpolation"
    if closer >= 0 and detail >= 0:
        headline = "Better than interpolation" if closer + detail else "As good as interpolation, not better"
    elif detail > 0:
        headline = "Finer true detail along z than interpolation, at the price of larger voxel-wise errors"
    elif closer > 0:
        headline = "Closer voxel by voxel than interpolation, but with less true detail along z"
    return headline, sentences + _texture(own, best, other["power_over_truth"]["z"])


def _texture(own: Numbers, best: str, powers: dict[str, float]) -> list[str]:
    """How much detail of two octaves it holds along z, and whether that is the truth's; ``powers`` are the best baseline's."""
    sentences = []
    curve = own["fsc"]["z"]
    for band in ("1/16-1/8", "1/8-1/4", "1/4-1/2"):
        long, short = (int(edge.split("/")[1]) for edge in band.split("-"))
        pairs = zip(curve["cycles_per_voxel"], curve["correlation"], strict=True)
        agreement = _mean(*(value for frequency, value in pairs if 1 / long < frequency <= 1 / short))
        power = own["power_over_truth"]["z"].get(band)
        if power is None or agreement is None:
            continue
        compared = f" ({best}: {powers[band]:.0%})" if band in powers else ""
        made_up = power > INVENTED and agreement < TRUSTED
        if band == "1/4-1/2" and not made_up:
            continue  # the finest octave is mostly noise, and worth a word only where a restoration fills it
        text = f"In detail with periods of {short} to {long} voxels along z it holds {power:.0%} of the truth's power{compared}"
        if made_up:
            text += f", but correlates with the truth by only {agreement:.2f} there: treat detail of that size as invented"
        else:
            text += f" and correlates with the truth by {agreement:.2f} there"
        sentences.append(text + ".")
    return sentences


def unsupported(own: Numbers, step: float | None) -> list[str]:
    """Octaves along z that hold power although the input, sampled every ``step`` planes, cannot vouch for them."""
    if step is None or step <= 1:
        return []
    held = []
    for band, excess in own["axial_power_db"].items():
        long, short = (int(edge.split("/")[1]) for edge in band.split("-"))
        share = 10 ** (excess / 10)
        if long <= 2 * step and share > INVENTED:
            held.append(f"{short} to {long} voxels ({share:.0%})")
    if not held:
        return []
    return [
        f"Sections {step:g} planes apart tell nothing of periods below {2 * step:g} voxels, yet along z it holds much of "
        f"the power in-plane at {', '.join(held)}: consistency does not support detail of that size, and it may be invented."
    ]


def _without_truth(own: Numbers, baselines: dict[str, Numbers]) -> tuple[str, list[str]]:
    headline = "No truth: isotropy and consistency only"
    sentences = [
        "Without a truth these numbers tell whether the volume is isotropic and true to its input, not whether detail is real."
    ]
    period = {axis: own["decorrelation"][axis]["period_voxels"] for axis in "zyx"}
    lateral = _mean(period["y"], period["x"])
    if period["z"] is not None and lateral is not None:
        sentences.append(
            f"By decorrelation the finest structures have periods of {period['z']:.1f} voxels along z and {lateral:.1f} in-plane."
        )
    tilt = own["anisotropy_db"]
    known = {name: n["anisotropy_db"] for name, n in baselines.items() if n["anisotropy_db"] is not None}
    if tilt is not None:
        others = "".join(f"; {name} {value:.1f} dB{STEPS.get(name, '')}" for name, value in known.items())
        sentences.append(f"Power along z and in-plane differ by {tilt:.1f} dB on average (0 is isotropic{others}).")
    sentences += _shape_of_detail(own["detail"])
    rivals = [value for name, value in known.items() if name not in STEPS]
    if tilt is not None and rivals:
        word = {1: "more isotropic than", 0: "about as isotropic as", -1: "less isotropic than"}
        headline = (
            f"No truth: {word[_sign(min(rivals) - tilt, ISOTROPY_DB)]} {'its input' if 'input' in known else 'interpolation'}"
        )
    return headline, sentences


def _shape_of_detail(detail: Numbers) -> list[str]:
    """Whether detail is as long along z as in-plane, and where a profile was undone, whether it was a wrong one."""
    sentences, z, lateral = [], detail["z"]["half_width"], _mean(detail["y"]["half_width"], detail["x"]["half_width"])
    if z is not None and lateral is not None:
        ratio = z / lateral
        word = "as long" if abs(ratio - 1) <= ALIKE else f"{ratio:.2f} times as long"
        sentences.append(f"Detail is {word} along z as in-plane (half-width {z:.2f} against {lateral:.2f} voxels).")
        if detail["profile_undone"] and ratio < 1 - ALIKE:
            sentences.append("The profile along z that was undone is too wide.")
    across = min(detail["y"]["lobe"], detail["x"]["lobe"])
    if detail["profile_undone"] and detail["z"]["lobe"] < across - RING:
        sentences.append(
            f"Dark rings lie before and behind bright detail (correlation {detail['z']['lobe']:.2f} along z, {across:.2f} "
            "in-plane): the profile along z that was undone is not the real one."
        )
    return sentences


def _period(frequency: float, numbers: Numbers) -> str:
    if frequency >= NYQUIST:
        return "the voxel grid itself"
    known = numbers["fsc"]["z"]["at_0.143"]
    text = f"periods of {1 / frequency:.1f} ± {known['standard_error'] / frequency**2:.1f} voxels"
    if known["cycles_per_um"]:
        scale = known["cycles_per_um"] / known["cycles_per_voxel"]
        text += f" ({as_length(1 / (frequency * scale))})"
    return text


def _mean(*values: float | None) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return sum(known) / len(known) if known else None


def _sign(difference: float, tie: float) -> int:
    return 0 if abs(difference) < tie else int(math.copysign(1, difference))
