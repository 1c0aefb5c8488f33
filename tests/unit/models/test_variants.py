"""What the variants add: other VQ settings, the KL model's branches, MS-SSIM, IsoREF's draws and projections."""

from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from experiment.autoencoder import configure_autoencoder, read_autoencoder_yaml
from experiment.reading import default_settings
from experiment.rules import check_settings
from models.build import build_model
from models.options import MODEL_OPTIONS
from networks.views import project, resample_z, swap_in_plane
from taming.quantize import to_vectors

SMALL = {"cropsize": 32, "ngf": 4, "ndf": 4, "mc": False}


def small(name):
    """Sizes for a test, without LPIPS, whose weights are not there; as far as the model has such options."""
    known = {option.name for option in MODEL_OPTIONS[name]} | {"cropsize"}
    return {key: value for key, value in {**SMALL, "perceptual_weight": 0}.items() if key in known}


def build(name, repository, **changes):
    settings = default_settings(MODEL_OPTIONS, name, **small(name) | changes)
    if "ldmyaml" not in settings:
        return build_model(settings)
    autoencoder = read_autoencoder_yaml(repository, settings["ldmyaml"])
    autoencoder["ddconfig"]["ch"], autoencoder["loss"]["disc_ndf"] = 8, 4
    return build_model({**settings, "autoencoder": configure_autoencoder(autoencoder, settings)})


def crop(depth):
    return {"img": [torch.rand(1, 1, 32, 32, depth) * 2 - 1]}


@pytest.fixture
def repository(request):
    return request.config.rootpath


@pytest.mark.parametrize("ldmyaml", ["vqresidual", "vqlocal", "vqfsq"])
def test_every_part_of_the_other_vq_settings_trains(repository, ldmyaml):
    model = build("ae0iso0tccutvqq", repository, ldmyaml=ldmyaml, cropz=4)
    out = model.generate(crop(4))
    model.weigh(model.generator_losses(out)).backward()
    trained = {name: p for name, p in model.G.named_parameters() if p.requires_grad}
    assert not [name for name, p in trained.items() if p.grad is None or not p.grad.isfinite().all()]
    levels, learned = len(model.G["quantize"].codebooks), ldmyaml != "vqfsq"
    assert all(book.weight.requires_grad == learned for book in model.G["quantize"].codebooks)
    assert not learned or all(book.weight.grad.any() for book in model.G["quantize"].codebooks)
    assert out.code.indices.shape == ((4, 4, 4, levels) if levels > 1 else (4, 4, 4))
    assert (model.slice_halo("encoder") == (71, 78)) == (ldmyaml == "vqlocal")


@pytest.mark.parametrize("hbranch", ["mid", "z"])
@pytest.mark.parametrize(("cropz", "downbranch", "resizebranch"), [(4, 1, 1), (8, 2, 1), (2, 1, 2)])
def test_both_branches_of_the_kl_model_give_a_cube(repository, hbranch, cropz, downbranch, resizebranch):
    options = {"cropz": cropz, "downbranch": downbranch, "resizebranch": resizebranch, "skipl1": 1}
    model = build("ae0iso0tccut", repository, hbranch=hbranch, **options)
    out = model.generate(crop(cropz))
    assert out.volume.shape == (1, 1, 32, 32, 32)
    assert model.weigh(model.generator_losses(out)).isfinite()


def test_the_kl_model_samples_in_training_and_takes_the_mean_in_use(repository):
    model, batch = build("ae0iso0tccut", repository, hbranch="z", cropz=4), crop(4)
    first, second = (model.generate(batch) for _ in range(2))
    assert not torch.equal(first.recon, second.recon)
    with model.evaluating():
        first, second = (model.generate(batch) for _ in range(2))
    assert torch.equal(first.recon, second.recon) and torch.equal(first.volume, second.volume)
    torch.testing.assert_close(first.code.latent, first.code.moments.chunk(2, dim=1)[0])


@pytest.mark.parametrize("name", ["ae0iso0tccut", "ae0iso0tccutvqq", "ae0iso0tccutvqqssim"])
def test_every_model_of_slices_can_have_the_structural_term(repository, monkeypatch, name):
    assert build(name, repository, cropz=4).wants("ms_ssim") == name.endswith("ssim")
    model = build(name, repository, cropz=4, lbm_ms_ssim=0.5)
    out, target = model.generate(crop(4)), torch.rand(1, 1, 2, 104, 13) * 2 - 1
    interpolated = resample_z(target, 104)
    assert model.structure(replace(out, target=target, volume=interpolated)).item() == pytest.approx(0, abs=1e-6)
    assert model.structure(replace(out, target=target, volume=interpolated.flip(3))).item() > 0.3
    monkeypatch.setattr(type(model), "structure", lambda *_: torch.tensor(3.0))
    terms = model.generator_losses(out)
    rest = model.weigh({key: value for key, value in terms.items() if key != "ms_ssim"})
    torch.testing.assert_close(model.weigh(terms) - rest, torch.tensor(1.5))


