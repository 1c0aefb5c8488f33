"""SHA256SUMS: the checksum of every file of a folder, as ``sha256sum --check SHA256SUMS`` reads them (torch-free)."""

import hashlib
from fnmatch import fnmatchcase
from pathlib import Path

from utils.errors import UserError
from utils.files import write_text

SUMS = "SHA256SUMS"


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
