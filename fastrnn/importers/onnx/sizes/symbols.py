"""Symbols with examples: which sizes of a file are free, and which are fixed by the file's own constants.

Every dim of every input starts as a symbol. If the file gives it a number, that is its *example*. If the file leaves it
open (a `dim_param`), its example is an invented prime that no constant of a file equals by chance. During the walk,
constraints freeze symbols to their example or unify two of them.

Each such change raises `Learned`: the node that showed it is read again, the walk goes on with every value at its new
size, and one more walk follows. So the number of walks does not grow with the number of changes. What a walk learned is
true at every size; only a graph from a walk that learned nothing is used. Changes that make an earlier reading doubtful
(another example, another choice) raise `Restart`: the walk starts again at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import lcm
from typing import NoReturn

from ....errors import ModelFormatError, ShapeError
from ....graph import dims as D
from ....graph.dims import Dim
from ....records import dataclass
from ...shared.ledger import Finding
from .evidence import Ledger, Policy

# Invented examples: large primes, so that a product of them has a unique factorisation and equals no real size.
_FIRST_INVENTED = 1_000_003
_LARGEST_BLOCK = 1 << 12


class Learned(Exception):
    """A size was frozen or unified with another; the node is read again, with current sizes."""


class Restart(Exception):
    """The table learned something that earlier nodes depend on; the walk must start again."""


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
    solved: Dim | None = None  # the sum of other sizes that it must be
    role: str | None = None  # "batch" or "time"
    sure: bool = False  # whether a recurrent node says so
    final: str | None = None  # the name in the graph, assigned once the walk has settled


class SymbolTable:
    """All symbols of one file; survives restarts."""

    def __init__(self, policy: Policy, guess: bool = False, given: Mapping[tuple[str, int], int] | None = None):
        self.policy = policy
        self.given = given or {}  # (input, axis) -> the caller's number
        self.axes: dict[tuple[str, int], Symbol] = {}  # (input, axis) -> its symbol
        self.hints = 0  # open symbols that got an example
        self.multiples: dict[str, int] = {}  # name of an open symbol -> what it is taken to be a multiple of
        self.ledger = Ledger(policy)
        self.reasons: dict[str, str] = {}  # name of a symbol that stays at the file's number -> reason
        self.guess = guess  # whether an ambiguous free size of one is placed by a guess instead of frozen
        self.guessed = False
        self.choices: dict[str, str] = {}  # label of a Reshape -> "right" or "left", of its new ones
        self.recent: list[tuple[str, Dim]] = []  # choices of this walk, in order, with the size they place
        self.by_key: dict[object, Symbol] = {}
        self.inputs: set[str] = set()
        self.by_name: dict[str, Symbol] = {}
        self.found: dict[str, str] = {}  # notes about sizes, keyed by what is frozen or thawed
        self.notes: dict[str, str] = {}  # notes of this walk, keyed by node
        self.integers: dict[float, frozenset] = {}  # what this walk learned of 8-bit weights, see Graph.integers
        self.surplus: list[str] = []  # free sizes that are neither batch nor time, found by settle
        self.cells: dict[str, tuple] = {}  # label of a recurrent node -> (time, batch, runs forward)
        self.merged: dict[Dim, tuple] = {}  # a product that a Reshape made -> its factors, in order
        self.assumed: dict[Dim, int] = {}  # sizes other than plain symbols that the file's branches depend on
        self.joined: set[Dim] = set()  # products of free ones made by the current Reshape; `merged` has their parts
        self.declared: set[int] = set()  # numbers that the file declares for axes of its outputs
        self.shortfalls: list[Dim] = []  # `dims.shortfall` must be 0 for these: sizes that must not be too small
        self.blocks: dict[Dim, Dim] = {}  # an open size assumed to be a multiple of a number -> that multiple
        self.dirty = False  # whether this walk learned something
        self._moved: list[str] = []  # names of symbols that changed since the last `current`
        self._now: dict[Dim, Dim | int] = {}  # dim of an earlier node of this walk -> what it is now
        self._next = _FIRST_INVENTED

    def begin(self) -> None:
        """Start a walk: forget what the last one recorded, but not what it learned."""
        self.dirty = False
        self._moved.clear()
        self._now.clear()
        for part in (self.notes, self.integers, self.recent, self.ledger, self.assumed, self.shortfalls, self.blocks):
            part.clear()

    # --- making and reading ------------------------------------------------------------------------------------

    def input_dim(self, input_name: str, axis: int, value: int | None, param: str) -> Dim | int:
        """The dim of one axis of an input. value: the file's number, or None if it leaves it open."""
        self.inputs.add(input_name)
        if (input_name, axis) in self.given:
            return self.given[input_name, axis]
        key = ("param", param) if value is None and param else (input_name, axis)
        sym = self.by_key.get(key)
        if sym is None:
            example = value if value is not None else self._invent()
            name = f"s{len(self.by_key)}"
            label = f"axis {axis} of input {input_name!r}"
            sym = Symbol(name, label, example, value is not None, axis, input_name, param)
            self.by_key[key] = self.by_name[name] = sym
        self.axes[input_name, axis] = sym
        return self.dim(sym)

    def sum_dim(self, input_name: str, axis: int, number: int, parts: list[tuple[str, int, str]]) -> Dim | int:
        """The dim of an axis that the file names as a sum of a number and the sizes of open axes of inputs."""
        self.inputs.add(input_name)
        if (input_name, axis) in self.given:
            return self.given[input_name, axis]
        return sum((self.input_dim(name, at, None, param) for name, at, param in parts), start=number)

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
        return [s for s in self.by_key.values() if s.joined is None and s.frozen is None and s.solved is None]

    def dim(self, sym: Symbol) -> Dim | int:
        sym = self.root(sym)
        if sym.solved is not None:
            return D.substitute(sym.solved, {name: self.dim(self._find(name)) for name in D.symbols(sym.solved)})
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
                self._start_again()
                self.choices[label] = "left"
                raise Restart

    # --- learning ----------------------------------------------------------------------------------------------

    def freeze(self, dims, reason: str) -> None:
        """Freeze every symbol of the dims at its example; raises Learned, or Finding if the file gives no example."""
        syms = [s for d in dims for s in self.of(d)]
        if self.dirty and any(s.frozen is not None or s.joined is not None for s in syms):
            raise Restart  # a size of a node that was emitted before this walk learned of it
        if not any(s.genuine for s in syms):
            names = ", ".join(sorted({s.label for s in syms}))
            raise Finding(f"{reason}; that fixes the size of {names}, which the file leaves open")
        self.reconsider(syms)
        # If one of them is a number that might have been a size, drop that interpretation first.
        written = [s for s in syms if s.genuine and s.axis < 0]
        for s in written or syms:
            if s.genuine:
                self.hold(s, s.example, reason)
        self._learned(*(s for s in written or syms if s.genuine))

    def _learned(self, *syms: Symbol) -> NoReturn:
        """End the reading of a node: these symbols were frozen or joined."""
        self.dirty = True
        self._moved += [s.name for s in syms]
        self._now.clear()
        raise Learned

    def moved(self) -> frozenset[str]:
        """Names of the symbols that changed since the last call; sizes with them must be made `current`."""
        names = frozenset(self._moved)
        self._moved.clear()
        for kept in (self.merged, self.assumed, self.blocks):
            for old in [dim for dim in kept if D.symbols(dim) & names]:
                value = kept.pop(old)
                new = self.current(old)
                if isinstance(new, Dim):
                    parts = isinstance(value, tuple)
                    kept[new] = tuple(map(self.current, value)) if parts else self.current(value)
        self.shortfalls = list(map(self.current, self.shortfalls))
        return names

    def current(self, dim):
        """A dim of an earlier node of this walk, with what was learned since."""
        if not self.dirty or not isinstance(dim, Dim):
            return dim
        found = self._now.get(dim)
        if found is None:
            syms = {name: self._find(name) for name in D.symbols(dim)}
            changed = [n for n, s in syms.items() if (s.joined, s.frozen, s.solved) != (None, None, None)]
            env = {name: self.dim(syms[name]) for name in changed}
            found = self._now[dim] = D.substitute(dim, env) if env else dim
        return found

    def _start_again(self) -> None:
        """Before a change that earlier nodes depend on: walk again first if this walk has learned something."""
        if self.dirty:
            raise Restart

    def hold(self, sym: Symbol, value: int, reason: str) -> None:
        sym.frozen = value
        self.reasons[sym.name] = reason
        self.found[sym.name] = f"{sym.label} stays {value}: {reason}"

    def equal(self, a, b, reason: str) -> None:
        """Make two dims equal: return if they are, raise Learned if they can be, else raise ModelFormatError."""
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
                if any(not s.genuine for s in self.of(dim)):
                    self._start_again()  # the roles of this walk's later nodes decide
                if sym is not None and sym.role == "time" and not sym.genuine and other > 1:
                    self.hint(sym, other, reason)
                self._solve(dim, other, reason)
        self._round(a, b)
        self._solve_sum(a, b)
        self._solve_sum(b, a)
        self.freeze((a, b), reason)

    def _round(self, a, b) -> None:
        """If two dims of open symbols are equal at multiples of some number, take the symbols to be such multiples."""
        syms = self.of(a)
        if not syms or any(s.genuine for s in (*syms, *self.of(b))):
            return
        block = lcm(1, *D.divisors(a), *D.divisors(b))
        if block > _LARGEST_BLOCK:
            return
        for m in [m for m in range(2, block + 1) if block % m == 0]:
            env = {(s.final or s.name): m * self.dim(s) for s in (*syms, *self.of(b))}
            if D.substitute(a, env) == D.substitute(b, env):
                self._start_again()
                for s in syms:
                    self.multiples[s.name] = lcm(m, self.multiples.get(s.name, 1))
                    s.example = self.multiples[s.name] * self._invent()
                raise Restart

    def _join(self, a: Symbol, b: Symbol) -> None:
        keep, drop = (
            (b, a) if (b.genuine and not a.genuine) or (a.axis < 0 <= b.axis and a.genuine == b.genuine) else (a, b)
        )
        if a.param and b.param:
            self.found[f"join {drop.name}"] = f"{shown(drop)} and {shown(keep)} are one size: they meet"
        drop.joined = keep
        keep.role = keep.role or drop.role
        self._learned(drop)

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
            self.hold(syms[0], answer, reason)
            self._learned(syms[0])

    def _solve_sum(self, dim, other) -> None:
        """An open size that makes two dims equal if it is the sum of other open sizes is that: the length of a mask of
        all steps. Raises Learned."""
        for sym in self.of(dim) if isinstance(other, Dim) else ():
            own = self.dim(sym)
            total = other - (dim - own)
            syms = self.of(total)
            plain = isinstance(total, Dim) and all(len(m) < 2 and c > 0 for m, c in total.terms.items())
            if plain and not D.divisors(total) and not any(s.genuine or s is sym for s in syms) and not sym.genuine:
                sym.solved = D.substitute(total, {(s.final or s.name): D.symbol(s.name) for s in syms})
                self.found[f"solve {sym.name}"] = f"{shown(sym)} is {' + '.join(s.label for s in syms)}: they meet"
                self._learned(sym)

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
        self._start_again()
        sym.example, sym.genuine, self.hints = value, True, self.hints + 1
        self.found[f"hint {sym.name}"] = f"{sym.label} is open, but the file has {value} for it: {where}"
        raise Restart

    def pin(self, dim, value: int, what: str) -> None:
        """Set a dim to the size that the caller binds; raises ShapeError if that is impossible."""
        sym = self.single(dim)
        if sym is None:
            raise ShapeError(f"{what} must be {dim}, got {value}")
        self.hold(sym, int(value), what)
        raise Restart

    def cell(self, label: str, time, batch, forward: bool) -> None:
        """Record the axes of a recurrent node: its steps, its rows, and whether it runs forward only."""
        self.cells[label] = (time, batch, forward)
        self.vote(time, "time", sure=True)
        self.vote(batch, "batch", sure=True)

    def vote(self, dim, role: str, sure: bool = False) -> None:
        """Vote for the role of a symbol. The first vote wins, except that a recurrent node's first vote overrides
        others: to a convolution before it, all steps of all rows are rows."""
        syms = [] if self.dirty else self.of(dim)  # the next walk asks in the order of the nodes
        if len(syms) == 1 and (syms[0].role is None or (sure and not syms[0].sure)):
            syms[0].role, syms[0].sure = role, sure


def shown(s: Symbol) -> str:
    return s.label + (f" ({s.param!r})" if s.param else "")
