from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ._executor import Program

class Prepared:
    def __init__(
        self,
        program: Program,
        batch: int,
        time: int,
        forms: Sequence[tuple[int, Sequence[int]]],
        absent: Sequence[bool],
        fixed: RunCore | None,
    ) -> None: ...

class RunCore:
    def _begin_runs(
        self, inputs: Sequence[tuple[str, int]], axes: Sequence[int], plain: Sequence[str], kept: Sequence[int]
    ) -> None: ...
    def run_plain(
        self, arrays: tuple[Any, ...], named: Mapping[str, Any], outs: Sequence[np.ndarray | None] | None = None
    ) -> tuple[np.ndarray, ...] | None: ...
    def call_plain(self, arrays: tuple[Any, ...], named: dict[str, Any]) -> Any: ...
    def _forget(self, fixed: RunCore) -> None: ...

class BranchCore(RunCore):
    def __init__(
        self,
        inputs: Sequence[tuple[str, int]],
        axes: Sequence[int],
        plain: Sequence[str],
        selectors: Mapping[str, Sequence[int]],
    ) -> None: ...
    def keep(self, values: bytes, model: Any) -> None: ...
    @property
    def _known_values(self) -> list[bytes]: ...
    def forget(self, values: bytes) -> None: ...
