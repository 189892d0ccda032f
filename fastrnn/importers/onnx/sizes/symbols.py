"""Symbols with examples: which sizes of a file are free, and which are fixed by the file's own constants.

Every dim of every input starts as a symbol. If the file gives it a number, that is its *example*. If the file leaves it
open (a `dim_param`), its example is an invented prime that no constant of a file equals by chance. During the walk,
constraints freeze symbols to their example or unify two of them. Each change raises `Restart`: the walk starts again
with the new knowledge. It ends when nothing changes, after at most one walk per symbol.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ....errors import ModelFormatError, ShapeError
from ....graph import dims as D
from ....graph.dims import Dim
from ...shared.ledger import Finding
from .evidence import Ledger, Policy

# Invented examples: large primes, so that a product of them has a unique factorisation and equals no real size.
_FIRST_INVENTED = 1_000_003


_NO_STEPS = "no recurrent layer steps along it, nor has it as its batch"


class Restart(Exception):
    """The table learned something; the walk must start again."""


@dataclass
class Symbol:
    """One axis of one input (or one dim_param). `example` is the file's number if `genuine`, else invented."""

    name: str
    label: str  # for messages: "axis 1 of input x"
    example: int
    genuine: bool
    axis: int
    input: str = ""
    param: str = ""  # the file's own name for the size, if it has one
    frozen: int | None = None
    joined: Symbol | None = None
    role: str | None = None  # "batch" or "time"
    sure: bool = False  # whether a recurrent node says so
    final: str | None = None  # the name in the graph, assigned once the walk has settled


