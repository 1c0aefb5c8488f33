"""Encoder and decoder of the autoencoder's settings."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from ldm.autoencoder import Decoder, Encoder
from ldm.linear import LinearDecoder, LinearEncoder

_LINEAR = ("ch", "ch_mult", "num_res_blocks", "z_channels", "dropout", "norm")
_CONVOLUTIONAL = (*_LINEAR, "attn_resolutions", "resolution", "mid_attention")


def build_autoencoder(settings: Mapping[str, Any], lifted: int) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder with fresh weights; ``settings`` complete (configure_autoencoder).

    Args:
        lifted: channels that the volume decoder reads of the 2-D decoder's ``conv_in``.
    """
    network = settings["ddconfig"]
    if settings["start"] == "linear":
        shape = {key: network[key] for key in _LINEAR}
        linear = LinearEncoder(**shape, in_channels=network["in_channels"])
        return linear, LinearDecoder(**shape, out_ch=network["out_ch"], lifted=lifted)
    shape = {key: network[key] for key in _CONVOLUTIONAL}
    encoder = Encoder(**shape, in_channels=network["in_channels"], double_z=network["double_z"])
    return encoder, Decoder(**shape, out_ch=network["out_ch"])
