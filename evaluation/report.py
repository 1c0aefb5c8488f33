"""What an evaluation leaves: JSON, and a report of one HTML file (its template report.html holds all of its words)."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evaluation.verdict import NYQUIST
from utils.errors import UserError
from utils.files import refuse_overlap

PAGES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def refuse_outputs(output: Path, names: Sequence[str], overwrite: bool, inputs: Iterable[Path | None]) -> None:
    """Refuses a folder that holds earlier results of these names.

    Raises:
        UserError: it does, and they are not to be replaced; it is a file; or one of these would be written over an input.
    """
    if output.exists() and not output.is_dir():
        raise UserError(f"--output {output} is a file; name a folder")
    existing = [file for file in names if (output / file).exists()]
    if existing and not overwrite:
        raise UserError(f"{output} already holds {', '.join(existing)}; choose another --output or add --overwrite")
    refuse_overlap([output / name for name in names], [path for path in inputs if path])


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
    """The report as HTML; whatever stems from files and users is escaped.

    Args:
        document: what metrics.json holds, with NaN and infinity for null.
        figures: PNG files ``planes``, ``spectra``, and ``fsc`` where there is a truth.
    """

    def cells_of(key: str, form: str, best: str, bound: float | None) -> list[dict[str, Any]]:
        return table_line(document["volumes"], key, form, best, bound)

    return PAGES.get_template("report.html").render(
        document=document,
        figures={name: base64.b64encode(path.read_bytes()).decode() for name, path in figures.items()},
        cells_of=cells_of,
        nyquist=NYQUIST,
        times=_times,
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
    values = {name: _number(numbers, key.split(), bound) for name, numbers in volumes.items()}
    known = {name: value for name, value in values.items() if value is not None}
    if not known:
        return []
    texts = dict.fromkeys(values, "–")
    for name, value in known.items():
        reached = bound is not None and (value <= bound if best == "low" else value >= bound)
        texts[name] = "∞" if math.isinf(value) else ("≤ " if best == "low" else "≥ ") * reached + form.format(value)
    rivals = [name for name in known if name != "truth"]
    marked = None
    if best and len(rivals) > 1:
        marked = texts[(max if best == "high" else min)(rivals, key=known.__getitem__)]
    return [{"name": name, "text": text, "best": name in rivals and text == marked} for name, text in texts.items()]


def _number(value: Any, keys: list[str], bound: float | None) -> float | None:
    for key in keys:
        if not isinstance(value, dict) or key not in value:  # a metric that this volume does not have
            return None
        value = value[key]
    value = bound if value is None else value
    return None if value is None or math.isnan(value) else float(value)


def _times(sides: Iterable[float]) -> str:
    return "×".join(f"{side:g}" for side in sides)
