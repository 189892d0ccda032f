"""Finds T copies of the same nodes, one per step of a sequence, and replaces them with one node: the body, run T times.

Exporters write a Python loop over `x[:, t]` as such copies. A copy may read its step of any number of sequences, values
of the copies before it and values that are the same for all. Nothing is assumed about what it computes.

    masks       which steps of the sequences each value depends on. The values of copy t depend on steps 0 to t (on
                T - 1 - t to T - 1 if the loop runs backwards), or on step t alone.
    template    the nodes of one copy in the middle. What it reads of the copy before it corresponds to what the copy
                after it reads of it.
    followed    the template is followed to both ends by look-up (followed.py). Every copy must consist of the same
                nodes with the same constants and weights, and read its own step. A loop in which a constant changes
                from step to step is left as it is.
    readers     outside the copies, only a Concat of all steps and anything of the last copy may be read.
"""

from __future__ import annotations

from collections import defaultdict

from ....errors import ModelFormatError
from ..reading.nodes import OnnxNode, sort_nodes
from .followed import Cell, Followed, NotCopies
from .numbering import Numbering, Record, Source

_LEAST = 3  # copies; of two, none is in the middle
_MOST = 32  # loops of one file; finding one visits every node a few times
_FAR = 6  # the template is at most this copy: names of its values are compared over as many copies


def roll_up(
    nodes: list[OnnxNode], constants: dict, known: set[str], outputs: list[str], opset: int, refused: set[str]
) -> list[OnnxNode]:
    """The nodes with copies replaced, sorted and pruned. refused: labels of replaced loops that the walk refused."""
    for _ in range(_MOST):
        left = _one_loop(nodes, constants, known, outputs, opset, refused)
        if left is None:
            return nodes
        nodes = left
    return nodes


def _one_loop(nodes, constants, known, outputs, opset, refused) -> list[OnnxNode] | None:
    try:
        numbering = Numbering(nodes, constants, opset)
    except (ModelFormatError, ValueError, IndexError, KeyError, TypeError):
        return None  # a malformed node: the walk reports the error
    taken: dict[Source, dict[int, int]] = defaultdict(dict)
    for number, (source, index) in numbering.takes.items():
        taken[source][index] = number
    counts = sorted({len(t) for t in taken.values() if len(t) >= _LEAST and set(t) == set(range(len(t)))}, reverse=True)
    for count in counts:
        sources = {s: t for s, t in taken.items() if len(t) == count and set(t) == set(range(count))}
        for backwards in (False, True):
            found = _Search(numbering, sources, count, backwards, outputs)
            for part in found.parts():
                try:
                    node, copied = found.replacement(part)
                    if node.label in refused:
                        continue
                    maker = {o: n for n in nodes for o in n.outputs if o} | dict.fromkeys(node.outputs, node)
                    left = sort_nodes(maker, known | set(constants), outputs)
                except (NotCopies, ModelFormatError):
                    continue
                if not copied & set(map(id, left)):
                    return left
    return None


