"""Runs of a model here and in another engine, and the differences of the results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ...errors import FastRNNError, ShapeError, UnsupportedError
from ...graph import dims as D
from .engines import TOLERANCE, allowed, first_line
from .inputs import least_steps, random_inputs
from .lengths import compared_sizes, long_runs, size_notes
from .report import OutputDifference, VerifyReport

if TYPE_CHECKING:
    from ...model import Model

# (batch, time) of the runs if the model leaves them free. 19 steps are longer than any tile, 1 is the live case.
SIZES = ((1, 1), (1, 7), (2, 19), (5, 3))
FREE = 3  # for any other size that the model leaves open
EVERY = 128  # if a model runs at none of `SIZES`, all lengths up to this are tried, and some beyond
MAX_SIZE = 4096  # the largest batch or time that is tried to meet a size that the file has frozen


class PairedRun(NamedTuple):
    """One run in both engines: its feeds' shapes in words, its sizes, and the outputs of each."""

    text: str
    env: dict[str, int]
    ours: list[np.ndarray]
    theirs: list[np.ndarray]


def compare(model: Model, other, shown: str, seed: int, tolerance: float | None, sizes) -> VerifyReport:
    """Run a model and an engine at these sizes, and at others if a file accepts none of the default ones.

    shown : the model's name in the report. tolerance : None for the engine's own, or
        that of the model's precision if it is larger.
    """
    limit = (
        float(tolerance)
        if tolerance is not None
        else allowed(model.graph, other.tolerance, beside_file=not other.is_own)
    )
    reduced = tolerance is None and limit > other.tolerance
    names = [info.name for info in model.outputs]
    runs = _Runs(model, other, names, seed)
    environments = _environments(model, other, sizes)
    for env in environments:
        runs.add(env)
    if sizes is SIZES:
        runs.search(environments)
    worst: dict[str, OutputDifference] = {}
    compared = []
    for run in runs.done:
        if frozen := _frozen(names, run, runs.done):
            runs.skipped.append(f"{run.text}: {other.title} answers as if {frozen}, which the file has written into it")
            continue
        compared.append(run)
        for name, got, want in zip(names, run.ours, run.theirs, strict=True):
            worst[name] = _worse(worst.get(name), difference(name, got, want, limit, run.text, reduced))
    if not compared:
        raise _no_run(model, shown, other.title, runs.skipped)
    covered = compared_sizes([run.env for run in compared])
    long = long_runs(model, seed, allowed(model.graph, TOLERANCE) if tolerance is None else limit)
    noted = [note for note in model.graph.notes if "onnxruntime" in note]
    return VerifyReport(
        model=shown,
        against=other.title,
        ok=all(found.ok for found in worst.values()) and (long is None or long.ok),
        tolerance=limit,
        seed=seed,
        outputs=tuple(worst.values()),
        runs=tuple(run.text for run in compared),
        skipped=tuple(runs.skipped),
        notes=(*other.notes, *noted, *size_notes(model.graph, covered, sizes, other.title, is_own=other.is_own)),
        compared=covered,
        long=long,
    )


class _Runs:
    """The runs that both engines completed (`done`), and those that the other one rejected (`skipped`: why)."""

    def __init__(self, model: Model, other, names: Sequence[str], seed: int):
        self.model, self.other, self.names = model, other, names
        self.rng = np.random.default_rng(seed)
        self.done: list[PairedRun] = []
        self.skipped: list[str] = []

    def add(self, env: dict[str, int]) -> None:
        """Run both engines at these sizes. Raises FastRNNError if this one rejects them."""
        feeds = random_inputs(self.model.graph, env, self.rng)
        text = ", ".join(f"{name} [{', '.join(map(str, array.shape))}]" for name, array in feeds.items())
        try:
            expected = self.other.run(feeds, self.names)
        except FastRNNError:
            raise
        except Exception as error:  # engines raise their own classes, onnxruntime one per status code
            self.skipped.append(f"{text}: {self.other.title} refused it: {first_line(error)}")
            return
        ours = [np.asarray(a) for a in self.model.run(*feeds.values())]
        self.done.append(PairedRun(text, env, ours, [np.asarray(a) for a in expected]))

    def search(self, environments: list[dict[str, int]]) -> None:
        """Try other sizes if the other engine ran at only one length, or at none."""
        first = list(self.skipped)
        for env in _longer(environments, {run.env["time"] for run in self.done if "time" in run.env}):
            self.add(env)
            if self.done and any(array.size == 0 for array in self.done[-1].ours):
                self.done.pop()  # too short for a window, which onnxruntime's pools take for one step
            if len(self.done) >= len(environments):
                break
        if len(self.done) == 1 < len(environments):  # the file has one length: run it at least with all batches
            only = self.done[0].env
            others = {env["batch"] for env in environments if "time" in only and "batch" in env} - {only.get("batch")}
            for batch in sorted(others):
                self.add(only | {"batch": batch})
        self.skipped = first  # the reader does not need the failed sizes of a search


