"""``infer.py export``: a code store, or a run, as one folder that needs nothing else and that no program has to unpickle.

::

    FOLDER/
        README.md              what it is and how to read it
        export.json            the run that it was, and which of its components are here
        0.json, dataset.json   settings of the training; intensity transform of its data
        checkpoints/           <component>_model_epoch_N.safetensors, manifest.json
        codes.zarr/            the code store, where one was exported: a valid OME-Zarr group
        SHA256SUMS             of all files, for ``sha256sum --check``

It has the anatomy of a run's folder, so ``--run`` and ``--init`` take it, and ``decode`` takes it for the store inside. With a
store come the components that decode it alone.
"""

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save

from codes.record import KEY, check_inside
from codes.store import UNIT, CodeStore
from experiment.manifest import WEIGHTS
from experiment.runs import CODES, EXPORT, EXPORT_VERSION, RunFolder, program_version
from inference.run import Run
from sharing.card import card, evaluation
from utils.boxes import boxes
from utils.checksums import sealed, write_checksums
from utils.errors import UserError
from utils.files import new_folder, refuse_overlap, write_json, write_text
from utils.machine import Engine

log = logging.getLogger("isoscope")


def export(
    what: Path | str,
    output: Path | str,
    *,
    run: Path | str | None = None,
    epoch: int | None = None,
    evaluations: Sequence[Path | str] = (),
    about: Path | str | None = None,
) -> Path:
    """Makes the folder of a finished code store, with what decodes it, or of a run with all that applies it or trains on.

    Averaged weights are taken where there are any; discriminators are left out.

    Args:
        what: a code store, or a training's folder.
        output: the folder; it appears whole or not at all.
        run: that made the store; by default the folder that the store names.
        epoch: completed epochs of the weights; by default the store's, or the latest.
        evaluations: folders that evaluate.py wrote about outputs of these weights; the page says what they found.
        about: a file of Markdown that the page has, too: source and licence of the data, how it was trained.

    Returns:
        The folder.

    Raises:
        UserError: there is something at that place; a store that is damaged, or not of that run; an evaluation
            of other weights; ``about`` that is no text; as of :meth:`Run.load`.
    """
    what, output = Path(what), Path(output)
    if output.exists() or output.is_symlink():
        raise UserError(f"{output} exists; an export never replaces anything, choose another name")
    if not what.is_dir():
        raise UserError(f"{what}: there is no such folder; export takes a code store or a training's folder")
    store = None if (what / "0.json").is_file() and not (what / CODES).is_dir() else CodeStore.open(what)
    refuse_overlap([output], [what])
    said = "" if about is None else _text(Path(about))
    engine = Engine.choose("cpu")
    if store is None:
        opened = Run.load(what, epoch, engine, as_trained=True)
    else:
        opened = Run.of_store(store, run, epoch, engine, as_trained=True)
        for box in boxes(store.shape, UNIT):  # no damage gets a checksum
            store.read(box)
    judged = [evaluation(Path(folder), opened) for folder in evaluations]
    with new_folder(output) as folder:
        _write(folder, opened, store, judged, said)
    log.info("%s: exported %s; README.md says how to read it", output, opened.name if store is None else store.path)
    return output


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        raise UserError(f"--about {path} cannot be read as text ({error}); name a file of Markdown in UTF-8") from error


def _write(folder: Path, run: Run, store: CodeStore | None, judged: Sequence[Mapping[str, Any]], said: str) -> None:
    """All files; of a run that was exported before, all that it still has."""
    made, source = RunFolder(folder), RunFolder(run.path)
    made.checkpoints.mkdir()
    made.write_settings({**run.settings, "logs": None, "data_root": None})  # places of this machine
    if source.dataset_record.is_file():
        shutil.copyfile(source.dataset_record, made.dataset_record)
    wanted = run.model.G.keys() if store is None else set(run.model.decoding) & run.model.G.keys()
    for name in sorted(wanted):
        state = {key: value.contiguous() for key, value in run.model.G[name].state_dict().items()}
        made.component(name, run.epoch).with_suffix(WEIGHTS[1]).write_bytes(save(state))
    made.manifest.add_set(run.epoch, made.manifest.set_of(run.epoch))
    whose = {"run": run.name, "epoch": run.epoch, "ema": run.ema, "weights": run.weight_hash}
    facts = {"version": EXPORT_VERSION, **whose, "components": sorted(wanted), "isoscope_version": program_version()}
    write_json(folder / EXPORT, facts)
    if store is not None:
        for file in sorted(store.path.rglob("*")):
            check_inside(store.path, file)
            if file.is_file():
                copy = folder / CODES / file.relative_to(store.path)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, copy)
        group = json.loads((folder / CODES / "zarr.json").read_text(encoding="utf-8"))
        group["attributes"][KEY]["run_path"] = ".."
        write_json(folder / CODES / "zarr.json", {**group, "attributes": sealed(folder / CODES, group["attributes"])})
    write_text(folder / "README.md", card(run, facts, store, judged, said))
    write_checksums(folder)
