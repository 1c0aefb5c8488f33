"""Runs train.main in one of several processes and saves each rank's state: ``ddp_worker.py OUT sgd|adam|nan ARGUMENTS``.

sgd: plain descent, and nothing is drawn: a posterior gives its mean, patches come from the same places, IsoREF never swaps
axes and shows one group of views.
nan: the loss of the second process is not a number.
A script, because Lightning starts the other ranks by running the same command again.
"""

import sys
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
warnings.filterwarnings("ignore")

import train  # noqa: E402
from ldm.bottleneck import DiagonalGaussian  # noqa: E402
from models.base import BaseModel  # noqa: E402
from models.CUT import PatchContrast  # noqa: E402
from models.IsoREF import Model as IsoREF  # noqa: E402


def save_state(self):
    torch.save(self.state_dict(), f"{sys.argv[1]}_{self.global_rank}.pt")


def broken(self, terms, weigh=BaseModel.weigh):
    return weigh(self, terms) * (float("nan") if self.global_rank else 1)


if __name__ == "__main__":
    BaseModel.on_train_end = save_state
    if sys.argv[2] == "sgd":
        BaseModel.build_optimizer = lambda self, parameters, lr: torch.optim.SGD(parameters, lr=lr)
        DiagonalGaussian.sample = lambda self: self.mean
        PatchContrast.forward.__defaults__ = (torch.arange,)
        IsoREF.draw_swap = lambda self: False
        IsoREF.draw_view_group = lambda self: 0
    if sys.argv[2] == "nan":
        BaseModel.weigh = broken
    train.main(sys.argv[3:])
