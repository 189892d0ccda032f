"""StreamPool: every stream of it has the bits of a lone stream, whatever is opened, closed and stepped around it."""

import numpy as np
import pytest
from graph_builder import GraphBuilder
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from test_attention import self_attention
from test_masks import masked_cell
from test_model_stream import some, stack
from test_plan import weights
from test_stream_windows import Stack

import fastrnn
from fastrnn.graph.cells import CellSpec
from fastrnn.graph.dims import BATCH, TIME, symbol
from fastrnn.model import Model


def two_sides():
    """Two inputs, one without time, and two outputs, one reduced over time: what only the general path takes."""
    rng, b = np.random.default_rng(3), GraphBuilder("two sides")
    x, bias = b.input("x", "float32", BATCH, TIME, 4), b.input("who", "float32", BATCH, 1, 6)
    spec = CellSpec("gru", 4, 6)
    seq = b.add("transpose", x, perm=(1, 0, 2))
    y, _ = b.add("cell", seq, weights(rng, b, "W", 18, 4), weights(rng, b, "R", 18, 6), outputs=("y", None), spec=spec)
    y = b.add("transpose", y, perm=(1, 0, 2))
    y = b.add("binary", y, bias, fn="add")
    mean = b.add("reduce", y, fn="mean", axes=(1,), keepdims=False)
    return b.done(y, mean)


def words():
    """int64 words -> their rows of a table -> LSTM: a wrong word is found only when it is run."""
    rng, b = np.random.default_rng(3), GraphBuilder("words")
    ids = b.input("ids", "int64", TIME, BATCH)
    x = b.add("gather", weights(rng, b, "table", 10, 4), ids, axis=0)
    y, _ = b.add("cell", x, weights(rng, b, "W", 24, 4), weights(rng, b, "R", 24, 6), outputs=("y", None),
                 spec=CellSpec("lstm", 4, 6))  # fmt: skip
    return b.done(y)


def threaded():
    """A state that the file's caller threads by hand."""
    rng, b = np.random.default_rng(5), GraphBuilder("threaded")
    x, h0 = b.input("x", "float32", BATCH, TIME, 4), b.input("h0", "float32", 1, BATCH, 6)
    args = [weights(rng, b, "W", 18, 4), weights(rng, b, "R", 18, 6), None, None, None]
    start = b.add("reshape", h0, dims=(BATCH, 6))
    y, hn = b.add("cell", b.add("transpose", x, perm=(1, 0, 2)), *args, start, outputs=("y", "hn"),
                  spec=CellSpec("gru", 4, 6))  # fmt: skip
    end = b.add("reshape", hn, dims=(1, BATCH, 6))
    return b.done(b.add("transpose", y, perm=(1, 0, 2)), end, states={"h0": end})


def biased():
    """Looks one step ahead, with an input that has no time axis."""
    b = GraphBuilder("biased")
    x, who = b.input("x", "float32", BATCH, 3, TIME), b.input("who", "float32", BATCH, 4, 1)
    W = b.constant("W", some(4, 3, 3))
    y = b.add("conv", x, W, strides=(1,), dilations=(1,), pads=(1, 1), groups=1)
    return b.done(b.add("binary", y, who, fn="add"))


def open_size():
    """A size that the first step tells."""
    b, rng = GraphBuilder("open"), np.random.default_rng(4)
    x = b.input("x", "float32", BATCH, TIME, symbol("size"))
    x = b.add("reduce", x, fn="max", axes=(2,), keepdims=True)
    y, _ = b.add("cell", b.add("transpose", x, perm=(1, 0, 2)), weights(rng, b, "W", 6, 1),
                 weights(rng, b, "R", 6, 6), outputs=("y", None), spec=CellSpec("rnn", 1, 6))  # fmt: skip
    return b.done(b.add("transpose", y, perm=(1, 0, 2)))


MODELS = {
    "lstm": Model(stack("lstm", I=4, H=9)),
    "gru": Model(stack("gru", I=4, H=24, time_major=True)),
    "rnn, last step": Model(stack("rnn", I=4, H=5, last=True)),
    "two sides": Model(two_sides()),
    "words": Model(words()),
    "threaded": Model(threaded()),
}


PACED = {
    "looks ahead": Model(Stack().conv(pads=(1, 1)).conv(stride=2, pads=(2, 2)).cell().done()),
    "upsamples": Model(Stack().conv_transpose(stride=2).conv(stride=3).done()),
    "the last step": Model(Stack().conv(pads=(0, 2)).cell().last().done()),
    "biased": Model(biased()),
}


