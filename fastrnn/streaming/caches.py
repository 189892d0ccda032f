"""Caches of keys and values that grow by the steps of each call, as a stream keeps them.

A file hands them out and takes them again: present[.., past + n, ..] = concat(past[.., past, ..], new). A stream starts
with empty ones, so a query sees all steps before it and its own: causal attention over one sequence, whose keys and
values a stream keeps in place, up to its `context`. `cached` rewrites a graph as that. The number of steps that the
caches hold becomes zero everywhere, and

    attention over a cache      causal attention of the call's keys: those of earlier calls are the stream's
    step numbers from past on   the stream's own step numbers
    a mask of positions         nothing, or a window, once its values are proved to be those of causal attention
    a mask that is an input     nothing: every step that a stream takes is live (supplied.py)

The steps of a call are `time` if the file leaves them open; the graph then is a plain causal model. If a call is one
step, or if the file has caches in front of its chunks too (graph/tails.py), the attention and step numbers say that
they go on from call to call (`grows`). Anything else that depends on how much the caches hold, or on where one call
ends and the next begins, is refused by name.
"""

from __future__ import annotations

from dataclasses import replace

from ..graph import Graph, Node, Value
from ..graph import dims as D
from ..graph.caches import caches, grown
from ..graph.stacks import unstacked
from ..graph.tails import tails
from ..graph.traverse import free_inputs, fresh, needed, roots
from .cache_masks import Masks, Refused
from .follow import follow
from .live import live
from .parts import resized, resized_node
from .rewrite import rewrite
from .rules import Track
from .supplied import supplied
from .timetable import INPUT


def streamed(graph: Graph) -> Graph:
    """The graph as a stream runs it: without lengths of rows, and with its caches kept."""
    return cached(live(graph))


def cached(graph: Graph) -> Graph:
    """The graph as a stream runs it, which keeps the caches; the graph itself if it has none, or if they can't be
    kept."""
    try:
        return _kept(graph) if grown(graph) else graph
    except Refused:
        return graph


def problems(graph: Graph) -> list[str]:
    """Why a stream can't keep the caches of a graph; empty if it can, or if there are none."""
    try:
        if grown(graph):
            _kept(graph)
    except Refused as refused:
        return [str(refused)]
    return []


def _kept(graph: Graph) -> Graph:
    """The graph of a stream. Refused: it can't keep the caches."""
    graph = unstacked(graph)
    found = caches(graph)
    lost = [name for name in grown(graph) if name not in found]
    if lost:
        raise Refused(f"the state {lost[0]} grows, but not by a plain concatenation of new steps behind it")
    first: Refused | None = None
    for made in supplied(graph, found):
        try:
            return _Caches(made).done()
        except Refused as refused:
            first = first or refused
    assert first is not None
    raise first


