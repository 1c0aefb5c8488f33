"""What benchmarks/quality.py keeps of an evaluation, and the table of it."""

from __future__ import annotations

from typing import Any

COLUMNS = {  # title: key, format
    "steps": ("steps", "d"),
    "min": ("train_minutes", ".1f"),
    "PSNR dB": ("psnr_db", ".2f"),
    "SSIM XZ": ("ssim_xz", ".3f"),
    "FSC z .5": ("fsc_z_0.5", ".1f"),
    "FSC z .143": ("fsc_z_0.143", ".1f"),
    "power 1/16-1/8": ("power_z_1/16-1/8", ".2f"),
    "power 1/8-1/4": ("power_z_1/8-1/4", ".2f"),
}
NOTES = """PSNR over all voxels (8 bit: peak 255; else the truth's range), SSIM the mean over every fourth XZ plane, FSC z the
period in voxels down to which a volume agrees with the truth along z at that threshold (smaller is better), power along z over
the truth's by period. Minutes of training are processor time of one thread on the machine that quality.json names.
*Cubic + consistency* is stopped where the truth says that it is best.
"""


def numbers(volume: dict[str, Any]) -> dict[str, Any]:
    """What is kept of an evaluation."""
    limits = {f"fsc_z_{at}": volume["fsc"]["z"][f"at_{at}"]["period_voxels"] for at in (0.5, 0.143)}
    power = {f"power_z_{band}": value for band, value in volume["power_over_truth"]["z"].items()}
    projected = {f"consistency_{way}_db": found["psnr_db"] for way, found in volume["consistency"].items()}
    similar = {f"ssim_{planes}": volume["ssim"][planes] for planes in ("xz", "yz")}
    return {"psnr_db": volume["psnr_db"], **similar, **limits, **power, **projected}


def table(cells: dict[str, dict[str, Any]]) -> str:
    """Markdown, one table for each volume and degradation, the closest volume last.

    Args:
        cells: by "VOLUME DEGRADATION WAY MODEL BUDGET".
    """
    groups: dict[tuple[str, str], list[list[str]]] = {}
    for key, cell in sorted(cells.items(), key=lambda one: one[1]["psnr_db"]):
        name, how, way, rest = key.split(" ", 3)
        known = [format(cell[k], form) if cell.get(k) is not None else "-" for k, form in COLUMNS.values()]
        model, _, budget = rest.rpartition(" ")
        groups.setdefault((name, how), []).append([model, way, budget, *known])
    lines = ["# Quality beside the truth", "", "Made by `python benchmarks/quality.py`."]
    titles = ["model", "trained on", "budget", *COLUMNS]
    for (name, how), rows in sorted(groups.items()):
        lines += ["", f"## {name}, {how}", "", _line(titles), _line(["---"] * len(titles)), *map(_line, rows)]
    return "\n".join([*lines, "", NOTES])


def _line(words: list[str]) -> str:
    return f"| {' | '.join(words)} |"
