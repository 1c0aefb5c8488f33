"""The files of a command: what it reads and writes, and what of that is finished."""

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from utils.errors import UserError
from utils.files import refuse_far, refuse_overlap
from utils.processes import Processes
from volumes.open import expand_inputs, open_channels, open_volume
from volumes.volume import Volume
from writing.target_plan import SUFFIXES, refuse_existing

log = logging.getLogger("isoscope")

_SUFFIXES = (*SUFFIXES, ".ome.zarr")


@dataclass(frozen=True)
class Output:
    """Where the result of a command goes, and what else it does.

    Attributes:
        path: its ending says the format.
        overwrite: replace an existing output.
        dry_run: say what would be done, with the time that a piece takes.
        consistency: also write the output projected onto the input, minus it.
        uncertainty: passes of which the standard deviation is also written; 0: none.
        invented: also write what texture added to the output.
        preview: also write a picture.
        compression: of a TIFF.
        processes: who shares the work.
        among: one of several of a command: what of them is finished stays as it is when the command is started again.
    """

    path: Path
    overwrite: bool = False
    dry_run: bool = False
    consistency: bool = False
    uncertainty: int = 0
    invented: bool = False
    preview: bool = False
    compression: str = "zstd"
    processes: Processes = field(default_factory=Processes)
    among: bool = False

    def beside(self, what: str, suffix: str | None = None) -> Path:
        """OUT_what.suffix for OUT.suffix."""
        ending = _ending(self.path)
        return self.path.with_name(f"{self.path.name[: -len(ending)]}_{what}{suffix or ending}")

    @property
    def files(self) -> list[Path]:
        """All that is written."""
        side = (("uncertainty", None), ("invented", None), ("consistency", None), ("consistency", ".json"), ("preview", ".png"))
        return [self.path, *(self.beside(what, suffix) for what, suffix in side if getattr(self, what))]

    def finished(self, records: Mapping[Path, Mapping[str, Any]]) -> set[Path]:
        """The outputs that an interrupted command of the same kind has finished already, by what is recorded in them.

        Raises:
            UserError: there are all of them, or one that another command made.
        """
        if self.overwrite:
            return set()
        found = set()
        for path, wanted in records.items():
            try:
                there = open_volume(path, channel=0).attributes if path.exists() else {}
            except UserError:  # something else lies there
                continue
            if says(there, wanted):
                found.add(path)
        if len(found) == len(records) and not (self.preview or self.among):
            found = set()
        for path in records.keys() - found:
            refuse_existing(path, overwrite=False)
        for path in found:
            log.info("%s is finished; going on with the rest", path)
        return found


def says(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether the record in an output has all that is wanted: then the same command has made it."""
    return all(there.get(key) == value for key, value in json.loads(json.dumps(wanted)).items())


def refuse_inputs(outputs: Iterable[Output], run: Path, volumes: Iterable[Volume], *others: Path) -> None:
    """Refuses to write over what a command reads: the weights in its run's folder, volumes and others.

    Raises:
        UserError: an output is, holds or lies in one of them.
    """
    read = [file for volume in volumes for file in (volume.path, *volume.files)]
    refuse_overlap([file for output in outputs for file in output.files], [run / "checkpoints", *read, *others])


def _ending(path: Path) -> str:
    """The longest known ending of a name."""
    return max((suffix for suffix in _SUFFIXES if path.name.lower().endswith(suffix)), key=len, default="")


def inputs_and_outputs(
    channels: int,
    inputs: Sequence[Path],
    output: Path,
    suffix: str,
    channel: Sequence[int] | None = None,
    **which: Any,
) -> list[tuple[list[Volume], Path]]:
    """What a command works on: the channels of each volume, and where its output goes.

    Args:
        channels: of the run.
        inputs: files and folders.
        output: of one volume; of several the folder.
        suffix: of the outputs of several volumes.
        channel: of files of several; two files for a run of two channels are one volume unless channels are named.
        which: ``time``, ``scene`` and ``level`` as of :func:`volumes.open.open_volume`.

    Raises:
        UserError: an input cannot be opened, has other channels than the run, or several outputs need a folder.
    """
    paths = expand_inputs(inputs)
    if channels == 2 and len(paths) == 2 and channel is None:
        return [([open_volume(path, **which) for path in paths], output)]
    if channel is None:
        found = [open_channels(path, channels, **which) for path in paths]
    else:
        found = [[open_volume(path, channel=c, **which) for c in channel] for path in paths]
    if len(paths) == 1:
        return [(found[0], output)]
    refuse_far(output)
    output.mkdir(parents=True, exist_ok=True)
    outputs = []
    for path in paths:
        ending = _ending(path) or (path.suffix if path.is_file() else "")
        outputs.append(output / (path.name[: len(path.name) - len(ending)] + suffix))
    if len(set(outputs)) < len(outputs):
        raise UserError(f"two inputs would be written to one output in {output}; rename them: {', '.join(map(str, paths))}")
    return list(zip(found, outputs, strict=True))
