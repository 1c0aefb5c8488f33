"""How a run is applied, as the command line or a caller wants it."""

from dataclasses import dataclass

from utils.axes import SEEN_ALONG
from utils.boxes import Box
from utils.errors import UserError
from utils.geometry import LATENT_STRIDE
from utils.units import SIZES, are_sizes
from volumes.volume import Triple


@dataclass(frozen=True)
class Options:
    """How a run is applied.

    Attributes:
        normalise: ``run``, ``volume`` or ``percentile``.
        prepared: the input went through prepare.py like the training data.
        dsp: in place of the run's; 1: the input is thinned already.
        dtype: of the output; None: the input's.
        thick: the input's axis along which it is coarse: z, y or x. None: as the training data were prepared, else z. Within the
            run it is z; the output has the input's axes, and so have ``region`` and ``voxel_um``.
        voxel_um: of the input where the file has none.
        ignore_voxels: go on although voxel sizes of run and input differ.
        force_range: go on although the grey values are not those of the training.
        region: part of the output that is wanted, in its voxels.
        tile: side of a decoding tile's core in output voxels; None: as memory allows.
        skip_empty: fill tiles of pure background instead of computing them.
        approximate: tiles although the generator's norm sees the whole volume.
        batch: tiles per pass of the network, in encoding and in decoding; None: 1 on a CPU, more on a GPU.
        effort: of ``encode``: how often every code is tried anew by what is decoded (models.code_search); 0: as encoded.
        texture: share of what a run of the texture model adds to its deterministic volume, 0 to 1.

    Raises:
        UserError: ``region`` is no box, ``voxel_um`` no size, ``thick`` no axis, ``dsp``, ``batch`` or ``effort`` no count,
            ``tile`` no multiple of 8, ``texture`` not a share.
    """

    normalise: str = "run"
    prepared: bool = False
    dsp: int | None = None
    dtype: str | None = None
    thick: str | None = None
    voxel_um: Triple | None = None
    ignore_voxels: bool = False
    force_range: bool = False
    region: Box | None = None
    tile: int | None = None
    skip_empty: bool = True
    approximate: bool = False
    batch: int | None = None
    effort: int = 0
    texture: float = 0.0

    def __post_init__(self) -> None:
        if self.region is not None and [type(side) for side in self.region] != [slice] * 3:
            raise UserError(f"region {self.region} must be three slices (z, y, x), such as (slice(0, 128),) + (slice(None),) * 2")
        if self.voxel_um is not None and not (len(self.voxel_um) == 3 and are_sizes(self.voxel_um)):
            raise UserError(f"voxel_um {self.voxel_um}: three sizes (z, y, x) must be {SIZES}")
        if self.thick not in (None, *SEEN_ALONG):
            raise UserError(f"--thick {self.thick} is no axis; choose one of {', '.join(SEEN_ALONG)}")
        for name, count, least in (("dsp", self.dsp, 1), ("batch", self.batch, 1), ("effort", self.effort, 0)):
            if count is not None and count < least:
                raise UserError(f"--{name} {count} must be at least {least}")
        if self.tile is not None and (self.tile < LATENT_STRIDE or self.tile % LATENT_STRIDE):
            raise UserError(f"--tile {self.tile} must be a multiple of {LATENT_STRIDE}, such as 128")
        if not 0 <= self.texture <= 1:
            raise UserError(f"--texture {self.texture:g} must be between 0 (deterministic) and 1 (the power of slices)")
