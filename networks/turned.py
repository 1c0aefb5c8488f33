"""Truth in 3-D: a restored volume is turned so that X plays the part of Z, and what is made of it is judged on acquired slices.

Slices are sharp in-plane. Of an isotropic volume, be it only a prediction, X is made coarse as Z was (networks.sections); a model
restores it; and in the planes across Z that were acquired the result can be compared with what the microscope saw. All else of
the volume is a prediction and judges nothing. Y takes the part of X where the volume is transposed in-plane before.
"""

from torch import Tensor
from torch.nn import functional

from networks.sections import Sections
from networks.views import to_slices, to_volume, turned_volume, upright_volume, xz_planes, xz_volume


def turned_sections(volume: Tensor, sections: Sections) -> Tensor:
    """Sections across X of an isotropic volume.

    Args:
        volume: (B, C, X, Y, Z), on the grid of the isotropic planes.
        sections: the axial operator. Where its planes are less than a pixel apart, Z counts as if they were one. Its noise, if
            any, is added: a restored volume is smoother than slices are, and to what never saw noise it looks like detail.

    Returns:
        Slices (B·n, C, Z, Y) of a volume whose coarse axis was X; Z is one shorter where it was odd. Noise is drawn from torch's
        global generator.
    """
    even = volume[..., : volume.shape[-1] // 2 * 2]
    rows, _ = sections.pair(to_slices(even), clean=True)
    return to_slices(turned_volume(rows, volume.shape[0]))


def acquired_error(made: Tensor, acquired: Tensor, sections: Sections) -> Tensor:
    """Mean absolute error where the truth is known.

    Args:
        made: what was restored of :func:`turned_sections`, (B, C, Z, Y, X on the grid of the isotropic planes).
        acquired: the slices that Z was restored from, (B, C, X, Y, n).
        sections: the axial operator, which also says what slices would show of ``made``.

    Returns:
        A scalar. Without a profile and with ``pick`` it is that of the planes that were acquired.
    """
    batch, volume = made.shape[0], upright_volume(made)
    count = volume.shape[-1] // sections.planes
    truth = to_volume(sections.truth(to_slices(acquired[..., sections.lost : count - sections.lost])), batch)
    seen = xz_volume(sections.of_planes(xz_planes(volume[..., : count * sections.planes])), batch)
    return functional.l1_loss(seen, truth)