def _no_run(model: Model, shown: str, title: str, skipped: Sequence[str]) -> UnsupportedError:
    """The error if no run could be compared."""
    why = list(skipped) or ["no size fits the model's inputs"]
    if model._core._open_sizes:
        opened = ", ".join(model._core._open_sizes)
        why.append(f"the model leaves {opened} open, which was tried as {FREE}: fix it with fixed_sizes= (--sizes)")
    return UnsupportedError(why, f"verifying {shown} against {title}")


def _frozen(names: Sequence[str], run: PairedRun, done: Sequence[PairedRun]) -> str | None:
    """Where a run's shapes differ because the other engine's are fixed: "axis 0 of y were 7", else None.

    An exporter may declare a free length and still unroll the recurrence for that of the example; fastrnn rolls it up
    again. This is assumed only if the other engine had the same size in all runs, and ours had it in one of them.
    """
    for k, name in enumerate(names):
        if run.ours[k].ndim != run.theirs[k].ndim:
            continue
        for axis, (mine, size) in enumerate(zip(run.ours[k].shape, run.theirs[k].shape, strict=True)):
            always = all(r.theirs[k].ndim > axis and r.theirs[k].shape[axis] == size for r in done)
            if mine != size and always and any(r.ours[k].shape == r.theirs[k].shape for r in done):
                return f"axis {axis} of {name} were {size} long"
    return None


def difference(
    name: str, got: np.ndarray, want: np.ndarray, tolerance: float, where: str, reduced: bool = False
) -> OutputDifference:
    """reduced: a large tolerance is a share of the output's largest element, so that small outputs are not free."""
    if got.shape != want.shape:
        text = f"shape {list(got.shape)}, expected {list(want.shape)}, at {where}"
        return OutputDifference(name, float("inf"), float("inf"), False, text)
    if got.size == 0:
        return OutputDifference(name, 0.0, 0.0, True, f"at {where}")
    a, b = got.astype(np.float64), want.astype(np.float64)
    with np.errstate(invalid="ignore"):  # inf - inf
        gap = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    gap[~np.isfinite(gap)] = np.inf
    finite = np.where(np.isfinite(b), np.abs(b), 0.0)
    largest, scale = float(gap.max()), float(finite.max())
    index = np.unravel_index(int(gap.argmax()), gap.shape)
    place = f"at {where}, element [{', '.join(map(str, index))}]: {a[index]:g}, expected {b[index]:g}"
    relative = 0.0 if largest == 0 else largest / scale if scale else float("inf")
    ok = largest <= tolerance * scale if reduced else bool((gap <= tolerance * (1 + finite)).all())
    return OutputDifference(name, largest, relative, ok, place)


def _worse(old: OutputDifference | None, new: OutputDifference) -> OutputDifference:
    if old is None:
        return new
    first = new if (new.absolute, not new.ok) > (old.absolute, not old.ok) else old
    relative = max(old.relative, new.relative)
    return OutputDifference(new.name, first.absolute, relative, old.ok and new.ok, first.where)


def _environments(model: Model, other, sizes) -> list[dict[str, int]]:
    """Values of the model's symbols for each run, without repeats: those that the other engine's file leaves free.

    Raises ShapeError if the two disagree about an input's rank or a size.
    """
    graph = model.graph
    symbols = {s for name in graph.inputs for d in graph.values[name].dims for s in D.symbols(d)}
    pinned: dict[str, int] = {}
    for name in graph.inputs:
        theirs = other.dims(name)
        if theirs is None:
            continue
        mine = graph.values[name].dims
        if len(theirs) != len(mine):
            raise ShapeError(f"input {name}: {other.title} takes {list(theirs)}, fastrnn {list(mine)}")
        for dim, size in zip(mine, theirs, strict=True):
            if isinstance(size, int) and isinstance(dim, D.Dim):
                pinned.update(_solve(name, dim, size))
            elif isinstance(size, int) and size != dim:
                raise ShapeError(f"input {name}: {other.title} takes {list(theirs)}, fastrnn {list(mine)}")
    found: list[dict[str, int]] = []
    more = least_steps(graph, sizes[0][0]) - 1
    for batch, time in sizes:
        env = {s: pinned.get(s, {"batch": batch, "time": time + more}.get(s, FREE)) for s in sorted(symbols)}
        if env not in found:
            found.append(env)
    return found


def _longer(environments: list[dict[str, int]], done: set[int]) -> Iterator[dict[str, int]]:
    """More lengths to try if at most one of the first ones ran: windows may need hundreds of steps, and a Reshape may
    contain the one length of the export."""
    if len(done) > 1 or len({env.get("time") for env in environments}) == 1:
        return
    tried = {env["time"] for env in environments}
    lengths = [n for n in range(1, EVERY + 1) if n not in tried]
    while lengths[-1] < MAX_SIZE:
        lengths.append(min(MAX_SIZE, lengths[-1] * 9 // 8))
    for k, time in enumerate(lengths):
        yield environments[k % len(environments)] | {"time": time}


def _solve(name: str, dim: D.Dim, size: int) -> dict[str, int]:
    symbols = D.symbols(dim)
    if len(symbols) == 1:
        (symbol,) = symbols
        for value in range(MAX_SIZE + 1):
            if D.evaluate(dim, {symbol: value}) == size:
                return {symbol: value}
    raise ShapeError(f"input {name}: no size up to {MAX_SIZE} makes {dim} the {size} of the file")
