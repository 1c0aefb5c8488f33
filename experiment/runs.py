"""The folder of one training: settings, lock, names of everything in it (torch-free).

::

    {LOGS}/{dataset}/{prj}/
        0.json 1.json …        resolved settings, one file per start
        dataset.json           intensity transform of the training data with its constants
        teacher.json           the run that guides this one, where there is one: folder, epoch, file of its weights and SHA-256
        <model>.py             the source of the model as it was (never imported back)
        logs/                  TensorBoard, and what other trackers write (training/trackers.py)
        pictures/              PNG
        checkpoints/           <component>_model_epoch_N.pth, last.ckpt, last.previous.ckpt, best.ckpt, manifest.json;
                               of an exported run (sharing/exporting.py) <component>_model_epoch_N.safetensors and manifest.json
        run.lock               host, process and start of the training that uses the folder
"""

import fcntl
import json
import os
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from itertools import count
from pathlib import Path
from typing import Any, TextIO

from experiment.manifest import WEIGHTS, Manifest
from experiment.reading import COMMAND_LINE, SETTINGS_VERSION, Models, stored_settings
from utils.checksums import SUMS, check_checksums
from utils.errors import UserError
from utils.files import ran_at, read_mapping, write_json, writing

EXPORT, EXPORT_VERSION = "export.json", 1  # what an exported folder says of the run that it was
CODES = "codes.zarr"  # a code store inside such a folder

RESUME_MAY_CHANGE = frozenset(
    """n_epochs epoch_save save_minutes workers devices num_nodes strategy lr_policy n_epochs_decay lr_decay_iters
    picture_epochs keep_pictures val_epochs log_steps monitor tracker max_time resume overwrite strict debug env logs data_root
    preload unreadable_files jsn prj""".split()
)


