"""What each kind of plan op costs: one function per kind, registered by `@costs("kind")`.

A rule is a function (op, context) -> (Parts, flops, bytes of weights, bytes of data). See cost_model.py.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from ..compile.lowering.fields import FUNCTIONS
from ..compile.plan import Op
from ..compile.tensors import Buffer
from ..graph.precision import DTYPE
from ..graph.registry import Registry
from ..machine._isa import tile_rows
from ..records import dataclass
from .limits import Limits

if TYPE_CHECKING:
    from .cost_model import CallCosts

FLOAT = 4
PRODUCTS = ("linear", "conv", "conv_rows", "conv_tiles")
SHARED = frozenset(("cell", *PRODUCTS, "depthwise_rows", "pool"))  # kinds of ops that threads share

costs = Registry()  # kind of op -> its rule


@dataclass
class Parts:
    """The times (ns) of an op by what bounds each. Within one product, multiply-adds, reading and latency overlap and
    only the largest counts (`_busiest`). Several products, and everything else, add up."""

    fma: float = 0.0
    reading: float = 0.0
    latency: float = 0.0
    activations: float = 0.0
    overhead: float = 0.0

    def __iadd__(self, other: Parts) -> Parts:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
        return self


@dataclass(frozen=True)
class Held:
    """How a product computes with weights in a number format.

    size : bytes of a weight; flops : per second of many rows; term_ns : of one term of a sum, for one row and a block
    of columns; round_ns : of rounding one number that they are multiplied with
    """

    size: int
    flops: float
    term_ns: float
    round_ns: float


def held(precision: str, context: CallCosts) -> Held:
    """The format's rates on this machine; those of float32 multiply-adds if they were not measured."""
    limits, size = context.limits, np.dtype(DTYPE[precision]).itemsize
    rates = limits.formats.get(precision)
    if rates is None:
        return Held(size, limits.fma * context.factors.fma, limits.latency_ns, 0.0)
    return Held(size, rates.flops, rates.term_ns, rates.round_ns)


def peak_of(op: Op, context: CallCosts) -> float:
    """The most floating point operations per second of an op on one thread."""
    plan, rates = context.plan, context.limits.formats
    packed = plan.cells[op.fields["cell"]] if op.kind == "cell" else None
    packed = plan.linears[op.fields["packed"]][0] if op.kind in PRODUCTS else packed
    found = rates.get(getattr(packed, "weights", "float32"))
    return context.limits.fma if found is None else max(found.flops, context.limits.fma)


# ---- products: cells, linear layers, convolutions --------------------------------------------------------------------


def _blocks(columns: int, vectors: int, lanes: int) -> list[tuple[int, int]]:
    """(floats per vector, vectors) of each block of `columns`; see _kernels/blocks.h."""
    full, rest = divmod(columns, vectors * lanes)
    whole, odd = divmod(rest, lanes)
    width = 4
    while width < odd:
        width *= 2
    narrow = 0 < odd and width < lanes
    last = whole + (1 if odd and not narrow else 0)
    return [(lanes, vectors)] * full + ([(lanes, last)] if last else []) + ([(width, 1)] if narrow else [])


def _product(
    rows: int, K: int, blocks: list[tuple[int, int]], context: CallCosts, footprint: int, precision: str = "float32"
) -> Parts:
    """rows x K times K x the blocks' columns, tile by tile. blocks: (width, vectors) of each. The weights of a block
    are read once for all rows, and then stay in a nearer cache. Rows are rounded once, for all blocks."""
    limits, factors, lanes = context.limits, context.factors, context.lanes
    form = held(precision, context)
    vector_ns = 2e9 * lanes / form.flops
    parts = Parts()
    for (width, vectors), count in _tiled(rows, blocks, limits):
        parts.fma += rows * K * count * vectors * vector_ns * (1.0 if width == lanes else factors.narrow)
        tiles = _tiles(rows, vectors, limits)
        parts.latency += tiles * K * form.term_ns
        parts.reading += 1e9 * count * K * vectors * width * form.size / (limits.read_rate(footprint) * factors.read)
        parts.overhead += (tiles * factors.tile + rows * count * factors.row) * context.tick
    parts.overhead += rows * K * form.round_ns
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
    """How many tiles cover all rows of a block."""
    return math.ceil(rows / tile_rows(limits.isa, vectors))


def _tile_count(rows: int, blocks: list[tuple[int, int]], limits: Limits) -> int:
    return sum(_tiles(rows, vectors, limits) for (_, vectors), _ in _tiled(rows, blocks, limits))


