"""The ops of plans: the integers that each one takes, and the loop that runs it.

_walk.pyx         the table of ops, the walk over a plan, the loop of a cycle
_frame.pxd        the data of one call
_items.pxd        elements in memory, by type
_recurrence.pyx   the steps of a cell
_rows.pyx         products, reductions, softmax, normalisation
_elements.pyx     elementwise programs, copies, gathers, ops along one axis
_integers.pyx     exact integer arithmetic
_window.pxd       windows over axes, as ops read them
_windows.pyx      conv, depthwise conv, pooling
_bands.pyx        conv and depthwise conv over rows of positions, without patches
_tiles.pyx        3 x 3 convolutions by Winograd
_attention.pyx    attention
_scan.pyx         the recurrence of matrix states
_states.pyx       states and step numbers

A module adds its ops to the table when it is imported; all of them are imported here.
"""

from . import _rows, _states  # noqa: F401
from ._attention import attention_scratch
from ._bands import band_room, band_scratch
from ._elements import HELD, RANK, TYPE_CODES
from ._integers import INTEGER_FUNCTIONS
from ._recurrence import cell_scratch, input_scratch
from ._scan import SCAN_OPERANDS
from ._tiles import winograd_scratch, winograd_tiles
from ._walk import KINDS, LEVELS, OP_FIELDS
from ._windows import conv_patches, depthwise_scratch, pool_scratch

__all__ = [
    "HELD",
    "INTEGER_FUNCTIONS",
    "KINDS",
    "LEVELS",
    "OP_FIELDS",
    "RANK",
    "SCAN_OPERANDS",
    "TYPE_CODES",
    "attention_scratch",
    "band_room",
    "band_scratch",
    "cell_scratch",
    "conv_patches",
    "depthwise_scratch",
    "input_scratch",
    "pool_scratch",
    "winograd_scratch",
    "winograd_tiles",
]
