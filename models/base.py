"""The training loop: two optimisers, accumulation, schedules, averaging, reproducibility. No imaging."""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import AveragedModel

from models.schedules import apply_now, build_scheduler, carried_over
from networks.losses import Verdict, adversarial_views
from utils.errors import UserError

if TYPE_CHECKING:
    from pytorch_lightning import LightningModule as Module
    from pytorch_lightning.core.optimizer import LightningOptimizer

    from models.teacher import Teacher
else:
    Module = nn.Module

log = logging.getLogger("isoscope")
Terms = dict[str, Tensor]  # unweighted scalar loss terms by name

_HOW_TO_GO_ON = (
    "nothing was saved since. Start a new --prj from the last weights with --init RUN, and with a smaller --lr, "
    "--gradient_clip 1 or --precision 32"
)
MOST_LEFT_OUT = 20  # steps in a row under on_nan skip
CHECK_FINITE_EVERY = 50  # generator steps between looks at the losses on a GPU, where each look waits for the device


@dataclass(frozen=True)
class Window:
    """The accumulation window of a batch: how many batches share the step, and whether this one closes it."""

    size: int
    closes: bool

    @classmethod
    def of(cls, batch_idx: int, batches: int, accumulate: int) -> Self:
        """The last window of an epoch is shorter where accumulate does not divide the number of batches."""
        start = batch_idx // accumulate * accumulate
        size = min(accumulate, batches - start)
        return cls(size, batch_idx == start + size - 1)


