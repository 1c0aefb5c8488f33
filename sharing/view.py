"""Volumes and code stores as layers of one page in the browser, read and decoded where one looks (``infer.py view``).

neuroglancer draws XY, XZ and YZ; as one moves it asks the server here, on this computer alone, for chunks of the layers.
"""

import logging
import threading
import webbrowser
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from codes.record import holds_codes
from codes.store import CodeStore
from experiment.runs import CODES
from inference import Output
from inference.api import decode_job
from inference.fields import Array, Field
from inference.options import Options
from inference.run import Run
from utils.axes import exchanged
from utils.boxes import Box
from utils.errors import UserError
from utils.far import path_of
from utils.geometry import LATENT_STRIDE
from utils.machine import Engine
from utils.packages import optional_package
from volumes.open import open_volume, stem_of
from volumes.volume import Triple

log = logging.getLogger("isoscope")

_BESIDE = ("consistency", "invented", "uncertainty")
_SAMPLE = (8, 256, 256)  # voxels (z, y, x) in the middle that tell the range of grey values
_SHOWN = 400  # pixels that a small volume fills
_GREY = "#uicontrol invlerp grey(range=[{}, {}])\nvoid main() {{ emitGrayscale(grey()); }}"
_SIGNED = """#uicontrol invlerp part(range=[{}, {}])
void main() {{ float v = 2.0 * part() - 1.0; emitRGBA(vec4(step(0.0, v), 0.0, step(v, 0.0), abs(v))); }}"""


@dataclass(frozen=True)
class Place:
    """Where voxels lie: voxel i of an axis (z, y, x) at ``first + i * step``."""

    step: Triple = (1.0, 1.0, 1.0)
    first: Triple = (0.0, 0.0, 0.0)