class SymbolTable:
    """All symbols of one file; survives restarts."""

    def __init__(self, policy: Policy, guess: bool = False):
        self.policy = policy
        self.ledger = Ledger(policy)
        self.reasons: dict[str, str] = {}  # name of a symbol that stays at the file's number -> reason
        self.guess = guess  # whether an ambiguous free size of one is placed by a guess instead of frozen
        self.guessed = False
        self.choices: dict[str, str] = {}  # label of a Reshape -> "right" or "left", of its new ones
        self.recent: list[tuple[str, Dim]] = []  # choices of this walk, in order, with the size they place
        self.by_key: dict[object, Symbol] = {}
        self.inputs: set[str] = set()
        self.by_name: dict[str, Symbol] = {}
        self.notes: dict[str, str] = {}  # keyed by what is frozen or thawed, so that restarts don't repeat any
        self.surplus: list[str] = []  # free sizes that are neither batch nor time, found by settle
        self._cells: dict[str, tuple] = {}  # label of a recurrent node -> (time, batch, runs forward)
        self.merged: dict[Dim, tuple] = {}  # a product that a Reshape made -> its factors, in order
        self.assumed: dict[Dim, int] = {}  # sizes other than plain symbols that the file's branches depend on
        self.joined: set[Dim] = set()  # products of free ones made by the current Reshape; `merged` has their parts
        self.declared: set[int] = set()  # numbers that the file declares for axes of its outputs
        self.shortfalls: list[Dim] = []  # `dims.shortfall` must be 0 for these: sizes that must not be too small
        self.blocks: dict[Dim, Dim] = {}  # an open size assumed to be a multiple of a number -> that multiple
        self._next = _FIRST_INVENTED

    # --- making and reading ------------------------------------------------------------------------------------

    def input_dim(self, input_name: str, axis: int, value: int | None, param: str) -> Dim | int:
        """The dim of one axis of an input. value: the file's number, or None if it leaves it open."""
        self.inputs.add(input_name)
        key = ("param", param) if value is None and param else (input_name, axis)
        sym = self.by_key.get(key)
        if sym is None:
            example = value if value is not None else self._invent()
            name = f"s{len(self.by_key)}"
            label = f"axis {axis} of input {input_name!r}"
            sym = Symbol(name, label, example, value is not None, axis, input_name, param)
            self.by_key[key] = self.by_name[name] = sym
        return self.dim(sym)

    def _invent(self) -> int:
        while True:
            self._next += 2
            if all(self._next % k for k in range(3, int(self._next**0.5) + 1, 2)):
                return self._next

    def root(self, sym: Symbol) -> Symbol:
        while sym.joined is not None:
            sym = sym.joined
        return sym

    def roots(self) -> list[Symbol]:
        """Symbols that are not unified with another and still free, in the order of the inputs."""
        return [s for s in self.by_key.values() if s.joined is None and s.frozen is None]

    def dim(self, sym: Symbol) -> Dim | int:
        sym = self.root(sym)
        return sym.frozen if sym.frozen is not None else D.symbol(sym.final or sym.name)

    def of(self, dim) -> list[Symbol]:
        """The free symbols in a dim, in a fixed order."""
        return sorted({id(s): s for s in map(self._find, D.symbols(dim))}.values(), key=lambda s: s.name)

    def _find(self, name: str) -> Symbol:
        if name in self.by_name:
            return self.by_name[name]
        return next(s for s in self.roots() if s.final == name)

    def single(self, dim) -> Symbol | None:
        """The symbol of `dim`, if it is a single symbol."""
        if isinstance(dim, Dim):
            syms = self.of(dim)
            if len(syms) == 1 and dim == self.dim(syms[0]):
                return syms[0]
        return None

    def example(self, dim) -> int:
        """The value of a dim at the file's own sizes (including invented ones)."""
        if not isinstance(dim, Dim):
            return int(dim)
        return D.evaluate(dim, {(s.final or s.name): s.example for s in self.of(dim)})

    def genuine(self, dim) -> bool:
        """Whether every symbol of the dim has the file's own number as its example."""
        return all(s.genuine for s in self.of(dim))

    def held(self) -> tuple[tuple[str, int, str], ...]:
        """(input, axis, reason) of each input axis that stays at the file's number for a recorded reason."""
        return tuple(
            (s.input, s.axis, self.reasons[self.root(s).name])
            for s in self.by_key.values()
            if s.axis >= 0 and self.root(s).frozen is not None and self.root(s).name in self.reasons
        )

    # --- guessing ----------------------------------------------------------------------------------------------

    def choose(self, label: str, dims) -> str:
        """Choose where the free ones `dims` are placed among the ones of a Reshape: at the right or left end."""
        self.guessed = True
        self.recent += [(label, d) for d in dims if isinstance(d, Dim)]
        return self.choices.setdefault(label, "right")

    def reconsider(self, syms) -> None:
        """A size in `syms` ended up in an impossible place: flip the latest choice that placed it, if any; restart."""
        for label, dim in reversed(self.recent):
            if self.choices[label] == "right" and any(s in self.of(dim) for s in syms if s.example == 1):
                self.choices[label] = "left"
                raise Restart

    # --- learning ----------------------------------------------------------------------------------------------

    def freeze(self, dims, reason: str) -> None:
        """Freeze every symbol of the dims at its example and restart. Raises Finding if the file gives no example."""
        syms = [s for d in dims for s in self.of(d)]
        if not any(s.genuine for s in syms):
            names = ", ".join(sorted({s.label for s in syms}))
            raise Finding(f"{reason}; that fixes the size of {names}, which the file leaves open")
        self.reconsider(syms)
        # If one of them is a number that might have been a size, drop that interpretation first.
        written = [s for s in syms if s.genuine and s.axis < 0]
        for s in written or syms:
            if s.genuine:
                self._set(s, s.example, reason)
        raise Restart

    def _set(self, sym: Symbol, value: int, reason: str) -> None:
        sym.frozen = value
        self.reasons[sym.name] = reason
        self.notes[sym.name] = f"{sym.label} stays {value}: {reason}"

    def equal(self, a, b, reason: str) -> None:
        """Make two dims equal: return if they are, learn and restart if they can be, else raise ModelFormatError."""
        if a == b or (isinstance(b, int) and isinstance(a, Dim) and self.assumed.get(a) == b):
            return
        if isinstance(a, int) and isinstance(b, int):
            raise ModelFormatError(f"{reason}: {a} against {b}")
        if self.genuine(a) and self.genuine(b) and self.example(a) != self.example(b):
            raise ModelFormatError(f"{reason}: {self.example(a)} against {self.example(b)} at the file's own sizes")
        for s in self.of(a):
            for t in self.of(b):
                if s is not t and D.substitute(a, {(s.final or s.name): self.dim(t)}) == D.substitute(
                    b, {(s.final or s.name): self.dim(t)}
                ):
                    self._join(s, t)
        for dim, other in ((a, b), (b, a)):
            if isinstance(other, int):
                sym = self.single(dim)
                if sym is not None and sym.role == "time" and not sym.genuine and other > 1:
                    self.hint(sym, other, reason)
                self._solve(dim, other, reason)
        self.freeze((a, b), reason)

    def _join(self, a: Symbol, b: Symbol) -> None:
        keep, drop = (
            (b, a) if (b.genuine and not a.genuine) or (a.axis < 0 <= b.axis and a.genuine == b.genuine) else (a, b)
        )
        if a.param and b.param:
            self.notes[f"join {drop.name}"] = f"{self._shown(drop)} and {self._shown(keep)} are one size: they meet"
        drop.joined = keep
        keep.role = keep.role or drop.role
        raise Restart

    def _solve(self, dim: Dim, value: int, reason: str) -> None:
        """Solve coef*s + rest == value for an open symbol s: the file itself determines s."""
        syms = self.of(dim)
        if len(syms) != 1 or syms[0].genuine:
            return
        name = syms[0].final or syms[0].name
        coef = dim.terms.get((name,), 0)
        rest = dim - coef * D.symbol(name)
        if coef and isinstance(rest, int):
            answer, left = divmod(value - rest, coef)
            if left or answer < 0:
                raise ModelFormatError(f"{reason}: {dim} can't be {value}")
            self._set(syms[0], answer, reason)
            raise Restart

    def literal(self, key: tuple, size: int) -> Dim | int:
        """A number in the file that may be a written-out size. If some size has this number, it gets its own symbol,
        which becomes that size if the two meet and otherwise stays the number."""
        sym = self.by_key.get(key)
        if sym is None:
            if not any(s.genuine and s.example == size and s.frozen is None for s in self.roots()):
                return size
            name = f"s{len(self.by_key)}"
            sym = Symbol(name, f"a {size} written down in {key[0]}", size, True, -1, str(key[0]))
            self.by_key[key] = self.by_name[name] = sym
        return self.dim(sym)

    def hint(self, sym: Symbol, value: int, where: str) -> None:
        """Give an open symbol, as its example, the number that the exporter wrote for it elsewhere; restart."""
        sym.example, sym.genuine = value, True
        self.notes[f"hint {sym.name}"] = f"{sym.label} is open, but the file has {value} for it: {where}"
        raise Restart

    def pin(self, dim, value: int, what: str) -> None:
        """Set a dim to the size that the caller binds; raises ShapeError if that is impossible."""
        sym = self.single(dim)
        if sym is None:
            raise ShapeError(f"{what} must be {dim}, got {value}")
        self._set(sym, int(value), what)
        raise Restart

    def cell(self, label: str, time, batch, forward: bool) -> None:
        """Record the axes of a recurrent node: its steps, its rows, and whether it runs forward only."""
        self._cells[label] = (time, batch, forward)
        self.vote(time, "time", sure=True)
        self.vote(batch, "batch", sure=True)

    def vote(self, dim, role: str, sure: bool = False) -> None:
        """Vote for the role of a symbol. The first vote wins, except that a recurrent node's first vote overrides
        others: to a convolution before it, all steps of all rows are rows."""
        syms = self.of(dim)
        if len(syms) == 1 and (syms[0].role is None or (sure and not syms[0].sure)):
            syms[0].role, syms[0].sure = role, sure

    # --- the end -----------------------------------------------------------------------------------------------

    def settle(self, ctx, judge: Callable) -> bool:
        """After a full walk: name the free sizes and freeze the others; True if something changed (walk again). judge:
        `judge.verdicts`."""
        free, has_cells = self.roots(), ctx.cells > 0
        if any(s.final for s in free):
            return False
        if not has_cells:
            self._vote_by_position(free)
        if self._one_time():
            return True  # the sizes just held may show whose rows the others are
        if has_cells:
            self._time_of_a_memory()
        self._note_literals()
        changed = False
        for s in self.roots():
            if s.genuine and (s.role is None or s.axis < 0):  # a number that met no input size is just a number
                s.frozen = s.example
                self.reasons[s.name] = f"{_NO_STEPS}; {self.policy.remedy}"
                changed = True
        held = judge(self, ctx)
        for s, reason in held:
            self._set(s, s.example, reason)
        if held:
            return True  # other sizes may depend on those
        changed |= self._join_batches()
        taken: set[str] = set()
        for s in self.roots():
            base = s.role or ("batch" if s.axis == 0 else "size" if self._asked(s) else "time")
            name, k = base, 2
            while name in taken:
                name, k = f"{base}_{k}", k + 1
            taken.add(name)
            s.final = name
            changed = True
            if s.genuine:
                why = f"that it is free is assumed: no number in the file seems to depend on {s.example}"
                if self.policy.compared:
                    why = "answers at other sizes were compared with the module's"
                self.notes[s.name] = f"thawed {name}: {s.label} was {s.example}; {why}"
        self.surplus = self._surplus()
        return changed

    def _note_literals(self) -> None:
        """Record written numbers that equal a size but met none: counts that the exporter may have computed."""
        for literal in [s for s in self.roots() if s.axis < 0]:
            for s in self.roots():
                if s.axis >= 0 and s.genuine and s.example == literal.example:
                    self.ledger.count(self.dim(s), literal.input, f"has the count {literal.example}")

    @staticmethod
    def _vote_by_position(free: list[Symbol]) -> None:
        """Without a recurrent node: the first open axis 0 is batch, the next open axis that is not 0 is time."""
        roles = {"batch", "time"}
        for s in free:
            role = "batch" if s.axis == 0 else "time"
            if not s.genuine and s.role is None and role in roles:
                roles.remove(role)
                s.role = role

    def _one_time(self) -> bool:
        """Choose the one time of the model. Among several candidates, prefer an open one (it can't be held), then one
        that a recurrent node steps along, then one it runs forward along, then the outer of two nested ones (words made
        of characters), then the first. Equal lengths of several inputs count as one. The others keep the file's number;
        returns True if any did."""
        ranks = {id(s): rank for s, rank in self._time_ranks()}
        times = [s for s in self.roots() if id(s) in ranks]
        times.sort(key=lambda s: ranks[id(s)])
        changed = False
        for s in times[1:]:
            first = times[0]
            if not s.genuine:
                continue
            changed = True
            side_by_side = first.genuine and first.input != s.input and not self._nested(first, s)
            if side_by_side and first.example == s.example:
                s.joined = first
                self.notes[f"time {s.name}"] = f"{s.label} is as long as {first.label}: both are {s.example}"
            else:
                self._set(s, s.example, f"{first.label} is the time, and a model has one")
        if times:
            times[0].role = "time"
        return changed

    def _time_of_a_memory(self) -> None:
        """If no node steps along an axis, as in one step of a decoder that attends to an encoder's states, the time is
        the axis after the batch of a rank-3 input, unless the file fixes it."""
        free = self.roots()
        if any(s.role == "time" for s in free):
            return
        ranks: dict[str, int] = {}
        for key in self.by_key:
            if isinstance(key, tuple) and key[0] in self.inputs:
                ranks[key[0]] = max(ranks.get(key[0], 0), key[1] + 1)
        found = [s for s in free if s.role is None and s.genuine and s.axis == 1 and s.example > 1]
        found = [s for s in found if ranks.get(s.input) == 3 and self._is_batch(s.input)]
        if len(found) == 1:
            found[0].role = "time"

    def _is_batch(self, name: str) -> bool:
        sym = self.by_key.get((name, 0))
        return sym is not None and self.root(sym).role == "batch"

    def _asked(self, s: Symbol) -> bool:
        """Whether the file's branches depend on a size. It is then not a number of steps."""
        return any(s in self.of(d) for d in self.assumed)

    def _time_ranks(self) -> list[tuple[Symbol, tuple]]:
        """Every symbol that could be the time, with its sort key; the smallest is best."""
        stepped: dict[int, bool] = {}  # id of a symbol -> whether any node runs only forward along it
        for time, _, forward in self._cells.values():
            sym = self.single(time)
            if sym is not None:
                stepped[id(sym)] = stepped.get(id(sym), False) or forward
        found = []
        for k, s in enumerate(self.roots()):
            if self._asked(s):
                continue
            outer = any(self._nested(s, t) for t in self.roots())
            if s.role == "time" or (s.role is None and not s.genuine and s.axis > 0) or (outer and id(s) in stepped):
                inner = any(self._nested(t, s) for t in self.roots())
                found.append((s, (s.genuine, id(s) not in stepped, not stepped.get(id(s)), inner, k)))
        return found

    def _nested(self, outer: Symbol, inner: Symbol) -> bool:
        """Whether steps along `outer` are rows of a node that steps along `inner`, and not the other way round."""
        if outer is inner:
            return False
        rows = [(self.single(time), self.of(batch)) for time, batch, _ in self._cells.values()]
        return any(time is inner and outer in batch for time, batch in rows) and not any(
            time is outer and inner in batch for time, batch in rows
        )

    def _surplus(self) -> list[str]:
        """A line for each free size other than batch and time: its length in a stream would be undefined."""
        named = {s.final: f"{self._shown(s)} is {s.final}" for s in self.roots() if s.final in ("batch", "time")}
        return [
            f"{self._shown(s)} is a free size besides batch and time"
            + (f" ({', '.join(named[k] for k in sorted(named))})" if named else "")
            + "; a stream needs it fixed: by sizes= at load, or in the file"
            for s in self.roots()
            if s.final not in named
        ]

    @staticmethod
    def _shown(s: Symbol) -> str:
        return s.label + (f" ({s.param!r})" if s.param else "")

    def _join_batches(self) -> bool:
        """Join batch axes that no node ties together into one batch if their examples allow it. An open first axis with
        no other meaning in the file joins too."""
        batches = [s for s in self.roots() if s.role == "batch"]
        batches += [s for s in self.roots() if s.role is None and s.axis == 0 and not s.genuine and batches]
        changed = False
        for s in batches[1:]:
            first = batches[0]
            if s.genuine and first.genuine and s.example != first.example:
                s.frozen = s.example
            else:
                s.joined = first
                first.genuine, first.example = (True, s.example) if s.genuine else (first.genuine, first.example)
                if s.param != first.param:
                    self.notes[f"batch {s.name}"] = f"{self._shown(s)} is the batch, as {self._shown(first)} is"
            changed = True
        return changed