def _busiest(parts: Parts) -> Parts:
    """The three overlapping times as one, under the name of the largest. It is slightly more than the largest (their
    4-norm), because two nearly equal ones sometimes wait for each other."""
    largest = max(("fma", "reading", "latency"), key=lambda name: getattr(parts, name))
    both = (parts.fma**4 + parts.reading**4 + parts.latency**4) ** 0.25
    alone = Parts(activations=parts.activations, overhead=parts.overhead)
    setattr(alone, largest, both)
    return alone


@costs("cell")
def _cell(op: Op, context: CallCosts):
    cell = context.plan.cells[op.fields["cell"]]
    spec, precision = cell.spec, cell.weights
    size = np.dtype(DTYPE[precision]).itemsize
    steps, rows = context.number(op.fields["steps"]), context.number(op.fields["rows"])
    I, H, G = spec.input_size, spec.hidden_size, spec.gates  # noqa: E741
    limits, factors = context.limits, context.factors
    units = _blocks(H, 1, context.lanes)
    before = spec.kind == "gru" and not spec.linear_before_reset
    if spec.kind == "lstm" or (spec.kind == "gru" and not before):
        blocks = [(width, G) for width, _ in units]
    else:
        blocks = _blocks(H, 4, context.lanes) * (3 if before else 1)
    W, R = G * H * (size * I + FLOAT), size * G * H * H
    sums, room = rows * G * H, op.fields["pre_capacity"]  # floats of a step's input half, and the room for them
    hoisted = 0 < rows <= op.fields["hoisted_rows"] and steps > 1 and room >= 2 * sums
    small = FLOAT * rows * (I + 3 * H)  # the other data of a step: x, h, c, y
    alone = max(context.footprint if steps == 1 else W + R, W + R) + small
    if hoisted:
        parts = _product(steps * rows, I, blocks, context, W + small, precision)
        ahead = limits.read_rate(FLOAT * sums * min(steps, room // sums))
        parts += Parts(overhead=2e9 * FLOAT * sums * steps / ahead)
        step = _product(rows, H, blocks, context, R + small + FLOAT * min(sums * steps, room) // 2, precision)
        weights = W + steps * R
    else:
        step = _product(rows, I + H, blocks, context, alone, precision)
        parts, weights = Parts(), (W + R) * steps
    acts, depth = {"rnn": (1, 1), "lstm": (5, 2), "gru": (3, 2)}[spec.kind]
    each = factors.update * context.tick + acts * factors.activation * limits.function_ns
    chains = _tile_count(rows, blocks, limits) * depth * factors.chain * context.tick
    step.activations += rows * len(units) * each + chains
    step.overhead += factors.step * context.tick
    parts += _times(steps, step)
    parts.overhead += rows * factors.row * 2 * context.tick
    return parts, context.number(op.flops), weights, FLOAT * steps * rows * (I + H)


@costs("linear")
def _linear(op: Op, context: CallCosts):
    packed, _ = context.plan.linears[op.fields["packed"]]
    outer, middle, inner = (context.number(op.fields[f"n{i}"]) for i in range(3))
    outer, rows = outer * min(middle, inner), max(middle, inner)  # the longer loop shares the weights
    footprint = max(context.footprint, packed.nbytes)
    parts = _times(outer, _dense(rows, packed.K, packed.N, context, footprint, packed.weights))
    weights = held(packed.weights, context).size * packed.K * packed.N if outer * rows else 0
    return parts, context.number(op.flops), weights, FLOAT * outer * rows * (packed.K + packed.N)


def _dense(rows: int, K: int, N: int, context: CallCosts, footprint: int, precision: str = "float32") -> Parts:
    """A product of `rows` rows with packed weights [K, N]. Its activation counts as moving the results."""
    parts = _product(rows, K, _blocks(N, 4, context.lanes), context, footprint, precision)
    ticks = context.factors.product + rows * math.ceil(N / context.lanes) * context.factors.element
    parts.overhead += ticks * context.tick
    return parts


def _times(count: int, parts: Parts) -> Parts:
    return Parts(*(count * value for value in vars(parts).values()))


@costs("matmul")
def _matmul(op: Op, context: CallCosts):
    m, k, n = (context.number(op.fields[name]) for name in "mkn")
    count = context.number(op.fields["n0"]) * context.number(op.fields["n1"])
    one = _dense(m, k, n, context, FLOAT * k * n)
    one.overhead += FLOAT * k * n / context.factors.pack * context.tick
    return _times(count, one), context.number(op.flops), 0, FLOAT * count * (m * k + k * n + m * n)


def _window(op: Op, context: CallCosts) -> tuple[int, int]:
    """(output positions, taps) of an op over windows."""
    f = {name: context.number(op.fields[name]) for name in ("batch", "out_h", "out_w", "taps_h", "taps_w")}
    return f["batch"] * f["out_h"] * f["out_w"], f["taps_h"] * f["taps_w"]


@costs("conv", "conv_rows")
def _conv(op: Op, context: CallCosts):
    positions, taps = _window(op, context)
    groups, channels, outs = (context.number(op.fields[name]) for name in ("groups", "channels", "outs"))
    precision = context.plan.linears[op.fields["packed"]][0].weights
    K, weights = taps * channels, held(precision, context).size * groups * taps * channels * outs
    parts = _times(groups, _dense(positions, K, outs, context, max(context.footprint, weights), precision))
    if op.kind == "conv":
        parts.overhead += (
            groups * positions * context.factors.move * context.tick
        )  # patches, if taps are not contiguous
    return parts, context.number(op.flops), weights, FLOAT * positions * groups * (channels + outs)


@costs("conv_tiles")
def _conv_tiles(op: Op, context: CallCosts):
    """16 products for each 2 x 2 results; a dozen vector operations for each of their ends."""
    channels, outs = (context.number(op.fields[name]) for name in ("channels", "outs"))
    f = {name: context.number(op.fields[name]) for name in ("batch", "out_h", "out_w")}
    tiles, weights = f["batch"] * ((f["out_h"] + 1) // 2) * ((f["out_w"] + 1) // 2), FLOAT * 16 * channels * outs
    parts = _times(16, _dense(tiles, channels, outs, context, max(context.footprint, weights)))
    vectors = math.ceil(channels / context.lanes) + math.ceil(outs / context.lanes)
    parts.overhead += tiles * vectors * 48 * context.factors.element * context.tick
    positions = f["batch"] * f["out_h"] * f["out_w"]
    return parts, context.number(op.flops), weights, FLOAT * positions * (channels + outs)


@costs("scan")
def _scan(op: Op, context: CallCosts):
    """One pass over the states at each step: from the caches, or as many vector operations."""
    steps, outer, inner, K, V = (context.number(op.fields[f"size{i}"]) for i in range(5))
    count = steps * outer * inner
    vectors = count * K * math.ceil(V / context.lanes)
    ticks = vectors * 1.5 * context.factors.element + count * context.factors.move
    functions = 0.0
    if isinstance(op.fields["in3_buffer"], Buffer):  # the exponentials of decays
        functions = vectors * context.factors.function * context.limits.function_ns
    return (
        Parts(activations=functions, overhead=ticks * context.tick),
        context.number(op.flops),
        0,
        2 * FLOAT * (count * K * V),
    )


@costs("depthwise", "depthwise_rows")
def _depthwise(op: Op, context: CallCosts):
    positions, taps = _window(op, context)
    channels = context.number(op.fields["channels"])
    vectors = math.ceil(channels / context.lanes)
    ticks = positions * (3 * context.factors.move + vectors * (4 * taps + context.factors.element))
    if op.kind == "depthwise_rows":
        ticks = positions * channels / context.lanes * (taps + context.factors.element)
    parts = Parts(overhead=ticks * context.tick)
    return parts, context.number(op.flops), FLOAT * taps * channels, FLOAT * positions * channels * 2


@costs("pool")
def _pool(op: Op, context: CallCosts):
    positions, taps = _window(op, context)
    vectors = math.ceil(context.number(op.fields["channels"]) / context.lanes)
    ticks = positions * (2 * context.factors.move + vectors * (taps + context.factors.element))
    parts = Parts(overhead=ticks * context.tick)
    return parts, context.number(op.flops), 0, FLOAT * positions * context.number(op.fields["channels"]) * 2


# ---- elementwise work and moving data --------------------------------------------------------------------------------

# Functions of one or two vector operations; all others are assumed to cost as much as a tanh.
REGISTER = 256  # elements; CHUNK in _kernels/body_array.h
_SIMPLE = frozenset(
    FUNCTIONS[name]
    for name in "add sub mul min max neg abs relu clip affine leaky_relu thresholded_relu prelu equal greater "
    "greater_equal less less_equal and or xor not where identity hard_sigmoid hard_swish sign floor ceil round".split()
)


@costs("elementwise")
def _elementwise(op: Op, context: CallCosts):
    _, instructions = context.plan.programs[op.fields["program"]]
    rank = op.fields["rank"]
    sizes = [context.number(op.fields[f"size{i}"]) for i in range(rank)]
    inner = sizes[-1] if sizes else 1
    runs = math.prod(sizes[:-1])
    starts, laid = runs * math.ceil(inner / REGISTER), 0
    if rank > 1 and inner <= REGISTER // 2:  # several short rows in a register; most operands are copied there first
        starts, laid = math.ceil(runs / (REGISTER // max(inner, 1))), 1
    vectors = math.ceil(runs * inner / context.lanes) if laid else runs * math.ceil(inner / context.lanes)
    simple = sum(i[0] in _SIMPLE for i in instructions)
    ticks = starts * context.factors.move * (1 + len(instructions))
    ticks += (vectors * (1 + simple) + laid * runs * math.ceil(inner / context.lanes)) * context.factors.element
    functions = vectors * (len(instructions) - simple) * context.factors.function * context.limits.function_ns
    parts = Parts(activations=functions, overhead=ticks * context.tick)
    inputs = context.number(op.fields["n_in"])
    return parts, 0, 0, FLOAT * runs * inner * (1 + inputs)


@costs("copy")
def _copy(op: Op, context: CallCosts):
    rank = context.number(op.fields["rank"])
    sizes = [context.number(op.fields[f"size{i}"]) for i in range(rank)]
    inner, runs = (sizes[-1] if sizes else 1), math.prod(sizes[:-1])
    last = rank - 1
    dense = rank == 0 or (
        context.number(op.fields[f"source_stride{last}"]) == context.number(op.fields[f"target_stride{last}"]) == 1
    )
    each = 0.0 if dense else 1.0  # one by one if not contiguous
    ticks = runs * (context.factors.move + inner * each)
    moved = 2 * FLOAT * runs * inner
    reading = 1e9 * moved / context.limits.read_rate(moved)
    return Parts(reading=reading, overhead=ticks * context.tick), 0, 0, moved


@costs("gather")
def _gather(op: Op, context: CallCosts):
    rows = math.prod(context.number(op.fields[f"n{i}"]) for i in range(3))
    size = context.number(op.fields["inner"]) * context.number(op.fields["item"])
    reading = 1e9 * rows * size / context.limits.read_rate(context.footprint)
    return Parts(reading=reading, overhead=rows * context.factors.move * context.tick), 0, rows * size, rows * size


@costs("state_load", "state_store")
def _state(op: Op, context: CallCosts):
    rows, size = context.number(op.fields["rows"]), context.number(op.fields["size"])
    moved = 2 * FLOAT * rows * size
    parts = Parts(reading=1e9 * moved / context.limits.read_rate(moved))
    return parts, 0, 0, moved


@costs("zero")
def _zero(op: Op, context: CallCosts):
    count = context.number(op.fields["count"])
    return Parts(overhead=count / context.lanes * context.tick), 0, 0, FLOAT * count


@costs("reduce")
def _reduce(op: Op, context: CallCosts):
    rows = math.prod(context.number(op.fields[f"n{i}"]) for i in range(3))
    count, step = context.number(op.fields["count"]), context.number(op.fields["step"])
    if step == 1:
        ticks = rows * (context.factors.move + count * context.factors.element / context.lanes)
    else:  # a vector of rows at a time
        of_row = context.number(op.fields["x_stride2"])
        ticks = rows / context.lanes * (context.factors.move + count * (1.0 if of_row == 1 else context.lanes))
    return Parts(overhead=ticks * context.tick), context.number(op.flops), 0, FLOAT * rows * (count + 1)


@costs("softmax", "layer_norm")
def _rows_of_functions(op: Op, context: CallCosts):
    """Several passes over rows of n, and per vector the cost of 1.5 tanh (softmax) or half of one."""
    rows = math.prod(context.number(op.fields[f"n{i}"]) for i in range(3))
    n = context.number(op.fields["n"])
    vectors = rows * math.ceil(n / context.lanes)
    acts = vectors * (1.5 if op.kind == "softmax" else 0.5) * context.limits.function_ns
    ticks = rows * 3 * context.factors.move + vectors * 3 * context.factors.element
    parts = Parts(activations=acts, overhead=ticks * context.tick)
    return parts, context.number(op.flops), 0, FLOAT * 2 * rows * n


@costs("loop")
def _loop(op: Op, context: CallCosts):
    """The ops of its body, at every step. Their flops already cover all steps; everything else is for one."""
    steps = context.number(op.fields["steps"])
    parts, flops, weights, data = Parts(), 0, 0, 0
    for inner in context.plan.bodies[op.fields["body"]]:
        rule = costs[inner.kind]
        of_one, work, read, moved = rule(inner, context)
        if rule is _scalar:
            of_one = Parts(overhead=work / max(steps, 1) * context.tick)
        of_one.overhead += context.factors.op * context.tick
        parts += _times(steps, of_one)
        flops, weights, data = flops + work, weights + steps * read, data + steps * moved
    return parts, flops, weights, data


@costs("integers", "fold", "running_integers", "argmax", "cumsum", "running", "tail", "attention", "steps", "advance")
def _scalar(op: Op, context: CallCosts):
    """One operation per tick and element, as a scalar loop does."""
    work = context.number(op.flops)
    return Parts(overhead=work * context.tick), work, 0, 0
