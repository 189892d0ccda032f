"""What a caller needs of calls: what carries them, and which rows go into one."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Protocol

import numpy as np

from ..records import dataclass


class Transport(Protocol):
    """Carries calls to the actors."""

    def call(self, actor: str, method: str, *args: Any) -> Awaitable[Any]:
        """The answer of a method of `Host`; calls arrive in the order in which they were made. Raises Unreachable.

        Outputs of steps are the caller's own memory.
        """

    def owners(self) -> Awaitable[tuple[list[str], np.ndarray]]:
        """(names of actors, int64 [shards] of positions in them), the newest. OSError: it can't be read now."""

    def now(self) -> int:
        """Nanoseconds since 1970, for the generations of streams."""


@dataclass(frozen=True)
class Group:
    """The rows of one actor in a tick. index : their positions in it; None: all. shards : unique"""

    actor: str
    index: np.ndarray | None
    rows: np.ndarray
    shards: np.ndarray


def spans(lengths: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Where the steps of some rows are, if row i has lengths[i] of them, one row after the other."""
    ends = np.cumsum(lengths)
    own = lengths[index]
    at = np.cumsum(own)
    return np.arange(at[-1] if len(at) else 0) + np.repeat((ends - lengths)[index] - at + own, own)
