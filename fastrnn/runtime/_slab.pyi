from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

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
    @property
    def program(self) -> Any: ...  # Program, None before the sizes of a step are known; so the layout
    @property
    def batch_size(self) -> int | None: ...
    @property
    def context(self) -> Context | None: ...
    @property
    def layout(self) -> Any: ...
    @property
    def timetable(self) -> Any: ...  # Timetable, None if outputs come one per step
    @property
    def sizes(self) -> dict[str, int]: ...
    @property
    def inputs(self) -> list[Argument]: ...
    @property
    def outputs(self) -> list[Argument]: ...
    @property
    def names(self) -> list[str]: ...
    @property
    def still(self) -> list[Argument]: ...
    @property
    def batch(self) -> int: ...
    @property
    def many(self) -> tuple[bool, ...]: ...
    @property
    def room(self) -> int: ...

class SlabCore:
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    @property
    def _parts(self) -> StreamParts: ...
    @property
    def program(self) -> Any: ...
    def _held(self) -> AbstractContextManager[None]: ...
