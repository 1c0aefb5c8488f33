"""The command line of ``prepare.py`` (torch-free)."""

from __future__ import annotations

import argparse

from utils.command_line import Parser

_VOLUMES = """examples:
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

_CHECK = """All options of train.py (see python train.py --help) are read as a training would; --prj may be left out.
  prepare.py check --jsn aisr
  prepare.py check --jsn aisr --dataset brain --nm 11 --cropsize 64 --cropz 8"""


def build_parser() -> Parser:
    """The sub-commands and their options; what is wrong on the command line is a UserError."""
    parser = Parser(
        prog="prepare.py",
        description="From raw files to training volumes, and a look at them before a training.",
        debug=False,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_phantom(commands)
    _add_volumes(commands)
    _add_check(commands)
    return parser


def _command(commands: argparse._SubParsersAction, name: str, text: str, epilog: str = "") -> Parser:
    own = name != "check"  # which has the options of train.py
    parser: Parser = commands.add_parser(name, help=text, description=text, epilog=epilog, debug=own)
    if own:
        place = parser.add_argument_group("where").add_argument
        place("--env", metavar="PROFILE", help="machine profile of env/env: where the data are; default local")
        place("--data_root", metavar="DIR", help="folder of the data sets, instead of the profile's")
    return parser


def _add_phantom(commands: argparse._SubParsersAction) -> None:
    add = _command(commands, "phantom", "make a procedural data set whose isotropic truth is known").add_argument
    add("--dataset", default="phantom", metavar="NAME", help="folder within the data folder")
    add("--volumes", type=int, default=4, metavar="N", help="training volumes")
    add("--validation", type=int, default=1, metavar="N", help="validation volumes")
    add("--shape", type=int, nargs=3, default=(128, 128, 128), metavar=("Z", "Y", "X"), help="voxels of the isotropic truth")
    add("--factor", type=int, default=8, metavar="N", help="planes of the truth per recorded slice")
    add("--sampling", choices=("average", "pick"), default="average", help="a slice is the mean of its planes, or one of them")
    add("--channels", type=int, choices=(1, 2), default=1, help="2: nuclei in x3d0, tubules and membranes in x3d1")
    add("--voxel_um", type=float, default=0.25, metavar="UM", help="side of the truth's voxels in µm")
    add("--seed", type=int, default=0, metavar="N", help="every seed is another specimen")


def _add_volumes(commands: argparse._SubParsersAction) -> None:
    parser = _command(commands, "volumes", "microscope files of any readable format to training volumes", _VOLUMES)
    add = parser.add_argument
    add(
        "--input",
        nargs="+",
        action="append",
        required=True,
        metavar="PATH",
        help="files (TIFF, NIfTI, MRC, CZI, LIF, ND2) or folders (slices, Zarr); once more for every further direction, in the "
        "same order",
    )
    add("--dataset", required=True, metavar="NAME", help="folder within the data folder")
    add("--direction", default="x3d0", metavar="NAMES", help="folder in train/ and val/; several joined by _ are cut identically")
    add("--channel", type=int, nargs="+", metavar="N", help="channel of multi-channel files, one for all or one per direction")
    add("--time", type=int, metavar="N", help="time point of time series")
    add("--scene", type=int, metavar="N", help="scene, position or series of CZI, LIF or ND2 files, counted from 0")
    add("--voxel", metavar="z,y,x", help="voxel size in µm where the files state none")
    add("--val", type=float, metavar="FRACTION", help="for validation; 0: none; default 0.1 where there is room")
    add("--link", action="store_true", help="use whole TIFF files where they are, by link; no value is changed")
    add("--overwrite", action="store_true", help="replace what an earlier call made of these directions")
    _add_cutting(parser.add_argument_group("patches"))
    _add_grey_values(parser.add_argument_group("grey values, in this order"))


def _add_cutting(group: argparse._ArgumentGroup) -> None:
    add, zyx = group.add_argument, ("Z", "Y", "X")
    add("--patch", type=int, nargs=3, default=(0, 0, 0), metavar=zyx, help="voxels of a patch; 0 is the whole axis")
    add("--step", type=int, nargs=3, default=(0, 0, 0), metavar=zyx, help="from one patch to the next; 0 is the patch's size")
    add(
        "--incomplete",
        choices=("shift", "drop"),
        default="shift",
        help="what is left at the far ends: one more patch that ends there and overlaps, or nothing",
    )
    add("--min_mean", type=float, metavar="GREY", help="skip patches whose mean grey value (first direction) is lower")


def _add_grey_values(group: argparse._ArgumentGroup) -> None:
    add, ends = group.add_argument, ("LOW", "HIGH")
    add("--threshold", type=float, nargs=2, metavar=ends, help="clip at these grey values")
    add("--percentile", type=float, nargs=2, metavar=ends, help="clip at these percentiles of every volume")
    add(
        "--normalise",
        choices=("00", "01", "11", "zrescale"),
        help="00: unchanged; 01, 11: to [0, 1], [-1, 1]; zrescale: log z-score to [-1, 1]; default 11 (--link: 00)",
    )
    add("--trd", type=float, default=6.0, metavar="SD", help="standard deviations that zrescale maps to 1")
    add("--scale", choices=("volume", "dataset"), default="volume", help="who shares the constants of 01, 11 and zrescale")


def _add_check(commands: argparse._SubParsersAction) -> None:
    parser = _command(commands, "check", "look at the data of an experiment: what is wrong, what would fit", _CHECK)
    parser.add_argument("--report", metavar="DIR", help="folder for the pictures and check.json; default LOGS/{dataset}/check")
