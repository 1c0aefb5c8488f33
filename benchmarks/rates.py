"""``python benchmarks/rates.py --case NAME VOLUME [RUN ...] [--case ...]``: rate and distortion of slices, beside other codecs.

Of each volume, 8 or 16 bit, every 16th XY slice is judged (``--stride``). Runs (their codes, ``encode`` and ``decode --grid
raw`` at every number of levels, ``--effort`` as of ``infer.py encode``; bytes of the store on disc without the levels that were
not decoded) stand beside JPEG2000,
JPEG-XL, AVIF and zstd on coarser grey values, each one stream for all slices, at four rates and at those of the codes; no
library here codes one frame by another (x265). The floor that no learned codec may fall below is no network at all:
principal components of blocks of 8x8 and 16x16 pixels and residual k-means, fitted on the slices that are not judged (or on
other volumes, ``--fitted``; ``--stride 1`` judges all slices), their codes coded as those of a store are. PSNR over all pixels,
peak 255, or of 16 bit the range of the slices. Every point is written as it is measured; a comparison that was interrupted goes
on. Writes the JSON, a table and the curves beside it.
"""

import json
import math
import sys
import tempfile
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.machine import RESULTS, command_line, machine, write_result

OTHERS = ("jpeg2000", "jpegxl", "avif", "zstd")
RATES = (0.0625, 0.125, 0.25, 0.5)
FITTED = 40_000  # blocks at most that the floor is fitted on
FLOOR = ((16, 24), (8, 12))  # pixels along a side of a block, principal components
LEVELS, CODES = (1, 2, 4), 256
CHECKED = 20  # bytes of a chunk's checksum and place


def main() -> None:
    parser = command_line(__doc__)
    add = parser.add_argument
    add("--case", nargs="+", action="append", required=True, metavar="NAME VOLUME RUN", help="a volume and runs that code it")
    add("--rates", type=float, nargs="+", default=RATES, help="bits per pixel of the other codecs")
    add("--stride", type=int, default=16, metavar="N", help="slices from one that is judged to the next")
    add("--fitted", type=Path, nargs="+", metavar="VOLUME", help="what the floor is fitted on, all cases alike")
    add("--effort", type=int, default=0, metavar="N", help="with which runs encode")
    add("--output", type=Path, default=RESULTS / "rates.json")
    given = parser.parse_args()
    result = json.loads(given.output.read_text()) if given.output.exists() else {"cases": {}}
    for name, volume, *runs in given.case:
        case = result["cases"].setdefault(name, {"volume": Path(volume).name, "points": {}})
        if case.setdefault("stride", given.stride) != given.stride:
            raise SystemExit(f"{given.output}: {name} was judged with --stride {case['stride']}; take that, or another name")
        judge(case, Path(volume), [Path(run) for run in runs], given, lambda: write_result(given.output, result))
    given.output.with_suffix(".md").write_text("\n".join(table(result["cases"])) + "\n")
    draw(result["cases"], given.output.with_suffix(".png"))


