"""Lowering of attention and of step numbers: over keys that are there, or over those that a stream keeps.

A stream of a causal attention keeps keys and values in its slab row. How many is a `Context`: the caller's bound, or
the window of the node itself. One count a stream, of the steps it has seen, serves all nodes of a plan; an op at the
plan's end moves it on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ...errors import UnsupportedError
from ...graph import Graph, Node
from ...graph import dims as D
from ...ops import attention_scratch
from ...streaming.follow import streams_causally
from ..plan import StateSlot
from ..tensors import Buffer, Tensor
from .fields import at


@dataclass(frozen=True)
class Context:
    """How many steps a stream's attention looks back on. drop: older keys are dropped; else the stream ends there."""

    steps: int
    drop: bool


def unbounded(graph: Graph) -> list[Node]:
    """Attention over all steps before, which a stream can keep only up to a bound that the caller gives."""
    return [n for n in over_time(graph) if not n.attrs["window"]]


def over_time(graph: Graph) -> list[Node]:
    """The attention nodes for which a stream keeps keys and values."""
    return [n for n in graph.nodes if n.op == "attention" and streams_causally(graph, n)]


class AttentionLowering:
    """The methods `op_...` of `fastrnn.compile.lowering.Lowering` for these ops; self is that class."""

    def op_attention(self, node: Node) -> None:
        a, kept = node.attrs, self._is_kept(node)
        q, k, v = (self.contiguous_last(self.real(node, i), node) for i in range(3))
        y = self.result(node, order=self._heads_order(), rows=True)
        batch, heads = q.dims[0], k.dims[1]
        sizes = {"batch": batch, "heads": heads, "rows": q.dims[2], "keys": k.dims[2]}
        sizes |= {"group": 1 if q.dims[1] == heads else D.exact_div(q.dims[1], heads), "d": k.dims[3], "dv": v.dims[3]}
        fields = sizes | _strided("q", q, "row", batch) | _strided("k", k, "step", batch)
        fields |= _strided("v", v, "step", batch) | _strided("y", y, "row", batch)
        if not isinstance(sizes["d"], int) or not isinstance(sizes["dv"], int):
            raise UnsupportedError(f"keys of {sizes['d']} and values of {sizes['dv']} features: both must be fixed")
        reads = [q, k, v]
        for what, i in (("bias", 3), ("mask", 4)):
            added = self._of_scores(node, i, (batch, q.dims[1], q.dims[2], k.dims[2]))
            if added is None:
                fields |= {f"{what}_buffer": -1, f"{what}_offset": 0}
                continue
            if kept and any(added.strides[2:]):
                raise UnsupportedError(f"a {what} of single steps, {self.graph.values[node.inputs[i]]}, in a stream")
            reads.append(added)
            axes = (f"{what}_{axis}" for axis in ("batch", "head", "row", "step"))
            fields |= at(what, added) | dict(zip(axes, added.strides, strict=True))
        how = self.builder.constant(np.array([a["scale"], a["softcap"]], np.float32), "float32")
        fields |= {"causal": int(a["causal"]), "window": a["window"], "offset": a["offset"], "safe": int(a["safe"])}
        room = k.dims[2]
        if kept:
            states = self._kept(node, sizes)
            room = states["capacity"]
            fields |= states
        scratch = Buffer("arena", "float32", attention_scratch(room))
        self.plan.arena.append(scratch)
        work = D.product((batch, q.dims[1], q.dims[2], room)) * (2 * (sizes["d"] + sizes["dv"]))
        self.builder.emit(
            "attention", node.name, reads, (y, scratch), work, **fields, how=how.buffer, scratch=scratch, room=room
        )

    def _is_kept(self, node: Node) -> bool:
        """A stream's keys come one after the other, and queries with them."""
        a, q, k = node.attrs, self.graph.values[node.inputs[0]], self.graph.values[node.inputs[1]]
        timed = self.mode == "stream" and a["causal"] and a["offset"] == 0
        return timed and q.dims[2] == k.dims[2] and self.is_time(q.dims[2])

    @staticmethod
    def _heads_order() -> list[int]:
        """Of a fresh result: [batch, length, heads, features], since heads are joined next."""
        return [0, 2, 1, 3]

    def _of_scores(self, node: Node, i: int, full: tuple) -> Tensor | None:
        """Input i, a bias or mask, as one of [batch, heads, Tq, Tk]; None if absent."""
        return None if self.tensor_or_none(node, i) is None else self.real(node, i).expand(full)

    def _kept(self, node: Node, sizes: dict) -> dict:
        """The keys and values of one node in the slab, and the fields that say where."""
        per_slot = D.exact_div(sizes["batch"], D.BATCH) if self.has_batch else sizes["batch"]
        if not isinstance(per_slot, int) or not isinstance(sizes["heads"], int):
            raise UnsupportedError(
                f"keys of {sizes['batch']} rows and {sizes['heads']} heads are not those of single streams"
            )
        capacity = self._capacity(node, sizes["rows"])
        fields = {"capacity": capacity, "per_slot": per_slot, "position": self.position(sizes["rows"])}
        shown = "context" if self.context is None and not node.attrs["window"] else capacity
        for part, features in (("k", sizes["d"]), ("v", sizes["dv"])):
            count = per_slot * sizes["heads"]
            fields[f"{part}_state"] = self.plan.state_size
            self.plan.states.append(
                StateSlot(
                    f"{node.name}.{part}", node.name, part, self.plan.state_size, count * capacity * features,
                    dims=(count, shown, features),
                )
            )  # fmt: skip
        return fields

    def _capacity(self, node: Node, count) -> int:
        """How many keys a stream keeps; where it ends at the bound, the plan says so. count: the keys of a call."""
        window, context = node.attrs["window"], self.context
        if context is None:
            return window or 1  # a plan without a bound is only described, never run
        if window and window <= context.steps:
            return window
        if not context.drop:
            text = f"its context of {context.steps} steps is full (stream(context=...) gives another)"
            self.limit(context.steps, count, text)
        return context.steps

    def limit(self, most: int, count, text: str) -> None:
        """A value with `count` new steps a call can have `most` in all; text says why. The plan's room is in steps of
        the input, those of the padding at its end counted."""
        table = self.plan.timetable
        if self.plan.paced:
            low, high = 0, 1 << 40
            while low < high:  # the most steps that bring no more than that, together with what padding brings
                middle = (low + high + 1) // 2
                sizes = dict(zip(table.names, table.counts(0, middle, True).sizes, strict=True))
                low, high = (middle, high) if D.evaluate(count, sizes) <= most else (low, middle - 1)
            most = low
        else:
            self.plan.position = self.position(D.TIME)
            most //= D.exact_div(count, D.TIME)
        if self.plan.room is None or most < self.plan.room:
            self.plan.room, self.plan.room_text = most, text

    def position(self, count) -> int:
        """Where a slab row has how many steps a value has brought, whose new ones in a call are `count`."""
        if count not in self.positions:
            name = "position" if count == D.TIME else f"position of {count}"
            self.positions[count] = self.plan.state_size
            self.plan.states.append(StateSlot(name, name, "count", self.plan.state_size, 1, "int64"))
        return self.positions[count]

    def bound_by_table(self, node: Node) -> None:
        """A lookup by step number ends where its table does: known before a step, so that no step fails halfway."""
        name, rows = node.inputs[1], self.graph.values[node.inputs[0]].dims[node.attrs["axis"]]
        source = self._producer(name)
        while source is not None and source.op in ("reshape", "transpose", "expand"):
            source = self._producer(source.inputs[0])
        if source is None or source.op != "steps" or not isinstance(rows, int):
            return
        start, count = source.attrs["start"], source.attrs["dims"][-1]
        text = f"node {node.name}: its table has {rows} positions"
        if self.mode == "stream" and self.is_time(count) and isinstance(start, int):
            self.sure_lookups.add(node.name)
            return self.limit(rows - start, count, text)
        left = rows - start - count
        if isinstance(left, D.Dim):
            self.plan.conditions.append((left, text))
        if isinstance(left, D.Dim) or left >= 0:
            self.sure_lookups.add(node.name)

    def advance(self) -> None:
        """The last ops of a plan that counts steps."""
        for count, position in self.positions.items():
            rows = D.BATCH if self.has_batch else 1
            self.builder.emit("advance", "position", rows=rows, count=count, position=position)

    def op_steps(self, node: Node) -> None:
        dims, start = node.attrs["dims"], node.attrs["start"]
        counts = self.mode == "stream" and self.is_time(dims[-1])
        y = self.result(node)
        rows = dims[0] if len(dims) > 1 else 1
        if counts and rows != (D.BATCH if self.has_batch else 1):
            raise UnsupportedError("step numbers that are not a row of each stream's own")
        self.builder.emit(
            "steps", node.name, (), (y,), rows=rows, count=dims[-1], start=start, y_step=y.strides[-1],
            y_row=y.strides[0] if len(dims) > 1 else 0, **at("y", y),
            position=self.position(dims[-1]) if counts else -1,
        )  # fmt: skip


def _strided(name: str, t: Tensor, length: str, batch) -> dict:
    """Where a [batch, heads, length, features] tensor starts, and its strides; one row serves all of the batch."""
    rows = 0 if t.dims[0] != batch else t.strides[0]
    return at(name, t) | {f"{name}_batch": rows, f"{name}_head": t.strides[1], f"{name}_{length}": t.strides[2]}
