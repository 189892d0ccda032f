"""The types of what public calls take and return, for annotations in programs that use fastrnn.

* `Array`: an array of any dtype and shape.
* `Input`: one input: an array, a tensor, or (nested) numbers.
* `Inputs`: the inputs of a call: one, a sequence in the order of `Model.inputs`, or a mapping by name.
* `Outputs`: the outputs of `model(x)`: an array for a model with one output, else a tuple.
* `StepOutputs`: the outputs of a step or chunk of a stream: as `Outputs`, with None for an output that does not come.
* `PoolOutputs`: the outputs of a step of a pool: as `Outputs`, or a list with a `StepOutputs` for each slot if outputs
  don't come one per step.
* `Integers`, `Slots`: ints, such as those that `StreamPool.open` returned; a sequence or an array.
* `StrPath`: the path of a file. `Blob`: bytes, of a model file or a snapshot.

What comes depends on the model, so a strictly typed program says what it expects. After `y = stream.step(x)` it is
`assert isinstance(y, np.ndarray)` for a model with one output that comes at every step.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array: TypeAlias = NDArray[Any]
Input: TypeAlias = ArrayLike
Inputs: TypeAlias = ArrayLike | Sequence[ArrayLike] | Mapping[str, ArrayLike]
Outputs: TypeAlias = Array | tuple[Array, ...]
StepOutputs: TypeAlias = Array | tuple[Array | None, ...] | None
PoolOutputs: TypeAlias = Array | tuple[Array, ...] | list[StepOutputs]
Integers: TypeAlias = Sequence[int] | Sequence[np.integer[Any]] | NDArray[np.integer[Any]]
Slots: TypeAlias = Integers
Precision: TypeAlias = str | Mapping[str, str]
StrPath: TypeAlias = str | os.PathLike[str]
Blob: TypeAlias = bytes | bytearray | memoryview

__all__ = [
    "Array",
    "Blob",
    "Input",
    "Inputs",
    "Integers",
    "Outputs",
    "PoolOutputs",
    "Precision",
    "Slots",
    "StepOutputs",
    "StrPath",
]