@dataclass(frozen=True)
class Layer:
    """One image of the page.

    Attributes:
        name: as the page shows it.
        kind: ``grey``, ``signed`` (red above 0, blue below) or ``codes`` (a colour for each).
        shape: voxels along its axes.
        dtype: of the values.
        read: gives the values of a box; one thread at a time.
        um: place in µm, where it is known.
        counted: place in voxels of the input.
        limits: values that are drawn darkest and brightest.
        axes: their names; not ``zyx`` where codes were made along another thick axis.
        computed: whether reading means computing.
        lock: of all layers that share what reads them.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[Box], Array]
    um: Place | None
    counted: Place
    limits: tuple[float, float]
    axes: str = "zyx"
    computed: bool = False
    lock: Any = field(default_factory=threading.Lock)

    def __getitem__(self, box: tuple[slice, ...]) -> Array:
        """The values of a box as neuroglancer takes them; a UserError goes to the terminal, too."""
        z, y, x = (slice(int(part.start), int(part.stop)) for part in box)
        with self.lock:
            try:
                values = self.read((z, y, x))
            except UserError as error:
                log.error("%s", error)
                raise
        return values.astype(np.float32, copy=False) if values.dtype.kind == "f" else values


def view(layers: Sequence[Layer], *, port: int = 0, browser: bool = True) -> None:
    """Shows layers until Ctrl-C; arguments as of :func:`page`, ``browser`` to open it."""
    with page(layers, port) as viewer:
        log.info("%s", viewer.get_viewer_url())
        log.info("for this computer alone, until Ctrl-C; keys 1 to 9 show and hide layers, h lists all keys")
        try:
            if browser:
                webbrowser.open(viewer.get_viewer_url())
            threading.Event().wait()
        except KeyboardInterrupt:
            log.info("closed")


def opened(
    paths: Sequence[Path],
    run: Path | None = None,
    options: Options | None = None,
    engine: Engine | None = None,
    **which: Any,
) -> list[Layer]:
    """The layers of volumes and code stores; nothing is decoded yet.

    Args:
        paths: of a volume, what lies beside it by the names that enhance gives comes along.
        run: that decodes the stores; by default the folder that each names.
        options: ``tile`` and ``approximate``, of decoding.
        engine: device and precision of decoding.
        which: ``time`` and ``scene`` of volumes that have several.

    Raises:
        UserError: a path is neither a volume nor a code store.
    """
    layers: list[Layer] = []
    for path in map(path_of, paths):
        beside = [Output(path).beside(what) for what in _BESIDE]
        for one in [path, *(other for other in beside if other.exists() and other not in paths)]:
            if is_store(one):
                layers += _of_store(one, run, options or Options(), engine)
            elif (one / "0.json").is_file():
                raise UserError(f"{one} is a run; view shows volumes and code stores, such as enhance and encode write")
            else:
                layers += _of_volume(one, which)
    return layers


def is_store(path: Path) -> bool:
    """Whether a path is a code store, or a folder that one was exported to."""
    return (path / CODES).is_dir() or holds_codes(path)


def _of_volume(path: Path, which: Mapping[str, Any]) -> Iterator[Layer]:
    """A layer for each channel of a volume."""
    count = open_volume(path, channel=0, **which).channels
    for channel in range(count):
        volume = open_volume(path, channel=channel, **which)
        about, counted = volume.attributes, Place()
        if "place" in about:
            step, first = (exchanged(about["place"][key], about.get("thick", "z")) for key in ("step", "origin"))
            counted = Place(step, first)
        um = Place(volume.voxel_um, volume.translation_um or (0.0, 0.0, 0.0)) if volume.voxel_um else None
        middle = (slice(max(0, (n - s) // 2), (n + s) // 2) for n, s in zip(volume.shape, _SAMPLE, strict=True))
        low, high = np.nanpercentile(volume[tuple(middle)].astype(np.float64), (0.1, 99.9)).tolist()
        called = f" {volume.channel_name}" if volume.channel_name else _number(channel, count)
        name, kind = f"{stem_of(path)}{called}", "signed" if "shows" in about else "grey"
        if kind == "signed":
            low, high = -max(abs(low), abs(high)), max(abs(low), abs(high))
        yield Layer(name, kind, volume.shape, volume.dtype, volume.__getitem__, um, counted, (low, high))


def _of_store(path: Path, run: Path | None, options: Options, engine: Engine | None) -> Iterator[Layer]:
    """What a store's codes stand for, a layer for each channel, and the codes, a layer for each level."""
    store, name = CodeStore.open(path), stem_of(path)
    decoder = Run.of_store(store, run, engine=engine)
    if not decoder.makes_volumes:
        log.info(f"{name}: its run has no volume decoder, so the slices are shown")
    job = decode_job(decoder, store, options, "isotropic" if decoder.makes_volumes else "raw")
    made, about = job.field, store.about
    shared: dict[str, Any] = {"axes": "".join(exchanged("zyx", about.get("thick", "z"))), "lock": threading.Lock()}
    um = Place(job.voxel_um, job.translation_um) if job.voxel_um and job.translation_um else None
    # stores of older versions do not know where their slices lie
    place = job.attributes.get("place", {"step": (1 / about["factor"], 1.0, 1.0), "origin": (0.0, 0.0, 0.0)})
    counted = Place(place["step"], place["origin"])
    for channel in range(made.channels):
        grey = made.intensities[min(channel, len(made.intensities) - 1)]
        title, read = f"{name} decoded{_number(channel, made.channels)}", partial(_decoded, made, channel)
        yield Layer(title, "grey", made.shape, made.dtype, read, um, counted, grey.ends, computed=True, **shared)
    side, slices = about["lattice"].get("stride", LATENT_STRIDE), about.get("slices", {"first": 0.0, "spacing": 1.0})
    um = um and _of_codes(about["slice_voxel_um"], about["slice_translation_um"], side)
    counted = _of_codes((slices["spacing"], 1.0, 1.0), (slices["first"], 0.0, 0.0), side)
    some = store.read((slice(0, 1), slice(0, store.shape[1]), slice(0, store.shape[2]))).codes
    kind, limits = "grey" if about["kind"] == "gaussian" else "codes", (float(some.min()), float(some.max()))
    count = some.shape[3] if some.ndim == 4 else 1
    for level in range(count):
        title, read = f"{name}{_number(level, count)}", partial(_codes, store, level)
        yield Layer(title, kind, store.shape, some.dtype, read, um, counted, limits, **shared)


def _number(number: int, count: int) -> str:
    return f" {number}" if count > 1 else ""


def _decoded(made: Field, channel: int, box: Box) -> Array:
    return made.render(box)[channel]


def _codes(store: CodeStore, level: int, box: Box) -> Array:
    codes = store.read(box).codes
    return codes[..., level] if codes.ndim == 4 else codes


