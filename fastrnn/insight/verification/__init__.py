"""Checks that a model agrees with other engines: runs random inputs through both and reports the largest differences.

engines.py      the float64 reference and onnxruntime; `engine` opens the one that the caller names
engine_*.py     PyTorch and Keras
inputs.py       random inputs for a graph
comparison.py   runs at several sizes, and the differences of the results
beside.py       errors of reduced precision against float64, and those of onnxruntime's int8
lengths.py      which lengths a comparison covers, and parallel forms over long sequences
report.py       `VerifyReport`

The package is not named for its function, because `fastrnn.verify` must be the function.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from ...errors import UnsupportedError
from ...passes.precision import is_reduced
from ...typing import Precision, StrPath
from .beside import beside as reduced_errors
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
        Default 1e-4; 5e-3 for an ONNX file in float16. As a share of each output's largest element, 0.02 for weights in
        bfloat16, 0.03 in int8-a16, 0.05 in int8.
    bind, states, layers, key, config, allow_torch, float64_as_float32, precision : as in `fastrnn.load`; `bind` also
        gives onnxruntime the inputs that were fixed at load, or at conversion
    fixed_sizes : as `sizes` of `fastrnn.load`; sizes : pairs (batch, time) to compare, if the model leaves them free

    Raises
    ------
    UnsupportedError : the other engine is not installed, can't run the file at any size, or there is no file for it.
    FastRNNError : what `fastrnn.load` raises.

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
    options = {"sizes": fixed_sizes, "bind": bind, "states": states, "precision": precision, "allow_torch": allow_torch}
    read = partial(_load, against, beside, options, float64_as_float32)
    loaded = model if isinstance(model, Model) else read(model)
    file = path if source is None else os.fspath(source)
    other = engine(against, loaded.graph, file, bind or {}, beside)
    report = compare(loaded, other, path or loaded.name, seed, tolerance, sizes)
    return _with_errors(report, loaded, file, bind or {}, seed, read)


def _with_errors(report: VerifyReport, model: Model, file: str | None, bind, seed: int, read) -> VerifyReport:
    """The report; that of a model in reduced precision with its errors against float64. read: (file, precision=...)."""
    if not is_reduced(model.graph):
        return report
    if file is None or file.lower().endswith(".fastrnn"):
        note = "no errors against float64: pass the file that the model was converted from as source= (--source)"
        return replace(report, notes=(*report.notes, note))
    errors, missing = reduced_errors(model, partial(read, file), file, bind, seed, report.compared)
    return replace(report, reduced=errors, notes=(*report.notes, *missing))


def _load(against: str, beside: dict, options: dict, float64_as_float32: bool, path: StrPath, **instead) -> Model:
    """The model of a file. `beside` describes the other engine's file if that is not `path` itself. instead: options
    that replace those in `options`."""
    from ...loading import load

    # A .fastrnn file has bind and states built in, and rejects them. onnxruntime still needs bind.
    if os.fspath(path).lower().endswith(".fastrnn"):
        beside = {} if against in ("torch", "keras") else beside
        options = options | {"bind": None} if against == "onnxruntime" else options
    given = {name: value for name, value in {**options, **instead}.items() if value}
    return load(path, float64_as_float32=float64_as_float32, **beside, **given)
