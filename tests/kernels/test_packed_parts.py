"""Large weights are packed in parts; every part must arrive."""

import numpy as np
import pytest

from fastrnn.graph.cells import Activation, CellSpec
from fastrnn.machine import _isa, _kernel_calls

LSTM = (Activation("sigmoid"), Activation("tanh"), Activation("tanh"))


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("isa", _isa.isa_info()["available"])
@pytest.mark.parametrize(("K", "N"), [(3001, 401), (64, 20_000), (20_000, 33), (0, 70)])
def test_a_large_product_is_packed_whole(isa, K, N):
    W, bias, x = random(K, N), random(N, seed=1), random(2, K, seed=2)
    packed = _isa.pack_linear(W, bias, isa=isa)
    got = _kernel_calls.linear(packed, x)
    want = x.astype(np.float64) @ W + bias
    np.testing.assert_allclose(got, want, atol=2e-6 * max(K, 1) ** 0.5 * 10)


@pytest.mark.parametrize("isa", _isa.isa_info()["available"])
def test_a_large_cell_is_packed_whole(isa):
    I, H = 301, 700  # noqa: E741
    spec = CellSpec("lstm", I, H, activations=LSTM)
    W, R, Wb, x, h, c = (
        random(*s, seed=i) * 0.1 for i, s in enumerate([(4 * H, I), (4 * H, H), (4 * H,), (1, I), (1, H), (1, H)])
    )
    got = _kernel_calls.cell_step(_isa.pack_cell(spec, W, R, Wb, isa=isa), x, h, c.copy())
    sums = x.astype(np.float64) @ W.T + h @ R.T + Wb
    i, o, f, g = (sums[:, k * H : (k + 1) * H] for k in range(4))
    s = lambda v: 1 / (1 + np.exp(-v))  # noqa: E731
    want = s(o) * np.tanh(s(f) * c + s(i) * np.tanh(g))
    got = got[0] if isinstance(got, tuple) else got
    np.testing.assert_allclose(got, want, atol=2e-6)
