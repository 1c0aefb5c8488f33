"""checkpoints/manifest.json: which checkpoints of a training are whole, with their SHA-256 (torch-free).

::

    {"epochs": {"2": {"net_g_model_epoch_2.pth": SHA-256, ...}},   # written after the last file of the set
     "last": [of last.ckpt, of the one before it]}                 # [] before the first; absent in an imported run

A set of component files that is not listed is not there. Of a folder without manifest, which an older version made, all counts.
Component files of an exported run (sharing/exporting.py) end in .safetensors.
"""

import re
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from utils.checksums import sha256
from utils.errors import UserError
from utils.files import read_mapping, write_json

WEIGHTS = (".pth", ".safetensors")  # endings of component files


class Manifest:
    """The manifest of a run's folder of checkpoints; one process, which holds the run's lock, writes it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "manifest.json"
        self.last, self.previous = folder / "last.ckpt", folder / "last.previous.ckpt"

    def read(self) -> dict[str, Any] | None:
        """What it says; None where there is none. A UserError: it is damaged."""
        if not self.path.is_file():
            return None
        found = read_mapping(self.path, "list of checkpoints")
        epochs, last = found.get("epochs"), found.get("last", [])
        sets = list(epochs.items()) if isinstance(epochs, dict) else [("", None)]
        if not isinstance(last, list) or not all(epoch.isdigit() and isinstance(files, dict) for epoch, files in sets):
            raise UserError(f"{self.path} is damaged; copy it again, or delete it: checkpoints are then taken unchecked")
        return found

    def begin(self) -> None:
        """Begins the manifest of a training; what an older version left is taken in as it is."""
        if self.path.exists():
            return
        sets = {epoch: self.set_of(epoch) for epoch in self.epochs()}
        last = [sha256(self.last)] if self.last.is_file() else []
        write_json(self.path, {"epochs": {str(epoch): _hashes(files) for epoch, files in sets.items()}, "last": last})

    def epochs(self) -> list[int]:
        """Completed-epoch numbers whose component files are a set of which anything is left, ascending."""
        names = {path.name for path in self.set_of("*")}
        found = self.read()
        if found is not None:
            return sorted(int(epoch) for epoch, files in found["epochs"].items() if names & files.keys())
        matches = (re.fullmatch(r"(?:net_g|encoder)_model_epoch_(\d+)\.pth", name) for name in names)
        return sorted({int(match.group(1)) for match in matches if match})

    def set_of(self, epoch: int | str) -> list[Path]:
        """The component files of an epoch that are there; of all for ``*``."""
        return [path for ending in WEIGHTS for path in self.folder.glob(f"*_model_epoch_{epoch}{ending}")]

    def trained(self) -> bool:
        """Whether there is a training to go on with, or weights that nothing else can make again.

        What a training leaves that was killed in its first save is neither.
        """
        found = self.read()
        if found is not None and "last" in found:
            return bool(found["last"])
        return bool(self.epochs()) or any(self.folder.glob("*.ckpt"))

    def add_set(self, epoch: int, files: Iterable[Path]) -> None:
        """Makes component files that are written a set."""
        found = self.read() or {"epochs": {}}
        found["epochs"][str(epoch)] = _hashes(files)
        write_json(self.path, found)

    def check_set(self, epoch: int) -> None:
        """Checks that all files of a set are there as they were written; a UserError names one that is missing or differs."""
        files = (self.read() or {"epochs": {}})["epochs"].get(str(epoch))
        if files is None:
            return
        remedy = "copy the epoch's files again, or name another epoch"
        for path in sorted({*self.set_of(epoch), *(self.folder / name for name in files)}):
            if not path.is_file():
                part = path.name.partition("_model_epoch_")[0]
                raise UserError(f"{path} is missing; this run cannot supply the component {part!r}: {remedy}")
            digest, written = sha256(path), files.get(path.name, "nothing")
            if digest != written:
                raise UserError(f"{path} is damaged or of another save: its SHA-256 is {digest}, written was {written}; {remedy}")

    def keep_previous(self, new: Path) -> None:
        """To be called before a finished file becomes last.ckpt: notes it, and keeps the one there as the previous one."""
        found = self.read() or {"epochs": {}}
        current = [sha256(self.last)] if self.last.is_file() else []
        kept = [digest for digest in current if digest in found.get("last", current)]  # else damaged: an older one is better
        write_json(self.path, {**found, "last": [sha256(new), *(kept or found.get("last", []))]})
        if kept:
            self.last.replace(self.previous)  # the caller syncs the folder

    def to_resume(self) -> tuple[Path, str]:
        """The checkpoint that a training goes on from: last.ckpt, or the one before it; and what is wrong with last.ckpt.

        A UserError: neither is as it was written.
        """
        written, problems = (self.read() or {}).get("last"), [""]
        for path in (self.last, self.previous):
            problem = _problem(path, written)
            if not problem:
                return path, problems[-1]
            problems.append(problem)
        raise UserError(
            f"nothing to resume: {'; '.join(problems[1:])}. Copy them again, or start anew with --overwrite, which renames "
            "this folder; --init takes the weights of an epoch"
        )

    def damaged_checkpoints(self) -> list[str]:
        """What is wrong with the files of no set: those that a training goes on from, and what has no hash."""
        found = self.read() or {"epochs": {}}
        last = found.get("last")
        hashed = [self.last, self.previous][: len(last or ())]
        others = {*self.folder.glob("*.ckpt"), *self.folder.glob("*.pth")} - {*hashed}
        others -= {self.folder / name for files in found["epochs"].values() for name in files}
        problems = [_problem(path, last) for path in hashed] + [_problem(path, None) for path in sorted(others)]
        return [problem for problem in problems if problem]


def _hashes(files: Iterable[Path]) -> dict[str, str]:
    return {path.name: sha256(path) for path in sorted(files)}


def _problem(path: Path, written: list[str] | None) -> str:
    """What is wrong with a checkpoint; empty: nothing."""
    if not path.is_file():
        return f"{path} does not exist"
    if written is not None:
        damage = f"{path} is damaged: its SHA-256 is {(digest := sha256(path))}, written was {' or '.join(written) or 'none'}"
        return "" if digest in written else damage
    try:  # of an older version: what the file itself knows about its bytes
        with zipfile.ZipFile(path) as parts:
            damaged = parts.testzip()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError) as error:
        return f"{path} is damaged ({error})"
    return f"{path} is damaged (in its part {damaged})" if damaged else ""
