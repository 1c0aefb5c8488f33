"""Pages from templates (Jinja2)."""

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from utils.errors import printable


def _in_line(value: Any) -> Any:
    """In Markdown names of files and folders stay within their line, and are no HTML."""
    return printable(value).replace("<", "&lt;").replace("\n", " ") if isinstance(value, str) else value


def page(template: Path, **values: Any) -> str:
    """What a template becomes; in HTML what values hold is text, and an unknown name is an error everywhere."""
    pages = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=template.suffix == ".html",
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=None if template.suffix == ".html" else _in_line,
    )
    return pages.get_template(template.name).render(values)
