"""Applies a trained run to whole volumes: ``python infer.py enhance | encode | decode | export | info | verify | view``."""

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiment.runs import require_run
from utils.command_line import Messages, Parser, add_shared, chosen, parse_region, voxel_size
from utils.command_line import command as as_typed
from utils.errors import reported
from utils.far import existing

EPILOG = """examples:
  infer.py enhance --run logs/brain/first --input scan.ome.zarr --output iso.ome.zarr
  infer.py enhance --run RUN --input a.tif b.tif --output folder --format .ome.tif
  infer.py encode  --run RUN --input scan.ome.zarr --output scan.codes.zarr
  infer.py decode  --codes scan.codes.zarr --output corner.ome.tif --region 0:128,0:512,0:512
  infer.py info    scan.codes.zarr
  infer.py verify  scan.codes.zarr       (exit code 1: something is damaged, and named)
  infer.py view    scan.ome.zarr iso.ome.zarr scan.codes.zarr
  infer.py export  scan.codes.zarr --output scan_with_decoder     (decode --input scan_with_decoder needs nothing else)
several GPUs or machines share one volume; each process takes whole shards, and the result is the same:
  torchrun --nproc_per_node 8 -- infer.py enhance --run RUN ...
  torchrun --nnodes 2 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint HOST:29500 -- infer.py enhance --run RUN ...
  srun --nodes 2 --ntasks-per-node 8 python infer.py enhance --run RUN ...
  (the lone -- is for torchrun: without it it takes our --run for an abbreviation of its own --run-path; srun needs none)
a command that was stopped, even killed, continues when it is started again: finished shards are kept."""


def build_parser() -> Parser:
    """The commands and their options."""
    parser = Parser(prog="infer.py", description="Apply a trained run to whole volumes.", epilog=EPILOG, debug=False)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    enhance = _command(commands, "enhance", "anisotropic volume to isotropic volume")
    encode = _command(commands, "encode", "volume to compact codes")
    decode = _command(commands, "decode", "codes to volume")
    info = _command(commands, "info", "what is in a run, a volume or a code store")
    verify = _command(commands, "verify", "whether all of a run, a volume or a code store is as it was written")
    for command in (info, verify):
        command.add_argument("path", type=Path)
    info.add_argument("--json", action="store_true", help="all of it as one line of JSON for programs; remarks go to stderr")
    view = _command(commands, "view", "volumes and code stores on a page in the browser, decoded where one looks; Ctrl-C ends it")
    text = "each with what enhance wrote beside it; the last ones lie on top"
    view.add_argument("path", type=Path, nargs="+", help=text)
    text = "the run that made the codes; by default the folder that they name"
    add_shared(view, "--run", required=False, help=text)
    add_shared(view, "--time", "--scene", "--device")
    view.add_argument("--port", type=int, default=0, metavar="N", help="of the page; by default any that is free")
    view.add_argument("--no-browser", action="store_false", dest="browser", help="only say the page's address")
    about = "a code store with what decodes it, or a run, as one folder that needs nothing else and holds no pickle"
    add = _command(commands, "export", about).add_argument
    add("path", type=Path, help="a code store, or a training's folder")
    add("--output", type=Path, required=True, metavar="FOLDER", help="what decode, enhance --run and train.py --init then take")
    add("--run", type=Path, help="the run that made the codes; by default the folder that they name")
    add("--epoch", type=int, metavar="N", help="completed epochs of the weights; by default the store's, or the latest")
    text = "what evaluate.py wrote about volumes that these weights made, for the page"
    add("--evaluation", type=Path, nargs="+", default=(), metavar="FOLDER", help=text)
    add("--about", type=Path, metavar="FILE", help="Markdown for the page: source and licence of the data, how it was trained")
    for command in (enhance, encode):
        _add_input(command)
    text = (
        "try every code N times (1 or 2) by what is decoded: closer slices in as many bytes, encoding takes tens of times as long"
    )
    encode.add_argument("--effort", type=int, default=0, metavar="N", help=text)
    add = decode.add_argument
    text = "what encode wrote, or export"
    add("--codes", "--input", type=Path, required=True, metavar="X.codes.zarr", help=text)
    add("--run", type=Path, help="the run that made the codes; by default the folder that they name")
    text = "raw: the slices as the 2-D decoder has them"
    add("--grid", choices=("isotropic", "raw"), default="isotropic", help=text)
    text = "decode only the first N levels of a residual codebook; by default all"
    add("--levels", type=int, metavar="N", help=text)
    for command in (enhance, encode, decode):
        output, computing = _add_engine(command)
        if command is not encode:
            _add_output(output)
            _add_tiles(computing)
    _add_tiles(view)
    add = enhance.add_argument_group("beside the volume: how far to trust it, texture").add_argument
    add("--consistency", action="store_true", help="also write the output projected onto the input grid, minus the input")
    add("--uncertainty", type=int, default=0, metavar="N", help="also write the standard deviation over N passes")
    text = "share of invented texture, 0 (the deterministic volume) to 1 (the power of slices), of a run of models texture"
    add("--texture", type=float, default=0.0, metavar="A", help=text)
    add("--invented", action="store_true", help="also write what texture has added, the output minus that of --texture 0")
    add("--preview", action="store_true", help="also write XY, XZ and YZ planes as PNG")
    return parser


