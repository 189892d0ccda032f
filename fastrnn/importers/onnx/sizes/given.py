"""Sizes that the caller gives, and sizes that would cure an import that failed.

A size has the file's own name (a `dim_param`), the name of its axis (`x[2]`), or the name that fastrnn gives it
(`batch`, `time`). The first two are numbers before the import begins. So are those of fastrnn if the import fails
without them: the failed walk knows which axes it would have called so.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field

import numpy as np
import onnx

from ....errors import FastRNNError, ModelFormatError, ShapeError, UnsupportedError
from ....graph import Graph
from ....graph.dims import symbols
from ....passes.sizes import fix_sizes
from ....records import dataclass
from ...shared.ledger import Finding
from .settle import names_of
from .symbols import SymbolTable

Axes = dict[tuple[str, int], int]  # (input, axis) -> number

# Numbers that an error may recommend. A loop may be written out as often as one says, so the small ones come first, and
# none comes after one that took long.
_TRIED = (8, 16, 48, 64, 100, 320, 512, 1)
_LONG = 1.0  # seconds
_MOST_WORK = 40_000  # nodes times trials
_BATCH = re.compile(r"n|b|bs|.*batch.*")  # the file's names for a batch
_NUMBER = re.compile(r"[0-9]{1,9}")
_MOST_ALONE = 4  # open sizes that are tried one by one


@dataclass
class OpenAxes:
    """The axes of a file's inputs that it leaves open, with their names."""

    names: dict[tuple[str, int], str]  # (input, axis) -> the file's own name, or "" if it has none
    tables: list[SymbolTable] = field(default_factory=list)  # of every attempt; the last knows most

    @classmethod
    def of(cls, graph: onnx.GraphProto) -> OpenAxes:
        """Those of a graph; inputs with an initializer are none."""
        given, found = {t.name for t in graph.initializer}, {}
        for info in graph.input:
            if info.name not in given:
                for axis, d in enumerate(info.type.tensor_type.shape.dim):
                    if d.dim_value <= 0:
                        found[info.name, axis] = own_name(d)
        return cls(found)

    def called(self, name: str) -> list[tuple[str, int]]:
        """The axes with this name in the file, or the axis that is called `input[axis]`."""
        return [key for key, own in self.names.items() if own == name] or [
            key for key in self.names if name == _axis_name(key)
        ]

    def ours(self) -> dict[str, list[tuple[str, int]]]:
        """The axes by the names that fastrnn gives them, as far as the last walk knows."""
        found: dict[str, list[tuple[str, int]]] = {}
        for name, keys in names_of(self.tables[-1]).items() if self.tables else ():
            known = [key for key in keys if key in self.names]
            if known:
                found[name] = known
        return found

    def shown(self, keys: list[tuple[str, int]]) -> str:
        """A name for these axes that `sizes=` takes."""
        return next((self.names[key] for key in keys if self.names[key]), "") or _axis_name(keys[0])


def own_name(dim: onnx.TensorShapeProto.Dimension) -> str:
    """The file's name for a size; "" if it has none. Paddle writes a question mark for several sizes at once."""
    return "" if dim.dim_param == "?" else dim.dim_param


def sums_of(graph: onnx.GraphProto) -> dict[str, tuple[int, list[tuple[str, int, str]]]]:
    """Names of sizes that are sums of other names, such as `past_sequence_length + sequence_length` of a mask: name
    -> (a number, (input, axis, its name) of each of the others)."""
    given = {t.name for t in graph.initializer}
    axes: dict[str, tuple[str, int]] = {}
    for info in graph.input:
        for axis, d in enumerate(info.type.tensor_type.shape.dim) if info.name not in given else ():
            if own_name(d):
                axes.setdefault(own_name(d), (info.name, axis))
    found = {}
    for name in axes:
        parts = [part.strip() for part in name.split("+")]
        names = [part for part in parts if not _NUMBER.fullmatch(part)]
        if len(parts) > 1 and names and all(part.isidentifier() and part in axes for part in names):
            number = sum(int(part) for part in parts if _NUMBER.fullmatch(part))
            found[name] = number, [(*axes[part], part) for part in names]
    return found


def _axis_name(key: tuple[str, int]) -> str:
    return f"{key[0]}[{key[1]}]"


def sized(
    axes: OpenAxes, sizes: Mapping[str, int], build: Callable[[Axes], Graph], nodes: int
) -> tuple[Graph, dict[str, int]]:
    """The graph that `build` makes with the caller's sizes, and those that have no such name yet.

    If it fails without sizes of the caller, and works for a batch of one, the batch is one. build: takes the axes that
    are numbers, and appends its table to `axes.tables`. nodes: how many the file has.

    Raises what `build` raises, with the sizes that would have helped. ShapeError for a name that the file has not.
    """
    early: Axes = {}
    for name, number in sizes.items():
        early |= dict.fromkeys(axes.called(name), _checked(name, number))
    late = {name: int(number) for name, number in sizes.items() if not axes.called(name)}
    try:
        graph = build(early)
    except (FastRNNError, Finding) as error:
        ours = axes.ours()
        if late and set(late) <= set(ours):
            graph = build(early | {key: late[name] for name in late for key in ours[name]})
            return _noted(graph, late), {}
        if not _curable(error):
            raise
        free = {name: [k for k in keys if k not in early] for name, keys in ours.items()}
        free = {name: keys for name, keys in free.items() if keys}
        if late:
            raise _unknown(late, axes, set(ours)) from error
        graph = _of_one(axes, free, early, build, error)
        if graph is None:
            raise _with_cure(axes, free, early, build, error, nodes) from error
    now = {name: number for name, number in late.items() if name in _sizes(graph)}
    graph = fix_sizes(_noted(graph, {n: v for n, v in sizes.items() if n not in late}), now)
    return graph, {name: number for name, number in late.items() if name not in now}


