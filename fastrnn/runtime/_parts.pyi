from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..compile.lowering.attention import Context
from ._executor import Program
from .arguments import Argument
from .layout import StateLayout

class StreamParts:
    def __init__(
        self,
        batch_size: int | None = None,
        context: Context | None = None,
        sizes: Mapping[str, int] | None = None,
        program: Program | None = None,
        layout: StateLayout | None = None,
        inputs: Sequence[Argument] = (),
        outputs: Sequence[Argument] = (),
        forms: Sequence[tuple[int, tuple[int, ...]]] = (),
    ) -> None: ...
    # All of these are read-only. program and layout are None before the sizes of a step are known, timetable is None if
    # outputs come one per step.
    program: Any
    layout: Any
    timetable: Any
    batch_size: int | None
    context: Context | None
    sizes: dict[str, int]
    inputs: list[Argument]
    outputs: list[Argument]
    names: list[str]
    still: list[Argument]
    many: tuple[bool, ...]
    batch: int
    room: int
    plain: bool
    simple: bool
    def last_inputs(self, batch_size: int | None, still: list[np.ndarray] | None) -> list[np.ndarray]: ...
