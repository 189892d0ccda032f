"""One walk over the nodes of a file: each value becomes a constant, sizes, or an edge of the new graph."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field, replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import onnx

from ...errors import FastRNNError, ModelFormatError, ShapeError, StateError, UnsupportedError, claims_too_much
from ...graph import Graph
from ...graph.dims import Dim
from ...records import dataclass
from ..shared.ledger import Finding
from . import functions
from .build import GraphDraft
from .inputs import declare_inputs
from .ops import quantised
from .outputs import place_outputs
from .precheck import precheck
from .reading import files, fold
from .reading.nodes import MAX_NESTING, OnnxNode, captured, collect, reads
from .reading.reader import NodeReader
from .reading.registry import OPERATORS, Expand, op
from .reading.values import UNKNOWN, Collected, Const, Ints, Items, Live, uniform
from .reroll import loops, repeat
from .selectors import Undecided
from .sizes.symbols import Learned, SymbolTable

__all__ = ["File", "walk"]

# Handled by `_if`, which needs the walk itself.
op("If", attrs="then_branch else_branch")(None)


@dataclass
class File:
    """The parts of a file that are shared by all walks."""

    where: str
    model: onnx.ModelProto
    opsets: dict[str, int]
    nodes: list[OnnxNode]
    constants: dict[str, np.ndarray]
    bind: dict
    double_as_float: bool
    folder: Path | None = None
    written: list[OnnxNode] = field(default_factory=list)  # the nodes before copies of one body were replaced
    apart: set[str] = field(default_factory=set)  # labels of copies that stay as the file has them
    folded: dict[tuple[str, str], np.ndarray] = field(default_factory=dict)  # (label of a node, output) -> array
    branches: dict[str, tuple] = field(default_factory=dict)  # label of an If and branch -> its nodes and constants
    overruled: list[str] = field(default_factory=list)  # weak evidence that the caller overruled
    refused: set[str] = field(default_factory=set)  # labels of nodes that precheck rejected
    undecided: Undecided = field(default_factory=Undecided)  # conditions that depend on inputs

    @cached_property
    def most_folded(self) -> int:
        """The most elements of a folded constant."""
        return max(fold.MAX_ELEMENTS, sum(a.size for a in self.constants.values()))


def read_constants(graph: onnx.GraphProto, folder: Path | None, wanted: set[str]) -> dict[str, np.ndarray]:
    """The used initializers by name. Raises ModelFormatError for a damaged one or a duplicate name."""
    found: dict[str, np.ndarray] = {}
    seen: set[str] = set()
    for proto in graph.initializer:
        if not proto.name or proto.name in seen:
            raise ModelFormatError(
                f"two initializers are named {proto.name!r}" if proto.name else "an initializer has no name"
            )
        seen.add(proto.name)
        if proto.name in wanted:
            found[proto.name] = files.tensor(proto, folder)
    if graph.sparse_initializer:
        raise Finding("sparse initializers")
    return found


def walk(file: File, table: SymbolTable, problems: list[str]) -> tuple[Callable[[], Graph], GraphDraft]:
    """What makes the graph under the table's current knowledge. Appends findings to `problems`.

    The table may raise Restart. If it is `dirty` afterwards, the walk learned something: its graph is not to be used.
    """
    graph = file.model.graph
    table.begin()
    file.undecided.clear()
    table.declared = {d.dim_value for info in graph.output for d in info.type.tensor_type.shape.dim}
    taken = {name for node in file.nodes for name in (*node.outputs, *node.inputs)}
    ctx = GraphDraft(
        table, taken | {v.name for v in graph.output} | {v.name for v in graph.input}, file.double_as_float
    )
    ctx.by_torch = file.model.producer_name == "pytorch"
    known: dict[str, object] = {name: Const(array) for name, array in file.constants.items()}
    inputs = declare_inputs(file, ctx, known, problems)
    wanted = {name for node in file.nodes for name in reads(node)} | {v.name for v in graph.output}
    ctx.note_readers(file.nodes, (v.name for v in graph.output))
    _nodes(file, ctx, file.nodes, known, wanted, problems, own_names=True)
    outputs = place_outputs(ctx, graph, known, set(inputs), problems)
    return partial(ctx.graph, graph.name or "model", inputs, outputs, ()), ctx


def _nodes(file: File, ctx: GraphDraft, nodes, known: dict, wanted: set, problems: list[str], own_names: bool) -> None:
    """Add the nodes' outputs to `known`. own_names: whether values get the file's names; branches may share names."""
    for node in nodes:
        outputs = None
        while outputs is None:  # each round but the last learns a size
            since = len(ctx.nodes)
            ctx.label = node.label
            try:
                outputs = _node(file, ctx, node, known, wanted, problems)
            except Learned:
                if ctx.in_body:  # the whole loop is read again
                    raise
                ctx.refresh()
        shared = _inside(outputs)
        for name, value in zip(node.outputs, outputs, strict=False):
            if name and value is not None:
                known[name] = (
                    ctx.rename(value, name, since)
                    if own_names and isinstance(value, Live) and value.name not in shared
                    else value
                )


def _node(file: File, ctx: GraphDraft, node: OnnxNode, known: dict, wanted: set, problems: list[str]) -> list:
    """The outputs of one node; raises Learned if a size changed."""
    if node.label in file.refused:
        return [UNKNOWN] * len(node.outputs)
    if node.op == "If" and node.domain == "":
        return _if(file, ctx, node, known, problems)
    if node.op in loops.KINDS and node.domain == "":
        return _loop(file, ctx, node, known, wanted, problems)
    if node.op == "Copies" and node.domain == repeat.DOMAIN:
        return repeat.run(ctx, node, known, file.refused, partial(_nodes, file, ctx))
    values = [ctx.current(known[i]) if i else None for i in node.inputs]
    try:
        return _step(file, ctx, node, values, wanted, problems)
    except Expand as reason:
        return _function(file, ctx, node, values, wanted, problems, reason)


def _function(file: File, ctx: GraphDraft, node: OnnxNode, values: list, wanted: set, problems: list, why: Expand):
    """The outputs of a node that is read as the body by which ONNX defines its operator."""
    needed = [bool(o) and o in wanted for o in node.outputs]
    seen = replace(node, attrs={name: a for name, a in node.attrs.items() if name not in why.without})
    body = functions.function_of(ctx, seen, values, file.opsets, needed)
    if body is None:
        problems.append(f"node {node.label}: {node.kind}: {why}")
        return [UNKNOWN] * len(node.outputs)
    inner = {**dict.fromkeys(body.inputs), **dict(zip(body.inputs, values, strict=False))}
    inside = replace(file, opsets=body.opsets)
    found = precheck(inside, body.nodes, [name for name, v in inner.items() if isinstance(v, Const)])
    outputs = [name for name, want in zip(body.outputs, needed, strict=False) if want]
    reads_of_body = {name for part in body.nodes for name in reads(part)} | set(outputs)
    _nodes(inside, ctx, body.nodes, inner, reads_of_body, found, own_names=False)
    problems += [p for p in found if p not in problems]
    ctx.label = node.label
    return [ctx.current(inner[name]) if want else None for name, want in zip(body.outputs, needed, strict=False)]


def _inside(outputs: list) -> set[str]:
    """Names of the values that sequences hold: they can't be renamed."""
    parts = [p for v in outputs if isinstance(v, Collected) for p in v.parts]
    return {p.name for p in parts if isinstance(p, Live)} | {v.source.name for v in outputs if isinstance(v, Items)}


