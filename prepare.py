"""``python prepare.py phantom | volumes | check``: from raw files to training volumes, and a look at them before training."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from dataloader.phantom.phantom import ForwardModel, write_phantom_dataset
from training.options import MODEL_OPTIONS
from utils.errors import UserError, reported
from utils.geometry import voxel_size
from utils.settings.check_settings import settings_to_train
from utils.settings.get_args import check_data_root, data_folder, read_settings
from utils.settings.prepare_options import build_parser

REPOSITORY = Path(__file__).resolve().parent

log = logging.getLogger("isoscope")


def phantom(options: argparse.Namespace) -> None:
    """Makes the phantom data set, or what is missing of it."""
    folder = dataset_folder(options)
    written = write_phantom_dataset(
        folder,
        volumes=options.volumes,
        validation=options.validation,
        shape=tuple(options.shape),
        seed=options.seed,
        channels=options.channels,
        voxel_um=options.voxel_um,
        model=ForwardModel(options.factor, options.sampling),
    )
    done = f"{len(written)} files written" if written else "complete already"
    log.info("phantom %s: %s. Slices in train/ and val/, the isotropic truth in truth/", folder, done)


def volumes(options: argparse.Namespace) -> None:
    """Makes training volumes of raw ones."""
    from dataloader.cutting import Lattice
    from dataloader.pairs import open_sources
    from dataloader.preparation import Normalisation, Plan, prepare_volumes

    kind = options.normalise or ("00" if options.link else "11")
    plan = Plan(
        dataset_folder(options),
        tuple(options.direction.split("_")),
        Lattice(tuple(options.patch), tuple(options.step), options.incomplete),
        Normalisation(kind, options.threshold, options.percentile, options.trd),
        fraction=options.val,
        min_mean=options.min_mean,
        scale=options.scale,
        voxel_um=voxel_size(options.voxel),
        overwrite=options.overwrite,
        link=options.link,
    )
    sources = open_sources(options.input, plan.directions, options.channel, options.time, options.scene)
    unneeded = ("command", "input", "env", "data_root", "debug", "overwrite")
    settings = {name: value for name, value in vars(options).items() if name not in unneeded}
    for line in prepare_volumes(plan, sources, settings):
        log.info(line)
    nm = "11" if kind in ("00", "01") else "00"
    log.info("train with --dataset %s --direction %s --nm %s", options.dataset, options.direction, nm)


def check(options: argparse.Namespace, rest: Sequence[str]) -> None:
    """Looks at the data of an experiment and says what is wrong and what would fit.

    Raises:
        UserError: anything that would stop a training, after everything else was said.
    """
    from dataloader.check import file_lines, report, survey
    from dataloader.data_multi import DataModule
    from training.requirements import training_requirements

    experiment = read_settings(["--prj", "check", *rest], MODEL_OPTIONS, REPOSITORY)
    check_data_root(experiment)
    settings = experiment.settings
    folder = experiment.data_root / settings["dataset"]
    for line in experiment.notes:
        log.info(line)
    files, problems = survey(folder, settings["direction"].split("_"))
    needs: list[str] = []
    try:  # the checks that train.py makes before a training
        complete = settings_to_train(settings, REPOSITORY)
        DataModule.from_settings(settings, experiment.data_root).check()
    except UserError as error:
        problems.append(str(error))
    else:
        needs = training_requirements(complete).lines(settings, sum(file.nbytes for file in files))
    place = Path(options.report or experiment.logs / settings["dataset"] / "check")
    said = report(files, problems, settings, needs, place) if files else []
    for line in [f"{folder}: {len(files)} files", *file_lines(files), *said]:
        log.info(line)
    if problems:
        raise UserError("a training would stop: " + "; ".join(dict.fromkeys(problems)))


def dataset_folder(options: argparse.Namespace) -> Path:
    """{DATASET}/{dataset} of the machine profile.

    Raises:
        UserError: a name that leads out of the data folder; see also ``data_folder``.
    """
    name = Path(options.dataset)
    if name.is_absolute() or ".." in name.parts or name == Path():
        raise UserError(f"dataset={options.dataset} must be the name of a folder inside the data folder")
    return data_folder(REPOSITORY, env=options.env, data_root=options.data_root) / name


def main(arguments: Sequence[str]) -> None:
    """Runs the command line."""
    with reported(debug="--debug" in arguments):
        options, rest = build_parser().parse_known_args(arguments)
        if options.command == "check":
            check(options, rest)
        elif rest:
            raise UserError(f"not understood: {' '.join(rest)}; see prepare.py {options.command} --help")
        else:
            {"phantom": phantom, "volumes": volumes}[options.command](options)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    main(sys.argv[1:])
