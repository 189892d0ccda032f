"""The float64 meaning of every op of fastrnn.graph: the oracle that the engine is tested against.

Written to be read beside the ONNX text (https://onnx.ai/onnx/operators/, RNN-22, LSTM-22, GRU-22), not to be fast:
plain NumPy, one function an op, no special cases for speed. Reals are float64 whatever the graph declares, integers are
int64, and float32 weights enter as the exact numbers that they are.

    run(graph, feeds)            the whole graph, whatever its length
    cell(spec, x, W, R, ...)     one direction of one recurrent layer
    StreamReference(graph)       what a stream must answer, step by step
    unary(fn, x, alpha, beta), binary(fn, a, b)     the elementwise functions

Notation: T steps, B rows of a batch, I inputs, H hidden units, G gates; t a step; h, c the hidden and the cell state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from ...errors import ShapeError, StreamError
from .. import dims as D
from ..cells import CellSpec
from ..loops import Loop, schedule
from ..types import Graph, Node, Value
from ..validation import check_required
from . import windows

# What a declared dtype is computed in.
WIDE = {"float32": np.float64, "float64": np.float64, "int64": np.int64, "int32": np.int64, "bool": np.bool_}


# ---- elementwise functions -------------------------------------------------------------------------------------------


def _sigmoid(x):
    # Each half is computed from exp of a negative number, so neither overflows.
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e))


def _softplus(x):
    return np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))


def _erf(x):
    return np.vectorize(math.erf, otypes=[np.float64])(x)


def _normal_cdf(x):
    # Phi(x) = erfc(-x / sqrt(2)) / 2 keeps its digits where 1 + erf would cancel.
    return np.vectorize(lambda v: math.erfc(-v / math.sqrt(2)) / 2, otypes=[np.float64])(x)


def _clip(x, low, high):
    if x.dtype.kind == "i":  # bounds of integers are integers, and may be infinite
        info = np.iinfo(x.dtype)
        low = info.min if low <= info.min else math.ceil(low)
        high = info.max if high >= info.max else math.floor(high)
    return np.minimum(np.maximum(x, low), high)


# Functions of (x, alpha, beta); those that a cell may name: fastrnn.graph.cells.ACTIVATIONS.
_UNARY: dict[str, Callable] = {
    "relu": lambda x, a, b: np.maximum(x, 0),
    "tanh": lambda x, a, b: np.tanh(x),
    "sigmoid": lambda x, a, b: _sigmoid(x),
    "affine": lambda x, a, b: a * x + b,
    "leaky_relu": lambda x, a, b: np.where(x >= 0, x, a * x),
    "thresholded_relu": lambda x, a, b: np.where((x >= a) | np.isnan(x), x, 0.0),  # a NaN stays one
    "scaled_tanh": lambda x, a, b: a * np.tanh(b * x),
    "hard_sigmoid": lambda x, a, b: np.clip(a * x + b, 0, 1),
    "elu": lambda x, a, b: np.where(x >= 0, x, a * np.expm1(x)),
    "softsign": lambda x, a, b: x / (1 + np.abs(x)),
    "softplus": lambda x, a, b: _softplus(x),
    "neg": lambda x, a, b: -x,
    "abs": lambda x, a, b: np.abs(x),
    "exp": lambda x, a, b: np.exp(x),
    "log": lambda x, a, b: np.log(x),
    "sqrt": lambda x, a, b: np.sqrt(x),
    "recip": lambda x, a, b: 1 / x,
    "sign": lambda x, a, b: np.sign(x),
    "floor": lambda x, a, b: np.floor(x),
    "ceil": lambda x, a, b: np.ceil(x),
    "round": lambda x, a, b: np.rint(x),  # halves to even
    "erf": lambda x, a, b: _erf(x),
    "sin": lambda x, a, b: np.sin(x),
    "cos": lambda x, a, b: np.cos(x),
    "tan": lambda x, a, b: np.tan(x),
    "asin": lambda x, a, b: np.arcsin(x),
    "acos": lambda x, a, b: np.arccos(x),
    "atan": lambda x, a, b: np.arctan(x),
    "sinh": lambda x, a, b: np.sinh(x),
    "cosh": lambda x, a, b: np.cosh(x),
    "asinh": lambda x, a, b: np.arcsinh(x),
    "acosh": lambda x, a, b: np.arccosh(x),
    "atanh": lambda x, a, b: np.arctanh(x),
    "not": lambda x, a, b: np.logical_not(x),
    "selu": lambda x, a, b: b * np.where(x > 0, x, a * np.expm1(x)),
    "gelu": lambda x, a, b: x * _normal_cdf(x),
    "gelu_tanh": lambda x, a, b: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "silu": lambda x, a, b: x * _sigmoid(x),
    "hard_swish": lambda x, a, b: x * np.clip(x + 3, 0, 6) / 6,
    "mish": lambda x, a, b: x * np.tanh(_softplus(x)),
    "clip": _clip,
}


def _div(a, b):
    if a.dtype.kind == "i":  # ONNX: integers divide towards zero
        return a // b + ((a % b != 0) & ((a < 0) != (b < 0)))
    return a / b


_BINARY: dict[str, Callable] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": _div,
    "pow": np.power,
    "min": np.minimum,
    "max": np.maximum,
    "mod": np.mod,  # the result has the sign of b
    "equal": np.equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "and": np.logical_and,
    "or": np.logical_or,
    "xor": np.logical_xor,
    "prelu": lambda x, slope: np.where(x >= 0, x, slope * x),
}


def unary(fn: str, x: np.ndarray, alpha: float = 0.0, beta: float = 0.0) -> np.ndarray:
    """Apply the function `fn` of graph.UNARY to each element of x (float64, int64 or bool; any shape)."""
    with np.errstate(all="ignore"):
        return _UNARY[fn](np.asarray(x), alpha, beta)


def binary(fn: str, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Apply the function `fn` of graph.BINARY to a and b, broadcast as NumPy does."""
    with np.errstate(all="ignore"):
        return _BINARY[fn](np.asarray(a), np.asarray(b))


