"""Lowering of elementwise nodes, alone or a group in one program, of arithmetic on live integers, and of lookups."""

from __future__ import annotations

import numpy as np

from . import dims as D
from .errors import UnsupportedError
from .graph import Node
from .lowering_fields import (
    FUNCTIONS,
    RANK,
    TYPE_CODES,
    at,
    contiguous_last,
    instruction,
    level_fields,
    space_fields,
)
from .passes.fuse_elementwise import Group
from .tensors import ITEMSIZE, Tensor, collapse

INTEGER_FUNCTIONS = frozenset(
    "add sub mul div pow mod min max equal greater greater_equal less less_equal neg abs sign where".split()
)


def _from_zero(node: Node) -> int:
    return int(node.attrs.get("from_zero", False))


class ElementwiseLowering:
    """The methods `op_...` of `fastrnn.lowering.Lowering` for these ops; self is that class."""

    def op_gather(self, node: Node) -> None:
        """Rows of a table by index. Where `axis` is not the first, it is moved there and the result moved back."""
        axis = node.attrs["axis"]
        view = self._gather_view(node, axis)
        if view is not None:
            self.tensors[node.outputs[0]] = view
            return
        table, indices = self.tensor(node.inputs[0]), self.tensor(node.inputs[1])
        self.bound_by_table(node)
        if axis != 0:
            return self._gather_along(node, table, indices, axis)
        table = self.contiguous_last(table, node, len(table.dims) - 1)
        inner = D.product(table.dims[1:])
        out = self.result(node)
        flat = out.reshape((*indices.dims, inner))
        if flat is None or not contiguous_last(flat):
            out = self.result(node, fresh=True)
            flat = out.reshape((*indices.dims, inner))
        rank = len(indices.dims)
        strides = flat.strides[:rank] if len(flat.strides) > rank else flat.strides
        loops = self._levels(indices.dims, (indices.strides, strides), indices.order, node)
        fields = level_fields(loops, ("index", "y"))
        self.builder.emit(
            "gather", node.name, (table, indices), (out,), **fields, count=table.dims[0], table_row=table.strides[0],
            inner=inner, index_type=TYPE_CODES[indices.dtype], item=ITEMSIZE[table.dtype], from_zero=_from_zero(node),
            **at("table", table), **at("index", indices), **at("y", flat),
        )  # fmt: skip

    def _gather_view(self, node: Node, axis: int) -> Tensor | None:
        """Constant indices in even steps (as an unfold into overlapping frames has) are another view of the table."""
        picks, table = self.graph.constants.get(node.inputs[1]), self.tensor(node.inputs[0])
        size = table.dims[axis]
        if picks is None or picks.size == 0 or not isinstance(size, int):
            return None
        if picks.min() < (0 if node.attrs.get("from_zero") else -size) or picks.max() >= size:
            return None
        picks = np.where(picks < 0, picks + size, picks)
        first = int(picks.flat[0])
        steps = [int(np.take(picks, 1, i).flat[0]) - first if n > 1 else 0 for i, n in enumerate(picks.shape)]
        even = first + sum(np.indices(picks.shape)[i] * step for i, step in enumerate(steps))
        if not np.array_equal(picks, even):
            return None
        stride = table.strides[axis]
        dims = (*table.dims[:axis], *picks.shape, *table.dims[axis + 1 :])
        strides = (*table.strides[:axis], *(step * stride for step in steps), *table.strides[axis + 1 :])
        new = {a: [a + (picks.ndim - 1) * (a > axis)] for a in range(len(table.dims))} | {
            axis: list(range(axis, axis + picks.ndim))
        }
        order = tuple(b for a in table.order for b in new[a])
        return Tensor(table.buffer, dims, strides, first * stride + table.offset, order)

    def _gather_along(self, node: Node, table: Tensor, indices: Tensor, axis: int) -> None:
        rank, picks = len(table.dims), len(indices.dims)
        table = table.transpose((axis, *range(axis), *range(axis + 1, rank)))
        table = self.contiguous_last(table, node, rank - 1)
        out = self.builder.allocate(table.dtype, (*indices.dims, *table.dims[1:]))
        inner = D.product(table.dims[1:])
        loops = self._levels(indices.dims, (indices.strides, out.strides[:picks]), indices.order, node)
        self.builder.emit(
            "gather", node.name, (table, indices), (out,), **level_fields(loops, ("index", "y")),
            count=table.dims[0], table_row=table.strides[0], inner=inner, index_type=TYPE_CODES[indices.dtype],
            item=ITEMSIZE[table.dtype], from_zero=_from_zero(node), **at("table", table), **at("index", indices),
            **at("y", out),
        )  # fmt: skip
        before = range(picks, picks + axis)
        self.tensors[node.outputs[0]] = out.transpose((*before, *range(picks), *range(picks + axis, len(out.dims))))

    # -- elementwise --
    def op_cast(self, node: Node) -> None:
        x, to = self.tensor(node.inputs[0]), node.attrs["to"]
        source = self.graph.values[node.inputs[0]].dtype
        if to == source:
            self.tensors[node.outputs[0]] = x
        elif to == "bool":
            self._elementwise(node, [("sign", (0,)), ("abs", (1,))], [self.real(node)])
        else:
            self._copy(x, self.result(node, order=x.order), node.name)

    def op_unary(self, node: Node) -> None:
        self._elementwise_node(node, node.attrs["fn"])

    def op_binary(self, node: Node) -> None:
        self._elementwise_node(node, node.attrs["fn"])

    def op_where(self, node: Node) -> None:
        self._elementwise_node(node, "where")

    def _elementwise_node(self, node: Node, fn: str) -> None:
        if self.is_integer(node):
            return self.integers(node, fn)
        registers = tuple(range(len(node.inputs)))
        alpha_beta = (node.attrs["alpha"], node.attrs["beta"]) if node.op == "unary" else ()
        self._elementwise(node, [(fn, registers, *alpha_beta)], [self.real(node, i) for i in registers])

    def _elementwise_group(self, group: Group) -> None:
        """One program of several nodes: its registers are the values from outside, then each node's result."""
        register = {name: i for i, name in enumerate(group.inputs)}
        instructions = []
        for node in group.nodes:
            registers = tuple(register[i] for i in node.inputs)
            alpha_beta = (node.attrs["alpha"], node.attrs["beta"]) if node.op == "unary" else ()
            instructions.append(("where" if node.op == "where" else node.attrs["fn"], registers, *alpha_beta))
            register[node.outputs[0]] = len(register)
        last = group.nodes[-1]
        self._elementwise(last, instructions, [self.real_value(name, last) for name in group.inputs])

    def _elementwise(self, node: Node, instructions: list[tuple], inputs: list[Tensor]) -> None:
        """A program over broadcast inputs (float32 tensors). instructions: (function, registers, alpha?, beta?)."""
        dims = self.graph.values[node.outputs[0]].dims
        inputs = [t.expand(dims) for t in inputs]
        lead = max(inputs, key=lambda t: sum(s != 0 for s in t.strides))
        out = self.result(node, order=lead.order)
        if out.dtype == "bool":  # held as 0.0 and 1.0 until an output asks for bytes
            out = self._float_stand_in(node, out)
        loops = collapse(dims, [*(t.strides for t in inputs), out.strides], out.order)
        if len(loops) > RANK:
            raise UnsupportedError(f"broadcasting over {len(loops)} axes that can't be merged; at most {RANK}")
        fields = {"program": len(self.plan.programs), "n_in": len(inputs)}
        fields |= space_fields(loops, (*(f"in{j}" for j in range(len(inputs))), "out"))
        self.plan.programs.append((len(inputs), tuple(instruction(*i) for i in instructions)))
        for j, t in enumerate(inputs):
            fields |= at(f"in{j}", t)
        work = D.product(dims) * (4 * len(instructions))
        self.builder.emit("elementwise", node.name, inputs, (out,), work, **fields, **at("out", out))

    def _float_stand_in(self, node: Node, out: Tensor) -> Tensor:
        stand_in = self.builder.allocate("float32", out.dims, out.order)
        self.tensors[node.outputs[0]] = stand_in
        return stand_in

    # -- integers --
    def is_integer(self, node: Node) -> bool:
        """An elementwise node over live int64 or int32 values."""
        return any(self.graph.values[i].dtype in ("int64", "int32") for i in node.inputs if i is not None)

    def integers(self, node: Node, fn: str) -> None:
        """fn of integers (the condition of a where: bools), exactly, wrapping as integers do."""
        if fn not in INTEGER_FUNCTIONS:
            raise UnsupportedError(f"{fn} of live integers ({', '.join(map(str, node.inputs))})")
        dims = self.graph.values[node.outputs[0]].dims
        inputs = [self.tensor(i) for i in node.inputs]
        bad = [t.dtype for t in inputs if t.dtype == "float64"]
        if bad:
            raise UnsupportedError(f"arithmetic on live {bad[0]} values")
        views = [t.expand(dims) for t in inputs]
        out = self.result(node)
        if out.dtype == "bool":
            out = self._float_stand_in(node, out)
        loops = collapse(dims, [*(t.strides for t in views), out.strides], out.order)
        if len(loops) > RANK:
            raise UnsupportedError(f"broadcasting over {len(loops)} axes that can't be merged; at most {RANK}")
        names = (*(f"in{j}" for j in range(len(views))), "out")
        fields = space_fields(loops, names)
        for j, t in enumerate(views):
            fields |= at(f"in{j}", t) | {f"in{j}_type": TYPE_CODES[t.dtype]}
        self.builder.emit(
            "integers", node.name, inputs, (out,), D.product(dims), fn=FUNCTIONS[fn], n_in=len(views), **fields,
            **at("out", out), out_type=TYPE_CODES[out.dtype],
        )  # fmt: skip
