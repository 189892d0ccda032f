"""What the lowering of every op works with: `Lowering`, and the tables that `@lowers` and `@aims` fill."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ...errors import UnsupportedError
from ...graph import Graph, Node
from ...graph import dims as D
from ...graph.loops import Loop, schedule
from ...graph.registry import Registry
from ...graph.traverse import results
from ...passes.fuse_elementwise import activations, groups
from ...passes.fuse_scans import find_scans
from ...streaming import conditions
from ...streaming.caches import streamed
from ...streaming.follow import Track
from ...streaming.timetable import Timetable
from .. import bounds
from ..plan import Builder
from ..tensors import Tensor, collapse
from .bodies import with_bodies
from .fields import LEVELS, RANK, TYPE_CODES, at, contiguous_last
from .scans import lower_scan

if TYPE_CHECKING:
    from . import Weights
    from .attention import Context

# op -> (low, node): emits its plan ops, and records the tensors of its outputs
lowers = Registry()
# op -> (low, node): allocates its result before its inputs are lowered, so that they are written into it
aims = Registry()


class Lowering:
    """One walk over a graph: the tensors made so far, the destinations of results, the plan being written.

    A tensor has its value's dtype. Only bools may be float32, 0.0 or 1.0, as programs compute them.
    """

    def __init__(
        self,
        graph: Graph,
        mode: str,
        weights: Weights,
        timetable: Timetable | None = None,
        context: Context | None = None,
    ):
        self.graph, self.mode, self.weights, self.context = graph, mode, weights, context
        self.producers = graph.producers()
        self.builder = Builder(graph, mode, weights.isa)
        self.builder.plan.timetable = timetable
        self.plan = self.builder.plan
        self.consumers = graph.consumers()
        self.has_batch = any("batch" in D.symbols(d) for v in graph.values.values() for d in v.dims)
        self.destinations: dict[str, Tensor] = {}
        self.positions: dict[object, int] = {}  # new steps per call -> offset of their count in a slab row
        self.tensors: dict[str, Tensor] = {}
        self.tracks: dict[str, Track] = {}  # of the values of the current cycle, along its steps
        self.problems: list[str] = []
        self.fed_by_state: set[str] = set()  # initial states of a stream's cells: stored in its slab row
        self.states = dict(graph.states) if mode == "stream" else {}  # states that a stream threads itself
        self.input_names = [n for n in graph.inputs if n not in self.states]
        self.output_names = list(results(graph) if mode == "stream" else graph.outputs)
        self.activations = activations(graph)
        items = schedule(graph)
        scans = find_scans(
            graph, {n.name: k for k, item in enumerate(items) if isinstance(item, Loop) for n in item.nodes}
        )
        self.items = with_bodies(graph, items, scans)
        # Name of the node that stands for all nodes of a scan -> the scan; state -> where it stays in place.
        self.scans = {scan.nodes[-1].name: scan for scan in scans}
        self.in_slab: dict[str, int] = {}
        self.in_arena: dict[str, Tensor] = {}
        absorbed = {n.name for n in self.activations.values()}
        absorbed |= {name for scan in scans for name in scan.names} - set(self.scans)
        # Name of a node on a cycle -> the cycle.
        self.region = {n.name: k for k, item in enumerate(self.items) if isinstance(item, Loop) for n in item.nodes}
        self.groups = groups(graph, frozenset(absorbed) | set(self.scans), self.region)
        # Nodes that are computed together with another one: nothing is emitted for them.
        self.absorbed = absorbed | {n.name for g in self.groups.values() for n in g.nodes[:-1]}

    def lower_nodes(self, nodes) -> None:
        """Emit the ops of each node. Collects the nodes that can't be lowered, so that one error names all of them."""
        for node in nodes:
            if node.name in self.absorbed:
                continue
            try:
                self.lower_node(node)
            except UnsupportedError as error:
                self.note(node, error)
                if node.name in self.activations:
                    self.stand_in(self.activations[node.name])

    def lower_node(self, node: Node) -> None:
        scan = self.scans.get(node.name)
        if scan is None:
            lowers[node.op](self, node)
        else:
            lower_scan(self, scan)

    def note(self, node: Node, error: UnsupportedError) -> None:
        self.problems += [f"node {node.name} ({node.op}): {p}" for p in error.problems]
        self.stand_in(node)

    def aim_nodes(self, nodes) -> None:
        """Allocate results that other ops write parts of, last ones first, because they may be parts of each other."""
        for node in reversed(nodes):
            if node.op in aims:
                aims[node.op](self, node)

    def stand_in(self, node: Node) -> None:
        """Placeholder tensors for the outputs of a node that can't be lowered, so that later nodes can be checked."""
        for i, out in enumerate(node.outputs):
            self.result(node, i, fresh=True) if out is not None else None

    def aim(self, name: str, tensor: Tensor) -> None:
        """Ask the op that makes value `name` to write it into `tensor`, through views that can be inverted."""
        if name in self.destinations:
            return
        self.destinations[name] = tensor
        node = self.producers.get(name)
        if node is None or not node.inputs:
            return
        source = node.inputs[0]
        if node.op == "transpose":
            perm = node.attrs["perm"]
            self.aim(source, tensor.transpose([perm.index(a) for a in range(len(perm))]))
        elif node.op == "reshape" and self.graph.values[name].dims != self.graph.values[source].dims:
            view = tensor.reshape(self.graph.values[source].dims)
            if view is not None:
                self.aim(source, view)

    def result(self, node: Node, i: int = 0, order=None, rows: bool = False, fresh: bool = False) -> Tensor:
        """The tensor to which output i of a node is written: its destination, or a fresh one.

        rows: its last axis must be contiguous. order: memory order of a fresh tensor.
        """
        name = node.outputs[i]
        value = self.graph.values[name]
        tensor = None if fresh else self.destinations.get(name)
        if tensor is not None and rows and not contiguous_last(tensor):
            tensor = None
        if tensor is not None and tensor.dtype != value.dtype != "bool":  # memory of a state: see `kept_as`
            tensor = None
        if tensor is None:
            tensor = self.builder.allocate(value.dtype, value.dims, order)
        self.tensors[name] = tensor
        return tensor

    def tensor(self, name: str) -> Tensor:
        """The tensor of a value that was already made (or of a constant)."""
        if name not in self.tensors:
            value, array = self.graph.values[name], self.graph.constants[name]
            if value.dtype == "bool":
                self.tensors[name] = self.builder.constant(array.astype(np.float32), "float32")
            else:
                self.tensors[name] = self.builder.constant(array, value.dtype)
        return self.tensors[name]

    def real(self, node: Node, i: int = 0) -> Tensor:
        """Input i of a node as float32, as kernels need it; bools become 0.0 and 1.0."""
        return self.real_value(node.inputs[i], node)

    def real_value(self, name: str, node: Node) -> Tensor:
        """The value `name` as float32, for this node."""
        t = self.tensor(name)
        if t.dtype == "bool":
            floats = self.builder.allocate("float32", t.dims, t.order)
            self.copy(t, floats, node.name)
            return floats
        if t.dtype != "float32":
            raise UnsupportedError(f"arithmetic on live {t.dtype} values ({name})")
        return t

    def tensor_or_none(self, node: Node, i: int) -> Tensor | None:
        """The tensor of input i of a node, None if absent."""
        name = node.inputs[i] if i < len(node.inputs) else None
        return None if name is None else self.tensor(name)

    def array(self, node: Node, i: int, what: str) -> np.ndarray | None:
        """The array of input i of a node, which must be a constant (None if absent)."""
        name = node.inputs[i] if i < len(node.inputs) else None
        if name is None:
            return None
        if name not in self.graph.constants:
            raise UnsupportedError(f"{what} ({name}) is not a constant")
        return self.graph.constants[name]

    def contiguous_last(self, t: Tensor, node: Node, count: int = 1) -> Tensor:
        """t itself if its last `count` axes are one run in memory, else a copy in row-major order."""
        step: object = 1
        for axis in reversed(range(len(t.dims) - count, len(t.dims))):
            if t.strides[axis] != step and t.dims[axis] != 1:
                return self.dense(t, node)
            step = t.dims[axis] * step
        return t

    def dense(self, t: Tensor, node: Node) -> Tensor:
        """A copy in row-major order."""
        dense = self.builder.allocate(t.dtype, t.dims)
        self.copy(t, dense, node.name)
        return dense

    def copy(self, source: Tensor, target: Tensor, node: str, as_bits: bool = False) -> None:
        """Copy source into target (equal dims), converting dtypes; nothing if both are the same memory.

        as_bits: keep the bits of each element instead; both have the same size.
        """
        loops = collapse(target.dims, (source.strides, target.strides), target.order)
        same_place = source.buffer is target.buffer and source.offset == target.offset
        if same_place and all(a == b for _, (a, b) in loops):
            return
        if len(loops) > RANK:
            raise UnsupportedError(f"a copy over {len(loops)} axes that can't be merged; at most {RANK}")
        kind = target.dtype if as_bits else source.dtype
        fields = {"rank": len(loops), "source_type": TYPE_CODES[kind], "target_type": TYPE_CODES[target.dtype]}
        for i in range(RANK):
            size, steps = loops[i] if i < len(loops) else (1, (0, 0))
            fields |= {f"size{i}": size, f"source_stride{i}": steps[0], f"target_stride{i}": steps[1]}
        self.builder.emit("copy", node, (source,), (target,), **fields, **at("source", source), **at("target", target))

    def real_result(self, node: Node, order=None) -> Tensor:
        """As `result`, for results computed in float32: a bool is 0.0 or 1.0 until an output needs bytes."""
        out = self.result(node, order=order)
        if out.dtype == "bool":
            out = self.tensors[node.outputs[0]] = self.builder.allocate("float32", out.dims, out.order)
        return out

    def levels(self, dims, strides, order, node: Node, levels: int = LEVELS) -> list[tuple]:
        """Rows as at most `levels` nested loops."""
        loops = collapse(dims, strides, order)
        if len(loops) > levels:
            raise UnsupportedError(f"rows over {len(loops)} axes that can't be merged; at most {levels}")
        return loops

    def is_time(self, dim) -> bool:
        """Whether dim is only a number of steps."""
        return bool(D.symbols(dim)) and self.builder.time_axis((dim,)) == 0 and "batch" not in D.symbols(dim)

    def is_step(self, node: Node, dim) -> bool:
        """Whether dim is the one step of a call, which this node counts."""
        return dim == 1 and self.plan.steps_one and bool(node.attrs.get("grows"))

    @cached_property
    def streams(self) -> bool:
        """Whether a stream may compute the same values in steps, whose bits must then be those of a whole sequence."""
        return self.mode == "stream" or not conditions.problems(streamed(self.graph))

    def need(self, dim, text: str) -> None:
        """The node is valid only if `dim` is not below 0: adds a condition for each call, or raises an error now."""
        if isinstance(dim, D.Dim):
            self.plan.conditions.append((dim, text))
        elif dim < 0:
            raise UnsupportedError(text)


@bounds.touches("copy")
def _copy_touches(plan, f):
    for name in ("source", "target"):
        yield from bounds.at(f, name, *bounds.space(f, name), item=bounds.ITEMS[f[f"{name}_type"]])
