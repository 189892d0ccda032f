"""What an op of a plan should cost on this machine: the performance model behind `fastrnn profile`.

Each op gets its floating point operations, the bytes that it must read and from which level, the minimum time by the
machine's limits (`least_ns`, the roofline), and a prediction. The prediction adds the other costs of a real loop: the
chain of dependent multiply-adds, activations, the fixed cost of a tile, of a step and of an op.

The machine's part is measured (`limits.py`): multiply-adds per second, reading rates by working set, the latency of a
multiply-add, a vector of tanh, a call from Python. `op_costs.py` says what each kind of op needs. The engine's part is
`FACTORS`. tools/cost_model.py fitted them to cells of 8 to 512 units on a Zen 4 with AVX-512; those for models were
fitted by hand. They are in units of those measurements, so they scale with the machine. docs/performance_model.md has
the accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ..compile.plan import Op, Plan
from ..graph import dims as D
from ..machine._isa import FLOPS_A_THREAD
from ..records import dataclass
from .limits import Limits
from .op_costs import SHARED, Parts, costs, peak_of

MOST_PHASES = 64  # positions of a stream that are evaluated if its calls differ


@dataclass(frozen=True)
class Factors:
    """The engine's part. `tick`: a quarter of the latency of a multiply-add, which is one cycle of most cores.

    fma, read : share of the multiply-add peak that a full tile reaches, and of the reading rate
    narrow : time of a narrower vector's multiply-add, relative to a full one's
    op, step, product, tile, row : ticks per op, step of a cell, product outside cells, tile, row in a tile
    update : ticks per vector of hidden units and row; activation : share of `Limits.function_ns` for each activation
    chain : ticks per tile for activations that wait for each other (an LSTM's tanh c for its gates)
    move : ticks per piece of memory that is copied, visited or set
    element : ticks per vector and simple function; function : share of `Limits.function_ns` for other functions
    pack : bytes per tick when packing a run-time matrix
    share : share of the ideal gain that each further thread adds
    """

    fma: float = 0.86
    narrow: float = 0.6
    read: float = 0.93
    op: float = 130.0
    step: float = 130.0
    product: float = 110.0
    tile: float = 2.0
    row: float = 8.4
    update: float = 25.0
    activation: float = 0.33
    chain: float = 65.0
    move: float = 16.0
    element: float = 3.0
    function: float = 1.2
    pack: float = 8.0
    share: float = 0.85


FACTORS = Factors()


@dataclass(frozen=True)
class Cost:
    """What an op costs at given sizes.

    flops : a multiply-add is two; activations are not counted. weight_bytes : read from `level`, where the weights
    are between two uses. data_bytes : inputs, outputs and states, read or written.
    least_ns : the minimum by the roofline; ns : the prediction.
    bound : the largest part of the prediction: "fma", a level of memory, "latency" (a chain of dependent
    multiply-adds), "activations" or "overhead".
    """

    flops: int
    weight_bytes: int
    data_bytes: int
    level: str
    least_ns: float
    ns: float
    bound: str


@dataclass(frozen=True)
class CallCosts:
    """The data shared by all ops of a call. sizes: {"batch": ..., "time": ..., "span": ...}; footprint: weight bytes
    that a call reads, which determine their cache level; threads: of a call."""

    plan: Plan
    limits: Limits
    sizes: Mapping[str, int]
    footprint: int
    threads: int = 1
    factors: Factors = FACTORS

    def number(self, dim) -> int:
        """A dim at these sizes."""
        return D.evaluate(dim, self.sizes)

    @property
    def lanes(self) -> int:
        return self.limits.lanes

    @property
    def tick(self) -> float:
        return self.limits.latency_ns / 4


def footprint_of(plan: Plan) -> int:
    """Weight bytes that one call of a plan reads (each array once)."""
    packed = {id(c): c.nbytes for c in plan.cells} | {id(p): p.nbytes for p, _ in plan.linears}
    return sum(packed.values()) + sum(a.nbytes for a in plan.constants)


def predict(plan: Plan, limits: Limits, batch: int = 1, time: int = 1, threads: int = 1) -> list[Cost]:
    """The cost of each op of a plan for one call of `batch` rows and `time` steps. Nothing is run.

    For a stream plan whose values have their own paces: the mean over calls in the steady state.
    """
    calls = [_predict_at(plan, limits, sizes, threads) for sizes in sizes_of(plan, batch, time)]
    return [_mean(costs) for costs in zip(*calls, strict=True)]


def sizes_of(plan: Plan, batch: int, time: int) -> list[dict[str, int]]:
    """The sizes in the dims of a plan, for each kind of call in the steady state."""
    sizes = {"batch": batch, "time": time, "span": time, "step": 0}
    table = plan.timetable
    if table is None or table.plain:
        return [sizes]
    starts = range(table.start, table.start + min(table.period, MOST_PHASES))
    found = [table.counts(position, time, False).sizes for position in starts]
    return [sizes | dict(zip(table.names, numbers, strict=True)) for numbers in found]


def _predict_at(plan: Plan, limits: Limits, sizes: Mapping[str, int], threads: int) -> list[Cost]:
    flops = D.evaluate(plan.flops, sizes) if plan.ops else 0
    used = max(1, min(threads, flops // FLOPS_A_THREAD))
    context = CallCosts(plan, limits, sizes, footprint_of(plan), used)
    return [cost_of(op, context) for op in plan.ops]


def _mean(costs: tuple[Cost, ...]) -> Cost:
    if len(costs) == 1:
        return costs[0]
    most = max(costs, key=lambda c: c.ns)
    means = {n: sum(getattr(c, n) for c in costs) / len(costs) for n in ("least_ns", "ns")}
    counts = {n: round(sum(getattr(c, n) for c in costs) / len(costs)) for n in ("flops", "weight_bytes", "data_bytes")}
    return replace(most, **counts, **means)


def cost_of(op: Op, context: CallCosts) -> Cost:
    """The cost of one op."""
    parts, flops, weights, data = costs[op.kind](op, context)
    limits, footprint = context.limits, context.footprint
    parts.overhead += context.factors.op * context.tick
    if context.threads > 1 and op.kind in SHARED:
        gain = 1 + (context.threads - 1) * context.factors.share
        parts = Parts(parts.fma / gain, parts.reading / gain, parts.latency / gain, parts.activations / gain,
                       parts.overhead)  # fmt: skip
    level = limits.level(footprint)
    terms = {
        "fma": parts.fma,
        level: parts.reading,
        "latency": parts.latency,
        "activations": parts.activations,
        "overhead": parts.overhead,
    }
    compute = 1e9 * flops / (peak_of(op, context) * context.threads)
    reading = 1e9 * weights / (limits.read_rate(footprint) * context.threads) if weights else 0.0
    return Cost(
        flops,
        weights,
        data,
        level,
        max(compute, reading),
        sum(terms.values()),
        max(terms, key=lambda name: terms[name]),
    )