def ago():
    """A cell that no framework has: it sees the state before last."""
    rng = np.random.default_rng(7)
    text = "h = tanh(W @ x + R @ prev(h) + Q @ prev(h, 2) + b); y = V @ h"
    shapes = {"W": (7, 3), "R": (7, 7), "Q": (7, 7), "b": (7,), "V": (2, 7)}
    arrays = {k: (rng.standard_normal(s) * 0.4).astype(np.float32) for k, s in shapes.items()}
    return fastrnn.from_equations(text, initial={"h": arrays["b"]}, **arrays)


KEPT = {  # other kinds of state: tails of windows, keys and values, what a mask holds, more than one step
    "causal windows": Model(Stack().conv(k=5, dilation=2, pads=(8, 0)).conv(k=2, pads=(1, 0)).done()),
    "attention": Model(self_attention(window=5)),
    "masked": Model(masked_cell("lstm")[0]),
    "two steps ago": ago(),
}


def data(model, T, seed):
    """Random inputs of one stream: an array [T, ...], or a tuple with one for each input."""
    rng = np.random.default_rng(seed)
    arrays = []
    for name in model.graph.inputs:
        if name in model.graph.states:
            continue
        value = model.graph.values[name]
        timed = TIME in value.dims
        shape = [d for d in value.dims if isinstance(d, int)]
        if value.dtype == "int64":
            arrays.append(rng.integers(0, 10, [T, *shape]))
        elif value.dtype == "bool":
            arrays.append(rng.random([T, *shape]) < 0.6)
        else:
            arrays.append(rng.standard_normal([T, *shape] if timed else shape).astype(np.float32))
    return arrays[0] if len(arrays) == 1 else tuple(arrays)


def step_of(arrays, t):
    """Step t of such inputs, of which the second has a time axis where it is a mask."""
    if isinstance(arrays, np.ndarray):
        return arrays[t]
    return arrays[0][t], arrays[1][t] if arrays[1].dtype == np.bool_ else arrays[1]


def stacked(items):
    """The inputs of several streams as one call of step takes them."""
    if isinstance(items[0], tuple):
        return tuple(np.stack([item[i] for item in items]) for i in range(len(items[0])))
    return np.stack(items)


def same(a, b):
    """Equal to the last bit, NaNs too."""
    if isinstance(a, tuple):
        return isinstance(b, tuple) and len(a) == len(b) and all(map(same, a, b))
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


