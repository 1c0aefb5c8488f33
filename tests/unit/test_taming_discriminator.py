"""The 2-D discriminator against the reference in training and evaluation."""

import pytest
import torch
from torch import nn

from taming.discriminator import NLayerDiscriminator


def tensor(array):
    return torch.from_numpy(array.copy())


@pytest.fixture
def reference(golden, load_weights):
    g = golden("tamingD")
    network = NLayerDiscriminator(1, g.meta["ndf"], g.meta["n_layers"])
    load_weights(network, g.weights())
    return g, network


def test_training_golden(reference, check_gradient_norms):
    g, network = reference
    x = tensor(g["x"]).requires_grad_()
    y = network.train()(x)
    torch.testing.assert_close(y, tensor(g["y_train"]), rtol=0, atol=1e-5)
    (y * tensor(g["dir"])).sum().backward()
    torch.testing.assert_close(x.grad, tensor(g["grad_x"]), rtol=1e-4, atol=1e-5)
    check_gradient_norms(network, g)
    after = {key.removeprefix("after."): tensor(value) for key, value in g.items() if key.startswith("after.")}
    assert len(after) == 9
    for key, value in after.items():
        torch.testing.assert_close(network.state_dict()[key], value, rtol=1e-5, atol=1e-6)


def test_evaluation_golden(reference):
    g, network = reference
    torch.testing.assert_close(network.eval()(tensor(g["x"])), tensor(g["y_eval"]), rtol=0, atol=1e-5)


def test_stored_weights_are_the_recipe(golden, reference):
    """The file carries its weights twice; both must describe our module."""
    g, network = reference
    stored = {key.removeprefix("w."): tensor(value) for key, value in g.items() if key.startswith("w.")}
    assert stored.keys() == network.state_dict().keys()
    for key, value in stored.items():
        torch.testing.assert_close(network.state_dict()[key], value, rtol=1e-6, atol=0)


def test_shape_and_published_size():
    network = NLayerDiscriminator(1)
    assert network(torch.randn(2, 1, 40, 32)).shape == (2, 1, 3, 2)
    assert sum(p.numel() for p in network.parameters()) == 2_763_585


def test_initialisation():
    torch.manual_seed(0)
    network = NLayerDiscriminator(3)
    convolutions = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(convolutions) == 5
    assert all(w.std().item() == pytest.approx(0.02, rel=0.1) for w in convolutions)
    assert all(n.weight.mean().item() == pytest.approx(1.0, abs=0.01) and 0.01 < n.weight.std() < 0.03 for n in norms)
    assert all(n.bias.abs().sum() == 0 for n in norms)
