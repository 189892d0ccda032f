"""Lowering of convolutions that read overlapping windows where they are, a band of the map at a time (ops/_bands.pyx).

docs/decisions/0050 has the figures. The bits are those of the other ways, so the choice may depend on anything.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ...graph import Node
from ...ops import band_room, band_scratch
from .fields import at

if TYPE_CHECKING:
    from ..tensors import Tensor
    from .base import Lowering

LANES = 16  # a multiple of the lanes of every instruction set
MOST_WEIGHTS = 65536  # floats of the weights of a group: larger ones are read once for many positions
MOST_REPEATED = 16384  # floats of a depthwise convolution's repeated weights: 64 KiB


def room_of(fields: dict, channels: int) -> int:
    """Floats of scratch of a part; 0 if the windows do not fit."""
    columns = fields["out_w"] if isinstance(fields["out_w"], int) else None
    names = ("taps_h", "taps_w", "stride_w", "dilation_h", "dilation_w")
    return band_room(*(fields[name] for name in names), channels, columns)


def by_bands(W: np.ndarray, planes: bool, fields: dict) -> bool:
    """Whether a convolution with weights [groups, taps.., channels, outs] in float32 is computed in bands. planes: it
    has two spatial axes."""
    return planes and W[0].size <= MOST_WEIGHTS and room_of(fields, W.shape[0] * W.shape[-2]) > 0


def emit_bands(low: Lowering, node: Node, sizes: tuple, packed: int, ends: tuple, fields: dict, flops) -> None:
    """sizes: groups, channels and outs of each; packed: the number of the first group's weights; ends: x and y."""
    groups, channels, outs = sizes
    room = room_of(fields, groups * channels)
    scratch = low.builder.scratch(band_scratch(room))
    low.builder.emit(
        "conv_rows", node.name, ends[:1], (ends[1], scratch), flops, **_joined(fields), packed=packed, groups=groups,
        channels=channels, outs=outs, scratch=scratch, room=room, period=0, bias_buffer=-1,
    )  # fmt: skip


def _joined(fields: dict) -> dict:
    """The fields of a window; rows of single positions without padding are one row, if they are so in memory."""
    f = fields
    alone = all(f[f"taps_{a}"] == f[f"stride_{a}"] == 1 and f[f"pad_{a}"] == 0 for a in "hw")
    same = f["out_h"] == f["in_h"] and f["out_w"] == f["in_w"]
    if alone and same and f["x_h"] == f["in_w"] * f["x_w"] and f["y_h"] == f["out_w"] * f["y_w"]:
        n = f["out_h"] * f["out_w"]
        return f | {"in_h": 1, "out_h": 1, "in_w": n, "out_w": n, "x_h": 0, "y_h": 0}
    return f


def depthwise_by_bands(W: np.ndarray, y: Tensor, fields: dict) -> bool:
    """W [taps, channels]. Whether the channels of neighbouring positions are one row of vectors."""
    taps, channels = W.shape
    together = fields["stride_w"] == 1 and fields["y_w"] == channels
    return together and taps * math.lcm(channels, LANES) <= MOST_REPEATED and room_of(fields, channels) > 0


def emit_depthwise_bands(
    low: Lowering, node: Node, W: np.ndarray, bias, act: tuple, ends: tuple, fields, flops
) -> None:
    """Weights and biases are repeated until they fill whole vectors."""
    channels = W.shape[1]
    period = math.lcm(channels, LANES)
    weights = low.builder.constant(np.tile(W, (1, period // channels)), "float32")
    extra = {"bias_buffer": -1}
    if bias is not None:
        extra = at("bias", low.builder.constant(np.tile(bias, period // channels), "float32"))
    alpha_beta = low.builder.constant(np.array(act[1:], np.float32), "float32")
    room = room_of(fields, channels)
    scratch = low.builder.scratch(band_scratch(room))
    low.builder.emit(
        "depthwise_rows", node.name, ends[:1], (ends[1], scratch), flops, **fields, **at("weights", weights), **extra,
        groups=1, channels=channels, outs=1, scratch=scratch, room=room, period=period, fn=act[0],
        act_buffer=alpha_beta.buffer,
    )  # fmt: skip
