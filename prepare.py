"""``python prepare.py phantom | volumes | check``: from raw files to training volumes, and a look at them before training."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiment.reading import COMMAND_LINE, Experiment, known_experiments, read_settings
from experiment.rules import settings_to_train
from experiment.teachers import taught
from training import MODEL_OPTIONS
from utils.axes import exchanged
from utils.command_line import Messages, Parser, add_shared, chosen, command, voxel_size
from utils.errors import UserError, reported
from utils.files import read_mapping, write_json
from utils.places import dataset_folder

REPOSITORY = Path(__file__).resolve().parent

VOLUMES = """examples:
  prepare.py volumes --input scan.ome.zarr --dataset brain --percentile 0.1 99.9
  prepare.py volumes --input raw/*.tif --dataset brain --patch 32 256 256 --step 16 128 128 --min_mean 300 --normalise zrescale
  prepare.py volumes --input nuclei/*.tif --input membranes/*.tif --dataset plant --direction x3d0_x3d1
  prepare.py volumes --input both.ome.tif --channel 0 1 --dataset plant --direction x3d0_x3d1
  prepare.py volumes --input huge.tif --dataset brain --link

validation: of several volumes the last ones; of one volume its last rows (planes, where rows are too few), after a gap of
  1/8 patch.
patches: without --patch every volume becomes one file. Training draws its crops from anywhere in it, so patches are needed
  only to leave out background.
dataset.json records sources, positions, intensity transforms, voxel sizes and settings."""

CHECK = """All options of train.py (see python train.py --help) are read as a training would; --prj may be left out.
  prepare.py check --jsn lateral --dataset brain --write brain       (then train.py --jsn brain --prj first)
  prepare.py check --jsn aisr --dataset brain --nm 11 --cropsize 64 --cropz 8"""

_TWO = "; with --tc as the channels of one volume, without to translate the first to the second"

log = logging.getLogger("isoscope")


def build_parser() -> Parser:
    """The sub-commands and their options."""
    about = "From raw files to training volumes, and a look at them before a training."
    parser = Parser(prog="prepare.py", description=about, debug=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _phantom_options(_command(commands, "phantom", "make a procedural data set whose isotropic truth is known"))
    text = "microscope files of any readable format to training volumes"
    _volume_options(_command(commands, "volumes", text, epilog=VOLUMES))
    text = "look at the data of an experiment: what is wrong, what would fit"
    look: Parser = commands.add_parser("check", help=text, description=text, epilog=CHECK, debug=False)  # as train.py has it
    look.add_argument("--report", metavar="DIR", help="folder for the pictures and check.json; default LOGS/{dataset}/check")
    text = "also write env/jsn/NAME.json: the experiment --jsn (lateral) with what was found and what was given here"
    look.add_argument("--write", metavar="NAME", help=text)
    text = "with --write: an experiment of this name becomes NAME.json.1, and the new one takes its place"
    look.add_argument("--overwrite", action="store_true", help=text)
    look.add_argument(
        "--gpu", action="store_true", help="with --write: batches and workers for a GPU (their choice is not measured)"
    )
    return parser


def _command(commands: argparse._SubParsersAction, name: str, text: str, epilog: str = "") -> Parser:
    parser: Parser = commands.add_parser(name, help=text, description=text, epilog=epilog)
    place = parser.add_argument_group("where").add_argument
    place("--env", metavar="PROFILE", help="machine profile of env/env: where the data are; default local")
    place("--data_root", metavar="DIR", help="folder of the data sets, instead of the profile's")
    return parser


def _phantom_options(parser: Parser) -> None:
    add = parser.add_argument
    add("--dataset", default="phantom", metavar="NAME", help="folder within the data folder")
    add("--volumes", type=int, default=4, metavar="N", help="training volumes")
    add("--validation", type=int, default=1, metavar="N", help="validation volumes")
    add("--shape", type=int, nargs=3, default=(128, 128, 128), metavar=("Z", "Y", "X"), help="voxels of the isotropic truth")
    add("--factor", type=int, default=8, metavar="N", help="planes of the truth per recorded slice")
    add("--sampling", choices=("average", "pick"), default="average", help="a slice is the mean of its planes, or one of them")
    add("--channels", type=int, choices=(1, 2), default=1, help="2: nuclei in x3d0, tubules and membranes in x3d1")
    add("--voxel_um", type=float, default=0.25, metavar="UM", help="side of the truth's voxels in µm")
    add("--seed", type=int, default=0, metavar="N", help="every seed is another specimen")


def _volume_options(parser: Parser) -> None:
    add = parser.add_argument
    text = "files (TIFF, NIfTI, MRC, CZI, LIF, ND2) or folders (slices, Zarr); once more for each further direction, in order"
    add("--input", nargs="+", action="append", required=True, metavar="PATH", help=text)
    add("--dataset", required=True, metavar="NAME", help="folder within the data folder")
    add("--direction", default="x3d0", metavar="NAMES", help="folder in train/ and val/; several joined by _ are cut identically")
    add_shared(parser, "--channel", nargs="+", help="channel of multi-channel files, one for all or one per direction")
    add_shared(parser, "--time", "--scene", "--voxel")
    text = "the files' axis along which they are coarse, where that is not z; it becomes z, and patches are cut from that"
    add_shared(parser, "--thick", default="z", help=text)
    add("--val", type=float, metavar="FRACTION", help="for validation; 0: none; default 0.1 where there is room")
    add("--link", action="store_true", help="use whole TIFF files where they are, by link; no value is changed")
    add("--overwrite", action="store_true", help="replace what an earlier call made of these directions")
    add, zyx = parser.add_argument_group("patches").add_argument, ("Z", "Y", "X")
    add("--patch", type=int, nargs=3, default=(0, 0, 0), metavar=zyx, help="voxels of a patch; 0 is the whole axis")
    add("--step", type=int, nargs=3, default=(0, 0, 0), metavar=zyx, help="from one patch to the next; 0 is the patch's size")
    text = "what is left at the far ends: one more patch that ends there and overlaps, or nothing"
    add("--incomplete", choices=("shift", "drop"), default="shift", help=text)
    add("--min_mean", type=float, metavar="GREY", help="skip patches whose mean grey value (first direction) is lower")
    add, ends = parser.add_argument_group("grey values, in this order").add_argument, ("LOW", "HIGH")
    add("--threshold", type=float, nargs=2, metavar=ends, help="clip at these grey values")
    add("--percentile", type=float, nargs=2, metavar=ends, help="clip at these percentiles of every volume")
    text = "00: unchanged; 01, 11: to [0, 1], [-1, 1]; zrescale: log z-score to [-1, 1]; default 11 (--link: 00)"
    add("--normalise", choices=("00", "01", "11", "zrescale"), help=text)
    add("--trd", type=float, default=6.0, metavar="SD", help="standard deviations that zrescale maps to 1")
    add("--scale", choices=("volume", "dataset"), default="volume", help="who shares the constants of 01, 11 and zrescale")


def phantom(options: argparse.Namespace) -> None:
    """Makes the phantom data set, or what is missing of it."""
    from dataloader.phantom.phantom import ForwardModel, write_phantom_dataset

    folder = dataset_folder(REPOSITORY, options.dataset, options.env, options.data_root)
    written = write_phantom_dataset(
        folder,
        shape=tuple(options.shape),
        model=ForwardModel(options.factor, options.sampling),
        **{name: getattr(options, name) for name in ("volumes", "validation", "seed", "channels", "voxel_um")},
    )
    done = f"{len(written)} files written" if written else "complete already"
    log.info("phantom %s: %s. Slices in train/ and val/, the isotropic truth in truth/", folder, done)


def volumes(options: argparse.Namespace) -> None:
    """Makes training volumes of raw ones."""
    from dataloader.cutting import Lattice
    from dataloader.preparation import Normalisation, Plan, prepare_volumes
    from dataloader.sources import open_sources

    kind, voxel = options.normalise or ("00" if options.link else "11"), voxel_size(options.voxel)
    plan = Plan(
        dataset_folder(REPOSITORY, options.dataset, options.env, options.data_root),
        tuple(options.direction.split("_")),
        Lattice(tuple(options.patch), tuple(options.step), options.incomplete),
        Normalisation(kind, options.threshold, options.percentile, options.trd),
        fraction=options.val,
        voxel_um=voxel and exchanged(voxel, options.thick),
        **chosen(options, Plan),
    )
    which = (options.channel, options.time, options.scene)
    sources = open_sources(options.input, plan.directions, *which, plan.voxel_um, plan.thick)
    unneeded = ("command", "input", "env", "data_root", "debug", "overwrite")
    settings = {name: value for name, value in vars(options).items() if name not in unneeded}
    for line in prepare_volumes(plan, sources, settings):
        log.info(line)
    nm = "11" if kind in ("00", "01") else "00"
    channels, words = len(plan.directions) == 2, ("--dataset", options.dataset, "--direction", options.direction)
    log.info("to see whether they are sound, and write what suits them as env/jsn/%s.json:", options.dataset)
    log.info("  %s", command("prepare", "check", "--jsn", "lateral", *words, *["--tc"] * channels, "--write", options.dataset))
    log.info("(other experiments train on them with %s --nm %s%s)", " ".join(words), nm, _TWO * channels)


def check(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Says what is wrong with the data of an experiment and what would fit; a UserError at the end if a training would stop."""
    from dataloader.check import report
    from dataloader.survey import survey
    from dataloader.template import template

    experiment = read_settings(["--prj", "check", *rest], MODEL_OPTIONS, REPOSITORY)
    if experiment.given.get("teacher") == COMMAND_LINE:  # one that only the file names need not be trained yet
        experiment = taught(experiment, MODEL_OPTIONS)
    experiment.require_data()
    if options.gpu and not options.write:
        raise UserError("--gpu says for which machine --write writes an experiment; give --write NAME, too")
    written = options.write and new_experiment(options.write, options.overwrite)
    settings = experiment.settings
    folder = experiment.data_root / settings["dataset"]
    for line in experiment.notes:
        log.info(line)
    files, problems = survey(folder, settings)
    needs = [] if written else training_needs(experiment, settings, files, problems)
    place = Path(options.report or experiment.logs / settings["dataset"] / "check")
    log.info("files in %s: %d", folder, len(files))
    for line in report(files, problems, settings, needs, place) if files else ():
        log.info(line)
    own = {name: settings[name] for name in experiment.given if name not in ("jsn", "prj")}
    if written and files:
        typed = {name: value for name, value in own.items() if experiment.given[name] == COMMAND_LINE}
        log.info("counting what a training takes …")
        own |= template(read_mapping(place / "check.json", "result of a check"), settings, typed, options.gpu)
        for line in training_needs(experiment, {**settings, **own}, files, problems):
            log.info(line)
    if problems:
        raise UserError("a training would stop: " + "; ".join(dict.fromkeys(problems)))
    if written:
        if written.exists():
            written.replace(f"{written}.1")
        write_json(written, {"train": own})
        log.info("written: %s. Go on with", written)
        log.info("  %s", command("train", "--jsn", options.write, "--prj", "first"))
        if own.get("uprate") != 1:  # sections as close as pixels stand for themselves
            log.info(
                "it takes a section for %s: where that is not so, check again with --overwrite --axial_sampling %s%s",
                *(("one plane", "mean") if settings["axial_sampling"] == "pick" else ("the mean of its planes", "pick")),
                ", which also changes the blur that is left (axial_taps)" if "axial_taps" in own else "",
            )


def new_experiment(name: str, overwrite: bool) -> Path:
    """The file of an experiment that does not exist yet, or may be replaced; else a UserError."""
    path = REPOSITORY / "env" / "jsn" / f"{name}.json"
    if Path(name).name != name:
        raise UserError(f"--write {name} must be a name, which becomes env/jsn/NAME.json")
    if name in known_experiments(REPOSITORY) and not (overwrite and path.exists()):
        raise UserError(f"--write: there is an experiment {name} in env/jsn already; choose another name, or add --overwrite")
    return path


def training_needs(experiment: Experiment, settings: dict[str, Any], files: Sequence[Any], problems: list[str]) -> list[str]:
    """What a training with these settings takes, one line each; what train.py would refuse is added to the problems."""
    from dataloader.data_multi import DataModule, require_memory
    from training.requirements import training_requirements, with_restorer

    try:  # the checks that train.py makes before a training
        complete = with_restorer(settings_to_train(settings, REPOSITORY), experiment.logs)
        data = DataModule.from_settings({**settings, "preload": False}, experiment.data_root)
        data.check({file.volume.path: file.ends for file in files})
        if settings["preload"]:
            require_memory(sum(file.nbytes for file in files), experiment.data_root / settings["dataset"])
    except UserError as error:
        problems.append(str(error))
        return []
    return list(training_requirements(complete).lines(settings, sum(file.nbytes for file in files)))


def main(arguments: Sequence[str]) -> None:
    """Runs the command line."""
    with reported(debug="--debug" in arguments):
        options, rest = (parser := build_parser()).parse_known_args(arguments)
        if options.command == "check":
            check(options, rest)
        elif rest:
            parser.error(f"not understood: {' '.join(rest)}")
        else:
            {"phantom": phantom, "volumes": volumes}[options.command](options)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[Messages(sys.stdout)])
    main(sys.argv[1:])
