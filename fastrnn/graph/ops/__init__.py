"""The vocabulary, one file per family: each op's inputs, attributes, dims, streaming rule and float64 meaning.

recurrence.py    cell, state
products.py      linear, matmul
attention.py     attention
positions.py     steps
elementwise.py   unary, binary, where, cast, bitcast, and the functions of unary and binary
moves.py         transpose, reshape, slice, concat, expand, gather, pad
windows.py       conv, conv_transpose, pool
reductions.py    reduce, softmax, layer_norm, argmax, cumsum

The meanings are written to be compared with the ONNX text (https://onnx.ai/onnx/operators/), not to be fast: plain
NumPy, no special cases for speed. Reals are always float64, whatever the graph declares. Integers wrap around in
their type.
Notation: `x[..]` dims;
T steps, B rows of a batch, I inputs, H hidden units, G gates.

`print(fastrnn.graph.vocabulary.describe())` prints all of it.
"""

from . import attention, elementwise, moves, positions, products, recurrence, reductions, windows

__all__ = ["attention", "elementwise", "moves", "positions", "products", "recurrence", "reductions", "windows"]
