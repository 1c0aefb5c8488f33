"""Options that every model shares, as data (torch-free): what ``--help`` prints and every settings file is checked against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

GROUPS = ("run", "data", "geometry", "networks", "losses", "CUT", "optimisation")


@dataclass(frozen=True)
class Option:
    """One setting.

    Attributes:
        name: key in experiment files; ``--name`` on the command line (booleans have ``--no-name`` too).
        type: int, float, str, bool, or a function from text to value that raises ValueError.
        default: value when neither file nor command line gives one; None means unset.
        help: one line for ``--help``.
        group: heading in ``--help``, one of GROUPS.
        choices: the only values accepted.
        nargs: argparse's count of values; the value is then a list.
        aliases: further flags, with their dashes; long ones are also accepted as keys.
        limits: comparisons separated by blanks that a number has to satisfy, such as ``">=0 <1"``.
        why: why other values are refused; ends the error message.
        ours: the name was added by us (aliases are old): an abbreviation that was unambiguous before keeps its meaning.
    """

    name: str
    type: Callable[[Any], Any]
    default: Any
    help: str
    group: str
    choices: tuple[str, ...] | None = None
    nargs: int | str | None = None
    aliases: tuple[str, ...] = ()
    limits: str = ""
    why: str = ""
    ours: bool = False

    @property
    def keys(self) -> tuple[str, ...]:
        """Names under which experiment files may set the option."""
        return (self.name, *(alias[2:] for alias in self.aliases if alias.startswith("--")))


def count_or_auto(value: Any) -> int | str:
    """A positive whole number, or ``"auto"`` (all there are)."""
    if value == "auto":
        return "auto"
    if int(value) < 1 or int(value) != float(value):
        raise ValueError(value)
    return int(value)


_run = partial(Option, group="run")
_data = partial(Option, group="data")
_optimisation = partial(Option, group="optimisation")

_RUN = (
    _run("jsn", str, None, "experiment: env/jsn/NAME.json|.yaml|.yml, or a path to such a file (required)"),
    _run("prj", str, None, "folder of the run under LOGS/dataset/ (required)"),
    _run("models", str, "ae0iso0tccutvqq", "the model; it adds options of its own"),
    _run("env", str, "local", "machine profile of env/env: where data and logs are"),
    _run("logs", str, None, "folder for runs, instead of the profile's LOGS", ours=True),
    _run("data_root", str, None, "folder of the data sets, instead of the profile's DATASET", ours=True),
    _run("seed", int, 123, "seed of every random draw", limits=">=0 <=4294967295", ours=True),
    _run("resume", bool, False, "continue the run from its last.ckpt with its stored settings"),
    _run("init", str, None, "RUN[@EPOCH]: start from that run's weights (fine-tuning; not a resume)", ours=True),
    _run("overwrite", bool, False, "start anew although the run exists; the old folder is renamed, never deleted", ours=True),
    _run("strict", bool, False, "refuse abbreviated options", ours=True),
    _run("debug", bool, False, "show tracebacks of the user's mistakes too", ours=True),
    _run("max_time", str, None, "DD:HH:MM:SS after which the run stops and can be resumed", ours=True),
    _run(
        "save_minutes",
        float,
        10.0,
        "write last.ckpt at an epoch's end when this many minutes have passed",
        limits=">=0",
        ours=True,
    ),
    _run("picture_epochs", int, 20, "epochs between two pictures", limits=">=1", ours=True),
    _run("keep_pictures", int, 50, "pictures kept in pictures/", limits=">=1", ours=True),
    _run("val_epochs", int, 1, "epochs between two validations", limits=">=1", ours=True),
    _run("log_steps", int, 10, "steps between two logged values", limits=">=1", ours=True),
    _run("monitor", str, "val/projection", "logged metric that `best` and lr_policy plateau follow", ours=True),
)

_DATA = (
    _data("dataset", str, None, "data set: folder under the data folder (required)"),
    _data(
        "direction", str, "x3d0", "folder of volumes, or several joined by _ (two channels with tc, else a_b translates a to b)"
    ),
    _data(
        "nm",
        str,
        "00",
        "intensities: 00 as they are (in [-1, 1]), 01 or 11 scaled from each file's range",
        choices=("00", "01", "11"),
    ),
    _data(
        "nm_clip",
        float,
        None,
        "percentiles LOW HIGH to clip at before nm 01 or 11; unset: off",
        nargs=2,
        limits=">=0 <=100",
        ours=True,
    ),
    _data("precrop", int, 0, "centre crop in-plane before everything else (pixels); 0 = none", limits=">=0"),
    _data("resize", int, 0, "resize slices to this side (pixels); 0 = none", limits=">=0"),
    _data("cropsize", int, 128, "side of the training cube (voxels), a multiple of 8", limits=">=8"),
    _data("cropz", int, 16, "slices read for a crop, before dsp and usp", limits=">=1"),
    _data("rotate", bool, True, "rotate crops by up to 45 degrees in-plane"),
    _data("dsp", int, 1, "thin the slices of a crop by this factor", limits=">=1"),
    _data(
        "dsp_how",
        str,
        "pick",
        "how dsp thins: pick every dsp-th slice, or mean of dsp slices",
        choices=("pick", "mean"),
        ours=True,
    ),
    _data("usp", float, 1.0, "interpolate the slices of a crop by this factor along z", limits=">0"),
    _data("preload", bool, False, "keep decoded volumes in memory"),
    _data("crops_per_volume", int, 1, "crops drawn from a volume per epoch", limits=">=1", ours=True),
    _data("workers", int, 2, "processes that prepare crops", limits=">=0", ours=True),
    _data("batch_size", int, 1, "crops per process and step", aliases=("-b",), limits=">=1"),
)

_OPTIMISATION = (
    _optimisation("lr", float, 2e-4, "learning rate", limits=">0"),
    _optimisation("lr_g_factor", float, 1.0, "the generator side learns at lr times this", limits=">0"),
    _optimisation("beta1", float, 0.5, "Adam's beta1 (beta2 belongs to the model)", limits=">=0 <1"),
    _optimisation(
        "lr_policy", str, "cosine", "schedule after n_epochs_decay epochs", choices=("cosine", "lambda", "step", "plateau")
    ),
    _optimisation("n_epochs", int, 10001, "epochs in all", limits=">=1"),
    _optimisation("n_epochs_decay", int, 100, "epochs at constant learning rate before the schedule acts", limits=">=0"),
    _optimisation("lr_decay_iters", int, 50, "lr_policy step: epochs between two steps of x0.1", limits=">=1"),
    _optimisation("epoch_save", int, 100, "epochs between two sets of component checkpoints", limits=">=1"),
    _optimisation("accumulate_grad_batches", int, 1, "batches per optimiser step", limits=">=1", ours=True),
    _optimisation("gradient_clip", float, 0.0, "largest gradient norm; 0 = off", limits=">=0", ours=True),
    _optimisation(
        "ema", float, 0.0, "decay of averaged weights, such as 0.999; 0 = off", aliases=("--use_ema",), limits=">=0 <1", ours=True
    ),
    _optimisation(
        "precision",
        str,
        None,
        "unset: bf16-mixed on a GPU that has it (NVIDIA: since Ampere), else 32",
        choices=("32", "bf16-mixed"),
        why="16-bit floats need loss scaling, which is not supported with two manually stepped optimisers",
        ours=True,
    ),
    _optimisation("devices", count_or_auto, "auto", "processes per machine: a number, or auto for all GPUs", ours=True),
    _optimisation("num_nodes", int, 1, "machines", limits=">=1", ours=True),
    _optimisation(
        "strategy",
        str,
        "auto",
        "how several processes work together",
        choices=("auto", "ddp"),
        why="fsdp and deepspeed shard the weights, which gains nothing for 20 M parameters and does not allow two optimisers",
        ours=True,
    ),
    _optimisation("save_d", bool, False, "accepted; discriminators are always saved"),
    _optimisation("on_nan", str, "stop", "what a loss that is not finite does", choices=("stop",), ours=True),
)

BASE_OPTIONS: tuple[Option, ...] = _RUN + _DATA + _OPTIMISATION

RETIRED: tuple[str, ...] = (
    "load3d",
    "dataset_mode",
    "flip",
    "mode",
    "port",
    "host",
    "trd",
    "not_tracking_hparams",
    "remap",
    "sane_index_shape",
    "downz",
    "cubic",
)
