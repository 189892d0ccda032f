"""profile: the cost of a model here, op by op: predicted by the performance model, measured, and what bounds it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from .. import tables
from ..compile.plan import Plan
from ..errors import ShapeError, StreamError
from ..graph import DTYPES
from ..graph import dims as D
from ..machine.cpu import MAX_THREADS
from ..model import Model
from ..records import dataclass
from ..runtime._timing import OpTimer, clock_ns
from ..runtime.arguments import whole_number
from . import cost_model, limits
from .cost_model import Cost
from .limits import Limits

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)  # at which growth is predicted
MEASURED_BATCHES = (1, 8, 32)  # and measured
SCALES = (0.5, 1.0, 2.0, 4.0)  # of the cells' sizes, at which growth is predicted
MOST_CALLS, LEAST_CALLS = 4000, 5
TIMED_ROWS = 1 << 14  # ops times walks of one timer: 128 KiB
PACED = 8  # cost of a step with paced values, in plain steps: it looks up its counts
MOST_ROWS = 1 << 20  # batch x steps; more is a typing error
Progress = Callable[[float, str], None]  # (share done, what is being done)
DEFINITIONS = {
    "FLOPs": "floating point operations; a multiply-add is two. Activations and other functions of single numbers are "
    "not counted",
    "weights": "bytes of weights that are read, once for each time that an op reads them",
    "data": "bytes of an op's inputs and outputs",
    "read from": "the nearest cache that holds all weights of a call and keeps them from one call to the next",
    "predicted": "what the performance model says, from the limits of this machine alone; nothing is run for it",
    "measured": "the median over calls; of an op by a clock around it, whose own cost is taken off. Calls shorter than "
    "20 us are timed several at once; p99: 99 of 100 of these times are no longer",
    "bound": "the largest part of the predicted time. fma: multiply-adds; L1, L2, L3, memory: reading weights or data "
    "from there; latency: multiply-adds that wait for the one before; activations: tanh, sigmoid and other functions; "
    "overhead: the fixed costs of an op, a step, a row",
    "roofline": "the time that the machine's limits alone allow over the measured time: the larger of FLOPs at the "
    "peak of multiply-adds, and bytes of weights at the rate of the cache or memory that they are read from",
    "the call": "the measured time that is in no op: Python, checks, binding",
    "streams per core": "real-time streams that one core carries if it does nothing else: the calls that fit a hop, "
    "times the rows of a call",
    "cells' size": "predicted, with the input and hidden size of every cell scaled and everything else unchanged",
}


@dataclass(frozen=True)
class OpProfile:
    """One op of the plan. kind, node: its kind and its graph node; cost: a `cost_model.Cost`, whose `ns` is the
    prediction; measured_ns: median of its calls; share: of the roofline, least_ns / measured_ns."""

    kind: str
    node: str
    cost: Cost
    measured_ns: float
    share: float | None


@dataclass(frozen=True)
class Growth:
    """A call of `batch` rows, or one with cells `scale` times as large. measured_ns: None if it was not run."""

    batch: int
    scale: float
    predicted_ns: float
    measured_ns: float | None


@dataclass(frozen=True)
class Profile:
    """What `profile` returns; times in nanoseconds per call.

    call : "step" (one step of a stream), "run" (whole sequences) or "push" (steps of a stream in one call)
    batch, steps, threads : of a call
    predicted_ns, measured_ns : of a call from Python, all ops and the call itself; measured: the median; p99_ns
    overhead_ns : the part of measured_ns outside the ops, that is, the call itself; predicted_overhead_ns
    least_ns : the minimum for all ops by the roofline; share : least_ns / measured_ns
    calls : how many were timed
    hop_ms, streams : real-time streams that one core carries if each makes a step every hop_ms: (rows per call,
        streams); empty if the model does not stream
    by_batch, by_size : how the cost grows
    """

    model: str
    call: str
    batch: int
    steps: int
    threads: int
    limits: Limits
    ops: tuple[OpProfile, ...]
    predicted_ns: float
    measured_ns: float
    p99_ns: float
    overhead_ns: float
    predicted_overhead_ns: float
    least_ns: float
    share: float
    calls: int
    memory_bytes: int
    weight_bytes: int
    level: str
    hop_ms: float
    streams: tuple[tuple[int, int], ...]
    by_batch: tuple[Growth, ...]
    by_size: tuple[Growth, ...]

    @property
    def step_ns(self) -> float:
        """Measured nanoseconds per step and row."""
        return self.measured_ns / (self.steps * self.batch)

    @property
    def flops(self) -> int:
        """Floating point operations of a call."""
        return sum(op.cost.flops for op in self.ops)

    def as_dict(self) -> dict[str, Any]:
        """The same as dicts, lists, strings and numbers."""
        return {
            **asdict(self),
            "limits": self.limits.as_dict(),
            "step_ns": self.step_ns,
            "flops": self.flops,
            "definitions": DEFINITIONS,
        }

    def _repr_html_(self) -> str:
        streams = (
            ", ".join(f"{n:,} at {rows} a call" for rows, n in self.streams) or "none: it only runs whole sequences"
        )
        rows = [
            ("call", f"{self.call}, {self.batch} x {self.steps} steps, {self.threads} threads"),
            ("measured", f"{_time(self.measured_ns)} (median); p99 {_time(self.p99_ns)}"),
            ("predicted", _time(self.predicted_ns)),
            ("roofline", f"{self.share:.0%} of what the machine allows, {_time(self.least_ns)}"),
            ("outside the ops", _time(self.overhead_ns)),
            ("streams per core", f"{streams}; a step every {self.hop_ms:g} ms"),
        ]
        ops = [(op.kind, op.node, op.cost.bound, _time(op.cost.ns), _time(op.measured_ns)) for op in self.ops]
        numbers = ("predicted", "measured")
        listed = tables.table(("op", "node", "bound", *numbers), ops, numbers=numbers)
        return tables.block(f"Profile of {self.model}", tables.pairs(rows), listed)

    @property
    def definitions(self) -> dict[str, str]:
        """Figure -> what it means."""
        return dict(DEFINITIONS)


def profile(
    model: Model,
    *,
    batch: int = 1,
    steps: int = 1,
    threads: int = 1,
    hop_ms: float = 32.0,
    seconds: float = 1.0,
    machine: Limits | None = None,
    progress: Progress = lambda share, text: None,
) -> Profile:
    """Predict and measure one call of a model: one step of a stream, or whole sequences of `steps`.

    Parameters
    ----------
    model : Model; it is not changed: the calls go to a copy
    batch, steps, threads : of a call. One step goes through `Stream.step` if the model streams; several, or a model
        that does not stream, through `Model.run` (a step function through `Stream.push`).
    hop_ms : how often a real-time stream makes a step
    seconds : of measuring, about; the roofline takes about one more if it is not in its cache yet
    machine : limits to predict with; None: those of this machine, measured or from the cache
    progress : called with (share done 0..1, what is being done)

    Raises
    ------
    ShapeError : the model is invalid at these sizes, or leaves another size open.
    """
    batch, steps = whole_number(batch, "batch", MOST_ROWS), whole_number(steps, "steps", MOST_ROWS)
    threads = whole_number(threads, "threads", MAX_THREADS)
    if batch * steps > MOST_ROWS:
        raise ShapeError(f"batch {batch} x steps {steps} is more than {MOST_ROWS} rows")
    if not (hop_ms > 0 and seconds > 0 and math.isfinite(hop_ms) and math.isfinite(seconds)):
        raise ShapeError(f"hop_ms and seconds must be positive, got {hop_ms} and {seconds}")
    progress(0.0, "the machine's limits")
    found = machine or limits.measured()
    twin = Model(model.graph, threads)
    call = Call(twin, batch, steps)
    progress(0.2, "this call")
    costs = call.predict(found)
    totals, ops = call.measure(0.6 * seconds)
    overhead = call.overhead_ns(found)
    predicted = overhead + sum(c.ns for c in costs)
    measured = float(np.median(totals))
    progress(0.6, "other batches")
    by_batch = _by_batch(call, found, measured, 0.4 * seconds, progress)
    least = sum(c.least_ns for c in costs)
    rows = tuple(
        OpProfile(op.kind, op.node, cost, float(ns), cost.least_ns / ns if ns > 0 else None)
        for op, cost, ns in zip(call.plan.ops, costs, ops, strict=True)
    )
    footprint = cost_model.footprint_of(call.plan)
    progress(1.0, "done")
    return Profile(
        model.name, call.kind, batch, steps, threads, found, rows, predicted, measured,
        float(np.quantile(totals, 0.99)), max(measured - float(ops.sum()), 0.0), overhead, least, least / measured,
        len(totals), model.memory_bytes, footprint, found.level(footprint), hop_ms,
        _streams(hop_ms, steps, [(g.batch, g.measured_ns) for g in by_batch if call.streams], threads),
        by_batch, _by_size(call, found, overhead),
    )  # fmt: skip


def _streams(hop_ms: float, steps: int, timed, threads: int = 1) -> tuple[tuple[int, int], ...]:
    """(rows per call, streams that one core carries) for each timed batch: as many calls as fit a hop, each of
    that many rows. A call of several steps serves as many hops, and one of several threads takes as many cores."""
    times = {rows: ns for rows, ns in timed if ns}
    return tuple((rows, int(1e6 * hop_ms * steps // ns) * rows // threads) for rows, ns in sorted(times.items()))


def opens(model: Model) -> str | None:
    """Why a stream of the model can't be opened: it needs the future, or `context=` for its attention."""
    try:
        model.stream()
    except StreamError as error:
        return str(error)
    return None


