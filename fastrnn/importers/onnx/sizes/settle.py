"""The end of the walks: the free sizes get their roles and names, and those with evidence against them stay."""

from __future__ import annotations

from collections.abc import Callable

from ..states.names import alike
from .symbols import Symbol, SymbolTable, shown

__all__ = ["names_of", "settle"]

_NO_STEPS = "no recurrent layer steps along it, nor has it as its batch"


def settle(table: SymbolTable, ctx, judge: Callable) -> bool:
    """After a full walk: name the free sizes and freeze the others; True if something changed (walk again). judge:
    `judge.verdicts`."""
    free, has_cells = table.roots(), ctx.cells > 0
    if any(s.final for s in free):
        return False
    if not has_cells:
        _vote_by_growth(table, ctx)
        _vote_by_position(free)
    if _one_time(table):
        return True  # the sizes just held may show whose rows the others are
    if has_cells:
        _time_of_a_memory(table)
    _note_literals(table)
    changed = False
    for s in table.roots():
        if s.genuine and (s.role is None or s.axis < 0):  # a number that met no input size is just a number
            s.frozen = s.example
            table.reasons[s.name] = f"{_NO_STEPS}; {table.policy.remedy}"
            changed = True
    held = judge(table, ctx)
    for s, reason in held:
        table.hold(s, s.example, reason)
    if held:
        return True  # other sizes may depend on those
    changed |= _join_batches(table)
    for s, name in _named(table):
        s.final = name
        changed = True
        if s.genuine:
            why = f"that it is free is assumed: no number in the file seems to depend on {s.example}"
            if table.policy.compared:
                why = "answers at other sizes were compared with the module's"
            table.found[s.name] = f"thawed {name}: {s.label} was {s.example}; {why}"
    table.surplus = _surplus(table)
    return changed


def _named(table: SymbolTable) -> list[tuple[Symbol, str]]:
    """Every free size with the name that it gets in the graph."""
    taken: set[str] = set()
    found = []
    for s in sorted(table.roots(), key=lambda s: s.role is None):  # one with a role has its plain name
        base = s.role or ("batch" if s.axis == 0 else "size" if _asked(table, s) else "time")
        name, k = base, 2
        while name in taken:
            name, k = f"{base}_{k}", k + 1
        taken.add(name)
        found.append((s, name))
    return found


def names_of(table: SymbolTable) -> dict[str, list[tuple[str, int]]]:
    """Name -> the axes (input, axis) that would get it, for the free sizes of a walk that may have failed."""
    found = []
    if not any(s.role for s in table.roots()):
        _vote_by_position(table.roots())
    for s, name in _named(table):
        keys = [key for key, other in table.axes.items() if table.root(other) is s]
        found.append((name, keys))
    return dict(found)


def _note_literals(table: SymbolTable) -> None:
    """Record written numbers that equal a size but met none: counts that the exporter may have computed."""
    for literal in [s for s in table.roots() if s.axis < 0]:
        for s in table.roots():
            if s.axis >= 0 and s.genuine and s.example == literal.example:
                table.ledger.count(table.dim(s), literal.input, f"has the count {literal.example}")


def _vote_by_growth(table: SymbolTable, ctx) -> None:
    """The steps that a call appends to a cache are the time, whichever input comes first: the mask of an encoder's
    steps may come before the steps."""
    for op, _, inputs, outputs, attrs in ctx.nodes:
        if op != "concat" or len(inputs) != 2 or inputs[0] not in table.inputs or not alike(inputs[0], outputs[0]):
            continue
        held, new = (table.single(ctx.values[name].dims[attrs["axis"]]) for name in inputs)
        if held is not None and new is not None and held is not new and not (held.genuine or new.genuine):
            new.role = new.role or "time"
            return


def _vote_by_position(free: list[Symbol]) -> None:
    """Without a recurrent node: the first open axis 0 is batch, the next open axis that is not 0 is time."""
    roles = {"batch", "time"} - {s.role for s in free}
    for s in free:
        role = "batch" if s.axis == 0 else "time"
        if not s.genuine and s.role is None and role in roles:
            roles.remove(role)
            s.role = role


