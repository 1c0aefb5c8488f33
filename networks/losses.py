"""Adversarial and structural losses: pure functions of tensors, none of them weighted."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytorch_msssim
import torch
from torch import Tensor, nn
from torch.nn import functional

# Exponents of Wang, Simoncelli & Bovik 2003 with their last three scales merged into one. pytorch_msssim asks for sides of more
# than (window - 1)·2⁴ pixels however few the scales are (experiment.rules).
_MS_SSIM_WEIGHTS = (0.0448, 0.2856, 0.6696)
_MS_SSIM_WINDOW = 7
_CELLS = 8  # squares along each axis of a plane of frequencies: 1/16 cycle per pixel wide


def adversarial(logits: Tensor, real: bool, mode: str, *, generator: bool = False) -> Tensor:
    """How far logits are from the verdict wanted, mean over all of them.

    Args:
        logits: any shape, unbounded.
        real: the verdict wanted: real or generated.
        mode: ``vanilla``, -log σ(±x) (Goodfellow 2014, non-saturating); ``lsgan``, (x - 1)² or x² (Mao 2017, eq. 9);
            ``hinge``, max(0, 1 ∓ x) (Lim & Ye 2017).
        generator: the loss is the generator's. Only hinge differs: -x, unbounded, so that it never stops pushing.

    Returns:
        A scalar in float32 or higher.

    Raises:
        ValueError: a generator that wants to be found out.
    """
    if generator and not real:
        raise ValueError("the generator's loss wants its planes taken for real: generator=True needs real=True")
    logits = full_precision(logits)
    if mode == "vanilla":
        return functional.softplus(-logits if real else logits).mean()
    if mode == "lsgan":
        return (logits - float(real)).square().mean()
    return -logits.mean() if generator else functional.relu(1 - logits if real else 1 + logits).mean()


def adversarial_views(
    net_d: Callable[[Tensor], Tensor], views: Sequence[Tensor], real: bool, mode: str, *, generator: bool = False
) -> Tensor:
    """Mean over views of their adversarial losses, with one call of the discriminator for all views of a shape.

    Equal to calling it view by view where it treats images independently, as :class:`~networks.patchgan.PatchDiscriminator` does;
    views count equally whatever their number of planes.

    Args:
        net_d: images (N, C, H, W) to logits (N, ...).
        views: batches of images, each with its own N, H and W.
        real, mode, generator: as in :func:`adversarial`.

    Returns:
        A scalar.
    """
    return _mean_adversarial(_logits(net_d, views), real, mode, generator=generator)


class Verdict:
    """A discriminator's word on generated views, given once in a step and descended by both sides.

    Its weights do not change between the two, so its logits stay; both losses are those of :func:`adversarial_views`.
    """

    def __init__(self, net_d: nn.Module, volume: Tensor, views: Callable[[Tensor], Sequence[Tensor]], mode: str) -> None:
        """Asks it, whether or not its weights are to learn just now.

        Args:
            net_d: as in :func:`adversarial_views`.
            volume: generated, any shape.
            views: makes batches of images of it.
            mode: as in :func:`adversarial`.
        """
        self._volume, self._mode = volume, mode
        self._shown = volume.detach().requires_grad_()
        with _learning(net_d):
            self._logits = _logits(net_d, views(self._shown))

    def fooling(self) -> Tensor:
        """The generator's loss, a scalar; its gradient goes to the volume, and none to the discriminator."""
        loss = _mean_adversarial(self._logits, True, self._mode, generator=True)
        if not loss.requires_grad:  # under torch.no_grad
            return loss
        (gradient,) = torch.autograd.grad(loss, self._shown, retain_graph=True)
        return loss.detach() + ((self._volume - self._shown.detach()) * gradient.contiguous()).sum()

    def saw(self, volume: Tensor) -> bool:
        """Whether it is of this volume, or of what it was detached from."""
        return volume.untyped_storage()._cdata == self._volume.untyped_storage()._cdata

    def finding(self) -> Tensor:
        """The discriminator's loss, a scalar: the views are generated. Its gradient goes to the discriminator."""
        return _mean_adversarial(self._logits, False, self._mode)


def _logits(net_d: Callable[[Tensor], Tensor], views: Sequence[Tensor]) -> list[Tensor]:
    same_shape: dict[tuple[int, ...], list[Tensor]] = defaultdict(list)
    for view in views:
        same_shape[tuple(view.shape[1:])].append(view)
    return [logits for group in same_shape.values() for logits in net_d(torch.cat(group)).split([len(view) for view in group])]


def _mean_adversarial(logits: Sequence[Tensor], real: bool, mode: str, *, generator: bool = False) -> Tensor:
    return torch.stack([adversarial(of_view, real, mode, generator=generator) for of_view in logits]).mean()


@contextmanager
def _learning(network: nn.Module) -> Iterator[None]:
    before = [(weight, weight.requires_grad) for weight in network.parameters()]
    network.requires_grad_()
    try:
        yield
    finally:
        for weight, learns in before:
            weight.requires_grad_(learns)


