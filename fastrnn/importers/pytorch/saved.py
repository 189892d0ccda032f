"""A tensor of a file."""

from __future__ import annotations

import numpy as np

from ...records import dataclass


@dataclass(frozen=True)
class SavedTensor:
    """A tensor of a file: `bits` as stored (a view; bfloat16 as uint16), code as in `pickles._DTYPES`."""

    bits: np.ndarray
    code: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.bits.shape

    def array(self) -> np.ndarray:
        """A copy of the numbers in the machine's byte order; bfloat16 is widened to float32."""
        if self.code == "bf16":
            return (self.bits.astype(np.uint32) << 16).view(np.float32)
        return self.bits.astype(self.bits.dtype.newbyteorder("="), order="C")
