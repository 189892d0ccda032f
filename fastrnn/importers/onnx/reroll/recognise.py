"""The arithmetic of one time step, written out in plain operators, recognised as a known cell.

The step's nodes are evaluated on symbolic operands: affine forms over x, h, c (and r*h), activations of them, and
products and sums of those. The result is compared with the equations of RNN, GRU and LSTM. Weights are known arrays, so
fused gates are sliced and split directly.
"""

from __future__ import annotations

import numpy as np

from ....graph.cells import CellSpec, activation
from ....records import dataclass

_ACTIVATIONS = {"Tanh": "tanh", "Sigmoid": "sigmoid", "Relu": "relu", "Softsign": "softsign", "Softplus": "softplus"}


class NotACell(Exception):
    """The step is not a known cell; the file is left unchanged."""


@dataclass(frozen=True, eq=False)
class Affine:
    """sum of base @ matrix, plus bias. terms: base -> [K, N]; a base is "x", "h", "c" or a Product r*h."""

    terms: dict
    bias: tuple = ()  # [N] arrays, in the order of addition


@dataclass(frozen=True)
class Base:
    """x, h or c itself, or an outer value that may turn out to be one of them (name: of the value)."""

    name: str


@dataclass(frozen=True, eq=False)
class Act:
    """An activation of an affine form, or of a sum (the new c)."""

    fn: str
    of: object


@dataclass(frozen=True, eq=False)
class Product:
    left: object
    right: object


@dataclass(frozen=True, eq=False)
class SumOf:
    left: object
    right: object


@dataclass(frozen=True, eq=False)
class OneMinus:
    of: object


@dataclass(frozen=True, eq=False)
class Difference:
    left: object
    right: object


@dataclass
class Recognised:
    """A cell: its spec and weights, in ONNX's gate order, float32. Wb, Rb: None if the step adds no bias."""

    spec: CellSpec
    W: np.ndarray
    R: np.ndarray
    Wb: np.ndarray | None
    Rb: np.ndarray | None

    def same(self, other: Recognised) -> bool:
        """Whether two steps are the same cell."""
        pairs = ((self.W, other.W), (self.R, other.R), (self.Wb, other.Wb), (self.Rb, other.Rb))
        return self.spec == other.spec and all(
            (a is None and b is None) or (a is not None and b is not None and np.array_equal(a, b)) for a, b in pairs
        )