def isoref(repository, **changes):
    return build("IsoREF", repository, cropz=16, **changes)


@pytest.mark.parametrize("l1how", ["max", "min", "mean", "dsp", "maxmin"])
def test_isoref_projects_both_volumes_alike(repository, l1how):
    model = isoref(repository, l1how=l1how)
    out = model.generate(crop(16))
    expected = [
        F.l1_loss(*(project(volume, 2, 1, how) for volume in (out.volume, out.interpolated)))
        for how in ({"maxmin": ("max", "min")}.get(l1how) or (l1how,))
    ]
    torch.testing.assert_close(model.generator_losses(out)["projection"], torch.stack(expected).mean())


def test_isoref_draws_swaps_and_every_group_of_views(repository):
    model, batch = isoref(repository, nocyc=True), crop(16)
    assert {model.draw_view_group() for _ in range(50)} == {0, 1, 2}
    seen = {torch.equal(model.generate(batch).original, batch["img"][0]) for _ in range(20)}
    assert seen == {True, False}
    model.draw_swap = lambda: True
    assert torch.equal(model.generate(batch).original, swap_in_plane(batch["img"][0]))
    with model.evaluating():
        assert torch.equal(model.generate(batch).original, batch["img"][0])


def test_isoref_shows_as_many_planes_as_asked(repository):
    model, seen = isoref(repository, adv_planes=3), []
    for net_d in model.D.values():
        net_d.register_forward_pre_hook(lambda net_d, images: seen.append(len(images[0])))
    out = model.generate(crop(16))
    model.generator_losses(out)
    # planes of a shape share a call: 4 views of one group or 2 of the XY group, then 2 for each discriminator of the cycle
    assert seen[0] in (6, 12) and seen[1:] in ([6, 6, 6], [3, 3, 3, 3, 6])


@pytest.mark.parametrize("nocyc", [False, True])
@pytest.mark.parametrize("adv", [0.0, 1.0])
def test_isoref_trains_every_part_that_it_builds(repository, nocyc, adv):
    model = isoref(repository, nocyc=nocyc, adv=adv, nocut=False, use_mlp=True, c_mlp=8, num_patches=8)
    out = model.generate(crop(16))
    model.weigh(model.generator_losses(out)).backward()
    assert all(p.grad is not None for p in model.G.parameters())
    model.D.zero_grad()
    terms = model.discriminator_losses(out.detach())
    if terms:
        model.weigh(terms).backward()
    assert bool(terms) == bool(model.D)
    assert all(p.grad is not None for p in model.D.parameters())


def test_isorefs_contrast_has_the_published_direction(repository):
    model = isoref(repository, nocut=False, nocyc=True, num_patches=8)
    out = model.generate(crop(16))
    term = model.contrast(out)
    of_restored, of_key = torch.autograd.grad(term, (out.volume, out.pyramid[0]), allow_unused=True, retain_graph=True)
    assert of_restored.abs().sum() > 0
    through_volume = torch.autograd.grad(out.volume, out.pyramid[0], grad_outputs=of_restored)[0]
    torch.testing.assert_close(of_key, through_volume)  # nothing reaches the key's features but through the restored volume