# ---- recurrent cells -------------------------------------------------------------------------------------------------
# Each takes one step of some rows: x [B, I], h [B, H] and c [B, H] before the step, and returns h and c after it.
# W [G*H, I], R [G*H, H], Wb and Rb [G*H], P [3*H] hold their gates one below the other; `_gates` takes them apart.
# f, g, h_act are the activations. Clip bounds the preacts, so it stands before f and g and not before h_act, whose
# argument is the cell state: the ONNX text ("the input of activations") allows both readings, and this is the one that
# onnxruntime computes.


def _gates(array: np.ndarray, count: int) -> list[np.ndarray]:
    return np.split(array, count, axis=0)


def _activations(spec: CellSpec) -> list[Callable]:
    bound = math.inf if spec.clip is None else spec.clip

    def function(act, bound):
        return lambda v: unary(act.name, np.clip(v, -bound, bound), act.alpha, act.beta)

    return [function(act, math.inf if k == 2 else bound) for k, act in enumerate(spec.activations)]


def _rnn_step(spec, x, h, c, W, R, Wb, Rb, P):
    (f,) = _activations(spec)
    return f(x @ W.T + h @ R.T + Wb + Rb), c


def _lstm_step(spec, x, h, c, W, R, Wb, Rb, P):
    f, g, h_act = _activations(spec)
    W_i, W_o, W_f, W_c = _gates(W, 4)
    R_i, R_o, R_f, R_c = _gates(R, 4)
    b_i, b_o, b_f, b_c = _gates(Wb + Rb, 4)
    P_i, P_o, P_f = _gates(P, 3)

    i_t = f(x @ W_i.T + h @ R_i.T + P_i * c + b_i)
    f_t = 1 - i_t if spec.input_forget else f(x @ W_f.T + h @ R_f.T + P_f * c + b_f)
    c_tilde = g(x @ W_c.T + h @ R_c.T + b_c)
    c_new = f_t * c + i_t * c_tilde
    o_t = f(x @ W_o.T + h @ R_o.T + P_o * c_new + b_o)
    return o_t * h_act(c_new), c_new


