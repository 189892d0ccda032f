"""The reference's integers: functions, wraparound and casts, against torch and the numbers that x86-64 gives."""

import math

import numpy as np
import pytest

from fastrnn.graph import INTEGERS, reference
from fastrnn.graph.ops.elementwise import BITWISE


def test_functions_of_bools_and_integers():
    np.testing.assert_array_equal(reference.unary("not", np.array([True, False])), [False, True])
    big = 2**60 + 1  # not a float64
    for fn, expected in (("neg", -big), ("abs", big), ("relu", big)):
        answer = reference.unary(fn, np.array([big]))
        assert answer.dtype == np.int64
        assert answer.tolist() == [expected]
    clipped = reference.unary("clip", np.array([-5, big]), -1.5, math.inf)
    assert clipped.tolist() == [-1, big]
    assert reference.unary("clip", np.array([7]), -math.inf, 3.5).tolist() == [3]


BITWISE_TORCH = {
    "bit_and": "bitwise_and",
    "bit_or": "bitwise_or",
    "bit_xor": "bitwise_xor",
    "shift_left": "bitwise_left_shift",
    "shift_right": "bitwise_right_shift",
}


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "int32", "int64"])
def test_bitwise_functions_are_those_of_torch(dtype):
    import torch

    ends = np.iinfo(dtype)
    a = np.array([ends.min, ends.max, 0, 1, 77, ends.max // 3], dtype)[:, None]
    b = np.arange(ends.bits).astype(dtype)
    np.testing.assert_array_equal(reference.unary("bit_not", a), torch.bitwise_not(torch.from_numpy(a)).numpy())
    for fn, name in BITWISE_TORCH.items():
        theirs = getattr(torch, name)(torch.from_numpy(a), torch.from_numpy(b))
        np.testing.assert_array_equal(reference.binary(fn, a, b), theirs.numpy())
    assert set(BITWISE_TORCH) | {"bit_not"} == BITWISE


def cast(x: np.ndarray, to: str) -> np.ndarray:
    from fastrnn.graph.vocabulary import ROWS

    return ROWS["cast"].compute([x], {"to": to}, int)[0]


# Of float32 numbers that the type can't hold: what onnxruntime's cast to it gives on x86-64.
CASTS = {
    "int8": {300.7: 44, -129.0: 127, 65536.0: 0, 3e9: 0, math.inf: 0, math.nan: 0},
    "uint8": {-1.5: 255, 256.0: 0, 300.7: 44, -3e9: 0, math.nan: 0},
    "int16": {32768.0: -32768, 70000.0: 4464, 1e30: 0},
    "uint16": {-1.0: 65535, 70000.0: 4464, -math.inf: 0},
    "int32": {2.0**31: -(2**31), -3e9: -(2**31), math.nan: -(2**31), -1.9: -1},
    "uint32": {-1.0: 2**32 - 1, 3e9: 3000000000, 2.0**32 + 512: 0, 1e30: 0, -3e9: 2**31},
    "int64": {2.0**63: -(2**63), -1e30: -(2**63), math.nan: -(2**63)},
    "uint64": {-1.0: 2**64 - 1, 2.0**63: 2**63, 1.5 * 2.0**63: 3 * 2**62, 1e30: 0, math.nan: 2**63},
}


@pytest.mark.parametrize("to", CASTS)
def test_floats_that_integers_cannot_hold(to):
    assert cast(np.array(list(CASTS[to])), to).tolist() == list(CASTS[to].values())
    assert set(CASTS) == INTEGERS


@pytest.mark.parametrize("dtype", sorted(INTEGERS))
def test_integers_wrap_around_in_their_own_type(dtype):
    ends = np.iinfo(dtype)
    top, one = np.array([ends.max], dtype), np.ones(1, dtype)
    assert reference.binary("add", top, one).tolist() == [ends.min]
    assert reference.binary("sub", one - one + ends.min, one).tolist() == [ends.max]
    assert reference.binary("mul", top, top).tolist() == [1]
    assert cast(np.array([-1]), dtype).tolist() == [ends.max if ends.min == 0 else -1]
