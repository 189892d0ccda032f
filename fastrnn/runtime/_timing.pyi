import numpy as np
from numpy.typing import NDArray

class OpTimer:
    n_ops: int
    capacity: int
    calls: int
    def __init__(self, n_ops: int, capacity: int) -> None: ...
    @property
    def ns(self) -> NDArray[np.int64]: ...

def clock_ns() -> float: ...
