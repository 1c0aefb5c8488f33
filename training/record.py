"""What a training was started from, for whoever wants to repeat it: command, commit, versions, device, data."""

import datetime
import hashlib
import logging
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

import torch

from utils.checksums import sha256

log = logging.getLogger("isoscope")
_WHOLE = 2**32  # bytes of a file up to which its checksum is that of the whole
_SHOWN = 5  # names in a message
_END = 2**26  # of larger ones, of the first and last so many bytes


def start_record(files: Iterable[Path], repository: Path) -> dict[str, Any]:
    """Plain JSON about this start of this process.

    Args:
        files: the data, whose sizes and checksums are listed: ``sha256`` of the file, or of its two ends where it is large.
        repository: the folder of this program; ``commit`` is null where git does not know it.
    """
    gpu = torch.cuda.is_available()
    return {
        "command": shlex.join([sys.executable, *sys.argv]),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "host": platform.node(),
        "system": platform.platform(),
        "device": torch.cuda.get_device_name() if gpu else f"CPU, {torch.get_num_threads()} threads",
        "python": platform.python_version(),
        "commit": _git(repository, "rev-parse", "HEAD"),
        "changed_since": (_git(repository, "status", "--porcelain", "--untracked-files=no") or "").splitlines(),
        "packages": dict(sorted(map(_name_and_version, distributions()), key=lambda one: one[0].lower())),
        "data": [{"file": str(file), "bytes": file.stat().st_size, **_checksum(file)} for file in files],
    }


def warn_of_changed_data(before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Says which files are not those of the start before, by two records of starts; data may lie in another folder since."""
    was, known = ({tuple(Path(one["file"]).parts[-3:]): one for one in start.get("data", ())} for start in (before, now))
    missing = [str(Path(*name)) for name in was.keys() - known.keys()]
    other = [str(Path(*name)) for name, one in known.items() if was and {**one, "file": ""} != {**was.get(name, {}), "file": ""}]
    for what, names in (("missing", missing), ("new or of other contents", other)):
        if names:
            shown = ", ".join(sorted(names)[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
            log.warning("data are not those that this training had: %s %s; what it becomes differs from now on", what, shown)


def _name_and_version(package: Distribution) -> tuple[str, str]:
    """From the head of its metadata: to understand all of them would take a second of every start."""
    head = (package.read_text("METADATA") or package.read_text("PKG-INFO") or "").partition("\n\n")[0]
    found = dict(re.findall(r"^(Name|Version): *(.+?) *$", head, re.MULTILINE))
    return found.get("Name", "unnamed"), found.get("Version", "unknown")


def _git(repository: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=repository, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _checksum(file: Path) -> dict[str, str]:
    size = file.stat().st_size
    if size <= _WHOLE:
        return {"sha256": sha256(file)}
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        for start in (0, size - _END):
            opened.seek(start)
            digest.update(opened.read(_END))
    return {f"sha256_of_first_and_last_{_END}_bytes": digest.hexdigest()}
