"""The axial profile of volumes, estimated from what their side views lack beside themselves, turned by a quarter.

A specimen that looks alike along all axes has a power spectrum I(f, a) that is symmetric in the frequencies along z and in-plane.
The microscope multiplies it by its transfer along both, so that side views show S(f, a) = H²(f)·h²(f)·I(f, a), with H the
transfer along z over that in-plane (what a restoration has to undo) and h that of the sampling. Comparing S(f, a) with S(a, f)
therefore gives H alone: nothing is assumed of the specimen but that it has no preferred axis. Frequencies above the sections'
Nyquist frequency are folded below it; what they add is computed from S(a, f) and subtracted.

The profile is a Gaussian, or where that is refuted a mixture of centred Gaussians of any width (Andrews & Mallows 1974: profiles
of narrow core and long tails are such mixtures), found by non-negative least squares: a convex problem with one solution. Blocks
of the volume that are drawn again and again (Efron 1979) tell how far the result depends on the place.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft, signal
from scipy.optimize import nnls

from utils.axes import planes_across

Floats = NDArray[np.float64]

_WINDOW = 64  # pixels along the sides of a window, at least; 1/64 cycles per pixel are told apart
_SECTIONS = 16  # in a window, where they lie far apart
_LEAST = 8  # sections and pixels, below which there is no spectrum
_MOST_PLANES = 128  # of a view that are looked at
_PLANES = 16  # of a block
_BLOCKS = 32  # kept of a view; of more, neighbours are averaged
_WIDTHS = 96  # Gaussians, from 0.35 pixels to an eighth of the window
_RESAMPLED = 40
_ROUNDS = 8  # of the fit, until weights and aliases, which depend on it, are settled
_NOISE_KNOWN = 0.1  # relative error of the noise floor
_ALIKE = 0.03  # relative error of any transfer; no specimen is more alike along its axes
_REFUTED = 3.0  # standard deviations of chi squared
_LEAST_POWER = 1e-4  # share of power that counts as let through, where little is known of how little it is
_TAIL = 0.005  # weight that is cut from both tails together

WIDTH_KNOWN = 0.2  # relative error of a width that is good enough
LEAST_KNOWN = 3  # frequencies
KNOWN = 0.15  # error of a transfer that is known
NO_BLUR = 0.9  # transfer at the highest frequency with signal, above which there is nothing to undo
UNLIKE = 0.15  # relative difference of the transfers along y and x that z may be compared beside
SHARPER = 1.1  # mean transfer above which z is the sharper axis
MISFIT = 0.1  # of transfers, that no profile explains


@dataclass(frozen=True)
class SideSpectra:
    """Power of the planes of a box.

    Attributes:
        step: pixels between two sections.
        length: pixels along the sides of a window; bins are 1/length cycles per pixel.
        side: (blocks, sections // 2 + 1, length // 2 + 1), of XZ and YZ planes: frequency along z, in-plane frequency.
        top: (length // 2 + 1, length // 2 + 1), of XY planes: frequency along y, along x.
    """

    step: float
    length: int
    side: Floats
    top: Floats


def side_spectra(box: NDArray[np.generic], step: float) -> SideSpectra | None:
    """Of a box (Z, Y, X) of finite grey values whose sections lie ``step`` ≥ 1 pixels apart; None: too small, or constant.

    Values are first limited to their 0.05 and 99.95 percentiles, against single hot pixels.
    """
    values = np.asarray(box, np.float32)
    low, high = np.percentile(values, (0.05, 99.95))
    sections = min(values.shape[0], max(_SECTIONS, round(_WINDOW / step)), int(min(values.shape[1:]) / step))
    length = round(sections * step)
    if sections < _LEAST or length < _LEAST or not low < high:
        return None
    values = (np.clip(values, low, high) - low) / (high - low)
    side = [_power(_thinned(planes_across(values, axis)), sections, length) for axis in (1, 2)]
    return SideSpectra(step, length, np.concatenate(side), _power(_thinned(values), length, length).mean(0))


def _thinned(planes: NDArray[np.float32]) -> NDArray[np.float32]:
    """Neighbours look alike, and tell little more."""
    return planes[:: -(-len(planes) // _MOST_PLANES)]


def _power(planes: NDArray[np.float32], rows: int, columns: int) -> Floats:
    """Mean power of windows of planes (N, H, W), a wave as its mirror image: (blocks, rows // 2 + 1, columns // 2 + 1).

    A block is one window of a few planes that follow each other. Every window is taken minus its mean and under a Hann window.
    """
    window = np.outer(signal.windows.hann(rows, sym=False), signal.windows.hann(columns, sym=False)).astype(np.float32)
    window /= np.sqrt(np.square(window).sum())
    found = []
    for top in _starts(planes.shape[1], rows):
        for left in _starts(planes.shape[2], columns):
            for first in range(0, len(planes), _PLANES):
                part = planes[first : first + _PLANES, top : top + rows, left : left + columns]
                power = np.square(np.abs(fft.rfft2((part - part.mean((1, 2), keepdims=True)) * window))).mean(0)
                kept = np.arange(rows // 2 + 1)
                found.append((power[kept] + power[-kept]) / 2)
    return np.stack([np.mean(part, axis=0) for part in np.array_split(found, min(len(found), _BLOCKS))])


def _starts(size: int, window: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, size - window, math.ceil(size / window)).astype(np.int64))


@dataclass(frozen=True)
class AxialProfile:
    """An estimate.

    Attributes:
        step: pixels between two sections.
        taps: the profile on pixels: symmetric, not negative, an odd number with sum 1.
        width: full width at half maximum in pixels.
        width_error: its standard deviation over resampled blocks.
        frequency: in cycles per pixel, above 0.
        transfer: measured at these frequencies, 1 at frequency 0.
        error: standard deviation of that, by place and noise.
        fitted: the transfer of the taps.
        unlike: relative difference of the transfers along y and x, which the method takes for alike.
    """

    step: float
    taps: tuple[float, ...]
    width: float
    width_error: float
    frequency: Floats
    transfer: Floats
    error: Floats
    fitted: Floats
    unlike: Floats

    @cached_property
    def weight(self) -> Floats:
        """How much a frequency counts, sum 1: those with much signal."""
        weight = 1 / np.square(self.error)
        return weight / weight.sum()

    @property
    def seen_to(self) -> float:
        """Highest frequency at which the transfer is known, in cycles per pixel."""
        return float(self.frequency[self.error < KNOWN].max(initial=self.frequency[0]))

    @property
    def seen_share(self) -> float:
        """Contrast along z beside that in-plane at this frequency."""
        return float(self.fitted[self.frequency <= self.seen_to][-1])

    @property
    def half_contrast(self) -> float | None:
        """Period in pixels at which contrast along z is half of that in-plane; None where it does not fall so far."""
        below = np.flatnonzero(self.fitted < 0.5)
        return float(1 / self.frequency[below[0]]) if below.size and self.frequency[below[0]] <= self.seen_to else None

    @property
    def no_blur(self) -> bool:
        """Whether sections are blurred no more along z than in-plane, as far as their distance lets one see."""
        return self.seen_share > NO_BLUR

    def as_json(self) -> dict[str, Any]:
        """Plain JSON."""
        curves = {name: getattr(self, name).tolist() for name in ("frequency", "transfer", "error", "fitted")}
        taps = {"axial_taps": list(self.taps), "width": self.width, "width_error": self.width_error}
        return {"uprate": self.step, **taps, "no_blur": self.no_blur, "doubts": list(self.doubts()), **curves}

    def doubts(self) -> Iterator[str]:
        """Reasons not to trust it."""
        known = int((self.error < KNOWN).sum())
        if known < LEAST_KNOWN:
            yield f"at {known} frequencies only does the signal rise above the noise"
            return
        if self.width_error > WIDTH_KNOWN * self.width:
            yield f"blocks of the volume disagree about the width by {self.width_error / self.width:.0%}"
        unlike = float((self.weight * self.unlike).sum())
        if unlike > UNLIKE:
            yield f"y and x themselves differ by {unlike:.0%}, so that the specimen, or its scanning, has a preferred axis"
        sharper = float((self.weight * self.transfer).sum())
        if sharper > SHARPER:
            yield f"z is sharper than y and x ({sharper:.2f} times the transfer)"
            return
        misfit = float((self.weight * np.abs(self.transfer - self.fitted)).sum())
        if misfit > MISFIT:
            yield f"no symmetric profile explains the spectra (transfers are missed by {misfit:.2f})"


def estimated_profile(spectra: Sequence[SideSpectra], sampling: str) -> AxialProfile | None:
    """The profile that explains volumes best; the sampling is told from it.

    Args:
        spectra: of boxes of the volumes; those with the commonest windows are used.
        sampling: what a section sees of the planes it stands for: ``pick`` or ``mean``.

    Returns:
        None without spectra.
    """
    kinds = [(one.step, one.side.shape[1]) for one in spectra]
    if not kinds:
        return None
    commonest = max(kinds, key=kinds.count)
    used = [one for one, kind in zip(spectra, kinds, strict=True) if kind == commonest]
    blocks = np.concatenate([one.side for one in used])
    shares = np.full(len(blocks), 1 / len(blocks))
    draws = np.random.default_rng(0).multinomial(len(blocks), shares, _RESAMPLED) / len(blocks)
    fit = _Fit(used[0], sampling, np.mean([one.top for one in used], axis=0))
    return fit.solved(blocks.mean(0), np.tensordot(draws, blocks, axes=1))


class _Fit:
    """Mixtures of Gaussians that explain spectra of one kind of windows."""

    def __init__(self, like: SideSpectra, sampling: str, top: Floats) -> None:
        self.step = like.step
        self.bins, count = like.side.shape[1:]
        self.frequency = np.arange(count) / like.length
        self.sampled = _sampled(self.frequency, like.step, sampling)
        widest = like.length / 8
        reach = np.arange(-math.ceil(4 * widest), math.ceil(4 * widest) + 1)
        gaussians = np.exp(-0.5 * np.square(reach / np.geomspace(0.35, widest, _WIDTHS)[:, None]))
        self.atoms = np.concatenate([(reach == 0)[None].astype(float), gaussians / gaussians.sum(1, keepdims=True)])
        self.transfers = self.atoms @ np.cos(2 * np.pi * reach[:, None] * self.frequency)
        self.low = np.arange(1, max(3, self.bins // 2 + 1))  # frequencies that are hardly aliased
        self.aliased = like.step > 1
        self.folding = _folding(self.bins, count, round(like.length / like.step)) * self.aliased
        self.unlike = np.abs(np.log(top[:, self.low].sum(1) / top[self.low].sum(0)))[: self.bins] / 2

    def solved(self, power: Floats, resampled: Floats) -> AxialProfile:
        """From the mean power of side views (bins, all) and that of blocks drawn anew (N, bins, all)."""
        error = np.ones(self.bins)
        for _ in range(2):
            found, transfer, noise = self.mixture(power, error, single=True)
            spread = np.std([self.mixture(one, error, single=True)[1] for one in resampled], axis=0)
            error = np.sqrt(spread**2 + noise**2 + (_ALIKE * np.maximum(transfer, found @ self.transfers[:, : self.bins])) ** 2)
        used = slice(1, self.bins)
        missed = (transfer - found @ self.transfers[:, : self.bins])[used] / error[used]
        single = np.square(missed).sum() < len(missed) + _REFUTED * math.sqrt(2 * len(missed))
        every = [self.mixture(one, error, bool(single))[0] @ self.atoms for one in resampled]
        transfer = self.mixture(power, error, bool(single))[1]
        taps = _trimmed(np.mean(every, axis=0))
        place = np.arange(len(taps)) - len(taps) // 2
        fitted = taps @ np.cos(2 * np.pi * place[:, None] * self.frequency[used])
        spread = float(np.std([full_width(one) for one in every]))
        curves = (self.frequency[used], transfer[used], error[used], fitted, self.unlike[used])
        return AxialProfile(self.step, tuple(taps.tolist()), full_width(taps), spread, *curves)

    def mixture(self, power: Floats, error: Floats, single: bool) -> tuple[Floats, Floats, Floats]:
        """Weights of the Gaussians, the transfer that they are to explain (bins,), and its error by noise.

        Args:
            power: of side views (bins, all).
            error: of the transfer.
            single: one Gaussian only.
        """
        floor = noise_floor(power, self.aliased)
        above = power - floor
        lateral = np.maximum(above[self.low].sum(0), 1e-12)
        mixture = np.eye(len(self.atoms))[0]
        for _ in range(_ROUNDS):
            passed = np.square(mixture @ self.transfers) * self.sampled
            shares = passed[self.low]  # S(f, a) is weighed by what has passed at a: so S(a, f) is not divided by it
            leak = _leaked((passed + _LEAST_POWER) * lateral) / ((passed + _LEAST_POWER) * _leaked(lateral))
            expected = (lateral * self.sampled * leak)[: self.bins]
            ratio = (above[:, self.low] @ shares - self.folding @ (passed * lateral)) / expected
            doubt = _NOISE_KNOWN * (floor[self.low] @ shares) / expected
            transfer = np.sqrt(np.maximum(ratio, 0))
            mixture = self.fitted(transfer[1:], error[1:], single)
        return mixture, transfer, doubt / (2 * np.maximum(transfer, np.sqrt(doubt)))

    def fitted(self, transfer: Floats, error: Floats, single: bool) -> Floats:
        """Weights of the Gaussians, sum 1."""
        matrix = self.transfers[:, 1 : self.bins].T / error[:, None]
        target = transfer / error
        if single:
            return np.eye(len(self.atoms))[np.square(matrix - target[:, None]).sum(0).argmin()]
        certain = 1e3 * matrix.max()
        weights, _ = nnls(np.vstack([matrix, np.full(matrix.shape[1], certain)]), np.append(target, certain))
        return np.asarray(weights / weights.sum())


def _sampled(frequency: Floats, step: float, sampling: str) -> Floats:
    """Power that is left of waves where a section is the mean of the planes it stands for."""
    if sampling == "pick":
        return np.ones(len(frequency))
    planes = math.ceil(step - 1e-6)
    return np.asarray(np.square(np.sinc(frequency * step) / np.sinc(frequency * step / planes)))


def _leaked(power: Floats) -> Floats:
    """A spectrum as a Hann window shows it: neighbouring bins leak, which counts where a spectrum is steep."""
    padded = np.pad(power, 1, mode="reflect")
    return np.asarray(2 / 3 * power + (padded[:-2] + padded[2:]) / 6)


def _folding(bins: int, count: int, sections: int) -> Floats:
    """(bins, count): which frequencies below the pixels' Nyquist frequency appear as which below that of the sections."""
    folding = np.zeros((bins, count))
    for place in range(bins):
        for order in range(1, 2 * count // sections + 1):
            for other in {order * sections - place, order * sections + place}:
                if other < count:
                    folding[place, other] = 1
    return folding


def noise_floor(power: Floats, aliased: bool) -> Floats:
    """Noise of side views (axial frequencies, in-plane frequencies) by in-plane frequency.

    Sections know nothing of each other's noise, which is therefore alike at all axial frequencies, but not at all in-plane ones:
    images are smoothed or interpolated. Where the axial spectrum has levelled off at its end, it is noise alone, unless it is
    ``aliased``; elsewhere only the corner, the highest frequencies of both, says how much noise there is at most.
    """
    count = len(power)
    end, before = power[round(0.9 * (count - 1)) :], power[round(0.7 * (count - 1)) : round(0.85 * (count - 1)) + 1]
    low = slice(1, max(2, power.shape[1] // 3))
    if not aliased and end[:, low].mean() > 0.85 * before[:, low].mean():
        return np.asarray(end.mean(0))
    return np.full(power.shape[1], end[:, -max(1, power.shape[1] // 10) :].mean())


def _trimmed(profile: Floats) -> Floats:
    """Without its faintest ends, sum 1."""
    half = profile[len(profile) // 2 :].copy()
    half[1:] *= 2
    reach = min(int((np.cumsum(half) < (1 - _TAIL) * half.sum()).sum()), len(half) - 1)
    part = profile[len(profile) // 2 - reach : len(profile) // 2 + reach + 1]
    return np.asarray(part / part.sum())


def full_width(profile: Floats) -> float:
    """Full width at half maximum of a symmetric profile, linear between taps."""
    half = np.append(profile[len(profile) // 2 :] / profile[len(profile) // 2], 0)
    below = int(np.argmax(half < 0.5))
    last, here = half[below - 1], half[below]
    return float(2 * (below - 1 + (last - 0.5) / (last - here)))
