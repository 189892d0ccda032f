"""Finds values of a graph that are recurrences over an axis, whatever the way in which the file writes them: in chunks,
or in as many rounds of doubling as its fixed length needs."""

from __future__ import annotations

from ...graph import Graph
from ...graph import dims as D
from .kernels import Kernel, Misfit, kernel_of
from .laws import Law, law_of
from .regions import Region, ends
from .spread import Spread

_MOST_LEAVES = 7
_MOST_ELEMENTS = 1 << 27  # that are computed to find the recurrences of a file: a few seconds
_LONGEST = 2048  # steps of a fixed length


def laws_in(graph: Graph, misfits: list[str] | None = None) -> tuple[Spread, list[Law | Kernel]]:
    """The recurrences of a graph, each over what it is computed from, and the axes of steps of all values.

    misfits : gets what is said of convolutions over all steps that are no recurrence
    """
    for length, whole, starts, lengths in _ways(graph):
        spread = Spread(graph, length, whole)
        for name, axis in starts:
            spread.start(name, axis)
        found = _found(graph, spread, lengths, [] if misfits is None else misfits)
        if found:
            return spread, found
    return Spread(graph, 0), []


def _found(graph: Graph, spread: Spread, lengths: tuple[int, ...], misfits: list[str]) -> list[Law | Kernel]:
    found: list[Law | Kernel] = []
    budget = [_MOST_ELEMENTS]
    for end in ends(graph, spread, _MOST_LEAVES):
        try:
            region = Region(spread, end, max(lengths), budget)
            law: Law | Kernel | None = law_of(region, end, lengths)
            if law is None and len(end.leaves) == 1 and len(lengths) == 1:  # a kernel is known as far as it is long
                law = kernel_of(region, end, *lengths)
        except ValueError:
            continue
        except Misfit as misfit:
            misfits.append(f"value {end.y}: {misfit}")
            continue
        if law is not None:
            spread.axes[end.y] = (end.axis,)
            del spread.mixed[end.y]
            found.append(law)
    return found


def _ways(graph: Graph):
    """(length, the same in whole chunks or None, (input, axis) pairs, lengths to prove it at) to follow."""
    block = _block(graph)
    timed = [n for n in graph.inputs if D.TIME in graph.values[n].dims]
    if timed:
        if block is not None:
            starts = [(n, graph.values[n].dims.index(D.TIME)) for n in timed]
            whole = D.floordiv(D.TIME, block) * block
            lengths = (2 * block, block, 3 * block)
            if not any(dim == D.TIME - whole for dim, _ in graph.requires):
                lengths = (2 * block + 1, 1, block, 3 * block - 1)
            yield D.TIME, whole, starts, lengths
        return
    starts: dict[tuple[int, int], list[tuple[str, int]]] = {}
    for name in graph.inputs:
        value = graph.values[name]
        for axis, size in enumerate(value.dims if value.dtype in ("float32", "int64") and len(value.dims) > 1 else ()):
            if isinstance(size, int) and 4 <= size <= _LONGEST:
                starts.setdefault((axis, size), []).append((name, axis))
    for (_, size), pairs in starts.items():
        yield size, None, pairs, (size,)


def _block(graph: Graph) -> int | None:
    """The only number that the time is divided by; None if there is none, or several."""
    found = {d for v in graph.values.values() for dim in v.dims for d in D.divisors(dim) if "time" in D.symbols(dim)}
    return found.pop() if len(found) == 1 else None