class StepReader:
    """Evaluates the values of one step. maker: value name -> OnnxNode; constants: name -> array;
    known: names with a given meaning; item(node) -> Base if the node takes one time step out of a sequence."""

    MAX_NODES = 200  # of one step; the largest known one, a GRU with separate gates, has about 30

    def __init__(self, maker: dict, constants: dict, known: dict, item, opset: int):
        self.maker, self.constants, self.known, self.item, self.opset = maker, constants, dict(known), item, opset
        self.budget = self.MAX_NODES
        self.rows = 1  # of the largest constant added with equal rows; more than one means a frozen batch

    def value(self, name: str):
        """The symbolic operand of a value; a Base with its own name if nothing is known about it."""
        if name in self.known:
            return self.known[name]
        if name in self.constants:
            return self.constants[name]
        node = self.maker.get(name)
        if node is None:
            return Base(name)
        self.budget -= 1
        if self.budget < 0:
            raise NotACell
        found = self.item(node, name)
        if found is None:
            rule = getattr(self, f"_{node.op.lower()}", None) if node.domain == "" else None
            found = Base(name) if rule is None else rule(node, name)
        self.known[name] = found
        return found

    def args(self, node) -> list:
        return [self.value(i) if i else None for i in node.inputs]

    def _constant_input(self, node, i: int):
        """Input i of a node as an array, if it is constant."""
        value = self.value(node.inputs[i]) if i < len(node.inputs) and node.inputs[i] else None
        return value if isinstance(value, np.ndarray) else None

    def _identity(self, node, name):
        return self.value(node.inputs[0])

    def _matmul(self, node, name):
        a, b = self.args(node)
        if isinstance(a, np.ndarray):
            a = Base(node.inputs[0])  # a constant initial state
        if isinstance(b, np.ndarray) and b.ndim == 2 and isinstance(a, (Base, Product)):
            return Affine({a: b})
        return Base(name)

    def _gemm(self, node, name):
        args, attrs = self.args(node), node.attrs
        numbers = {k: attrs[k].f if k in attrs else 1.0 for k in ("alpha", "beta")}
        trans_a, trans_b = (bool(attrs[k].i) if k in attrs else False for k in ("transA", "transB"))
        if trans_a or numbers != {"alpha": 1.0, "beta": 1.0} or not isinstance(args[1], np.ndarray):
            return Base(name)
        bias = args[2] if len(args) > 2 else None
        if not isinstance(args[0], (Base, Product)) or not (bias is None or isinstance(bias, np.ndarray)):
            return Base(name)
        return Affine({args[0]: args[1].T if trans_b else args[1]}, () if bias is None else (bias.reshape(-1),))

    def _add(self, node, name):
        a, b = self.args(node)
        if isinstance(a, np.ndarray):
            a, b = b, a
        if isinstance(a, np.ndarray):
            return a + b
        if isinstance(b, np.ndarray):
            row = _row(b)
            if row is None or not isinstance(a, (Affine, Base)):
                return Base(name)
            self.rows = max(self.rows, b.size // row.size)
            return Affine(_as_affine(a).terms, (*_as_affine(a).bias, row))
        if isinstance(a, (Affine, Base)) and isinstance(b, (Affine, Base)):
            a, b = _as_affine(a), _as_affine(b)
            if set(map(_key, a.terms)) & set(map(_key, b.terms)):
                raise NotACell
            return Affine({**a.terms, **b.terms}, (*a.bias, *b.bias))
        return SumOf(a, b)

    def _sub(self, node, name):
        a, b = self.args(node)
        if isinstance(a, np.ndarray) and (a == 1).all() and isinstance(b, Act):
            return OneMinus(b)
        if isinstance(a, Base) and isinstance(b, Act):
            return Difference(a, b)
        return Base(name)

    def _mul(self, node, name):
        a, b = self.args(node)
        if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
            return Base(name)
        return Product(a, b)

    def _activate(self, node, name):
        x = self.value(node.inputs[0])
        return Base(name) if isinstance(x, np.ndarray) else Act(_ACTIVATIONS[node.op], x)

    _tanh = _sigmoid = _relu = _softsign = _softplus = _activate

    def _split(self, node, name):
        x = self.value(node.inputs[0])
        if not isinstance(x, Affine):
            return Base(name)
        width = _width(x)
        axis, count = (node.attrs["axis"].i if "axis" in node.attrs else 0), len(node.outputs)
        if width is None or axis not in (-1, 1, 2):
            return Base(name)
        sizes = self._constant_input(node, 1) if self.opset >= 13 else None
        if sizes is None and "split" in node.attrs:
            sizes = list(node.attrs["split"].ints)
        sizes = [int(s) for s in sizes] if sizes is not None else [width // count] * count
        if sum(sizes) != width or len(sizes) != count:
            return Base(name)
        at = [sum(sizes[:k]) for k in range(count + 1)]
        k = node.outputs.index(name)
        return _columns(x, at[k], at[k + 1])

    def _slice(self, node, name):
        x = self.value(node.inputs[0])
        if self.opset < 10 or not isinstance(x, (np.ndarray, Affine)):
            return Base(name)
        parts = [self._constant_input(node, i) for i in range(1, 5)]
        if any(p is None for p in parts[:3]):
            return Base(name)
        starts, stops, axes = ([int(v) for v in p.reshape(-1)] for p in parts[:3])
        steps = [1] * len(starts) if parts[3] is None else [int(v) for v in parts[3].reshape(-1)]
        if isinstance(x, np.ndarray):
            key = [slice(None)] * x.ndim
            for start, stop, axis, step in zip(starts, stops, axes, steps, strict=True):
                key[axis] = slice(start, stop, step)
            return x[tuple(key)]
        width = _width(x)
        if steps != [1] or width is None or axes != [-1]:
            return Base(name)
        start, stop = starts[0], stops[0]
        found = range(*slice(start, stop).indices(width))
        return _columns(x, found.start, found.stop)


def _row(array: np.ndarray) -> np.ndarray | None:
    """The last axis of an array if it is the same at every index of the other axes."""
    if array.ndim < 1 or not array.size:
        return None
    rows = array.reshape(-1, array.shape[-1])
    return rows[0] if (rows == rows[:1]).all() else None


def starts_at_zero(out, cell: Recognised) -> bool:
    """Whether the first step starts from h = 0, with the product with R folded away: f(x + bias), with exactly the bias
    that every other step adds."""
    if cell.spec.kind != "rnn" or not isinstance(out, Act) or out.fn != cell.spec.activations[0].name:
        return False
    if not isinstance(out.of, Affine) or len(out.of.terms) != 1:
        return False
    ((_, matrix),) = out.of.terms.items()
    eye = np.eye(cell.spec.hidden_size, dtype=np.float32)
    if not np.array_equal(eye if matrix is None else matrix.T, cell.W):
        return False
    adds = [b for b in out.of.bias if b.any()]
    needs = [b for b in (cell.Wb, cell.Rb) if b is not None and b.any()]
    return len(adds) == len(needs) and all(np.array_equal(a, b) for a, b in zip(adds, needs, strict=True))


def _key(base):
    return base if isinstance(base, Base) else id(base)


def _as_affine(value) -> Affine:
    """A bare base counts as base @ identity. The identity is None until its size is known."""
    return value if isinstance(value, Affine) else Affine({value: None})


def _width(x: Affine) -> int | None:
    """N of an affine form, None if it contains only bare bases."""
    return next((m.shape[1] for m in x.terms.values() if m is not None), None)


def _columns(x: Affine, start: int, stop: int) -> Affine:
    width = _width(x)
    terms = {}
    for base, matrix in x.terms.items():
        terms[base] = (np.eye(width, dtype=np.float32) if matrix is None else matrix)[:, start:stop]
    return Affine(terms, tuple(b[start:stop] for b in x.bias))


def recognise(out: object, cell_out: object | None, x: Base, h: Base, c: Base | None) -> Recognised:
    """The cell with new h `out` (and new c `cell_out`). Raises NotACell."""
    if c is not None:
        return _lstm(out, cell_out, x, h, c)
    if isinstance(out, Act):
        return _rnn(out, x, h)
    return _gru(out, x, h)


def _gate(act, x: Base, h, what=None) -> tuple:
    """(activation name, W [K,N], R [N,N], bias of x, bias of h) of Act(Affine over x and h)."""
    if not isinstance(act, Act) or not isinstance(act.of, Affine):
        raise NotACell
    form, width = act.of, _width(act.of)
    bases = {_key(b): m for b, m in form.terms.items()}
    if width is None or not set(bases) <= {_key(x), _key(h)} or _key(h) not in bases:
        raise NotACell
    eye = np.eye(width, dtype=np.float32)
    w = bases.get(_key(x), np.zeros((1, width), np.float32))
    r = bases[_key(h)]
    if any(b.size not in (1, width) for b in form.bias) or len(form.bias) > 2:
        raise NotACell
    bias = [np.broadcast_to(b, (width,)).astype(np.float32) for b in form.bias]
    return act.fn, eye if w is None else w, eye if r is None else r, bias


def _assemble(kind: str, gates: list[tuple], fns: list[str], **flags) -> Recognised:
    """A Recognised from gates in ONNX's order."""
    w = np.concatenate([g[1].T for g in gates]).astype(np.float32)
    hidden = gates[0][1].shape[1]
    if any(g[1].shape != gates[0][1].shape or g[2].shape != (hidden, hidden) for g in gates):
        raise NotACell
    r = np.concatenate([g[2].T for g in gates]).astype(np.float32)
    if any(len(g[3]) != len(gates[0][3]) for g in gates):
        raise NotACell
    biases = [np.concatenate([g[3][k] for g in gates]) for k in range(len(gates[0][3]))]
    wb = biases[0] if biases else None
    rb = biases[1] if len(biases) > 1 else (np.zeros_like(wb) if wb is not None else None)
    spec = CellSpec(kind, w.shape[1], hidden, tuple(activation(f) for f in fns), **flags)
    return Recognised(spec, *(None if a is None else np.ascontiguousarray(a) for a in (w, r, wb, rb)))


def _rnn(out, x, h) -> Recognised:
    gate = _gate(out, x, h)
    return _assemble("rnn", [gate], [gate[0]])


def _two(value, kind) -> tuple:
    if not isinstance(value, kind):
        raise NotACell
    return value.left, value.right


def _split_by(value: Product, wanted) -> object:
    """The other factor of a product that has `wanted` (a Base) as one factor; raises NotACell if it has not."""
    a, b = _two(value, Product)
    if isinstance(a, Base) and a == wanted:
        return b
    if isinstance(b, Base) and b == wanted:
        return a
    raise NotACell


def _update(out, h) -> tuple:
    """z and n of z*h + (1-z)*n, or of PyTorch's form z*(h-n) + n."""
    parts = list(_two(out, SumOf))
    if isinstance(parts[0], Act) or isinstance(parts[1], Act):
        product, n = parts if isinstance(parts[1], Act) else parts[::-1]
        a, b = _two(product, Product)
        gap, z = (a, b) if isinstance(a, Difference) else (b, a)
        if not isinstance(gap, Difference) or gap.left != h or gap.right is not n:
            raise NotACell
        return z, n
    if any(isinstance(f, OneMinus) for f in _two(parts[0], Product)):
        parts.reverse()
    z = _split_by(parts[0], h)
    a, b = _two(parts[1], Product)
    keep, n = (a, b) if isinstance(a, OneMinus) else (b, a)
    if not isinstance(keep, OneMinus) or keep.of is not z or not isinstance(n, Act):
        raise NotACell
    return z, n


def _gru(out, x, h) -> Recognised:
    """z*h + (1-z)*n, where n is g(x, r*h) or, with linear_before_reset, g(x + r * (h @ R + Rb))."""
    z, n = _update(out, h)
    if isinstance(n.of, SumOf):
        return _gru_after(z, n, x, h)
    if not isinstance(n.of, Affine):
        raise NotACell
    resets = [b for b in n.of.terms if isinstance(b, Product)]
    if len(resets) != 1:
        raise NotACell
    r = _split_by(resets[0], h)
    gates = [_gate(z, x, h), _gate(r, x, h), _gate(n, x, resets[0])]
    if gates[0][0] != gates[1][0]:
        raise NotACell
    return _assemble("gru", gates, [gates[0][0], gates[2][0]], linear_before_reset=False)


def _gru_after(z, n, x, h) -> Recognised:
    part, gated = _two(n.of, SumOf)
    if not isinstance(gated, Product):
        part, gated = gated, part
    r, product = _two(gated, Product)
    if isinstance(product, Act):
        r, product = product, r
    if not all(isinstance(a, Affine) for a in (part, product)) or len(part.bias) > 1 or len(product.bias) > 1:
        raise NotACell
    if {_key(b) for b in part.terms} != {_key(x)} or {_key(b) for b in product.terms} != {_key(h)}:
        raise NotACell
    gates = [_gate(z, x, h), _gate(r, x, h)]
    width = gates[0][2].shape[1]
    zero, eye = np.zeros(width, np.float32), np.eye(width, dtype=np.float32)
    ((_, w),), ((_, matrix),) = part.terms.items(), product.terms.items()
    biases = [(p.bias[0].astype(np.float32) if p.bias else zero) for p in (part, product)]
    gates.append((n.fn, eye if w is None else w, eye if matrix is None else matrix, biases))
    if gates[0][0] != gates[1][0]:
        raise NotACell
    gates = [(f, w, r, (b + [zero, zero])[:2]) for f, w, r, b in gates]
    return _assemble("gru", gates, [gates[0][0], n.fn], linear_before_reset=True)


def _lstm(out, cell_out, x, h, c) -> Recognised:
    """c' = f*c + i*g; h' = o * tanh(c')."""
    a, b = _two(out, Product)
    squash, o = (a, b) if isinstance(a, Act) and a.of is cell_out else (b, a)
    if not isinstance(squash, Act) or squash.of is not cell_out:
        raise NotACell
    parts = list(_two(cell_out, SumOf))
    if not any(isinstance(p, Base) and p == c for p in _two(parts[0], Product)):
        parts.reverse()
    f = _split_by(parts[0], c)
    i, g = _two(parts[1], Product)
    gates = {"i": _gate(i, x, h), "o": _gate(o, x, h), "f": _gate(f, x, h), "c": _gate(g, x, h)}
    if gates["i"][0] != gates["f"][0]:
        gates["i"], gates["c"] = gates["c"], gates["i"]
    if not gates["i"][0] == gates["f"][0] == gates["o"][0]:
        raise NotACell
    return _assemble("lstm", [gates[k] for k in "iofc"], [gates["f"][0], gates["c"][0], squash.fn])
