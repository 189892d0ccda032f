"""attend on every instruction set: values, and the same bits wherever the keys lie."""

import numpy as np
import pytest

from fastrnn.machine import _isa
from fastrnn.machine import _kernel_calls as calls

ISAS = [isa for isa in _isa.isa_info()["available"] if _isa.kernels_of(isa) == isa]  # with float32 kernels of their own
SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 48, 65, 127, 130]
CANARY = np.float32(12345.0)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def exact(q, k, v, scale=1.0, softcap=0.0, bias=None, mask=None):
    """The same in float64, as written in frnn.h."""
    q, k, v = (a.astype(np.float64) for a in (q, k, v))
    score = scale * (k @ q)
    score = softcap * np.tanh(score / softcap) if softcap else score
    score = score if mask is None else np.where(mask, score, 0.0)
    score = score if bias is None else score + bias
    weight = np.exp(score - score.max())
    return weight / weight.sum() @ v


def apart(array, gap):
    """A copy of the rows, `gap` canaries apart."""
    whole = np.full((len(array) + 1, array.shape[1] + gap), CANARY, np.float32)
    rows = whole[: len(array), : array.shape[1]]
    rows[...] = array
    return rows


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 8, 17, 40])
def test_values(n, isa):
    for i, d in enumerate(SIZES):
        dv = SIZES[-1 - i]
        q, k, v = normal([n, d], d), normal([n, d, 1], n, d), normal([n, d, 2], n, dv)
        whole = np.full(dv + 2, CANARY, np.float32)
        options = {"scale": 0.5 / np.sqrt(d), "softcap": 1.5 * (d % 2), "bias": normal(d, n) if d % 3 else None,
                   "mask": (normal(d + 1, n) > 0).astype(np.float32) if d % 5 else None}  # fmt: skip
        y = calls.attend(q, apart(k, 3), apart(v, 5), y=whole[1:-1], isa=isa, **options)
        np.testing.assert_allclose(y, exact(q, k, v, **options), rtol=2e-6, atol=2e-6, err_msg=f"d={d} dv={dv}")
        assert whole[0] == whole[-1] == CANARY


@pytest.mark.parametrize("isa", ISAS)
def test_bits_do_not_depend_on_where_the_keys_lie(isa):
    n, d, dv = 23, 19, 37
    q, k, v = normal(1, d), normal(2, n, d), normal(3, n, dv)
    whole = calls.attend(q, k, v, 0.3, isa=isa)
    for split in range(n + 1):
        assert calls.attend(q, apart(k, split), apart(v, 1), 0.3, split=split, isa=isa).tobytes() == whole.tobytes()


@pytest.mark.parametrize("isa", ISAS)
def test_a_bias_of_minus_infinity_hides_a_key(isa):
    q, k, v = normal(1, 8), normal(2, 6, 8), normal(3, 6, 5)
    bias = np.array([0, -np.inf, 0, 0, -np.inf, -np.inf], np.float32)
    y = calls.attend(q, k, v, 1.0, bias=bias, isa=isa)
    np.testing.assert_allclose(y, exact(q, k[[0, 2, 3]], v[[0, 2, 3]]), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("fill", [-1e4, -1e9, -3e38])
def test_scores_that_are_all_replaced_are_equal(fill, isa):
    """An addition would keep a part of them: -1e4 rounds to 2^-10."""
    q, k, v = normal(1, 8), normal(2, 6, 8), normal(3, 6, 5)
    bias, mask = np.full(6, fill, np.float32), np.zeros(6, np.float32)
    k[2], k[3] = np.inf, np.nan  # what is replaced plays no part
    y = calls.attend(q, k, v, bias=bias, mask=mask, isa=isa)
    np.testing.assert_allclose(y, v.mean(0), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("isa", ISAS)
def test_no_key_is_left(isa):
    q, k, v = normal(1, 8), normal(2, 6, 8), normal(3, 6, 5)
    hidden = np.full(6, -np.inf, np.float32)
    assert np.isnan(calls.attend(q, k, v, bias=hidden, isa=isa)).all()
    assert not calls.attend(q, k, v, bias=hidden, safe=True, isa=isa).any()
    assert not calls.attend(q, k[:0], v[:0], isa=isa).any()


@pytest.mark.parametrize("isa", ISAS)
def test_large_scores_do_not_overflow(isa):
    q, k, v = normal(1, 8), normal(2, 6, 8), normal(3, 6, 5)
    np.testing.assert_allclose(calls.attend(q, k, v, 1e4, isa=isa), exact(q, k, v, 1e4), rtol=2e-6, atol=2e-6)