def _one_time(table: SymbolTable) -> bool:
    """Choose the one time of the model. Among several candidates, prefer an open one (it can't be held), then one
    that a recurrent node steps along, then one it runs forward along, then the outer of two nested ones (words made
    of characters), then the first. Equal lengths of several inputs count as one. The others keep the file's number;
    returns True if any did."""
    ranks = {id(s): rank for s, rank in _time_ranks(table)}
    times = [s for s in table.roots() if id(s) in ranks]
    times.sort(key=lambda s: ranks[id(s)])
    changed = False
    for s in times[1:]:
        first = times[0]
        if not s.genuine:
            continue
        changed = True
        side_by_side = first.genuine and first.input != s.input and not _nested(table, first, s)
        if side_by_side and first.example == s.example:
            s.joined = first
            table.found[f"time {s.name}"] = f"{s.label} is as long as {first.label}: both are {s.example}"
        else:
            table.hold(s, s.example, f"{first.label} is the time, and a model has one")
    if times:
        times[0].role = "time"
    return changed


def _time_of_a_memory(table: SymbolTable) -> None:
    """If no node steps along an axis, as in one step of a decoder that attends to an encoder's states, the time is
    the axis after the batch of a rank-3 input, unless the file fixes it."""
    free = table.roots()
    if any(s.role == "time" for s in free):
        return
    ranks: dict[str, int] = {}
    for key in table.by_key:
        if isinstance(key, tuple) and key[0] in table.inputs:
            ranks[key[0]] = max(ranks.get(key[0], 0), key[1] + 1)
    found = [s for s in free if s.role is None and s.genuine and s.axis == 1 and s.example > 1]
    found = [s for s in found if ranks.get(s.input) == 3 and _is_batch(table, s.input)]
    if len(found) == 1:
        found[0].role = "time"


def _is_batch(table: SymbolTable, name: str) -> bool:
    sym = table.by_key.get((name, 0))
    return sym is not None and table.root(sym).role == "batch"


def _asked(table: SymbolTable, s: Symbol) -> bool:
    """Whether the file's branches depend on a size. It is then not a number of steps."""
    return any(s in table.of(d) for d in table.assumed)


def _time_ranks(table: SymbolTable) -> list[tuple[Symbol, tuple]]:
    """Every symbol that could be the time, with its sort key; the smallest is best."""
    stepped: dict[int, bool] = {}  # id of a symbol -> whether any node runs only forward along it
    for time, _, forward in table.cells.values():
        sym = table.single(time)
        if sym is not None:
            stepped[id(sym)] = stepped.get(id(sym), False) or forward
    found = []
    for k, s in enumerate(table.roots()):
        if _asked(table, s):
            continue
        outer = any(_nested(table, s, t) for t in table.roots())
        if s.role == "time" or (s.role is None and not s.genuine and s.axis > 0) or (outer and id(s) in stepped):
            inner = any(_nested(table, t, s) for t in table.roots())
            found.append((s, (s.genuine, id(s) not in stepped, not stepped.get(id(s)), inner, s.role != "time", k)))
    return found


def _nested(table: SymbolTable, outer: Symbol, inner: Symbol) -> bool:
    """Whether steps along `outer` are rows of a node that steps along `inner`, and not the other way round."""
    if outer is inner:
        return False
    rows = [(table.single(time), table.of(batch)) for time, batch, _ in table.cells.values()]
    return any(time is inner and outer in batch for time, batch in rows) and not any(
        time is outer and inner in batch for time, batch in rows
    )


def _surplus(table: SymbolTable) -> list[str]:
    """A line for each free size other than batch and time: its length in a stream would be undefined."""
    named = {s.final: f"{shown(s)} is {s.final}" for s in table.roots() if s.final in ("batch", "time")}
    return [
        f"{shown(s)} is a free size besides batch and time"
        + (f" ({', '.join(named[k] for k in sorted(named))})" if named else "")
        + "; a stream needs it fixed: by sizes= at load, or in the file"
        for s in table.roots()
        if s.final not in named
    ]


def _join_batches(table: SymbolTable) -> bool:
    """Join batch axes that no node ties together into one batch if their examples allow it. An open first axis with
    no other meaning in the file joins too."""
    batches = [s for s in table.roots() if s.role == "batch"]
    batches += [s for s in table.roots() if s.role is None and s.axis == 0 and not s.genuine and batches]
    changed = False
    for s in batches[1:]:
        first = batches[0]
        if s.genuine and first.genuine and s.example != first.example:
            s.frozen = s.example
        else:
            s.joined = first
            first.genuine, first.example = (True, s.example) if s.genuine else (first.genuine, first.example)
            if s.param != first.param:
                table.found[f"batch {s.name}"] = f"{shown(s)} is the batch, as {shown(first)} is"
        changed = True
    return changed
