"""Learning rate over epochs."""

import math
from collections.abc import Callable, Mapping
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from experiment.runs import higher_is_better


def multiplier(settings: Mapping[str, Any]) -> Callable[[int], float]:
    """The factor on the learning rate as a function of the epoch.

    Args:
        settings: ``lr_policy`` cosine and lambda hold 1 for n_epochs_decay epochs, then fall to 0 at n_epochs along half a cosine
            (Loshchilov & Hutter 2017, eq. 5) or a line; step falls tenfold every lr_decay_iters epochs.

    Raises:
        ValueError: unknown policy, or plateau, which has no closed form.
    """
    policy, hold, iters = settings["lr_policy"], settings["n_epochs_decay"], settings["lr_decay_iters"]
    span = max(1, settings["n_epochs"] - hold)

    def progress(epoch: int) -> float:
        return min(1.0, max(0, epoch - hold) / span)

    if policy == "cosine":
        return lambda epoch: 0.5 * (1 + math.cos(math.pi * progress(epoch)))
    if policy == "lambda":
        return lambda epoch: 1 - progress(epoch)
    if policy == "step":
        return lambda epoch: 0.1 ** (epoch // iters)
    raise ValueError(f"lr_policy={policy!r} has no closed form; one of cosine, lambda, step")


def build_scheduler(optimizer: Optimizer, settings: Mapping[str, Any]) -> LRScheduler | ReduceLROnPlateau:
    """The scheduler that the training loop steps once per epoch (plateau: with the metric ``monitor``)."""
    if settings["lr_policy"] == "plateau":
        better = higher_is_better(settings["monitor"])
        return ReduceLROnPlateau(optimizer, "max" if better else "min", factor=0.2, threshold=0.01, patience=5)
    return LambdaLR(optimizer, multiplier(settings))


def carried_over(state: dict[str, Any], policy: str) -> dict[str, Any]:
    """The saved state of a scheduler as one of ``policy`` takes it: where the kind has changed, the number of epochs alone."""
    was_plateau = "num_bad_epochs" in state
    if was_plateau == (policy == "plateau"):
        return state
    return {"last_epoch": state["last_epoch"]} | ({} if policy == "plateau" else {"lr_lambdas": [None]})


def apply_now(scheduler: LRScheduler | ReduceLROnPlateau) -> None:
    """Sets the optimiser's rate to what the schedule says for its epoch: a resumed training may follow another schedule."""
    if isinstance(scheduler, LambdaLR):
        for group, base, factor in zip(scheduler.optimizer.param_groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
            group["lr"] = base * factor(scheduler.last_epoch)
