"""What build_model puts into a model: everything for a training, and only what computes volumes in use."""

import pytest

from experiment.autoencoder import configure_autoencoder, read_autoencoder_yaml
from experiment.options import BASE_OPTIONS
from experiment.reading import default_settings
from models.build import build_model
from models.options import MODEL_OPTIONS
from taming import lpips
from utils.errors import UserError


def every_term(name, repository):
    asked = {"cropsize": 64 if name == "lateral" else 32, "cropz": 4, "ngf": 4, "ndf": 4, "nocut": False, "lbNCE": 1.0}
    asked |= {"lateral": {"uprate": 4}, "texture": {"uprate": 4, "init": "RUN"}}.get(name, {})
    known = {option.name for option in (*BASE_OPTIONS, *MODEL_OPTIONS[name])}
    settings = default_settings(MODEL_OPTIONS, name, **{key: value for key, value in asked.items() if key in known})
    if "ldmyaml" not in settings:
        return {**settings, "autoencoder": None}
    settings |= {"lbm_ms_ssim": 1.0, "perceptual_weight": 1.0}
    autoencoder = read_autoencoder_yaml(repository, settings["ldmyaml"])
    autoencoder["ddconfig"]["ch"], autoencoder["loss"]["disc_ndf"] = 8, 4
    return {**settings, "autoencoder": configure_autoencoder(autoencoder, settings)}


@pytest.mark.parametrize("name", [name for name in MODEL_OPTIONS if name != "fused"])  # of earlier versions: never trained
def test_a_model_in_use_has_nothing_that_only_a_training_needs(name, request):
    settings = every_term(name, request.config.rootpath)
    whole, in_use = build_model(settings, frozen=False), build_model(settings, for_training=False)
    only_for_training = {*whole.D, "netF", "net_gback"}
    assert set(in_use.components()) == set(whole.components()) - only_for_training
    assert not in_use.D and not any(in_use.loss_weights.values())
    assert any(whole.loss_weights.values())


def test_a_training_asks_for_the_weights_of_its_fixed_networks(request, monkeypatch, tmp_path):
    monkeypatch.setattr(lpips.torch.hub, "get_dir", lambda: str(tmp_path))
    settings = every_term("ae0iso0tccutvqq", request.config.rootpath)
    assert build_model(settings, frozen=False).perceptual is None
    with pytest.raises(UserError, match="vgg16"):
        build_model(settings)
