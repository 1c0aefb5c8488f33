"""Truth in 3-D as a loss: where everything lies, what gets a gradient, and what is refused."""

from dataclasses import replace

import pytest
import torch

from models.build import build_model
from models.turned import TruthIn3d
from networks.sections import Sections, gaussian_profile
from tests.unit.models.test_teacher import guided, lateral
from utils.errors import UserError

CASES = [
    ("ae0iso0tccutvqq", {}),
    ("ae0iso0tccutvqq", {"cropz": 16, "downbranch": 2}),
    ("ae0iso0tccutvqq", {"cropz": 64, "dsp": 8, "usp": 4.0, "downbranch": 4}),
    ("IsoREF", {}),
    ("IsoREF", {"usp": 2.0}),
]


@pytest.mark.parametrize("l1how", ["dsp", "mean"])
@pytest.mark.parametrize("sigma", [0.0, 1.0])
@pytest.mark.parametrize(("model", "changes"), CASES)
def test_every_voxel_is_where_the_sections_say(model, changes, sigma, l1how):
    """On a ramp along all axes, which any operator leaves as it is, who restores it exactly makes no error."""
    settings = guided(model, l1how=l1how, **changes)
    term = TruthIn3d(settings)
    if sigma:
        term = TruthIn3d(settings, replace(term.sections, profile=gaussian_profile(sigma)))
    planes, usp = round(term.sampling.planes), term.sampling.usp
    n = round(64 / planes * usp)
    a, b, c = 0.004, 0.01, 0.003
    tolerance = 1e-5 if term.sections.centre == term.sampling.centre else 1e-4  # half a plane beyond the ends nothing is known

    def ramp(x, y, z):
        return a * x.view(-1, 1, 1) + c * y.view(-1, 1) + b * z

    def restores(slices, batch):
        """Planes of X on the model's grid, of Z as they were given."""
        x = term.sections.margin + term.sections.centre - term.sampling.centre + torch.arange(len(slices) // batch / usp * planes)
        made = ramp(x, torch.arange(64.0), torch.arange(64.0) - term.sections.centre)
        if swapped:
            made = ramp(torch.arange(64.0), x, torch.arange(64.0) - term.sections.centre).transpose(0, 1)
        return made.permute(2, 1, 0).expand(batch, 1, 64, 64, len(x))

    xy = torch.arange(64.0)
    volume = ramp(xy, xy, torch.arange(64.0) - term.sampling.centre).expand(2, 1, 64, 64, 64)
    of_slice = ((torch.arange(n) + 0.5) / usp - 0.5).clamp(0, 64 / planes - 1) * planes
    original = ramp(xy, xy, of_slice).expand(2, 1, 64, 64, n)
    for seed in range(4):
        torch.manual_seed(seed)
        swapped = bool(torch.rand(()) < 0.5)
        torch.manual_seed(seed)
        assert term.error(volume, original, restores) < tolerance


@pytest.mark.parametrize("model", ["ae0iso0tccutvqq", "ae0iso0tccut", "IsoREF"])
def test_a_model_learns_from_it_beside_its_other_terms(model):
    built = build_model(guided(model, lblateral=2.0, l1how="mean", lamb=0.0, from_interpolation=True))
    assert not build_model(guided(model)).wants("lateral")
    out = built.generate({"img": [torch.rand(1, 1, 64, 64, 8) * 2 - 1]})
    terms = built.generator_losses(out)
    expected = 2 * terms["lateral"]
    torch.testing.assert_close(built.weigh({"lateral": terms["lateral"]}), expected)
    assert 0 < terms["lateral"] < 2
    grads = torch.autograd.grad(terms["lateral"], [*built.G["net_g"].conv7_k.parameters(), out.volume], allow_unused=True)
    assert all(grad.any() for grad in grads[:-1]) and grads[-1] is None  # the volume itself is taken for given


def test_a_teachers_operator_is_taken(tmp_path):
    path = lateral(tmp_path, axial_sampling="mean", axial_sigma=1.5)
    settings = guided(teacher=str(path), lblateral=1.0, l1how="mean")
    assert build_model(settings).turned.sections == Sections(8.0, "mean", gaussian_profile(1.5))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"l1how": "max"}, "l1how=max is no operator"),
        ({"direction": "a_b"}, "shows another folder than the slices"),
    ],
)
def test_what_it_cannot_judge_is_refused(changes, words):
    with pytest.raises(UserError, match=words):
        build_model(guided(lblateral=1.0, **{"l1how": "mean", **changes}))


@pytest.mark.parametrize(("sigma", "side", "words"), [(9.0, 64, "leaves 0 turned sections"), (3.0, 32, "0 acquired slices")])
def test_a_crop_too_small_for_the_profile_is_refused(sigma, side, words):
    with pytest.raises(UserError, match=words):
        TruthIn3d(guided(l1how="mean", cropsize=side, cropz=side // 8), Sections(8.0, "mean", gaussian_profile(sigma)))
