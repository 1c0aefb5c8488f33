"""Writes docs/settings.md, the reference of all settings, from the option tables (``PYTHONPATH=. python docs/settings.py``)."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from experiment.options import BASE_OPTIONS, GROUPS, RETIRED, Option, as_text, metric_name
from training import MODEL_OPTIONS

TRAINED = {model: own for model, own in MODEL_OPTIONS.items() if model != "fused"}  # of earlier versions: applied only
PAGE = Path(__file__).with_suffix(".md")
HEAD = """# Settings

Made of `models/options.py` and `experiment/options.py` by `./run.sh docs`; not edited by hand. A key of an
experiment file is `"name": value`; on the command line it is `--name value`, or `--name` and `--no-name` for true and false.
Precedence: default < experiment file < command line. `python train.py --jsn NAME --help` says what holds for an experiment.
An option that models have with different defaults has a row for each. A default of – is "unset".
"""


def page() -> str:
    """The page as it has to be."""
    parts = [f"\n## {group}\n\n{_table(_rows(group))}" for group in GROUPS]
    return (
        f"{HEAD}{''.join(parts)}\n## Retired\n\nAccepted from old files, and ignored: {', '.join(f'`{n}`' for n in RETIRED)}.\n"
    )


def _rows(group: str) -> Iterator[tuple[str, ...]]:
    """Name, values, default, models and meaning, in the order of the tables."""
    base = {option.name: option for option in BASE_OPTIONS}
    models = {model: base | {option.name: option for option in own} for model, own in TRAINED.items()}
    names = dict.fromkeys(name for options in models.values() for name, option in options.items() if option.group == group)
    for name in names:
        having: dict[Option, list[str]] = {}
        for model, options in models.items():
            if name in options:
                having.setdefault(options[name], []).append(model)
        for option, those in having.items():
            flags = ", ".join(f"`{flag}`" for flag in (option.name, *option.aliases))
            default = "–" if option.default is None else f"`{as_text(option.default)}`"
            yield flags, _values(option), default, _models(those), option.help


def _values(option: Option) -> str:
    names = {bool: "true, false", int: "whole number", float: "number", str: "text", metric_name: "text"}
    kind = ", ".join(option.type) if isinstance(option.type, tuple) else names.get(option.type, "number or auto")
    several = {None: "", "+": ", one or more"}.get(option.nargs, f", {option.nargs} of them")
    return kind + several + (f", {option.limits.replace(' ', ' and ')}" if option.limits else "")


def _models(those: list[str]) -> str:
    return "all" if len(those) == len(TRAINED) else ", ".join(those)


def _table(rows: Iterable[tuple[str, ...]]) -> str:
    lines = [("option", "values", "default", "models", "what it does"), ("---",) * 5, *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
