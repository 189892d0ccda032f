from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ._isa import PackedCell, PackedLinear

_Array = NDArray[np.float32]

def cell_step(
    packed: PackedCell,
    x: _Array | None,
    h: _Array,
    c: _Array | None = None,
    pre: _Array | None = None,
    y: _Array | None = None,
    splits: Sequence[int] = (),
    rows: tuple[int, int] | None = None,
    backwards: bool = False,
) -> _Array: ...
def cell_input(packed: PackedCell, x: _Array, steps: int = 1, splits: Sequence[int] = ()) -> _Array: ...
def linear(
    packed: PackedLinear,
    x: _Array,
    activation: str = "identity",
    alpha: float = 0.0,
    beta: float = 0.0,
    y: _Array | None = None,
    splits: Sequence[int] = (),
) -> _Array: ...
def map_function(
    name: str,
    x: _Array,
    alpha: float = 0.0,
    beta: float = 0.0,
    isa: str | None = None,
    y: _Array | None = None,
) -> _Array: ...
def softmax(x: _Array, log: bool = False, isa: str | None = None) -> _Array: ...
def layer_norm(
    x: _Array,
    scale: _Array | None = None,
    bias: _Array | None = None,
    epsilon: float = 1e-5,
    isa: str | None = None,
) -> _Array: ...
def reduce(fn: str, x: _Array, axis: int = -1, scale: float = 1.0, isa: str | None = None) -> _Array: ...
def elementwise(
    program: Sequence[tuple[str, tuple[int, ...], float, float]],
    inputs: Sequence[_Array],
    out: _Array | None = None,
    isa: str | None = None,
) -> _Array: ...
def depthwise(
    W: _Array,
    bias: _Array | None,
    x: _Array,
    activation: str = "identity",
    alpha: float = 0.0,
    beta: float = 0.0,
    y: _Array | None = None,
    isa: str | None = None,
) -> _Array: ...
def pool(fn: str, x: _Array, divisor: float = 1.0, isa: str | None = None, y: _Array | None = None) -> _Array: ...
def attend(
    q: _Array,
    k: _Array,
    v: _Array,
    scale: float = 1.0,
    softcap: float = 0.0,
    bias: _Array | None = None,
    mask: _Array | None = None,
    safe: bool = False,
    split: int | None = None,
    y: _Array | None = None,
    isa: str | None = None,
) -> _Array: ...
def scan(
    state: _Array,
    decay: _Array | None = None,
    rate: _Array | None = None,
    terms: Sequence[tuple[object, ...]] = (),
    q: _Array | None = None,
    across: bool = False,
    out: _Array | None = None,
    y: _Array | None = None,
    keep: bool = True,
    isa: str | None = None,
) -> tuple[_Array, _Array | None]: ...
def winograd_in(taps: _Array, y: _Array | None = None, isa: str | None = None) -> _Array: ...
def winograd_out(
    products: _Array,
    bias: _Array | None = None,
    activation: str = "identity",
    alpha: float = 0.0,
    beta: float = 0.0,
    y: _Array | None = None,
    skip: Sequence[int] = (),
    isa: str | None = None,
) -> _Array: ...
def turn(x: _Array, y: _Array | None = None, isa: str | None = None) -> _Array: ...