class _Search:
    """Copies for one number of steps and one direction."""

    def __init__(self, numbering: Numbering, sources: dict, count: int, backwards: bool, outputs: list[str]):
        self.numbering, self.count, self.backwards = numbering, count, backwards
        self.sources = sources
        self.outputs = {numbering.of(name) for name in outputs}
        self.readers = numbering.readers()
        self.masks: dict[int, int] = {}
        self.level: dict[int, int] = {}  # number -> copy
        self.alone: set[int] = set()  # numbers that depend on one step alone
        self.records: list[list[Record]] = [[] for _ in range(count)]
        self._mask()
        self._signs: dict[tuple[int, int], dict] = {}
        self._seen: dict[tuple, int] = {}
        self._next: dict[int, dict] = {}

    def index(self, t: int) -> int:
        """The index in a sequence that copy t reads."""
        return self.count - 1 - t if self.backwards else t

    def _mask(self) -> None:
        """Which steps each value depends on, as bits; bit t is what copy t reads."""
        masks, takes = self.masks, self.numbering.takes
        for record in self.numbering.records:
            mask = 0
            for i in record.inputs:
                mask |= masks.get(i, 0)
            if mask == 0:
                for number in record.outputs:
                    source, index = takes.get(number, (None, 0))
                    if source in self.sources:
                        masks[number] = 1 << self.index(index)
                        self.level[number] = self.index(index)
                continue
            top = mask.bit_length() - 1
            alone, first = mask == 1 << top, mask == (2 << top) - 1
            for number in record.outputs:
                masks[number] = mask
                if alone or first:
                    self.level[number] = top
                if alone:
                    self.alone.add(number)
            if alone or first:
                self.records[top].append(record)

    # --- the template ------------------------------------------------------------------------------------------------

    def _part(self, number: int | None, level: int) -> tuple:
        """What copy `level` reads: as a part of a cell, but with numbers of the file in "b" and "s"."""
        if number is None:
            return ("-",)
        if not self.masks.get(number, 0):
            return ("o", number)
        at = self.level.get(number)
        if at is None or at > level:
            raise NotCopies
        source = self.numbering.takes.get(number, (None, 0))[0]
        if source in self.sources and number not in self.alone and at == level:
            return ("x", source)
        return ("b", number) if at == level else ("s", level - at, number)

    def _sign(self, level: int, rounds: int) -> dict[int, tuple]:
        """Number -> a sign that is the same for corresponding values of two copies. rounds: over how many earlier
        copies it looks back."""
        if (level, rounds) in self._signs:
            return self._signs[level, rounds]
        made: dict[int, tuple] = {}
        for record in self.records[level]:
            key: list = [record.kind]
            for number in record.inputs:
                try:
                    part = self._part(number, level)
                except NotCopies:
                    part = ("?",)
                if part[0] == "b":
                    part = ("b", made.get(number))
                elif part[0] == "s":
                    before = self._sign(level - part[1], rounds - 1) if rounds else {}
                    part = ("s", part[1], before.get(number))
                key.append(part)
            sign = self._seen.setdefault(tuple(key), len(self._seen))
            made |= {number: (sign, k) for k, number in enumerate(record.outputs) if number >= 0}
        self._signs[level, rounds] = made
        return made

    def _after(self, level: int, rounds: int) -> dict[int, int]:
        """Number of copy `level` -> the corresponding number of the next copy, as far as signs tell."""
        if level not in self._next:
            groups: list[dict] = [defaultdict(list), defaultdict(list)]
            for k in (0, 1):
                for number, sign in self._sign(level + k, rounds).items():
                    groups[k][sign].append(number)
            found = self._next[level] = {}
            for sign, numbers in groups[0].items():
                others = groups[1].get(sign, [])
                if len(others) == len(numbers):
                    found.update(zip(numbers, others, strict=True))
        return self._next[level]

    def parts(self) -> list[list[Cell]]:
        """Templates: the nodes of one copy, apart if they don't depend on each other."""
        middle = max(1, min(self.count - 3, _FAR))
        rounds = min(4, middle - 1)
        if not any(r.outputs[0] not in self.alone for r in self.records[middle]):
            return []
        cells: dict[int, Cell] = {}
        made: list[Cell] = []
        for record in self.records[middle]:
            cell = Cell(record, record.outputs[0] not in self.alone)
            made.append(cell)
            cells |= {number: (cell, k) for k, number in enumerate(record.outputs)}
        broken: set[int] = set()
        for cell in made:
            try:
                cell.parts = tuple(self._placed(cell, i, middle, rounds, cells) for i in range(len(cell.record.inputs)))
            except NotCopies:
                broken.add(id(cell))
        return [part for part in _connected(made) if not broken & {id(c) for c in part}]

    def _placed(self, cell: Cell, i: int, middle: int, rounds: int, cells: dict) -> tuple:
        """What a cell reads, in terms of cells."""
        part = self._part(cell.record.inputs[i], middle)
        if part[0] == "b":
            return ("b", *cells[part[1]])
        if part[0] != "s":
            return part
        lag = part[1]
        twin = self._after(middle, rounds).get(cell.record.outputs[0])
        if twin is None or lag > middle:
            raise NotCopies
        number = self.numbering.maker[twin][0].inputs[i]
        for k in range(lag - 1):
            number = self._after(middle + 1 - lag + k, rounds).get(number)
        if number not in cells:
            raise NotCopies
        return ("s", lag, *cells[number])

    # --- all copies --------------------------------------------------------------------------------------------------

    def replacement(self, part: list[Cell]) -> tuple[OnnxNode, set[int]]:
        """The node that replaces copies of a template, and the ids of the nodes that it replaces. Raises NotCopies."""
        return Followed(self, part).node()


def _connected(cells: list[Cell]) -> list[list[Cell]]:
    """Cells in groups that don't depend on each other, in order. Groups that depend on no earlier copy are left out;
    cells that depend on one step alone are in every group that reads them."""
    home = {id(c): id(c) for c in cells}

    def root(key: int) -> int:
        while home[key] != key:
            home[key] = home[home[key]]
            key = home[key]
        return key

    for cell in cells:
        for part in cell.parts:
            other = part[1] if part[0] == "b" else part[2] if part[0] == "s" else None
            if other is not None and cell.carried and other.carried:
                home[root(id(cell))] = root(id(other))
    groups: dict[int, list[Cell]] = defaultdict(list)
    for cell in cells:
        if cell.carried:
            groups[root(id(cell))].append(cell)
    found = []
    for group in groups.values():
        needed, stack = {id(c) for c in group}, list(group)
        while stack:
            for part in stack.pop().parts:
                other = part[1] if part[0] == "b" else part[2] if part[0] == "s" else None
                if other is not None and id(other) not in needed:
                    needed.add(id(other))
                    stack.append(other)
        if any(part[0] == "s" for c in group for part in c.parts):
            found.append([c for c in cells if id(c) in needed])
    return found
