"""``python import_reference.py --from DIR --epoch N --run RUN``: weights of the reference → a run of ours."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiment.autoencoder import read_autoencoder_yaml
from experiment.command_line import read_command_line
from experiment.reading import COMMAND_LINE, default_settings, model_options, read_settings
from training import MODEL_OPTIONS
from utils.command_line import Messages, Parser
from utils.errors import UserError, reported

REPOSITORY = Path(__file__).resolve().parent

EPILOG = """Any option of train.py may follow, for what the weights do not tell (--cropz 32 --downbranch 2); --jsn brings a whole
experiment. The files are read without executing anything in them; files of torch before 1.6 are refused. Every key that was
used, dropped or missing is listed in RUN/import.json.

examples:
  import_reference.py --from ref/checkpoints --epoch 200 --run aisr200 --jsn aisr       (a run under LOGS/dataset/)
  import_reference.py --from ref/checkpoints --epoch 200 --run ./aisr200 --models ae0iso0tccutvqq"""

log = logging.getLogger("isoscope")


def build_parser() -> Parser:
    """The options of an import."""
    about = "Turn component checkpoints of the reference into a run of ours."
    parser = Parser(prog="import_reference.py", description=about, epilog=EPILOG)
    add = parser.add_argument
    add("--from", type=Path, required=True, metavar="DIR", dest="folder", help="folder of <component>_model_epoch_N.pth")
    add("--epoch", type=int, required=True, metavar="N", help="number in the names of the files")
    text = "new run: a name under LOGS/dataset/ of the experiment; a path if it begins with / . or ~, or without --jsn"
    add("--run", required=True, metavar="RUN", help=text)
    add("--jsn", metavar="NAME", help="experiment of the reference's training: env/jsn/NAME.json, or a path")
    add("--models", choices=sorted(MODEL_OPTIONS), help="the model; unset: the experiment's, else by the files")
    return parser


def asked(options: argparse.Namespace, rest: Sequence[str], model: str) -> tuple[dict[str, Any], dict[str, str], Path]:
    """Settings as far as the user says them, where each was said, and the folder of the run."""
    path = Path(options.run).expanduser().absolute()
    if any(word.partition("=")[0] == "--prj" for word in rest):
        raise UserError("--prj has no place here: --run names the run")
    if options.jsn is None:
        typed = read_command_line(rest, *model_options(MODEL_OPTIONS, model, "--models")[1:])[0]
        settings = default_settings(MODEL_OPTIONS, model, **typed)
        return settings | {"prj": path.name}, dict.fromkeys(typed, COMMAND_LINE), path
    named = ["--models", options.models] if options.models else []
    experiment = read_settings(["--jsn", options.jsn, "--prj", path.name, *named, *rest], MODEL_OPTIONS, REPOSITORY)
    given = {key: source for key, source in experiment.given.items() if key not in ("jsn", "prj")}
    if not options.run.startswith(("/", ".", "~")):
        path = experiment.logs / experiment.settings["dataset"] / options.run
        experiment.settings["prj"] = options.run
    return experiment.settings, given, path


def main(arguments: Sequence[str]) -> None:
    """Files → settings → model of ours → run."""
    options, rest = build_parser().parse_known_args(arguments)
    from reference.files import component_files, read_reference
    from reference.run import as_report, build_filled, check_family, model_of, settle, write_run

    files = component_files(options.folder, options.epoch)
    settings, given, folder = asked(options, rest, options.models or model_of(files, options.folder))
    if folder.exists():
        raise UserError(f"{folder} exists already and is left alone; choose another --run")
    check_family(settings, files, options.folder)
    sources = read_reference(files)
    autoencoder = read_autoencoder_yaml(REPOSITORY, settings["ldmyaml"]) if "ldmyaml" in settings else None
    settled, notes = settle(settings, given, sources, autoencoder)
    model, fitted = build_filled(settled, sources)
    report = as_report(files, options.epoch, fitted, notes)
    write_run(folder, settled, model, options.epoch, report)
    parts = [line for part in fitted for line in part.lines()]
    for line in [f"{options.folder}, epoch {options.epoch}: {settled['models']}", *notes, *parts]:
        log.info(line)
    if report["files_not_used"]:
        log.info("not used: %s", ", ".join(report["files_not_used"]))
    if not (folder / "dataset.json").is_file():
        log.info("the intensity range of the training is not known: infer.py will ask for --normalise volume or percentile")
    log.info("written: %s; every key is listed in import.json. Go on with train.py --init %s@%s", folder, folder, options.epoch)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[Messages()])
    with reported(debug="--debug" in sys.argv):
        main(sys.argv[1:])
