"""A restored volume, or interpolation alone, measured: one pass over all voxels, the numbers, the report."""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from evaluation import metrics
from evaluation.figures import draw_figures
from evaluation.grid import Comparison, Request, open_comparison
from evaluation.metrics import choose_range
from evaluation.record import grey_width
from evaluation.report import plain, render, slice_text, verdict
from evaluation.spectra import CONE_DEGREES, FourierShells, Spectra, detail_shape
from evaluation.sweep import REFERENCE, sweep
from experiment.runs import program_version
from utils.boxes import Box, extent
from utils.errors import UserError, is_full
from utils.files import MAKE_ROOM, put_files, refuse_overlap, write_json, write_text

SCHEMA = "isoscopexx.evaluation/1"
OUTPUTS = ("metrics.json", "report.html", "planes.png", "fsc.png", "spectra.png")


def evaluate(
    request: Request, output: Path, overwrite: bool = False, earlier: dict[Any, dict[str, Any]] | None = None
) -> dict[str, Any]:
    """Evaluate and write ``metrics.json`` (docs/metrics.md), ``report.html`` and the figures into a folder.

    Args:
        request: what is evaluated.
        output: the folder.
        overwrite: replace earlier results in it.
        earlier: what was measured of interpolations before, for requests that differ in the reconstruction alone; it grows.

    Returns:
        What metrics.json holds, with NaN and infinity for null.

    Raises:
        UserError: bad input, or results in that folder that are not to be overwritten.
    """
    with results(output, OUTPUTS, overwrite, (request.reconstruction, request.truth, request.input)) as folder:
        document, comparison, boxes = numbers(request, folder, earlier)
        figures = draw_figures(comparison, document["volumes"], boxes, folder)
        write_json(folder / "metrics.json", plain(document))
        write_text(folder / "report.html", render(document, figures))
    return document


@contextmanager
def results(output: Path, names: Sequence[str], overwrite: bool, inputs: Iterable[Path | None]) -> Iterator[Path]:
    """A scratch folder; the files of these names in it become the results in the folder ``output`` when the block ends.

    A UserError, before anything is done: a file, earlier results that are not to be replaced, or an input among them.
    """
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file; name a folder")
    existing = [file for file in names if (output / file).exists()]
    if existing and not overwrite:
        raise UserError(f"{output} already holds {', '.join(existing)}; choose another --output or add --overwrite")
    refuse_overlap([output / name for name in names], [path for path in inputs if path])
    output.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".measuring-", dir=output) as scratch:
            yield Path(scratch)
            put_files(Path(scratch), output, names)
    except OSError as error:
        if not is_full(error):
            raise
        raise UserError(f"{output}: the disc is full; {MAKE_ROOM}") from error
    finally:
        if not any(output.iterdir()):  # nothing came of it
            output.rmdir()


