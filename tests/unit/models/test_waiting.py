"""A step on a GPU waits for nothing: what would wait cannot be asked of tensors that have a shape only (the meta device)."""

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from experiment.autoencoder import configure_autoencoder, read_autoencoder_yaml
from experiment.reading import default_settings
from models.base import BaseModel
from models.build import build_model
from models.options import MODEL_OPTIONS

ROOT = Path(__file__).resolve().parents[3]
SMALL = {"cropsize": 64, "cropz": 8, "ngf": 16, "ndf": 16, "adv_planes": 16}


class Transfers(TorchDispatchMode):
    """Counts copies between devices that the program waits for."""

    def __init__(self):
        super().__init__()
        self.waited = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        devices = {t.device for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)}
        copies = func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
        goes_on = (kwargs or {}).get("non_blocking") or (len(args) > 2 and args[2])
        self.waited += copies and len(devices) > 1 and not goes_on
        return out


def losses_of(name, changes):
    """Generation, both losses backwards, and what a model does after a batch."""
    settings = default_settings(MODEL_OPTIONS, name, **SMALL, **changes)
    autoencoder = configure_autoencoder(read_autoencoder_yaml(ROOT, settings["ldmyaml"]), settings)
    with torch.device("meta"):
        model = build_model({**settings, "autoencoder": autoencoder}, frozen=False)
    out = model.generate({"img": [torch.rand(1, 1, 64, 64, model.geometry.slices, device="meta")]})
    model.weigh(model.generator_losses(out)).backward()
    model.weigh(model.discriminator_losses(out.detach())).backward()
    if hasattr(model, "revival"):
        model.revival._none_dead_for = 2  # of a step in which no code can be dead
    model.after_batch(out, True)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("ae0iso0tccutvqq", {"ldmyaml": "vqgan_small", "nocut": False, "lbNCE": 1.0}),
        ("ae0iso0tccutvqq", {"ldmyaml": "vqlinear_residual"}),
        ("ae0iso0tccut", {"ldmyaml": "kllinear", "from_interpolation": True, "lbNCE": 0.0}),
    ],
)
def test_a_step_reads_no_number_from_the_device(name, changes, monkeypatch):
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: nullcontext())  # it knows no meta device
    with Transfers() as transfers:
        losses_of(name, changes)
    assert transfers.waited == 0


def test_the_counter_sees_a_transfer_and_a_number_cannot_be_read():
    with Transfers() as transfers:
        torch.ones(2).to("meta")
        torch.ones(2).to("meta", non_blocking=True)
    assert transfers.waited == 1
    with pytest.raises((RuntimeError, NotImplementedError)):
        torch.ones((), device="meta").item()


def test_adam_goes_over_all_weights_at_once_where_pytorch_can():
    model = BaseModel({"beta1": 0.5})
    weight = nn.Parameter(torch.ones(3))
    assert model.build_optimizer([weight], 0.1).param_groups[0]["fused"] is True
    assert not model.build_optimizer([nn.Parameter(torch.ones(3, device="meta"))], 0.1).param_groups[0]["fused"]
    plain = torch.optim.Adam([weight.detach().clone().requires_grad_()], 0.1, (0.5, 0.999))
    for optimizer in (plain, model.build_optimizer([weight], 0.1)):
        (parameter,) = optimizer.param_groups[0]["params"]
        parameter.grad = torch.tensor([1.0, -2.0, 1e-6])
        for _ in range(3):
            optimizer.step()
    torch.testing.assert_close(weight.data, plain.param_groups[0]["params"][0].data)