def _command(commands: Any, name: str, text: str) -> Parser:
    parser: Parser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(region=None, voxel_um=None)
    return parser


def _add_input(parser: Parser) -> None:
    add_shared(parser, "--run")
    files = parser.add_argument_group("input")
    add = files.add_argument
    text = "files, OME-Zarr, folders of slices or of volumes; with a run of two channels two files are one volume"
    add("--input", type=Path, nargs="+", required=True, metavar="VOLUME", help=text)
    add_shared(files, "--channel", nargs="+")
    add_shared(files, "--time", "--scene")
    add("--level", type=int, default=0, metavar="N", help="level of a multiscale image; 0 is the finest")
    fit = parser.add_argument_group("how the input fits the run (grey values, sampling, axes)")
    fit.add_argument("--prepared", action="store_true", help="the input went through prepare.py like the training data")
    add_shared(fit, "--normalise", "--dsp", "--ignore-voxels", "--force-range")
    add_shared(fit, "--voxel", dest="voxel_um")
    add_shared(fit, "--thick")
    add("--format", default=".ome.zarr", metavar="SUFFIX", help="of the outputs of several inputs; --output is then their folder")


def _add_output(output: Any) -> None:
    add = output.add_argument
    text = "compute this box of the output only, in its voxels; a number left out means the border: 0:128,:,:"
    add("--region", metavar="z0:z1,y0:y1,x0:x1", help=text)
    add("--dtype", help="of the output; by default the input's")
    add("--compression", choices=("zstd", "zlib", "none"), default="zstd", help="of a TIFF; zlib opens everywhere")
    text = "compute two tiles in the middle; say how many there are, how large the output is, how long it takes"
    add("--dry-run", action="store_true", help=text)


def _add_tiles(place: Any) -> None:
    add = place.add_argument
    add("--tile", type=int, metavar="N", help="side of a decoding tile in voxels, a multiple of 8; by default as memory allows")
    add("--approximate", action="store_true", help="tiles although the run's norm (instance, group) sees the whole volume")


def _add_engine(parser: Parser) -> tuple[Any, Any]:
    output, computing = parser.add_argument_group("output"), parser.add_argument_group("computing")
    add = output.add_argument
    text = "its ending says the format: .ome.zarr, .ome.tif, .tif, .nii.gz; codes: .codes.zarr"
    add("--output", type=Path, required=True, help=text)
    add("--overwrite", action="store_true", help="replace an existing output")
    add_shared(computing, "--epoch", "--weights", "--device")
    add = computing.add_argument
    add("--precision", choices=("32", "bf16"), help="by default bf16 on a GPU that has it (NVIDIA: since Ampere), else 32")
    add("--compile", action="store_true", help="let torch.compile make the volume generator; pays for long runs on a GPU")
    text = """tiles per pass of the networks, in encoding and decoding; by default 1 on a CPU, where more gain nothing, and 8 on a
        GPU, in decoding as far as its memory has room. Out of memory, first the batch is halved, then the tile. Results are the
        same bit for bit at equal --batch and --tile; others round differently, in rare places to other codes"""
    add("--batch", type=int, metavar="N", help=text)
    add("--keep-background", action="store_false", dest="skip_empty", help="compute tiles of pure background too")
    return output, computing


def main(arguments: Sequence[str]) -> None:
    """Reads the command line; torch is loaded after it is known to be good."""
    given = build_parser().parse_args(arguments)
    given.region = given.region and parse_region(given.region)
    given.voxel_um = given.voxel_um and voxel_size(given.voxel_um)
    _refuse_what_is_not_there(given)
    others = {"info": _info, "verify": _verify, "export": _export, "view": _view}
    others.get(given.command, _compute)(given)


def _refuse_what_is_not_there(given: argparse.Namespace) -> None:
    """Tells a wrong path before torch is loaded, which takes long."""
    for name in ("path", "input", "codes"):
        for path in paths if isinstance(paths := getattr(given, name, []), list) else [paths]:
            existing(path)
    if getattr(given, "run", None):
        require_run(given.run)


