"""Lifts the nodes of one step over all steps: each value that differs between steps gets a leading axis of steps.

    lift = Lift(ctx, steps)
    lift.lifted[placeholder] = sequence     # an input of the step, for all steps: [steps, ..]
    lift.nodes(entries)                     # the nodes recorded for one step
    y = lift.whole(value)                   # a value of the step, for all steps

Values that don't depend on the step are computed once.
"""

from __future__ import annotations

from ....graph import dims as D
from ....graph.dims import Dim
from ...shared.ledger import Finding
from ..reading.values import Growing, Items, Live, scalar
from .trips import Affine


def alive(ctx, entries: list, roots: list) -> list:
    """The entries that the abstract values `roots` need, and those that the draft may use again."""
    needed = {v.name for v in roots if isinstance(v, Live)} | {v.name for _, v in ctx.known_numbers()}
    for value in roots:
        parts = (*value.before, *value.after) if isinstance(value, Growing) else ()
        needed |= {v.name for v in parts if isinstance(v, Live)}
        needed |= {value.source.name} if isinstance(value, Items) else set()
    kept = []
    for entry in reversed(entries):
        if needed & set(entry[3]) or entry[0] == "steps":
            needed |= {i for i in entry[2] if i is not None}
            kept.append(entry)
    return kept[::-1]


