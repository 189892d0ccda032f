"""Checks that a model agrees with other engines: runs random inputs through both and reports the largest differences.

engines.py      the float64 reference and onnxruntime; `engine` opens the one that the caller names
engine_*.py     PyTorch and Keras
inputs.py       random inputs for a graph
comparison.py   runs at several sizes, and the differences of the results
lengths.py      which lengths a comparison covers, and parallel forms over long sequences
report.py       `VerifyReport`

The package is not named for its function, because `fastrnn.verify` must be the function.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...errors import UnsupportedError
from ...typing import Precision, StrPath
from .comparison import SIZES, compare
from .engines import ENGINES, engine
from .report import OutputDifference, VerifyReport

if TYPE_CHECKING:
    from ...model import Model

__all__ = ["ENGINES", "SIZES", "OutputDifference", "VerifyReport", "verify"]


def verify(
    model: Model | StrPath,
    against: str = "onnxruntime",
    *,
    source: StrPath | None = None,
    seed: int = 0,
    tolerance: float | None = None,
    bind: Mapping[str, Any] | None = None,
    states: Mapping[str, str] | None = None,
    layers: Sequence[str] | str | None = None,
    key: str | None = None,
    config: Any = None,
    allow_torch: bool = False,
    float64_as_float32: bool = False,
    fixed_sizes: Mapping[str, int] | None = None,
    sizes: Sequence[tuple[int, int]] = SIZES,
    precision: Precision | None = None,
) -> VerifyReport:
    """Run a model here and in another engine on the same random inputs, and report the largest differences.

    Parameters
    ----------
    model : path or Model
        A file that `fastrnn.load` reads, or a loaded model.
    against : "onnxruntime", "torch", "keras" or "reference"
        onnxruntime runs the ONNX file, keras its own file, and torch its own modules over a file of weights. The
        reference is the graph's float64 meaning in NumPy: it checks the kernels, but not the import.
    source : path, optional
        The file for the other engine, if `model` is a Model or a `.fastrnn` file made from it.
    seed : int, of the random inputs: normal floats, integers within their tables, lengths within the sequence
    tolerance : float, optional
        Default 1e-4; 5e-3 for an ONNX file in float16; 0.02 for weights in bfloat16, 0.03 in int8-a16, 0.05 in int8.
    bind, states, layers, key, config, allow_torch, float64_as_float32, precision : as in `fastrnn.load`
        `bind` also gives onnxruntime the inputs that were fixed at load, or at conversion.
    fixed_sizes : as `sizes` of `fastrnn.load`
    sizes : pairs (batch, time) to compare, if the model leaves them free

    Raises
    ------
    UnsupportedError
        The other engine is not installed, can't run the file at any size, or there is no file to give to it.
    FastRNNError
        What `fastrnn.load` raises.

    Examples
    --------
    >>> fastrnn.verify("examples/tone_words.onnx").ok
    True
    """
    from ...model import Model

    if against not in ENGINES:
        raise UnsupportedError(f"can't verify against {against!r}; known: {', '.join(ENGINES)}")
    path = None if isinstance(model, Model) else os.fspath(model)
    beside = {"layers": layers, "key": key, "config": config}
    options: dict[str, Any] = {"sizes": fixed_sizes, "bind": bind, "states": states, "precision": precision}
    options["allow_torch"] = allow_torch
    loaded = model if isinstance(model, Model) else _load(model, against, beside, options, float64_as_float32)
    other = engine(against, loaded.graph, path if source is None else os.fspath(source), bind or {}, beside)
    return compare(loaded, other, path if path is not None else loaded.name, seed, tolerance, sizes)


def _load(path: StrPath, against: str, beside: dict, options: dict, float64_as_float32: bool) -> Model:
    """The model of a file. `beside` describes the other engine's file if that is not `path` itself."""
    from ...loading import load

    # A .fastrnn file has bind and states built in, and rejects them. onnxruntime still needs bind.
    if os.fspath(path).lower().endswith(".fastrnn"):
        beside = {} if against in ("torch", "keras") else beside
        options = options | {"bind": None} if against == "onnxruntime" else options
    given = {name: value for name, value in options.items() if value}
    return load(path, float64_as_float32=float64_as_float32, **beside, **given)
