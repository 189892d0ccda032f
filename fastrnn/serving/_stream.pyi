from typing import Any

import numpy as np

from ..runtime._slab import SlabCore, StreamParts

class StreamCore(SlabCore):
    steps_done: int
    ended: bool
    still: list[np.ndarray] | None
    batch: int  # this and what follows are read-only
    batch_size: int | None
    slab: Any  # None before the sizes of a step are known
    def step(self, x: Any, out: Any = None) -> Any: ...
    def _begin(self, parts: StreamParts) -> None: ...
    def _check_room(self, span: int) -> None: ...
    def push(self, chunk: Any) -> Any: ...
    def _take(self, arrays: list[np.ndarray] | None, span: int, one: bool = False, final: bool = False) -> list: ...
