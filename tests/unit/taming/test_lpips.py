"""The perceptual loss: its arithmetic against the package, its keeping out of the way, and the check of its weights."""

import copy
import hashlib

import pytest
import torch
from torch import nn

from taming import lpips as ours
from taming.lpips import PerceptualLoss, find_weights, lpips_head
from utils.errors import UserError


@pytest.fixture(scope="module")
def loss():
    torch.manual_seed(0)
    return PerceptualLoss(random_weights=True)


def test_head_has_a_finite_gradient_at_zero_features():
    a = torch.zeros(1, 3, 2, 2, requires_grad=True)
    lpips_head([a], [torch.ones(1, 3, 2, 2)], [torch.ones(1, 3, 1, 1)]).sum().backward()
    assert torch.isfinite(a.grad).all()


def test_agrees_with_the_package(loss):
    a, b = torch.rand(2, 1, 32, 24) * 2 - 1, torch.rand(2, 1, 32, 24) * 2 - 1
    value = loss(a, b)
    assert value.shape == (2, 1, 1, 1)
    assert (value > 0).all()
    torch.testing.assert_close(value, loss.network(a, b), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(loss(a, a), torch.zeros(2, 1, 1, 1))


def test_grey_is_three_equal_channels(loss):
    a, b = torch.rand(1, 1, 16, 32), torch.rand(1, 1, 16, 32)
    torch.testing.assert_close(loss(a, b), loss(a.repeat(1, 3, 1, 1), b.repeat(1, 3, 1, 1)))
    with pytest.raises(ValueError, match="1 or 3 channels, not 2"):
        loss(torch.zeros(1, 2, 16, 16), torch.zeros(1, 2, 16, 16))


class Owner(nn.Module):
    """Stands for a model that holds the loss."""

    def __init__(self, loss):
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 1)
        self.perceptual = loss


def test_in_no_parameters_state_or_training_mode(loss):
    owner = Owner(loss)
    assert len(list(owner.parameters())) == 2
    assert set(owner.state_dict()) == {"layer.weight", "layer.bias"}
    assert not list(loss.buffers())
    owner.train()
    assert not any(module.training for module in loss.network.modules())
    assert not any(p.requires_grad for p in loss.network.parameters())


def test_follows_its_owner(loss):
    owner = Owner(copy.deepcopy(loss)).double()
    assert {p.dtype for p in owner.perceptual.network.parameters()} == {torch.float64}
    image = torch.rand(1, 1, 16, 16, dtype=torch.float64)
    assert owner.perceptual(image, -image).dtype == torch.float64
    owner.to("meta")
    assert {t.device.type for t in owner.perceptual.network.state_dict().values()} == {"meta"}
    assert {t.device.type for t in loss.network.state_dict().values()} == {"cpu"}


def test_gradient_reaches_only_the_images(loss):
    recon = torch.rand(1, 1, 16, 16, requires_grad=True)
    loss(torch.rand(1, 1, 16, 16), recon).sum().backward()
    assert recon.grad.abs().sum() > 0
    assert all(p.grad is None for p in loss.network.parameters())


@pytest.fixture
def torch_home(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_missing_weights_name_file_place_and_remedy(torch_home):
    with pytest.raises(UserError) as error:
        PerceptualLoss()
    for part in (str(torch_home / "vgg16-397923af.pth"), "do not exist", "TORCH_HOME", "--perceptual_weight 0"):
        assert part in str(error.value)


def test_damaged_weights_are_refused(torch_home):
    (torch_home / "vgg16-397923af.pth").write_bytes(b"truncated")
    with pytest.raises(UserError, match=r"damaged.*not with 397923af.*--perceptual_weight 0"):
        find_weights()


def test_whole_weights_are_found(torch_home, monkeypatch):
    """The real file has 528 MB; any content whose hash begins as the name says must do."""
    name = f"vgg16-{hashlib.sha256(b'weights').hexdigest()[:8]}.pth"
    monkeypatch.setattr(ours, "WEIGHTS", name)
    (torch_home / name).write_bytes(b"weights")
    assert find_weights() == torch_home / name
