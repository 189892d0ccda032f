from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ._isa import PackedLinear

_Array = NDArray[np.float32]

def slide(
    packed: PackedLinear,
    x: _Array,
    offsets: Sequence[int],
    length: int,
    x_step: int,
    y: _Array,
    activation: str = "identity",
    alpha: float = 0.0,
    beta: float = 0.0,
) -> _Array: ...
def depthwise_row(
    W: _Array,
    bias: _Array | None,
    x: _Array,
    offsets: Sequence[int],
    y: _Array,
    activation: str = "identity",
    alpha: float = 0.0,
    beta: float = 0.0,
    isa: str | None = None,
) -> _Array: ...
def pool_row(
    fn: str, x: _Array, offsets: Sequence[int], x_step: int, y: _Array, divisor: float = 1.0, isa: str | None = None
) -> _Array: ...
