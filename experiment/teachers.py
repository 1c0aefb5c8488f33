"""The lateral run that a training builds on (``--teacher RUN``), and what it says of a training on the same data (torch-free)."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiment.options import as_text
from experiment.reading import Experiment, Models
from experiment.runs import RunFolder
from utils.errors import UserError
from utils.geometry import LATENT_STRIDE

OPERATORS = {"dsp": "pick", "mean": "mean"}  # what a slice is of its planes, as l1how and as axial_sampling say it
PROJECTIONS = {sampling: how for how, sampling in OPERATORS.items()}
# what a model that takes the very network must have, too
TAKEN = ("uprate", "axial_sampling", "axial_sigma", "axial_taps", "input_nc", "ngf", "blocks", "fine_width")

_OF_DATA = ("dataset", "direction", "nm", "nm_clip")
_TWO_CHANNELS = ("tc", "input_nc", "output_nc")
_OF_CROPS = ("cropz", "dsp", "usp", "downbranch", "resizebranch")


def needs_teacher(settings: Mapping[str, Any]) -> bool:
    """Whether a training reads the run of its teacher; texture does as it begins, and only without ``--init``."""
    begins = not (settings["init"] or settings["resume"])
    return bool(settings.get("teacher")) and (begins or settings["models"] != "texture")


def folder_of_run(option: str, name: str, logs: Path) -> Path:
    """The folder of a run that an option names, from the working directory or from the folder of runs.

    Raises:
        UserError: it is in neither.
    """
    folder = next((path for path in (Path(name), logs / name) if path.is_dir()), None)
    if folder is None:
        raise UserError(
            f"{option} {name!r}: neither {name} nor {logs / name} is a folder; name a run's folder, or train it first"
        )
    return folder


def stored_lateral(folder: Path | str, models: Models) -> dict[str, Any]:
    """The complete settings of a teacher's run.

    Raises:
        UserError: no run, or not of the lateral model.
    """
    where = f"teacher={folder}"
    if not Path(folder).is_dir():
        raise UserError(f"{where}: there is no such folder; name a run of the lateral model, or leave teacher out")
    run = RunFolder(Path(folder))
    run.exported()  # whole, where it is such a folder
    stored = run.stored_settings(models)
    if stored["models"] != "lateral":
        raise UserError(
            f"{where} is a run of {stored['models']}; a teacher is a run of the lateral model: train one with "
            "--models lateral (env/jsn/quickstart.json is an example)"
        )
    return stored


def taught(experiment: Experiment, models: Models) -> Experiment:
    """The same experiment; what was not given is as in the run of its teacher, where there is one.

    That is the data, and how slices stand for planes; of a model that takes over the very network how that is built, too.

    Raises:
        UserError: there is no such run, or it is not of the lateral model.
    """
    settings = experiment.settings
    if not (needs_teacher(settings) or (settings.get("teacher") and not settings["dataset"])):
        return experiment
    known = stored_lateral(folder_of_run("--teacher", settings["teacher"], experiment.logs), models)
    of_data = (*_OF_DATA, *(_TWO_CHANNELS if known["tc"] and "direction" not in experiment.given else ()))
    taken = {name: known[name] for name in (*of_data, *(TAKEN if "axial_sampling" in settings else ()))}
    taken["l1how"] = PROJECTIONS[known["axial_sampling"]]
    if not experiment.given.keys() & set(_OF_CROPS):
        taken |= _crops(settings["cropsize"], known["uprate"]) if "l1how" in settings else {}
    taken = {name: value for name, value in taken.items() if name in settings and name not in experiment.given}
    said = ", ".join(f"{name} {as_text(value)}" for name, value in taken.items() if value is not None)
    notes = [*experiment.notes, f"as in the teacher {settings['teacher']}: {said}"]
    return replace(experiment, settings=settings | taken, notes=notes)


def _crops(side: int, apart: float) -> dict[str, int]:
    """Crops of a model with codes whose slices become as many planes as they lie pixels apart, a divisor of 16, else 8."""
    planes = int(apart) if 2 * LATENT_STRIDE % apart == 0 else LATENT_STRIDE
    doubled = planes > LATENT_STRIDE
    return {"cropz": side // planes, "downbranch": (1 + doubled) * LATENT_STRIDE // planes, "resizebranch": 1 + doubled}
