"""Two ways to make one training step of the primary model, from the same modules: as the research code did, and as we do.

``reference``: each optimiser's phase generates anew; every view of the volume goes through the discriminator by itself; LPIPS,
the 2-D discriminator and the adaptive weight are computed in every step, whether or not they act; the discriminator's phase goes
back through the generator, too.
"""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.machine import fresh_model
from ldm.losses import adaptive_weight
from networks.losses import adversarial, hinge_discriminator
from networks.views import project, project_slices, six_views, to_slices

PUBLISHED = {"cropsize": 64, "cropz": 8, "ldmyaml": "vqgan", "ngf": 32, "ndf": 64}  # widths of aisr.json, on half its crop


class Step:
    """Model, optimisers and a batch on a device; ``reference()`` and ``ours()`` make one step each."""

    def __init__(self, device: str, **changes: Any) -> None:
        from taming.lpips import PerceptualLoss

        with torch.device(device):
            self.model = fresh_model(**{**PUBLISHED, "perceptual_weight": 1.0, **changes}).train()
            self.model.perceptual = PerceptualLoss(random_weights=True)  # as much arithmetic as with the trained ones
        self.generator, self.discriminator = self.model.configure_optimizers()[0]
        side, depth = self.model.settings["cropsize"], self.model.geometry.slices
        self.batch = {"img": [torch.rand(self.model.settings["batch_size"], 1, side, side, depth, device=device) * 2 - 1]}

    def ours(self) -> Tensor:
        """One generation; what has no effect is left out (models.base.BaseModel.training_step, without Lightning)."""
        model = self.model
        self._learning(self.generator, self.discriminator)
        out = model.generate(self.batch)
        total = self._descend(self.generator, lambda: model.weigh(model.generator_losses(out)), theirs_alone=True)
        self._descend(self.discriminator, lambda: model.weigh(model.discriminator_losses(out.detach())), theirs_alone=True)
        return total

    def contiguous(self) -> None:
        """Weights in PyTorch's default order, as the research code had them; ours lays some otherwise (models.build)."""
        for parameter in self.model.parameters():
            parameter.data = parameter.data.contiguous()

    def reference(self) -> Tensor:
        """Two generations, 13 calls of the discriminator of planes, LPIPS in both phases; doubled slices are convolved."""
        with patch("ldm.autoencoder.convolve_doubled", _doubled_then_convolved):
            total = self._descend(self.generator, self._generator_phase)
            self._descend(self.discriminator, self._discriminator_phase)
        return total

    def _descend(self, optimizer: Any, loss: Callable[[], Tensor], theirs_alone: bool = False) -> Tensor:
        self._learning(optimizer)
        optimizer.zero_grad()
        total = loss()
        total.backward(inputs=optimizer.param_groups[0]["params"] if theirs_alone else None)
        optimizer.step()
        return total.detach()

    def _learning(self, *optimizers: Any) -> None:
        for optimizer in (self.generator, self.discriminator):
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.requires_grad_(optimizer in optimizers)

    def _generated(self) -> tuple[Any, Tensor]:
        batch = {"img": [image.detach().requires_grad_() for image in self.batch["img"]]}  # it asked for this gradient, too
        out = self.model.generate(batch)
        return out, to_slices(out.original).detach()

    def _generator_phase(self) -> Tensor:
        model, s = self.model, self.model.settings
        out, slices = self._generated()
        views = [model.judged("net_d", [view], True, generator=True) for view in six_views(out.volume)]
        slabs = project_slices(out.target, model.geometry.skip, s["l1how"], s["slabtarget"])
        projection = F.l1_loss(project(out.volume, model.geometry.factor, model.geometry.skip, s["l1how"]), slabs)
        likelihood = model.reconstruction(slices, out.recon) + model.perceptual_term(slices, out.recon)
        fooled = adversarial(model.D["discriminator"](out.recon), True, "hinge", generator=True)
        weight = adaptive_weight(likelihood, fooled, model.G["decoder"].conv_out.weight)
        slice_terms = likelihood + 0.0 * weight * fooled + out.code.loss  # 0.0: the term acts from disc_start on
        return s["adv"] * torch.stack(views).mean() + s["lamb"] * projection + slice_terms

    def _discriminator_phase(self) -> Tensor:
        model = self.model
        out, slices = self._generated()
        fake = [model.judged("net_d", [view], False) for view in six_views(out.volume)]
        real = model.judged("net_d", [slices], True)
        unused = model.reconstruction(slices, out.recon) + model.perceptual_term(slices, out.recon)
        net, recon = model.D["discriminator"], out.recon.detach()
        of_slices = hinge_discriminator(net(slices), net(recon))
        return torch.stack(fake).mean() + real + 0.0 * (of_slices + unused.detach())


def _doubled_then_convolved(x: Tensor, convolution: nn.Conv2d) -> Tensor:
    return convolution(F.interpolate(x, scale_factor=2.0, mode="nearest"))