def _of_codes(step: Sequence[float], first: Sequence[float], side: int) -> Place:
    """The place of codes, each in the middle of its pixels, from that of the slices."""
    (z, y, x), (z0, y0, x0) = step, first
    return Place((z, side * y, side * x), (z0, y0 + (side - 1) / 2 * y, x0 + (side - 1) / 2 * x))


@contextmanager
def page(layers: Sequence[Layer], port: int = 0) -> Iterator[Any]:
    """Serves a page on this computer.

    Args:
        layers: the last ones lie on top; the page begins in the middle of the first.
        port: 0: any.

    Yields:
        neuroglancer's viewer; its address holds a random token, without which nothing is served.

    Raises:
        UserError: neuroglancer is not installed, or the port is taken.
    """
    neuroglancer = optional_package("neuroglancer", "infer.py view", "view", "the page")
    neuroglancer.set_server_bind_address("127.0.0.1", port)
    try:
        viewer = neuroglancer.Viewer(allow_credentials=False)
    except OSError as error:
        raise UserError(f"--port {port} cannot be used ({error.strerror}); leave it out for any that is free") from error
    try:
        with viewer.txn() as state:
            _fill(neuroglancer, state, layers)
        yield viewer
    finally:
        neuroglancer.server.global_server.executor.shutdown(wait=False, cancel_futures=True)  # chunks that nobody waits for
        neuroglancer.stop()


def _fill(neuroglancer: Any, state: Any, layers: Sequence[Layer]) -> None:
    """Gives the page its layers and the point of view."""
    unknown = [layer.name for layer in layers if layer.um is None]
    unit = "" if unknown else "um"
    if 0 < len(unknown) < len(layers):
        log.warning("no voxel size is stated of %s: every layer is placed in voxels of the input instead", ", ".join(unknown))
    placed = [(layer, layer.counted if unknown or layer.um is None else layer.um) for layer in layers]
    steps = [dict(zip(layer.axes, place.step, strict=True)) for layer, place in placed]
    finest = {axis: min(step[axis] for step in steps) for axis in "xyz"}
    state.dimensions = neuroglancer.CoordinateSpace(names=list("xyz"), units=[unit] * 3, scales=list(finest.values()))
    (first, place), count = placed[0], dict(zip(layers[0].axes, layers[0].shape, strict=True))
    begin = dict(zip(first.axes, place.first, strict=True))
    state.position = [(begin[axis] + steps[0][axis] * ((count[axis] - 1) // 2)) / finest[axis] for axis in "xyz"]
    state.cross_section_scale = min(1.0, max(steps[0][axis] * count[axis] / finest[axis] for axis in "xyz") / _SHOWN)
    state.layout = "4panel"
    state.show_slices = not any(layer.computed for layer in layers)  # the fourth panel would compute planes beyond the view
    for layer, place in placed:
        state.layers.append(name=layer.name, layer=_drawn(neuroglancer, layer, place, unit), visible=layer.kind == "grey")


def _drawn(neuroglancer: Any, layer: Layer, place: Place, unit: str) -> Any:
    """A layer as neuroglancer has it."""
    space = neuroglancer.CoordinateSpace(names=list(layer.axes), units=[unit] * 3, scales=list(place.step))
    shift = [first / step - 0.5 for first, step in zip(place.first, place.step, strict=True)]  # of borders, not centres
    moved = neuroglancer.CoordinateSpaceTransform(output_dimensions=space, matrix=np.c_[np.eye(3), shift])
    how = {"max_downsampling": 1} if layer.computed else {}  # else a chunk far away is up to 64 chunks to compute
    kind = "segmentation" if layer.kind == "codes" else "image"
    source = neuroglancer.LayerDataSource(url=neuroglancer.LocalVolume(layer, space, volume_type=kind, **how), transform=moved)
    if layer.kind == "codes":
        return neuroglancer.SegmentationLayer(source=source, hide_segment_zero=False, selected_alpha=1.0)
    low, high = (round(end) for end in layer.limits) if layer.dtype.kind in "ui" else layer.limits
    low, high = (low, high) if high > low else (low - 1, high + 1)  # of differences that are all 0 nothing is drawn
    shader = (_SIGNED if layer.kind == "signed" else _GREY).format(low, high)
    return neuroglancer.ImageLayer(source=source, shader=shader, opacity=1.0)
