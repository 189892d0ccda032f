"""Writes a system of equations with known shapes as a Graph."""

from __future__ import annotations

import ast

import numpy as np

from ...errors import ModelFormatError, ShapeError
from ...graph import Graph, Node, Value
from ...graph.dims import BATCH, TIME
from ...graph.reference import binary, unary
from ..shared.builder import GraphWriter
from .grammar import (
    ACTIVATIONS,
    COMPARISONS,
    OPERATORS,
    REDUCTIONS,
    System,
    as_array,
    ends,
    epsilon_of,
    is_fixed,
    whole,
)
from .integers import Integers, IntegerWriter, exact
from .shapes import Shape


class Writer:
    """Writes the graph of a system whose shapes are known. An operand is an array (float64) or a Value [T, B, ..]."""

    def __init__(self, system: System, shapes: dict[str, Shape]):
        self.system, self.shapes = system, shapes
        self.w = GraphWriter("equations")
        self.known: dict[str, np.ndarray | Value] = dict(system.arrays)
        self.ago: dict[tuple[str, int], Value] = {}
        self.target = ""
        self.integers = IntegerWriter(self)

    def graph(self, outputs: tuple[str, ...], initial: dict) -> Graph:
        self.found = Integers(self.system, {name: exact(f"initial[{name!r}]", v) for name, v in initial.items()})
        for name in self.system.inputs:
            x = self.w.input(name, "float32", (BATCH, TIME, *self.shapes[name]))
            self.known[name] = self.w.transpose(x, 1, 0, *range(2, len(x.dims)))
        self.remember(initial)
        for equation in self.system.equations:
            self.target = equation.name
            integer = id(equation.expression) in self.found.nodes and equation.name in self.found.names
            made = (self.integers if integer else self).of(equation.expression)
            if integer and not isinstance(made, Value):
                made = np.array(made, np.int64 if equation.name in self.system.remembered else np.float64)
            if equation.name in self.system.remembered or equation.name in outputs:
                made = self.whole(made, self.shapes[equation.name])
            self.known[equation.name] = made
        self.close()
        ends = []
        for name in outputs:
            steps = self.known[name]
            end = self.w.add("transpose", steps, label=f"{name}.output", perm=(1, 0, *range(2, len(steps.dims))))
            ends.append(self.w.rename(end, name))
        return self.w.done(*ends)

    # -- what is remembered --
    def remember(self, initial: dict) -> None:
        """Add a state node for each step that prev() looks back; `close` gives them their inputs."""
        unknown = sorted(set(initial) - set(self.system.remembered))
        if unknown:
            raise ModelFormatError(f"initial= names {', '.join(unknown)}, but no equation uses prev() of it")
        for name, depth in self.system.remembered.items():
            shape = self.shapes[name]
            dtype = "int64" if name in self.found.names else "float32"
            steps = Value(f"{name}~", dtype, (TIME, BATCH, *shape))
            self.w.values[steps.name] = steps
            starts = self.starts(name, initial.get(name), depth, shape)
            for ago in range(1, depth + 1):
                start = None
                if starts is not None:
                    row = self.w.constant(starts[ago - 1], f"{name}.initial")
                    start = self.w.add("expand", row, label=f"{name}.initial", dims=(BATCH, *shape))
                label = name if ago == 1 else f"{name}.{ago}"
                steps = self.ago[name, ago] = self.w.add("state", steps, start, label=label)
                if ago == 1:
                    steps = self.ago[name, 1] = self.w.rename(steps, f"prev({name})")

    def starts(self, name: str, given, depth: int, shape: Shape) -> np.ndarray | None:
        """The values assumed 1, 2, .. steps before the first: float64 [depth, ..], None for zeros."""
        if given is None:
            return None
        array = (exact if name in self.found.names else as_array)(f"initial[{name!r}]", given)
        if array.ndim > len(shape) and array.shape[0] == depth:
            rows = array
        else:
            rows = array[None]
        try:
            return np.broadcast_to(rows, (depth, *shape))
        except ValueError:
            raise ShapeError(
                f"initial[{name!r}] is {list(array.shape)}; {list(shape)} is expected, or {[depth, *shape]} for what "
                f"it was 1 to {depth} steps ago"
            ) from None

    def close(self) -> None:
        """Give each state its input, which exists by now."""
        true = {f"{name}~": self.known[name] for name in self.system.remembered}
        for k, node in enumerate(self.w.nodes):
            if node.op == "state" and node.inputs[0] in true:
                inputs = (true[node.inputs[0]].name, *node.inputs[1:])
                self.w.nodes[k] = Node("state", node.name, inputs, node.outputs, node.attrs)
        for name in true:
            del self.w.values[name]

    def whole(self, made, shape: Shape) -> Value:
        """An operand as a value for every step, at its full shape."""
        dims = (TIME, BATCH, *shape)
        if isinstance(made, Value) and made.dims == dims:
            return made
        return self.w.add("expand", self.live(made, len(shape)), label=f"{self.target}.expand", dims=dims)

    def live(self, operand, rank: int) -> Value:
        """An operand as a value that broadcasts with features of this rank."""
        if not isinstance(operand, Value):
            return self.w.constant(operand, f"{self.target}.constant")
        missing = rank - (len(operand.dims) - 2)
        if missing <= 0:
            return operand
        dims = (*operand.dims[:2], *(1,) * missing, *operand.dims[2:])
        return self.w.add("reshape", operand, label=f"{self.target}.reshape", dims=dims)

    # -- expressions --
    def of(self, e: ast.expr):
        """The operand that an expression evaluates to, in floating point."""
        if id(e) in self.found.nodes:
            made = self.integers.of(e)
            if not isinstance(made, Value):
                return np.float64(made)
            return self.w.add("cast", made, label=f"{self.target}.cast", to="float32")
        if isinstance(e, ast.Constant):
            return np.float64(e.value)
        if isinstance(e, ast.Name):
            return self.known[e.id]
        if isinstance(e, ast.Subscript):
            return self.cut(self.of(e.value), e.slice)
        if isinstance(e, ast.Call):
            return self.call(e)
        if isinstance(e, ast.BinOp) and isinstance(e.op, ast.MatMult):
            return self.product(e)[0]
        if isinstance(e, ast.BinOp) and isinstance(e.op, ast.Pow):
            return self.power(self.of(e.left), e.right.value)
        if isinstance(e, ast.BinOp) and isinstance(e.op, ast.Mult | ast.Div | ast.Mod):
            return self.pointwise(OPERATORS[type(e.op)], self.of(e.left), self.of(e.right))
        return self.sum_of(e)

    def sum_of(self, e: ast.expr):
        """A sum. Its arrays are added up first and become the bias of its first product."""
        terms = list(_terms(e, 1.0, self.found.nodes))
        if len(terms) == 1 and terms[0][0] < 0:
            made = self.of(terms[0][1])
            return -made if not isinstance(made, Value) else self.w.unary("neg", made, label=f"{self.target}.neg")
        fixed = [sign * self.of(t) for sign, t in terms if is_fixed(t, self.system)]
        bias = sum(fixed[1:], fixed[0]) if fixed else None
        live = [(sign, t) for sign, t in terms if not is_fixed(t, self.system)]
        if not live:
            return bias
        total = None
        for sign, t in sorted(live, key=lambda pair: not _is_product(pair[1])):
            subtract = sign < 0
            if _is_product(t):
                made, taken = self.product(t, sign, bias)
                bias, subtract = None if taken else bias, False
            else:
                made = self.of(t)
            if total is None:
                total = self.w.unary("neg", made, label=f"{self.target}.neg") if subtract else made
            else:
                total = self.pointwise("sub" if subtract else "add", total, made)
        return total if bias is None else self.pointwise("add", total, bias)

    def pointwise(self, fn: str, a, b):
        """An elementwise function of two operands."""
        if not isinstance(a, Value) and not isinstance(b, Value):
            return binary(fn, a, b)
        rank = max(len(v.dims) - 2 if isinstance(v, Value) else v.ndim for v in (a, b))
        return self.w.binary(fn, self.live(a, rank), self.live(b, rank), label=f"{self.target}.{fn}")

    def power(self, x, power: int):
        """x times itself: powers of two by squaring."""
        result = None
        while power:
            if power & 1:
                result = x if result is None else self.pointwise("mul", result, x)
            power >>= 1
            x = self.pointwise("mul", x, x) if power else x
        return result

    def cut(self, x, s: ast.Slice):
        if not isinstance(x, Value):
            return x[..., s.lower.value if s.lower else None : s.upper.value if s.upper else None]
        axis = len(x.dims) - 1
        start, stop = ends(s, x.dims[axis])
        return self.w.add("slice", x, label=f"{self.target}.slice", axis=axis, start=start, stop=stop, step=1)

    def product(self, e: ast.BinOp, sign: float = 1.0, bias: np.ndarray | None = None) -> tuple:
        """(sign * left @ right, plus bias if it fits the end of the product; whether it did)."""
        left, right = self.of(e.left), self.of(e.right)
        if not isinstance(left, Value) and not isinstance(right, Value):
            return sign * (left @ right), False
        if isinstance(left, Value) and isinstance(right, Value):
            made = self.live_product(left, right)
            return (made if sign > 0 else self.w.unary("neg", made, label=f"{self.target}.neg")), False
        from_left = isinstance(right, Value)
        x, matrix = (right, sign * left) if from_left else (left, sign * right)
        single = matrix.ndim == 1
        matrix = matrix[:, None] if single else matrix.T if from_left else matrix
        rank = len(x.dims)
        turned = from_left and rank > 3  # the features [.., K, L] are multiplied along K
        label = f"{self.target}.product"
        if turned:
            swap = (*range(rank - 2), rank - 1, rank - 2)
            x = self.w.add("transpose", x, label=label, perm=swap)
        made = self.w.add("matmul", x, self.w.constant(matrix, f"{label}.W"), label=label)
        taken = bias is not None and not turned and not single and bias.shape in ((), (1,), (matrix.shape[1],))
        if taken:
            row = self.w.constant(np.broadcast_to(bias, matrix.shape[1:]), f"{label}.bias")
            made = self.w.binary("add", made, row, label=f"{self.target}.biased")
        if single:
            made = self.w.add("reshape", made, label=f"{label}.row", dims=made.dims[:-1])
        elif turned:
            made = self.w.add("transpose", made, label=label, perm=swap)
        return made, taken

    def live_product(self, left: Value, right: Value) -> Value:
        """A product of two values that change with the steps; a row or a column gets an axis of one element."""
        row, column = len(left.dims) < len(right.dims), len(left.dims) > len(right.dims)
        a = self.shaped(left, (*left.dims[2:-1], 1, left.dims[-1])) if row else left
        b = self.shaped(right, (*right.dims[2:], 1)) if column else right
        made = self.w.add("matmul", a, b, label=f"{self.target}.product")
        dims = made.dims[2:]
        return self.shaped(made, (*dims[:-2], dims[-1]) if row else dims[:-1] if column else dims)

    def shaped(self, x, shape: Shape):
        """An operand with its features in this shape."""
        if not isinstance(x, Value):
            return x.reshape(shape)
        dims = (*x.dims[:2], *shape)
        return x if x.dims == dims else self.w.add("reshape", x, label=f"{self.target}.reshape", dims=dims)

    def outer(self, a, b):
        """[.., K] and [.., N] -> [.., K, N]."""
        first, last = (tuple(v.dims[2:]) if isinstance(v, Value) else v.shape for v in (a, b))
        return self.pointwise("mul", self.shaped(a, (*first, 1)), self.shaped(b, (*last[:-1], 1, last[-1])))

    def chosen(self, e: ast.Call, label: str):
        """where(a < b, x, y)."""
        test = e.args[0]
        x, y = (self.of(v) for v in e.args[1:])
        if {id(test.left), id(test.comparators[0])} <= self.found.nodes:
            chosen = self.integers.compared(test)
            if not isinstance(chosen, Value):
                return x if chosen else y
            rank = max(len(v.dims) - 2 if isinstance(v, Value) else v.ndim for v in (chosen, x, y))
            return self.w.add("where", *(self.live(v, rank) for v in (chosen, x, y)), label=label)
        a, b = (self.of(v) for v in (test.left, test.comparators[0]))
        if not any(isinstance(v, Value) for v in (a, b, x, y)):
            return np.where(binary(COMPARISONS[type(test.ops[0])], a, b), x, y)
        rank = max(len(v.dims) - 2 if isinstance(v, Value) else v.ndim for v in (a, b, x, y))
        a, b, x, y = (self.live(v, rank) for v in (a, b, x, y))
        return self.w.add("where", self.w.binary(COMPARISONS[type(test.ops[0])], a, b, label=label), x, y, label=label)

    def reduced(self, x: Value, name: str, axis: int | None, label: str) -> Value:
        """The sum, mean, largest or smallest over the last features, of which one is left, or over one axis."""
        at = len(x.dims) - 1 if axis is None else axis + (2 if axis >= 0 else len(x.dims))
        return self.w.add("reduce", x, label=label, fn=REDUCTIONS[name], axes=(at,), keepdims=axis is None)

    def call(self, e: ast.Call):
        name = e.func.id
        if name == "prev":
            return self.ago[e.args[0].id, e.args[1].value if len(e.args) > 1 else 1]
        label = f"{self.target}.{name}"
        if name == "where":
            return self.chosen(e, label)
        operands = [self.of(a) for a in (e.args[:1] if name in ("reshape", *REDUCTIONS) else e.args)]
        if name == "reshape":
            return self.shaped(operands[0], tuple(whole(a) for a in e.args[1:]))
        if name == "outer":
            return self.outer(*operands)
        if name == "clip":
            return self.pointwise("min", self.pointwise("max", *operands[:2]), operands[2])
        if name in ACTIVATIONS:
            fn, alpha, beta = ACTIVATIONS[name]
            x = operands[0]
            return self.w.unary(fn, x, alpha, beta, label) if isinstance(x, Value) else unary(fn, x, alpha, beta)
        if name in ("max", "min"):
            return self.pointwise(name, *operands)
        if name == "concat":
            return self.concat(operands, label)
        x = operands[1] if name == "conv1d" else operands[0]
        if not isinstance(x, Value):
            raise ModelFormatError(f"{ast.unparse(e):.60}: {name} of arrays alone; compute it beforehand")
        if name == "conv1d":
            return self.convolution(operands[0], x, label)
        last = len(x.dims) - 1
        if name in REDUCTIONS:
            return self.reduced(x, name, whole(e.args[1]) if len(e.args) > 1 else None, label)
        if name == "norm":
            rows = [
                self.w.constant(np.broadcast_to(v, x.dims[last:]), f"{label}.{k}") for k, v in enumerate(operands[1:])
            ]
            return self.w.add("layer_norm", x, *rows, label=label, axis=last, epsilon=epsilon_of(e))
        return self.w.add("softmax", x, label=label, axis=last, log=name == "log_softmax")

    def concat(self, operands: list, label: str):
        if not any(isinstance(v, Value) for v in operands):
            return np.concatenate(operands, -1)
        parts = []
        for operand in operands:
            if not isinstance(operand, Value):
                operand = self.w.add(
                    "expand", self.live(operand, operand.ndim), label=label, dims=(TIME, BATCH, *operand.shape)
                )
            parts.append(operand)
        return self.w.concat(parts, len(parts[0].dims) - 1)

    def convolution(self, weight: np.ndarray, x: Value, label: str) -> Value:
        """A convolution over the last axis that keeps its length: zeros on both sides, an odd one at the end."""
        flat = weight.ndim == 1
        weight = weight.reshape(1, 1, -1) if flat else weight
        time, batch, length = x.dims[0], x.dims[1], x.dims[-1]
        rows = self.w.add("reshape", x, label=f"{label}.rows", dims=(time * batch, weight.shape[1], length))
        around = weight.shape[2] - 1
        made = self.w.add(
            "conv", rows, self.w.constant(weight, f"{label}.W"), label=label, strides=(1,), dilations=(1,),
            pads=(around // 2, around - around // 2), groups=1,
        )  # fmt: skip
        features = (length,) if flat else (weight.shape[0], length)
        return self.w.add("reshape", made, label=f"{label}.steps", dims=(time, batch, *features))


def _is_product(e: ast.expr) -> bool:
    return isinstance(e, ast.BinOp) and isinstance(e.op, ast.MatMult)


def _terms(e: ast.expr, sign: float, kept: set[int]):
    """(sign, term) of each term of a sum. A sum of whole numbers is one term: it is exact."""
    if id(e) in kept:
        yield sign, e
    elif isinstance(e, ast.BinOp) and isinstance(e.op, ast.Add | ast.Sub):
        yield from _terms(e.left, sign, kept)
        yield from _terms(e.right, sign if isinstance(e.op, ast.Add) else -sign, kept)
    elif isinstance(e, ast.UnaryOp):
        yield from _terms(e.operand, -sign if isinstance(e.op, ast.USub) else sign, kept)
    else:
        yield sign, e