def _if(file: File, ctx: GraphDraft, node: OnnxNode, known: dict, problems: list[str]) -> list:
    """The outputs of the branch selected by a known condition; the other branch is not examined."""
    condition = ctx.current(known[node.inputs[0]]) if node.inputs and node.inputs[0] else None
    if condition is UNKNOWN:
        return [UNKNOWN] * len(node.outputs)
    try:
        one = isinstance(condition, Live) and all(ctx.table.example(d) == 1 for d in condition.dims)
        if one and not file.undecided.can_bind(ctx, condition, file.model.graph.input):
            return _both(file, ctx, node, known, condition, problems)
        chosen = _taken(file, ctx, condition)
        nodes, constants, outputs = _branch(file, node, "then_branch" if chosen else "else_branch", problems)
    except Finding as finding:
        for which in ("then_branch", "else_branch"):
            _graph_of(node, which)  # either may be selected later
        problems.append(f"node {node.label}: {node.kind}: {finding}")
        return [UNKNOWN] * len(node.outputs)
    return _values(file, ctx, node, known, (nodes, constants, outputs), problems)


def _values(file: File, ctx: GraphDraft, node: OnnxNode, known: dict, branch: tuple, problems: list[str]) -> list:
    """The values of a branch's outputs."""
    nodes, constants, outputs = branch
    if len(outputs) != len(node.outputs):
        raise ModelFormatError(f"node {node.label}: {len(node.outputs)} outputs, but its branch has {len(outputs)}")
    inner = {**known, **{name: Const(array) for name, array in constants.items()}}
    wanted = {name for part in nodes for name in reads(part)} | set(outputs)
    ctx.note_readers(nodes, outputs)
    _nodes(file, ctx, nodes, inner, wanted, problems, own_names=False)
    return [ctx.current(inner[name]) for name in outputs]


