"""SHA256SUMS: the checksum of every file of a folder, as ``sha256sum --check SHA256SUMS`` reads them; seals (torch-free)."""

import hashlib
import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import write_text

SUMS = "SHA256SUMS"
_SEAL, _LETTERS = "isoscope_checksums", 16  # attribute of a Zarr group; of a SHA-256, since a store has few bytes


def sha256(path: Path) -> str:
    """Of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checksums(folder: Path) -> None:
    """Writes the list of a folder whose files are all there."""
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    write_text(folder / SUMS, "".join(f"{sha256(folder / name)}  {name}\n" for name in files))


def check_checksums(folder: Path, *, without: str = "") -> None:
    """Checks that all listed files are there as they were written.

    Args:
        folder: with its list.
        without: files whose names match this pattern need only be there.

    Raises:
        UserError: the list or a file is missing or damaged; the message names it.
    """
    remedy = "copy the folder again"
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
        listed = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except (OSError, ValueError) as error:
        raise UserError(f"{folder / SUMS}, the list of this folder's files, cannot be read ({error}); {remedy}") from error
    for name, written in listed.items():
        path = folder / name
        if ".." in Path(name).parts or path.is_symlink() or not path.is_file():
            raise UserError(f"{path} is missing, or no plain file of this folder; {remedy}")
        if not fnmatchcase(name, without) and (digest := sha256(path)) != written:
            raise UserError(f"{path} is damaged: its SHA-256 is {digest}, written was {written}; {remedy}")


def sealed(folder: Path, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of a finished Zarr group with checksums of themselves and of its arrays' metadata, in place of older ones.

    What the arrays hold has checksums of its own.
    """
    attributes = {key: value for key, value in attributes.items() if key != _SEAL}
    arrays = {path.parent.name: sha256(path)[:_LETTERS] for path in folder.glob("[!.]*/zarr.json")}
    return {**attributes, _SEAL: {"": _digest(attributes), **arrays}}


def unsealed(folder: Path, attributes: Mapping[str, Any]) -> list[Path] | None:
    """The metadata in a Zarr group that are not as :func:`sealed` had them; None: they have no checksums."""
    seal = attributes.get(_SEAL)
    if not isinstance(seal, dict):
        return None
    own = _digest({key: value for key, value in attributes.items() if key != _SEAL})
    files = {name: folder / name / "zarr.json" for name in seal}
    found = {name: sha256(path)[:_LETTERS] for name, path in files.items() if name and path.is_file()} | {"": own}
    return [path for name, path in files.items() if found.get(name) != seal[name]]


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:_LETTERS]
