"""Files and folders that appear whole or not at all, also after a power cut; and objects read from JSON and YAML."""

import errno
import glob
import json
import os
import re
import shutil
import socket
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from utils.errors import UserError, is_full
from utils.far import ADDRESS, FarPath

MAKE_ROOM = "make room and run the command again"
CONTINUES = "make room and run the same command again, it continues"
PARTIAL = ".partial.zarr"  # what the name of an unfinished output ends in
_CLOCK_TOLERANCE = 60  # seconds between the clock of the files and that of the processes


@contextmanager
def writing(output: Path | str, remedy: str = MAKE_ROOM) -> Iterator[None]:
    """Turns what the operating system has against a write into a UserError that names the output.

    The remedy is that of a full disc; ``CONTINUES`` where what is written so far is kept.
    """
    try:
        yield
    except OSError as error:
        if is_full(error):
            raise UserError(f"{output}: the disc is full; {remedy}") from error
        raise UserError(f"{output} cannot be written ({error})") from error


@contextmanager
def replaced(path: Path, remedy: str = MAKE_ROOM) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its place when the block ends, and vanishes when it fails.

    Left-overs of processes that were killed are removed first; one process at a time writes a file. If the disc is full or
    refuses, a UserError says so with the remedy, and whatever was at ``path`` is untouched.
    """
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        if stale.name.removeprefix(f".{path.name}.").removesuffix(".partial").isdigit():  # not of PATH.something
            stale.unlink(missing_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with writing(path, remedy):
        try:
            yield partial
            sync(partial)
            os.replace(partial, path)
            sync(path.parent)
        finally:
            partial.unlink(missing_ok=True)


def utf8(text: str) -> bytes:
    """Text in UTF-8; what a file's name has that is none stands as a number, as which JSON reads it back."""
    return text.encode("utf-8", "backslashreplace")


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) that is never seen half-written."""
    with replaced(path) as partial:
        partial.write_bytes(utf8(text))


def write_json(path: Path, content: Mapping[str, Any], *, indent: int | None = 2) -> None:
    """Write a JSON object that is never seen half-written; without ``indent`` in as few bytes as it takes.

    A list of numbers is one line.
    """
    separators = (",", ":") if indent is None else None
    text = json.dumps(content, indent=indent, separators=separators, ensure_ascii=False)
    text = re.sub(r"\[\n[^\[\]{}\"]+\]", lambda found: " ".join(found[0].split()).replace("[ ", "[").replace(" ]", "]"), text)
    write_text(path, text + "\n")


def beside(folder: Path, what: str) -> Path:
    """A hidden name for what becomes of a folder, or was it, while this process works on it."""
    return folder.with_name(f".{folder.name}.{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}.{what}")


def discard(folder: Path) -> None:
    """Deletes a folder; of one that is killed meanwhile :func:`remove_left_overs` finds the rest."""
    aside = beside(folder, "discarded")
    os.rename(folder, aside)
    shutil.rmtree(aside)


def remove_left_overs(folder: Path) -> None:
    """Deletes what processes of this host that were killed have left :func:`beside` a folder."""
    for stale in folder.parent.glob(f".{glob.escape(f'{folder.name}.{socket.gethostname()}')}-*-*.*"):
        pid = stale.name.split("-")[-2]
        with suppress(FileNotFoundError):
            if pid.isdigit() and not ran_at(int(pid), stale.stat().st_mtime):
                shutil.rmtree(stale, ignore_errors=True)


def ran_at(pid: int, time_stamp: float) -> bool:
    """Whether a living process on this host ran at a time (seconds since 1970).

    A process that started later has taken over the number of one that is gone: after a reboot, or in a container that was started
    again, the next process often has the very number of the last.
    """
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    try:  # Linux tells when a process started: clock ticks after the boot, the 22nd value in stat
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        boot = next(int(line.split()[1]) for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime"))
    except (OSError, ValueError, IndexError, StopIteration):
        return True
    return boot + ticks / os.sysconf("SC_CLK_TCK") < time_stamp + _CLOCK_TOLERANCE


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder`` that takes its name when the block ends, and vanishes when it fails.

    A UserError: the disc is full or refuses, or there is a folder of that name with something in it.
    """
    aside = beside(folder, "partial")
    with writing(folder):
        try:
            remove_left_overs(folder)
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
    old = beside(output, "replaced")
    if output.exists():
        os.rename(output, old)
    os.rename(finished, output)
    sync(output.parent)
    shutil.rmtree(old, ignore_errors=True)
    remove_left_overs(output)


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


