from collections.abc import Sequence

import numpy as np

from ..compile.plan import Plan
from ._binding import Binding
from ._meter import Meter
from ._timing import OpTimer

class Program(Binding):
    meter: Meter  # read-only
    timer: OpTimer | None
    def __init__(self, plan: Plan, threads: int = 1) -> None: ...
    @property
    def threads(self) -> int: ...
    @property
    def state_size(self) -> int: ...
    def run(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray], batch: int, time: int) -> None: ...
