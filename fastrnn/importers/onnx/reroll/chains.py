"""Rolls up written-out loops over a cell: h of one step feeds the next, and each step takes one row of a sequence.

PyTorch's exporters write a Python loop over nn.LSTMCell, nn.GRUCell or nn.RNNCell this way. Every step multiplies its h
by the same weight, so the products with one weight, in order, are the chain. All steps must be recognised as the same
cell. Operations between the steps' results and a Concat are done once for all steps. A chain with any other use, for
example of one step in the middle, stays written out.
"""

from __future__ import annotations

import numpy as np
from onnx import helper

from ....errors import ModelFormatError
from ...shared.ledger import Finding
from ..reading import fold
from ..reading.nodes import OnnxNode, sort_nodes
from .recognise import Base, NotACell, Recognised, StepReader, recognise
from .rolled import DOMAIN, C, H, NodeGraph, Rolled, X, leaves

_ELEMENTWISE = frozenset("Add Sub Mul Div Tanh Sigmoid Relu LeakyRelu Elu Selu Softplus Softsign Neg Identity".split())
_LAST_TRIES = 64  # nodes after the last known h that are searched for the last step's h; a step has about 15
_MOST = 32  # sequences of one file that are tried; each attempt visits every node
_DEEP = 16  # nodes between a step's h and the Concat of all steps


def roll_up(nodes: list[OnnxNode], constants: dict, known: set[str], outputs: list[str], opset: int) -> list[OnnxNode]:
    """The nodes with recognised chains replaced, sorted and pruned. Constants for new nodes are added to
    `constants`."""
    for source, axis in _candidates(_takes(NodeGraph(nodes, dict(constants), opset))):
        graph = NodeGraph(nodes, dict(constants), opset)
        names = _takes(graph).get((source, axis), {})
        try:
            chain = _Chain(graph, nodes, source, axis, names)
            made, new = chain.nodes_instead()
            maker = graph.maker | {o: n for n in made for o in n.outputs if o}
            left = sort_nodes(maker, known | set(new) | set(constants), outputs)
        except (NotACell, Finding, ModelFormatError, ValueError, IndexError, KeyError, TypeError):
            continue  # not a chain, or a malformed one: the walk reports the error
        if not {id(graph.maker[h]) for h in chain.hs} & set(map(id, left)):
            nodes = left
            constants.update(new)
    return nodes


def _nothing(node, value) -> None:
    """Treat no value as a step of a sequence, since the steps are already known."""


def _candidates(takes: dict[tuple, dict[str, int]]) -> list[tuple]:
    """Sequences whose indices are all taken from 0 on, at least two."""
    found = [k for k, names in takes.items() if set(names.values()) == set(range(max(2, len(set(names.values())))))]
    return found[:_MOST]


def _takes(graph: NodeGraph) -> dict[tuple, dict[str, int]]:
    """(sequence, axis) -> value name -> index, for Gathers of one index."""
    found: dict[tuple, dict[str, int]] = {}
    for node in {id(n): n for n in graph.maker.values()}.values():
        if node.op != "Gather" or node.domain != "" or len(node.inputs) != 2:
            continue  # if an input is missing, the walk reports it
        if node.inputs[0] not in graph.constants:
            axis, index = node.attrs["axis"].i if "axis" in node.attrs else 0, graph.constants.get(node.inputs[1])
            if axis in (0, 1) and index is not None and index.ndim == 0:
                found.setdefault((node.inputs[0], axis), {})[node.outputs[0]] = int(index)
    return found


