"""What is in a run, a volume or a code store, in a few lines."""

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from codes.record import holds_codes
from codes.store import CodeStore
from experiment.runs import CODES, RunFolder
from utils.checksums import SUMS, check_checksums
from utils.command_line import command
from utils.errors import UserError
from utils.far import existing
from volumes.ome_zarr import is_zarr
from volumes.open import open_volume, stem_of
from volumes.seams import said_of_place, said_of_seams, seam
from volumes.volume import Volume

if TYPE_CHECKING:
    from inference.run import Run  # with torch, which a volume or a store can do without


def describe(path: Path) -> Iterator[str]:
    """Lines about a path.

    Raises:
        UserError: it is none of the three.
    """
    found = _opened(path := existing(path))
    if isinstance(found, CodeStore):
        yield from _store(found)
    elif isinstance(found, Volume):
        yield from _volume(found)
    else:
        yield from _run(found)
        if (path / SUMS).is_file():
            check_checksums(path)  # codes, too
            yield "an exported folder; every file is as it was written"
        if (path / CODES).is_dir():
            yield from _store(CodeStore.open(path))
        return
    yield from _viewers(path)


def facts(path: Path) -> dict[str, Any]:
    """The same for programs, as plain JSON: its ``kind`` (run, codes or volume), and what its record says in full.

    Sizes are (z, y, x), voxels and positions in µm; null: not stated. Raises as :func:`describe` does.
    """
    found = _opened(path := existing(path))
    if isinstance(found, CodeStore):
        return {"kind": "codes", "path": str(path), "bytes": found.bytes_of(), "record": dict(found.about)}
    if not isinstance(found, Volume):
        parts = {name: sum(p.numel() for p in part.parameters()) for name, part in found.model.G.items()}
        about = {**found.record_of_outputs, "epochs": RunFolder(path).epochs(), "parameters": parts, "dataset": found.record}
        return {"kind": "run", "path": str(path), **about, "settings": dict(found.settings)}
    stated = {name: getattr(found, name) for name in ("shape", "voxel_um", "translation_um", "space", "doubt")}
    counts = {name: getattr(found, name) for name in ("channels", "times", "scenes", "levels")}
    about = {"dtype": found.dtype.name, **stated, **counts, "record": dict(found.attributes)}
    return {"kind": "volume", "path": str(path), **about}


def _opened(path: Path) -> "Run | CodeStore | Volume":
    if (path / "0.json").is_file():
        from inference.run import Run
        from utils.machine import Engine

        return Run.load(path, engine=Engine.choose("cpu"))
    if holds_codes(path):
        return CodeStore.open(path)
    try:
        return open_volume(path)
    except UserError:
        return open_volume(path, channel=0)  # several channels: what one of them says holds for all


def _viewers(path: Path) -> Iterator[str]:
    """Commands that show a volume or a code store."""
    file = shlex.quote(str(path))
    yield f"look at it: {command('infer', 'view', path)}"
    if holds_codes(path):
        yield f"napari, decoded where one looks: napari --plugin isoscopexx {file} (extra napari)"
        decode = command("infer", "decode", "--codes", path, "--output", f"{stem_of(path)}.ome.zarr")
        yield f"in other programs: after {decode}"
    elif is_zarr(path):
        yield f"napari: napari --plugin napari-ome-zarr {file}"
        yield "Fiji: File > Import > HDF5/N5/Zarr/OME-NGFF, and this path"
        yield f"a Zarr viewer: ome_zarr view {file} (of the package ome-zarr)"
    else:
        yield f"napari: napari {file}"
        yield "Fiji: File > Import > Bio-Formats, and this path"


