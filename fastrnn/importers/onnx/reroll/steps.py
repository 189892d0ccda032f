"""All steps of the body of a Scan or Loop: lifted over a size of the input, or written out one after the other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ....errors import ModelFormatError, ShapeError, UnsupportedError
from ....graph import DTYPES
from ....graph.dims import Dim
from ...shared.ledger import Finding
from ..ops.sequences import joined
from ..reading.reader import NodeReader
from ..reading.values import Collected, Const, Fill, Growing, Ints, Items, Live, Widen, ints, scalar, uniform
from .body import Body
from .lift import Lift, alive
from .trips import Affine

MAX_WRITTEN = 20_000  # most nodes in a body that is written out
UNBOUND = "give the loop a largest number of steps in the program (for i in range(N): ... break)"
_GOING = "going on"  # the carried value that says whether a condition on data still holds: 1 or 0, float32


class Steps:
    """All steps of a body. steps: how many; None if only a condition ends them. scanned: body input -> sequence
    [steps, ..]. counters: body inputs that are start + stride * step -> (start, stride). known, kept: body inputs that
    are the same at every step (kept: carried ones)."""

    def __init__(self, ctx, n: NodeReader, body: Body, steps, starts: list):
        self.ctx, self.n, self.body, self.steps, self.starts = ctx, n, body, steps, starts
        self.scanned: dict[str, Live] = {}
        self.counters: dict[str, tuple] = {}
        self.known: dict = {}
        self.kept: dict = {}
        self.forward = True
        self.pairs: dict[str, str] = {}

    def carry(self, pairs: dict[str, str]) -> None:
        """Set the carried values: body input -> body output, in order."""
        self.pairs = pairs
        self.given = dict(zip(pairs, self.starts, strict=True))
        self.start = dict(self.given)
        self._free_rows()

    def outputs(self, collected: list[str]) -> tuple[list, list]:
        """(final carried values, sequences of the collected outputs)."""
        if not isinstance(self.steps, Dim) and self.steps == 0:
            return list(self.given.values()), self._nothing(collected)
        thaws = _GOING not in self.pairs and not isinstance(self.steps, Dim)
        steps = self._thawed() if thaws else self.steps
        if isinstance(steps, Dim):
            return self._lifted(steps, collected)
        self.start |= self.given
        return self._written_out(steps, collected)

    # --- a condition on data -----------------------------------------------------------------------------------------

    def stop_early(self, condition: str, first) -> None:
        """Let a condition on data end the loop: from then on, all carried values keep their last value. condition: a
        body output; first: the condition before the first step, if that depends on data too."""
        walk, before = self.body.walk, dict(self.pairs)
        names = {name: f"{name} while {_GOING}" for name in before}

        def frozen(values: dict) -> dict:
            made, going = dict(walk(values)), values[_GOING]
            on = None if isinstance(going, Const) else self.ctx.one("binary", going, Const(_HALF), fn="greater")
            for name, out in before.items():
                plain = on is None or name in self.known or name in self.counters
                made[names[name]] = made[out] if plain else self._held(on, made[out], values[name])
            made[f"still {_GOING}"] = self._still(going, self._on_data(made[condition], values))
            return made

        self.body = replace(self.body, walk=frozen)
        self.pairs = {**names, _GOING: f"still {_GOING}"}
        self.start[_GOING] = Const(np.ones((), np.float32)) if first is None else self._flag(first)

    def _on_data(self, condition, values: dict) -> list:
        """The parts of a condition that don't follow from the number of steps, as numbers 1 or 0."""
        counters = {values[k].name: how for k, how in self.counters.items() if isinstance(values[k], Live)}
        parts = Affine(self.ctx, counters).condition(condition) if counters else None
        if parts is None or not parts.falling:
            return [self._flag(condition)]
        flags = [Live(name, self.ctx.values[name].dtype, self.ctx.values[name].dims) for name, _ in parts.data]
        flags = [self.ctx.unary("not", f) if no else f for f, (_, no) in zip(flags, parts.data, strict=True)]
        return [self._flag(f) for f in flags]

    def _still(self, going, flags: list):
        """Whether the loop goes on after a step."""
        for flag in flags:
            if isinstance(flag, Const) or isinstance(going, Const):
                known, other = (flag, going) if isinstance(flag, Const) else (going, flag)
                going = other if uniform(known) else Const(np.zeros((), np.float32))
            else:
                going = self.ctx.one("binary", going, flag, fn="mul")
        return going

    def _flag(self, condition):
        """A condition as the number 1 or 0."""
        if isinstance(condition, Const | Fill):
            return Const(np.array(bool(uniform(condition)), np.float32))
        return self.ctx.one("cast", self.ctx.reshape(self.ctx.live(condition), ()), to="float32")

    def _held(self, on: Live, new, old):
        """The new value while the loop goes on, else the old one."""
        if new is old:
            return new
        if not all(isinstance(v, Live | Const | Fill | Ints) for v in (new, old)):
            raise Finding("a sequence that grows until a condition on data holds: its length would depend on the data")
        new, old = self.ctx.live(new), self.ctx.live(old)
        if len(new.dims) != len(old.dims) or any(b not in (a, 1) for a, b in zip(new.dims, old.dims, strict=True)):
            raise Finding("a carried value changes its size until a condition on data ends the loop")
        return self.ctx.one("where", on, new, old)

    def _executed(self, going):
        """How many steps ran, as int64. going: the flag before each step, [steps], or a list of them."""
        if isinstance(going, list):
            total = self.ctx.live(going[0])
            for value in going[1:]:
                total = self.ctx.one("binary", total, value, fn="add")
        else:
            total = self.ctx.one("reduce", going, fn="sum", axes=(0,), keepdims=False)
        return self.ctx.one("cast", total, to="int64")

    def _counted(self, name: str, count):
        """A counter after `count` steps, which may be live."""
        begin, stride = self.counters[name]
        start = self.start[name]
        if not isinstance(count, Live):
            value = begin + stride * count
            found = ints([value]) if start.dims else scalar(value)
            kind = np.dtype(DTYPES[self.ctx.kind(start)])
            return Const(found.array.astype(kind)) if isinstance(found, Const) else found
        total = self.ctx.one("binary", count, scalar(stride), fn="mul")
        total = self.ctx.one("binary", total, scalar(begin), fn="add")
        total = self.ctx.reshape(total, start.dims)
        kind = self.ctx.kind(start)
        return total if kind == "int64" else self.ctx.one("cast", total, to=kind)

    # --- one step ----------------------------------------------------------------------------------------------------

    def _nothing(self, collected: list[str]) -> list:
        """The collected outputs of no steps at all."""
        if not any(self.n.needed[len(self.pairs) :]):
            return [None] * len(collected)
        with self.ctx.trial():
            made = self.body.walk(self.one_step())
            kinds = [(self.ctx.kind(made[out]), made[out].dims) for out in collected]
        return [Fill(DTYPES[kind](0), np.dtype(DTYPES[kind]), (0, *dims)) for kind, dims in kinds]

    def _thawed(self):
        """The number of steps; a fixed number becomes the length of a sequence if each step takes one of its
        elements."""
        try:
            with self.ctx.trial() as mark:
                values = self.one_step()
                self.body.walk(values)
                found = [size for _, size in self._taken_by_number(values, self.ctx.nodes[mark:])]
        except (Finding, UnsupportedError):
            return self.steps  # each step needs its number as a constant
        for size in found:
            if isinstance(size, Dim) and self.ctx.table.genuine(size) and self.ctx.table.example(size) == self.steps:
                return size
        return self.steps

    def _taken_by_number(self, values: dict, nodes: list) -> list[tuple]:
        """(value, size of its axis) for each value of which `nodes`, the body at one step, take the element with the
        number of the step."""
        counts = {values[name].name for name, how in self.counters.items() if how == (0, 1)}
        found = []
        for kind, _, inputs, outputs, attrs in nodes:
            if kind in ("cast", "reshape") and inputs[0] in counts:
                counts.add(outputs[0])
            if kind == "gather" and inputs[1] in counts:
                found.append((inputs[0], self.ctx.values[inputs[0]].dims[attrs["axis"]]))
        return found

    def check_arrays_of_steps(self, inner: dict, nodes: list, steps) -> None:
        """Refuse a carried array with a place for each step, which the body fills one after the other."""
        if not isinstance(steps, Dim):
            return
        carried = {inner[name].name for name in self.pairs if isinstance(inner[name], Live)}
        for value, size in self._taken_by_number(inner, nodes):
            if value not in carried:
                continue
            if size == steps:
                raise Finding(
                    "it writes each step into its place of one array: append the steps to a list in the program, and "
                    "stack them after the loop (torch.stack)"
                )
            if self.ctx.table.genuine(steps) and size == self.ctx.table.example(steps):
                self.ctx.table.freeze([steps], f"{self.ctx.label} writes its steps into an array of {size} places")

    def one_step(self) -> dict:
        """Values of the body's inputs at one representative step."""
        values = dict(self.known)
        for name, sequence in self.scanned.items():
            values[name] = self._placeholder(sequence.dtype, sequence.dims[1:])
        for name in self.counters:
            start = self.start.get(name)
            values[name] = self._placeholder(*(("int64", ()) if start is None else (self.ctx.kind(start), start.dims)))
        for name, start in self.start.items():
            if name in values:
                continue
            grows = isinstance(start, Collected | Items)
            values[name] = Growing() if grows else self._placeholder(self.ctx.kind(start), start.dims)
        return values

    def _placeholder(self, dtype: str, dims: tuple) -> Live:
        return self.ctx.declare(self.ctx.fresh(f"{self.ctx.label}:step"), dtype, tuple(dims))

    # --- lifted ------------------------------------------------------------------------------------------------------

    def _lifted(self, steps: Dim, collected: list[str]) -> tuple[list, list]:
        """Steps over a size of the input: one cycle, with each carried value as a state."""
        ctx, label = self.ctx, self.ctx.label
        ctx.table.vote(steps, "time", sure=True)
        self._widen()
        inner, mark = self.one_step(), len(ctx.nodes)
        made = self.body.walk(inner)
        ctx.label = label
        self.check_arrays_of_steps(inner, ctx.nodes[mark:], steps)
        wanted = [k < len(self.n.needed) and self.n.needed[len(self.starts) + k] for k in range(len(collected))]
        if _GOING in self.pairs and any(wanted):
            raise Finding("a Loop that a condition on data ends: how many outputs it has would depend on the data")
        roots = [made[o] for o in self.pairs.values()] + [made[o] for o, w in zip(collected, wanted, strict=True) if w]
        entries, ctx.nodes[mark:] = alive(ctx, ctx.nodes[mark:], roots), []
        ctx.label = label
        lift, states = Lift(ctx, steps), {}
        lift.counters = {inner[name].name: how for name, how in self.counters.items()}
        for name, sequence in self.scanned.items():
            lift.give(inner[name], sequence)
        for name in self.pairs:
            if name not in self.known and name not in self.counters and isinstance(inner[name], Live):
                states[name] = self._state(lift, inner[name], self.start[name], steps)
        lift.nodes(entries)
        ctx.label = label
        finals = []
        for name, out in self.pairs.items():
            finals.append(self._final(lift, name, made[out], states, steps))
        if _GOING in self.pairs:
            count = self._executed(lift.whole(inner[_GOING]))
            counted = [name in self.counters for name in self.pairs]
            finals = [
                self._counted(name, count) if own else final
                for name, own, final in zip(self.pairs, counted, finals, strict=True)
            ]
        sequences = [lift.whole(made[out]) if want else None for out, want in zip(collected, wanted, strict=True)]
        self._roles(steps, [s for s in sequences if s is not None])
        return finals, sequences

    def _free_rows(self) -> None:
        """Make constant initial values follow the batch. If such a constant has as many equal rows as the file's own
        batch, it starts as one row, and the body makes as many rows as needed."""
        given, mark, labels = dict(self.start), len(self.ctx.nodes), set(self.ctx.labels)
        for name, start in given.items():
            rows = start.dims[0] if isinstance(start, Const | Fill) and start.dims else 1
            if name in self.known or name in self.counters or isinstance(rows, Dim) or rows < 2:
                continue
            if isinstance(start, Const) and not (start.array == start.array[:1]).all():
                continue
            one = start.array[:1] if isinstance(start, Const) else None
            self.start[name] = Fill(start.value, start.dtype, (1, *start.dims[1:])) if one is None else Const(one)
        cut = [name for name in given if self.start[name] is not given[name]]
        if not cut:
            return
        try:
            self._widen()
            good = all(
                isinstance(size := self.start[name].dims[0], Dim)
                and self.ctx.table.example(size) == given[name].dims[0]
                for name in cut
            )
        except (ModelFormatError, ShapeError, Finding, UnsupportedError):
            good = False
        if not good:
            self.start = given
            del self.ctx.nodes[mark:]
            self.ctx.labels = labels

    def _widen(self) -> None:
        """Expand carried values that begin as one row and continue as several."""
        with self.ctx.trial():
            inner = self.one_step()
            try:
                wider = self._wider(inner, self._walk_from_one_row(inner))
            except Widen as beside:
                wider = self._beside(inner, beside)
        for name, dims in wider.items():
            start = self.start[name]
            same = Fill(start.value, start.dtype, dims) if isinstance(start, Fill) else None
            self.start[name] = same or self.ctx.one("expand", start, dims=dims)
            self._widen()

    def _walk_from_one_row(self, inner: dict) -> dict:
        """Walk the body; raises Widen for a carried value of one constant row that needs as many as its neighbours."""
        outer, ctx = self.ctx.one_row, self.ctx
        ctx.one_row = dict(outer)
        for name, start in self.start.items():
            if isinstance(start, Const | Fill) and start.dims[:1] == (1,) and isinstance(inner[name], Live):
                ctx.one_row[inner[name].name] = self.given[name].dims[0]
        try:
            return self.body.walk(inner)
        finally:
            ctx.one_row = outer

    def _beside(self, inner: dict, beside: Widen) -> dict[str, tuple]:
        """The dims of the carried value that must have more rows; raises `beside` again if it is of an outer loop."""
        for name in self.pairs:
            value = inner[name]
            if isinstance(value, Live) and value.name == beside.name:
                return {name: (beside.rows, *value.dims[1:])}
        raise beside

    def _wider(self, inner: dict, made: dict) -> dict[str, tuple]:
        """The dims of a carried value after a step, if it had one row before; others must keep theirs."""
        for name, out in self.pairs.items():
            after = made[out]
            if name in self.known or name in self.counters or not isinstance(inner[name], Live):
                continue
            if isinstance(after, Ints):
                after = self.ctx.live(after)
            if not isinstance(after, Live | Const | Fill) or len(after.dims) != len(inner[name].dims):
                raise ModelFormatError(f"the carried value {name!r} changes its rank or dtype from step to step")
            before, dims = inner[name].dims, after.dims
            if before != dims and all(a == b or a == 1 for a, b in zip(before, dims, strict=True)):
                return {name: dims}
            for a, b in zip(before, dims, strict=True):
                self.ctx.equal(a, b, f"the carried value {name!r} must keep its size from step to step")
        return {}

    def _state(self, lift: Lift, placeholder: Live, start, steps) -> list:
        """The entry of a state node; its first input is set once that value exists."""
        ctx = self.ctx
        zero = isinstance(start, Const | Fill) and uniform(start) == 0 and placeholder.dtype != "bool"
        initial = None if zero else ctx.live(start).name
        prev = ctx.declare(ctx.fresh(f"{ctx.label}:prev"), placeholder.dtype, (steps, *placeholder.dims))
        name, k = ctx.label, 2
        while name in ctx.labels:
            name, k = f"{ctx.label}.{k}", k + 1
        ctx.labels.add(name)
        entry = ["state", name, ("", initial), [prev.name], {}]
        ctx.nodes.append(entry)
        lift.give(placeholder, prev)
        ctx.cells += 1
        return entry

    def _final(self, lift: Lift, name: str, after, states: dict, steps):
        """A carried value after the last step."""
        ctx = self.ctx
        if name in self.kept:
            return self.kept[name]
        if name in self.counters:
            return self._counted(name, steps)
        if isinstance(after, Growing):
            return self._grown(lift, self.start[name], after)
        sequence = lift.whole(after)
        states[name][2] = (sequence.name, states[name][2][1])
        place = list(self.pairs).index(name)
        if place >= len(self.starts) or not self.n.needed[place]:
            return None
        return ctx.reshape(ctx.slice(sequence, 0, steps - 1, steps), sequence.dims[1:])

    def _grown(self, lift: Lift, start, after: Growing) -> Items | Collected:
        """A sequence after the last step: the values put in front (the latest first), those before the loop, and those
        appended."""
        ctx, parts = self.ctx, []
        for values, turned in ((after.before, True), (after.after, False)):
            lifted = [lift.whole(v) for v in values]
            if turned:
                lifted = [ctx.slice(v, 0, v.dims[0] - 1, -1, -1) for v in lifted]
            if len(lifted) > 1:
                steps, *dims = lifted[0].dims
                pairs = ctx.concat([ctx.reshape(v, (steps, 1, *v.dims[1:])) for v in lifted], 1)
                lifted = [ctx.reshape(pairs, (steps * len(lifted), *dims))]
            parts.append(lifted)
        middle = [] if start == Collected(()) else [joined(ctx, start)]
        whole = [*parts[0], *middle, *parts[1]]
        return Items(ctx.concat(whole, 0), 0, False) if whole else start

    def _roles(self, steps, sequences: list) -> None:
        """The axis of the steps is time; the first axis of a carried value, if free, is batch."""
        batch = next(
            (s.dims[0] for s in self.start.values() if getattr(s, "dims", ()) and isinstance(s.dims[0], Dim)), 1
        )
        if batch == 1:
            batch = next((s.dims[1] for s in sequences if len(s.dims) > 2 and isinstance(s.dims[1], Dim)), 1)
        self.ctx.table.cell(self.ctx.label, steps, batch, forward=self.forward)

    # --- written out -------------------------------------------------------------------------------------------------

    def _written_out(self, steps: int | None, collected: list[str]) -> tuple[list, list]:
        """The body once per step. steps: None if the condition, which must be constant, ends the loop."""
        size = max(len(self.body.nodes), 1)
        if steps is not None and steps * size > MAX_WRITTEN and _GOING not in self.pairs:
            raise Finding(f"{steps} steps of {size} nodes each; written out, at most {MAX_WRITTEN} nodes")
        ctx, label = self.ctx, self.ctx.label
        now, t = dict(self.start), 0
        parts: list[list] = [[] for _ in collected]
        flags: list = []
        while t != steps and not (isinstance(now.get(_GOING), Const) and not uniform(now[_GOING])):
            flags.append(now.get(_GOING))
            self._check_end(steps, t, now.get(_GOING), size)
            ctx.label = label
            values = {**self.known, **now}
            for name, sequence in self.scanned.items():
                values[name] = ctx.reshape(ctx.slice(sequence, 0, t, t + 1), sequence.dims[1:])
            for name in self.counters:
                plain = name not in self.start
                values[name] = Const(np.array(t, np.int64)) if plain else self._counted(name, t)
            made = self.body.walk(values)
            now = {name: made[out] for name, out in self.pairs.items()}
            for part, out in zip(parts, collected, strict=True):
                part.append(made[out])
            t += 1
        ctx.label = label
        early = any(isinstance(f, Live) for f in flags)
        if early and any(self.n.needed[len(self.starts) :]):
            raise Finding("a Loop that a condition on data ends: how many outputs it has would depend on the data")
        count = self._executed(flags) if early else t
        finals = {name: self._counted(name, count) for name in self.counters if name in self.start}
        stacked = [ctx.concat([ctx.reshape(v, (1, *v.dims)) for v in part], 0) for part in parts]
        return [self.kept.get(name, finals.get(name, value)) for name, value in now.items()], stacked

    def _check_end(self, steps, t: int, going, size: int) -> None:
        """Refuse a loop without an end, or with too many steps."""
        if steps is None and isinstance(going, Live):
            raise Finding(f"a Loop that only a condition on data ends; {UNBOUND}")
        most = MAX_WRITTEN if steps is not None else MAX_WRITTEN // 10
        if (t + 1) * size > most:
            raise Finding(f"more than {t} steps of {size} nodes each; written out, at most {most} nodes")


_HALF = np.array(0.5, np.float32)
