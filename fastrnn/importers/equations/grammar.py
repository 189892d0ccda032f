"""The grammar: assignments of expressions, read by Python's own parser and checked against a short list.

Allowed are names, numbers, `+ - * / % @`, unary minus, integer powers, slices of features with integers, and calls of
`FUNCTIONS`; a comparison is the first argument of `where`. `parse` refuses everything else.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping, Sequence

import numpy as np

from ...errors import ModelFormatError
from ...graph.casts import as_float32, check_list
from ...records import dataclass
from ..shared.ledger import ReadLedger

MAX_TEXT, MAX_LINES, MAX_DEPTH, MAX_AGO, MAX_POWER = 20_000, 500, 60, 64, 16
EPSILON = 1e-5  # of norm, if the equation names none: as in the layer norm of PyTorch and ONNX

# Name in an equation -> (function of graph.UNARY, alpha, beta)
ACTIVATIONS = {
    name: (name, 0.0, 0.0) for name in "sigmoid tanh relu softplus softsign gelu silu mish exp log sqrt abs".split()
}
ACTIVATIONS |= {name: (name, 0.0, 0.0) for name in "sign floor ceil round erf sin cos".split()}
ACTIVATIONS |= {"elu": ("elu", 1.0, 0.0), "selu": ("selu", 1.6732632423543772, 1.0507009873554805)}
ACTIVATIONS |= {"swish": ("silu", 0.0, 0.0), "leaky_relu": ("leaky_relu", 0.01, 0.0)}
COMPARISONS = {ast.Lt: "less", ast.LtE: "less_equal", ast.Gt: "greater", ast.GtE: "greater_equal", ast.Eq: "equal"}
# Over the features, or along one axis of them, which is then gone: function -> that of `reduce`
REDUCTIONS = {"sum": "sum", "mean": "mean", "amax": "max", "amin": "min"}
OPERATORS = {ast.Add: "add", ast.Sub: "sub", ast.Mult: "mul", ast.Div: "div", ast.Mod: "mod"}
# Functions that may be called: name -> (fewest arguments, most); `epsilon` may be passed by name.
FUNCTIONS = {
    **dict.fromkeys(ACTIVATIONS, (1, 1)),
    "prev": (1, 2),
    "conv1d": (2, 2),
    "softmax": (1, 1),
    "log_softmax": (1, 1),
    "norm": (1, 3),
    **dict.fromkeys(REDUCTIONS, (1, 2)),
    "outer": (2, 2),
    "reshape": (2, 9),
    "where": (3, 3),
    "clip": (3, 3),
    "concat": (1, 64),
    "max": (2, 2),
    "min": (2, 2),
}


@dataclass(frozen=True)
class Equation:
    """name = expression; `where` identifies it in messages."""

    name: str
    expression: ast.expr
    where: str


@dataclass(frozen=True)
class System:
    """Equations in order, the arrays they use, and input name -> shape of features (None: to be inferred).

    remembered : name -> the largest n of its prev(name, n).
    """

    equations: tuple[Equation, ...]
    arrays: dict[str, np.ndarray]
    inputs: dict[str, tuple | None]
    remembered: dict[str, int]


def parse(text: str, arrays: Mapping[str, object], inputs) -> System:
    """Read and check equations. Raises ModelFormatError that says which equation, what is wrong, and what is
    allowed."""
    if not isinstance(text, str) or len(text) > MAX_TEXT:
        raise ModelFormatError(f"equations are text of at most {MAX_TEXT} characters, got {type(text).__name__}")
    try:
        tree = ast.parse(inspect.cleandoc(text))
    except SyntaxError as error:
        raise ModelFormatError(
            f"equation in line {error.lineno}: {error.msg}: {(error.text or '').strip()!r}"
        ) from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise ModelFormatError(f"equations: {error or type(error).__name__}") from None
    if not 0 < len(tree.body) <= MAX_LINES:
        raise ModelFormatError(f"{len(tree.body)} equations; at most {MAX_LINES} are supported")
    given = {name: as_array(name, value) for name, value in arrays.items()}
    reader = _Reader(given, _shapes_of(inputs))
    equations = tuple(reader.equation(line) for line in tree.body)
    return reader.system(equations)


def as_array(name: str, value) -> np.ndarray:
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ModelFormatError(f"array {name}: {error}") from None
    if array.dtype.kind not in "fiub":
        raise ModelFormatError(f"array {name} is of {array.dtype}; numbers are needed")
    check_list(value, f"array {name}", ModelFormatError)
    return as_float32(array, f"array {name}", ModelFormatError).astype(np.float64)


def _shapes_of(inputs) -> dict[str, tuple | None]:
    """inputs= as name -> shape of features, None if it must be inferred."""
    if inputs is None:
        return {"x": None}
    if isinstance(inputs, str):
        inputs = (inputs,)
    if not isinstance(inputs, Mapping):
        inputs = dict.fromkeys(inputs)
    shapes: dict[str, tuple | None] = {}
    for name, size in inputs.items():
        shape = size if size is None else tuple(size) if isinstance(size, Sequence) else (size,)
        if not isinstance(name, str) or (shape is not None and not all(type(n) is int and n > 0 for n in shape)):
            raise ModelFormatError(f"inputs= names each input with its size or shape, got {name!r}: {size!r:.40}")
        shapes[name] = shape
    return shapes


class _Reader:
    """Checks the equations one by one, so that later stages need no checks of their own."""

    def __init__(self, arrays: dict[str, np.ndarray], inputs: dict[str, tuple | None]):
        self.arrays, self.inputs = arrays, inputs
        self.assigned: list[str] = []
        self.ledger = ReadLedger([*arrays, *inputs])
        self.remembered: dict[str, tuple[int, str]] = {}  # with the equation that uses it
        self.where = ""

    def fail(self, text: str) -> ModelFormatError:
        return ModelFormatError(f"{self.where}: {text}")

    def equation(self, line: ast.stmt) -> Equation:
        source = ast.unparse(line) if _depth(line) <= MAX_DEPTH else "(nested too deep)"
        self.where = f"equation {len(self.assigned) + 1} ({source:.60})"
        if _depth(line) > MAX_DEPTH:
            raise self.fail(f"nested deeper than {MAX_DEPTH}")
        targets = line.targets if isinstance(line, ast.Assign) else []
        if len(targets) != 1 or not isinstance(targets[0], ast.Name):
            raise self.fail("expected name = expression")
        name = targets[0].id
        if name in self.arrays or name in self.inputs or name in FUNCTIONS:
            what = "an array" if name in self.arrays else "an input" if name in self.inputs else "a function"
            raise self.fail(f"{name} is {what} already")
        if name in self.assigned:
            raise self.fail(f"{name} is assigned twice; give the second value a name of its own")
        self.check(line.value)
        self.assigned.append(name)
        return Equation(name, line.value, self.where)

    def check(self, e: ast.expr) -> None:
        """Raise for anything that is not in the grammar."""
        if isinstance(e, ast.Constant):
            if type(e.value) not in (int, float) or not abs(e.value) < 1e30:
                raise self.fail(f"{e.value!r:.40} is not a number that fits float32")
        elif isinstance(e, ast.Name):
            self.name(e.id)
        elif isinstance(e, ast.UnaryOp) and isinstance(e.op, ast.USub | ast.UAdd):
            self.check(e.operand)
        elif isinstance(e, ast.BinOp) and (type(e.op) in OPERATORS or isinstance(e.op, ast.MatMult)):
            self.check(e.left)
            self.check(e.right)
        elif isinstance(e, ast.BinOp) and isinstance(e.op, ast.Pow):
            power = e.right.value if isinstance(e.right, ast.Constant) else None
            if type(power) is not int or not 1 <= power <= MAX_POWER:
                raise self.fail(f"a power is a whole number from 1 to {MAX_POWER}, got {ast.unparse(e.right):.40}")
            self.check(e.left)
        elif isinstance(e, ast.Subscript):
            self.slice(e.slice)
            self.check(e.value)
        elif isinstance(e, ast.Call):
            self.call(e)
        else:
            raise self.fail(f"{ast.unparse(e):.40} is not part of the grammar: + - * / % @, functions, names, numbers")

    def name(self, name: str) -> None:
        if name in self.assigned or name in self.arrays or name in self.inputs:
            self.ledger.read(name)
            return
        if name in FUNCTIONS:
            raise self.fail(f"{name} is a function: write {name}(...)")
        raise self.fail(
            f"{name} is neither a given array ({', '.join(sorted(self.arrays)) or 'none was'}) nor assigned "
            f"before; its value one step ago is prev({name}); another input of the model is inputs={{{name!r}: size}}"
        )

    def slice(self, s: ast.expr) -> None:
        parts = [s.lower, s.upper] if isinstance(s, ast.Slice) and s.step is None else [None]
        ends = [p.value if isinstance(p, ast.Constant) else p for p in parts]
        if len(ends) != 2 or any(p is not None and (type(p) is not int or p < 0) for p in ends):
            raise self.fail(f"[{ast.unparse(s):.40}]: features are cut as [start:stop] with whole numbers")

    def call(self, e: ast.Call) -> None:
        name = e.func.id if isinstance(e.func, ast.Name) else None
        if name not in FUNCTIONS:
            known = ", ".join(sorted(FUNCTIONS))
            raise self.fail(f"{ast.unparse(e.func):.40} is not a function that is known here: {known}")
        least, most = FUNCTIONS[name]
        epsilon = epsilon_of(e)
        if not least <= len(e.args) <= most or (e.keywords and epsilon is None):
            given = f"{len(e.args)} arguments" + "".join(f", {k.arg}=" for k in e.keywords)
            takes = f"{least}" if least == most else f"{least} to {most}"
            raise self.fail(f"{name} takes {takes} arguments{' and epsilon=number' * (name == 'norm')}, got {given}")
        if name != "prev":
            for k, argument in enumerate(e.args):
                if name == "where" and k == 0:
                    self.comparison(argument)
                elif k and name in (*REDUCTIONS, "reshape"):
                    if whole(argument) is None:
                        raise self.fail(
                            f"{name} takes whole numbers after the first argument, got {ast.unparse(e):.40}"
                        )
                else:
                    self.check(argument)
            return
        ago = (
            e.args[1].value if len(e.args) > 1 and isinstance(e.args[1], ast.Constant) else 1 if len(e.args) == 1 else 0
        )
        if not isinstance(e.args[0], ast.Name) or type(ago) is not int or not 1 <= ago <= MAX_AGO:
            raise self.fail(f"prev takes a name and how many steps ago, 1 to {MAX_AGO}; got {ast.unparse(e):.40}")
        known = self.remembered.get(e.args[0].id, (0, ""))
        self.remembered[e.args[0].id] = max(known, (ago, self.where))
        self.ledger.read(e.args[0].id)

    def comparison(self, e: ast.expr) -> None:
        """Check the first argument of `where`."""
        if not isinstance(e, ast.Compare) or len(e.ops) != 1 or type(e.ops[0]) not in COMPARISONS:
            raise self.fail(f"where takes one comparison (< <= > >= ==) first, got {ast.unparse(e):.40}")
        self.check(e.left)
        self.check(e.comparators[0])

    def system(self, equations: tuple[Equation, ...]) -> System:
        for name, (_, where) in self.remembered.items():
            if name not in self.assigned and name not in self.inputs:
                what = "an array, the same at every step" if name in self.arrays else "never assigned"
                raise ModelFormatError(f"{where}: prev({name}), but {name} is {what}")
        for what, names in (("array", self.arrays), ("input", self.inputs)):
            unused = sorted(set(names).intersection(self.ledger.left()))
            if unused:
                raise ModelFormatError(f"no equation uses the {what} {', '.join(unused)}")
        remembered = {name: ago for name, (ago, _) in self.remembered.items()}
        return System(equations, self.arrays, self.inputs, remembered)


def whole(e: ast.expr) -> int | None:
    """A whole number, which may be negative; None for anything else."""
    sign, e = (-1, e.operand) if isinstance(e, ast.UnaryOp) and isinstance(e.op, ast.USub) else (1, e)
    return sign * e.value if isinstance(e, ast.Constant) and type(e.value) is int and e.value < 1 << 31 else None


def _depth(tree: ast.AST) -> int:
    """The nesting depth of expressions."""
    deepest, stack = 0, [(tree, 1)]
    while stack:
        node, depth = stack.pop()
        deepest = max(deepest, depth)
        stack += [(child, depth + 1) for child in ast.iter_child_nodes(node)]
    return deepest


def epsilon_of(e: ast.Call) -> float | None:
    """The epsilon of a norm; None if its keywords are invalid."""
    if not e.keywords:
        return EPSILON
    value = e.keywords[0].value
    good = len(e.keywords) == 1 and e.keywords[0].arg == "epsilon" and e.func.id == "norm"
    if good and isinstance(value, ast.Constant) and type(value.value) in (int, float) and 0 <= value.value < 1:
        return float(value.value)
    return None


def output_names(outputs, system: System) -> tuple[str, ...]:
    """The names of the outputs; by default the last name assigned."""
    known = [equation.name for equation in system.equations]
    names = (known[-1],) if outputs is None else (outputs,) if isinstance(outputs, str) else tuple(outputs)
    wrong = [name for name in names if name not in known]
    if wrong or not names or len(set(names)) != len(names):
        raise ModelFormatError(f"outputs= {names} must be some of the assigned names, each once: {', '.join(known)}")
    return names


def ends(s: ast.expr, size: int) -> tuple[int, int]:
    """start and stop of a slice of features."""
    return (0 if s.lower is None else s.lower.value), (size if s.upper is None else s.upper.value)


def is_fixed(e: ast.expr, system: System) -> bool:
    """Whether an expression uses only arrays and numbers, so that it is the same at every step."""
    if isinstance(e, ast.Call) and e.func.id == "prev":
        return False
    if isinstance(e, ast.Name):
        return e.id in system.arrays
    called = e.func if isinstance(e, ast.Call) else None
    return all(is_fixed(c, system) for c in ast.iter_child_nodes(e) if isinstance(c, ast.expr) and c is not called)
