"""Packages that only some file formats need (the extra ``formats``)."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from utils.errors import UserError


def optional_package(name: str, path: Path) -> Any:
    """Import a package of the extra ``formats``.

    Args:
        name: the package.
        path: the file that needs it, for the message.

    Raises:
        UserError: it is not installed; the message names the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.split(".")[0]
        raise UserError(
            f"{path}: this format needs the package {package}, which is not installed; run "
            ".venv/bin/pip install -e '.[formats]' in the project's folder"
        ) from error
