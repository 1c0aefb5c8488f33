"""How good is a restored volume (``evaluate.py --reconstruction R …``), and a run as a codec (``evaluate.py compress …``)?"""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.command_line import Messages, Parser, add_shared, chosen, parse_region, parse_slice, voxel_size
from utils.errors import reported

if TYPE_CHECKING:
    from evaluation.grid import Request

EPILOG = """examples:
  evaluate.py --reconstruction out.tif --truth truth.tif --thin 8 --output report
  evaluate.py --reconstruction out.ome.tif --input raw.ome.tif --output report
  evaluate.py --reconstruction texture0.tif texture50.tif texture100.tif --truth truth.tif --thin 8 --output report
  evaluate.py --truth truth.tif --average 8 --output baselines        (interpolation alone: the bar to pass)
rate and distortion of a run's codes beside AVIF, JPEG2000, JPEG-XL and zstd: evaluate.py compress --help"""
COMPRESS = """The input is encoded into OUTPUT/codes.codes.zarr and decoded. Every codec is held to the bytes of that store, and
to half, twice, 4 and 8 times of them: on the slices, and with --truth on the isotropic grid, where a codec's slices are
interpolated. Results: compression.json and compression.png. Memory does not depend on the size of the volumes.
examples:
  evaluate.py compress --run logs/brain/first --input raw.ome.tif --output rates
  evaluate.py compress --run RUN --input thinned.tif --dsp 1 --truth truth.tif --input-position pick --factor 8 --output rates"""


def build_parser() -> Parser:
    """The options of an evaluation."""
    about = "Compare a restored volume with its truth, its input and interpolation; write a report."
    parser = Parser(prog="evaluate.py", description=about, epilog=EPILOG)
    files = parser.add_argument_group("files")
    add = files.add_argument
    text = (
        "the restored volume; without it the baselines are evaluated; of several the trade-off is drawn, fidelity against power"
    )
    add("--reconstruction", type=Path, nargs="+", metavar="R", help=text)
    add("--truth", type=Path, metavar="T", help="the isotropic truth; its voxels are the grid")
    add("--input", type=Path, metavar="I", help="the anisotropic volume that was restored")
    add("--output", type=Path, metavar="DIR", required=True, help="folder for metrics.json, report.html and figures")
    add("--overwrite", action="store_true", help="replace an earlier evaluation in that folder")
    add_shared(files, "--channel")
    places = parser.add_argument_group("positions (taken from voxel size and translation of the files where they state them)")
    add = places.add_mutually_exclusive_group().add_argument
    add("--thin", type=int, metavar="F", help="simulate the input from the truth: section k is plane F·k + F//2")
    add("--average", type=int, metavar="F", help="simulate it: section k is the mean of F planes, from plane F·k on")
    add_shared(places, "--voxel", help="voxel size in µm of truth and reconstruction where the files have none")
    how = parser.add_argument_group("measuring")
    how.add_argument("--codec", choices=("jpeg2000",), help="add baselines whose sections went through this codec")
    how.add_argument("--bpp", type=float, default=0.125, help="bits per pixel of the codec at most")
    _add_common(places, how, planes="::")
    return parser


def build_compress_parser() -> Parser:
    """The options of a comparison of codecs."""
    about = "Rate and distortion of a run's codes beside standard codecs, at equal bytes."
    parser = Parser(prog="evaluate.py compress", description=about, epilog=COMPRESS)
    files = parser.add_argument_group("files")
    add_shared(files, "--run", help="a training's folder; not IsoREF, which makes no codes")
    add = files.add_argument
    add("--input", type=Path, metavar="I", required=True, help="the anisotropic volume, 8 or 16 bit")
    add("--truth", type=Path, metavar="T", help="the isotropic truth")
    add("--output", type=Path, metavar="DIR", required=True, help="folder for the code store, compression.json and .png")
    add("--overwrite", action="store_true", help="replace an earlier comparison in that folder")
    add_shared(files, "--channel")
    apply = parser.add_argument_group("applying the run (as in infer.py encode)")
    add_shared(apply, "--epoch", "--weights", "--dsp", "--normalise", "--ignore-voxels", "--force-range", "--device")
    places = parser.add_argument_group("position of --input in --truth (taken from the files where they state it)")
    _add_common(places, parser.add_argument_group("measuring"), planes="4::8")
    parser.set_defaults(reconstruction=None, thin=None, average=None, voxel=None, codec=None, bpp=0.0)
    return parser


