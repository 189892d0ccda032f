"""Models of every kind of state, for tests of pools, and their inputs."""

import numpy as np
from graph_builder import GraphBuilder
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


def opened(model, n, capacity=None):
    pool = model.pool(capacity=capacity or n)
    return pool, np.array([pool.open() for _ in range(n)])