class BaseModel(Module):
    """Generators in ``self.G``, discriminators in ``self.D``, one Adam each; one generation serves both.

    To apply it takes no Lightning, whose import lasts longer than PyTorch's: for a training ``models.build`` puts
    ``LightningModule`` below this class.

    A model fills ``G`` and ``D`` with named components, sets ``loss_weights`` and says what it does in :meth:`generate`,
    :meth:`generator_losses` and :meth:`discriminator_losses`. A term that is not in ``loss_weights``, or has weight 0 there,
    is not to be computed.
    """

    betas = (0.5, 0.999)
    shown_slices = 0  # of the sample in pictures, at least; 0: as many as a crop has

    def __init__(self, settings: Mapping[str, Any], for_training: bool = True) -> None:
        """Builds what the model is made of, and the losses where it is for training.

        Args:
            settings: complete, plain JSON (experiment.reading.default_settings), with the resolved ``autoencoder``.
            for_training: with what only a training needs: discriminators, the networks of loss terms, their weights.
        """
        super().__init__()
        self.automatic_optimization = False
        self.settings = dict(settings)
        self.G = nn.ModuleDict()
        self.D = nn.ModuleDict()
        self.ema_G: AveragedModel | None = None
        self.loss_weights: dict[str, float] = {}
        self.generator_steps = 0
        self.teacher: Teacher | None = None
        self.weights_loaded = False  # pretrained components: their codebook is neither initialised nor revived
        self._verdicts: dict[str, Verdict] = {}
        self._finite: Tensor | None = None
        self._left_out, self._files = 0, ""
        self._epoch_start, self._epoch_batches = 0.0, 0

    # What a model says -----------------------------------------------------------------------------------------------

    def generate(self, batch: Mapping[str, Any]) -> Any:
        """One pass through the generator; the result has ``detach()``."""
        raise NotImplementedError

    def generator_losses(self, out: Any) -> Terms:
        """Terms that the generator descends."""
        raise NotImplementedError

    def discriminator_losses(self, out: Any) -> Terms:
        """Terms that the discriminators descend; none means that their step is skipped."""
        raise NotImplementedError

    def validation_metrics(self, out: Any) -> dict[str, Tensor]:
        """Scalars by name for one validation batch."""
        raise NotImplementedError

    def load_frozen(self) -> None:
        """Loads the fixed networks of loss terms (utils.frozen), whose weights come with no run and belong to no checkpoint.

        Raises:
            UserError: weights are missing or damaged.
        """

    def initialise(self) -> None:
        """Once before the first step of a fresh training, with ``self.trainer`` attached."""

    def after_batch(self, out: Any, stepped: bool) -> dict[str, Tensor | float]:
        """After every batch, stepped: the optimisers moved; returns scalars to log."""
        return {}

    # The step --------------------------------------------------------------------------------------------------------

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Generate once, descend with both optimisers."""
        opt_g, *opt_d = _listed(self.optimizers())
        window = Window.of(batch_idx, int(self.trainer.num_training_batches), self.settings["accumulate_grad_batches"])
        self._files = ", ".join(batch["filenames"])
        out = self.generate(batch)
        stands = self.descend(opt_g, lambda: self.generator_losses(out), window, "generator")
        if opt_d:
            stands &= self.descend(opt_d[0], lambda: self.discriminator_losses(out.detach()), window, "discriminator")
        if not stands:
            return
        if window.closes:
            self._left_out = 0
            self.generator_steps += 1
            if self.ema_G is not None:
                self.ema_G.update_parameters(self.G)
        self._log(self.after_batch(out, window.closes))

    def descend(self, optimizer: "LightningOptimizer", losses: Callable[[], Terms], window: Window, side: str) -> bool:
        """One side's share of the step: the other side is frozen, gradients meet only when the window closes.

        False where its numbers are not finite and it was left out (``on_nan skip``).
        """
        self.toggle_optimizer(optimizer)
        learning = [p for group in optimizer.param_groups for p in group["params"]]
        terms = losses()
        if terms:
            total = self.weigh(terms)
            waits = getattr(self.trainer.strategy, "block_backward_sync", nullcontext)  # of several processes
            with nullcontext() if window.closes else waits():
                self.manual_backward(total / window.size, inputs=learning)
            if self.settings["on_nan"] == "stop":
                self._remember_finite(total, terms)
            self._log({f"loss/{side}/{name}": value.detach() for name, value in {**terms, "total": total}.items()})
        self.untoggle_optimizer(optimizer)
        if not terms or not window.closes:
            return True
        stands = self.settings["on_nan"] == "stop" or self._is_finite(optimizer, terms)
        if stands:
            if self.settings["gradient_clip"]:
                nn.utils.clip_grad_norm_(learning, self.settings["gradient_clip"])  # Lightning clips for no fused optimiser
            optimizer.step()
        optimizer.zero_grad()
        return stands

    def wants(self, term: str) -> bool:
        """Whether a loss term has any weight."""
        return self.loss_weights.get(term, 0) != 0

    def weigh(self, terms: Terms) -> Tensor:
        """The sum of terms, each with its weight."""
        return torch.stack([self.loss_weights[name] * value.float() for name, value in terms.items()]).sum()

    def judged(self, net_d: str, planes: list[Tensor], real: bool, generator: bool = False) -> Tensor:
        """What a discriminator of planes makes of them (networks.losses.adversarial_views)."""
        return adversarial_views(self.D[net_d], planes, real, self.settings["gan_mode"], generator=generator)

    def fooling(self, net_d: str, volume: Tensor, views: Callable[[Tensor], list[Tensor]]) -> Tensor:
        """The generator's loss of views of its volume; what the discriminator says of them is kept for :meth:`finding`."""
        self._verdicts[net_d] = Verdict(self.D[net_d], volume, views, self.settings["gan_mode"])
        return self._verdicts[net_d].fooling()

    def finding(self, net_d: str, volume: Tensor, views: Callable[[Tensor], list[Tensor]]) -> Tensor:
        """The discriminator's loss of views of the generated volume: of those that it saw in :meth:`fooling`, if it did."""
        verdict = self._verdicts.pop(net_d, None)
        return verdict.finding() if verdict and verdict.saw(volume) else self.judged(net_d, views(volume), False)

    def _log(self, values: Mapping[str, Tensor | float]) -> None:
        if values:
            self.log_dict(dict(values), on_step=True, on_epoch=False, batch_size=1)

    # Numbers that must stay finite -----------------------------------------------------------------------------------

    def _is_finite(self, optimizer: "LightningOptimizer", terms: Terms) -> bool:
        """Whether losses and gradients of a step are, on all processes; else it is said; too many in a row are a UserError."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        bad = [name for name, value in terms.items() if not bool(value.isfinite())]
        if not bad and not bool(torch.nn.utils.get_total_norm(gradients).isfinite()):
            bad = ["a gradient"]
        if self.trainer.strategy.reduce_boolean_decision(not bad, all=True):
            return True
        self._left_out += 1
        what = f"{', '.join(bad) or 'a number on another process'} NaN or infinite at step {self.generator_steps} ({self._files})"
        if self._left_out > MOST_LEFT_OUT:
            raise UserError(f"{what}; {MOST_LEFT_OUT} steps before it were left out already (on_nan skip); {_HOW_TO_GO_ON}")
        log.warning("step left out: %s", what)
        return False

    def _remember_finite(self, total: Tensor, terms: Terms) -> None:
        finite = torch.isfinite(total.detach())
        self._finite = finite if self._finite is None else self._finite & finite
        if total.device.type == "cpu" or self.generator_steps % CHECK_FINITE_EVERY == 0:
            self.require_finite({name: float(value.detach()) for name, value in terms.items()})

    def require_finite(self, terms: Mapping[str, float] | None = None) -> None:
        """Stops a training whose losses have left the real numbers; all processes look, and stop, together.

        Raises:
            UserError: a loss since the last look was NaN or infinite.
        """
        if self._finite is not None and not self.trainer.strategy.reduce_boolean_decision(bool(self._finite), all=True):
            bad = [name for name, value in (terms or {}).items() if not math.isfinite(value)]
            raise UserError(
                f"the loss became NaN or infinite at step {self.generator_steps}"
                + (f" ({', '.join(bad)})" if bad else "")
                + f", in or before the batch of {self._files}; {_HOW_TO_GO_ON}"
            )
        self._finite = None

    def require_savable(self) -> None:
        """Keeps a good checkpoint from being replaced by one that is not: a gradient may overflow where the loss did not.

        Raises:
            UserError: a loss, a weight or a running statistic is NaN or infinite, on any process.
        """
        self.require_finite()
        bad = next((name for name, value in self.state_dict().items() if not bool(value.isfinite().all())), None)
        if not self.trainer.strategy.reduce_boolean_decision(bad is None, all=True):
            where = f"first {bad}" if bad is not None else "on another process"
            raise UserError(f"the weights became NaN or infinite by step {self.generator_steps} ({where}); {_HOW_TO_GO_ON}")

    # Optimisers and schedules ----------------------------------------------------------------------------------------

    def build_optimizer(self, parameters: list[nn.Parameter], lr: float) -> Optimizer:
        """Adam (Kingma & Ba 2015) without weight decay, in one pass over the weights where PyTorch has that."""
        fused = parameters[0].device.type in ("cpu", "cuda")
        return Adam(parameters, lr=lr, betas=(self.settings["beta1"], self.betas[1]), fused=fused)

    def configure_optimizers(self) -> Any:
        """Optimiser 0 has what learns of ``G``, optimiser 1 all of ``D``; without any discriminator there is no optimiser 1."""
        s = self.settings
        sides = [(self.G, s["lr"] * s["lr_g_factor"]), (self.D, s["lr"])]
        learning = [([p for p in side.parameters() if p.requires_grad], lr) for side, lr in sides if len(side)]
        optimizers = [self.build_optimizer(parameters, lr) for parameters, lr in learning]
        return optimizers, [build_scheduler(optimizer, s) for optimizer in optimizers]

    def on_train_epoch_end(self) -> None:
        """Lightning never steps schedulers under manual optimisation.

        Raises:
            UserError: the schedule waits for a metric that is not logged.
        """
        monitor = self.settings["monitor"]
        for scheduler in _listed(self.lr_schedulers()):
            if not isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step()
            elif not monitor.startswith("validation/") or (self.current_epoch + 1) % self.settings["val_epochs"] == 0:
                value = self.metric(monitor)  # between two validations a metric of theirs is an earlier epoch's
                if value is None:
                    known = ", ".join(sorted(self.trainer.callback_metrics))
                    raise UserError(f"lr_policy plateau watches --monitor {monitor!r}, which is not logged; known: {known}")
                scheduler.step(value)
        images = self.settings["batch_size"] * self._epoch_batches * self.trainer.world_size
        self.log("training/samples_per_second", images / max(1e-9, time.monotonic() - self._epoch_start))
        for side, optimizer in zip(("generator", "discriminator"), self.trainer.optimizers, strict=False):
            self.log(f"training/learning_rate_{side}", optimizer.param_groups[0]["lr"])

    def metric(self, name: str) -> float | None:
        """A logged metric, averaged over the processes, which must decide alike by it; None where it is not logged.

        All processes call it together.
        """
        value = self.trainer.callback_metrics.get(name)
        return None if value is None else float(self.trainer.strategy.reduce(value.detach().clone(), reduce_op="mean"))

    # Validation ------------------------------------------------------------------------------------------------------

    def on_validation_start(self) -> None:
        """All ranks judge by the averaged statistics of the first one, which are those that are saved and resumed from."""
        if self.ema_G is not None and self.trainer.world_size > 1:
            for buffer in self.ema_G.buffers():
                torch.distributed.broadcast(buffer, 0)

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Logs ``validation/<metric>`` of the weights that inference takes, averaged over the validation samples of all ranks."""
        with self.evaluating():
            metrics = self.validation_metrics(self.generate(batch))
        self.log_dict(
            {f"validation/{k}": v for k, v in metrics.items()}, on_epoch=True, sync_dist=True, batch_size=len(batch["labels"])
        )

    # A run that can be repeated and resumed --------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Starts averaging, unless a checkpoint has it already."""
        if self.settings["ema"] and self.ema_G is None:
            self.ema_G = AveragedModel(self.G, multi_avg_fn=self._average, use_buffers=True)
            self.ema_G.requires_grad_(False)

    @torch.no_grad()
    def _average(self, averaged: Sequence[Tensor], current: Sequence[Tensor], _: Tensor | int) -> None:
        """Moves averages towards current values; the first steps weigh more, lest a short training keeps its random start."""
        decay = min(self.settings["ema"], (1 + self.generator_steps) / (10 + self.generator_steps))
        for mean, value in zip(averaged, current, strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - decay)
            else:
                mean.copy_(value)

    def on_train_start(self) -> None:
        """A fresh training sees its data once before the first step; a resumed one follows the schedule that it has now."""
        self._start_clock()
        for scheduler in _listed(self.lr_schedulers()):
            apply_now(scheduler)
        if self.generator_steps == 0:
            self.initialise()

    def on_train_epoch_start(self) -> None:
        """Starts the clock of the epoch."""
        self._start_clock()

    def _start_clock(self) -> None:
        """Also as the training starts: Lightning does not say that an epoch does where one goes on in its middle."""
        self._epoch_start, self._epoch_batches = time.monotonic(), 0

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Dropout and noise are a function of (seed, epoch, batch, rank), so a resumed run draws the same."""
        self._epoch_batches += 1
        key = [self.settings["seed"], self.current_epoch, batch_idx, self.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1)[0]))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what Lightning does not know."""
        checkpoint["generator_steps"] = self.generator_steps
        checkpoint["weights_loaded"] = self.weights_loaded
        if self.teacher is not None:
            checkpoint["teacher"] = self.teacher.record

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes it back.

        Raises:
            UserError: the teacher has other weights than before.
        """
        if self.teacher is not None:
            self.teacher.check_same(checkpoint["teacher"])
        self.generator_steps = checkpoint["generator_steps"]
        self.weights_loaded = checkpoint["weights_loaded"]
        policy = self.settings["lr_policy"]
        checkpoint["lr_schedulers"] = [carried_over(state, policy) for state in checkpoint.get("lr_schedulers", [])]
        self.on_fit_start()  # the averages of the checkpoint need their place

    # Components ------------------------------------------------------------------------------------------------------

    def components(self, ema: bool = False) -> dict[str, nn.Module]:
        """The parts that are saved one file each; ema: the averaged generator side alone."""
        if ema:
            return dict(self.ema_G.module.items()) if self.ema_G is not None else {}  # type: ignore[operator, union-attr]
        return {**dict(self.G.items()), **dict(self.D.items())}

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode without gradients, with averaged weights where there are any, as inference has it; then as before."""
        training, raw = self.training, self.G
        self.eval()
        if self.ema_G is not None:
            self.G = self.ema_G.module  # type: ignore[assignment]
        try:
            with torch.no_grad():
                yield
        finally:
            self.G = raw
            self.train(training)


def _listed(found: Any) -> list[Any]:
    """What Lightning gives of optimisers and schedulers: a list, or the only one."""
    return found if isinstance(found, list) else [found]