class RunFolder:
    """One training's folder; every path in it has its name here."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.pictures = self.path / "pictures"
        self.logs = self.path / "logs"
        self.manifest = Manifest(self.checkpoints)
        self.last = self.manifest.last
        self.best = self.checkpoints / "best.ckpt"
        self.dataset_record = self.path / "dataset.json"
        self.teacher_record = self.path / "teacher.json"
        self._lock = self.path / "run.lock"

    def component(self, name: str, epoch: int, ema: bool = False) -> Path:
        """Checkpoint of one component after `epoch` completed epochs."""
        path = self.checkpoints / f"{name}{'_ema' if ema else ''}_model_epoch_{epoch}{WEIGHTS[0]}"
        return path if not (exported := path.with_suffix(WEIGHTS[1])).is_file() else exported

    def exported(self) -> dict[str, Any]:
        """What an exported folder says of the run that it was, once its files are found whole (codes are, as they are read).

        Nothing for another folder.

        Raises:
            UserError: a file is missing or damaged, or the folder is of a newer version.
        """
        path = self.path / EXPORT
        if not (path.is_file() or (self.path / SUMS).is_file()):
            return {}
        check_checksums(self.path, without=f"{CODES}/*/c/*")
        about = read_mapping(path, "description of an exported run")
        if about.get("version") != EXPORT_VERSION:
            raise UserError(f"{path} is of version {about.get('version')}, this program reads {EXPORT_VERSION}; update it")
        kinds = {"run": str, "ema": bool, "weights": str, "components": list}
        if wrong := [key for key, kind in kinds.items() if not isinstance(about.get(key), kind)]:
            raise UserError(f"{path} does not say {', '.join(wrong)} as an export does; copy the folder again")
        return about

    def picture(self, epoch: int) -> Path:
        """The picture of the training after so many completed epochs."""
        return self.pictures / f"epoch_{epoch:06d}.png"

    def epochs(self) -> list[int]:
        """Completed-epoch numbers for which there are component checkpoints, ascending."""
        return self.manifest.epochs()

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Whether a training may start here; nothing is changed.

        Raises:
            UserError: the folder cannot be made or written to; another process uses it; it already holds a training and neither
                resume nor overwrite is set; or there is nothing to resume.
        """
        there = next(folder for folder in (self.path, *self.path.absolute().parents) if folder.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise self._not_writable(f"{there} is " + ("write-protected" if there.is_dir() else "not a folder"))
        self._refuse_if_in_use()
        trained = self.manifest.trained()
        if resume and not trained:
            raise UserError(f"nothing to resume: {self.last} does not exist; start without --resume")
        if trained and not resume and not overwrite:
            raise UserError(
                f"{self.path} already holds a training; continue it with --resume, "
                f"set it aside with --overwrite (it is renamed, never deleted), or choose another --prj"
            )

    def prepare(self, *, resume: bool, overwrite: bool) -> None:
        """Makes the folder, which this process has :meth:`locked`, ready for a training; UserErrors as of :meth:`check`."""
        self.check(resume=resume, overwrite=overwrite)
        if not resume and not any(path.suffix in (".pth", ".ckpt") for path in self.checkpoints.glob("*")):
            shutil.rmtree(self.logs, ignore_errors=True)  # of a try that was given up before its first save
        elif not resume:
            aside = next(path for n in count(1) if not (path := self.path.with_name(f"{self.path.name}.{n}")).exists())
            aside.mkdir()
            for entry in sorted(self.path.iterdir(), key=lambda path: path == self.checkpoints):  # last what makes it a training
                if entry != self._lock:
                    entry.rename(aside / entry.name)
        for folder in (self.checkpoints, self.pictures, self.logs):
            folder.mkdir(parents=True, exist_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for this process; a lock whose process on this host has died is taken over.

        Raises:
            UserError: another living process (or one on another host) holds the folder; or it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._not_writable(str(error.strerror)) from error
        me = {"host": socket.gethostname(), "pid": os.getpid(), "start": time.strftime("%Y-%m-%d %H:%M:%S")}
        with writing(self._lock), self._alone_with_lock() as file:
            self._refuse_if_in_use()
            file.truncate(0)
            json.dump(me, file)
        try:
            yield
        finally:
            with suppress(FileNotFoundError), self._alone_with_lock():
                if self._holder() in (None, me):  # else the lock was deleted by hand, and another process has it now
                    self._lock.unlink()

    @contextmanager
    def _alone_with_lock(self) -> Iterator[TextIO]:
        """The lock file, made where it is missing; no other process is here at the same time."""
        while True:
            with self._lock.open("a", encoding="utf-8") as file:
                with suppress(OSError):  # some network file systems know no locks
                    fcntl.flock(file, fcntl.LOCK_EX)
                try:
                    there = os.path.samestat(os.fstat(file.fileno()), self._lock.stat())
                except FileNotFoundError:
                    there = False
                if there:  # else it was removed while this process waited
                    yield file
                    return

    def _not_writable(self, why: str) -> UserError:
        return UserError(
            f"the run's folder {self.path} cannot be made ({why}); name a folder for runs that you may write to with --logs, "
            "or another profile with --env"
        )

    def _holder(self) -> dict[str, Any] | None:
        try:
            holder = json.loads(self._lock.read_text())
        except (FileNotFoundError, ValueError):
            return None
        whole = isinstance(holder, dict) and {"host", "pid", "start"} <= holder.keys() and isinstance(holder["pid"], int)
        return holder if whole else None

    def _refuse_if_in_use(self) -> None:
        holder = self._holder()
        if holder is None:
            return
        pid = holder["pid"]  # our own number: that of a process before a reboot, or before a container was started again
        if holder["host"] == socket.gethostname() and (pid == os.getpid() or not ran_at(pid, self._lock.stat().st_mtime)):
            return
        raise UserError(
            f"{self.path} is in use by process {holder['pid']} on {holder['host']} since {holder['start']}; "
            f"wait for it, choose another --prj, or delete {self._lock} if that process is gone"
        )

    def stored_settings(self, models: Models) -> dict[str, Any]:
        """The settings of the latest start, complete also where an older version wrote them (models: MODEL_OPTIONS).

        Raises:
            UserError: the folder is not a run; see also :func:`experiment.reading.stored_settings`.
        """
        require_run(self.path)
        return stored_settings(self.path / f"{self.starts()}.json", models)

    def write_settings(self, settings: Mapping[str, Any], start: Mapping[str, Any] | None = None) -> None:
        """Writes the resolved settings of this start as the next N.json, and what else there is to say of it as start_N.json."""
        number = self.starts() + 1
        if start is not None:
            write_json(self.path / f"start_{number}.json", start)
        write_json(self.path / f"{number}.json", {"settings_version": SETTINGS_VERSION, **settings})

    def last_start(self) -> dict[str, Any]:
        """What there is to say of the latest start; nothing where an older version has made it."""
        path = self.path / f"start_{self.starts()}.json"
        return read_mapping(path, "record of a start") if path.is_file() else {}

    def starts(self) -> int:
        """The number of the latest start; -1: none."""
        return max((int(path.stem) for path in self.path.glob("*.json") if path.stem.isdigit()), default=-1)

    def copy_source(self, source: Path) -> None:
        """Keeps a copy of the model's source file for the record."""
        shutil.copyfile(source, self.path / source.name)


def require_run(path: Path) -> None:
    """A UserError says that there is no such folder, or that it is none of a training; and which ones lie in it."""
    if not path.is_dir():
        raise UserError(f"{path} is not a training's folder: there is no such folder; runs lie like logs/mytissue/first")
    if not any(found.stem.isdigit() for found in path.glob("*.json")):
        inside = ", ".join(sorted(found.parent.name for found in path.glob("*/0.json")))
        raise UserError(f"{path} is not a training's folder: it has no 0.json{f'; runs in it: {inside}' * bool(inside)}")


def resumed_settings(stored: Mapping[str, Any], new: Mapping[str, Any], given: Mapping[str, str]) -> dict[str, Any]:
    """The stored settings of the latest start, changed where a resume may change them by the new ones that were ``given``.

    What was typed on the command line then and only stands in the experiment file now is kept; so is the model, whose options
    the file need not all know. A UserError lists with old and new value all keys that differ and may not change.
    """
    typed_before = {k for k, source in stored["given"].items() if source == COMMAND_LINE}
    asked = [k for k, source in given.items() if source == COMMAND_LINE or (k in stored and k not in typed_before)]
    changed = {k: new[k] for k in asked if stored.get(k) != new[k]}
    if refused := sorted(changed.keys() - RESUME_MAY_CHANGE):
        lines = "; ".join(f"{k}: {stored.get(k)!r} in the run, {new[k]!r} in {given[k]}" for k in refused)
        raise UserError(f"--resume keeps the run's settings, but these differ: {lines}. Undo them or start a new --prj")
    return {**stored, **changed, **{k: new[k] for k in ("resume", "overwrite", "strict", "debug") if k in new}}


def higher_is_better(metric: str) -> bool:
    """Whether a logged metric grows as the model gets better; errors and losses, which is what most are, fall."""
    return "psnr" in metric


def program_version() -> str:
    """Of this program, for its records."""
    try:
        return version("isoscopexx")
    except PackageNotFoundError:
        return "(source tree, not installed)"
