"""A template followed through all copies: the proof that they are copies, and the node that replaces them."""

from __future__ import annotations

from dataclasses import replace

from ....records import dataclass
from ..reading.nodes import OnnxNode
from .numbering import Record
from .rolled import DOMAIN, Collected, Copies


class NotCopies(Exception):
    """The nodes are not copies of one body."""


@dataclass(eq=False)
class Cell:
    """One node of the template. parts: what it reads, each a tuple that starts with a letter:

    "o", number: the same value for all copies. "x", source: the step. "b", cell, k: output k of another node of the
    template. "s", lag, cell, k: the same of an earlier copy. "-": nothing.
    """

    record: Record
    carried: bool  # depends on earlier copies, not on one step alone
    parts: tuple = ()


class Followed:
    """search: the copies' masks and numbers. cells: the template. at[t]: (cell, output) -> number in copy t.
    begin: (how many steps before the first, cell, output) -> number of an initial value.

    The constructor raises NotCopies unless each copy applies the operators of the template to its own step, the values
    of copies before it and the values that all share. Only the last copies may lack nodes, those that no copy
    would read.
    """

    def __init__(self, search, cells: list[Cell]):
        self.search, self.numbering, self.cells, self.count = search, search.numbering, cells, search.count
        self.at: list[dict] = [{} for _ in range(self.count)]
        self.begin: dict[tuple, int] = {}
        self.missing: set[int] = set()  # ids of cells that the last copy lacks
        self.middle = middle = search.level[cells[0].record.outputs[0]]
        for cell in cells:
            self._give(middle, cell, cell.record)
        for t in range(middle - 1, -1, -1):
            self._back(t)
        for t in range(self.count):
            self._forth(t)
        self._delay()

    def _give(self, t: int, cell, record: Record) -> None:
        for k, number in enumerate(record.outputs):
            if self.at[t].setdefault((cell, k), number) != number:
                raise NotCopies

    def _back(self, t: int) -> None:
        """Find the values of copy t that later ones read, and from them its nodes, as far as they are known."""
        here = self.at[t]
        for cell in self.cells:
            for i, part in enumerate(cell.parts):
                if part[0] == "s" and (cell, 0) in self.at[min(t + part[1], self.count - 1)]:
                    record, _ = self._record(t + part[1], cell)
                    if here.setdefault(part[2:], record.inputs[i]) != record.inputs[i]:
                        raise NotCopies
        for cell in reversed(self.cells):
            known = [k for k in range(len(cell.record.outputs)) if (cell, k) in here]
            if not known:
                continue
            record, k = self.numbering.maker.get(here[cell, known[0]], (None, 0))
            if record is None or k != known[0] or record.kind != cell.record.kind:
                raise NotCopies
            if len(record.inputs) != len(cell.parts):
                raise NotCopies
            self._give(t, cell, record)
            for part, number in zip(cell.parts, record.inputs, strict=True):
                if part[0] == "b" and here.setdefault(part[1:], number) != number:
                    raise NotCopies
                if part[0] == "s" and part[1] > t and self._initial(part, t, number) != number:
                    raise NotCopies

    def _initial(self, part: tuple, t: int, number: int) -> int:
        return self.begin.setdefault((part[1] - t, *part[2:]), number)

    def _record(self, t: int, cell) -> tuple[Record, int]:
        found = self.numbering.maker.get(self.at[t].get((cell, 0), -1)) if t < self.count else None
        if found is None:
            raise NotCopies
        return found

    def _inputs(self, t: int, cell) -> tuple | None:
        """The numbers that a cell reads in copy t; None if the copy lacks one."""
        found: list = []
        for part in cell.parts:
            if part[0] == "-":
                found.append(None)
            elif part[0] == "o":
                found.append(part[1])
            elif part[0] == "x":
                found.append(self.search.sources[part[1]][self.search.index(t)])
            elif part[0] == "b":
                found.append(self.at[t].get(part[1:]))
            elif part[1] > t:
                found.append(self.begin.get((part[1] - t, *part[2:])))
            else:
                found.append(self.at[t - part[1]].get(part[2:]))
            if found[-1] is None and part[0] != "-":
                return None
        return tuple(found)

    def _forth(self, t: int) -> None:
        """Look every node of copy t up, by what it must read."""
        for cell in self.cells:
            inputs = self._inputs(t, cell)
            record = None if inputs is None else self.numbering.lookup(cell.record.kind, inputs)
            if record is None and t > self.middle:
                if t == self.count - 1 and (cell, 0) in self.at[t - 1]:
                    self.missing.add(id(cell))
                continue  # what reads it is not found either, and then no output is
            if record is None:
                raise NotCopies
            self._give(t, cell, record)

    # --- where the step begins ---------------------------------------------------------------------------------------

    def _delay(self) -> None:
        """Nodes that the last copy lacks are the first ones of the next copy: the product of h with its weights. Count
        them to the copy that reads them, so that h is what is carried. If the first copy has no such nodes, because
        they were computed at export, their results are carried."""
        late = [c for c in self.cells if id(c) in self.missing]
        found = self._before_the_first(late) if late and self._may_wait() else None
        if found is not None:
            self._moved(late, *found)

    def _may_wait(self) -> bool:
        """Whether only the next copy reads the nodes that the last copy lacks, and they read only their own copy."""
        for cell in self.cells:
            for part in cell.parts:
                if id(cell) in self.missing and part[0] in "xs":
                    return False
                if part[0] == "b" and id(part[1]) in self.missing and id(cell) not in self.missing:
                    return False
                if part[0] == "s" and id(part[2]) in self.missing and part[1] != 1:
                    return False
        return True

    def _before_the_first(self, late: list[Cell]) -> tuple[dict, dict] | None:
        """(`begin`, values of the cells `late` in the first copy) if these cells are counted to the copy after; None if
        the first copy does not read what such cells make."""
        begin, first = dict(self.begin), {}
        for cell in reversed(late):
            known = [(k, begin.pop((1, cell, k))) for k in range(len(cell.record.outputs)) if (1, cell, k) in begin]
            known += [(k, first[cell, k]) for k in range(len(cell.record.outputs)) if (cell, k) in first]
            record, k = self.numbering.maker.get(known[0][1], (None, 0)) if known else (None, 0)
            if record is None or k != known[0][0] or record.kind != cell.record.kind:
                return None
            if any(record.outputs[k] != number for k, number in known) or len(record.inputs) != len(cell.parts):
                return None
            first |= {(cell, k): number for k, number in enumerate(record.outputs)}
            for part, number in zip(cell.parts, record.inputs, strict=True):
                if part[0] == "b" and id(part[1]) in self.missing:
                    same = first.setdefault(part[1:], number)
                elif part[0] == "b":
                    same = begin.setdefault((1, *part[1:]), number)
                else:
                    same = part[1] if part[0] == "o" else None
                if same != number:
                    return None
        return begin, first

    def _moved(self, late: list[Cell], begin: dict, first: dict) -> None:
        """Count the cells `late` to the copy after."""
        for t in range(self.count - 1, -1, -1):
            for cell in late:
                for k in range(len(cell.record.outputs)):
                    self.at[t][cell, k] = self.at[t - 1][cell, k] if t else first[cell, k]
        for cell in self.cells:
            parts = []
            for part in cell.parts:
                if cell in late:
                    part = ("s", 1, *part[1:]) if part[0] == "b" and part[1] not in late else part
                elif part[0] == "s" and part[2] in late:
                    part = ("b", *part[2:])
                parts.append(part)
            cell.parts = tuple(parts)
        self.begin, self.missing = begin, set()
        self.cells = late + [c for c in self.cells if c not in late]

    # --- the node ----------------------------------------------------------------------------------------------------

    def node(self) -> tuple[OnnxNode, set[int]]:
        """The node that replaces the copies, and the ids of the nodes that it replaces."""
        label = self.cells[-1].record.nodes[0].label
        label = f"{self.count} copies of {label}"
        names: dict[tuple, str] = {}
        for n, cell in enumerate(self.cells):
            names |= {(cell, k): f"{label}/{n}.{k}" for k, o in enumerate(cell.record.outputs) if o >= 0}
        carried = {c for c in self.cells if c.carried}
        made = {
            self.numbering.maker[n][0]
            for here in self.at
            for (c, _), n in here.items()
            if c in carried and self.search.masks.get(n)
        }
        outputs: list[str] = []
        wanted: list[Collected] = []
        for (cell, k), name in names.items():
            if cell in carried:
                for kind, number in self._readers(cell, k, made):
                    for other in self.numbering.names[number]:
                        outputs.append(other)
                        wanted.append(replace(kind, value=name))
        if not outputs:
            raise NotCopies
        body, states, steps = self._body(label, names)
        inputs = dict.fromkeys(i for node in body for i in node.inputs if i)
        inputs = [i for i in inputs if i not in names.values() and i not in states and i not in steps]
        inputs += [start for _, start in states.values() if start not in states]
        inputs += [name for name, _ in steps.values()]
        payload = Copies(self.count, self.search.backwards, body, states, steps, wanted)
        node = OnnxNode("Copies", DOMAIN, label, list(dict.fromkeys(inputs)), outputs, {}, payload)
        return node, {id(n) for record in made for n in record.nodes}

    def _readers(self, cell, k: int, made: set) -> list[tuple]:
        """(kind of output, number) of everything that is read of a value of the copies from outside."""
        numbers = [here.get((cell, k)) for here in self.at]
        found = {}
        for t, number in enumerate(numbers):
            if not self.search.masks.get(number):  # absent, or computed before the first step
                continue
            last = t == self.count - 1
            outside = number in self.search.outputs
            for record in self.search.readers.get(number, ()):
                if record in made:
                    continue
                flipped = record.inputs == tuple(reversed(numbers))
                if record.kind[:2] == ("", "Concat") and (flipped or record.inputs == tuple(numbers)):
                    axis = next(a.i for n in record.nodes for key, a in n.attrs.items() if key == "axis")
                    found[record.outputs[0]] = Collected("", axis, flipped)
                else:
                    outside = True
            if outside and not last:
                raise NotCopies
            if outside:
                found[number] = Collected("")
        return [(kind, number) for number, kind in found.items()]

    def _body(self, label: str, names: dict) -> tuple[list[OnnxNode], dict, dict]:
        """(nodes of one copy, states, steps) as in `Copies`."""
        states: dict[str, tuple[str, str]] = {}
        steps: dict[str, tuple] = {}
        sources: dict = {}
        body = []
        for cell in self.cells:
            node, inputs = cell.record.nodes[0], []
            for part in cell.parts:
                if part[0] == "-":
                    inputs.append("")
                elif part[0] == "o":
                    inputs.append(self.numbering.names[part[1]][0])
                elif part[0] == "b":
                    inputs.append(names[part[1:]])
                elif part[0] == "x":
                    name = sources.setdefault(part[1], f"{label}/x{len(sources)}")
                    steps[name] = (self.numbering.names[part[1].number][0], part[1])
                    inputs.append(name)
                else:
                    inputs.append(self._state(label, names, states, *part[1:]))
            outputs = [names.get((cell, k), "") for k in range(len(node.outputs))]
            body.append(replace(node, inputs=inputs, outputs=outputs))
        return body, states, steps

    def _state(self, label: str, names: dict, states: dict, lag: int, cell, k: int) -> str:
        """The name of a value `lag` steps before; adds the states that hold it."""
        name = f"{names[cell, k]}~{lag}"
        if name not in states:
            start = self.begin.get((lag, cell, k))
            if start is None:
                raise NotCopies
            states[name] = ("", "")  # its place, before those of other lags
            before = names[cell, k] if lag == 1 else self._state(label, names, states, lag - 1, cell, k)
            states[name] = (before, self.numbering.names[start][0])
        return name
