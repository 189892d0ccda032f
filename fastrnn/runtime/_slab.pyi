from contextlib import AbstractContextManager
from typing import Any

from ._parts import StreamParts

class SlabCore:
    _parts: StreamParts
    program: Any
    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def _held(self) -> AbstractContextManager[None, None]: ...
