"""plan_capacity: machines, memory, network and checkpoints that live streams need, from the performance model.

docs/guide/capacity.md has the formulas, and where each number comes from.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from ..errors import FastRNNError
from ..graph import DTYPES
from ..model import Model
from ..records import dataclass
from . import cost_model, limits
from .limits import Limits

ROWS = (1, 8, 32, 128)  # of a pool's step, at which costs are predicted and measured
HEADER = 16  # bytes of a step besides its input: a slot and a step index, int64 each (fastrnn/ray/host.py)
RECORD = 96  # bytes of a stream in a checkpoint besides its state and last answer: ids, indexes, offsets
OBJECTS = 300  # bytes of a stream's objects on its host: its id, and its entries in dicts and tables
BASE_BYTES = 300 << 20  # of a process with Ray, NumPy and pyarrow, without the model
SLICE = 0.02  # seconds of one measurement
TRIES = 5


@dataclass(frozen=True)
class RowCost:
    """Nanoseconds of a row of `StreamPool.step` with that many rows; measured_ns: None if it was not measured."""

    rows: int
    predicted_ns: float
    measured_ns: float | None


@dataclass(frozen=True)
class CapacityPlan:
    """What `plan_capacity` returns.

    row_ns : of a stream's step, of which everything follows; its source is "predicted" or "measured"
    streams_per_core : at the rate, with headroom and efficiency
    machines : the largest of the three needs, and spare ones; bound : which need that is
    by_cpu, by_memory, by_network : machines for each need alone, a fraction
    state_bytes, memory_bytes : of a stream's state; of all that a machine holds
    network_in, network_out : bytes a second of a machine
    checkpoint_bytes, checkpoint_rate : of one checkpoint of all streams; bytes a second to the store, of all machines
    lost_streams, lost_steps, recovery_seconds : if one machine is lost: its streams, the steps that are replayed, and
        the seconds that its successors compute for them on their headroom; None without headroom
    """

    model: str
    streams: int
    rate: float
    costs: tuple[RowCost, ...]
    row_ns: float
    source: str
    streams_per_core: int
    machines: int
    bound: str
    by_cpu: float
    by_memory: float
    by_network: float
    state_bytes: int
    memory_bytes: int
    network_in: float
    network_out: float
    checkpoint_bytes: int
    checkpoint_rate: float
    lost_streams: int
    lost_steps: int
    recovery_seconds: float | None
    options: dict[str, float]
    limits: Limits

    def as_dict(self) -> dict[str, Any]:
        """The same as dicts, lists, strings and numbers."""
        return {**asdict(self), "limits": self.limits.as_dict()}


def plan_capacity(
    model: Model,
    streams: int,
    rate: float,
    *,
    cores: int = 32,
    memory: float = 64.0,
    network: float = 10.0,
    headroom: float = 0.3,
    efficiency: float = 0.8,
    checkpoint_seconds: float = 1.0,
    spare: int = 1,
    measure: bool = False,
    machine: Limits | None = None,
) -> CapacityPlan:
    """How many machines `streams` live streams need that make `rate` steps a second each.

    Parameters
    ----------
    model : Model that streams
    cores, memory, network : of one machine: cores, GiB, Gbit/s in each direction
    headroom : share of each that stays free, for peaks
    efficiency : share of the pool's own speed that is left behind the protocol and the network
    checkpoint_seconds : between two checkpoints; 0: there are none
    spare : machines that may be lost without a loss of capacity
    measure : run `StreamPool.step` at several numbers of rows here, and plan with that; otherwise nothing is run
    machine : limits of a core; None: those of this machine, from the cache or measured now

    Raises
    ------
    StreamError : the model does not stream. FastRNNError : a number is out of its range.
    """
    given = {
        "cores": cores, "memory": memory, "network": network, "headroom": headroom, "efficiency": efficiency,
        "checkpoint_seconds": checkpoint_seconds, "spare": spare,
    }  # fmt: skip
    _check({"streams": streams, "rate": rate, **given})
    found = machine or limits.measured()
    twin = Model(model.graph, 1)
    if twin._core._open_sizes:
        names = ", ".join(f"{n!r}: ..." for n in twin._core._open_sizes)
        raise FastRNNError(f"{model.name} leaves a size open: load it with sizes={{{names}}}")
    costs = row_costs(twin, found, measure)
    best = costs[-1]
    row_ns = best.predicted_ns if best.measured_ns is None else best.measured_ns
    per_core = (1 - headroom) * efficiency * 1e9 / (rate * row_ns)
    if per_core < 1:
        text = f"a step takes {row_ns / 1e3:,.0f} us, so one core does not carry one stream at {rate:g} steps a second"
        raise FastRNNError(f"{text}: lower the rate, or give the model a smaller number format (--precision)")
    return _planned(twin, streams, rate, costs, row_ns, math.floor(per_core), given, found)


def _planned(model, streams, rate, costs, row_ns, per_core, given, machine) -> CapacityPlan:
    """The plan, from the cost of a step and the sizes of a stream."""
    headroom, every, cores = given["headroom"], given["checkpoint_seconds"], given["cores"]
    sizes = stream_sizes(model)
    dirty = min(1.0, rate * every)  # share of the streams that step between two checkpoints
    checkpoint = int(streams * (sizes.state + sizes.output + RECORD)) if every else 0
    to_store = checkpoint * dirty / every if every else 0.0
    step_in, step_out = streams * rate * (sizes.input + HEADER), streams * rate * sizes.output
    free = (1 - headroom) * given["memory"] * 2**30 - BASE_BYTES - model.memory_bytes
    if free <= 0:
        text = f"the model and its process need more than {given['memory']:g} GiB with this headroom"
        raise FastRNNError(f"{text}: raise memory")
    needs = {
        "cores": streams / (per_core * cores),
        "memory": streams * sizes.held / free,
        "network": 8 * max(step_in, step_out + to_store) / ((1 - headroom) * given["network"] * 1e9),
    }
    bound = max(needs, key=lambda name: needs[name])
    machines = max(1, math.ceil(needs[bound] - 1e-9)) + given["spare"]
    each = math.ceil(streams / machines)
    # Two checkpoints are kept, and the newest may be half written: steps since the older one are replayed.
    lost_steps = int(each * rate * 2 * every)
    free_cores = headroom * cores * max(machines - 1, 1) * given["efficiency"]
    return CapacityPlan(
        model.name, streams, rate, costs, row_ns, "predicted" if costs[-1].measured_ns is None else "measured",
        per_core, machines, bound, needs["cores"], needs["memory"], needs["network"], sizes.state,
        int(each * sizes.held + BASE_BYTES + model.memory_bytes), step_in / machines, (step_out + to_store) / machines,
        checkpoint, to_store, each, lost_steps, 1e-9 * lost_steps * row_ns / free_cores if headroom else None, given,
        machine,
    )  # fmt: skip


def _check(numbers: dict[str, float]) -> None:
    for name, value in numbers.items():
        zero = name in ("checkpoint_seconds", "spare", "headroom")
        high = {"headroom": 0.95, "efficiency": 1.0}.get(name, 1e12)
        real = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        whole = name not in ("streams", "cores", "spare") or (real and value == int(value))
        if not real or not whole or not (0 <= value if zero else 0 < value) or value > high:
            kind = "a whole number" if not whole else "a number"
            raise FastRNNError(f"{name} must be {kind} {'from' if zero else 'above'} 0 to {high:g}, got {value!r}")


@dataclass(frozen=True)
class StreamSizes:
    """Bytes of a stream: its state, a step's inputs and outputs, and all that its host holds for it."""

    state: int
    input: int
    output: int
    held: int


