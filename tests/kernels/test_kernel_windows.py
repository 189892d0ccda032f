"""depthwise and pool on every instruction set: values, bits in every position, nothing written past a row."""

import numpy as np
import pytest

from fastrnn.errors import FastRNNError
from fastrnn.machine import _isa
from fastrnn.machine import _kernel_calls as calls

ISAS = [isa for isa in _isa.isa_info()["available"] if _isa.kernels_of(isa) == isa]  # with float32 kernels of their own
SIZES = [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 48, 49]
CANARY = np.float32(12345.0)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def guarded(rows, columns, gap):
    """(all of it, rows that lie `gap` canaries apart)."""
    whole = np.full((rows + 1, columns + gap), CANARY, np.float32)
    return whole, whole[:rows, :columns]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("K", [0, 1, 3, 9])
def test_depthwise(K, isa):
    for C in SIZES:
        W, bias = normal([K, C], K, C), normal([K, C, 1], C) if C % 2 else None
        windows = 1 + C % 11
        x = normal([K, C, 2], windows + K, C)[: windows + K - 1]
        whole, y = guarded(windows, C, 3)
        calls.depthwise(W, bias, x, isa=isa, y=y)
        seen = np.array([x[i : i + K] for i in range(windows)], np.float64).reshape(windows, K, C)
        exact = (seen * W).sum(axis=1) + (0 if bias is None else bias)
        np.testing.assert_allclose(y, exact, rtol=1e-5, atol=1e-5, err_msg=f"K={K} C={C}")
        y[...] = CANARY
        assert (whole == CANARY).all()


@pytest.mark.parametrize("isa", ISAS)
def test_depthwise_bits_do_not_depend_on_the_window(isa):
    """Windows are computed by fours; each has the bits that it has alone, with the activation that map applies."""
    for C in SIZES[1:]:
        W, bias, x = normal(C, 5, C), normal(1, C), normal(2, 14, C)
        y = calls.depthwise(W, bias, x, "tanh", isa=isa)
        for i in range(y.shape[0]):
            assert calls.depthwise(W, bias, x[i : i + 5], "tanh", isa=isa).tobytes() == y[i : i + 1].tobytes()
        plain = calls.depthwise(W, bias, x, isa=isa)
        assert calls.map_function("tanh", plain, isa=isa).tobytes() == y.tobytes()


@pytest.mark.parametrize("isa", ISAS)
def test_pool(isa):
    for C in SIZES:
        for K in (1, 2, 9):
            x = normal([C, K], K, C)
            whole, y = guarded(1, C, 3)
            np.testing.assert_array_equal(calls.pool("max", x, isa=isa, y=y), x.max(axis=0))
            np.testing.assert_allclose(calls.pool("add", x, K, isa=isa, y=y), x.mean(axis=0), rtol=1e-5, atol=1e-6)
            y[...] = CANARY
            assert (whole == CANARY).all()


@pytest.mark.parametrize("isa", ISAS)
def test_pool_keeps_a_nan_in_its_channel(isa):
    for place in range(3):
        x = normal(place, 3, 21)
        x[place, 4] = np.nan
        for fn in ("max", "add"):
            y = calls.pool(fn, x, isa=isa)
            assert np.isnan(y[4])
            assert not np.isnan(np.delete(y, 4)).any()


@pytest.mark.parametrize("isa", ISAS)
def test_the_largest_of_nothing(isa):
    assert (calls.pool("max", normal(0, 1, 5)[:0], isa=isa) == -np.inf).all()


def test_an_unknown_pooling_is_named():
    with pytest.raises(FastRNNError, match="median"):
        calls.pool("median", normal(0, 2, 2))