class PoolMachine(RuleBasedStateMachine):
    """Opens, closes, resets, steps, pushes, grows and copies at random; beside each slot lives a lone stream."""

    models = MODELS

    @initialize(choose=st.data(), capacity=st.integers(1, 6))
    def begin(self, choose, capacity):
        self.model = self.models[choose.draw(st.sampled_from(sorted(self.models)))]
        self.pool = self.model.pool(capacity=capacity)
        self.live, self.gone, self.seed = {}, [], 0

    def slots(self, choose):
        order = choose.draw(st.permutations(sorted(self.live)))
        return order[: choose.draw(st.integers(1, len(order)))]

    def inputs(self, T):
        self.seed += 1
        return data(self.model, T, self.seed)

    @precondition(lambda self: len(self.pool) < self.pool.capacity)
    @rule()
    def open(self):
        slot = self.pool.open()
        assert slot not in self.live
        assert slot not in self.gone
        self.live[slot] = self.model.stream()

    @precondition(lambda self: len(self.pool) == self.pool.capacity)
    @rule(more=st.integers(0, 5))
    def full(self, more):
        with pytest.raises(fastrnn.StateError, match="open"):
            self.pool.open()
        self.pool.grow(self.pool.capacity + more)

    @precondition(lambda self: self.live)
    @rule(choose=st.data())
    def close(self, choose):
        slot = choose.draw(st.sampled_from(sorted(self.live)))
        self.pool.close(slot)
        del self.live[slot]
        self.gone.append(slot)

    @precondition(lambda self: self.live)
    @rule(choose=st.data())
    def reset(self, choose):
        slot = choose.draw(st.sampled_from(sorted(self.live)))
        self.pool.reset(slot)
        self.live[slot].reset()

    @precondition(lambda self: 0 < len(self.live) < self.pool.capacity)
    @rule(choose=st.data())
    def copy(self, choose):
        slot = choose.draw(st.sampled_from(sorted(self.live)))
        self.live[self.pool.copy(slot)] = self.live[slot].copy()

    @precondition(lambda self: self.live)
    @rule(choose=st.data(), bad=st.booleans())
    def step(self, choose, bad):
        slots = self.slots(choose)
        arrays = [step_of(self.inputs(1), 0) for _ in slots]
        if bad and isinstance(arrays[0], np.ndarray) and arrays[0].dtype == np.float32:
            arrays[0] = arrays[0] * np.float32(np.nan)  # stays with its own stream
        y = self.pool.step(np.array(slots), stacked(arrays))
        for i, (slot, x) in enumerate(zip(slots, arrays, strict=True)):
            mine = tuple(o[i] for o in y) if isinstance(y, tuple) else y[i]
            assert same(self.live[slot].step(x), mine)

    @precondition(lambda self: self.live)
    @rule(choose=st.data())
    def flush(self, choose):
        slot = choose.draw(st.sampled_from(sorted(self.live)))
        lone = self.live[slot]
        if lone.steps_done == 0:
            return
        assert same(lone.flush(), self.pool.flush(slot))
        if self.model.delay or self.models is PACED:
            with pytest.raises(fastrnn.StreamError, match="flushed"):
                self.pool.push([slot], [self.inputs(1)])
            state = self.pool.state(slot)
            assert state["steps_done"] == -1
            self.pool.set_state(slot, state)
            self.pool.reset(slot)
            lone.reset()

    @precondition(lambda self: self.live)
    @rule(choose=st.data())
    def push(self, choose):
        slots = self.slots(choose)
        chunks = [self.inputs(choose.draw(st.integers(0, 80))) for _ in slots]
        for slot, chunk, y in zip(slots, chunks, self.pool.push(slots, chunks), strict=True):
            assert same(self.live[slot].push(chunk), y)

    @precondition(lambda self: self.live)
    @rule(choose=st.data())
    def state(self, choose):
        slots = self.slots(choose)
        states = [self.pool.state(s) for s in slots]
        target = slots[0]
        self.pool.set_state(target, states[-1])
        self.live[target].state = states[-1]

    @precondition(lambda self: 0 < len(self.live) < self.pool.capacity)
    @rule(choose=st.data(), into_stream=st.booleans())
    def snapshot(self, choose, into_stream):
        slot = choose.draw(st.sampled_from(sorted(self.live)))
        blob = self.pool.snapshot(slot)
        lone = self.live[slot].copy()
        if into_stream:
            lone = self.model.stream()
            lone.restore(blob)
        self.live[self.pool.restore(blob)] = lone

    @precondition(lambda self: self.live)
    @rule(capacity=st.integers(6, 12))
    def another_process(self, capacity):
        blob = self.pool.snapshot_all()
        self.pool = self.model.pool(capacity=max(capacity, len(self.live)))
        self.live = {new: self.live[old] for old, new in self.pool.restore_all(blob).items()}
        self.gone = []

    @precondition(lambda self: self.gone)
    @rule(choose=st.data())
    def stale(self, choose):
        slot = choose.draw(st.sampled_from(self.gone))
        live = sorted(self.live)[:1]
        arrays = [step_of(self.inputs(1), 0) for _ in [*live, slot]]
        assert slot not in self.pool
        for call in (
            lambda: self.pool.step([*live, slot], stacked(arrays)),
            lambda: self.pool.push([*live, slot], [self.inputs(2) for _ in [*live, slot]]),
            lambda: self.pool.state(slot),
            lambda: self.pool.set_state(slot, {}),
            lambda: self.pool.reset(slot),
            lambda: self.pool.close(slot),
            lambda: self.pool.copy(slot),
        ):
            with pytest.raises(fastrnn.StateError, match="was closed"):
                call()

    @invariant()
    def every_state_is_that_of_the_lone_stream(self):
        if not hasattr(self, "pool"):
            return
        assert len(self.pool) == len(self.live)
        assert sorted(self.pool) == sorted(self.live)
        for slot, stream in self.live.items():
            mine, lone = self.pool.state(slot), stream.state
            assert mine.keys() == lone.keys()
            assert all(same(mine[k], lone[k]) for k in lone)
            assert self.pool.steps_done(slot) == stream.steps_done


PoolMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestPoolIsManyStreams = PoolMachine.TestCase


class PacedMachine(PoolMachine):
    """The same with models that look ahead or change the rate."""

    models = PACED


PacedMachine.TestCase.settings = settings(PoolMachine.TestCase.settings, max_examples=40)
TestPacedPoolIsManyStreams = PacedMachine.TestCase


class KeptMachine(PoolMachine):
    """The same with every other kind of state."""

    models = KEPT


KeptMachine.TestCase.settings = settings(PoolMachine.TestCase.settings, max_examples=30)
TestPoolOfEveryStateIsManyStreams = KeptMachine.TestCase
