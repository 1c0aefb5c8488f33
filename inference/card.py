"""README.md of an exported folder: what it holds, how to read it, what it was trained on, and what it cannot do."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from codes.store import CodeStore
from inference.run import Run
from utils.errors import UserError
from utils.files import read_mapping
from utils.runs import CODES

_READING = """```python
import json

import zarr
from safetensors.numpy import load_file

weights = load_file("checkpoints/{part}_model_epoch_{epoch}.safetensors")  # arrays by name
settings = json.load(open("0.json"))  # "autoencoder" has the widths of the 2-D networks
{codes}```
"""
_OF_CODES = """import codes.context_codec         # of IsoScopeXX: registers the codec of the chunks
codes = zarr.open_array("codes.zarr/codes")[:]  # (slices, rows, columns), a code per block of pixels
"""


def card(run: Run, export: Mapping[str, Any], store: CodeStore | None) -> str:
    """The page as Markdown.

    Args:
        run: what was exported.
        export: what export.json says of it.
        store: the codes, where there are any.
    """
    title = f"Codes of {', '.join(store.about['input']['files'])}" if store else f"The run {run.name}"
    part = "quantize" if "quantize" in export["components"] else export["components"][0]
    reading = _READING.format(part=part, epoch=run.epoch, codes=_OF_CODES if store else "")
    sections = {
        f"# {title}": _about(run, export, store),
        "## With IsoScopeXX": _commands(run, store),
        "## Without it": reading + _anatomy(store),
        "## What it was trained on": _training(run),
        "## How good it is": _metrics(store),
        "## Limits": _limits(run),
    }
    return "\n".join(f"{head}\n\n{text.strip()}\n" for head, text in sections.items())


def _about(run: Run, export: Mapping[str, Any], store: CodeStore | None) -> str:
    lines = [
        f"Exported by IsoScopeXX {export['isoscope_version']}. The weights are those of {run.name}, model "
        f"`{run.settings['models']}`; SHA-256 of the weights {run.weight_hash}.",
        f"Here are: {', '.join(f'`{name}`' for name in export['components'])}"
        + ("; no encoder, so these weights decode and cannot encode." if store else "; no discriminators."),
        "`sha256sum --check SHA256SUMS` checks every file.",
    ]
    if store:
        about = store.about
        voxel, place = about["slice_voxel_um"], about["slice_translation_um"]
        lines.append(
            f"Input: {' x '.join(map(str, about['input']['shape']))} voxels (z, y, x) of {about['input']['dtype']}. Encoded: "
            f"{store.shape[0]} slices of {store.inner[0]} x {store.inner[1]} pixels"
            + (f"; each becomes {about['factor']} planes." if "net_g" in run.model.G else ".")
        )
        lines.append(
            f"Voxels of the encoded slices: {tuple(voxel)} µm (z, y, x), the first one at {tuple(place)} µm; of the isotropic "
            f"volume: {(voxel[0] / about['factor'], *voxel[1:])} µm."
            if voxel
            else "Voxel sizes: not stated by the input."
        )
        lines += [line.partition(": ")[2] or line for line in store.sizes()[:1]]
    return "\n\n".join(lines)


def _commands(run: Run, store: CodeStore | None) -> str:
    if store is None:
        use = "encode  --run FOLDER --input raw.ome.tif --output raw.codes.zarr\n" if not run.restores else ""
        enhance = "python infer.py enhance --run FOLDER --input raw.ome.tif --output isotropic.ome.zarr\n"
        more = (f"python infer.py {use}" if use else "") + "python train.py --jsn mytissue --prj tuned --init FOLDER\n"
        return f"```bash\n{enhance}{more}```"
    grid = "" if "net_g" in run.model.G else " --grid raw"
    words = f"python infer.py decode --input FOLDER --output part.ome.tif --region 0:64,0:256,0:256{grid}"
    return f"```bash\n{words}\npython infer.py info FOLDER\n```"


def _anatomy(store: CodeStore | None) -> str:
    lines = ["`0.json` has the settings of the training, `dataset.json` how grey values were mapped to [-1, 1]."]
    if store and store.about["kind"] == "codebook":
        levels, codes, dimensions = (store.about[key] for key in ("levels", "codes", "dimensions"))
        lines.append(
            f"The codebook is in `quantize`: {levels} level(s) of {codes} vectors of {dimensions} numbers, the key that ends in "
            "`embedding.weight`; with several levels a position's vector is the sum over them."
        )
    if store:
        lines.append(
            f"`{CODES}` is a valid OME-Zarr 0.5 image of the codes; docs/code-store.md of IsoScopeXX describes its attributes "
            "and its codec in enough detail to write another reader."
        )
    return "\n".join(lines)


def _training(run: Run) -> str:
    s, geometry = run.settings, run.geometry
    alone = not run.restores and "net_g" not in run.model.G  # an autoencoder of slices has no operator along z
    operator = (
        f"Operator: one slice stands for {run.factor} planes (`{run.projection}`), profile along z "
        f"{json.dumps([round(tap, 4) for tap in run.axial_taps])}; dsp {s['dsp']}, "
        f"usp {s['usp']:g}{' between the codes of acquired slices' if run.spread > 1 else ''}."
    )
    lines = [
        f"Data: `{s['dataset']}`, folder(s) {', '.join(f'`{name}`' for name in run.directions)}"
        + "".join(
            f"; {name}: {entry['dtype']}, grey values {entry['pooled']['low']:g} to {entry['pooled']['high']:g}, "
            f"files {', '.join(entry['voxel_um']) or 'not recorded'}"
            for name, entry in (run.record or {}).get("directions", {}).items()
        )
        + ".",
        *([] if alone else [operator]),
        f"{run.epoch} epochs, crops of {geometry.cropsize}² x {geometry.slices} slices"
        + (", averaged weights (EMA)." if run.ema else "."),
    ]
    return "\n".join(f"* {line}" for line in lines)


def _metrics(store: CodeStore | None) -> str:
    """What ``evaluate.py compress`` found, where it wrote the store."""
    try:
        report = {} if store is None else read_mapping(store.path.parent / "compression.json", "comparison of codecs")
    except UserError:
        report = {}
    if store is None or Path(report.get("files", {}).get("store", "")).name != store.path.name:
        return "Not measured here: `evaluate.py` judges a volume, `evaluate.py compress` a run's codes beside standard codecs."
    said = "\n".join(f"    {line}" for line in report["sentences"])
    return f"`evaluate.py compress` on {report['files']['input']}:\n\n{said}"


def _limits(run: Run) -> str:
    lines = [
        "Trained on the data above: other tissue, stains, voxel sizes or axial profiles are outside of what it knows.",
        "Detail between slices is inferred, not measured; what an adversary (`adv`) taught is texture, not truth.",
    ]
    if not run.restores:
        lines.append("Codes lose detail: what the codebook cannot say is gone, and no decoder brings it back.")
    if "net_g" not in run.model.G:
        lines.append("An autoencoder of slices alone: it decodes slices (`--grid raw`), no isotropic volume.")
    return "\n".join(f"* {line}" for line in lines)