def _add_common(places: Any, how: Any, planes: str) -> None:
    add = places.add_argument
    text = "axis of the files along which --input is coarse; by default z, or what the reconstruction or the run's data record"
    add_shared(places, "--thick", help=text)
    add("--input-position", choices=("pick", "average"), help="how the sections of --input relate to the planes")
    add("--factor", type=int, metavar="F", help="planes per section of --input, with --input-position")
    add("--region", metavar="z0:z1,y0:y1,x0:x1", help="evaluate this box of the truth only")
    text = "auto (uint8: 255, else the truth's range), dtype, reference, or a number"
    how.add_argument("--data-range", default="auto", metavar="WHAT", help=text)
    how.add_argument("--planes", default=planes, metavar="a:b:s", help="planes of each orientation for SSIM and MS-SSIM")
    text = "longest side of the central box for SSIM and spectra"
    how.add_argument("--sample", type=int, default=256, metavar="N", help=text)


def request_of(options: argparse.Namespace) -> "Request":
    """The request that the command line makes."""
    from evaluation.grid import Request

    simulated = {"pick": options.thin, "average": options.average}
    read = {
        "reconstruction": options.reconstruction[0] if options.reconstruction else None,
        "degrade": next(((how, factor) for how, factor in simulated.items() if factor is not None), None),
        "region": parse_region(options.region),
        "voxel_um": voxel_size(options.voxel),
        "planes": parse_slice(options.planes, "--planes"),
    }
    return Request(**chosen(options, Request) | read)


def evaluate_volume(options: argparse.Namespace) -> None:
    """A restored volume, several, or the baselines."""
    from evaluation.measure import evaluate
    from evaluation.tradeoff import compare, said

    if options.reconstruction and len(options.reconstruction) > 1:
        for line in said(compare(request_of(options), options.reconstruction, options.output, options.overwrite)):
            logging.info(line)
        return
    document = evaluate(request_of(options), options.output, options.overwrite)
    for line in (document["verdict"]["headline"] + ".", *document["verdict"]["sentences"], *document["notes"]):
        logging.info(line)
    logging.info("report: %s", options.output / "report.html")


def compress(options: argparse.Namespace) -> None:
    """A run's codes beside standard codecs."""
    request = request_of(options)
    from evaluation.compression import OUTPUTS, RateDistortion, write_compression
    from evaluation.measure import results
    from inference import Engine, Options, Run
    from inference.operating_points import KeptPlanes, operating_points

    with results(options.output, OUTPUTS, options.overwrite, (options.input, options.truth)) as folder:
        run = Run.load(options.run, options.epoch, Engine.choose(options.device), options.weights)
        applied = Options(**{**chosen(options, Options), "region": None})
        kept = KeptPlanes(run, options.input, applied, options.channel)
        request = replace(request, thick=kept.source.thick)
        store = options.output / "codes.codes.zarr"
        measured = RateDistortion(kept, kept.first, kept.step, request, folder)
        how = {"isotropic": options.truth is not None, "overwrite": options.overwrite}
        for point in operating_points(run, kept, applied, store, folder, **how):
            measured.add_codes(point.bytes, point.slices, point.isotropic, point.levels)
        measured.add_codecs()
        files = {"input": str(options.input), "truth": options.truth and str(options.truth), "store": store.name}
        facts = {"run": run.name, "files": files, "slices": {"shape": list(kept.shape), "dtype": kept.dtype.name}}
        for line in write_compression(measured, facts, folder):
            logging.info(line)
    logging.info("curves: %s", options.output / OUTPUTS[1])


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[Messages(sys.stdout)])
    with reported(debug="--debug" in arguments):
        if arguments[:1] == ["compress"]:
            compress(build_compress_parser().parse_args(arguments[1:]))
        else:
            evaluate_volume(build_parser().parse_args(arguments))


if __name__ == "__main__":
    main()
