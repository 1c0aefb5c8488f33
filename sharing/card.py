"""README.md of an exported folder, by the template card.md: what it holds, how to read it, its training, what it cannot do."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from codes.store import CodeStore
from experiment.reading import default_settings
from experiment.runs import CODES
from inference.run import Run
from models.build import shaped_otherwise
from models.options import MODEL_OPTIONS
from utils.errors import UserError
from utils.files import read_mapping
from utils.pages import page


def card(
    run: Run, export: Mapping[str, Any], store: CodeStore | None, judged: Sequence[Mapping[str, Any]] = (), said: str = ""
) -> str:
    """The page as Markdown.

    Args:
        run: what was exported.
        export: what export.json says of it.
        store: the codes, where there are any.
        judged: of what it made, see :func:`evaluation`.
        said: by who exports it, Markdown.
    """
    about = {} if store is None else store.about
    voxel, place = (about.get(key) and tuple(about[key]) for key in ("slice_voxel_um", "slice_translation_um"))
    size = "" if store is None else store.sizes()[0]
    return page(
        Path(__file__).with_name("card.md"),
        run=run,
        export=export,
        store=store,
        about=about,
        voxel=voxel,
        place=place,
        isotropic=voxel and (voxel[0] / about["factor"], *voxel[1:]),
        size=size.partition(": ")[2] or size,
        part="quantize" if "quantize" in export["components"] else export["components"][0],
        codes=CODES,
        has_volume=run.makes_volumes,
        directions=(run.record or {}).get("directions", {}),
        taps=json.dumps([round(tap, 4) for tap in run.axial_taps]),
        measured=_measured(store),
        judged=judged,
        said=said,
        shape=_shape(run.settings),
        short="{:g}".format,
    )


def evaluation(folder: Path, run: Run) -> dict[str, Any]:
    """What evaluate.py found of a volume that a run made: ``files`` by their names, ``headline`` and ``sentences``.

    Raises:
        UserError: there is no evaluation, or it is of another run's volume.
    """
    path = folder / "metrics.json"
    found = read_mapping(path, "evaluation")
    try:
        files, verdict = found["files"], found["verdict"]
        made_by = files["reconstruction"].get("weights")
        names = {role: Path(file["path"]).name for role, file in files.items()}
        said = {"files": names, "headline": str(verdict["headline"]), "sentences": [str(text) for text in verdict["sentences"]]}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no evaluation of a reconstruction; name a folder that evaluate.py --output wrote") from error
    if made_by != run.weight_hash:
        raise UserError(
            f"{path} judges {names['reconstruction']}, which {run.name} with these weights has not made; enhance with this run, "
            "and evaluate that"
        )
    return said


def _shape(settings: Mapping[str, Any]) -> str:
    """The options that a training from these weights needs, where an experiment file leaves the defaults."""
    found = shaped_otherwise(default_settings(MODEL_OPTIONS, settings["models"]), settings)
    short = {name: value for name, value in found.items() if isinstance(value, str | int | float) and not isinstance(value, bool)}
    return "".join(f" --{name} {value:g}" if isinstance(value, float) else f" --{name} {value}" for name, value in short.items())


def _measured(store: CodeStore | None) -> Mapping[str, Any] | None:
    """What ``evaluate.py compress`` found, where it wrote the store."""
    try:
        report = {} if store is None else read_mapping(store.path.parent / "compression.json", "comparison of codecs")
    except UserError:
        return None
    return report if store is not None and Path(report.get("files", {}).get("store", "")).name == store.path.name else None
