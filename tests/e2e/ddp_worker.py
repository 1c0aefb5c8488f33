"""Runs train.main in one of several processes and saves each rank's state: ``ddp_worker.py OUT sgd|adam|nan ARGUMENTS``.

sgd: plain descent, and nothing is drawn: a posterior gives its mean, patches come from the same places, IsoREF never swaps
axes and shows one group of views.
nan: the loss of the second process is not a number.
A script, too, because Lightning starts the other ranks by running the same command again.
"""

import os
import sys
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
warnings.filterwarnings("ignore")

from pytorch_lightning.utilities import rank_zero_only  # noqa: E402

import train  # noqa: E402
from ldm.bottleneck import DiagonalGaussian  # noqa: E402
from models.base import BaseModel  # noqa: E402
from models.CUT import PatchContrast  # noqa: E402
from models.IsoREF import Model as IsoREF  # noqa: E402


def broken(self, terms, weigh=BaseModel.weigh):
    return weigh(self, terms) * (float("nan") if self.global_rank else 1)


def run(out, how, arguments):
    BaseModel.on_train_end = lambda self: torch.save(self.state_dict(), f"{out}_{self.global_rank}.pt")
    if how == "sgd":
        BaseModel.build_optimizer = lambda self, parameters, lr: torch.optim.SGD(parameters, lr=lr)
        DiagonalGaussian.sample = lambda self: self.mean
        PatchContrast.forward.__defaults__ = (torch.arange,)
        IsoREF.draw_swap = lambda self: False
        IsoREF.draw_view_group = lambda self: 0
    if how == "nan":
        BaseModel.weigh = broken
    train.main(arguments)


def forked(rank, out, how, arguments):
    """In a process that a server has forked: Lightning was imported before there was a rank."""
    os.dup2(os.open(f"{out}_{rank}.txt", os.O_WRONLY | os.O_CREAT), sys.stderr.fileno())
    rank_zero_only.rank = rank
    run(out, how, arguments)


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], sys.argv[3:])
