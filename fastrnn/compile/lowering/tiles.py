"""Lowering of 3 x 3 convolutions by Winograd's F(2 x 2, 3 x 3): 16 products for each 2 x 2 results in place of 36.

docs/decisions/0046 has the figures. A convolution whose map grows with the length of the sequence stays as it is if the
model can stream: the tiles of a stream would begin elsewhere than those of a whole sequence.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ...graph import Node
from ...graph import dims as D
from ...ops import winograd_scratch, winograd_tiles
from .fields import FUNCTIONS, at

if TYPE_CHECKING:
    from .base import Lowering

LEAST_CHANNELS = 16  # in and out: with fewer, the sums of the tiles cost more than the products save
LEAST_TILES = 16  # of a map: fewer share each reading of the filters, which are 16 / 9 as large
LEAST_GAIN = 1.3  # times fewer multiplications, with the results of tiles that end beyond the map
WAYS = 16  # products of a tile
GROWN = 64  # what is taken for the size of an axis that is not known

# The filter g becomes G g G'.
G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])


def by_tiles(low: Lowering, W: np.ndarray, fields: dict) -> bool:
    """Whether a convolution with weights [groups, taps.., channels, outs] is computed in tiles."""
    ones = all(fields[f"{what}_{axis}"] == 1 for what in ("stride", "dilation") for axis in "hw")
    if W.shape[:-2] != (1, 3, 3) or not ones or min(W.shape[-2:]) < LEAST_CHANNELS:
        return False
    high, wide = (fields[f"out_{axis}"] if isinstance(fields[f"out_{axis}"], int) else GROWN for axis in "hw")
    tiles = ((high + 1) // 2) * ((wide + 1) // 2)
    if tiles < LEAST_TILES or 9 * high * wide < LEAST_GAIN * WAYS * tiles:
        return False
    return all(isinstance(fields[f"{what}_{axis}"], int) for what in ("in", "out") for axis in "hw") or not low.streams


def emit_tiles(low: Lowering, node: Node, W: np.ndarray, bias, act: tuple, ends: tuple, fields: dict) -> None:
    """W [3, 3, channels, outs]; ends: the tensors x and y."""
    channels, outs = W.shape[-2:]
    first, (x, y) = len(low.plan.linears), ends
    turned = np.einsum("ia,jb,abcn->ijcn", G, G, W.astype(np.float64)).astype(np.float32).reshape(WAYS, channels, outs)
    for k in range(WAYS):
        packed = low.weights.linear(
            np.ascontiguousarray(turned[k]), None, "float32", None, (f"tiles {k}", "float32", *node.inputs[1:2])
        )
        low.plan.linears.append((packed, (FUNCTIONS["identity"], 0, 0, 0, 0.0, 0.0)))
    across, down = (fields["out_w"] + 1) // 2, (fields["out_h"] + 1) // 2
    known = across * down if isinstance(across, int) and isinstance(down, int) else None
    tiles = winograd_tiles(channels, outs, known)
    scratch = low.builder.scratch(winograd_scratch(channels, outs, tiles))
    extra = {"bias_buffer": -1} if bias is None else at("bias", low.builder.constant(bias, "float32"))
    alpha_beta = low.builder.constant(np.array(act[1:], np.float32), "float32")
    rows = D.product((x.dims[0], down, across))
    low.builder.emit(
        "conv_tiles", node.name, (x,), (y, scratch), rows * (2 * WAYS * channels * outs), **fields, **extra,
        packed=first, channels=channels, outs=outs, tiles=tiles, scratch=scratch, fn=act[0],
        act_buffer=alpha_beta.buffer,
    )  # fmt: skip