def finish(axes: OpenAxes, left: Mapping[str, int], graph: Graph) -> Graph:
    """The graph with sizes that got their names after `sized`. ShapeError for a name that the file has not."""
    known = _sizes(graph)
    if set(left) - known:
        raise _unknown(left, axes, known)
    return fix_sizes(graph, left)


def _sizes(graph: Graph) -> set[str]:
    return {s for name in graph.inputs for d in graph.values[name].dims for s in symbols(d)}


def _noted(graph: Graph, sizes: Mapping[str, int]) -> Graph:
    shown = ", ".join(f"{name} is {sizes[name]}" for name in sorted(sizes))
    return graph.replace(notes=(*graph.notes, f"fixed: {shown}")) if sizes else graph


def _checked(name: str, number) -> int:
    if isinstance(number, bool | np.bool_) or not isinstance(number, int | np.integer) or number < 1:
        raise ShapeError(f"sizes: {name!r} must be a whole number of 1 or more, got {number!r:.60}")
    return int(number)


def _unknown(late: Mapping[str, int], axes: OpenAxes, ours: set[str]) -> ShapeError:
    """The error for a size that the file has not."""
    known = sorted({own or _axis_name(key) for key, own in axes.names.items()} | ours)
    name = sorted(set(late) - ours)[0]
    return ShapeError(f"sizes: no input has the size {name!r}; there are {', '.join(map(repr, known)) or 'none'}")


def _curable(error: Exception) -> bool:
    """Whether numbers for open sizes may help. A branch that an input selects is another matter."""
    return isinstance(error, UnsupportedError | ModelFormatError | ShapeError) and not hasattr(error, "selectors")


def _of_one(axes: OpenAxes, free: Mapping, early: Axes, build: Callable[[Axes], Graph], error: Exception):
    """The graph for a batch of one, if a constant of the file fixes an axis that the file calls the batch, and that
    helps; else None."""
    batch = [key for keys in free.values() for key in keys if _BATCH.fullmatch(axes.names[key].lower())]
    opened = isinstance(error, UnsupportedError) and all("the file leaves open" in p for p in error.problems)
    if not batch or not opened:
        return None
    try:
        graph = build(early | dict.fromkeys(batch, 1))
    except (FastRNNError, Finding):
        return None
    why = error.problems[0] if isinstance(error, UnsupportedError) else str(error)
    reason = f"the file loads with 1 alone ({why})"
    held = tuple((name, axis, reason) for name, axis in batch)
    return graph.replace(notes=(*graph.notes, f"{axes.shown(batch)} is 1: {reason}"), held=(*graph.held, *held))


def _with_cure(axes: OpenAxes, free: Mapping, early: Axes, build: Callable, error: Exception, nodes: int) -> Exception:
    """The error, with sizes that would have helped if there are any."""
    for k, chosen in enumerate(_trials(axes, free)):
        if nodes * (k + 1) > _MOST_WORK:
            break
        began = time.monotonic()
        try:
            build(early | {key: number for keys, number in chosen for key in keys})
        except (FastRNNError, Finding):
            if time.monotonic() - began > _LONG:
                break
            continue
        return with_remedy(error, {axes.shown(keys): number for keys, number in chosen})
    return error


def _trials(axes: OpenAxes, free: Mapping[str, list]) -> Iterator[list[tuple[list, int]]]:
    """What is tried: one size, then all but the batch, then all; each as (axes, number)."""
    groups = list({axes.shown(keys): keys for keys in free.values()}.values())
    rest = [keys for keys in groups if keys != free.get("batch")]
    sets = [[keys] for keys in rest[:_MOST_ALONE]]
    sets += [rest] if len(rest) > 1 else []
    for some in sets:
        for number in _TRIED:
            yield [(keys, number) for keys in some]
    if rest != groups:
        for number in _TRIED:
            yield [(keys, 1 if keys == free.get("batch") else number) for keys in groups]


def with_remedy(error: Exception, sizes: Mapping[str, int]) -> Exception:
    """The error, with these sizes as its remedy."""
    words = " ".join(f"--size {shlex.quote(f'{name}={number}')}" for name, number in sizes.items())
    text = f"say sizes={dict(sizes)!r}, or {words}"
    if isinstance(error, UnsupportedError):
        return UnsupportedError([*error.problems[:-1], f"{error.problems[-1]}; {text}"], error.where)
    return type(error)(f"{error}; {text}")
