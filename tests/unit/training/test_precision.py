"""Which precision is chosen on which processor."""

from contextlib import nullcontext

import pytest
import torch

from training.trainer import precision_of, require_devices
from utils.errors import UserError
from utils.machine import Engine, in_bf16


@pytest.fixture
def gpu(monkeypatch):
    """A machine that says it has a GPU."""

    def of(native, cudnn=91500):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.backends.cudnn, "version", lambda: cudnn)
        monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: native or including_emulation)

    return of


@pytest.mark.parametrize(("wanted", "chosen"), [(None, False), (True, True), (False, False)])
def test_a_cpu_computes_in_bf16_only_where_asked(wanted, chosen):
    assert in_bf16(torch.device("cpu"), wanted) == chosen


def test_a_gpu_computes_in_bf16_where_it_has_it(gpu):
    gpu(native=True)
    assert Engine.choose().precision == "bf16" and Engine.choose(precision="32").precision == "32"
    assert precision_of({"precision": None}) == "bf16-mixed" and precision_of({"precision": "32"}) == "32"


def test_an_older_gpu_computes_in_32_bits_and_refuses_bf16(gpu):
    gpu(native=False)
    assert Engine.choose().precision == "32" and Engine.choose("cuda:0", "32").precision == "32"
    assert precision_of({"precision": None}) == "32"
    for asked in (lambda: Engine.choose(precision="bf16"), lambda: require_devices({"devices": 1, "precision": "bf16-mixed"})):
        with pytest.raises(UserError, match="Tesla T4 has no bf16 arithmetic; use --precision 32"):
            asked()


@pytest.mark.parametrize(("cudnn", "warned"), [(91002, True), (91500, False), (None, False)])
def test_an_older_cudnn_is_named(gpu, cudnn, warned, caplog):
    gpu(native=True, cudnn=cudnn)
    require_devices({"devices": "auto", "precision": None})
    Engine.choose()
    assert len([line for line in caplog.messages if "is older than 9.15" in line]) == 2 * warned
