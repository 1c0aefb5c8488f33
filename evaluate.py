"""``python evaluate.py --reconstruction R [--truth T] [--input I] --output DIR``: how good is a restored volume?"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from evaluation.comparison import Request
from evaluation.run import evaluate
from utils.errors import reported
from utils.geometry import voxel_size
from utils.volumes.region import parse_region, parse_slice

EPILOG = """examples:
  evaluate.py --reconstruction out.tif --truth truth.tif --thin 8 --output report
  evaluate.py --reconstruction out.ome.tif --input raw.ome.tif --output report
  evaluate.py --truth truth.tif --average 8 --output baselines        (interpolation alone: the bar to pass)"""


def build_parser() -> argparse.ArgumentParser:
    """The options of an evaluation."""
    parser = argparse.ArgumentParser(
        prog="evaluate.py", description="Compare a restored volume with its truth, its input and interpolation; write a report.",
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    files = parser.add_argument_group("files")
    files.add_argument(
        "--reconstruction", type=Path, metavar="R", help="the restored volume; without it the baselines are evaluated"
    )
    files.add_argument("--truth", type=Path, metavar="T", help="the isotropic truth; its voxels are the grid")
    files.add_argument("--input", type=Path, metavar="I", help="the anisotropic volume that was restored")
    files.add_argument(
        "--output", type=Path, metavar="DIR", required=True, help="folder for metrics.json, report.html and figures"
    )
    files.add_argument("--overwrite", action="store_true", help="replace an earlier evaluation in that folder")
    files.add_argument("--channel", type=int, metavar="N", help="channel of multi-channel files, counted from 0")
    places = parser.add_argument_group("positions (taken from voxel size and translation of the files where they state them)")
    simulated = places.add_mutually_exclusive_group()
    simulated.add_argument(
        "--thin", type=int, metavar="F", help="simulate the input from the truth: section k is plane F·k + F//2"
    )
    simulated.add_argument(
        "--average", type=int, metavar="F", help="simulate it: section k is the mean of F planes, from plane F·k on"
    )
    places.add_argument("--input-position", choices=("pick", "average"), help="how the sections of --input relate to the planes")
    places.add_argument("--factor", type=int, metavar="F", help="planes per section of --input, with --input-position")
    places.add_argument("--region", metavar="z0:z1,y0:y1,x0:x1", help="evaluate this box of the truth only")
    places.add_argument("--voxel", metavar="z,y,x", help="voxel size in µm of truth and reconstruction where the files have none")
    how = parser.add_argument_group("measuring")
    how.add_argument("--data-range", default="auto", metavar="WHAT",
                     help="auto (uint8: 255, else the truth's range), dtype, reference, or a number; default auto")  # fmt: skip
    how.add_argument("--codec", choices=("jpeg2000",), help="add baselines whose sections went through this codec")
    how.add_argument("--bpp", type=float, default=0.125, help="bits per pixel of the codec at most; default 0.125")
    how.add_argument(
        "--planes", default="::", metavar="a:b:s", help="planes of each orientation for SSIM and MS-SSIM; default all"
    )
    how.add_argument(
        "--sample", type=int, default=256, metavar="N", help="longest side of the central box for SSIM and spectra; default 256"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def request_of(options: argparse.Namespace) -> Request:
    """The request that the command line makes."""
    degrade = (
        ("pick", options.thin)
        if options.thin is not None
        else ("average", options.average)
        if options.average is not None
        else None
    )
    return Request(
        reconstruction=options.reconstruction, truth=options.truth, input=options.input, degrade=degrade,
        input_position=options.input_position, factor=options.factor, region=parse_region(options.region),
        voxel_um=voxel_size(options.voxel), channel=options.channel, data_range=options.data_range, codec=options.codec,
        bpp=options.bpp, planes=parse_slice(options.planes, "--planes"), sample=options.sample,
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    options = build_parser().parse_args(argv)
    with reported(options.debug):
        document = evaluate(request_of(options), options.output, options.overwrite)
        for line in (document["verdict"]["headline"] + ".", *document["verdict"]["sentences"], *document["notes"]):
            logging.info(line)
        logging.info("report: %s", options.output / "report.html")


if __name__ == "__main__":
    main()