def _compute(given: argparse.Namespace) -> None:
    """One of enhance, encode and decode, of one volume or several; a process of a torchrun or srun command takes its share."""
    from inference import Engine, Options, Output, Processes
    from utils.machine import keep_freed_memory

    keep_freed_memory()
    options, processes = Options(**chosen(given, Options)), Processes.from_environment()
    try:
        engine = Engine.choose(given.device, given.precision, local_rank=processes.local_rank, compile=given.compile)
        output = Output(given.output, processes=processes, **chosen(given, Output))
        (_decode if given.command == "decode" else _enhance_or_encode)(given, options, output, engine)
    finally:
        processes.leave()


def _decode(given: argparse.Namespace, options: Any, output: Any, engine: Any) -> None:
    """Codes to a volume."""
    from inference import decode

    how: dict[str, Any] = {"grid": given.grid, "levels": given.levels, "epoch": given.epoch, "weights": given.weights}
    decode(given.codes, given.run, **how, options=options, output=output, engine=engine)
    _say_next_steps(given, (), output)


def _enhance_or_encode(given: argparse.Namespace, options: Any, output: Any, engine: Any) -> None:
    """One volume after the other, each to an output of its own."""
    from inference import Run, encode, enhance, inputs_and_outputs, refuse_inputs

    run = Run.load(given.run, given.epoch, engine, given.weights)
    suffix = ".codes.zarr" if given.command == "encode" else given.format
    which = {"channel": given.channel, "time": given.time, "scene": given.scene, "level": given.level}
    found = inputs_and_outputs(run.channels, given.input, given.output, suffix, **which)
    work = [(volumes, replace(output, path=path, among=len(found) > 1)) for volumes, path in found]
    refuse_inputs([to for _, to in work], run.path, [volume for volumes, _ in work for volume in volumes])
    for volumes, to in work:
        if given.command == "enhance":
            enhance(volumes, run, options, output=to)
        else:
            store = encode(volumes, run, to, options, progress=output.processes.rank == 0)
            for line in store.sizes() if store else ():
                logging.info(line)
        _say_next_steps(given, volumes, to)


def _info(given: argparse.Namespace) -> None:
    """Says what is in a run, a volume or a code store."""
    if (given.path / "0.json").is_file():  # torch and the weights take seconds, on a busy machine many
        logging.info("%s: a run; reading its weights …", given.path)
    from sharing.info import describe, facts

    if given.json:
        sys.stdout.write(json.dumps(facts(given.path), ensure_ascii=False) + "\n")
    for line in () if given.json else describe(given.path):
        logging.info(line)


def _verify(given: argparse.Namespace) -> None:
    """Says whether it is whole; the program ends with 1 where it is not."""
    from sharing.verify import verify

    said, damaged = verify(given.path)
    for line in [*said, *damaged, f"{given.path}: {len(damaged) or 'nothing'} damaged or missing"]:
        logging.info(line)
    sys.exit(1 if damaged else 0)


def _export(given: argparse.Namespace) -> None:
    """Makes one folder of it that needs nothing else."""
    from sharing.exporting import export

    export(given.path, given.output, run=given.run, epoch=given.epoch, evaluations=given.evaluation, about=given.about)


def _view(given: argparse.Namespace) -> None:
    """Shows volumes and code stores in the browser."""
    from inference import Engine, Options
    from sharing.view import opened, view
    from utils.machine import keep_freed_memory

    keep_freed_memory()
    which = {"time": given.time, "scene": given.scene}
    layers = opened(given.path, given.run, Options(**chosen(given, Options)), Engine.choose(given.device), **which)
    view(layers, port=given.port, browser=given.browser)


def _say_next_steps(given: argparse.Namespace, volumes: Sequence[Any], output: Any) -> None:
    """The commands that show an output, and judge it by what it was made of."""
    if output.processes.rank or output.dry_run:
        return
    several = (getattr(given, "time", None), getattr(given, "scene", None)) != (None, None)  # which the output has not
    inputs = list(dict.fromkeys(volume.path for volume in volumes))
    logging.info("look at it:\n  %s", as_typed("infer", "view", *([] if several else inputs), output.path))
    if given.command == "enhance" and not (several or given.level or given.region or given.channel):
        report = output.beside("report", ".html").with_suffix("")
        first = ["--channel", 0] if len(volumes) > 1 else []
        line = as_typed("evaluate", "--reconstruction", output.path, "--input", inputs[0], *first, "--output", report)
        other = f" with --input {inputs[1]}" if len(inputs) > 1 else ""
        how = f"; the other channel: --channel 1{other}" if first else ""
        logging.info("see how good it is (better with --truth, where there is one%s):\n  %s", how, line)


if __name__ == "__main__":
    logging.basicConfig(
        level=logging.INFO, format="%(message)s", handlers=[Messages(sys.stderr if "--json" in sys.argv else sys.stdout)]
    )
    goes_on = sys.argv[1:2] in (["enhance"], ["encode"], ["decode"])
    with reported(debug="--debug" in sys.argv, again="; the same command goes on where it was" if goes_on else ""):
        main(sys.argv[1:])
