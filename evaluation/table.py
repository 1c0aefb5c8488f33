"""The table of a report: one line per metric with a sentence on what it says, one column per volume."""

from __future__ import annotations

import html
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Numbers = dict[str, Any]
CLOSE, FINE, OWN = "How close is it to the truth?", "How fine is its true detail?", "Is it isotropic, and true to its input?"
NYQUIST = 0.5  # cycles per voxel


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        group: heading under which the line stands.
        label: name of the metric.
        value: the number of a volume; KeyError, TypeError or None where it has none.
        explanation: what it says, in a sentence.
        form: format of the number.
        best: ``high`` or ``low`` is marked; empty where no value is better in itself.
        ceiling: a value that stands for "this or more".
    """

    group: str
    label: str
    value: Callable[[Numbers], float | None]
    explanation: str
    form: str = "{:.3f}"
    best: str = "high"
    ceiling: float = math.inf


def _limit(direction: str, threshold: float) -> Callable[[Numbers], float | None]:
    def value(numbers: Numbers) -> float | None:
        found = numbers["fsc"][direction][f"at_{threshold}"]["cycles_per_voxel"]
        return NYQUIST if found is None else float(found)

    return value


def _fidelity_rows() -> tuple[Row, ...]:
    beside = "As XZ, seen from the other side."
    return (
        Row(
            CLOSE,
            "PSNR, dB",
            lambda n: n["psnr_db"],
            "Voxel-wise error against the data range; 1 dB more is 11 % less error. It rewards caution: a blurred guess beats "
            "sharp detail that is slightly misplaced.",
            "{:.2f}",
        ),
        Row(
            CLOSE,
            "NRMSE",
            lambda n: n["nrmse"],
            "Root-mean-square error as a share of the truth's standard deviation; 1 is as bad as a uniform grey.",
            best="low",
        ),
        Row(
            CLOSE,
            "SSIM, 3-D",
            lambda n: n["ssim"]["3d"],
            "Similarity of local brightness, contrast and pattern; 1 is identical.",
        ),
        Row(CLOSE, "SSIM, XY planes", lambda n: n["ssim"]["xy"], "The same on planes without z, which the microscope resolved."),
        Row(
            CLOSE,
            "SSIM, XZ planes",
            lambda n: n["ssim"]["xz"],
            "The same on planes that contain z: here a restoration has to prove itself.",
        ),
        Row(CLOSE, "SSIM, YZ planes", lambda n: n["ssim"]["yz"], beside),
        Row(
            CLOSE,
            "MS-SSIM, XZ planes",
            lambda n: n["ms_ssim"]["xz"],
            "Structural similarity at five scales; less sensitive to the finest texture.",
        ),
        Row(CLOSE, "MS-SSIM, YZ planes", lambda n: n["ms_ssim"]["yz"], beside),
        Row(
            CLOSE,
            "LPIPS, XZ planes",
            lambda n: n["lpips"]["xz"],
            "Difference as a neural network sees it; 0 is identical. It rewards natural texture, right or wrong.",
            best="low",
        ),
        Row(CLOSE, "LPIPS, YZ planes", lambda n: n["lpips"]["yz"], beside, best="low"),
    )


def _detail_rows() -> tuple[Row, ...]:
    return (
        Row(
            FINE,
            "Resolution along z, FSC 0.143",
            _limit("z", 0.143),
            "Frequency, in cycles per voxel, up to which detail along z correlates with the truth.",
            ceiling=NYQUIST,
        ),
        Row(
            FINE,
            "Resolution along z, FSC 0.5",
            _limit("z", 0.5),
            "The same with the stricter threshold: signal and error are equally strong.",
            ceiling=NYQUIST,
        ),
        Row(
            FINE,
            "Resolution along z, µm",
            lambda n: n["fsc"]["z"]["at_0.143"]["period_um"],
            "The finest period along z at FSC 0.143, in µm.",
            "{:.3g}",
            "low",
        ),
        Row(
            FINE,
            "Resolution in all directions, FSC 0.143",
            _limit("whole", 0.143),
            "As along z, for all directions together.",
            ceiling=NYQUIST,
        ),
        Row(
            FINE,
            "Axial power, periods of 8–16 voxels",
            lambda n: n["power_over_truth"]["z"]["1/16-1/8"],
            "Detail of that size along z as a share of the truth's, right or wrong: steps and noise count too, so nothing is "
            "marked.",
            "{:.2f}",
            "",
        ),
        Row(
            FINE,
            "Axial power, periods of 4–8 voxels",
            lambda n: n["power_over_truth"]["z"]["1/8-1/4"],
            "The same for finer detail.",
            "{:.2f}",
            "",
        ),
    )


def _consistency(way: str) -> Callable[[Numbers], float | None]:
    return lambda numbers: float(numbers["consistency"][way]["psnr_db"])


def _own_rows() -> tuple[Row, ...]:
    in_plane = "The same in-plane."
    return (
        Row(
            OWN,
            "Gradient z / xy",
            lambda n: n["gradient_ratio_z_xy"],
            "Strength of grey-value changes along z over those in-plane; steps between repeated sections raise it, blur lowers "
            "it. About 1 in an isotropic volume, or the truth's value.",
            "{:.2f}",
            "",
        ),
        Row(
            OWN,
            "Spectral anisotropy, dB",
            lambda n: n["anisotropy_db"],
            "How far the power spectra along z and in-plane lie apart on average; 0 is isotropic.",
            "{:.1f}",
            "",
        ),
        Row(
            OWN,
            "Finest period along z, voxels",
            lambda n: n["decorrelation"]["z"]["period_voxels"],
            "Estimated from the volume alone (decorrelation analysis); steps, noise and invented detail count.",
            "{:.1f}",
            "",
        ),
        Row(OWN, "Finest period along y, voxels", lambda n: n["decorrelation"]["y"]["period_voxels"], in_plane, "{:.1f}", ""),
        Row(OWN, "Finest period along x, voxels", lambda n: n["decorrelation"]["x"]["period_voxels"], in_plane, "{:.1f}", ""),
        Row(
            OWN,
            "Input reproduced by picking, PSNR dB",
            _consistency("pick"),
            "The volume's planes at the input's positions against the input; ∞ is exact, as interpolation is by construction.",
            "{:.1f}",
            "",
        ),
        Row(
            OWN,
            "Input reproduced by averaging, PSNR dB",
            _consistency("average"),
            "The volume averaged into sections against the input; ∞ is exact.",
            "{:.1f}",
            "",
        ),
        Row(
            OWN,
            "Input reproduced between planes, PSNR dB",
            _consistency("between"),
            "The volume at the input's positions, linearly between planes, against the input.",
            "{:.1f}",
            "",
        ),
    )


def _value(row: Row, numbers: Numbers) -> float | None:
    try:
        value = row.value(numbers)
    except (KeyError, TypeError):  # a metric that this volume does not have
        return None
    return None if value is None or math.isnan(value) else value


def _text(row: Row, value: float | None) -> str:
    if value is None:
        return "–"
    if math.isinf(value):
        return "∞"
    return ("≥ " if value >= row.ceiling else "") + row.form.format(value)


def _best(row: Row, values: dict[str, float | None]) -> set[str]:
    """Names of the volumes to mark; ties at the precision shown are all marked."""
    known = {name: value for name, value in values.items() if value is not None and name != "truth"}
    if not row.best or len(known) < 2:
        return set()
    top = (max if row.best == "high" else min)(known.values())
    return {name for name, value in known.items() if _text(row, value) == _text(row, top)}


def render_table(volumes: dict[str, Numbers]) -> str:
    """The table as HTML; lines that no volume has a value for are left out.

    Args:
        volumes: numbers per volume, as measure() returns them.
    """
    own = {name: " own" if name == "reconstruction" else "" for name in volumes}
    head = "".join(f'<th class="number{own[name]}">{html.escape(name)}</th>' for name in volumes)
    lines, group = [], ""
    for row in _fidelity_rows() + _detail_rows() + _own_rows():
        values = {name: _value(row, volumes[name]) for name in volumes}
        if all(value is None for value in values.values()):
            continue
        if row.group != group:
            group = row.group
            lines.append(f'<tr class="group"><th colspan="{len(volumes) + 1}">{group}</th></tr>')
        best = _best(row, values)
        cells = "".join(
            f'<td class="number{own[name]}{" best" if name in best else ""}">{_text(row, value)}</td>'
            for name, value in values.items()
        )
        lines.append(f"<tr><td>{row.label}<span class=muted>{row.explanation}</span></td>{cells}</tr>")
    return (
        f'<div class="scroll"><table><thead><tr><th>Metric</th>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    )