def judge(case: dict[str, Any], path: Path, runs: list[Path], given: Any, save: Any) -> None:
    """Adds the points that a case does not have."""
    from volumes.open import open_volume

    volume = open_volume(path)[:]
    chosen = np.s_[case["stride"] // 2 :: case["stride"]]
    judged = volume[chosen]
    peak = 255.0 if volume.dtype == np.uint8 else float(judged.max()) - float(judged.min())
    case |= {"slices": list(judged.shape), "dtype": volume.dtype.name, "peak": peak}
    points = case["points"]

    def note(label: str, codec: str, size: int, shown: np.ndarray) -> None:
        error = float(np.mean((shown.astype(np.float64) - judged) ** 2))
        rate = 8 * size / judged.size
        psnr = 20 * math.log10(peak) - 10 * math.log10(error) if error else None
        points[label] = {"codec": codec, "bytes": size, "bits_per_pixel": rate, "psnr_db": psnr, "commit": machine()["commit"]}
        save()

    for run in runs:
        codec = f"codes of {run.name}" + (f", effort {given.effort}" if given.effort else "")
        if not any(point["codec"] == codec for point in points.values()):
            for levels, size, shown in of_run(run, judged, given.effort):
                note(f"{codec}, {levels} level(s)", codec, size, shown)
    rest = [open_volume(other)[:] for other in given.fitted] if given.fitted else [np.delete(volume, chosen, axis=0)]
    for side, components in FLOOR:
        codec = f"PCA and k-means, {side}x{side}"
        if not any(point["codec"] == codec for point in points.values()):
            for levels, size, shown in floor(rest, judged, side, components):
                note(f"{codec}, {levels} level(s)", codec, size, shown)
    own = {point["bits_per_pixel"] for point in points.values() if point["codec"].startswith("codes")}
    for name, rate in product(OTHERS, sorted({*given.rates, *own})):
        if (label := f"{name} within {rate:.4g}") not in points:
            size, shown = of_codec(name, rate, judged)
            if shown is None:
                points[label] = {"codec": name, "bytes": None, "bits_per_pixel": rate, "psnr_db": None}
                save()
            else:
                note(label, name, size, shown)


def of_run(path: Path, slices: np.ndarray, effort: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """Levels, bytes and the decoded slices."""
    from codes.store import level_names
    from inference import Options, Run, decode, encode

    run = Run.load(path)
    with tempfile.TemporaryDirectory() as folder:
        store = encode(slices, run, Path(folder, "x.codes.zarr"), Options(dsp=1, force_range=True, effort=effort))
        assert store is not None
        names = level_names(store.about["levels"])
        for levels in range(1, len(names) + 1):
            shown = decode(store, run, grid="raw", levels=levels)
            if shown is None or shown.shape != slices.shape:
                raise SystemExit(f"{path} interpolates between slices (usp): its codes are of other slices than are judged")
            yield levels, store.bytes_of() - sum(map(store.bytes_of, names[levels:])), shown


def of_codec(name: str, rate: float, slices: np.ndarray) -> tuple[int, np.ndarray | None]:
    """Bytes and decoded slices of a codec at a rate; None where it cannot go down to it."""
    from evaluation.codecs import CODECS, code
    from volumes.volume import ArrayVolume

    with tempfile.TemporaryDirectory() as folder:
        coded = code(ArrayVolume(slices), CODECS[name], "all", rate, Path(folder, "x.raw"))
        return (0, None) if coded is None else (coded.bytes, np.array(coded.decoded))


def floor(fitted: list[np.ndarray], slices: np.ndarray, side: int, components: int) -> Iterator[tuple[int, int, np.ndarray]]:
    """As :func:`of_run`, of principal components and residual k-means."""
    import torch

    from taming.codebook import kmeans, nearest_code

    generator = np.random.default_rng(0)
    rows = np.concatenate([blocks(volume, side) for volume in fitted])
    rows = rows[generator.permutation(len(rows))[:FITTED]]
    mean = rows.mean(0)
    axes = np.linalg.svd(rows - mean, full_matrices=False)[2][:components]
    scale = np.abs((rows - mean) @ axes.T).max()
    seen, rest = ((part - mean) @ axes.T / scale for part in (rows, blocks(slices, side)))
    seen, rest = torch.from_numpy(seen).float(), torch.from_numpy(rest).float()
    shape = (len(slices), *(-(-size // side) for size in slices.shape[1:]))
    size, total = 0, torch.zeros_like(rest)
    for level in range(1, max(LEVELS) + 1):
        book = kmeans(seen, CODES, torch.Generator().manual_seed(level))
        seen = seen - book[nearest_code(seen, book)]
        index = nearest_code(rest, book)
        rest, total = rest - book[index], total + book[index]
        size += coded_bytes(index.numpy().reshape(shape), book.numpy())
        if level in LEVELS:
            yield level, size, image(total.double().numpy() * scale @ axes + mean, slices, side)


def coded_bytes(codes: np.ndarray, book: np.ndarray) -> int:
    """What the codes of a level take in a store, chunk by chunk, with the model."""
    from codes.context_codec import encoded
    from codes.context_fit import fitted_model
    from codes.store import most_of_a_chunk
    from utils.boxes import boxes

    model = fitted_model([codes], book, codes.size)
    if model is None:
        return math.ceil(codes.size * math.log2(len(book)) / 8)
    chunks = [codes[box] for box in boxes(codes.shape, most_of_a_chunk(codes.size))]
    return len(model.as_json()["numbers"]) + sum(len(stream) + CHECKED for stream in encoded(chunks, model))


def blocks(slices: np.ndarray, side: int) -> np.ndarray:
    """(n, Y, X) → rows of side² pixels; the ends mirrored to whole blocks."""
    import torch

    from ldm.linear import blocks_of

    wide = np.pad(slices.astype(np.float64), [(0, 0), *((0, -size % side) for size in slices.shape[1:])], mode="symmetric")
    return blocks_of(torch.from_numpy(wide)[:, None], side).numpy()


def image(rows: np.ndarray, like: np.ndarray, side: int) -> np.ndarray:
    """The inverse of :func:`blocks`, rounded to the type of slices."""
    import torch
    from torch.nn.functional import fold

    n, height, width = like.shape
    whole = [-(-size // side) * side for size in (height, width)]
    wide = fold(torch.from_numpy(rows).unflatten(0, (n, -1)).mT, whole, side, stride=side)[:, 0].numpy()
    return np.rint(wide[:, :height, :width]).clip(0, np.iinfo(like.dtype).max).astype(like.dtype)


def table(cases: dict[str, Any]) -> Iterator[str]:
    """Markdown: of each case the codes at every number of levels, what other codecs have within their bytes, and all curves."""
    for name, case in cases.items():
        points = case["points"]
        yield f"## {name}: {case['volume']}, {case['slices']} {case['dtype']}\n"
        yield f"| dB within the bytes of the codes | bit per pixel | codes | {' | '.join(OTHERS)} |"
        yield "|---" * (3 + len(OTHERS)) + "|"
        for label, point in points.items():
            if point["codec"].startswith("codes"):
                rate = point["bits_per_pixel"]
                found = [points.get(f"{other} within {rate:.4g}") for other in OTHERS]
                shown = ["not measured" if one is None else f"{one['psnr_db'] or math.nan:.2f}" for one in found]
                yield f"| {label} | {rate:.4g} | {point['psnr_db']:.2f} | {' | '.join(shown)} |"
        yield "\n| codec | dB at bit per pixel |\n|---|---|"
        for codec in dict.fromkeys(point["codec"] for point in points.values()):
            curve = sorted((p["bits_per_pixel"], p["psnr_db"]) for p in points.values() if p["codec"] == codec and p["psnr_db"])
            shown = ", ".join(f"{psnr:.2f} at {rate:.4g}" for rate, psnr in curve)
            yield f"| {codec} | {shown or 'not as small as that'} |"
        yield ""


def draw(cases: dict[str, Any], path: Path) -> None:
    """The curves of each case, dB over bits per pixel."""
    from matplotlib.figure import Figure

    from evaluation.figures import plain_axes

    figure = Figure((6.4 * len(cases), 4.8), dpi=110, layout="constrained", facecolor="white")
    for axes, (name, case) in zip(figure.subplots(1, len(cases), squeeze=False)[0], cases.items(), strict=True):
        plain_axes(axes, "bit per pixel, all bytes on disc", "PSNR, dB", f"{name}: {case['volume']}")
        known = [point for point in case["points"].values() if point["psnr_db"] and point["codec"] != "zstd"]
        for codec in dict.fromkeys(point["codec"] for point in known):
            curve = sorted((point["bits_per_pixel"], point["psnr_db"]) for point in known if point["codec"] == codec)
            ours = codec.startswith("codes")
            axes.plot(*zip(*curve, strict=True), "o-" if ours else ".--", lw=2 if ours else 1, label=codec)
        axes.set_xscale("log")
        axes.minorticks_off()
        low, high = axes.get_xlim()
        axes.set_xticks(
            ticks := [2.0**n for n in range(-6, 3) if low <= 2.0**n <= high], labels=[f"{tick:.3g}" for tick in ticks]
        )
        axes.legend(fontsize=8)
    figure.savefig(path)


if __name__ == "__main__":
    main()
