"""``python prepare.py phantom | volumes | check``: from raw files to training volumes, and a look at them before training."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError, reported
from utils.get_args import data_folder
from utils.phantom import ForwardModel, write_phantom_dataset

REPOSITORY = Path(__file__).resolve().parent

log = logging.getLogger("isoscope")


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Says the default of every option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def build_parser() -> argparse.ArgumentParser:
    """The sub-commands and their options."""
    parser = argparse.ArgumentParser(prog="prepare.py", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_phantom(commands)
    return parser


def _add_phantom(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "phantom", help="a procedural data set whose isotropic truth is known", allow_abbrev=False, formatter_class=_Help
    )
    add = parser.add_argument
    add("--dataset", default="phantom", metavar="NAME", help="folder within the data folder")
    add("--volumes", type=int, default=4, metavar="N", help="training volumes")
    add("--validation", type=int, default=1, metavar="N", help="validation volumes")
    add("--shape", type=int, nargs=3, default=(128, 128, 128), metavar=("Z", "Y", "X"), help="voxels of the isotropic truth")
    add("--factor", type=int, default=8, help="planes of the truth per recorded slice")
    add("--sampling", choices=("average", "pick"), default="average", help="a slice is the mean of its planes, or one of them")
    add("--channels", type=int, choices=(1, 2), default=1, help="2: nuclei in x3d0, tubules and membranes in x3d1")
    add("--voxel_um", type=float, default=0.25, metavar="UM", help="side of the truth's voxels in µm")
    add("--seed", type=int, default=0, help="every seed is another specimen")
    _add_place(parser)


def _add_place(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--env", metavar="PROFILE", help="machine profile of env/env: where the data are; default local")
    parser.add_argument("--data_root", metavar="DIR", help="folder of the data sets, instead of the profile's")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def phantom(options: argparse.Namespace) -> None:
    """Makes the phantom data set, or what is missing of it."""
    folder = dataset_folder(options)
    written = write_phantom_dataset(
        folder, volumes=options.volumes, validation=options.validation, shape=tuple(options.shape), seed=options.seed,
        channels=options.channels, voxel_um=options.voxel_um, model=ForwardModel(options.factor, options.sampling),
    )  # fmt: skip
    done = f"{len(written)} files written" if written else "complete already"
    log.info("phantom %s: %s. Slices in train/ and val/, the isotropic truth in truth/", folder, done)


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
    options = build_parser().parse_args(arguments)
    with reported(options.debug):
        {"phantom": phantom}[options.command](options)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    main(sys.argv[1:])