def _gru_step(spec, x, h, c, W, R, Wb, Rb, P):
    f, g = _activations(spec)
    W_z, W_r, W_h = _gates(W, 3)
    R_z, R_r, R_h = _gates(R, 3)
    Wb_z, Wb_r, Wb_h = _gates(Wb, 3)
    Rb_z, Rb_r, Rb_h = _gates(Rb, 3)

    z_t = f(x @ W_z.T + h @ R_z.T + Wb_z + Rb_z)
    r_t = f(x @ W_r.T + h @ R_r.T + Wb_r + Rb_r)
    if spec.linear_before_reset:
        n_t = g(x @ W_h.T + Wb_h + r_t * (h @ R_h.T + Rb_h))
    else:
        n_t = g(x @ W_h.T + Wb_h + (r_t * h) @ R_h.T + Rb_h)
    return (1 - z_t) * n_t + z_t * h, c


_STEP = {"rnn": _rnn_step, "lstm": _lstm_step, "gru": _gru_step}


def cell(spec: CellSpec, x, W, R, Wb=None, Rb=None, P=None, h0=None, c0=None, lengths=None, mask=None):
    """One direction of one recurrent layer over all its steps.

    Parameters
    ----------
    spec : CellSpec
    x : array, shape (T, B, I); T and B may be 0
    W, R : arrays, shapes (G*H, I) and (G*H, H), gates in ONNX order
    Wb, Rb : arrays, shape (G*H,); None is zeros
    P : array, shape (3*H,), gates i o f; None is zeros
    h0, c0 : arrays, shape (B, H); None is zeros
    lengths : int array, shape (B,), each in [0, T]; None is all T
    mask : bool array, shape (T, B); where false the step is left out. None: no step is

    Returns
    -------
    y : float64, shape (T, B, H); 0 from step lengths[b] on in row b; h again at a step that is left out
    h_n, c_n : float64, shape (B, H); the states after the last step of each row, its initial ones where it has none.
        c_n is c0 for cells that have no cell state.

    Raises
    ------
    ShapeError where a length is outside [0, T].
    """
    x = np.asarray(x, np.float64)
    T, B, _ = x.shape
    H, GH = spec.hidden_size, spec.gates * spec.hidden_size

    def given(array, shape):
        return np.zeros(shape) if array is None else np.array(array, np.float64)

    weights = (np.asarray(W, np.float64), np.asarray(R, np.float64), given(Wb, GH), given(Rb, GH), given(P, 3 * H))
    h, c = given(h0, (B, H)), given(c0, (B, H))
    lengths = np.full(B, T) if lengths is None else np.asarray(lengths, np.int64)
    if np.any((lengths < 0) | (lengths > T)):
        raise ShapeError(f"lengths must lie in 0..{T} (the steps of x), got {lengths.tolist()}")

    y = np.zeros((T, B, H))
    with np.errstate(all="ignore"):
        for n in range(T):
            rows = np.flatnonzero(n < lengths)  # those whose sequence has an n-th step, counted in its own direction
            t = lengths[rows] - 1 - n if spec.reverse else np.full(len(rows), n)
            there = slice(None) if mask is None else mask[t, rows]
            on, at = rows[there], t[there]
            h[on], c[on] = _STEP[spec.kind](spec, x[at, on], h[on], c[on], *weights)
            y[t, rows] = h[rows]
    return y, h, c


# ---- every other op: a function of (node, inputs, size) where size(dim) is the int that a dim is ---------------------


def _slice(x, axis, start, stop, step):
    indices = np.arange(start, stop, step)
    if len(indices) and (indices.min() < 0 or indices.max() >= x.shape[axis]):
        raise ShapeError(f"slice [{start}:{stop}:{step}] of axis {axis} leaves its size {x.shape[axis]}")
    return np.take(x, indices, axis=axis)


def _gather(x, indices, axis, from_zero=False):
    size = x.shape[axis]
    low = 0 if from_zero else -size
    bad = indices[(indices < low) | (indices >= size)]
    if bad.size:
        raise ShapeError(f"index {bad[0]} is outside [{low}, {size}), the size of axis {axis}")
    return np.take(x, indices, axis=axis)


