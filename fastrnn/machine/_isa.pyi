from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..graph.cells import CellSpec

_Array = NDArray[np.float32]

class Packed:
    nbytes: int
    @property
    def isa(self) -> str: ...
    @property
    def weights(self) -> str: ...
    @property
    def mapped(self) -> bool: ...

class PackedCell(Packed):
    spec: CellSpec
    @property
    def blocks(self) -> int: ...
    @property
    def phases(self) -> int: ...
    @property
    def pre_size(self) -> int: ...

class PackedLinear(Packed):
    K: int
    N: int
    @property
    def blocks(self) -> int: ...
    @property
    def rounded_size(self) -> int: ...

MAX_INPUTS: int
MAX_INSTRUCTIONS: int
FLOPS_A_THREAD: int

def isa_info() -> dict[str, Any]: ...
def set_threading(how: str) -> None: ...
def has_openmp() -> bool: ...
def shared_calls() -> tuple[int, int]: ...
def kernels_of(isa: str | None = None) -> str: ...
def number_formats(isa: str | None = None) -> tuple[str, ...]: ...
def bits_class(weights: str, isa: str | None = None) -> str: ...
def tile_rows(isa: str, vectors: int, blocks: int = 1) -> int: ...
def functions() -> tuple[str, ...]: ...
def pack_cell(
    spec: CellSpec,
    W: _Array,
    R: _Array,
    Wb: _Array | None = None,
    Rb: _Array | None = None,
    P: _Array | None = None,
    isa: str | None = None,
    weights: str = "float32",
    W_scale: _Array | None = None,
    R_scale: _Array | None = None,
    store: Any = None,
) -> PackedCell: ...
def cell_scratch_size(packed: PackedCell, rows: int = 1) -> int: ...
def linear_pack_size(K: int, N: int, isa: str | None = None) -> int: ...
def pack_linear(
    W: _Array,
    bias: _Array | None = None,
    isa: str | None = None,
    weights: str = "float32",
    scale: _Array | None = None,
    store: Any = None,
) -> PackedLinear: ...