def numbers(
    request: Request, folder: Path, earlier: dict[Any, dict[str, Any]] | None = None
) -> tuple[dict[str, Any], Comparison, dict[str, NDArray[np.float32]]]:
    """The document that evaluate() describes, and for figures the opened volumes and the central box of each of them.

    The folder, for temporary files, must outlive the comparison.

    Raises:
        UserError: bad input: files that do not go together, NaN, infinite values, a volume that holds one value only.
    """
    comparison = open_comparison(request, folder)
    places = {name: place for name, place in comparison.alignment.items() if name not in ("grid", "reconstruction")}
    earlier = {} if earlier is None else earlier
    alike = repr((comparison.region, comparison.voxel_um, comparison.dtype, comparison.taps, places))
    interpolated = earlier.setdefault(alike, {})
    box, swept = sweep(comparison, request.sample, folder, interpolated)
    interpolated |= {name: volume for name, volume in swept.items() if name not in ("reconstruction", REFERENCE)}
    judged = swept.get(REFERENCE) or next(iter(swept.values()))
    scope = choose_range(request.data_range, comparison.dtype, judged.name, judged.moments.low, judged.moments.high)
    restored = comparison.candidates.get("reconstruction")
    known = None  # the range that infer.py refers its consistency to
    if restored is not None and request.data_range == "auto":
        known = grey_width(restored.sections.source, request.channel or 0)
    shells = FourierShells(extent(box), comparison.spacing)
    if REFERENCE in swept and shells.fewest < 2:
        sides = " x ".join(f"{side:.4g}" for side in comparison.spacing)
        raise UserError(
            f"sides of voxels (z, y, x) are as {sides}: {extent(box)} of them show no detail along all axes, which is compared; "
            "correct the voxel size, or compare a larger part"
        )
    truth = Spectra(swept[REFERENCE].box, shells, comparison.voxel_um) if REFERENCE in swept else None
    network = None if truth is None else _perceptual_network(comparison.notes)
    volumes: dict[str, Any] = {}
    measured = earlier.setdefault((alike, scope, known), {})
    for name, volume in tqdm(swept.items(), desc="similarity and spectra", leave=False):
        if name in measured:
            volumes[name] = measured[name]
            continue
        own = truth if name == REFERENCE and truth is not None else Spectra(volume.box, shells, comparison.voxel_um)
        result = {"gradient_ratio_z_xy": volume.moments.gradient_ratio(comparison.spacing)} | own.numbers()
        if truth is not None and name != REFERENCE:
            precise = np.float32 if comparison.dtype == np.uint8 else np.float64
            pair = volume.box.astype(precise), truth.voxels.astype(precise)
            result |= volume.moments.fidelity(swept[REFERENCE].moments, scope.width)
            result["ssim"] = metrics.ssim(*pair, scope.width, request.planes)
            result["ms_ssim"] = metrics.ms_ssim(*pair, scope.width, request.planes)
            result["lpips"] = None if network is None else metrics.lpips(own.voxels, truth.voxels, scope, network)
            result |= own.against(truth)
        if truth is None and name == "reconstruction":
            result["detail"] = {"profile_undone": len(comparison.taps) > 1, **detail_shape(volume.box, comparison.spacing)}
        if volume.consistency is not None:
            result["consistency"] = volume.consistency.result(known or scope.width)
        volumes[name] = result
    measured |= {name: volumes[name] for name in interpolated}
    if any(value is None for result in volumes.values() for value in result.get("ms_ssim", {}).values()):
        comparison.notes.append(
            f"MS-SSIM was left out where planes have sides below {metrics.MS_SSIM_SIDE} voxels: its five scales do not fit."
        )
    subject = request.reconstruction or request.truth
    assert subject is not None  # a request without either was refused
    document = {
        "schema": SCHEMA,
        "version": program_version(),
        "title": subject.name if request.reconstruction else f"the baselines of {subject.name}",
        "files": comparison.files,
        "grid": {
            "shape": list(extent(comparison.region)),
            "region": [[part.start, part.stop] for part in comparison.region],
            "voxel_um": comparison.voxel_um,
        },
        "alignment": comparison.alignment,
        "notes": comparison.notes,
        "verdict": verdict(volumes, None if comparison.sections is None else comparison.sections.step),
        "data_range": {"low": scope.low, "high": scope.high, "width": scope.width, "rule": scope.rule},
        "sampling": _sampling(comparison, request, box),
        "volumes": volumes,
    }
    return document, comparison, {name: volume.box for name, volume in swept.items()}


def _perceptual_network(notes: list[str]) -> Any:
    """What computes LPIPS; None, and a note, without the weights that it needs."""
    from taming.lpips import PerceptualLoss, examine_weights  # torch takes seconds

    path, problem = examine_weights()
    if not problem:
        return PerceptualLoss()
    reason = f"the weights {path} {problem}" if path.is_file() else f"weights not found: {path.name}"
    notes.append(f"LPIPS was left out: {reason} (VGG-16 of torchvision, in torch.hub's checkpoints folder).")
    return None


def _sampling(comparison: Comparison, request: Request, box: Box) -> dict[str, Any]:
    """Which metrics saw which voxels."""
    everywhere, boxed = ["gradient_ratio_z_xy", "consistency"], ["power", "axial_power_db", "decorrelation"]
    words = "Spectra, isotropy and decorrelation"
    if comparison.truth is not None:
        everywhere, boxed = ["psnr_db", "rmse", "nrmse", "pearson", *everywhere], ["ssim", "ms_ssim", "lpips", "fsc", *boxed]
        words = "SSIM, MS-SSIM, LPIPS, Fourier shell correlation, spectra, isotropy and decorrelation"
    chosen, whole = request.planes, box == comparison.region
    only = f" SSIM and MS-SSIM of planes: planes {slice_text(chosen)} of each orientation only;"
    some = "" if chosen == slice(None) else only
    return {
        "all_voxels": everywhere,
        "central_box": [[part.start, part.stop] for part in box],
        "central_box_is_whole_region": whole,
        "central_box_metrics": boxed,
        "planes": [chosen.start or 0, chosen.stop, chosen.step or 1],
        "lpips_planes_per_orientation": metrics.LPIPS_PLANES,
        "fsc": f"mean removed, cosine taper, cones of {CONE_DEGREES:g}° about the axes",
        "statement": f"{words}: {'the whole region' if whole else 'the central box only'};{some} all other metrics: every voxel",
    }