@pytest.mark.parametrize(
    ("name", "options"),
    [
        *(("ae0iso0tccutvqq", {"gan_mode": mode}) for mode in ("vanilla", "lsgan", "hinge")),
        *(("ae0iso0tccutvqq", {"norm": norm}) for norm in ("instance", "group", "none")),
        *(("ae0iso0tccutvqq", {"l1how": how, "slabtarget": target}) for how in ("min", "dsp") for target in ("pooled", "slice")),
        ("ae0iso0tccutvqq", {"netD": "patch_8", "cropsize": 64, "cropz": 8, "adv_planes": 2}),
        pytest.param(
            "ae0iso0tccutvqq", {"netD": "patch_4", "cropsize": 128, "cropz": 16, "adv_planes": 2}, marks=pytest.mark.slow
        ),
        ("ae0iso0tccutvqq", {"cropz": 2, "usp": 2.0}),
        ("ae0iso0tccutvqq", {"cropz": 8, "usp": 0.5}),
        ("ae0iso0tccutvqq", {"cropz": 8, "downbranch": 4, "resizebranch": 2}),
        ("ae0iso0tccutvqq", {"nocut": False, "lbNCE": 1.0, "fWhich": [1.0, 0.0, 0.5, 2.0], "num_patches": 8}),
        ("IsoREF", {"norm": "instance", "nocyc": True}),
        ("IsoREF", {"norm": "group", "nocyc": True}),
        *(("IsoREF", {"gdim": gdim, "cropz": 16}) for gdim in ("1d_1d", "3d_1d", "3d_3d")),
    ],
)
def test_every_value_of_an_option_trains(repository, name, options):
    """Through the rules between settings, and with a finite gradient for every parameter."""
    options = {"cropz": 4, "skipl1": 2} | ({} if name == "IsoREF" else {"perceptual_weight": 0}) | options
    autoencoder = None
    if name != "IsoREF":
        autoencoder = read_autoencoder_yaml(repository, "vqgan")
        autoencoder["ddconfig"]["ch"] = 8
    check_settings(default_settings(MODEL_OPTIONS, name, **SMALL | options, prj="x", dataset="x"), autoencoder)
    model = build(name, repository, **options)
    side = model.geometry.cropsize
    out = model.generate({"img": [torch.rand(2, 1, side, side, model.geometry.slices) * 2 - 1]})
    for part, losses in ((model.G, model.generator_losses(out)), (model.D, model.discriminator_losses(out.detach()))):
        part.zero_grad()
        model.weigh(losses).backward()
        idle = {id(p) for p in model.D["discriminator"].parameters()} if "discriminator" in model.D else set()
        gradients = [p.grad for p in part.parameters() if id(p) not in idle]
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)


@contextmanager
def bf16_on_a_gpu():
    """torch.autocast, which refuses to work where there is none."""
    before = torch.get_autocast_dtype("cuda")
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", True)
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", False)
        torch.set_autocast_dtype("cuda", before)
        torch.clear_autocast_cache()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ae0iso0tccutvqq", {"nocut": False, "lbNCE": 1.0, "use_mlp": True}),
        ("ae0iso0tccutvqq", {"ldmyaml": "vqlocal", "l1how": "dsp", "adv_planes": 4}),
        ("ae0iso0tccutvqq", {"ldmyaml": "vqfsq", "usp": 2.0, "cropz": 2}),
        ("ae0iso0tccutvqq", {"ldmyaml": "vqresidual", "norm": "group"}),
        ("ae0iso0tccutvqqssim", {"cropsize": 176, "cropz": 22, "skipl1": 1}),
        ("ae0iso0tccut", {"hbranch": "mid"}),
        ("ae0iso0tccut", {"hbranch": "z", "lbNCE": 1.0, "nocut": False}),
        ("IsoREF", {"cropz": 16, "nocut": False, "num_patches": 8, "adv_planes": 3}),
        ("lateral", {"uprate": 2.5, "axial_sampling": "mean", "axial_sigma": 0.5, "blocks": 1}),
    ],
)
@pytest.mark.parametrize("bf16", [pytest.param(False, marks=pytest.mark.slow), True])
def test_nothing_is_left_on_the_cpu_when_a_model_is_on_a_gpu(repository, name, options, bf16):
    """With tensors without values, said to lie on a GPU: an operation that also gets one of the CPU fails, without any GPU."""
    with FakeTensorMode(shape_env=ShapeEnv(allow_scalar_outputs=True, allow_dynamic_output_shape_ops=True)):
        model = build(name, repository, **{"cropz": 4} | options)
        model.draw_view_group, model.draw_swap, model.draw_orientation = (lambda: 1), (lambda: True), (lambda: [True] * 3)
        for module in model.modules():  # what Module.to does, which takes no tensors without values
            module._parameters |= {k: nn.Parameter(p.to("cuda")) for k, p in module._parameters.items() if p is not None}
            module._buffers |= {k: b.to("cuda") for k, b in module._buffers.items() if b is not None}
        side = model.settings["cropsize"]
        batch = {"img": [torch.rand(2, 1, side, side, model.geometry.slices, device="cuda")]}
        with bf16_on_a_gpu() if bf16 else nullcontext(), torch.no_grad():  # without a GPU nothing goes back
            out = model.generate(batch)
            assert not bf16 or name in ("IsoREF", "lateral") or out.pyramid[0].dtype == torch.bfloat16, out.pyramid[0].dtype
            made = [model.weigh(model.generator_losses(out))]
            made += [model.weigh(model.discriminator_losses(out.detach()))] if model.D else []
            made += [*model.validation_metrics(out).values(), *model.preview(batch).values()]
            if "quantize" in model.G:
                made.append(model.revival.observe(out.code.indices))
                made += [vectors for _, vectors in model.G["quantize"].stages(to_vectors(out.code.moments))]
    assert {tensor.device for tensor in made} == {torch.device("cuda", 0)}
