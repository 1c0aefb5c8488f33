"""README.md of an exported folder, by the template card.md: what it holds, how to read it, its training, what it cannot do."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from codes.store import CodeStore
from inference.run import Run
from utils.errors import UserError
from utils.files import read_mapping
from utils.runs import CODES

_PAGES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def card(run: Run, export: Mapping[str, Any], store: CodeStore | None) -> str:
    """The page as Markdown.

    Args:
        run: what was exported.
        export: what export.json says of it.
        store: the codes, where there are any.
    """
    about = {} if store is None else store.about
    voxel, place = (about.get(key) and tuple(about[key]) for key in ("slice_voxel_um", "slice_translation_um"))
    size = "" if store is None else store.sizes()[0]
    return _PAGES.get_template("card.md").render(
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
        has_volume="net_g" in run.model.G,
        directions=(run.record or {}).get("directions", {}),
        taps=json.dumps([round(tap, 4) for tap in run.axial_taps]),
        measured=_measured(store),
        short="{:g}".format,
    )


def _measured(store: CodeStore | None) -> Mapping[str, Any] | None:
    """What ``evaluate.py compress`` found, where it wrote the store."""
    try:
        report = {} if store is None else read_mapping(store.path.parent / "compression.json", "comparison of codecs")
    except UserError:
        return None
    return report if store is not None and Path(report.get("files", {}).get("store", "")).name == store.path.name else None