class _Chain:
    """One chain over the steps of `source` along `axis`. The constructor raises NotACell if there is none.

    takes : value name -> step. hs, cs : h and c (None: no c) after each step. start, start_c : before the first, "" if
    they are zero.
    """

    def __init__(self, graph: NodeGraph, nodes: list[OnnxNode], source: str, axis: int, takes: dict[str, int]):
        self.graph, self.nodes, self.source, self.axis, self.takes = graph, nodes, source, axis, takes
        self.count = len(set(takes.values()))
        if self.count < 2 or set(takes.values()) != set(range(self.count)):
            raise NotACell
        for inputs in self._products():
            self.hs = inputs[-(self.count - 1) :]
            try:
                self.cs = [self._memory(h) for h in self.hs]
                self._follow()
                self._begin(inputs[0] if len(inputs) == self.count else None)
                return
            except NotACell:
                continue
        raise NotACell

    def _products(self) -> list[list[str]]:
        """The inputs of the products with each weight that is used once per step (the first may be folded)."""
        found: dict[str, list[str]] = {}
        for node in self.nodes:
            if node.op in ("MatMul", "Gemm") and node.domain == "" and node.inputs[0] not in self.takes:
                found.setdefault(node.inputs[1], []).append(node.inputs[0])
        return [inputs for inputs in found.values() if len(inputs) in (self.count, self.count - 1)]

    def _memory(self, h: str) -> str | None:
        """The name of c if h is o * tanh(c) and c a sum of two products, else None."""
        maker = self.graph.maker
        node = maker.get(h)
        for name in node.inputs if node is not None and node.op == "Mul" else ():
            act = maker.get(name)
            total = maker.get(act.inputs[0]) if act is not None and len(act.inputs) == 1 else None
            if total is not None and total.op == "Add" and all(i in maker for i in total.inputs):
                if all(maker[i].op == "Mul" for i in total.inputs):
                    return act.inputs[0]
        return None

    def _cell(self, t: int, h: str, c: str | None, known: dict, before: tuple) -> Recognised:
        """The cell of step t with results h and c. before: h and c of the previous step."""
        used: set[int] = set()

        def item(node, value):
            if value not in self.takes:
                return None
            used.add(self.takes[value])
            return X

        step = StepReader(self.graph.maker, self.graph.constants, known, item, self.graph.opset)
        out, memory = step.value(h), None if c is None else step.value(c)
        if used != {t} or step.rows != 1:
            raise NotACell
        return recognise(out, memory, X, before[0], None if c is None else before[1])

    def _known(self, t: int) -> dict:
        """The values known to the step after t: h and c of step t."""
        return {self.hs[t]: H} | ({} if self.cs[t] is None else {self.cs[t]: C})

    def _follow(self) -> None:
        """Recognise every step but the first. Also finds the last step's h, which need not feed a product."""
        cells = [self._cell(t, self.hs[t], self.cs[t], self._known(t - 1), (H, C)) for t in range(1, self.count - 1)]
        op = self.graph.maker[self.hs[-1]].op if self.hs[-1] in self.graph.maker else None
        behind = self.nodes.index(self.graph.maker[self.hs[-1]]) + 1 if op else len(self.nodes)
        for node in [n for n in self.nodes[behind:] if n.op == op][:_LAST_TRIES]:
            h, c = node.outputs[0], self._memory(node.outputs[0])
            if (c is None) != (self.cs[-1] is None):
                continue
            try:
                cells.append(self._cell(self.count - 1, h, c, self._known(self.count - 2), (H, C)))
            except NotACell:
                continue
            self.hs, self.cs = [*self.hs, h], [*self.cs, c]
            break
        self.cell = cells[0] if cells else None
        if len(self.hs) != self.count or not all(cell.same(self.cell) for cell in cells):
            raise NotACell

    def _begin(self, start: str | None) -> None:
        """Recognise the first step: the same cell from an outer h (and c), or from zero with its product folded
        away."""
        self.start = self.start_c = ""
        if start is None or start in self.graph.constants:
            self._begins_at_zero()
            return
        h, c = self.hs[0], self.cs[0]
        step = StepReader(
            self.graph.maker, self.graph.constants, dict.fromkeys(self.takes, X), _nothing, self.graph.opset
        )
        others = set() if c is None else leaves(step.value(c)) - {start}
        if len(others) > 1:
            raise NotACell
        start_c = others.pop() if others else start
        known = {start: Base(start), start_c: Base(start_c)}
        if not self._cell(0, h, c, known, (Base(start), Base(start_c))).same(self.cell):
            raise NotACell
        self.start, self.start_c = start, "" if c is None else start_c

    def _begins_at_zero(self) -> None:
        """Check numerically, on four random rows, that the first step equals the second step started at h = c = 0."""
        size, hidden = self.cell.spec.input_size, self.cell.spec.hidden_size
        for seed in range(4):
            x = np.random.default_rng(seed).normal(size=(1, size)).astype(np.float32)
            given = dict.fromkeys(self.takes, x)
            zero = np.zeros((1, hidden), np.float32)
            second = given | {n: zero for n in (self.hs[0], self.cs[0]) if n is not None}
            for name, other in ((self.hs[0], self.hs[1]), (self.cs[0], self.cs[1])):
                if name is not None:
                    got, want = self._number(name, dict(given), 0), self._number(other, dict(second), 0)
                    if not np.allclose(got, want, rtol=1e-5, atol=1e-6):
                        raise NotACell

    def _number(self, name: str, given: dict, depth: int) -> np.ndarray:
        """Compute a value from constants and given values; the result is cached in `given`."""
        if name in given or name in self.graph.constants:
            return given[name] if name in given else self.graph.constants[name]
        node = self.graph.maker.get(name)
        if node is not None and node.op == "ConstantOfShape" and "value" not in node.attrs:
            return np.zeros(self._number(node.inputs[0], given, depth + 1).astype(int), np.float32)
        if (
            node is None
            or depth > StepReader.MAX_NODES
            or len(given) > 2 * StepReader.MAX_NODES
            or not fold.foldable(node)
        ):
            raise NotACell
        arrays = [self._number(i, given, depth + 1) if i else None for i in node.inputs]
        for out, array in zip(node.outputs, fold.fold(node, arrays, {"": self.graph.opset}), strict=True):
            given[out] = array
        return given[name]

    # --- the replacement ---------------------------------------------------------------------------------------------

    def nodes_instead(self) -> tuple[list[OnnxNode], dict]:
        """(new nodes, new constants): one recurrence and, for every Concat of all steps, the operations leading to
        it."""
        label, source, made = self.graph.maker[self.hs[-1]].label, self.source, []
        new: dict[str, np.ndarray] = {}
        if self.axis == 1:
            source = f"{self.hs[-1]}/time_first"
            perm = {"perm": helper.make_attribute("perm", [1, 0, 2])}
            made.append(OnnxNode("Transpose", "", f"{label}/time_first", [self.source], [source], perm))
        ends = [self.hs[-1], self.cs[-1] or ""]
        stacks = [found for node in self.nodes if (found := self._stack(node)) is not None]
        if len({axis for _, axis, _ in stacks}) > 1:
            raise NotACell
        y = f"{self.hs[-1]}/steps" if stacks else ""
        payload = Rolled(self.cell, self.count, stack=stacks[0][1] if stacks else 0)
        inputs = [source, self.start, self.start_c, ""]
        made.append(OnnxNode("Recurrence", DOMAIN, label, inputs, [y, *ends], {}, payload))
        for node, _, path in stacks:
            value = y
            for k, done in enumerate(path):
                value = self._lift(done, value, f"{node.outputs[0]}/{k}", made, new)
            made.append(OnnxNode("Identity", "", node.label, [value], [node.outputs[0]]))
        return made, new

    def _stack(self, node: OnnxNode) -> tuple[OnnxNode, int, list] | None:
        """(node, axis, [(node of the first step, its live input)]) if the node stacks a value of all steps."""
        maker, constants = self.graph.maker, self.graph.constants
        if node.op != "Concat" or node.domain or len(node.inputs) != self.count or "axis" not in node.attrs:
            return None
        axis, path = node.attrs["axis"].i, []
        steps = [maker.get(i) for i in node.inputs]
        if axis not in (0, 1) or any(n is None or n.op != "Unsqueeze" for n in steps):
            return None
        for n in steps:
            if (list(n.attrs["axes"].ints) if "axes" in n.attrs else [self.graph.scalar(n.inputs[1])]) != [axis]:
                return None
        values = [n.inputs[0] for n in steps]
        while values != self.hs:
            steps = [maker.get(v) for v in values]
            first = steps[0]
            if len(path) > _DEEP or any(n is None or n.domain or n.op != first.op for n in steps):
                return None
            live = [k for k, i in enumerate(first.inputs) if i not in constants]
            rest = [i for k, i in enumerate(first.inputs) if k not in live]
            alike = all(
                [i for k, i in enumerate(n.inputs) if k not in live] == rest and n.attrs == first.attrs for n in steps
            )
            if len(live) != 1 or not alike or not self._each_row(first, live[0]):
                return None
            path.append((first, live[0]))
            values = [n.inputs[live[0]] for n in steps]
        return node, axis, path[::-1]

    def _each_row(self, node: OnnxNode, live: int) -> bool:
        """Whether the node works on each row of [batch, N] separately, so that any axes may precede N."""
        others = [self.graph.constants[i] for k, i in enumerate(node.inputs) if k != live]
        if node.op in _ELEMENTWISE:
            return all(a.ndim <= 1 for a in others)
        if node.op == "Gemm":
            plain = all(node.attrs[k].f == 1.0 for k in ("alpha", "beta") if k in node.attrs)
            turned = "transA" in node.attrs and node.attrs["transA"].i
            return live == 0 and plain and not turned and others[0].ndim == 2 and all(a.ndim == 1 for a in others[1:])
        return node.op == "MatMul" and live == 0 and others[0].ndim == 2

    def _lift(self, done: tuple[OnnxNode, int], value: str, name: str, made: list, new: dict) -> str:
        """Append one step's node, applied to all steps; returns the name of the result."""
        node, live = done
        if node.op != "Gemm":
            inputs = [value if k == live else i for k, i in enumerate(node.inputs)]
            made.append(OnnxNode(node.op, "", f"{node.label}/all", inputs, [name], node.attrs))
            return name
        weight = self.graph.constants[node.inputs[1]]
        new[f"{name}/W"] = weight.T.copy() if "transB" in node.attrs and node.attrs["transB"].i else weight
        made.append(OnnxNode("MatMul", "", f"{node.label}/all", [value, f"{name}/W"], [name]))
        if len(node.inputs) < 3 or not node.inputs[2]:
            return name
        made.append(OnnxNode("Add", "", f"{node.label}/all/bias", [name, node.inputs[2]], [f"{name}/sum"]))
        return f"{name}/sum"
