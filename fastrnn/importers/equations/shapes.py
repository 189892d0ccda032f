"""The features of every value of a system of equations."""

from __future__ import annotations

import ast
import math

from ...errors import ShapeError
from ...graph.shapes import broadcast
from .grammar import ACTIVATIONS, REDUCTIONS, System, ends, is_fixed, whole

Shape = tuple[int, ...]


class Shapes:
    """name -> shape of the features of every input and assigned value.

    An unknown shape (None) broadcasts to anything, so `c = f * prev(c) + i * g` learns the shape of c from f. A product
    with an array implies the shape of its operand. All equations are visited repeatedly until nothing new is learnt; by
    then every known shape has been checked against every use.
    """

    def __init__(self, system: System):
        self.system = system
        self.found: dict[str, Shape | None] = dict(system.inputs)
        self.found |= {equation.name: None for equation in system.equations}
        self.where = ""
        self.settle()
        counters = [n for n in system.remembered if self.found[n] is None and n not in system.inputs]
        for name in counters:  # made only of numbers and its own past: itself a number
            if self.found[name] is None:
                self.found[name] = ()
                self.settle()
        unknown = [name for name, shape in self.found.items() if shape is None]
        if unknown:
            hint = f"; give inputs={{{unknown[0]!r}: size}}" if unknown[0] in system.inputs else ""
            raise ShapeError(f"no equation gives the size of {', '.join(unknown)}{hint}")
        for equation in system.equations:
            self.where, made = equation.where, self.of(equation.expression)
            if made != self.found[equation.name]:
                raise self.fail(
                    f"{equation.name} has the features {list(made)} here, {self.found[equation.name]} where it is used"
                )

    def settle(self) -> None:
        """Visit all equations until nothing new is learnt."""
        for _ in range(2 * len(self.found) + 2):
            before = dict(self.found)
            for equation in self.system.equations:
                self.where = equation.where
                self.learn(equation.name, self.of(equation.expression))
            if before == self.found:
                return

    def fail(self, text: str) -> ShapeError:
        return ShapeError(f"{self.where}: {text}")

    def learn(self, name: str, shape: Shape | None) -> None:
        """Record a shape. Shapes only grow: from unknown, or by broadcasting as more of their parts become known."""
        known = self.found[name]
        if shape is None or known == shape:
            return
        if known is None or (name not in self.system.inputs and self.join(known, shape, name) == shape):
            self.found[name] = shape
        elif name in self.system.inputs:
            raise self.fail(f"{name} has the features {list(known)} elsewhere, here {list(shape)}")

    def join(self, a: Shape, b: Shape, text: str) -> Shape:
        try:
            return broadcast(a, b)
        except ShapeError:
            raise self.fail(f"{text}: features {list(a)} and {list(b)} don't go together") from None

    def of(self, e: ast.expr) -> Shape | None:
        """The features of an expression, as far as known."""
        if isinstance(e, ast.Constant):
            return ()
        if isinstance(e, ast.Name):
            return self.system.arrays[e.id].shape if e.id in self.system.arrays else self.found[e.id]
        if isinstance(e, ast.UnaryOp):
            return self.of(e.operand)
        if isinstance(e, ast.Subscript):
            return self.cut(self.of(e.value), e)
        if isinstance(e, ast.Call):
            return self.call(e)
        if isinstance(e.op, ast.MatMult):
            return self.product(e)
        if isinstance(e.op, ast.Pow):
            return self.of(e.left)
        return self.elementwise([self.of(e.left), self.of(e.right)], ast.unparse(e))

    def elementwise(self, shapes: list, text: str) -> Shape | None:
        known = [s for s in shapes if s is not None]
        if not known:
            return None
        if len(known) < len(shapes) and all(s == () for s in known):
            return None  # numbers with something unknown
        made = known[0]
        for shape in known[1:]:
            made = self.join(made, shape, f"{text:.40}")
        return made

    def cut(self, shape: Shape | None, e: ast.Subscript) -> Shape | None:
        if shape is None:
            return None
        start, stop = ends(e.slice, shape[-1] if shape else 0)
        if not shape or not 0 <= start < stop <= shape[-1]:
            raise self.fail(f"{ast.unparse(e):.40}: the features are {list(shape)}")
        return (*shape[:-1], stop - start)

    def product(self, e: ast.BinOp) -> Shape | None:
        left, right = self.of(e.left), self.of(e.right)
        fixed = [is_fixed(side, self.system) for side in (e.left, e.right)]
        text = f"{ast.unparse(e):.40}"
        if not any(fixed):
            return self.live_product(left, right, text)
        matrix = left if fixed[0] else right
        if len(matrix) not in (1, 2):
            raise self.fail(f"{text}: an array with axes {list(matrix)}; @ takes [out, in] or [in]")
        inner = matrix[-1] if fixed[0] else matrix[0]
        other, operand = (right, e.right) if fixed[0] else (left, e.left)
        if other is None:
            self.require(operand, (inner,))
            other = (inner,)
        axis = max(len(other) - 2, 0) if fixed[0] else len(other) - 1
        if not other or other[axis] != inner:
            raise self.fail(f"{text}: {list(left or other)} @ {list(right or other)}: {inner} is expected, got "
                            f"{other[axis] if other else 'a single number'}")  # fmt: skip
        out = () if len(matrix) == 1 else (matrix[0],) if fixed[0] else (matrix[1],)
        return (*other[:axis], *out, *other[axis + 1 :])

    def live_product(self, left: Shape | None, right: Shape | None, text: str) -> Shape | None:
        """A product of two values: a row [.., K] with a matrix [.., K, N], a matrix with a column, or two matrices."""
        if left is None or right is None:
            return None
        row, column = len(left) == len(right) - 1, len(left) == len(right) + 1
        a = (*left[:-1], 1, left[-1]) if row else left
        b = (*right, 1) if column else right
        if not left or not right or len(a) != len(b) or len(a) < 2 or a[-1] != b[-2]:
            raise self.fail(
                f"{text}: {list(left)} @ {list(right)}: of two values, @ takes [.., K] @ [.., K, N], "
                f"[.., M, K] @ [.., K] or [.., M, K] @ [.., K, N]; for the sum of products write sum(a * b)"
            )
        front = self.join(a[:-2], b[:-2], text)
        return (*front, *(() if row else a[-2:-1]), *(() if column else b[-1:]))

    def require(self, e: ast.expr, shape: Shape) -> None:
        """Require an expression to have these features, and learn the shapes of its names from that."""
        if isinstance(e, ast.Name) and e.id in self.found:
            self.learn(e.id, shape)
        elif isinstance(e, ast.UnaryOp):
            self.require(e.operand, shape)
        elif isinstance(e, ast.Call) and (e.func.id == "prev" or e.func.id in ACTIVATIONS):
            self.require(e.args[0], shape)
        elif isinstance(e, ast.Call) and e.func.id == "concat":
            known = [self.of(a) for a in e.args]
            unknown = [a for a, s in zip(e.args, known, strict=True) if s is None]
            rest = shape[-1] - sum(s[-1] for s in known if s)
            if len(unknown) == 1 and rest > 0:
                self.require(unknown[0], (*shape[:-1], rest))

    def call(self, e: ast.Call) -> Shape | None:
        name, text = e.func.id, f"{ast.unparse(e):.40}"
        if name == "where":
            compared = [self.of(e.args[0].left), self.of(e.args[0].comparators[0])]
            return self.elementwise([self.elementwise(compared, text), *(self.of(a) for a in e.args[1:])], text)
        alone = name in ("prev", "reshape", *REDUCTIONS)
        shapes = [self.of(a) for a in (e.args[:1] if alone else e.args)]
        if name == "reshape":
            return self.reshaped(shapes[0], tuple(whole(a) for a in e.args[1:]), text)
        if name == "outer":
            return self.outer(*shapes, text)
        if name in ("max", "min", "clip"):
            return self.elementwise(shapes, text)
        if name == "conv1d":
            return self.convolution(shapes, e, text)
        if name == "concat":
            return self.joined(shapes, text)
        shape = shapes[0]
        if name in ("softmax", "log_softmax", "norm", *REDUCTIONS) and shape == ():
            raise self.fail(f"{text}: {name} is over features, and here is a single number")
        if name in REDUCTIONS and shape is not None:
            if len(e.args) == 1:
                return (*shape[:-1], 1)
            axis = whole(e.args[1])
            if not -len(shape) <= axis < len(shape):
                raise self.fail(f"{text}: axis {axis} of the features {list(shape)}")
            return (*shape[:axis], *shape[axis % len(shape) + 1 :])
        if name == "norm":
            for k, (argument, extra) in enumerate(zip(e.args[1:], shapes[1:], strict=True), 2):
                if not is_fixed(argument, self.system) or (shape is not None and extra not in ((), (1,), shape[-1:])):
                    raise self.fail(f"{text}: argument {k} must be an array of the {list(shape or ())[-1:]} features")
        return shape

    def reshaped(self, shape: Shape | None, new: Shape, text: str) -> Shape | None:
        if any(n < 1 for n in new) or (shape is not None and math.prod(shape) != math.prod(new)):
            raise self.fail(f"{text}: the features {list(shape or ())} can't be put into {list(new)}")
        return new

    def outer(self, a: Shape | None, b: Shape | None, text: str) -> Shape | None:
        if a == () or b == ():
            raise self.fail(f"{text}: outer takes features [.., K] and [.., N], and here is a single number")
        if a is None or b is None:
            return None
        return self.join((*a, 1), (*b[:-1], 1, b[-1]), text)

    def joined(self, shapes: list, text: str) -> Shape | None:
        if any(s == () for s in shapes):
            raise self.fail(f"{text}: concat of a single number")
        if any(s is None for s in shapes):
            return None
        if any(s[:-1] != shapes[0][:-1] for s in shapes):
            raise self.fail(f"{text}: features {', '.join(str(list(s)) for s in shapes)} don't line up")
        return (*shapes[0][:-1], sum(s[-1] for s in shapes))

    def convolution(self, shapes: list, e: ast.Call, text: str) -> Shape | None:
        weight, x = shapes
        if not is_fixed(e.args[0], self.system) or weight is None or len(weight) not in (1, 3) or 0 in weight:
            raise self.fail(f"{text}: weights are an array [width], or [out, in, width] for features [in, length]")
        if x is None:
            return None
        if len(weight) == 1:
            if len(x) != 1:
                raise self.fail(f"{text}: weights [width] take features [length], got {list(x)}")
            return x
        channels = x[0] if len(x) == 2 else 1
        if len(x) not in (1, 2) or channels != weight[1]:
            raise self.fail(f"{text}: weights {list(weight)} take features [{weight[1]}, length], got {list(x)}")
        return (weight[0], x[-1])
