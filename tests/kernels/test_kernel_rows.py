"""Kernels over rows of overlapping windows on every instruction set: values, bits of the kernels for single windows,
nothing written past a row."""

import numpy as np
import pytest
from test_kernel_windows import CANARY, ISAS, guarded, normal

from fastrnn.errors import FastRNNError
from fastrnn.machine import _isa
from fastrnn.machine import _kernel_calls as calls
from fastrnn.machine import _window_calls as rows_of

ROWS = [0, 1, 2, 3, 4, 5, 7, 8, 11, 12, 13, 15, 17, 24, 29]
WIDTHS = [1, 3, 4, 5, 8, 9, 12, 16, 17, 20, 32, 37, 48, 50, 64, 65, 80, 127]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("pieces", "length", "step"), [(1, 1, 1), (1, 16, 16), (3, 9, 3), (5, 5, 2), (9, 2, 4), (2, 0, 1)]
)
def test_slide(pieces, length, step, isa):
    """The rows of linear hold the pieces one after the other; the bits are the same."""
    for N in WIDTHS:
        W, bias = normal([N, 1], pieces * length, N), normal([N, 2], N) if N % 2 else None
        packed = _isa.pack_linear(W, bias, isa=isa)
        for count in ROWS:
            apart = (count + 3) * step + length
            x = normal([N, count], pieces * apart)
            offsets = [i * apart + i % 3 for i in range(pieces)]
            seen = np.zeros((count, pieces * length), np.float32)
            for r in range(count):
                seen[r] = np.concatenate([x[o + r * step : o + r * step + length] for o in offsets])
            whole, y = guarded(count, N, 3)
            rows_of.slide(packed, x, offsets, length, step, y)
            assert count == 0 or y.tobytes() == calls.linear(packed, seen).tobytes(), (N, count)
            exact = seen.astype(np.float64) @ W + (0 if bias is None else bias)
            np.testing.assert_allclose(y, exact, rtol=1e-5, atol=1e-5, err_msg=f"N={N} rows={count}")
            y[...] = CANARY
            assert (whole == CANARY).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["relu", "tanh", "hard_swish", "leaky_relu"])
def test_slide_applies_the_activations_of_linear(name, isa):
    for N in (5, 16, 40, 70):
        packed = _isa.pack_linear(normal(1, 6, N), normal(2, N), isa=isa)
        x = normal(3, 40)
        x[7] = np.nan
        y = rows_of.slide(packed, x, [0, 3], 3, 2, np.zeros((15, N), np.float32), name, 0.2, 0.5)
        seen = np.array([[*x[2 * r : 2 * r + 3], *x[2 * r + 3 : 2 * r + 6]] for r in range(15)])
        assert y.tobytes() == calls.linear(packed, seen, name, 0.2, 0.5).tobytes()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("C", [1, 3, 8, 12, 16, 20, 48])
def test_depthwise_row(C, isa):
    """Channel after channel, position after position, as depthwise computes windows one by one."""
    period = np.lcm(C, 16)
    for K in (1, 3, 9):
        W, bias = normal([C, K], K, C), normal([C, 1], C) if C % 2 else None
        for positions in (1, 2, 5, 33):
            x = normal([C, positions], positions + K - 1, C)
            whole = np.full(positions * C + 5, CANARY, np.float32)
            wide = None if bias is None else np.tile(bias, period // C)
            for name in ("identity", "relu", "tanh"):
                y = whole[: positions * C]
                rows_of.depthwise_row(
                    np.tile(W, (1, period // C)), wide, x.reshape(-1), [k * C for k in range(K)], y, name, isa=isa
                )
                alone = calls.depthwise(W, bias, x, name, isa=isa)
                assert y.reshape(positions, C).tobytes() == alone.tobytes(), (K, positions, name)
            assert (whole[positions * C :] == CANARY).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fn", ["max", "add"])
def test_pool_row(fn, isa):
    for C in (1, 3, 8, 16, 21, 40):
        x = normal(C, 9, C)
        x[3, C // 2] = np.nan
        for step, offsets in ((1, [0, 1]), (2, [0, 1, 2])):
            windows = (9 - len(offsets)) // step + 1
            whole, y = guarded(windows, C, 3)
            rows_of.pool_row(fn, x.reshape(-1), [o * C for o in offsets], step * C, y, len(offsets), isa=isa)
            for w in range(windows):
                alone = calls.pool(fn, x[w * step : w * step + len(offsets)], len(offsets), isa=isa)
                assert y[w].tobytes() == alone.tobytes()
            y[...] = CANARY
            assert (whole == CANARY).all()


def test_what_does_not_fit_is_refused():
    packed, y = _isa.pack_linear(normal(1, 6, 4), None), np.zeros((3, 4), np.float32)
    with pytest.raises(FastRNNError, match="an offset of 5 into 12 floats"):
        rows_of.slide(packed, normal(1, 12), [0, 5], 3, 3, y)
    with pytest.raises(FastRNNError, match="2 pieces of 2 floats over 6 weights"):
        rows_of.slide(packed, normal(1, 12), [0, 1], 2, 1, y)
    with pytest.raises(FastRNNError, match=r"the period must be a multiple of .* floats, got 7"):
        rows_of.depthwise_row(normal(1, 1, 7), None, normal(1, 9), [0], np.zeros(7, np.float32))
    with pytest.raises(FastRNNError, match="unknown pooling 'min'"):
        rows_of.pool_row("min", normal(1, 9), [0], 1, np.zeros((2, 3), np.float32))
