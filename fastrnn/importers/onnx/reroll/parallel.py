"""Recurrences that a file writes in parallel, in chunks or by doubling, become one node that runs step by step.

The file is first read as it is written. Values of that graph that are proved to be recurrences (passes/scans) are then
made by a node each, from the values that they are computed from, and the file is read again: what the parallel form
fixed, such as a length or a multiple of a chunk, may then be free.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from onnx import helper, numpy_helper

from ....errors import FastRNNError, ModelFormatError
from ....graph import Graph, reference, validate
from ....graph.dims import TIME, divisors, evaluate, symbols
from ....passes.scans import Done, Kernel, Law, NoRecipe, Read, laws_in, recipe
from ....passes.sizes import without_blocks
from ....records import dataclass
from ...shared.ledger import Finding
from ..reading.nodes import OnnxNode, sort_nodes
from .rolled import DOMAIN

_TOLERANCE = 1e-5  # of the largest value, in float64: the whole model as written and as replaced
_MOST_WORK = 1 << 26  # weights times steps of that comparison


@dataclass(frozen=True)
class Parallel:
    """The payload of a node that is a recurrence. recipes: how each leaf of the law is made of the node's inputs."""

    law: Law | Kernel
    recipes: tuple


def roll_up(
    nodes: list[OnnxNode], known: set[str], outputs: list[str], graph: Graph, misfits: list[str]
) -> list[OnnxNode]:
    """The nodes of the file with the recurrences of its graph replaced; the same list if there are none. misfits: gets
    what is said of convolutions that are no recurrence."""
    maker = {o: n for n in nodes for o in n.outputs if o}
    spread, laws = laws_in(graph, misfits)
    changed = False
    for law in laws:
        y = law.end.y
        try:
            recipes = tuple(recipe(spread, leaf.name, known | set(maker)) for leaf in law.leaves)
        except NoRecipe:
            continue
        if y in maker:
            old = maker[y]
            label = old.label if len(old.outputs) == 1 else f"{old.label}/{y}"
            names = sorted({name for r in recipes for name in reads(r)})
            constants = {name: graph.constants[name] for name in names if name not in known and name not in maker}
            maker[y] = OnnxNode("Parallel", DOMAIN, label, names, [y], {}, Parallel(law, recipes))
            maker |= {name: _constant(name, array) for name, array in constants.items()}
            changed = True
    if not changed:
        return nodes
    try:
        return sort_nodes(maker, known, outputs)
    except ModelFormatError:
        return nodes


def reads(made) -> set[str]:
    """The values that a recipe reads."""
    if isinstance(made, Read):
        return {made.name}
    return set().union(*map(reads, made.inputs)) if isinstance(made, Done) else reads(made.of)


def _constant(name: str, array: np.ndarray) -> OnnxNode:
    """A node that makes a constant which the file has under no name."""
    value = helper.make_attribute("value", numpy_helper.from_array(array))
    return OnnxNode("Constant", "", name, [], [name], {"value": value})


def instead(before: Graph, build: Callable[[], Graph]) -> Graph:
    """The graph that `build` makes of the replaced nodes, if it gives what the graph before gives; else that."""
    try:
        after = without_blocks(validate(build()))
        steps = {after.values[n.outputs[0]].dims[0] for n in after.nodes if n.op == "state"}
        return after if steps <= {TIME} and _alike(before, after) else before
    except (FastRNNError, Finding):
        return before


def _alike(before: Graph, after: Graph) -> bool:
    """Whether both give the same, in float64, at the sizes of the file as it is written."""
    if (before.inputs, before.outputs) != (after.inputs, after.outputs):
        return False
    names = {s for n in before.inputs for d in before.values[n].dims for s in symbols(d)}
    steps = np.lcm.reduce([1, *_divisors(before)]) * 2
    sizes = dict.fromkeys(names, 2) | ({"time": int(steps)} if "time" in names else {})
    rng = np.random.default_rng(17)
    feeds = {}
    for name in before.inputs:
        value = before.values[name]
        shape = [evaluate(d, sizes) for d in value.dims]
        if value.dtype not in ("float32", "int64", "int32"):
            return False
        whole = value.dtype != "float32"  # rows of tables
        feeds[name] = rng.integers(0, _rows(before), shape) if whole else rng.standard_normal(shape)
    weights = sum(a.size for a in before.constants.values())
    if weights * max((a.size for a in feeds.values()), default=1) > _MOST_WORK * 64:
        return True  # each recurrence is proved; this looks for a mistake in how they were put in place
    for a, b in zip(reference.run(before, feeds), reference.run(after, feeds), strict=True):
        if a.shape != b.shape or not np.abs(a - b).max(initial=0.0) <= _TOLERANCE * max(
            1.0, np.abs(a).max(initial=0.0)
        ):
            return False
    return True


def _rows(graph: Graph) -> int:
    """How many rows the smallest table has, two if there is none."""
    found = [graph.constants[n.inputs[0]] for n in graph.nodes if n.op == "gather" and n.inputs[0] in graph.constants]
    return min((len(a) for a in found if a.ndim), default=2)


def _divisors(graph: Graph) -> set[int]:
    return {d for v in graph.values.values() for dim in v.dims for d in divisors(dim)}
