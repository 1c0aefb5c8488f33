"""Options that every model shares, as data (torch-free): what ``--help`` prints and every settings file is checked against."""

import json
import math
import operator
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any

from utils.errors import UserError, did_you_mean

TRACKERS = ("tensorboard", "wandb", "mlflow", "csv")
GROUPS = ("run", "data", "geometry", "networks", "losses", "CUT", "optimisation")
_COMPARISONS = {">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt}
REASONS = {  # why an option takes no other choice, for messages
    "precision": "16-bit floats need loss scaling, which is not supported with two manually stepped optimisers",
    "strategy": "fsdp and deepspeed shard the weights, which gains nothing for 20 M parameters and does not allow two optimisers",
    "gdim": "each half is 1d (along z) or 3d; 2d is not supported",
    "gan_mode": "the Wasserstein modes would need a gradient penalty, which is not supported",
}
_FORMER_METRICS = {
    "g/": "loss/generator/",
    "d/": "loss/discriminator/",
    "val/": "validation/",
    "codes_used": "codes/used",
    "perplexity": "codes/perplexity",
}
_KINDS: dict[Any, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}


@dataclass(frozen=True)
class Option:
    """One setting.

    Attributes:
        name: key in experiment files; ``--name`` on the command line (booleans have ``--no-name`` too).
        type: int, float, str, bool, the only texts accepted, or a function from text to value that raises ValueError.
        default: value when neither file nor command line gives one; None means unset.
        help: one line for ``--help``.
        limits: comparisons separated by blanks that a number has to satisfy, such as ``">=0 <1"``.
        group: heading in ``--help``, one of GROUPS.
        nargs: argparse's count of values; the value is then a list.
        aliases: further flags, with their dashes; long ones are also accepted as keys.
    """

    name: str
    type: Callable[[Any], Any] | tuple[str, ...]
    default: Any = None
    help: str = ""
    limits: str = ""
    _: KW_ONLY
    group: str = "run"
    nargs: int | str | None = None
    aliases: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """Names under which experiment files may set the option."""
        return (self.name, *(alias[2:] for alias in self.aliases if alias.startswith("--")))

    def checked(self, value: Any, where: str) -> Any:
        """A file's JSON value, or the command line's text, as the option's type; a UserError names where it was given."""
        if self.nargs is None:
            return self._checked_item(value, where)
        items = value if isinstance(value, list) else [value]
        if isinstance(self.nargs, int) and len(items) != self.nargs:
            raise UserError(f"{where}={as_text(value)} must be a list of {self.nargs} values; it has {len(items)}")
        if self.nargs == "+" and not items:
            raise UserError(f"{where}=[] must be a list of at least one value")
        return [self._checked_item(item, where) for item in items]

    def _checked_item(self, value: Any, where: str) -> Any:
        wrong = f"{where}={as_text(value)} must be"
        try:
            converted = self._converted(value)
        except (ValueError, TypeError, OverflowError):
            raise UserError(f"{wrong} {_KINDS.get(self.type, f'of this kind: {self.help}')}") from None
        if isinstance(self.type, tuple) and converted not in self.type:
            why = f" ({REASONS[self.name]})" if self.name in REASONS else ""
            raise UserError(f"{wrong} one of {', '.join(self.type)}{why}{did_you_mean(converted, self.type)}")
        for limit in self.limits.split():
            sign = limit.rstrip("0123456789.-")
            if not _COMPARISONS[sign](converted, float(limit[len(sign) :])):
                raise UserError(f"{wrong} {self.limits.replace(' ', ' and ')}")
        return converted

    def _converted(self, value: Any) -> Any:
        if self.type is bool and value in ("true", "false"):
            return value == "true"
        if value is False and self.type in (int, float) and self.default == 0:
            value = 0  # what is off at 0 may be switched off by false
        if not isinstance(value, (str, int, float)) or isinstance(value, bool) != (self.type is bool):
            raise ValueError
        if self.type is int and isinstance(value, float) and value % 1:
            raise ValueError
        converted = str(value) if isinstance(self.type, tuple) else self.type(value)
        if not isinstance(converted, str) and not math.isfinite(converted):
            raise ValueError
        return converted


def as_text(value: Any) -> str:
    """A value as messages show it: text as it is, the rest as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def count_or_auto(value: Any) -> int | str:
    """A positive whole number, or ``"auto"`` (all there are)."""
    if value == "auto":
        return "auto"
    if int(value) < 1 or int(value) != float(value):
        raise ValueError(value)
    return int(value)


def metric_name(value: Any) -> str:
    """The name of a logged metric; the names that metrics had before 2026-11-28 are read as today's."""
    name = str(value)
    former = next((old for old in _FORMER_METRICS if name == old or (old.endswith("/") and name.startswith(old))), "")
    return _FORMER_METRICS.get(former, "") + name.removeprefix(former)


_run = partial(Option, group="run")
_data = partial(Option, group="data")
_optimise = partial(Option, group="optimisation")

BASE_OPTIONS: tuple[Option, ...] = (
    _run("jsn", str, None, "experiment: env/jsn/NAME.json|.yaml|.yml, or a path to such a file (required)"),
    _run("prj", str, None, "folder of the run under LOGS/dataset/ (required)"),
    _run("models", str, "ae0iso0tccutvqq", "the model; it adds options of its own"),
    _run("env", str, "local", "machine profile of env/env: where data and logs are"),
    _run("logs", str, None, "folder for runs, instead of the profile's LOGS"),
    _run("data_root", str, None, "folder of the data sets, instead of the profile's DATASET"),
    _run("seed", int, 123, "seed of every random draw", ">=0 <=4294967295"),
    _run("resume", bool, False, "continue the run from its last.ckpt with its stored settings"),
    _run("init", str, None, "RUN[@EPOCH]: start from that run's weights (fine-tuning; not a resume)"),
    _run("overwrite", bool, False, "start anew although the run exists; the old folder is renamed, never deleted"),
    _run("strict", bool, False, "refuse abbreviated options"),
    _run("debug", bool, False, "show tracebacks of the user's mistakes too"),
    _run("max_time", str, None, "DD:HH:MM:SS after which the run stops and can be resumed"),
    _run("save_minutes", float, 10.0, "write last.ckpt at an epoch's end when this many minutes have passed", ">=0"),
    _run("picture_epochs", int, 20, "epochs between two pictures", ">=1"),
    _run("keep_pictures", int, 50, "pictures kept in pictures/", ">=1"),
    _run("val_epochs", int, 1, "epochs between two validations", ">=1"),
    _run("log_steps", int, 10, "steps between two logged values", ">=1"),
    _run("monitor", metric_name, "validation/projection", "logged metric that `best` and lr_policy plateau follow"),
    _run("tracker", TRACKERS, None, "where curves, settings and pictures go, one or more; unset: tensorboard", nargs="+"),
    _data("dataset", str, None, "data set: folder under the data folder (required)"),
    _data("direction", str, "x3d0", "folder of volumes, or several joined by _ (tc: two channels, else a_b translates a to b)"),
    _data("nm", ("00", "01", "11"), "00", "intensities: 00 as they are (in [-1, 1]), 01 or 11 scaled from each file's range"),
    _data("nm_clip", float, None, "percentiles LOW HIGH to clip at before nm 01 or 11; unset: off", ">=0 <=100", nargs=2),
    _data("precrop", int, 0, "centre crop in-plane before everything else (pixels); 0 = none", ">=0"),
    _data("resize", int, 0, "resize slices to this side (pixels); 0 = none", ">=0"),
    _data("cropsize", int, 128, "side of the training cube (voxels), a multiple of 8", ">=8"),
    _data("cropz", int, 16, "slices read for a crop, before dsp and usp", ">=1"),
    _data("rotate", bool, True, "rotate crops by up to 45 degrees in-plane"),
    _data("dsp", int, 1, "thin the slices of a crop by this factor", ">=1"),
    _data("dsp_how", ("pick", "mean"), "pick", "how dsp thins: pick every dsp-th slice, or mean of dsp slices"),
    _data("usp", float, 1.0, "interpolate the slices of a crop by this factor along z", ">0"),
    _data("draw", ("uniform", "content"), "uniform", "where crops lie: anywhere, or where there is more than background"),
    _data("preload", bool, False, "keep decoded volumes in memory"),
    _data("crops_per_volume", int, 1, "crops drawn from a volume per epoch", ">=1"),
    _data("neighbours", int, 1, "crops of an epoch that lie close together, for which a file is read once; 1 = none", ">=1"),
    _data("unreadable_files", int, 0, "files that may become unreadable in a training before it stops; others stand in", ">=0"),
    _data("workers", int, 2, "processes that prepare crops", ">=0"),
    _data("batch_size", int, 1, "crops per process and step", ">=1", aliases=("-b",)),
    _optimise("lr", float, 2e-4, "learning rate", ">0"),
    _optimise("lr_g_factor", float, 1.0, "the generator side learns at lr times this", ">0"),
    _optimise("beta1", float, 0.5, "Adam's beta1 (beta2 belongs to the model)", ">=0 <1"),
    _optimise("lr_policy", ("cosine", "lambda", "step", "plateau"), "cosine", "schedule after n_epochs_decay epochs"),
    _optimise("n_epochs", int, 10001, "epochs in all", ">=1"),
    _optimise("n_epochs_decay", int, 100, "epochs at constant learning rate before the schedule acts", ">=0"),
    _optimise("lr_decay_iters", int, 50, "lr_policy step: epochs between two steps of x0.1", ">=1"),
    _optimise("epoch_save", int, 100, "epochs between two sets of component checkpoints", ">=1"),
    _optimise("accumulate_grad_batches", int, 1, "batches per optimiser step", ">=1"),
    _optimise("gradient_clip", float, 0.0, "largest gradient norm; 0 = off", ">=0"),
    _optimise("ema", float, 0.0, "decay of averaged weights, such as 0.999; 0 = off", ">=0 <1", aliases=("--use_ema",)),
    _optimise("precision", ("32", "bf16-mixed"), None, "unset: bf16-mixed on a GPU that has it (NVIDIA: since Ampere), else 32"),
    _optimise("recompute", bool, False, "compute activations again in the backward pass: less than half the memory, more time"),
    _optimise("devices", count_or_auto, "auto", "processes per machine: a number, or auto for all GPUs"),
    _optimise("num_nodes", int, 1, "machines", ">=1"),
    _optimise("strategy", ("auto", "ddp"), "auto", "how several processes work together"),
    _optimise("save_d", bool, False, "accepted; discriminators are always saved"),
    _optimise("on_nan", ("stop", "skip"), "stop", "a loss or gradient that is not finite stops the training, or skips the step"),
)

RETIRED = tuple("load3d dataset_mode flip mode port host trd not_tracking_hparams remap sane_index_shape downz cubic".split())

ESTABLISHED = frozenset(
    """jsn prj models env resume dataset direction nm precrop resize cropsize cropz rotate dsp usp preload batch_size lr
    lr_g_factor beta1 lr_policy n_epochs n_epochs_decay lr_decay_iters epoch_save use_ema save_d downbranch resizebranch uprate
    netD ngf ndf norm mc input_nc output_nc final ldmyaml netG embed_dim tc gdim hbranch nocyc lambB lamb l1how l1 skipl1 adv
    gan_mode lbm_ms_ssim nocut lbNCE num_patches nce_T use_mlp c_mlp fWhich
    nce_includes_all_negatives_from_minibatch""".split()
)
"""Names that users knew before us: their abbreviations win over those of our own names."""