def _run(run: "Run") -> Iterator[str]:
    s, geometry = run.settings, run.geometry
    yield f"run {run.name}: {s['models']}, {s['direction']} of {s['dataset']}, epochs {RunFolder(run.path).epochs()}"
    yield f"weights {run.weight_hash}{', averaged (EMA)' if run.ema else ''}"
    sizes = ", ".join(f"{n} {sum(p.numel() for p in part.parameters()) / 1e6:.2f} M" for n, part in run.model.G.items())
    yield f"parameters: {sizes}"
    yield f"crops of {geometry.cropsize}² x {geometry.slices} slices; {run.factor} planes per slice"
    if "axial_sampling" in s:
        blur = "a blur along z is undone" if s["axial_taps"] or s["axial_sigma"] else "no blur along z"
        yield f"sections {s['uprate']:g} pixels apart ({s['axial_sampling']}), {blur}"
    else:
        yield f"dsp {s['dsp']}, usp {s['usp']:g}, l1how {run.projection}, norm {s.get('norm', 'none')}"
    if not run.restores:
        book = run.codebook()
        if book is not None:
            levels, codes, _ = book.shape
            bits = levels * math.log2(codes)
            side = run.stride
            yield f"{codes} codes in {levels} level(s): {bits:g} bit per {side}x{side} pixels, {bits / side**2:.4g} bit per pixel"
        halo, seen = (run.model.slice_halo(part) if part in run.model.G else (0, 0) for part in ("encoder", "decoder"))
        if "encoder" not in run.model.G:
            yield "what decodes its codes alone, no encoder"
        elif halo is None:
            yield "codes depend on the tile: training crops with a quarter overlap, core codes"
        else:
            yield f"codes are local: tiles with a halo of {halo[0]} pixels before and {halo[1]} after are exact"
            yield f"a pixel of the raw grid sees {seen[0]} codes before and {seen[1]} after its own; its tiles are exact too"
    if run.record is None:
        yield "no dataset.json: grey values of the training are not known, use --normalise volume or percentile"
    else:
        for direction, entry in run.record["directions"].items():
            pooled = entry["pooled"]
            yield f"{direction}: {entry['dtype']}, nm {run.record['nm']}, grey values {pooled['low']:g} to {pooled['high']:g}"


def _store(store: CodeStore) -> Iterator[str]:
    about = store.about
    yield f"codes of {', '.join(about['input']['files'])} {about['input']['shape']} {about['input']['dtype']} (Z, Y, X)"
    kind = f"{about['codes']} codes in {about['levels']} level(s)" if about["kind"] == "codebook" else "posterior mean, float16"
    yield f"{store.shape[0]} slices of {store.shape[1]} x {store.shape[2]} codes: {kind}"
    yield f"made by {about['run']} in {about['run_path']}, weights {about['weights']}"
    yield f"slices: {_placement(about['slice_voxel_um'], about['slice_translation_um'])}; {about['factor']} planes each"
    yield from _thick(about)
    yield from store.sizes()


def _thick(about: Mapping[str, Any]) -> Iterator[str]:
    if "thick" in about:
        yield f"the input's thick axis is {about['thick']}: what is recorded of planes, rows and columns calls it z"


def _placement(voxel_um: Sequence[float] | None, translation_um: Sequence[float] | None) -> str:
    if voxel_um is None:
        return "voxel size not stated"
    at = "" if translation_um is None else f", first one at {tuple(translation_um)}"
    return f"voxels {tuple(voxel_um)} µm (z, y, x){at}"


def _names(volume: Volume) -> str:
    """What the file calls its channels, if it does."""
    if not volume.channel_name:
        return ""
    names = [open_volume(volume.path, channel=channel).channel_name for channel in range(volume.channels)]
    return f": {', '.join(names)}"


def _volume(volume: Volume) -> Iterator[str]:
    yield f"{volume.path}: {volume.shape} {np.dtype(volume.dtype).name} (Z, Y, X)"
    yield f"{volume.channels} channel(s){_names(volume)}, {volume.levels} level(s)"
    yield _placement(volume.voxel_um, volume.translation_um)
    about = volume.attributes
    if "run" in about:
        yield f"made by {about['run']}, weights {about['weights']}, from {', '.join(about['input']['files'])}"
        yield from _thick(about)
        yield from said_of_place(about)
        yield from said_of_seams(about["seams"] if "seams" in about else seam(volume, about))
