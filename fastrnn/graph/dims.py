"""Symbolic sizes: the length of an axis as a function of BATCH and TIME.

A dim is an int or a `Dim`: a polynomial with integer coefficients over atoms. An atom is a symbol
(`batch`, `time`, or any other name), a floor division of a dim by a positive int (a strided convolution
produces such a length: `(time + 2)//3`), or, only in plans, `max(dim, 0)` (`positive`). Dims are
immutable, hashable and compare by normal form. A constant expression is returned as a plain int, so
`isinstance(d, int)` means "known". Symbols represent sizes >= 0.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping

from ..errors import ModelFormatError, ShapeError

MAX_QUOTIENT = 64  # terms of a quotient of two dims; no real model has more
MAX_TEXT = 4096  # characters of one printed dim; no real model has a longer one


class FloorDiv:
    """The atom `floor(num / den)`; num a `Dim`, den an int >= 2."""

    __slots__ = ("den", "num")

    def __init__(self, num: Dim, den: int):
        self.num, self.den = num, den

    def __eq__(self, other):
        return isinstance(other, FloorDiv) and self.den == other.den and self.num == other.num

    def __hash__(self):
        return hash(("//", self.num, self.den))

    def __repr__(self):
        return f"({self.num})//{self.den}"


class Positive:
    """The atom `max(num, 0)`; num a `Dim`. Only lowering makes it. It is not in graphs or files; `parse` rejects it."""

    __slots__ = ("num",)

    def __init__(self, num: Dim):
        self.num = num

    def __eq__(self, other):
        return isinstance(other, Positive) and self.num == other.num

    def __hash__(self):
        return hash(("max", self.num))

    def __repr__(self):
        return f"max({self.num}, 0)"


def _atom_key(atom) -> str:
    return atom if isinstance(atom, str) else repr(atom)


class Dim:
    """A size that depends on symbols. Build with `symbol(name)` and arithmetic, never directly.

    `terms` maps a monomial (a tuple of atoms, sorted, repeated for powers) to its coefficient.
    """

    __slots__ = ("_hash", "terms")

    def __init__(self, terms: Mapping[tuple, int]):
        if len(terms) > 1:
            terms = dict(sorted(terms.items(), key=lambda kv: (-len(kv[0]), [_atom_key(a) for a in kv[0]])))
        self.terms = dict(terms)
        self._hash = hash(frozenset(self.terms.items()))

    def __eq__(self, other):
        return isinstance(other, Dim) and self._hash == other._hash and self.terms == other.terms

    def __hash__(self):
        return self._hash

    def __add__(self, other):
        terms = dict(self.terms)
        for mono, coef in _terms(other).items():
            terms[mono] = terms.get(mono, 0) + coef
        return _normal(terms)

    __radd__ = __add__

    def __neg__(self):
        return _normal({m: -c for m, c in self.terms.items()})

    def __sub__(self, other):
        return self + (-other)

    def __rsub__(self, other):
        return (-self) + other

    def __mul__(self, other):
        if not isinstance(other, Dim):
            return _normal({mono: coef * int(other) for mono, coef in self.terms.items()})
        terms: dict[tuple, int] = {}
        for m1, c1 in self.terms.items():
            for m2, c2 in other.terms.items():
                mono = tuple(sorted(m1 + m2, key=_atom_key))
                terms[mono] = terms.get(mono, 0) + c1 * c2
        return _normal(terms)

    __rmul__ = __mul__

    def __floordiv__(self, other):
        return floordiv(self, other)

    def __rfloordiv__(self, other):
        return floordiv(other, self)

    def __bool__(self):
        raise TypeError(f"the truth of the symbolic dim {self} is not known")

    def __repr__(self):
        parts = []
        for mono, coef in self.terms.items():
            factors = [str(abs(coef))] if abs(coef) != 1 or not mono else []
            for atom in mono:
                # As in Python: 2*(n)//4 is (2*n)//4, and -(n)//2 is (-n)//2.
                apart = isinstance(atom, FloorDiv) and (factors or (coef < 0 and not parts))
                factors.append(f"({atom})" if apart else _atom_key(atom))
            parts.append(("-" if coef < 0 else "+" if parts else "") + "*".join(factors))
        return "".join(parts)


def _terms(value) -> Mapping[tuple, int]:
    if isinstance(value, Dim):
        return value.terms
    value = int(value)
    return {(): value} if value else {}


def _normal(terms: Mapping[tuple, int]) -> Dim | int:
    terms = {m: c for m, c in terms.items() if c}
    if not terms:
        return 0
    if len(terms) == 1 and () in terms:
        return terms[()]
    return Dim(terms)


def symbol(name: str) -> Dim:
    """The dim that is just the symbol `name`."""
    return Dim({(name,): 1})


BATCH = symbol("batch")
TIME = symbol("time")


def floordiv(num, den):
    """floor(num / den). den may be symbolic only if the division is exact."""
    if isinstance(num, int) and isinstance(den, int):
        return num // den
    if isinstance(den, Dim):
        quotient = exact_div(num, den)
        if quotient is None:
            raise ShapeError(f"can't divide the size {num} by {den}")
        return quotient
    if den < 1:
        raise ShapeError(f"can't divide the size {num} by {den}")
    if den == 1:
        return num
    # Whole multiples move out of the floor: floor((d*q + r) / d) = q + floor(r / d).
    whole, rest = {}, {}
    for mono, coef in num.terms.items():
        q, r = divmod(coef, den)
        if q:
            whole[mono] = q
        if r:
            rest[mono] = r
    rest = _normal(rest)
    if isinstance(rest, int):
        return _normal(whole) + rest // den
    # floor((floor(n / a) + b) / d) = floor((n + a*b) / (a*d)): nested strides stay one atom.
    atoms = [m for m in rest.terms if m]
    if len(atoms) == 1 and len(atoms[0]) == 1 and isinstance(atoms[0][0], FloorDiv) and rest.terms[atoms[0]] == 1:
        inner = atoms[0][0]
        return _normal(whole) + floordiv(inner.num + inner.den * rest.terms.get((), 0), inner.den * den)
    return _normal(whole) + Dim({(FloorDiv(rest, den),): 1})


def may_be_negative(dim) -> bool:
    """Whether some sizes might make a dim negative; False is certain, True is not."""
    return any(
        coef < 0 or any(isinstance(a, FloorDiv) and may_be_negative(a.num) for a in mono)
        for mono, coef in _terms(dim).items()
    )


def positive(dim):
    """max(dim, 0)."""
    if not isinstance(dim, Dim):
        return max(dim, 0)
    if not may_be_negative(dim):
        return dim
    return Dim({(Positive(dim),): 1}) if may_be_negative(-dim) else 0


def exact_div(num, den):
    """num / den if that is a polynomial, else None."""
    if isinstance(num, int) and isinstance(den, int):
        return num // den if den and num % den == 0 else None
    if num == den:
        return 1
    if num == 0:
        return 0
    terms = _terms(den)
    if not terms:
        return None
    lead, quotient = next(iter(terms.items())), 0
    for _ in range(MAX_QUOTIENT):  # long division: each round removes the first term of num
        part = _term_quotient(next(iter(_terms(num).items())), lead)
        if part is None:
            return None
        quotient, num = part + quotient, num - part * den
        if num == 0:
            return quotient
    return None


def _term_quotient(num: tuple, den: tuple):
    """The quotient of two terms (monomial, coefficient), or None if it is not a term."""
    rest = list(num[0])
    for atom in den[0]:
        if atom not in rest:
            return None
        rest.remove(atom)
    return None if num[1] % den[1] else _normal({tuple(rest): num[1] // den[1]})


_FAR = 1 << 40  # more than any size


def shortfall(dim, least: int):
    """A dim that is 0 if `dim` is `least` or more, and -1 if it is less."""
    return floordiv(dim - least, _FAR)


def of_shortfall(dim) -> Dim | None:
    """What must be 0 or more, for a dim that `shortfall` made; None for any other dim."""
    atoms = [mono[0] for mono in dim.terms if len(mono) == 1] if isinstance(dim, Dim) else []
    if len(atoms) == 1 and isinstance(atoms[0], FloorDiv) and atoms[0].den % _FAR == 0:
        return atoms[0].num + dim.terms.get((), 0) * atoms[0].den
    return None


def of_rest(dim) -> tuple[Dim, int] | None:
    """(n, d) for a dim that is n - d*(n//d), the rest of a division; None for any other dim."""
    for mono, coef in dim.terms.items() if isinstance(dim, Dim) else ():
        atom = mono[0] if len(mono) == 1 else None
        if isinstance(atom, FloorDiv) and coef == -atom.den and dim + atom.den * Dim({mono: 1}) == atom.num:
            return atom.num, atom.den
    return None


def symbols(dim) -> frozenset[str]:
    """Names of all symbols in a dim (empty for an int)."""
    if not isinstance(dim, Dim):
        return frozenset()
    names = set()
    for mono in dim.terms:
        for atom in mono:
            names |= {atom} if isinstance(atom, str) else symbols(atom.num)
    return frozenset(names)


def divisors(dim) -> set[int]:
    """The numbers that parts of a dim are divided by and rounded down."""
    found: set[int] = set()
    for mono in dim.terms if isinstance(dim, Dim) else ():
        for atom in mono:
            if not isinstance(atom, str):
                found |= divisors(atom.num) | ({atom.den} if isinstance(atom, FloorDiv) else set())
    return found


def substitute(dim, env: Mapping[str, Dim | int]):
    """Replace symbols by ints or dims; symbols not in `env` stay."""
    if not isinstance(dim, Dim):
        return dim
    total = 0
    for mono, coef in dim.terms.items():
        part = coef
        for atom in mono:
            if isinstance(atom, str):
                value = env.get(atom, symbol(atom))
            elif isinstance(atom, Positive):
                value = positive(substitute(atom.num, env))
            else:
                value = floordiv(substitute(atom.num, env), atom.den)
            part = value * part
        total = total + part
    return total


def substitute_in(attrs: Mapping, env: Mapping[str, Dim | int]) -> dict:
    """The attributes of a node with `substitute` applied to their dims."""
    out = {}
    for key, value in attrs.items():
        if isinstance(value, tuple):
            value = tuple(substitute(d, env) if isinstance(d, Dim) else d for d in value)
        out[key] = substitute(value, env) if isinstance(value, Dim) else value
    return out


def evaluate(dim, env: Mapping[str, int]) -> int:
    """The value of a dim, given all of its symbols in `env`."""
    value = substitute(dim, env)
    if isinstance(value, Dim):
        missing = ", ".join(sorted(symbols(value)))
        raise ShapeError(f"the size {dim} needs a value for {missing}")
    return value


def evaluate_atom(atom, env: Mapping[str, int]) -> int:
    """The value of one atom."""
    if isinstance(atom, str):
        return env[atom]
    number = evaluate(atom.num, env)
    return max(number, 0) if isinstance(atom, Positive) else number // atom.den


def parse(text) -> Dim | int:
    """Inverse of `repr`: an int, or text over + - * // parentheses, ints and symbol names.

    Raises ModelFormatError for anything else; nothing is evaluated as Python.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    if not isinstance(text, str) or len(text) > MAX_TEXT:
        raise ModelFormatError(f"a dim must be an int or a short text, got {text!r:.80}")
    try:
        return _from_ast(ast.parse(text, mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ModelFormatError(f"not a dim: {text!r:.80} ({error})") from None


def _from_ast(node):
    if isinstance(node, ast.Constant) and type(node.value) is int:
        return node.value
    if isinstance(node, ast.Name):
        return symbol(node.id)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_from_ast(node.operand)
    if isinstance(node, ast.BinOp):
        left, right = _from_ast(node.left), _from_ast(node.right)
        if isinstance(node.op, ast.Add):
            return left + right
        if isinstance(node.op, ast.Sub):
            return left - right
        if isinstance(node.op, ast.Mult):
            return left * right
        if isinstance(node.op, ast.FloorDiv):
            return floordiv(left, right)
    raise ValueError("only + - * // on ints and names")


def product(dims) -> Dim | int:
    """The product of dims: the number of elements of a value."""
    total = 1
    for d in dims:
        total = d * total
    return total