class Call:
    """One kind of call of a model at fixed sizes: what it runs, what it should cost, what it does cost.

    kind : "step", "run" or "push"; plan : the plan that it walks.
    """

    def __init__(self, model: Model, batch: int, steps: int, seed: int = 0):
        self.model, self.batch, self.steps = model, batch, steps
        graph = model.graph
        timed = any("time" in D.symbols(d) for n in graph.inputs for d in graph.values[n].dims)
        plain = [graph.values[n] for n in graph.inputs if n not in graph.states]
        if model._core._open_sizes:
            text = ", ".join(f"{name!r}: ..." for name in model._core._open_sizes)
            raise ShapeError(f"{model.name} leaves a size open: load it with sizes={{{text}}}")
        self.streams = opens(model) is None
        if self.streams and (steps == 1 or not timed):
            self.kind = "step" if steps == 1 else "push"
            stream = model.stream(batch_size=None if batch == 1 else batch)
            self.program = stream.program
            parts = stream._parts
            self.plain = parts.simple
            shapes = [a.step_shape(stream.batch_size) for a in parts.inputs]
            x = _feeds([graph.values[a.name] for a in parts.inputs], shapes, seed)
            if self.kind == "push":
                at = 0 if batch == 1 else 1
                x = [np.repeat(np.expand_dims(a, at), steps, at) for a in x]
            calls = _stepper(stream, x) if self.kind == "step" else _repeater(stream.push, _one(x))
            room = self.program.plan.room
            self.calls = calls if room is None else _renewed(calls, stream.reset, room // steps)
        else:
            self.kind = "run"
            sizes = {"batch": batch, "time": steps}
            shapes = [tuple(D.evaluate(d, sizes) for d in v.dims) for v in plain]
            x = _feeds(plain, shapes, seed)
            self.program = model._core._program("run")
            self.calls = _repeater(model, *x)
        self.plan: Plan = self.program.plan

    def overhead_ns(self, machine: Limits) -> float:
        """The predicted cost of the call without its ops."""
        if self.kind != "step":
            return machine.run_ns
        plain = PACED * machine.step_ns if self.plan.paced else machine.step_ns
        return plain if self.plain else machine.general_ns

    def predict(self, machine: Limits, batch: int | None = None) -> list[Cost]:
        """The cost of each op, of all steps of a call; batch: another one than the call's own."""
        once = self.kind == "push"
        costs = cost_model.predict(
            self.plan, machine, batch or self.batch, 1 if once else self.steps, self.model.threads
        )
        return [_repeated(c, self.steps) for c in costs] if once else costs

    def measure(self, seconds: float) -> tuple[np.ndarray, np.ndarray]:
        """(ns of each call, untimed inside; ns of each op: medians over calls that are timed op by op)."""
        group = self.group()
        extra, budget = clock_ns(), 1e9 * seconds
        totals: list[float] = []
        each: list[np.ndarray] = []
        # In turns, so that other load on the machine affects both equally.
        while (budget > 0 or len(totals) < LEAST_CALLS) and len(totals) < MOST_CALLS:
            start = time.perf_counter_ns()
            totals.append(self.total_ns(group) / group)
            each.append(self.op_ns(group, extra))
            budget -= time.perf_counter_ns() - start
        # Calls of a paced plan differ: their ops are reported as means.
        return np.array(totals), (np.mean if self.plan.paced else np.median)(np.concatenate(each), axis=0)

    def group(self) -> int:
        """How many calls to make between two looks at the clock."""
        self.calls(1)  # binds the sizes
        first = self.total_ns(1)
        if first < 1e6:  # one call may have been interrupted, or found cold caches
            first = min(first, *(self.total_ns(1) for _ in range(4)))
        group = max(1, min(1000, int(20_000 / max(first, 1))))
        return max(1, min(group, TIMED_ROWS // (self._rows() * max(len(self.plan.ops), 1))))

    def total_ns(self, calls: int) -> float:
        """ns of that many calls in a row."""
        return _ns(self.calls, calls)

    def _rows(self) -> int:
        """The most walks over the plan in one call; each is timed."""
        return 4 * self.steps + 16 if self.kind == "push" or self.plan.paced else 1

    def op_ns(self, calls: int, extra: float) -> np.ndarray:
        """ns of each op, [calls, ops], in consecutive calls, as in a service. If anything between them touched other
        memory, the ops of small models would take twice as long. extra: cost of the clock in each of them. For a paced
        plan: [1, ops], the mean call."""
        timer = OpTimer(len(self.plan.ops), calls * self._rows())
        self.program.timer = timer
        try:
            self.calls(calls)
        finally:
            self.program.timer = None
        ns = np.maximum(timer.ns - extra, 0.0)
        if self.plan.paced:
            return ns.sum(axis=0, keepdims=True) / calls
        return ns.reshape(calls, -1, ns.shape[1]).sum(axis=1)


def _time(ns: float) -> str:
    return tables.seconds(1e-9 * ns)


def _repeated(cost: Cost, times: int) -> Cost:
    return replace(
        cost, flops=cost.flops * times, weight_bytes=cost.weight_bytes * times, data_bytes=cost.data_bytes * times,
        least_ns=cost.least_ns * times, ns=cost.ns * times,
    )  # fmt: skip


def _ns(calls: Callable[[int], None], repeats: int) -> float:
    start = time.perf_counter_ns()
    calls(repeats)
    return time.perf_counter_ns() - start


def _repeater(call: Callable, *given) -> Callable[[int], None]:
    """A function that makes n calls in a loop without an extra Python call, which would cost like a small step."""

    def calls(n: int) -> None:
        for _ in range(n):
            call(*given)

    return calls


def _renewed(calls: Callable[[int], None], reset: Callable[[], None], most: int) -> Callable[[int], None]:
    """n calls of a stream that ends after `most` of them (attention over that many steps): it is restarted."""
    left = 0

    def renewed(n: int) -> None:
        nonlocal left
        while n > 0:
            if left == 0:
                reset()
                left = max(most, 1)
            count = min(n, left)
            calls(count)
            left, n = left - count, n - count

    return renewed


def _one(arrays: list):
    return arrays[0] if len(arrays) == 1 else tuple(arrays)


def _stepper(stream, x: list) -> Callable[[int], None]:
    """n steps of the stream into its own arrays, as in a service."""
    given = _one(x)
    out = stream.step(given)
    if out is None or (isinstance(out, tuple) and any(o is None for o in out)):  # outputs that lag have none yet
        return _repeater(stream.step, given)
    step = stream.step

    def calls(n: int) -> None:
        for _ in range(n):
            step(given, out=out)

    return calls


def _feeds(values, shapes, seed: int) -> list[np.ndarray]:
    """Inputs of these shapes: small noise, zeros for integers and bools (an index that every table has)."""
    rng = np.random.default_rng(seed)
    arrays: list[np.ndarray] = []
    for value, shape in zip(values, shapes, strict=True):
        real = value.dtype in ("float32", "float64")
        made = 0.1 * rng.standard_normal(shape) if real else np.zeros(shape)
        arrays.append(np.asarray(made, DTYPES[value.dtype], order="C"))  # ascontiguousarray makes 0 axes 1
    return arrays


def _by_batch(call: Call, machine: Limits, known: float, seconds: float, progress: Progress) -> tuple[Growth, ...]:
    """The same call with other batches: predicted, and some measured. known: measured ns of the call itself."""
    model, steps = call.model, call.steps
    has_batch = any("batch" in D.symbols(d) for v in model.graph.values.values() for d in v.dims)
    overhead = call.overhead_ns(machine)
    found = []
    batches = sorted({*BATCHES, call.batch}) if has_batch else [call.batch]
    for batch in batches:
        predicted = overhead + sum(c.ns for c in call.predict(machine, batch))
        measured = known if batch == call.batch else None
        if measured is None and batch in MEASURED_BATCHES and predicted < 1e9 * seconds:
            measured = float(np.median(Call(model, batch, steps).measure(seconds / len(MEASURED_BATCHES))[0]))
        found.append(Growth(batch, 1.0, predicted, measured))
        progress(0.6 + 0.4 * len(found) / len(batches), "other batches")
    return tuple(found)


def _by_size(call: Call, machine: Limits, overhead: float) -> tuple[Growth, ...]:
    """The same call with the input and hidden size of every cell scaled, everything else as it is: predictions."""
    if not call.plan.cells:
        return ()
    found = []
    for scale in SCALES:
        cells = [_scaled(cell, scale) for cell in call.plan.cells]
        plan = replace(call.plan, cells=cells)
        time = 1 if call.kind == "push" else call.steps
        costs = cost_model.predict(plan, machine, call.batch, time, call.model.threads)
        whole = overhead + sum(c.ns for c in costs) * (call.steps if call.kind == "push" else 1)
        found.append(Growth(call.batch, scale, whole, None))
    return tuple(found)


def _scaled(cell, scale: float):
    """Replaces a packed cell by one of another size."""
    spec = cell.spec
    size = {n: max(1, round(scale * getattr(spec, n))) for n in ("input_size", "hidden_size")}
    ratio = (sum(size.values()) * size["hidden_size"]) / ((spec.input_size + spec.hidden_size) * spec.hidden_size)
    return SimpleNamespace(spec=replace(spec, **size), nbytes=int(cell.nbytes * ratio), weights=cell.weights)
