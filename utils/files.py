"""Files and folders that appear whole or not at all, also after a power cut; what the system refuses is said plainly."""

from __future__ import annotations

import errno
import glob
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils.errors import UserError

CONTINUES = "make room and run the same command again, it continues"
_FULL = {errno.ENOSPC, errno.EDQUOT}


@contextmanager
def writing(output: Path | str, remedy: str = "make room and run the command again") -> Iterator[None]:
    """Turns what the operating system has against a write into a UserError that names the output.

    Args:
        output: what is being written.
        remedy: what to do where the disc is full; ``CONTINUES`` where what is written so far is kept.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise UserError(f"{output}: the disc is full; {remedy}") from error
        raise UserError(f"{output} cannot be written ({error})") from error


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its place when the block ends, and vanishes when it fails.

    Left-overs of processes that were killed are removed first; one process at a time writes a file.

    Raises:
        UserError: the disc is full or refuses; whatever was at ``path`` is untouched.
    """
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        if stale.name.removeprefix(f".{path.name}.").removesuffix(".partial").isdigit():  # not of PATH.something
            stale.unlink(missing_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with writing(path):
        try:
            yield partial
            sync(partial)
            os.replace(partial, path)
            sync(path.parent)
        finally:
            partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) that is never seen half-written."""
    with replaced(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object that is never seen half-written."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder`` that takes its name when the block ends, and vanishes when it fails.

    Raises:
        UserError: the disc is full or refuses, or there is a folder of that name with something in it.
    """
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.partial")
    with writing(folder):
        try:
            aside.mkdir(parents=True)
            yield aside
            for made in aside.rglob("*"):
                sync(made)
            os.rename(aside, folder)
            sync(folder.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def put_folder(finished: Path, output: Path) -> None:
    """Rename a finished folder to its place; a folder already there is moved aside first and then deleted."""
    old = output.with_name(f".{output.name}.{uuid.uuid4().hex[:8]}.replaced")
    if output.exists():
        os.rename(output, old)
    os.rename(finished, output)
    sync(output.parent)
    shutil.rmtree(old, ignore_errors=True)


def put_files(scratch: Path, output: Path, names: Sequence[str]) -> None:
    """Move finished files from a folder on the same disc to their place; those that ``scratch`` lacks are removed there."""
    with writing(output):
        for name in names:
            if (scratch / name).exists():
                sync(scratch / name)
                os.replace(scratch / name, output / name)
            else:
                (output / name).unlink(missing_ok=True)
        sync(output)


def sync(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on disc."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL or not path.is_dir():  # some network file systems know no sync of folders
            raise
    finally:
        os.close(handle)