def hinge_discriminator(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """½ [mean max(0, 1 - D(real)) + mean max(0, 1 + D(fake))], a scalar."""
    return 0.5 * (adversarial(real_logits, True, "hinge") + adversarial(fake_logits, False, "hinge"))


def ms_ssim_loss(a: Tensor, b: Tensor) -> Tensor:
    """1 - MS-SSIM (Wang, Simoncelli & Bovik 2003) with three scales, mean over images and channels.

    Args:
        a, b: images (N, C, H, W) in [-1, 1].

    Returns:
        A scalar in [0, 1], 0 for equal images.
    """
    with torch.autocast(a.device.type, enabled=False):  # variances as differences of squares: half precision cannot hold them
        similarity = pytorch_msssim.ms_ssim(
            full_precision(a),
            full_precision(b),
            data_range=2,
            win_size=_MS_SSIM_WINDOW,
            weights=list(_MS_SSIM_WEIGHTS),
        )
    return 1 - similarity


def gradient_ratio(volume: Tensor) -> Tensor:
    """RMS gradient along Z over the RMS of those along X and Y, (B, C, X, Y, Z) → a scalar, as evaluate.py reports it.

    1 is isotropic, less is blurred along Z; nothing is optimised for it.
    """
    x, y, z = (volume.diff(dim=axis).square().mean() for axis in (2, 3, 4))
    return (z / ((x + y) / 2).clamp_min(1e-12)).sqrt()


def octave_power(made: Tensor, truth: Tensor, period: float) -> Tensor:
    """Power of rows over the truth's at periods of ``period`` to twice as many rows.

    With the distance of two sections this is the octave that the sections just cannot hold: what is in it was restored.

    Args:
        made, truth: images (N, C, H, W); columns are taken minus their means and under a Hann window.
        period: in rows, at least 2.

    Returns:
        A scalar, 1 where both have as much.

    Raises:
        ValueError: the rows are too few to tell.
    """
    frequencies = torch.fft.rfftfreq(made.shape[2], device=made.device)
    band = (frequencies > 0.5 / period) & (frequencies < 1 / period + 1e-6)
    if not band.any():
        raise ValueError(f"{made.shape[2]} rows hold no period between {period:g} and {2 * period:g}")
    window = torch.hann_window(made.shape[2], device=made.device)[:, None]

    def power(images: Tensor) -> Tensor:
        rows = full_precision(images)
        return torch.fft.rfft((rows - rows.mean(2, keepdim=True)) * window, dim=2)[:, :, band].abs().square().mean()

    with torch.autocast(made.device.type, enabled=False):
        return power(made) / power(truth).clamp_min(1e-12)


def power_error(made: Tensor, truth: Tensor) -> Tensor:
    """How far images are from others in power, at every frequency and in every direction.

    The plane of frequencies is divided into at most 8 x 8 squares, by size along both axes; of all but the lowest one the
    logarithm of the ratio of mean powers counts. The truth counts in both orientations.

    Args:
        made: (N, C, H, W).
        truth: (M, C, side, side).

    Returns:
        A scalar, 0 where every square has the same power in both.

    Raises:
        ValueError: images of fewer than 4 pixels along a side.
    """
    cells = min(_CELLS, *(side // 2 for side in (*made.shape[2:], *truth.shape[2:])))
    if cells < 2:
        raise ValueError(f"images of {tuple(made.shape[2:])} and {tuple(truth.shape[2:])} have too few frequencies")
    with torch.autocast(made.device.type, enabled=False):
        wanted = _cell_powers(full_precision(truth), cells)
        wanted = (wanted + wanted.mT) / 2
        ratio = _cell_powers(full_precision(made), cells).clamp_min(1e-12) / wanted.clamp_min(1e-12)
    return ratio.log().abs().flatten(1)[:, 1:].mean()


def _cell_powers(images: Tensor, cells: int) -> Tensor:
    """Mean powers (C, cells, cells) of images (N, C, H, W) under a Hann window, by size of the frequency along H and W."""
    window = (torch.hann_window(side, device=images.device) for side in images.shape[2:])
    rows, columns = window
    seen = (images - images.mean((2, 3), keepdim=True)) * rows[:, None] * columns
    power = torch.fft.fft2(seen).abs().square().mean(0) / (rows.square().sum() * columns.square().sum())
    high, wide = (_members(side, cells).to(power, non_blocking=True) for side in images.shape[2:])
    return torch.einsum("chw,hi,wj->cij", power, high, wide)


def _members(side: int, cells: int) -> Tensor:
    """(side, cells): of the frequencies of so many samples, the share that each has in the mean of its cell."""
    cell = (torch.fft.fftfreq(side).abs() * 2 * cells).long().clamp_max(cells - 1)
    members = functional.one_hot(cell, cells).float()
    return members / members.sum(0)


def psnr(made: Tensor, truth: Tensor) -> Tensor:
    """In dB; the peak is 2, the range of [-1, 1]."""
    return -10 * torch.log10(functional.mse_loss(made, truth) / 4)


def full_precision(values: Tensor) -> Tensor:
    """Half-precision values as float32, others as they are: means and differences of losses need more than 8 bits."""
    return values if values.dtype == torch.float64 else values.float()