def stream_sizes(model: Model) -> StreamSizes:
    """The sizes of a model's streams. StreamError: it does not stream."""
    core = model._core
    core._check_streamable()
    parts = core._stream_parts(None, core._context(None, "error"))
    pool = model.pool(64)
    state = 4 * int(pool.slab.shape[1])
    table = max(0, (pool.memory_bytes - pool.slab.nbytes) // 64)
    given = sum(_bytes(a) for a in parts.inputs)
    made = sum(_bytes(a) for a in parts.outputs)
    # The host keeps the last answer of each stream, to give it again.
    return StreamSizes(state, given, made, state + table + made + RECORD + OBJECTS)


def _bytes(argument) -> int:
    return int(np.prod(argument.features, dtype=np.int64)) * np.dtype(DTYPES[argument.dtype]).itemsize


def row_costs(model: Model, machine: Limits, measure: bool) -> tuple[RowCost, ...]:
    """What a row of a pool's step costs, by the rows of a call."""
    core = model._core
    core._check_streamable()
    context = core._context(None, "error")
    plan = core._program("stream", context).plan
    found = []
    for rows in ROWS:
        ops = sum(c.ns for c in cost_model.predict(plan, machine, batch=rows))
        found.append(RowCost(rows, (ops + machine.general_ns) / rows, _measured(model, rows) if measure else None))
    return tuple(found)


def _measured(model: Model, rows: int) -> float:
    """ns of a row of `pool.step` with that many rows; many slots take turns, as in a service."""
    slots_of = max(4, 1024 // rows)
    pool = model.pool(slots_of * rows)
    slots = np.array([pool.open() for _ in range(slots_of * rows)]).reshape(slots_of, rows)
    rng = np.random.default_rng(0)
    arrays = []
    for a in pool._parts.inputs:
        shape, real = a.step_shape(rows), np.dtype(DTYPES[a.dtype]).kind == "f"
        arrays.append((0.1 * rng.standard_normal(shape) if real else np.zeros(shape)).astype(DTYPES[a.dtype]))
    x = arrays[0] if len(arrays) == 1 else tuple(arrays)
    room = pool._parts.program.plan.room

    def turn() -> None:
        for some in slots:
            pool.step(some, x)

    turn()
    if room is not None:  # attention that ends: once is what there is
        return _thread_ns(turn, 1) / slots.size
    once = max(_thread_ns(turn, 1), 1.0)
    repeats = max(1, int(1e9 * SLICE / once))
    return min(_thread_ns(turn, repeats) for _ in range(TRIES)) / (repeats * slots.size)


def _thread_ns(call: Callable[[], None], repeats: int) -> float:
    """CPU time of this thread: other processes disturb it little."""
    start = time.thread_time_ns()
    for _ in range(repeats):
        call()
    return time.thread_time_ns() - start