class Lift:
    """Lifts the entries of GraphDraft.nodes. counters: one-element values that are start + stride * step -> (start,
    stride)."""

    def __init__(self, ctx, steps):
        self.ctx, self.steps = ctx, steps
        self.lifted: dict[str, Live] = {}
        self.counters: dict[str, tuple] = {}
        self.one_step: dict[str, tuple] = {}  # dims of a lifted value at one step

    def give(self, placeholder: Live, sequence: Live) -> None:
        """Set the value `placeholder` of one step to `sequence` over all steps."""
        self.lifted[placeholder.name] = sequence
        self.one_step[placeholder.name] = placeholder.dims

    def nodes(self, entries: list) -> None:
        """Append the lifted form of each node to the graph."""
        numbers = Affine(self.ctx, self.counters)
        for entry in sorted(entries, key=lambda e: e[0] != "steps"):  # the draft shares positions: also with a counter
            op, label, inputs, outputs, attrs = entry
            if any(i in self.counters for i in inputs):
                how = numbers.made(entry)
                if how is not None and self.ctx.values[outputs[0]].dims in ((), (1,)):
                    self.counters[outputs[0]] = how
            if op == "state":
                raise Finding(f"nested cycles (node {label})")
            if not any(i in self.lifted or i in self.counters for i in inputs):
                self.ctx.nodes.append(entry)
                continue
            self.ctx.labels.discard(label)
            self.ctx.label = label
            rule = getattr(self, f"_{op}", None)
            if rule is None or len([o for o in outputs if o is not None]) != 1:
                raise Finding(f"a {op} at every step of it (node {label})")
            if outputs[0] in self.counters:  # handled by its readers
                continue
            value = self.ctx.values[outputs[0]]
            made = rule(list(inputs), attrs, value.dims)
            self.lifted[outputs[0]] = made
            self.one_step[outputs[0]] = value.dims

    def whole(self, value) -> Live:
        """A value of one step for all steps, [steps, ..]; a constant value is repeated."""
        if isinstance(value, Live) and (value.name in self.lifted or value.name in self.counters):
            return self._of(value.name)
        live = self.ctx.live(value)
        return self.ctx.one("expand", live, dims=(self.steps, *live.dims))

    # -- helpers --
    def _of(self, name: str) -> Live:
        """A value by name: lifted if it differs between steps, otherwise unchanged."""
        if name in self.counters:  # the step numbers as values
            value, numbers = self.ctx.values[name], self.ctx.positions(self.steps)
            start, stride = self.counters[name]
            if stride != 1:
                numbers = self.ctx.one("binary", numbers, scalar(stride), fn="mul")
            if isinstance(start, Dim) or start != 0:
                numbers = self.ctx.one("binary", numbers, scalar(start), fn="add")
            if value.dtype != numbers.dtype:
                numbers = self.ctx.one("cast", numbers, to=value.dtype)
            return self.ctx.reshape(numbers, (self.steps, *value.dims))
        if name in self.lifted:
            return self.lifted[name]
        value = self.ctx.values[name]
        return Live(name, value.dtype, value.dims)

    def _differs(self, name: str) -> bool:
        return name in self.lifted or name in self.counters

    def _aligned(self, names: list, rank: int) -> list[Live]:
        """Inputs that broadcast to `rank` axes per step: ones are inserted after the steps of lower-rank inputs."""
        found = []
        for name in names:
            live = self._of(name)
            if self._differs(name):
                ones = (1,) * (rank + 1 - len(live.dims))
                live = self.ctx.reshape(live, (self.steps, *ones, *live.dims[1:]))
            found.append(live)
        return found

    def _elementwise(self, op: str):
        def rule(names, attrs, dims):
            return self.ctx.emit(op, self._aligned(names, len(dims)), attrs)[0]

        return rule

    def _later(self, op: str, names, attrs, *keys: str) -> Live:
        """The same op with its axes shifted by one; inputs after the first must not depend on the step."""
        if any(self._differs(n) for n in names[1:] if n is not None):
            raise Finding(f"a {op} whose parameters change from step to step")
        attrs = dict(attrs)
        for key in keys:
            attrs[key] = tuple(a + 1 for a in attrs[key]) if isinstance(attrs[key], tuple) else attrs[key] + 1
        return self.ctx.emit(op, [None if n is None else self._of(n) for n in names], attrs)[0]

    # -- one rule per op: (names of inputs, attributes, dims of the result at one step) -> the lifted result --
    def _unary(self, names, attrs, dims):
        return self._elementwise("unary")(names, attrs, dims)

    def _binary(self, names, attrs, dims):
        return self._elementwise("binary")(names, attrs, dims)

    def _where(self, names, attrs, dims):
        return self._elementwise("where")(names, attrs, dims)

    def _cast(self, names, attrs, dims):
        return self._later("cast", names, attrs)

    def _linear(self, names, attrs, dims):
        return self._later("linear", names, attrs)

    def _matmul(self, names, attrs, dims):
        """Vectors first become matrices of one row or column, so that axes can't be confused."""
        sides = []
        for k, name in enumerate(names):
            live, lead = self._of(name), self._differs(name)
            own = live.dims[1:] if lead else live.dims
            if len(own) == 1:
                own = (own[0], 1) if k else (1, own[0])
            sides.append((live, own, lead))
        rank = max(len(own) for _, own, _ in sides)
        inputs = []
        for live, own, lead in sides:
            full = (self.steps, *(1,) * (rank - len(own)), *own) if lead else own
            inputs.append(self.ctx.reshape(live, full))
        return self.ctx.reshape(self.ctx.one("matmul", *inputs), (self.steps, *dims))

    def _transpose(self, names, attrs, dims):
        return self.ctx.transpose(self._of(names[0]), (0, *(p + 1 for p in attrs["perm"])))

    def _reshape(self, names, attrs, dims):
        return self.ctx.reshape(self._of(names[0]), (self.steps, *attrs["dims"]))

    def _expand(self, names, attrs, dims):
        (x,) = self._aligned(names, len(dims))
        return self.ctx.one("expand", x, dims=(self.steps, *attrs["dims"]))

    def _slice(self, names, attrs, dims):
        return self._later("slice", names, attrs, "axis")

    def _concat(self, names, attrs, dims):
        parts = [self.whole(self._of(n)) if not self._differs(n) else self._of(n) for n in names]
        return self.ctx.one("concat", *parts, axis=attrs["axis"] + 1)

    def _reduce(self, names, attrs, dims):
        return self._later("reduce", names, attrs, "axes")

    def _softmax(self, names, attrs, dims):
        return self._later("softmax", names, attrs, "axis")

    def _layer_norm(self, names, attrs, dims):
        return self._later("layer_norm", names, attrs, "axis")

    def _argmax(self, names, attrs, dims):
        return self._later("argmax", names, attrs, "axis")

    def _cumsum(self, names, attrs, dims):
        return self._later("cumsum", names, attrs, "axis")

    def _pad(self, names, attrs, dims):
        rank = len(attrs["pads"]) // 2
        pads = (0, *attrs["pads"][:rank], 0, *attrs["pads"][rank:])
        return self.ctx.one("pad", self._of(names[0]), **{**attrs, "pads": pads})

    def _gather(self, names, attrs, dims):
        """Indexing a sequence by the step number lifts to the sequence itself, with its steps first."""
        table, index, axis = self._of(names[0]), names[1], attrs["axis"]
        if index in self.counters and not self._differs(names[0]):
            taken = self._taken(table, axis, *self.counters[index])
            first = self.ctx.transpose(taken, (axis, *(a for a in range(len(table.dims)) if a != axis)))
            return self.ctx.reshape(first, (self.steps, *dims))
        if not self._differs(index):
            return self._later("gather", names, attrs, "axis")
        if self._differs(names[0]):
            raise Finding("a lookup in a table that changes from step to step, by an index that changes too")
        found = self.ctx.one("gather", table, self._of(index), **attrs)
        return self.ctx.transpose(found, (axis, *(a for a in range(len(found.dims)) if a != axis)))

    def _taken(self, table: Live, axis: int, start, stride) -> Live:
        """The elements start + stride * step of an axis, for all steps."""
        size, steps = table.dims[axis], self.steps
        if (start, stride) == (0, 1) and (size == steps or D.may_be_negative(size - steps)):
            self.ctx.equal(size, steps, "a sequence must have as many steps as the loop")
            return table
        last = start + stride * (steps - 1)
        low, high = (start, last) if stride > 0 else (last, start)
        for room in (low, size - 1 - high):
            if not isinstance(room, Dim) and room < 0:
                raise Finding(f"it takes the elements {low} to {high} of an axis of {size}")
            if D.may_be_negative(room):
                self.ctx.table.shortfalls.append(D.shortfall(room, 0))
        if stride == 0:
            raise Finding("it takes the same element in each step")
        if not isinstance(size, Dim):  # a table that is looked up by position
            raise Finding(f"it takes the elements {low} to {high} of an axis of {size}, as many as the sizes say")
        return self.ctx.slice(table, axis, start, last + (1 if stride > 0 else -1), stride)

    def _rows(self, op: str, names, attrs, dims):
        """Windows work row by row, so steps become rows like those of the batch."""
        if any(self._differs(n) for n in names[1:] if n is not None):
            raise Finding(f"a {op} whose weights change from step to step")
        x = self._of(names[0])
        rows = self.ctx.reshape(x, (D.product(x.dims[:2]), *x.dims[2:]))
        inputs = [rows, *(None if n is None else self._of(n) for n in names[1:])]
        return self.ctx.reshape(self.ctx.emit(op, inputs, attrs)[0], (self.steps, *dims))

    def _conv(self, names, attrs, dims):
        return self._rows("conv", names, attrs, dims)

    def _conv_transpose(self, names, attrs, dims):
        return self._rows("conv_transpose", names, attrs, dims)

    def _pool(self, names, attrs, dims):
        return self._rows("pool", names, attrs, dims)
