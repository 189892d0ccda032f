"""Findings that need no values: unknown operators, and attributes that no handler reads."""

from __future__ import annotations

from collections.abc import Iterable

from . import functions
from .reading import fold
from .reading.nodes import OnnxNode
from .reading.reader import show_attr
from .reading.registry import OPERATORS
from .reroll.rolled import DOMAIN

# Operators whose handlers read the form of opsets 1 to 6 too; the others changed in opset 7 or before.
OLD_OPERATORS = frozenset(
    (
        "Abs Add And ArgMax ArgMin AveragePool BatchNormalization Ceil Clip Concat Constant Conv ConvTranspose Div "
        "Dropout Elu Equal Exp Flatten Floor GRU Gather Gemm GlobalAveragePool GlobalMaxPool Greater HardSigmoid "
        "Identity InstanceNormalization LSTM LeakyRelu Less Log LogSoftmax MatMul Max MaxPool Mean Min Mul Neg Not Or "
        "Pad Pow RNN Reciprocal ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin "
        "ReduceProd ReduceSum ReduceSumSquare Relu Reshape Selu Shape Sigmoid Size Slice Softmax Softplus Softsign "
        "Split Sqrt Squeeze Sub Sum Tanh Transpose Unsqueeze Xor"
    ).split()
)


def precheck(file, nodes: list[OnnxNode], constants: Iterable[str]) -> list[str]:
    """Text of each finding; `file.refused` gets the labels of the nodes. constants: names of values that are known.

    An operator is known if it has a handler, if ONNX defines it by others, or if it reads constants alone, so that it
    is folded.
    """
    problems, settled = [], set(constants)
    for node in nodes:
        fixed = all(i in settled for i in node.inputs if i) and (node.inputs or node.op == "Constant")
        if fixed:
            settled.update(node.outputs)
        known = OPERATORS.get((node.domain, node.op))
        version = file.opsets.get("", 7)
        if version < 7 and not node.domain:
            node.attrs.pop("consumed_inputs", None)  # a hint of opsets 1 to 5 about memory
            if node.op not in OLD_OPERATORS:
                problems.append(f"node {node.label}: {_older(node, version)}")
                file.refused.add(node.label)
                continue
        attrs = functions.attributes(node, file.opsets) if known is None else known.attrs
        readable = known is not None or functions.defined(node, file.opsets)
        folded = fixed and attrs is not None and fold.foldable(node)
        if not (readable or folded) or (node.payload is None and node.domain == DOMAIN):
            problems.append(f"node {node.label}: operator {node.kind}")
            file.refused.add(node.label)
            continue
        for name in sorted(set(node.attrs) - set(attrs)):
            shown = show_attr(node.attrs[name])
            problems.append(f"node {node.label}: {node.kind} with attribute {name}={shown}")
            file.refused.add(node.label)
    return problems


def _older(node: OnnxNode, version: int) -> str:
    return f"operator {node.kind} of opset {version}; convert the file to opset 7 or later (onnx.version_converter)"
