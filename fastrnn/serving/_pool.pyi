from typing import Any

import numpy as np

from ..runtime._meter import Meter
from ..runtime._slab import StreamParts
from ._slots import SlotCore

class PoolCore(SlotCore):
    meter: Meter  # read-only
    def step(self, slots: Any, x: Any, out: Any = None) -> Any: ...
    def _begin(self, parts: StreamParts) -> None: ...
    def _advance(self, n: int, arrays: list[np.ndarray]) -> None: ...
    def _push_plain(self, n: int, chunks: list) -> list[np.ndarray] | None: ...
    def _take(
        self, n: int, lengths: np.ndarray, columns: list, one: bool = False, final: bool = False
    ) -> list[list]: ...