def _both(file: File, ctx: GraphDraft, node: OnnxNode, known: dict, condition: Live, problems: list[str]) -> list:
    """The outputs of an If whose condition depends on data: both branches are computed, and one is selected."""
    names = ("then_branch", "else_branch")
    sides = [_values(file, ctx, node, known, _branch(file, node, which, problems), problems) for which in names]
    ctx.label = node.label
    for size in condition.dims:
        ctx.equal(size, 1, "the condition of an If has one element")
    condition, outputs = ctx.reshape(ctx.current(condition), ()), []
    for pair in zip(*(map(ctx.current, side) for side in sides), strict=True):
        if any(v is UNKNOWN for v in pair):
            outputs.append(UNKNOWN)
            continue
        a, b = (ctx.live(v) for v in pair)
        if len(a.dims) != len(b.dims) or a.dtype != b.dtype:
            raise Finding("its condition depends on data, and its branches give values of several ranks or dtypes")
        for left, right in zip(a.dims, b.dims, strict=True):
            if left != right:
                raise Finding(
                    f"its condition depends on data, and its branches give {left} and {right} elements; "
                    "make both give the same shape, or fix the condition before export"
                )
        outputs.append(a if a == b else ctx.one("where", condition, a, b))
    return outputs


def _loop(file: File, ctx: GraphDraft, node: OnnxNode, known: dict, wanted: set, problems: list[str]) -> list:
    """The outputs of a Scan or Loop."""
    values = [ctx.current(known[i]) if i else None for i in node.inputs]
    nodes, constants, outputs, inputs = _subgraph(file, node, "body", problems)
    read = dict.fromkeys([*node.inputs, *outputs, *(i for part in nodes for i in reads(part))])
    known = {i: ctx.current(known[i]) for i in read if i in known}
    if any(v is UNKNOWN for v in (*values, *known.values())) or any(part.label in file.refused for part in nodes):
        return [UNKNOWN] * len(node.outputs)
    fixed = {name: Const(array) for name, array in constants.items()}
    inside = {name for part in nodes for name in reads(part)} | set(outputs)

    ctx.note_readers(nodes, outputs)

    def walk_body(given: dict) -> dict:
        found: list[str] = []
        for key in [k for k in file.folded if k[0].startswith(f"{node.label}/body/")]:
            del file.folded[key]  # constants differ between steps
        inner = {**known, **fixed, **given}
        ctx.in_body += 1
        try:
            _nodes(file, ctx, nodes, inner, inside, found, own_names=False)
        finally:
            ctx.in_body -= 1
        if found:
            raise UnsupportedError(found)
        return inner

    needed = [bool(o) and o in wanted for o in node.outputs]
    needed += [False] * (len(outputs) + len(inputs) - len(needed))
    body = loops.Body(nodes, constants, inputs, outputs, walk_body, known, lambda value: _ask(file, ctx, value))
    try:
        made = loops.run(ctx, node, values, file.opsets.get(node.domain, 1), body, needed)
    except Finding as finding:
        problems.append(f"node {node.label}: {node.kind}: {finding}")
        return [UNKNOWN] * len(node.outputs)
    except UnsupportedError as error:
        problems += [p for p in error.problems if p not in problems]
        return [UNKNOWN] * len(node.outputs)
    except (ModelFormatError, ShapeError) as error:
        raise ModelFormatError(f"{file.where}: node {node.label} ({node.kind}): {error}") from error
    if len(node.outputs) > len(made):
        raise ModelFormatError(f"node {node.label}: {len(node.outputs)} outputs, but its body has {len(made)}")
    return made


def _ask(file: File, ctx: GraphDraft, value) -> None:
    """Raise a Finding for a value that depends on small inputs of integers alone: the caller can fix them."""
    if file.undecided.can_bind(ctx, value, file.model.graph.input):
        names = ", ".join(map(repr, file.undecided.note(ctx, value, file.model.graph.input)))
        raise Finding(f"it depends on the input {names}; fix that with bind={{name: value}}, or --bind")


def _taken(file: File, ctx: GraphDraft, condition) -> bool:
    """The condition of an If as a known bool."""
    if isinstance(condition, Ints):
        ctx.table.freeze(list(condition.array.flat), "an If depends on it")
    value = uniform(condition)
    if value is None or isinstance(value, Dim):
        names = ", ".join(map(repr, file.undecided.note(ctx, condition, file.model.graph.input)))
        raise Finding(
            f"its condition is computed from the input {names}; fix that with bind={{name: value}}, or --bind"
        )
    return bool(value)


