"""Folds nodes whose inputs are all constant: computed once by onnx's reference evaluator, with a size limit."""

from __future__ import annotations

import warnings
from math import prod

import numpy as np
from onnx import helper

from ....errors import ModelFormatError
from ...shared.ledger import Finding
from .nodes import OnnxNode

# Most elements of a folded value that is larger than all constants of the file together: 16 Mi, 64 MiB of float32.
# Otherwise, repeating operators could blow up a file of a kilobyte.
MAX_ELEMENTS = 1 << 24


def foldable(node: OnnxNode) -> bool:
    """Whether the evaluator may compute the node. Repeating operators and sources have their own handlers."""
    return node.domain == "" and node.op not in _OWN and node.op not in _RANDOM


_RANDOM = frozenset("Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike".split())


_OWN = frozenset(
    (
        "Constant ConstantOfShape DequantizeLinear DynamicQuantizeLinear Expand Tile Range SplitToSequence SequenceAt "
        "SequenceConstruct Dropout RNN LSTM GRU Identity Shape Size"
    ).split()
)


def fold(node: OnnxNode, arrays: list, opsets: dict[str, int], limit: int = MAX_ELEMENTS) -> list:
    """The node's outputs. arrays: one per input, None if absent. Raises ModelFormatError if it can't run."""
    size = _size(node, [a for a in arrays if a is not None])
    if size > limit:
        raise Finding(f"a constant of {size} elements; at most {limit} are folded")
    proto = helper.make_node(node.op, node.inputs, node.outputs, domain=node.domain)
    proto.attribute.extend(node.attrs.values())
    feeds = {name: a for name, a in zip(node.inputs, arrays, strict=True) if name}
    # Wrap the node in a model: for a bare node the evaluator uses the newest version of its operator.
    ins = [
        helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for k, a in feeds.items()
    ]
    outs = [helper.make_empty_tensor_value_info(name) for name in node.outputs if name]
    model = helper.make_model(
        helper.make_graph([proto], "fold", ins, outs), opset_imports=[helper.make_opsetid("", opsets[""])]
    )
    from onnx.reference import ReferenceEvaluator  # reads every schema, in 12 ms: few files need it

    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            out = ReferenceEvaluator(model).run(None, feeds)
    except MemoryError:
        raise
    except Exception as error:  # on invalid nodes the evaluator raises anything that numpy or Python can raise
        raise ModelFormatError(f"can't be computed on its constants ({type(error).__name__}: {error})") from error
    values = iter(out)
    return [_plain(np.asarray(next(values))) if name else None for name in node.outputs]


def _plain(array: np.ndarray) -> np.ndarray:
    """bfloat16 as float32, as files.tensor reads it."""
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _size(node: OnnxNode, arrays: list) -> int:
    """An upper bound on the number of elements of the largest output."""
    sizes = [a.size for a in arrays] or [0]
    if node.op == "Concat":
        return sum(sizes)
    if node.op == "Gather" and len(arrays) == 2:
        return sizes[0] * sizes[1]
    if node.op in ("MatMul", "Gemm", "Einsum"):
        return sizes[0] * (sizes[1] if len(sizes) > 1 else 1)
    if len(arrays) > 1 and node.op not in ("Slice", "Reshape", "Squeeze", "Unsqueeze", "Split"):
        rank = max(a.ndim for a in arrays)
        shapes = [(1,) * (rank - a.ndim) + a.shape for a in arrays]
        return prod(max(s) for s in zip(*shapes, strict=True))
    return max(sizes)
