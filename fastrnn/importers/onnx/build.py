"""The graph under construction, which operator handlers write to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fractions import Fraction

import numpy as np

from ...errors import ModelFormatError
from ...graph import DTYPES, Graph, Node, Value
from ...graph import dims as D
from ...graph.casts import check_float32
from ...graph.dims import Dim
from ...graph.shapes import infer
from ..shared.ledger import Finding
from .reading.nodes import OnnxNode, reads
from .reading.values import Collected, Const, Fill, Growing, Ints, Items, Live, Quantized, Widen, simplest
from .sizes.positions import counted, exact_size, thaw_masks
from .sizes.symbols import SymbolTable

# Most elements of one value, counting only fixed dims: 2 Gi. No real model exceeds it; hostile files are refused here.
MAX_ELEMENTS = 1 << 31
_SAMPLE = 256  # elements of a constant that are compared first


def _least(dim) -> int:
    """The value of a dim if all sizes are one: a factor that a hostile file may have chosen."""
    if isinstance(dim, int):
        return dim
    return max(1, sum(coefficient for coefficient in dim.terms.values()))


class GraphDraft:
    """Collects the nodes, values and constants of one walk.

    table : SymbolTable of the file. taken : names that the file uses, which generated names must avoid.
    double_as_float : compute float64 in float32.
    """

    def __init__(self, table: SymbolTable, taken: set[str], double_as_float: bool):
        self.table, self.taken, self.double_as_float = table, set(taken), double_as_float
        self.nodes: list[list] = []  # [op, label, inputs, outputs, attrs]: lists, since outputs are still renamed
        self.values: dict[str, Value] = {}
        self.constants: dict[str, np.ndarray] = {}
        self.labels: set[str] = set()
        self.label = "graph"
        self.half = False
        self.by_torch = False  # whether a PyTorch exporter wrote the file
        self.cells = 0
        self.in_body = 0  # depth of the loop bodies that are being read
        self.one_row: dict[str, int] = {}  # their values that begin as one row -> how many rows the file gives them
        self._sized: dict[str, list[str]] = {}  # name of a symbol -> values that have it in their dims
        self._shared: dict[tuple, list[tuple[str, np.ndarray]]] = {}  # dtype, shape, sample -> constants
        self._positions: dict[object, Live] = {}
        self._numbers: dict[tuple, Live] = {}
        self._whole: dict[tuple, Live] = {}
        self.readers: dict[str, dict[int, OnnxNode | None]] = {}  # value -> the nodes that read it; None: an output
        self.sizes: dict[str, tuple[Dim, Fraction]] = {}  # float values that are a size times a number

    # --- names and dtypes ----------------------------------------------------------------------------------------

    def fresh(self, base: str) -> str:
        """A value name that is not in use."""
        name, k = base, 1
        while name in self.taken:
            name, k = f"{base}.{k}", k + 1
        self.taken.add(name)
        return name

    def dtype(self, dtype) -> str:
        """The graph's dtype for a NumPy dtype of the file. float16 computes in float32; float64 only if requested."""
        name = np.dtype(dtype).name
        if name == "float16":
            self.half = True
            return "float32"
        if name == "float64":
            if self.double_as_float:
                return "float32"
            raise Finding("computes in float64 (double); load it with float64_as_float32=True to compute in float32")
        if name not in DTYPES:
            raise Finding(f"values of dtype {name}")
        return name

    def kind(self, value) -> str:
        """The graph's dtype of an abstract value."""
        if isinstance(value, Live):
            return value.dtype
        if isinstance(value, Quantized):
            return self.dtype(value.dtype)
        if isinstance(value, Ints):
            return "int64"
        return self.dtype(value.dtype if isinstance(value, Fill) else value.array.dtype)

    def declare(self, name: str, dtype, dims: tuple) -> Live:
        """An input of the graph."""
        value = self._note(Value(name, self.dtype(dtype), dims))
        return Live(name, value.dtype, dims)

    def note_readers(self, nodes: list[OnnxNode], outputs: Iterable[str]) -> None:
        """Add nodes, and the outputs of their graph, to `readers`."""
        for node in nodes:
            for name in reads(node):
                self.readers.setdefault(name, {})[id(node)] = node
        for name in outputs:
            self.readers.setdefault(name, {})[0] = None

    @contextmanager
    def trial(self) -> Iterator[int]:
        """Nodes that are made inside are removed at the end; gives the place of the first."""
        mark, labels, label = len(self.nodes), set(self.labels), self.label
        memos = [self._positions, self._numbers, self.sizes, self._whole]
        kept = [dict(memo) for memo in memos]
        try:
            yield mark
        finally:
            del self.nodes[mark:]
            self.labels, self.label = labels, label
            self._positions, self._numbers, self.sizes, self._whole = kept

    # --- sizes that change during a walk ---------------------------------------------------------------------------

    def _note(self, value: Value) -> Value:
        self.values[value.name] = value
        for name in {n for d in value.dims if isinstance(d, Dim) for n in D.symbols(d)}:
            self._sized.setdefault(name, []).append(value.name)
        return value

    def refresh(self) -> None:
        """Make everything that the draft holds current, after the table has learned something."""
        now = self.table.current
        for symbol in self.table.moved():
            for name in self._sized.pop(symbol, ()):
                old = self.values.get(name)
                if old is not None:
                    self._note(Value(name, old.dtype, tuple(map(now, old.dims))))
        self.sizes = {name: (now(dim), factor) for name, (dim, factor) in self.sizes.items()}
        self._positions.clear()
        self._whole.clear()
        self._numbers = {(now(dim), dtype): value for (dim, dtype), value in self._numbers.items()}

    def current(self, value):
        """An abstract value of an earlier node, with current sizes."""
        if not self.table.dirty or value is None:
            return value
        now = self.table.current
        if isinstance(value, Live):
            dims = tuple(map(now, value.dims))
            return value if dims == value.dims else Live(value.name, value.dtype, dims)
        if isinstance(value, Fill):
            return Fill(now(value.value), value.dtype, tuple(map(now, value.dims)))
        if isinstance(value, Ints):
            return simplest(np.frompyfunc(now, 1, 1)(value.array))
        if isinstance(value, Quantized):
            return Quantized(self.current(value.value), value.dtype, value.rounded)
        if isinstance(value, Items):
            return Items(self.current(value.source), value.axis, value.keepdims)
        if isinstance(value, Growing):
            return Growing(tuple(map(self.current, value.before)), tuple(map(self.current, value.after)))
        return Collected(tuple(map(self.current, value.parts))) if isinstance(value, Collected) else value

    # --- making nodes --------------------------------------------------------------------------------------------

    def emit(self, op: str, inputs, attrs=None, wanted=(True,), suffix: str = "") -> list:
        """Append a node; returns one Live (or None) per entry of `wanted`. Inputs: abstract values or None."""
        attrs = dict(attrs or {})
        live = [None if v is None else self.live(v) for v in inputs]
        signatures = infer(op, [None if v is None else Value(v.name, v.dtype, v.dims) for v in live], attrs)
        outputs, names = [], []
        for want, (dtype, dims) in zip(wanted, signatures, strict=False):
            if not want:
                outputs.append(None)
                names.append(None)
                continue
            if any(isinstance(d, int) and d < 0 for d in dims):
                raise ModelFormatError(f"a negative size: {list(map(str, dims))}")
            if D.product(map(_least, dims)) > MAX_ELEMENTS:
                raise ModelFormatError(f"a value of {' x '.join(map(str, dims))} elements")
            name = self.fresh(f"{self.label}:{len(self.nodes)}")
            self._note(Value(name, dtype, tuple(dims)))
            outputs.append(Live(name, dtype, tuple(dims)))
            names.append(name)
        label, k = self.label + suffix, 2
        while label in self.labels:
            label, k = f"{self.label}{suffix}.{k}", k + 1
        self.labels.add(label)
        self.nodes.append([op, label, tuple(None if v is None else v.name for v in live), names, attrs])
        return outputs

    def one(self, op: str, *inputs, **attrs) -> Live:
        """Append a node with one output."""
        return self.emit(op, inputs, attrs)[0]

    def unary(self, fn: str, x, alpha: float = 0.0, beta: float = 0.0) -> Live:
        return self.one("unary", x, fn=fn, alpha=float(alpha), beta=float(beta))

    def live(self, value) -> Live:
        """Any abstract value as an edge of the graph: constants are stored, fills become an expand."""
        if isinstance(value, Live):
            return value
        if isinstance(value, Const):
            return self.constant(value.array)
        if isinstance(value, Fill):
            if isinstance(value.value, Dim):
                scalar = self.number_of(value.value, self.dtype(value.dtype))
            else:
                scalar = Const(np.array(value.value, dtype=value.dtype))
            return self.one("expand", scalar, dims=tuple(value.dims)) if value.dims else self.live(scalar)
        if isinstance(value, Ints):
            return self._sizes(value)
        if isinstance(value, Items | Collected | Growing):
            raise Finding("a sequence of tensors")
        if isinstance(value, Quantized):
            return self._integers(value)
        raise Finding("a value of an unknown kind")

    def _integers(self, value: Quantized) -> Live:
        """Integers that are held as float32, in their own dtype."""
        if not value.rounded:
            raise Finding("computes on values that DynamicQuantizeLinear would round")
        key = value.value.name, self.dtype(value.dtype)
        if key not in self._whole:
            self._whole[key] = self.one("cast", value.value, to=key[1])
        return self._whole[key]

    # --- sizes as values -------------------------------------------------------------------------------------------

    def positions(self, count, start=0) -> Live:
        """`count` numbers start, start + 1, .. as int64; both arguments may be sizes."""
        if not isinstance(count, Dim) and not isinstance(start, Dim):
            return self.constant(np.arange(start, start + count))
        if (count, start) not in self._positions:
            self._positions[count, start] = self.one("steps", dims=(count,), start=start)
        return self._positions[count, start]

    def number_of(self, dim, dtype: str = "int64") -> Live:
        """A size as a scalar value: the sum of that many ones, exact up to 2^24."""
        if not isinstance(dim, Dim):
            return self.live(Const(np.array(dim, DTYPES[dtype])))
        if (dim, dtype) not in self._numbers:
            if dtype == "float32":
                ones = self.one("expand", Const(np.ones((), np.float32)), dims=(dim,))
                value = self.one("reduce", ones, fn="sum", axes=(0,), keepdims=False)
                self.sizes[value.name] = (dim, Fraction(1))
            else:
                value = self.one("cast", self.number_of(dim, "float32"), to=dtype)
            self._numbers[dim, dtype] = value
        return self._numbers[dim, dtype]

    def known_numbers(self):
        """((size, dtype), value) of every size that was turned into a value."""
        return self._numbers.items()

    def _sizes(self, value: Ints) -> Live:
        """An array of sizes as an int64 value."""
        parts = [exact_size(self, v) for v in value.array.flat]
        if not value.dims:
            return parts[0]
        flat = self.concat([self.one("reshape", part, dims=(1,)) for part in parts], 0)
        return self.reshape(flat, value.dims)

    def constant(self, array: np.ndarray) -> Live:
        """A stored constant in the graph's dtype; one copy per array."""
        dtype = self.dtype(array.dtype)
        check_float32(array, "a constant", ModelFormatError) if dtype == "float32" else None
        array = np.asarray(array).astype(DTYPES[dtype], copy=False)
        bits = array.view(f"u{array.dtype.itemsize}")
        # Most walks are not the last one: large arrays are copied at the end, and told apart by some of their elements.
        alike = self._shared.setdefault((dtype, array.shape, bits.flat[:: max(1, array.size // _SAMPLE)].tobytes()), [])
        for name, other in alike:
            if array.size <= _SAMPLE or np.array_equal(bits, other):
                return Live(name, dtype, array.shape)
        name = self.fresh(f"{self.label}:c{len(self.constants)}")
        alike.append((name, bits))
        self.values[name], self.constants[name] = Value(name, dtype, array.shape), array
        return Live(name, dtype, array.shape)

    # --- constraints ---------------------------------------------------------------------------------------------

    def equal(self, a, b, reason: str) -> None:
        self.table.equal(a, b, reason)

    def number(self, dim, reason: str) -> int:
        """A dim that must be a plain int: freezes the symbols in it."""
        if isinstance(dim, Dim):
            self.table.freeze([dim], reason)
        return int(dim)

    def broadcast(self, values: list, what: str) -> list:
        """Make dims of abstract values agree as NumPy broadcasts them; returns the values, with constants cut if
        possible.

        A Dim whose example is 1 against another size was a real broadcast in the file, so it is frozen at 1. A constant
        that is uniform along an axis of the example's length follows the axis: it is cut to 1 there.
        """

        rank = max(len(v.dims) for v in values)
        values = [counted(self, v) for v in thaw_masks(self, list(values))]
        for i in range(rank):
            where = [(k, i - rank + len(v.dims)) for k, v in enumerate(values)]
            where = [(k, j) for k, j in where if j >= 0]
            sizes = [values[k].dims[j] for k, j in where]
            symbolic = [d for d in sizes if isinstance(d, Dim)]
            if not symbolic:
                self._note_brought(values, where)
                continue
            for (k, j), d in zip(where, sizes, strict=True):
                if isinstance(d, int) and d > 1:
                    values[k] = self._cut(values[k], j, symbolic[0])
            sizes = [values[k].dims[j] for k, j in where]
            sizes = [d for d in sizes if isinstance(d, Dim) or d != 1]
            ones = [d for d in sizes if isinstance(d, Dim) and self.table.example(d) == 1]
            if ones and len(ones) < len(sizes):
                self.table.freeze(ones, f"{what} broadcasts it")
            for d in sizes[1:]:
                self.equal(sizes[0], d, f"{what} needs sizes that are equal or 1")
        self._once(values, rank)
        return values

    def _note_brought(self, values: list, where: list) -> None:
        """Record in the ledger a constant that makes an axis of one longer, such as a table over a frozen length."""
        for k, j in where:
            length, others = values[k].dims[j], [values[m] for m, i in where if m != k]
            if (
                length > 1
                and isinstance(values[k], Const | Fill)
                and all(values[m].dims[i] == 1 for m, i in where if m != k)
            ):
                self.table.ledger.table(length, self.label, others)

    def _once(self, values: list, rank: int) -> None:
        """Reconsider a free size of one that meets itself on two axes: it is misplaced in one of the values."""
        seen: dict[Dim, int] = {}
        for v in values:
            for j, d in enumerate(v.dims, rank - len(v.dims)):
                if isinstance(d, Dim) and seen.setdefault(d, j) != j:
                    self.table.reconsider(self.table.of(d))

    def _cut(self, value, axis: int, like: Dim):
        """Cut a constant to 1 along an axis, if it is uniform there and as long as the example of `like`."""
        if isinstance(value, Const) and value.dims[axis] == self.table.example(like):
            first = value.array.take([0], axis=axis)
            if (value.array == first).all():
                self.table.notes.setdefault(f"cut {self.label}", f"{self.label}: a constant follows the free size")
                return Const(first)
        if isinstance(value, Fill) and value.dims[axis] == self.table.example(like):
            return Fill(value.value, value.dtype, (*value.dims[:axis], 1, *value.dims[axis + 1 :]))
        return value

    def alike(self, values: list, axis: int, size, reason: str) -> list:
        """Values whose `axis` must have length `size`. A constant that is uniform along it follows a free size.
        Raises Widen for a carried value that begins as one row."""
        out = []
        for value in values:
            example = self.table.example(size) if isinstance(size, Dim) else None
            one_row = axis == 0 and isinstance(value, Live) and value.dims[0] == 1
            if one_row and self.one_row.get(value.name, -1) == example:
                raise Widen(value.name, size)
            if isinstance(value, (Const, Fill)) and value.dims[axis] == example:
                value = self._cut(value, axis, size)
                if value.dims[axis] == 1:
                    value = self.one("expand", value, dims=(*value.dims[:axis], size, *value.dims[axis + 1 :]))
            self.equal(value.dims[axis], size, reason)
            out.append(value)
        return out

    # --- small operations for many handlers ------------------------------------------------------------------------

    def reshape(self, x, dims):
        """x with other dims of the same product."""
        dims = tuple(dims)
        if x.dims == dims:
            return x
        if isinstance(x, Const) and all(isinstance(d, int) for d in dims):
            return Const(x.array.reshape(dims))
        if isinstance(x, Fill):
            return Fill(x.value, x.dtype, dims)
        out = self.one("reshape", x, dims=dims)
        if isinstance(x, Live) and x.name in self.sizes:
            self.sizes[out.name] = self.sizes[x.name]
        return out

    def transpose(self, x, perm):
        perm = tuple(perm)
        if perm == tuple(range(len(perm))):
            return x
        if isinstance(x, Const):
            return Const(x.array.transpose(perm))
        if isinstance(x, Fill):
            return Fill(x.value, x.dtype, tuple(x.dims[p] for p in perm))
        return self.one("transpose", x, perm=perm)

    def slice(self, x, axis: int, start, stop, step: int = 1):
        """x[start:stop:step] along axis, resolved as graph/types.py requires."""
        size = x.dims[axis]
        if step == 1 and start == 0 and stop == size:
            return x
        if isinstance(x, Fill):
            span = stop - start if step > 0 else start - stop
            length = D.floordiv(span + abs(step) - 1, abs(step))
            return Fill(x.value, x.dtype, (*x.dims[:axis], length, *x.dims[axis + 1 :]))
        if isinstance(x, Const) and not isinstance(start, Dim) and not isinstance(stop, Dim):
            key = [slice(None)] * x.array.ndim
            key[axis] = slice(start, None if stop < 0 else stop, step)
            return Const(x.array[tuple(key)])
        return self.one("slice", x, axis=axis, start=start, stop=stop, step=step)

    def concat(self, xs: list, axis: int):
        """Concatenation; a single value is returned unchanged."""
        return xs[0] if len(xs) == 1 else self.one("concat", *xs, axis=axis)

    # --- the end ---------------------------------------------------------------------------------------------------

    def rename(self, value: Live, name: str, since: int) -> Live:
        """Give the value its name from the file, if a node from index `since` on made it and it has no such name
        yet."""
        for node in reversed(self.nodes[since:]):
            if value.name in node[3] and ":" in value.name:
                node[3] = [name if o == value.name else o for o in node[3]]
                for later in self.nodes[since:]:
                    later[2] = tuple(name if i == value.name else i for i in later[2])
                old = self.values.pop(value.name)
                self._note(Value(name, old.dtype, old.dims))
                renamed = Live(name, old.dtype, old.dims)
                for kept in (self._positions, self._numbers, self._whole):
                    kept.update({key: renamed for key, v in kept.items() if v == value})
                if value.name in self.sizes:
                    self.sizes[name] = self.sizes.pop(value.name)
                return renamed
        return value

    def graph(self, name: str, inputs: list[str], outputs: list[str], notes) -> Graph:
        """The finished graph, not yet validated."""
        constants = {name: a if _is_whole(a) else np.array(a, order="C") for name, a in self.constants.items()}
        nodes = tuple(Node(op, label, ins, tuple(outs), attrs) for op, label, ins, outs, attrs in self.nodes)
        requires = [*self.table.assumed.items(), *((dim, 0) for dim in self.table.shortfalls)]
        requires += [(size - whole, 0) for size, whole in self.table.blocks.items()]
        return Graph(
            name, tuple(inputs), tuple(outputs), nodes, self.values, constants, {}, tuple(notes), tuple(requires)
        )


def _is_whole(array: np.ndarray) -> bool:
    """Whether an array is contiguous and keeps no memory besides its own elements alive."""
    base = array
    while isinstance(base.base, np.ndarray):
        base = base.base
    return array.flags.c_contiguous and array.flags.aligned and base.nbytes == array.nbytes