class _Caches:
    def __init__(self, graph: Graph):
        self.graph, self.caches, self.makers = graph, caches(graph), graph.producers()
        self.past = {s for name, c in self.caches.items() for s in D.symbols(graph.values[name].dims[c.axis])}
        self.rows = self._rows()
        self.keys = {c.output: c.new for c in self.caches.values()}  # what holds all steps -> this call's
        self.beside_tails = bool(tails(graph).joints)  # nothing but caches goes on from call to call then
        self._check_inputs()
        self.masks = Masks(graph, self.past, self.rows)
        self.after: list[tuple[Node, Node | None]] = []  # nodes, and what they become
        self.added: dict[str, Value] = {}

    def _rows(self):
        """How many steps a call appends: 1 or TIME."""
        graph = self.graph
        found = {graph.values[c.new].dims[c.axis] for c in self.caches.values()}
        rows = found.pop()
        if found or rows not in (1, D.TIME) or (rows == D.TIME and "time" in self.past):
            sizes = ", ".join(map(str, sorted({str(rows), *map(str, found)})))
            text = "a stream keeps caches if a call appends one step, or as many as it has (`time`)"
            raise Refused(f"{self._name()} grows by {sizes} steps a call: {text}")
        timed = [n for n in graph.inputs if D.TIME in graph.values[n].dims and n not in self.caches]
        if rows == 1 and timed:
            raise Refused(f"{self._name()} grows by one step a call, but the input {timed[0]} has a time axis")
        return rows

    def _name(self) -> str:
        return f"the cache {next(iter(self.caches))}"

    def _depends(self, dim) -> bool:
        return bool(D.symbols(dim) & self.past)

    def _check_inputs(self) -> None:
        """No input but the caches changes its size from call to call."""
        for value in (self.graph.values[name] for name in self.graph.inputs if name not in self.caches):
            if any(map(self._depends, value.dims)):
                text = (
                    "changes its size from call to call, and is no cache, and no mask that hides steps from attention"
                )
                raise Refused(f"the input {value} {text}")

    # -- the walk --
    def done(self) -> Graph:
        graph = self.graph
        touched = {*self.caches}  # values that depend on how much the caches hold
        for node in graph.nodes:
            attrs = [d for v in node.attrs.values() for d in (v if isinstance(v, tuple) else (v,))]
            own = any(self._depends(d) for o in node.outputs if o for d in graph.values[o].dims)
            if not (own or any(i in touched for i in node.inputs) or any(map(self._depends, attrs))):
                self._stays(node)
            elif node.outputs[0] in self.keys:
                touched.add(node.outputs[0])
                self.after.append((node, None))
            elif node.op == "attention" and any(i in touched for i in node.inputs[1:3]):
                self.after.append((node, self._attention(node, touched)))
            elif node.op == "steps" and node.attrs["dims"] == (self.rows,):
                self.after.append((node, self._steps(node)))
            elif (start := self.masks.counted(node.outputs[0])) is not None:
                self._numbers(node, start)
            else:
                touched.update(o for o in node.outputs if o)
                self.after.append((node, node))
        ends = tuple(o for o in graph.outputs if o not in self.keys)
        for name in ends:
            if name in touched:
                raise Refused(self._culprit(name, touched))
        made = self._with(ends)
        self._check_calls(made)
        return made

    def _culprit(self, name: str, touched: set[str]) -> str:
        """Why a value can't be made without the number of cached steps: it has as many, or a node made it a number."""
        value = self.graph.values[name]
        if any(map(self._depends, value.dims)):
            return f"{value} has a value for each step of the caches, which a stream does not return"
        made = [n for n in needed(self.graph, [name], makers=self.makers) if n.outputs[0] in touched]
        first = next(n for n in made if not any(map(self._depends, self.graph.values[n.outputs[0]].dims)))
        text = "depends on how many steps the caches hold, other than by positions and the masks of attention"
        return f"node {first.name} ({first.op}): {text}"

    def _stays(self, node: Node) -> None:
        """A node that has nothing to do with caches: with steps of its own, it must not look from one to the other."""
        if self.rows == D.TIME and node.op == "steps" and D.TIME in node.attrs["dims"]:
            self.masks.counted_anew[node.outputs[0]] = node.name
        self.after.append((node, node))

    def _steps(self, node: Node) -> Node:
        """Numbers from as many on as the caches hold."""
        starts = [D.substitute(node.attrs["start"], dict.fromkeys(self.past, k)) for k in (0, 1)]
        if starts[1] - starts[0] != 1 or not isinstance(starts[0], int):
            raise Refused(f"node {node.name} (steps): counts from {node.attrs['start']}")
        return replace(node, attrs={**node.attrs, "start": starts[0], **self._grows()})

    def _numbers(self, node: Node, start: int) -> None:
        """A value in which each step has its number, made in another way than by `steps`."""
        value, name = self.graph.values[node.outputs[0]], fresh(f"{node.name}.steps", self.graph.values, self.added)
        steps = self.added[name] = Value(name, "int64", (self.rows,))
        made = [Node("steps", name, (), (name,), {"dims": (self.rows,), "start": start, **self._grows()})]
        if value.dtype != "int64":
            typed = self.added[f"{name}.cast"] = Value(f"{name}.cast", value.dtype, steps.dims)
            made.append(Node("cast", typed.name, (name,), (typed.name,), {"to": value.dtype}))
        flat = tuple(1 if d == D.BATCH else d for d in value.dims)
        one = node.outputs if flat == value.dims else (f"{name}.row",)
        made.append(Node("reshape", node.name, made[-1].outputs, one, {"dims": flat}))
        if flat != value.dims:
            self.added[one[0]] = Value(one[0], value.dtype, flat)
            made.append(Node("expand", f"{node.name}.rows", one, node.outputs, {"dims": value.dims}))
        self.after += [(made[-1], part) for part in made]

    def _grows(self) -> dict:
        return {"grows": True} if self.rows == 1 or self.beside_tails else {}

    def _attention(self, node: Node, touched: set[str]) -> Node:
        """The same queries over the keys of this call and of earlier ones."""
        q = self.graph.values[node.inputs[0]]
        if node.inputs[0] in touched:
            raise Refused(self._culprit(node.inputs[0], touched))
        if q.dims[2] != self.rows:
            raise Refused(f"node {node.name} (attention): its queries {q} are not the steps of the call")
        self._check_keys(node, touched)
        width, kept = self.masks.seen(node, touched)
        inputs = [*node.inputs[:3], *(n if n in kept else None for n in node.inputs[3:])]
        while inputs[-1] is None:
            inputs.pop()
        return replace(
            node,
            inputs=tuple(inputs),
            attrs={**node.attrs, "causal": True, "window": width, "offset": 0} | self._grows(),
        )

    def _check_keys(self, node: Node, touched: set[str]) -> None:
        """Keys and values are made of the caches' steps, each of one step alone, in their order."""
        ends = node.inputs[1:3]
        nodes = needed(self.graph, ends, given=self.keys, makers=self.makers)
        inputs = tuple(dict.fromkeys(i for i in (*free_inputs(nodes), *ends) if i in self.keys))
        other = [i for i in free_inputs(nodes) if i not in self.keys and i not in self.graph.constants]
        if other or len(inputs) < 1 or any(n.op in ("cell", "state", "attention") for n in nodes):
            raise Refused(
                f"node {node.name} (attention): its keys are made of {', '.join(other) or 'other layers'} too"
            )
        # As if a call had one step and the caches all others: no other length of the file fits then.
        length = dict.fromkeys(self.past, D.TIME - 1) | ({} if self.rows == 1 else {"time": 1})
        part = resized(self.graph, length)
        part = part.replace(inputs=inputs, outputs=ends, nodes=tuple(resized_node(n, length) for n in nodes), states={})
        found = follow(part, "time")
        tracks = [found.tracks.get(name) for name in ends]
        if found.problems or tracks != [Track(2, 1, INPUT)] * 2:
            text = "; ".join(found.problems) or "are not the caches' steps one by one"
            raise Refused(f"node {node.name} (attention): its keys or values {text}")

    # -- the result --
    def _with(self, ends: tuple[str, ...]) -> Graph:
        zero = dict.fromkeys(self.past, 0)
        nodes = []
        for before, after in self.after:
            if after is None:
                continue
            after = resized_node(after, zero)
            if before.op == after.op == "steps" and before.attrs["dims"] != after.attrs["dims"]:  # the numbers of keys
                after = replace(after, attrs={**after.attrs, **self._grows()})
            nodes.append(replace(after, inputs=tuple(self.keys.get(i, i) for i in after.inputs)))
        graph = resized(self.graph.replace(values={**self.graph.values, **self.added}), zero)
        inputs = tuple(n for n in graph.inputs if n not in self.caches)
        states = {a: b for a, b in graph.states.items() if a not in self.caches}
        nodes = tuple(needed(graph.replace(nodes=tuple(nodes)), ends))
        read = {*inputs, *ends, *(n for node in nodes for n in (*node.inputs, *node.outputs))}
        values = {n: v for n, v in graph.values.items() if n in read}
        constants = {n: a for n, a in graph.constants.items() if n in read}
        return graph.replace(
            inputs=inputs, outputs=ends, nodes=nodes, values=values, constants=constants, states=states, requires=()
        )

    def _check_calls(self, made: Graph) -> None:
        """Each call of the file goes on where the one before ended: nothing but the caches and the states remembers a
        step, and no number starts anew."""
        if any(self._depends(d) for dim, _ in self.graph.requires for d in (dim,)):
            raise Refused(f"{self._name()} has a length on which the sizes of the file depend")
        if self.rows == 1:
            return
        found = follow(made, "time")
        if found.problems:  # a stream refuses it anyway
            return
        looking = {n.name.removesuffix(".tail") for n in rewrite(made, made.outputs)[0].nodes if n.op == "keep"}
        proved = tails(made).states  # their next values are the ends of what is in front of the chunk and the chunk
        ends = {n.name for n in needed(made, [made.states[name] for name in proved])}
        ends -= {n.name for n in needed(made, [o for name, o in self._others(made) if name not in proved])}
        for node in made.nodes:
            anew = self.masks.counted_anew.get(node.outputs[0])
            if anew is not None:
                raise Refused(f"node {anew} (steps): its numbers start anew at each call, and caches go on")
            clock = next((found.tracks[o].clock for o in node.outputs if o in found.tracks), INPUT)
            runs = any(o in found.running for o in node.outputs if o) and node.op != "cell" and node.name not in ends
            if clock != INPUT or runs or node.name in looking or self._begins_anew(made, node):
                text = "looks at other steps of the call, and starts anew at the next one"
                raise Refused(f"node {node.name} ({node.op}): {text}, while caches go on")
        over = [n for n in made.nodes if n.op == "attention" and n.name not in self.masks.over_caches]
        lost = [n for n in over if D.TIME in made.values[n.inputs[1]].dims]
        if lost:
            raise Refused(f"node {lost[0].name} (attention): attends to the steps of a call alone, while caches go on")

    def _others(self, graph: Graph) -> list[tuple[str, str]]:
        """(state, its next value) of each state, and ("", output) of each other output."""
        states = {b: a for a, b in graph.states.items()}
        return [(states.get(o, ""), o) for o in graph.outputs]

    def _begins_anew(self, graph: Graph, node: Node) -> bool:
        """Whether a recurrence over the steps does not continue from states that the caller threads."""
        if node.op not in ("cell", "state") or D.TIME not in graph.values[node.outputs[0] or node.inputs[0]].dims:
            return False
        starts = node.inputs[6:8] if node.op == "cell" else node.inputs[1:]
        count = 1 if node.op == "state" else 1 + (node.attrs["spec"].kind == "lstm")
        threaded = [i for i in starts if i is not None and roots(graph, i) & set(graph.states)]
        return len(threaded) < count
