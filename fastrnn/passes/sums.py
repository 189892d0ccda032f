"""Values read as sums of products: bias + sum over bases of base @ matrix. The algebra behind `roll_up`."""

from __future__ import annotations

import numpy as np

from ..graph import Graph, Node
from ..records import dataclass


@dataclass(frozen=True)
class Sum:
    """size N; bias float64 [N]; terms: name of a base -> its factor: [K, N], a row [N], or None for 1."""

    size: int
    bias: np.ndarray
    terms: dict

    def matrix(self, name: str) -> np.ndarray | None:
        """The factor of a base as a full matrix [K, N]; None if the base is not in the sum."""
        if name not in self.terms:
            return None
        factor = self.terms[name]
        return np.eye(self.size) if factor is None else np.diag(factor) if factor.ndim == 1 else factor


class Sums:
    """Sums of the values of a graph along their last axis. opaque: names that are always bases."""

    def __init__(self, graph: Graph, opaque: set[str]):
        self.graph, self.makers, self.opaque = graph, graph.producers(), opaque
        self.known: dict[str, Sum] = {}

    def of(self, name: str) -> Sum:
        """The value `name` as a sum; the value itself as the only term if it is not a sum."""
        if name not in self.known:
            node = self.makers.get(name)
            found = None
            if node is not None and name not in self.opaque:
                found = self._made(node)
            self.known[name] = found or self._base(name)
        return self.known[name]

    def before(self, node: Node) -> Sum:
        """The sum that a unary or linear node applies its function to."""
        return self.of(node.inputs[0]) if node.op == "unary" else self._product(node)

    def _base(self, name: str) -> Sum:
        size = self.graph.values[name].dims[-1] if self.graph.values[name].dims else 1
        size = size if isinstance(size, int) else 1
        return Sum(size, np.zeros(size), {name: None})

    def _made(self, node: Node) -> Sum | None:
        if node.op == "linear" and node.attrs["activation"] is None:
            return self._product(node)
        if node.op == "matmul":
            return self._product(node) if self._weight(node.inputs[1]) else None
        if node.op == "unary" and node.attrs["fn"] == "neg":
            return _scaled(self.of(node.inputs[0]), np.float64(-1.0))
        if node.op == "binary" and node.attrs["fn"] in ("add", "sub", "mul"):
            return self._binary(node)
        if node.op == "slice" and self._last(node, node.inputs[0]):
            a = node.attrs
            return _columns(self.of(node.inputs[0]), slice(a["start"], a["stop"], a["step"])) if a["step"] > 0 else None
        if node.op == "concat" and self._last(node, node.inputs[0]):
            return _joined([self.of(i) for i in node.inputs])
        return None

    def _last(self, node: Node, name: str) -> bool:
        return node.attrs["axis"] == len(self.graph.values[name].dims) - 1

    def _weight(self, name: str) -> bool:
        array = self.graph.constants.get(name)
        return array is not None and array.ndim == 2

    def _product(self, node: Node) -> Sum:
        x, W = self.of(node.inputs[0]), self.graph.constants[node.inputs[1]].astype(np.float64)
        bias = self.graph.constants[node.inputs[2]].astype(np.float64) if len(node.inputs) > 2 else 0.0
        terms = {}
        for name, factor in x.terms.items():
            terms[name] = W if factor is None else factor[:, None] * W if factor.ndim == 1 else factor @ W
        return Sum(W.shape[1], x.bias @ W + bias, terms)

    def _row(self, name: str) -> np.ndarray | None:
        """A constant that is one row or one number for every step: float64 [N] or []."""
        array = self.graph.constants.get(name)
        if array is None or (array.ndim and array.size != array.shape[-1]):
            return None
        array = array.astype(np.float64)
        return array.reshape(array.shape[-1:]) if array.size != 1 else array.reshape(())

    def _binary(self, node: Node) -> Sum | None:
        fn, dims = node.attrs["fn"], self.graph.values[node.outputs[0]].dims
        rows = [self._row(i) for i in node.inputs]
        if all(r is None for r in rows):
            same = all(self.graph.values[i].dims == dims for i in node.inputs)
            if fn == "mul" or not same:
                return None
            return _added(*map(self.of, node.inputs), 1.0 if fn == "add" else -1.0)
        k = 0 if rows[0] is None else 1
        if rows[k] is not None or self.graph.values[node.inputs[k]].dims != dims:
            return None
        x, row = self.of(node.inputs[k]), rows[1 - k]
        if fn == "mul":
            return _scaled(x, row)
        x_sign = -1.0 if fn == "sub" and k == 1 else 1.0
        row_sign = -1.0 if fn == "sub" and k == 0 else 1.0
        x = _scaled(x, np.float64(x_sign))
        return Sum(x.size, x.bias + row_sign * row, x.terms)


def _scaled(x: Sum, row: np.ndarray) -> Sum:
    """x times a row of factors (or one number)."""
    if row.ndim == 0 and row == 1.0:
        return x
    row = np.broadcast_to(row, (x.size,))
    terms = {n: row if f is None else f * row for n, f in x.terms.items()}
    return Sum(x.size, x.bias * row, terms)


def _added(a: Sum, b: Sum, sign: float) -> Sum:
    b = _scaled(b, np.float64(sign))
    terms = dict(a.terms)
    for name, factor in b.terms.items():
        if name in terms:
            pair = Sum(a.size, a.bias, {name: terms[name]}), Sum(b.size, b.bias, {name: factor})
            terms[name] = pair[0].matrix(name) + pair[1].matrix(name)
        else:
            terms[name] = factor
    return Sum(a.size, a.bias + b.bias, terms)


def _joined(parts: list[Sum]) -> Sum:
    """Sums concatenated along the last axis."""
    size, at = sum(p.size for p in parts), 0
    total = Sum(size, np.concatenate([p.bias for p in parts]), {})
    for part in parts:
        terms = {}
        for name in part.terms:
            matrix = part.matrix(name)
            terms[name] = np.zeros((len(matrix), size))
            terms[name][:, at : at + part.size] = matrix
        total = _added(total, Sum(size, np.zeros(size), terms), 1.0)
        at += part.size
    return total


def _columns(x: Sum, part: slice) -> Sum:
    terms = {name: x.matrix(name)[:, part] for name in x.terms}
    bias = x.bias[part]
    return Sum(len(bias), bias, terms)
