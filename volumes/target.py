"""An output that several processes write, that survives being killed, and that appears only when it is whole.

It grows as a Zarr folder ``OUT.partial.zarr``, whatever the format of OUT. Its plan lies inside, so that no other command goes on
with it. Each process notes what it has written in a journal of its own; a command that is started again reads the journals and
leaves out what is done. Kept so: volumes (volumes.volume_target) and codes (inference.codes).
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import CONTINUES, new_folder, put_folder, write_json, writing
from volumes.block_array import LEFT_OVER
from volumes.output_files import partial_path, refuse_existing
from volumes.zarr_volume import UNFINISHED

_WORK = ".work"  # inside the partial folder: the plan and the journals
_PLAN = Path(_WORK, "plan.json")


def begin(output: Path, plan: Mapping[str, Any], create: Callable[[Path], None], *, overwrite: bool) -> None:
    """Begin an output, or find that the same command has begun it.

    All processes of a command may call this at once: the folder is made aside and renamed, and who comes second finds that
    of the first. Only where ``overwrite`` discards the unfinished output of another command one process has to go first.

    Args:
        output: what it becomes, by its suffix a file or a folder.
        plan: everything that decides its bytes, as plain JSON.
        create: makes the empty arrays in a folder.
        overwrite: replace an existing output when this one is whole, and discard an unfinished one of another command now.

    Raises:
        UserError: the output exists, its folder does not exist, or an unfinished output of another command lies there.
    """
    refuse_existing(output, overwrite)
    partial = partial_path(output)
    if partial.exists() and overwrite and _stored_plan(partial) != plan:
        discarded = partial.with_name(f".{partial.name}.{uuid.uuid4().hex[:8]}")
        os.rename(partial, discarded)
        shutil.rmtree(discarded)
    if not partial.exists():
        try:
            with new_folder(partial) as folder:
                (folder / _WORK).mkdir()
                write_json(folder / _PLAN, plan)
                _write_group(folder, {UNFINISHED: True})
                create(folder)
        except UserError:
            if not (partial / _PLAN).is_file():
                raise  # else another process was faster
    different = _differences(_stored_plan(partial), plan)
    if different:
        raise UserError(
            f"{partial} was begun by another command ({'; '.join(different)}); finish it with that command, delete the folder, "
            "or start anew with --overwrite"
        )


class Target:
    """An unfinished output that :func:`begin` has begun, in this process or in another one.

    Attributes:
        output: what it becomes.
        partial: the folder in which it grows.
        stored_plan: everything that decides its bytes.
    """

    def __init__(self, output: Path, overwrite: bool = False):
        """Args: output: as for :func:`begin`; overwrite: likewise. Raises UserError where nothing is begun."""
        self.output, self.partial = output, partial_path(output)
        self.stored_plan = _stored_plan(self.partial)
        self._overwrite = overwrite
        self._token = uuid.uuid4().hex[:8]

    def note(self, numbers: Iterable[int], level: int = 0) -> None:
        """Note pieces of a level as written: one append of whole lines to a journal that is this process's alone."""
        name = f"{socket.gethostname()}-{os.getpid()}-{self._token}.done"
        with writing(self.output, CONTINUES), (self.partial / _WORK / name).open("ab", buffering=0) as journal:
            journal.write("".join(f"{level} {number}\n" for number in numbers).encode())

    def missing(self, count: int, level: int = 0) -> list[int]:
        """Which of so many pieces of a level no process has written, in order; reads the journals of all processes."""
        done: set[str] = set()
        for journal in sorted((self.partial / _WORK).glob("*.done")):
            done.update(journal.read_text().split("\n")[:-1])  # what follows the last line end was cut off by a kill
        return [n for n in range(count) if f"{level} {n}" not in done]

    def require_whole(self, count: int) -> None:
        """Refuse to finish an output of so many pieces before all are written, or in the place of another output.

        Raises:
            UserError: pieces are missing, or the output has appeared meanwhile.
        """
        missing = self.missing(count)
        if missing:
            raise UserError(f"{self.partial}: {len(missing)} of {count} shards are not written; run the command again")
        refuse_existing(self.output, self._overwrite)

    def put_in_place(self, attributes: Mapping[str, Any]) -> None:
        """Give a Zarr output its attributes and its name."""
        with writing(self.output, CONTINUES):
            for left_over in self.partial.rglob(LEFT_OVER):
                left_over.unlink()
            _write_group(self.partial, attributes)
            put_folder(self.partial, self.output)
            shutil.rmtree(self.output / _WORK)

    def discard(self) -> None:
        """Remove what has grown, when the output is a file that was made from it."""
        shutil.rmtree(self.partial)


def _write_group(folder: Path, attributes: Mapping[str, Any]) -> None:
    write_json(folder / "zarr.json", {"zarr_format": 3, "node_type": "group", "attributes": attributes})


def _stored_plan(partial: Path) -> dict[str, Any]:
    try:
        return json.loads((partial / _PLAN).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        what = "does not exist" if not partial.exists() else f"holds no plan that can be read ({error})"
        raise UserError(f"{partial} {what}; begin the output again, after deleting what is left of it") from error


def _differences(stored: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What is wanted differently from what is stored, one phrase for each entry."""
    found = []
    for key in sorted({*stored, *wanted}):
        there, here = stored.get(key), wanted.get(key)
        if isinstance(there, dict) and isinstance(here, dict):
            found += _differences(there, here, f"{prefix}{key}.")
        elif there != here:
            found.append(f"{prefix}{key}: {there} there, {here} here")
    return found