def _reduce(x, fn, axes, keepdims):
    axes = tuple(axes)
    # The least and the greatest value there is: what the max and the min of nothing are.
    ends = {"f": (-np.inf, np.inf), "i": (np.iinfo(np.int64).min, np.iinfo(np.int64).max), "b": (False, True)}
    low, high = ends[x.dtype.kind]
    if fn == "min":
        return np.min(x, axis=axes, keepdims=keepdims, initial=high)
    if fn == "max":
        return np.max(x, axis=axes, keepdims=keepdims, initial=low)
    total = np.sum(x, axis=axes, keepdims=keepdims)
    if fn == "sum":
        return total
    count = np.asarray(math.prod(x.shape[axis] for axis in axes), total.dtype)
    return _div(np.asarray(total), count)


def _softmax(x, axis, log):
    x = x - np.max(x, axis=axis, keepdims=True, initial=-np.inf)
    if log:
        return x - np.log(np.sum(np.exp(x), axis=axis, keepdims=True))
    return np.exp(x) / np.sum(np.exp(x), axis=axis, keepdims=True)


def _layer_norm(x, scale, bias, axis, epsilon):
    axes = tuple(range(axis, x.ndim))
    centred = x - np.mean(x, axis=axes, keepdims=True)
    y = centred / np.sqrt(np.mean(centred**2, axis=axes, keepdims=True) + epsilon)
    y = y if scale is None else y * scale
    return y if bias is None else y + bias


def _linear(x, W, bias, activation, alpha, beta):
    y = x @ W if bias is None else x @ W + bias
    return y if activation is None else unary(activation, y, alpha, beta)