def _branch(file: File, node: OnnxNode, which: str, problems: list[str]) -> tuple:
    """(nodes, constants, names of the outputs) of a branch."""
    *found, inputs = _subgraph(file, node, which, problems)
    if inputs:
        raise ModelFormatError(f"node {node.label}: its {which} has inputs")
    return tuple(found)


def _graph_of(node: OnnxNode, which: str) -> onnx.GraphProto:
    """The subgraph in an attribute of a node; raises ModelFormatError if it is missing."""
    proto = node.attrs.get(which)
    if proto is None or proto.type != onnx.AttributeProto.GRAPH:
        raise ModelFormatError(f"node {node.label}: {node.kind} without {which}")
    return proto.g


def _subgraph(file: File, node: OnnxNode, which: str, problems: list[str]) -> tuple:
    """(nodes, constants, output names, input names) of a subgraph; read, sorted and checked once per file."""
    key = f"{node.label}/{which}"
    found = file.branches.get(key)
    if found is None:
        graph = _graph_of(node, which)
        if key.count("_branch/") + key.count("body/") >= MAX_NESTING:
            raise ModelFormatError(f"subgraphs nested deeper than {MAX_NESTING}")
        nodes = collect(graph, captured(graph))
        for part in nodes:
            part.label = f"{key}/{part.label}"
        needed = {name for part in nodes for name in reads(part)} | {v.name for v in graph.output}
        constants = read_constants(graph, file.folder, needed)
        ends = [v.name for v in graph.output], [v.name for v in graph.input]
        if len(set(ends[1])) != len(ends[1]):
            raise ModelFormatError(f"node {node.label}: its {which} names an input twice")
        found = file.branches[key] = (nodes, constants, *ends, precheck(file, nodes, constants))
    problems += [p for p in found[4] if p not in problems]
    return found[:4]


def _step(file: File, ctx: GraphDraft, node: OnnxNode, values: list, wanted: set, problems: list[str]) -> list:
    """The outputs of one node. A Finding is recorded and gives UNKNOWN outputs; errors get the node's name."""
    if any(v is UNKNOWN for v in values):
        return [UNKNOWN] * len(node.outputs)
    needed = [bool(o) and o in wanted for o in node.outputs]
    reader = NodeReader(node, values, file.opsets.get(node.domain, 1), needed)
    ctx.table.ledger.scalar(node, values)
    try:
        modern = file.opsets.get("", 7) >= 7  # the evaluator does not know older forms
        if modern and fold.foldable(node) and values and all(v is None or isinstance(v, Const) for v in values):
            return _fold(file, node, values)
        if (node.domain, node.op) not in OPERATORS:
            raise Expand(f"operator {node.kind}")
        outputs = quantised.run(OPERATORS[(node.domain, node.op)].handler, ctx, reader)
        reader.finish()
        if len(outputs) < len(node.outputs):
            outputs = [*outputs, *([None] * (len(node.outputs) - len(outputs)))]
        missing = [o for o, v in zip(node.outputs, outputs, strict=False) if v is None and o in wanted and o]
        if missing:
            raise ModelFormatError(f"{node.kind} has no output for {missing[0]!r}")
        return outputs
    except Expand:
        raise
    except Finding as finding:
        problems.append(f"node {node.label}: {node.kind}: {finding}")
        return [UNKNOWN] * len(node.outputs)
    except (StateError, ModelFormatError, ShapeError) as error:
        raise ModelFormatError(f"{file.where}: node {node.label} ({node.kind}): {error}") from error
    except FastRNNError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, AttributeError, MemoryError) as error:
        # Any error that a malformed node causes in NumPy or Python; the cause stays attached.
        if isinstance(error, MemoryError) and not claims_too_much(error):
            raise
        detail = f"{type(error).__name__}: {error}"
        raise ModelFormatError(f"{file.where}: node {node.label} ({node.kind}): malformed ({detail})") from error


def _fold(file: File, node: OnnxNode, values: list) -> list:
    """Fold a constant node once per file, not once per walk."""
    live = [o for o in node.outputs if o]
    if not all((node.label, o) in file.folded for o in live):
        arrays = [None if v is None else v.array for v in values]
        for name, array in zip(node.outputs, fold.fold(node, arrays, file.opsets, file.most_folded), strict=False):
            if name:
                file.folded[node.label, name] = array
    return [Const(file.folded[node.label, o]) if o else None for o in node.outputs]