def refuse_far(output: Path | str) -> None:
    """A UserError says that an output is an address."""
    if found := ADDRESS.fullmatch(str(output)):
        raise UserError(f"{found[1]}://{found[2]}: far places are only read; write into a folder here, and copy it there")


def refuse_overlap(outputs: Iterable[Path], inputs: Iterable[Path]) -> None:
    """Refuses to write where a command reads, also by another name: through links, relative paths, inside one another.

    All may be files or folders, the files in a folder links themselves.

    Raises:
        UserError: an output is an input, lies in one or holds one.
    """
    outputs = list(outputs)
    for output in outputs:
        refuse_far(output)
    read: dict[Path, Path] = {}
    known: dict[tuple[int, int], Path] = {}
    for given in inputs:
        if isinstance(given, FarPath):
            continue
        read |= dict.fromkeys(_names_of(given), given)
        for file in (given, *(given.iterdir() if given.is_dir() else ())):
            if file.is_symlink():
                read[Path(os.path.realpath(file))] = given  # resolve() of a link to itself raises
            if file.exists():
                known[file.stat().st_dev, file.stat().st_ino] = given
    for output in outputs:
        there = output.stat() if output.exists() else None
        found = known.get((there.st_dev, there.st_ino)) if there else None
        for name in _names_of(output):
            inside = (given for path, given in read.items() if name in (path, *path.parents) or path in name.parents)
            found = found or next(inside, None)
        if found is not None:
            raise UserError(
                f"{output} is, holds or lies in {found}, which this command reads: an input is never replaced, also not with "
                "--overwrite; write to another place"
            )


def _names_of(path: Path) -> set[Path]:
    return {Path(os.path.abspath(path)), Path(os.path.realpath(path))}


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


class _Loader(yaml.SafeLoader):
    """YAML with the scalars of JSON: 1e-4 is a number, 00 and 1:00:00:00 and yes are text; a repeated key is an error."""

    # Spelled out instead of inherited: YAML 1.1 would read 01 in base 8, 1:00:00:00 in base 60, and 2e-4 as text.
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012 (PyYAML's own declaration)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):  # a few lines of them may stand for more than any memory
            raise yaml.YAMLError("it has an alias (*NAME); write out what it stands for")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        _refuse_repeated(self.construct_object(key, deep=True) for key, _ in node.value)
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("null", r"null|~|", "n~"),
    ("bool", r"true|false", "tf"),
    ("int", r"[-+]?(0|[1-9]\d*)", "-+0123456789"),
    ("float", r"[-+]?(\.\d+|\d+\.\d*|(0|[1-9]\d*)(?=[eE]))([eE][-+]?\d+)?", "-+.0123456789"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), [*_first, *([""] * (_tag == "null"))]
    )


def _refuse_repeated(keys: Iterable[Any]) -> None:
    if repeated := sorted(key for key, count in Counter(map(str, keys)).items() if count > 1):
        raise ValueError(f"given twice: {', '.join(repeated[:10])}" + f" and {len(repeated) - 10} more" * (len(repeated) > 10))


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _refuse_repeated(key for key, _ in pairs)
    return dict(pairs)


def read_mapping(path: Path, kind: str) -> dict[str, Any]:
    """The object in a file: ``.yaml`` and ``.yml`` are read as YAML, everything else as JSON. Messages call it by its kind.

    Raises:
        UserError: the file cannot be read or is no object with text keys, or a key is given twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # editors on Windows begin a file with a mark of its encoding
        if path.suffix in (".yaml", ".yml"):
            found = yaml.load(text, _Loader)
        else:
            found = json.loads(text, object_pairs_hook=_unique)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path}: this {kind} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise UserError(f'{path}: the {kind} must be one object of named values, such as {{"name": value}}')
    return found
