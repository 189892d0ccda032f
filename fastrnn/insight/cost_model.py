"""What an op of a plan should cost on this machine: the performance model behind `fastrnn profile`.

Each op gets its floating point operations, the bytes that it must read from where they live, the time that the
machine's limits alone allow (`least_ns`, the roofline), and a prediction, which adds what a real loop pays besides: the
chain of dependent multiply-adds, activations, the fixed cost of a tile, of a step and of an op.

The machine's part is measured (`limits.py`): multiply-adds a second, reading rates by working set, the latency of a
multiply-add, a vector of tanh, a call from Python. The engine's part is `FACTORS`, fitted by
tools/cost_model.py to cells of 8 to 512 units on a Zen 4 with AVX-512, and to models by hand, in units of those
measurements, so that they move with the machine. docs/performance_model.md says how well it does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ..compile.plan import Op, Plan
from ..graph import dims as D
from ..machine._isa import FLOPS_A_THREAD, tile_rows
from .limits import Limits

FLOAT = 4
MOST_PHASES = 64  # positions of a stream that are looked at, where its calls differ


@dataclass(frozen=True)
class Factors:
    """The engine's part. `tick`: a quarter of the latency of a multiply-add, which is one cycle of most cores.

    fma, read : share of the multiply-add peak that a full tile reaches, and of the reading rate
    narrow : time of a narrower vector's multiply-add, of a full one's
    op, step, product, tile, row : ticks an op, a step of a cell, a product outside cells, a tile, a row in a tile
    update : ticks a vector of hidden units and row; activation : of `Limits.function_ns`, each of its activations
    chain : ticks a tile that activations take which wait for each other (an LSTM's tanh c for its gates)
    move : ticks a piece of memory that is copied, visited or set
    element : ticks a vector and simple function; function : of `Limits.function_ns` for one that is not simple
    pack : bytes a tick that packing a live matrix moves
    share : of the ideal gain that each further thread brings
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
    element: float = 7.0
    function: float = 1.2
    pack: float = 8.0
    share: float = 0.85


FACTORS = Factors()


@dataclass(frozen=True)
class Cost:
    """What an op costs at given sizes.

    flops : a multiply-add is two; activations are not counted. weight_bytes : read from `level`, where the weights
    live between two uses. data_bytes : inputs, outputs and states, read or written.
    least_ns : what the roofline alone allows; ns : the prediction.
    bound : what the prediction is made of most: "fma", a level of memory, "latency" (a chain of dependent
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
class Context:
    """What all ops of a call share. sizes: {"batch": ..., "time": ..., "span": ...}; footprint: weight bytes that a
    call reads, from which follows where they live; threads: of a call."""

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


@dataclass
class _Parts:
    """The times (ns) that an op is made of, by what bounds each. Within one product multiply-adds, reading and latency
    overlap and only the largest counts (`_busiest`); several products, and all the rest, add up."""

    fma: float = 0.0
    reading: float = 0.0
    latency: float = 0.0
    activations: float = 0.0
    overhead: float = 0.0

    def __iadd__(self, other: _Parts) -> _Parts:
        for name in ("fma", "reading", "latency", "activations", "overhead"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        return self


def footprint_of(plan: Plan) -> int:
    """Weight bytes that one call of a plan reads (each array once)."""
    packed = {id(c): c.nbytes for c in plan.cells} | {id(p): p.nbytes for p, _ in plan.linears}
    return sum(packed.values()) + sum(a.nbytes for a in plan.constants)


def predict(plan: Plan, limits: Limits, batch: int = 1, time: int = 1, threads: int = 1) -> list[Cost]:
    """The cost of each op of a plan for one call of `batch` rows and `time` steps. Nothing is run.

    Of a stream plan whose values come at paces of their own: the mean over calls once all is steady.
    """
    calls = [_predict_at(plan, limits, sizes, threads) for sizes in sizes_of(plan, batch, time)]
    return [_mean(costs) for costs in zip(*calls, strict=True)]


def sizes_of(plan: Plan, batch: int, time: int) -> list[dict[str, int]]:
    """What the dims of a plan are over, for each kind of call that there is in the long run."""
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
    context = Context(plan, limits, sizes, footprint_of(plan), used)
    return [cost_of(op, context) for op in plan.ops]


def _mean(costs: tuple[Cost, ...]) -> Cost:
    if len(costs) == 1:
        return costs[0]
    most = max(costs, key=lambda c: c.ns)
    means = {n: sum(getattr(c, n) for c in costs) / len(costs) for n in ("least_ns", "ns")}
    counts = {n: round(sum(getattr(c, n) for c in costs) / len(costs)) for n in ("flops", "weight_bytes", "data_bytes")}
    return replace(most, **counts, **means)


def cost_of(op: Op, context: Context) -> Cost:
    """The cost of one op."""
    rule = _RULES.get(op.kind, _other)
    parts, flops, weights, data = rule(op, context)
    limits, footprint = context.limits, context.footprint
    parts.overhead += context.factors.op * context.tick
    if context.threads > 1 and op.kind in _SHARED:
        gain = 1 + (context.threads - 1) * context.factors.share
        parts = _Parts(parts.fma / gain, parts.reading / gain, parts.latency / gain, parts.activations / gain,
                       parts.overhead)  # fmt: skip
    level = limits.level(footprint)
    terms = {
        "fma": parts.fma,
        level: parts.reading,
        "latency": parts.latency,
        "activations": parts.activations,
        "overhead": parts.overhead,
    }
    compute = 1e9 * flops / (limits.fma * context.threads)
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


# ---- products: cells, linear layers, convolutions --------------------------------------------------------------------


def _blocks(columns: int, vectors: int, lanes: int) -> list[tuple[int, int]]:
    """(floats a vector, vectors) of each block that `columns` are cut into; see _kernels/blocks.h."""
    full, rest = divmod(columns, vectors * lanes)
    whole, odd = divmod(rest, lanes)
    width = 4
    while width < odd:
        width *= 2
    narrow = 0 < odd and width < lanes
    last = whole + (1 if odd and not narrow else 0)
    return [(lanes, vectors)] * full + ([(lanes, last)] if last else []) + ([(width, 1)] if narrow else [])


def _product(rows: int, K: int, blocks: list[tuple[int, int]], context: Context, footprint: int) -> _Parts:
    """rows x K times K x the blocks' columns, tile by tile. (width, vectors) of each block; the weights are read once
    for all rows of a block, which then stay in a cache nearer by."""
    limits, factors, lanes = context.limits, context.factors, context.lanes
    vector_ns = 2e9 * lanes / (limits.fma * factors.fma)
    parts = _Parts()
    for (width, vectors), count in _tiled(rows, blocks, limits):
        parts.fma += rows * K * count * vectors * vector_ns * (1.0 if width == lanes else factors.narrow)
        tiles = _tiles(rows, vectors, limits)
        parts.latency += tiles * K * limits.latency_ns
        parts.reading += 1e9 * count * K * vectors * width * FLOAT / (limits.read_rate(footprint) * factors.read)
        parts.overhead += (tiles * factors.tile + rows * count * factors.row) * context.tick
    return _busiest(parts)


def _tiled(rows: int, blocks: list[tuple[int, int]], limits: Limits) -> list[tuple[tuple[int, int], int]]:
    """(block, 1 or 2): few rows take two neighbouring blocks at once, which hides the latency of multiply-adds."""
    pair, found, index = rows <= tile_rows(limits.isa, 4, 2), [], 0
    while index < len(blocks):
        width, vectors = blocks[index]
        same = blocks[index : index + 2] == [blocks[index]] * 2 and vectors >= 3 and width == limits.lanes
        count = 2 if pair and same else 1
        found.append((blocks[index], count))
        index += count
    return found


def _tiles(rows: int, vectors: int, limits: Limits) -> int:
    """How many tiles take all rows of a block."""
    return math.ceil(rows / tile_rows(limits.isa, vectors))


def _tile_count(rows: int, blocks: list[tuple[int, int]], limits: Limits) -> int:
    return sum(_tiles(rows, vectors, limits) for (_, vectors), _ in _tiled(rows, blocks, limits))


def _busiest(parts: _Parts) -> _Parts:
    """The three that overlap as one time, under the name of the largest: a little more than that (their 4-norm), since
    where two are nearly equal each now and then waits for the other."""
    largest = max(("fma", "reading", "latency"), key=lambda name: getattr(parts, name))
    both = (parts.fma**4 + parts.reading**4 + parts.latency**4) ** 0.25
    alone = _Parts(activations=parts.activations, overhead=parts.overhead)
    setattr(alone, largest, both)
    return alone


def _cell(op: Op, context: Context):
    spec = context.plan.cells[op.fields["cell"]].spec
    steps, rows = context.number(op.fields["steps"]), context.number(op.fields["rows"])
    I, H, G = spec.input_size, spec.hidden_size, spec.gates  # noqa: E741
    limits, factors = context.limits, context.factors
    units = _blocks(H, 1, context.lanes)
    before = spec.kind == "gru" and not spec.linear_before_reset
    if spec.kind == "lstm" or (spec.kind == "gru" and not before):
        blocks = [(width, G) for width, _ in units]
    else:
        blocks = _blocks(H, 4, context.lanes) * (3 if before else 1)
    W, R = FLOAT * G * H * (I + 1), FLOAT * G * H * H
    sums, room = rows * G * H, op.fields["pre_capacity"]  # floats of a step's input half, and what there is room for
    hoisted = 0 < rows <= op.fields["hoisted_rows"] and steps > 1 and room >= 2 * sums
    small = FLOAT * rows * (I + 3 * H)  # what else a step works on: x, h, c, y
    alone = max(context.footprint if steps == 1 else W + R, W + R) + small
    if hoisted:
        parts = _product(steps * rows, I, blocks, context, W + small)
        ahead = limits.read_rate(FLOAT * sums * min(steps, room // sums))
        parts += _Parts(overhead=2e9 * FLOAT * sums * steps / ahead)
        step = _product(rows, H, blocks, context, R + small + FLOAT * min(sums * steps, room) // 2)
        weights = W + steps * R
    else:
        step = _product(rows, I + H, blocks, context, alone)
        parts, weights = _Parts(), (W + R) * steps
    acts, depth = {"rnn": (1, 1), "lstm": (5, 2), "gru": (3, 2)}[spec.kind]
    each = factors.update * context.tick + acts * factors.activation * limits.function_ns
    chains = _tile_count(rows, blocks, limits) * depth * factors.chain * context.tick
    step.activations += rows * len(units) * each + chains
    step.overhead += factors.step * context.tick
    parts += _Parts(*(steps * getattr(step, n) for n in ("fma", "reading", "latency", "activations", "overhead")))
    parts.overhead += rows * factors.row * 2 * context.tick
    return parts, context.number(op.flops), weights, FLOAT * steps * rows * (I + H)


def _linear(op: Op, context: Context):
    packed, _ = context.plan.linears[op.fields["packed"]]
    outer = context.number(op.fields["n0"]) * context.number(op.fields["n1"])
    rows = context.number(op.fields["n2"])
    parts = _times(outer, _dense(rows, packed.K, packed.N, context, max(context.footprint, packed.nbytes)))
    weights = FLOAT * packed.K * packed.N if outer * rows else 0
    return parts, context.number(op.flops), weights, FLOAT * outer * rows * (packed.K + packed.N)


def _dense(rows: int, K: int, N: int, context: Context, footprint: int) -> _Parts:
    """A product of `rows` rows with packed weights [K, N], its activation included as moving its results."""
    parts = _product(rows, K, _blocks(N, 4, context.lanes), context, footprint)
    ticks = context.factors.product + rows * math.ceil(N / context.lanes) * context.factors.element
    parts.overhead += ticks * context.tick
    return parts


def _times(count: int, parts: _Parts) -> _Parts:
    return _Parts(*(count * getattr(parts, n) for n in ("fma", "reading", "latency", "activations", "overhead")))


def _matmul(op: Op, context: Context):
    m, k, n = (context.number(op.fields[name]) for name in "mkn")
    count = context.number(op.fields["n0"]) * context.number(op.fields["n1"])
    one = _dense(m, k, n, context, FLOAT * k * n)
    one.overhead += FLOAT * k * n / context.factors.pack * context.tick
    return _times(count, one), context.number(op.flops), 0, FLOAT * count * (m * k + k * n + m * n)


def _window(op: Op, context: Context) -> tuple[int, int]:
    """(output positions, taps) of an op over windows."""
    f = {name: context.number(op.fields[name]) for name in ("batch", "out_h", "out_w", "taps_h", "taps_w")}
    return f["batch"] * f["out_h"] * f["out_w"], f["taps_h"] * f["taps_w"]


def _conv(op: Op, context: Context):
    positions, taps = _window(op, context)
    groups, channels, outs = (context.number(op.fields[name]) for name in ("groups", "channels", "outs"))
    K, weights = taps * channels, FLOAT * groups * taps * channels * outs
    parts = _times(groups, _dense(positions, K, outs, context, max(context.footprint, weights)))
    parts.overhead += groups * positions * context.factors.move * context.tick  # patches, where taps lie apart
    return parts, context.number(op.flops), weights, FLOAT * positions * groups * (channels + outs)


def _depthwise(op: Op, context: Context):
    positions, taps = _window(op, context)
    channels = context.number(op.fields["channels"])
    vectors = math.ceil(channels / context.lanes)
    ticks = positions * (3 * context.factors.move + vectors * (4 * taps + context.factors.element))
    parts = _Parts(overhead=ticks * context.tick)
    return parts, context.number(op.flops), FLOAT * taps * channels, FLOAT * positions * channels * 2


def _pool(op: Op, context: Context):
    positions, taps = _window(op, context)
    vectors = math.ceil(context.number(op.fields["channels"]) / context.lanes)
    ticks = positions * (2 * context.factors.move + vectors * (taps + context.factors.element))
    parts = _Parts(overhead=ticks * context.tick)
    return parts, context.number(op.flops), 0, FLOAT * positions * context.number(op.fields["channels"]) * 2


# ---- elementwise work and moving data --------------------------------------------------------------------------------

# Functions that are one or two vector operations; all others are taken to cost as much as a tanh.
_SIMPLE = frozenset(
    "add sub mul min max neg abs relu clip affine leaky_relu thresholded_relu prelu equal greater greater_equal less "
    "less_equal and or xor not where identity hard_sigmoid hard_swish sign floor ceil round".split()
)


def _elementwise(op: Op, context: Context):
    from ..compile.lowering.fields import FUNCTIONS  # names of the codes that a program is made of

    names = {code: name for name, code in FUNCTIONS.items()}
    _, instructions = context.plan.programs[op.fields["program"]]
    rank = op.fields["rank"]
    sizes = [context.number(op.fields[f"size{i}"]) for i in range(rank)]
    inner = sizes[-1] if sizes else 1
    runs = math.prod(sizes[:-1])
    vectors = runs * math.ceil(inner / context.lanes)
    simple = sum(names.get(i[0], "") in _SIMPLE for i in instructions)
    ticks = runs * context.factors.move * (1 + len(instructions)) + vectors * context.factors.element * (1 + simple)
    functions = vectors * (len(instructions) - simple) * context.factors.function * context.limits.function_ns
    parts = _Parts(activations=functions, overhead=ticks * context.tick)
    inputs = context.number(op.fields["n_in"])
    return parts, 0, 0, FLOAT * runs * inner * (1 + inputs)


def _copy(op: Op, context: Context):
    rank = context.number(op.fields["rank"])
    sizes = [context.number(op.fields[f"size{i}"]) for i in range(rank)]
    inner, runs = (sizes[-1] if sizes else 1), math.prod(sizes[:-1])
    last = rank - 1
    dense = rank == 0 or (
        context.number(op.fields[f"source_stride{last}"]) == context.number(op.fields[f"target_stride{last}"]) == 1
    )
    each = 0.0 if dense else 1.0  # one by one where they don't lie side by side
    ticks = runs * (context.factors.move + inner * each)
    moved = 2 * FLOAT * runs * inner
    reading = 1e9 * moved / context.limits.read_rate(moved)
    return _Parts(reading=reading, overhead=ticks * context.tick), 0, 0, moved


def _gather(op: Op, context: Context):
    rows = math.prod(context.number(op.fields[f"n{i}"]) for i in range(3))
    size = context.number(op.fields["inner"]) * context.number(op.fields["item"])
    reading = 1e9 * rows * size / context.limits.read_rate(context.footprint)
    return _Parts(reading=reading, overhead=rows * context.factors.move * context.tick), 0, rows * size, rows * size


def _state(op: Op, context: Context):
    rows, size = context.number(op.fields["rows"]), context.number(op.fields["size"])
    moved = 2 * FLOAT * rows * size
    parts = _Parts(reading=1e9 * moved / context.limits.read_rate(moved))
    return parts, 0, 0, moved


def _zero(op: Op, context: Context):
    count = context.number(op.fields["count"])
    return _Parts(overhead=count / context.lanes * context.tick), 0, 0, FLOAT * count


def _reduce(op: Op, context: Context):
    rows = math.prod(context.number(op.fields[f"n{i}"]) for i in range(3))
    count, step = context.number(op.fields["count"]), context.number(op.fields["step"])
    each = context.factors.element / context.lanes if step == 1 else 1.0
    ticks = rows * (context.factors.move + count * each)
    return _Parts(overhead=ticks * context.tick), context.number(op.flops), 0, FLOAT * rows * (count + 1)


def _rows_of_functions(per_vector: float):
    """softmax and layer_norm: some passes over rows of n, of which `per_vector` are worth a tanh."""

    def rule(op: Op, context: Context):
        rows = math.prod(context.number(op.fields[f"n{i}"]) for i in range(3))
        n = context.number(op.fields["n"])
        vectors = rows * math.ceil(n / context.lanes)
        acts = vectors * per_vector * context.limits.function_ns
        ticks = rows * 3 * context.factors.move + vectors * 3 * context.factors.element
        parts = _Parts(activations=acts, overhead=ticks * context.tick)
        return parts, context.number(op.flops), 0, FLOAT * 2 * rows * n

    return rule


def _loop(op: Op, context: Context):
    """The ops of its body, at every step. Their flops are those of all steps already, all else is of one."""
    steps = context.number(op.fields["steps"])
    parts, flops, weights, data = _Parts(), 0, 0, 0
    for inner in context.plan.bodies[op.fields["body"]]:
        of_one, work, read, moved = _RULES.get(inner.kind, _other)(inner, context)
        if inner.kind not in _RULES:
            of_one = _Parts(overhead=work / max(steps, 1) * context.tick)
        of_one.overhead += context.factors.op * context.tick
        parts += _times(steps, of_one)
        flops, weights, data = flops + work, weights + steps * read, data + steps * moved
    return parts, flops, weights, data


def _other(op: Op, context: Context):
    """An op without a rule of its own: one operation a tick and element, as a scalar loop does."""
    work = context.number(op.flops)
    return _Parts(overhead=work * context.tick), work, 0, 0


_RULES: dict[str, Callable] = {
    "cell": _cell,
    "linear": _linear,
    "loop": _loop,
    "matmul": _matmul,
    "conv": _conv,
    "depthwise": _depthwise,
    "pool": _pool,
    "elementwise": _elementwise,
    "copy": _copy,
    "gather": _gather,
    "reduce": _reduce,
    "softmax": _rows_of_functions(1.5),
    "layer_norm": _rows_of_functions(0.5),
    "state_load": _state,
    "state_store": _state,
    "zero": _zero,
}
_SHARED = frozenset(("cell", "linear", "conv"))  # ops that threads share
