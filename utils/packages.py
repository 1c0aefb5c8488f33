"""Packages that not every installation has."""

import importlib
from pathlib import Path
from typing import Any

from utils.errors import UserError


def optional_package(name: str, path: Path | str, extra: str = "formats", what: str = "this format") -> Any:
    """Import a package of an extra; a UserError says that ``path`` needs it, what for, and how it is installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.split(".")[0]
        raise UserError(
            f"{path}: {what} needs the package {package}, which is not installed; run "
            f".venv/bin/pip install -e '.[{extra}]' in the project's folder"
        ) from error
