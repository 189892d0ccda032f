"""Errors of a model in reduced precision against float64, beside those of float32 and of onnxruntime's own int8."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ...errors import FastRNNError, UnsupportedError
from ...graph import reference
from ...passes.precision import is_reduced
from .comparison import difference
from .engines import OnnxRuntimeEngine, first_line
from .inputs import random_inputs
from .report import ReducedError

if TYPE_CHECKING:
    from ...model import Model

# What onnxruntime multiplies 8-bit weights with.
INTEGER = {"DynamicQuantizeLSTM", "DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "ConvInteger"}
STEPS = 100  # if the length is free: the error of a recurrence grows over its first steps


def beside(
    model: Model,
    original: Callable[..., Model],
    path: str,
    bind: Mapping[str, Any],
    seed: int,
    compared: Mapping[str, Sequence[int]],
) -> tuple[tuple[ReducedError, ...], list[str]]:
    """(The errors of each output, or none; what is missing and why).

    original : (precision=...) -> the model of the file that it was made from
    path : that file, which onnxruntime quantises
    compared : the values of each free size that were compared
    """
    try:
        plain = original(precision=None)
        quantised = is_reduced(plain.graph)
        plain = original(precision="float32") if quantised else plain
    except (FastRNNError, OSError) as error:
        return (), [f"no errors against float64: {path} can't be read without more options: {first_line(error)}"]
    if plain.inputs != model.inputs or plain.outputs != model.outputs:
        return (), [f"no errors against float64: {path} has other inputs or outputs than the model"]
    names = [info.name for info in model.outputs]
    env = {name: max(values) for name, values in compared.items()}
    env |= {"time": STEPS} if len(compared.get("time", ())) > 1 else {}
    try:
        feeds = random_inputs(plain.graph, env, np.random.default_rng(seed))
        want = [np.asarray(a, np.float64) for a in reference.run(plain.graph, feeds)]
        ours, theirs = model.run(**feeds), plain.run(**feeds)
    except FastRNNError as error:
        return (), [f"no errors against float64: the model does not run at {env}: {first_line(error)}"]
    int8, notes = _onnxruntime(path, bind, names, feeds, quantised)
    return tuple(
        ReducedError(
            name,
            _share(name, ours[i], want[i]),
            _share(name, theirs[i], want[i]),
            None if int8 is None else _share(name, int8[i], want[i]),
        )
        for i, name in enumerate(names)
    ), notes


def _share(name: str, got: np.ndarray, want: np.ndarray) -> float:
    return difference(name, np.asarray(got), want, 0.0, "", True).relative


def _onnxruntime(path: str, bind, names, feeds, quantised: bool):
    """(What onnxruntime answers in int8, or None; why not). quantised: the file itself is."""
    if os.path.splitext(path)[1].lower() != ".onnx":
        return None, []
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = path if quantised else _quantised(path, Path(folder) / "int8.onnx")
            return OnnxRuntimeEngine(file, bind).run(feeds, names), []
    except UnsupportedError as error:
        return None, [f"no errors of onnxruntime's int8: {first_line(error)}"]
    except Exception as error:  # onnxruntime raises its own classes
        return None, [f"no errors of onnxruntime's int8: it does not run this file so: {first_line(error)}"]


def _quantised(path: str, target: Path) -> str:
    """The file as onnxruntime's `quantize_dynamic` writes it, with a scale per channel."""
    try:
        import onnx
        from onnxruntime.quantization import quantize_dynamic
    except ImportError:
        raise UnsupportedError("onnxruntime and its quantization tools are not installed") from None
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)  # it advises about pre-processing
    try:
        quantize_dynamic(path, str(target), per_channel=True)
    finally:
        logger.setLevel(level)
    if not INTEGER & {node.op_type for node in _nodes(onnx.load(target).graph)}:
        raise UnsupportedError("quantize_dynamic leaves the whole file in float32")
    return str(target)


def _nodes(graph) -> Iterator[Any]:
    """The nodes of an ONNX graph and of those within it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)
