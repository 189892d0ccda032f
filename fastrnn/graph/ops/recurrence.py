"""Recurrence: `cell`, one direction of one recurrent layer, and `state`, a step ago.

The cells are those of the ONNX text (RNN-22, LSTM-22, GRU-22).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from ...errors import ShapeError
from ..cells import CellSpec
from ..precision import meant
from ..shapes import check_precision
from ..vocabulary import CELL, PRECISION, graph_op
from .elementwise import unary

# ---- one step --------------------------------------------------------------------------------------------------------
# Each function computes one step of some rows: it takes x [B, I] and h [B, H], c [B, H] before the step, and returns h
# and c after it. W [G*H, I], R [G*H, H], Wb and Rb [G*H], P [3*H] stack their gates; `_gates` separates them. f, g,
# h_act are the activations. Clip bounds the preacts, so it applies before f and g but not before h_act, whose argument
# is the cell state. The ONNX text ("the input of activations") allows both readings; onnxruntime uses this one.


def _gates(array: np.ndarray, count: int) -> list[np.ndarray]:
    return np.split(array, count, axis=0)


def activations_of(spec: CellSpec) -> list[Callable]:
    """The cell's activations as functions of a preact. The first two clip it."""
    bound = math.inf if spec.clip is None else spec.clip

    def function(act, bound):
        return lambda v: unary(act.name, np.clip(v, -bound, bound), act.alpha, act.beta)

    return [function(act, math.inf if k == 2 else bound) for k, act in enumerate(spec.activations)]


def _rnn_step(spec, x, h, c, W, R, Wb, Rb, P):
    (f,) = activations_of(spec)
    return f(x @ W.T + h @ R.T + Wb + Rb), c


def _lstm_step(spec, x, h, c, W, R, Wb, Rb, P):
    f, g, h_act = activations_of(spec)
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
    f, g = activations_of(spec)
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


# ---- ops -------------------------------------------------------------------------------------------------------------

_CELL_INPUTS = ("x", "W", "R", "Wb", "Rb", "P", "h0", "c0", "lengths", "mask", "W_scale", "R_scale")


def _cell_dims(inputs, attrs):
    spec = attrs["spec"]
    x = inputs[0]
    g, h = spec.gates * spec.hidden_size, spec.hidden_size
    if len(x.dims) != 3 or x.dims[2] != spec.input_size:
        raise ShapeError(f"x must be [time, batch, {spec.input_size}], got {x}")
    time, batch = x.dims[:2]
    state = (batch, h)
    shapes = (
        x.dims,
        (g, spec.input_size),
        (g, h),
        (g,),
        (g,),
        (3 * h,),
        state,
        state,
        (batch,),
        (time, batch),
        (g,),
        (g,),
    )
    for name, value, dims in zip(_CELL_INPUTS, inputs, shapes, strict=False):
        if value is not None and value.dims != dims:
            raise ShapeError(f"{name} must be [{', '.join(map(str, dims))}], got {value}")
        if name == "mask" and value is not None and value.dtype != "bool":
            raise ShapeError(f"mask must be bool, got {value}")
    check_precision(attrs, inputs[1:3], inputs[10:12])
    dtype = x.dtype
    return [(dtype, (time, batch, h)), (dtype, (batch, h)), (dtype, (batch, h))]


@graph_op(
    "cell(x, W, R, Wb?, Rb?, P?, h0?, c0?, lengths?, mask?, W_scale?, R_scale?) -> y, h_n, c_n",
    attrs={"spec": CELL, "precision": PRECISION},
    dims=_cell_dims,
    keeps=True,
)
def _cell(x, W, R, *inputs, spec, precision):
    """x[T,B,I], W[G*H,I], R[G*H,H], Wb[G*H], Rb[G*H], P[3*H], h0[B,H], c0[B,H], lengths[B], mask[T,B],
    W_scale[G*H], R_scale[G*H] -> y[T,B,H], h_n[B,H], c_n[B,H]. One direction of one layer, time first; T and B may be
    any dims. Gates in ONNX order. lengths int64: row b ends after lengths[b] steps: y is 0 from there on, h_n and c_n
    are its last states. A reverse cell starts at step lengths[b]-1. mask bool: a step is skipped if its mask is false:
    h and c stay, and y repeats h. precision: how W and R are held (graph/precision.py); their meaning rounds nothing
    else.
    """
    *others, W_scale, R_scale = inputs
    return cell(spec, x, meant(W, precision, 1, W_scale), meant(R, precision, 1, R_scale), *others)


def cell(spec: CellSpec, x, W, R, Wb=None, Rb=None, P=None, h0=None, c0=None, lengths=None, mask=None):
    """One direction of one recurrent layer over all its steps.

    Parameters
    ----------
    spec : CellSpec
    x : array, shape (T, B, I); T and B may be 0
    W, R : arrays, shapes (G*H, I) and (G*H, H), gates in ONNX order
    Wb, Rb : arrays, shape (G*H,); None means zeros
    P : array, shape (3*H,), gates i o f; None means zeros
    h0, c0 : arrays, shape (B, H); None means zeros
    lengths : int array, shape (B,), each in [0, T]; None means all T
    mask : bool array, shape (T, B); a step is skipped if its mask is false. None: no step is skipped

    Returns
    -------
    y : float64, shape (T, B, H); 0 from step lengths[b] on in row b; repeats h at a skipped step
    h_n, c_n : float64, shape (B, H); the states after the last step of each row, or its initial states if it has no
        step. c_n is c0 for cells without a cell state.

    Raises
    ------
    ShapeError if a length is outside [0, T].
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
            rows = np.flatnonzero(n < lengths)  # rows with an n-th step, counted in the cell's direction
            t = lengths[rows] - 1 - n if spec.reverse else np.full(len(rows), n)
            there = slice(None) if mask is None else mask[t, rows]
            on, at = rows[there], t[there]
            h[on], c[on] = _STEP[spec.kind](spec, x[at, on], h[on], c[on], *weights)
            y[t, rows] = h[rows]
    return y, h, c


def _state_dims(inputs, attrs):
    x, initial = inputs[0], inputs[1] if len(inputs) > 1 else None
    if not x.dims:
        raise ShapeError(f"{x} has no axis of steps")
    if initial is not None and (initial.dtype, initial.dims) != (x.dtype, x.dims[1:]):
        raise ShapeError(f"the initial value {initial} does not fit a step of {x}")
    return [(x.dtype, x.dims)]


@graph_op("state(next, initial?)", dims=_state_dims, keeps=True, meaning=None)
def _state():
    """next[T,..], initial[..] -> prev[T,..]: next, one step ago along axis 0: prev[0] = initial (else zeros), prev[t] =
    next[t-1]. The only op whose first input may be made after it, so every cycle contains one. Nodes on a cycle keep
    steps apart: at step t each reads only values of step t (fastrnn.graph.loops defines the meaning).
    """