def _attention(q, k, v, bias, mask, scale, softcap, causal, window, offset, safe):
    """Query by query, each over the keys that it sees and no others."""
    heads, rows, keys = q.shape[1], q.shape[2], k.shape[2]
    k, v = (np.broadcast_to(np.repeat(x, heads // x.shape[1], 1), (len(q), heads, *x.shape[2:])) for x in (k, v))
    bias = np.broadcast_to(0.0 if bias is None else bias, (*q.shape[:3], keys))
    mask = np.broadcast_to(True if mask is None else mask, (*q.shape[:3], keys))
    y = np.zeros((*q.shape[:3], v.shape[3]))
    for i in range(rows):
        position = i + offset
        first = max(position - window + 1, 0) if window else 0
        end = min(position + 1, keys) if causal else keys
        if end <= first:
            continue
        score = scale * np.einsum("bhd,bhjd->bhj", q[:, :, i], k[:, :, first:end])
        if softcap > 0:
            score = softcap * np.tanh(score / softcap)
        score = np.where(mask[:, :, i, first:end], score, 0.0)
        weight = _softmax(score + bias[:, :, i, first:end], 2, False)
        if safe:
            weight = np.where(np.isnan(weight), 0, weight)
        y[:, :, i] = np.einsum("bhj,bhjd->bhd", weight, v[:, :, first:end])
    return y


def _steps(dims, start):
    return np.broadcast_to(start + np.arange(dims[-1], dtype=np.int64), dims)


def _optional(inputs, k):
    return inputs[k] if k < len(inputs) else None


def _argmax(x, axis, keepdims, last, largest):
    # A NaN counts as the largest and as the smallest, as NumPy has it.
    find = np.argmax if largest else np.argmin
    if not last:
        return find(x, axis=axis, keepdims=keepdims)
    return x.shape[axis] - 1 - find(np.flip(x, axis), axis=axis, keepdims=keepdims)


def _cumsum(x, axis, exclusive, reverse):
    x = np.flip(x, axis) if reverse else x
    total = np.cumsum(x, axis=axis)
    if exclusive:  # the sum up to the element before
        zeros = np.zeros_like(np.take(total, [0], axis)) if x.shape[axis] else total
        total = np.concatenate([zeros, np.delete(total, -1, axis)], axis) if x.shape[axis] else total
    return np.flip(total, axis) if reverse else total


_OPS: dict[str, Callable] = {
    "cell": lambda node, v, size: cell(node.attrs["spec"], *v),
    "linear": lambda node, v, size: _linear(v[0], v[1], _optional(v, 2), **node.attrs),
    "matmul": lambda node, v, size: np.matmul(*v),
    "attention": lambda node, v, size: _attention(
        *v[:3], _optional(v, 3), _optional(v, 4), **{**node.attrs, "offset": size(node.attrs["offset"])}
    ),
    "steps": lambda node, v, size: _steps([size(d) for d in node.attrs["dims"]], size(node.attrs["start"])),
    "unary": lambda node, v, size: unary(node.attrs["fn"], v[0], node.attrs["alpha"], node.attrs["beta"]),
    "binary": lambda node, v, size: binary(node.attrs["fn"], *v),
    "where": lambda node, v, size: np.where(*v),
    "cast": lambda node, v, size: v[0].astype(WIDE[node.attrs["to"]]),  # to integer: towards zero; to bool: x != 0
    "transpose": lambda node, v, size: np.transpose(v[0], node.attrs["perm"]),
    "reshape": lambda node, v, size: np.reshape(v[0], [size(d) for d in node.attrs["dims"]]),
    "slice": lambda node, v, size: _slice(
        v[0], node.attrs["axis"], size(node.attrs["start"]), size(node.attrs["stop"]), node.attrs["step"]
    ),
    "concat": lambda node, v, size: np.concatenate(v, axis=node.attrs["axis"]),
    "expand": lambda node, v, size: np.broadcast_to(v[0], [size(d) for d in node.attrs["dims"]]),
    "gather": lambda node, v, size: _gather(v[0], v[1], **node.attrs),
    "reduce": lambda node, v, size: _reduce(v[0], **node.attrs),
    "softmax": lambda node, v, size: _softmax(v[0], **node.attrs),
    "layer_norm": lambda node, v, size: _layer_norm(v[0], _optional(v, 1), _optional(v, 2), **node.attrs),
    "pad": lambda node, v, size: windows.pad(
        v[0], [size(p) for p in node.attrs["pads"]], node.attrs["mode"], node.attrs["value"]
    ),
    "conv": lambda node, v, size: windows.conv(v[0], v[1], _optional(v, 2), **node.attrs),
    "conv_transpose": lambda node, v, size: windows.conv_transpose(v[0], v[1], _optional(v, 2), **node.attrs),
    "pool": lambda node, v, size: windows.pool(v[0], **node.attrs),
    "argmax": lambda node, v, size: _argmax(v[0], **node.attrs),
    "cumsum": lambda node, v, size: _cumsum(v[0], **node.attrs),
}


# ---- graphs ----------------------------------------------------------------------------------------------------------


def run(graph: Graph, feeds: Mapping[str, np.ndarray], *, sizes: Mapping[str, int] | None = None) -> list[np.ndarray]:
    """Evaluate a graph.

    Parameters
    ----------
    graph : a valid Graph
    feeds : input name -> array of the declared dims; integers where integers are declared, bools where bools are
    sizes : values of symbols that the inputs' shapes don't determine

    A `state` node starts from its initial value.

    Returns
    -------
    One array an output, in the graph's order: float64, int64 or bool; new, or views of the feeds and constants.

    Raises
    ------
    ShapeError naming the input, axis, size got and size expected; or the node whose sizes do not fit.
    """
    env = bind_sizes(graph, feeds, sizes)

    def size(dim):
        return D.evaluate(dim, env)

    known = {name: _wide(graph.values[name], array) for name, array in graph.constants.items()}
    known |= {name: _wide(graph.values[name], feeds[name]) for name in graph.inputs}
    with np.errstate(all="ignore"):
        for item in schedule(graph):
            if isinstance(item, Loop):
                _run_loop(graph, item, known, size)
            else:
                _run_node(graph, item, known, size)
    return [known[name] for name in graph.outputs]


def bind_sizes(graph: Graph, feeds: Mapping[str, np.ndarray], sizes: Mapping[str, int] | None = None) -> dict[str, int]:
    """Symbol -> size, solved from the shapes of the feeds, every axis of which is then checked against its dim.

    Raises ShapeError for an axis that contradicts, a missing or unknown input, and a dim that can't be solved.
    """
    unknown = sorted(set(feeds) - set(graph.inputs))
    missing = [name for name in graph.inputs if name not in feeds]
    if unknown or missing:
        what = f"no input is named {unknown[0]!r}" if unknown else f"the input {missing[0]!r} is missing"
        raise ShapeError(f"{graph.name}: {what}; inputs are {', '.join(graph.inputs)}")
    env = dict(sizes or {})
    axes = []
    for name in graph.inputs:
        value, shape = graph.values[name], np.shape(feeds[name])
        if len(shape) != len(value.dims):
            raise ShapeError(f"input {name}: got {len(shape)} axes {list(shape)}, expected {value}")
        axes += [(value, axis, dim, got) for axis, (dim, got) in enumerate(zip(value.dims, shape, strict=True))]
    while any(_solve(dim, got, env) for _, _, dim, got in axes):
        pass  # a symbol found in one axis may leave another axis with one unknown
    for value, axis, dim, got in axes:
        expected = D.substitute(dim, env)
        if isinstance(expected, D.Dim):
            raise ShapeError(f"input {value.name}, axis {axis}: can't tell {dim} from the size {got}; give sizes=")
        if got != expected:
            text = f"{dim} = {expected}" if isinstance(dim, D.Dim) else f"{expected}"
            raise ShapeError(f"input {value.name}, axis {axis}: got {got}, expected {text} ({value})")
    check_required(graph, env)
    return env


def _solve(dim, got: int, env: dict[str, int]) -> bool:
    """Bind the one unknown symbol of a dim a*s + b (a, b ints, whole and non-negative solution); True if it did."""
    dim = D.substitute(dim, env)
    names = D.symbols(dim)
    if len(names) != 1:
        return False
    (name,) = names
    if not set(dim.terms) <= {(name,), ()}:
        return False
    solution, rest = divmod(got - dim.terms.get((), 0), dim.terms[(name,)])
    if rest or solution < 0:
        raise ShapeError(f"a size of {got} is not {dim} for any {name}")
    env[name] = solution
    return True


def _wide(value: Value, array) -> np.ndarray:
    """The fed array in the type it is computed in; ShapeError where its kind is not the declared one."""
    array = np.asarray(array)
    allowed = {"f": "fiu", "i": "iu", "b": "b"}[np.dtype(WIDE[value.dtype]).kind]
    if array.dtype.kind not in allowed:
        raise ShapeError(f"input {value.name}: got {array.dtype}, expected {value.dtype}")
    return array.astype(WIDE[value.dtype])


def _run_loop(graph: Graph, loop: Loop, known: dict[str, np.ndarray], size) -> None:
    """Add all values of a cycle to `known`: a definition, not a method, so quadratic in the number of steps.

    Whatever the states hold, each sweep over whole sequences that begins with the right states up to step t ends with
    them right up to t + 1, since no node lets steps meet. So as many sweeps as there are steps make all of them right.
    """
    steps = 0
    for node in loop.states:
        value = graph.values[node.outputs[0]]
        prev = known[node.outputs[0]] = np.zeros([size(d) for d in value.dims], WIDE[value.dtype])
        steps = max(steps, len(prev))
        if _optional(node.inputs, 1) is not None:
            prev[:1] = known[node.inputs[1]]
    for _ in range(max(steps, 1)):  # once at least: values of no steps are made too
        for node in loop.nodes:
            _run_node(graph, node, known, size)
        for node in loop.states:
            known[node.outputs[0]][1:] = known[node.inputs[0]][:-1]


def _run_node(graph: Graph, node: Node, known: dict[str, np.ndarray], size) -> None:
    """Add the node's outputs to `known`."""
    try:
        results = _OPS[node.op](node, [None if i is None else known[i] for i in node.inputs], size)
    except (ShapeError, ValueError) as error:
        raise ShapeError(f"node {node.name} ({node.op}): {error}") from None
    for name, result in zip(node.outputs, results if node.op == "cell" else [results], strict=False):
        if name is None:
            continue
        value = graph.values[name]
        known[name] = np.asarray(result, WIDE[value.dtype])
        expected = tuple(size(d) for d in value.dims)
        if known[name].shape != expected:
            raise ShapeError(f"node {node.name} ({node.op}): made {list(known[name].shape)}, expected {list(expected)}")


class StreamReference:
    """What a stream of a graph must answer: a definition, not a method, so quadratic in the number of steps.

    A graph whose inputs have a TIME axis is run on everything fed so far. The answer of a step is then, for an output
    with a TIME axis, its newest step; for another, its value as if the sequence ended here. A graph without TIME is
    itself one step: the inputs that `graph.states` pairs with outputs are carried along.

    Parameters
    ----------
    graph : a valid Graph whose TIME axes are exactly `time` long
    initial : values of the inputs that `graph.states` names; zeros where absent
    sizes : symbols that feeds don't determine, and those of zero initial states
    """

    def __init__(self, graph: Graph, *, initial: Mapping[str, np.ndarray] | None = None, sizes=None):
        for node in graph.nodes:
            if node.op == "cell" and node.attrs["spec"].reverse:
                raise StreamError(f"node {node.name}: a reverse {node.attrs['spec'].kind} needs the whole sequence")
        self.graph, self.sizes = graph, dict(sizes or {})
        self.carried = dict(initial or {})
        self.seen: dict[str, np.ndarray] = {}
        self.time_axis = {
            name: graph.values[name].dims.index(D.TIME)
            for name in (*graph.inputs, *graph.outputs)
            if D.TIME in graph.values[name].dims
        }
        self.timed = any(name in self.time_axis for name in graph.inputs)

    def step(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """One step: each input without its TIME axis; returns the outputs without theirs."""
        if not self.timed:
            return self._step_function(feeds)
        axes = self.time_axis
        answers = self.push({n: np.expand_dims(a, axes[n]) if n in axes else a for n, a in feeds.items()})
        return [np.squeeze(y, axes[n]) if n in axes else y for n, y in zip(self.graph.outputs, answers, strict=True)]

    def push(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """A chunk: inputs with their TIME axis, n steps long, n >= 0; returns the outputs' newest n steps."""
        if not self.timed:
            raise StreamError(f"{self.graph.name}: it has no time axis to push along; use step")
        steps = 0
        for name, array in feeds.items():
            if name in self.time_axis:
                axis = self.time_axis[name]
                steps = np.shape(array)[axis]
                array = np.concatenate([self.seen[name], array], axis) if name in self.seen else array
            self.seen[name] = np.asarray(array)
        outputs = run(self.graph, {**self._threaded(self.seen), **self.seen}, sizes=self.sizes)
        newest = []
        for name, y in zip(self.graph.outputs, outputs, strict=True):
            if name in self.time_axis:
                axis = self.time_axis[name]
                y = np.take(y, np.arange(y.shape[axis] - steps, y.shape[axis]), axis)
            newest.append(y)
        return newest

    def _step_function(self, feeds) -> list[np.ndarray]:
        feeds = {**self._threaded(feeds), **feeds}
        outputs = run(self.graph, feeds, sizes=self.sizes)
        answers = dict(zip(self.graph.outputs, outputs, strict=True))
        self.carried = {name: answers[after] for name, after in self.graph.states.items()}
        return outputs

    def _threaded(self, feeds) -> dict[str, np.ndarray]:
        """The state inputs that the caller does not feed: what was carried, or zeros."""
        values = {}
        for name in self.graph.states:
            if name not in feeds:
                value = self.graph.values[name]
                zeros = np.zeros([D.evaluate(d, self._sizes_of(feeds)) for d in value.dims], WIDE[value.dtype])
                values[name] = self.carried.get(name, zeros)
        return values

    def _sizes_of(self, feeds) -> dict[str, int]:
        env = dict(self.sizes)
        axes = [
            (d, n) for name, a in feeds.items() for d, n in zip(self.graph.values[name].dims, np.shape(a), strict=True)
        ]
        while any(_solve(dim, got, env) for dim, got in axes):
            pass
        return env
