"""From the files to the report: open, measure, judge, draw, write."""

from __future__ import annotations

import json
import logging
import math
import tempfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from evaluation.comparison import Comparison, Request
from evaluation.figures import draw_fsc, draw_planes, draw_spectra
from evaluation.measure import measure
from evaluation.metrics import LPIPS_WEIGHTS, MS_SSIM_SIDE, lpips_weights
from evaluation.opening import open_comparison
from evaluation.report import render
from evaluation.verdict import verdict
from utils.errors import UserError
from utils.files import put_files

SCHEMA = "isoscopexx.evaluation/1"
OUTPUTS = ("metrics.json", "report.html", "planes.png", "fsc.png", "spectra.png")
FSC_CAPTION = (
    "Fourier shell correlation: how well detail of each size agrees with the truth (1 is identical, 0 unrelated). Further right "
    "is finer detail; a curve that stays high for longer is better. The two lines are the usual thresholds."
)
SPECTRA_CAPTION = (
    "Power spectra: how much detail of each size a volume holds, right or wrong. Where a truth is known a good restoration "
    "follows it; otherwise z should look like in-plane. Too little is blur; too much is noise, steps or invented texture."
)

log = logging.getLogger(__name__)


def evaluate(request: Request, output: Path, overwrite: bool = False) -> dict[str, Any]:
    """Evaluate and write ``metrics.json``, ``report.html`` and the figures into a folder.

    metrics.json (schema ``isoscopexx.evaluation/1``; null stands for "not defined" or, for a PSNR, for "identical"):
        ``version``, ``title``, ``files`` (path, shape, dtype, voxel size, translation by role),
        ``grid`` (shape, region and voxel size in µm of what was compared, z y x), ``alignment`` (how files were laid together),
        ``data_range`` (low, high, width, rule), ``sampling`` (which metrics saw which voxels), ``notes``, ``verdict``;
        ``volumes``: per name (reconstruction, nearest, linear, cubic, …, truth)
            ``psnr_db``, ``rmse`` (grey values), ``nrmse`` (RMSE over the truth's standard deviation), ``pearson``: all voxels;
            ``ssim`` (3d, xy, xz, yz), ``ms_ssim``, ``lpips`` (xy, xz, yz): mean over planes;
            ``fsc`` (whole, z, y, x): ``cycles_per_voxel``, ``correlation``, ``coefficients`` per shell; ``at_0.5`` and
            ``at_0.143``: ``cycles_per_voxel``, ``cycles_per_um``, ``period_voxels``, ``period_um`` (null: never below it);
            ``power`` (z, y, x): ``frequency`` in cycles per voxel, ``power``; ``power_over_truth`` (z, y, x) per octave;
            ``gradient_ratio_z_xy``; ``axial_power_db`` per octave and ``anisotropy_db``, their mean size;
            ``decorrelation`` (z, y, x): cut-off in the units of ``fsc``;
            ``consistency``: ``pick``, ``average`` or ``between`` with ``rmse``, ``psnr_db``, ``sections``.

    Args:
        request: what to compare.
        output: folder, made where missing.
        overwrite: replace an earlier evaluation in that folder.

    Returns:
        What metrics.json holds, with NaN and infinity for null.

    Raises:
        UserError: bad input, or output that exists.
    """
    refuse_outputs(output, OUTPUTS, overwrite)
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".evaluating-", dir=output) as name:
        folder = Path(name)
        comparison, document = numbers(request, folder)
        figures = _draw(comparison, document, request, folder)
        (folder / "metrics.json").write_text(json.dumps(plain(document), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        (folder / "report.html").write_text(render(document, figures), encoding="utf-8")
        put_files(folder, output, OUTPUTS)
    return document


def numbers(request: Request, folder: Path) -> tuple[Comparison, dict[str, Any]]:
    """What metrics.json holds, without writing it.

    Args:
        request: what to compare.
        folder: for temporary files; it must outlive the comparison.

    Returns:
        The opened volumes, from which figures can be drawn, and the document that evaluate() describes.
    """
    comparison = open_comparison(request, folder)
    return comparison, _document(comparison, measure(comparison, request), request)


def refuse_outputs(output: Path, names: Sequence[str], overwrite: bool) -> None:
    """Refuses a folder that holds earlier results of these names.

    Raises:
        UserError: it does, and they are not to be replaced; or it is a file.
    """
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file; name a folder")
    existing = [file for file in names if (output / file).exists()]
    if existing and not overwrite:
        raise UserError(f"{output} already holds {', '.join(existing)}; choose another --output or add --overwrite")


def _document(comparison: Comparison, measured: dict[str, Any], request: Request) -> dict[str, Any]:
    notes = list(comparison.notes)
    if comparison.truth is not None and lpips_weights() is None:
        notes.append(
            f"LPIPS was left out: weights not found: {LPIPS_WEIGHTS} (VGG-16 of torchvision, in torch.hub's checkpoints folder)."
        )
    judged = measured["volumes"]
    if any(value is None for numbers in judged.values() for value in numbers.get("ms_ssim", {}).values()):
        notes.append(f"MS-SSIM was left out where planes have sides below {MS_SSIM_SIDE} voxels: its five scales do not fit.")
    subject = request.reconstruction or request.truth
    assert subject is not None  # open_comparison refuses a request without either
    return {
        "schema": SCHEMA,
        "version": program_version(),
        "title": subject.name if request.reconstruction else f"the baselines of {subject.name}",
        "files": comparison.files,
        "grid": {
            "shape": list(comparison.shape),
            "region": [[part.start, part.stop] for part in comparison.region],
            "voxel_um": comparison.voxel_um,
        },
        "alignment": comparison.alignment,
        "notes": notes,
        "verdict": verdict(judged),
        **measured,
    }


def _draw(comparison: Comparison, document: dict[str, Any], request: Request, folder: Path) -> dict[str, tuple[Path, str]]:
    volumes = document["volumes"]
    shown = draw_planes(comparison, request.sample, folder / "planes.png")
    figures = {
        "planes": (
            folder / "planes.png",
            f"{shown}. z runs downwards in XZ and YZ; all grey panels share one scale.",
        )
    }
    if comparison.truth is not None:
        draw_fsc(volumes, folder / "fsc.png")
        figures["fsc"] = (folder / "fsc.png", FSC_CAPTION)
    draw_spectra(volumes, None if comparison.sections is None else comparison.sections.step, folder / "spectra.png")
    return figures | {"spectra": (folder / "spectra.png", SPECTRA_CAPTION)}


def program_version() -> str:
    """Of this program, for its records."""
    try:
        return version("isoscopexx")
    except PackageNotFoundError:
        return "(source tree, not installed)"


def plain(value: Any) -> Any:
    """The same with None for NaN and infinity, which JSON does not know."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
