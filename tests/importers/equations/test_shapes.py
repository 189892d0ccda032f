"""Outer products, products of two values, reshape, where, clip and sums over an axis are what NumPy makes of them."""

import numpy as np
import pytest

import fastrnn
from fastrnn.graph import reference

RNG = np.random.default_rng(3)
W, V = RNG.standard_normal((2, 6, 5)).astype(np.float32)

# Text -> the same of u = W x and v = V x, of 6 features each, for one step
WRITTEN = {
    "y = outer(W @ x, V @ x)": np.outer,
    "y = outer(reshape(W @ x, 2, 3), reshape(V @ x, 2, 3))": lambda u, v: np.einsum(
        "hk,hn->hkn", u.reshape(2, 3), v.reshape(2, 3)
    ),
    "y = reshape(W @ x, 3, 2) @ reshape(V @ x, 2, 3)": lambda u, v: u.reshape(3, 2) @ v.reshape(2, 3),
    "y = (W @ x)[:2] @ reshape(V @ x, 2, 3)": lambda u, v: u[:2] @ v.reshape(2, 3),
    "y = reshape(V @ x, 2, 3) @ (W @ x)[:3]": lambda u, v: v.reshape(2, 3) @ u[:3],
    "y = (W @ x)[:3] - reshape(V @ x, 3, 2) @ (W @ x)[:2]": lambda u, v: u[:3] - v.reshape(3, 2) @ u[:2],
    "y = reshape(V @ x, 2, 3) @ outer((W @ x)[:3], V @ x)": lambda u, v: v.reshape(2, 3) @ np.outer(u[:3], v),
    "y = where(W @ x < V @ x, W @ x, 2)": lambda u, v: np.where(u < v, u, 2),
    "y = where(W @ x >= 0, outer(W @ x, V @ x), -1)": lambda u, v: np.where(u >= 0, np.outer(u, v), -1),
    "y = where(0 == floor(W @ x), V @ x, 1 - V @ x)": lambda u, v: np.where(np.floor(u) == 0, v, 1 - v),
    "y = clip(W @ x, -0.5, V @ x)": lambda u, v: np.minimum(np.maximum(u, -0.5), v),
    "y = sum(outer(W @ x, V @ x), 0)": lambda u, v: np.outer(u, v).sum(0),
    "y = mean(outer(W @ x, V @ x), -1)": lambda u, v: np.outer(u, v).mean(-1),
    "y = amax(outer(W @ x, V @ x), -2)": lambda u, v: np.outer(u, v).max(0),
    "y = amin(W @ x) + amax(V @ x)": lambda u, v: np.array([u.min() + v.max()]),
    "y = sum(W @ x, -1) * (V @ x)": lambda u, v: u.sum() * v,
}


@pytest.mark.parametrize("text", WRITTEN)
def test_it_is_what_numpy_makes_of_it(text):
    arrays = {name: array for name, array in (("W", W), ("V", V)) if name in text}
    model = fastrnn.from_equations(text, **arrays)
    x = RNG.standard_normal((2, 7, 5)).astype(np.float32)
    want = np.array([[WRITTEN[text](W @ step, V @ step) for step in row] for row in x.astype(np.float64)])
    (exact,) = reference.run(model.graph, {"x": x})
    np.testing.assert_allclose(exact, want, rtol=1e-6, atol=1e-6)
    got = model(x)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    stream = model.stream()
    assert np.array_equal(np.stack([stream.step(row) for row in x[1]]), got[1])


def test_arrays_alone_are_computed_at_once():
    model = fastrnn.from_equations("y = (W @ x) * where(B < 0, clip(B, -1, 1), 2) * reshape(outer(B, C), 6)",
                                   W=W, B=V[:, 0], C=np.ones(1))  # fmt: skip
    b, x = V[:, 0].astype(np.float64), RNG.standard_normal((1, 2, 5)).astype(np.float32)
    want = (x @ W.T) * np.where(b < 0, np.clip(b, -1, 1), 2) * b
    np.testing.assert_allclose(model(x), want, rtol=1e-4, atol=1e-5)


def test_a_counter_selects():
    """The values of every third step."""
    model = fastrnn.from_equations("t = prev(t) + 1; h = where(t - 3 * floor(t / 3) == 0, W @ x, prev(h))", W=W)
    x = RNG.standard_normal((1, 9, 5)).astype(np.float32)
    got, every = model(x)[0], x[0] @ W.T
    assert np.array_equal(got[:2], np.zeros((2, 6)))
    for t in range(2, 9):
        np.testing.assert_allclose(got[t], every[t - (t + 1) % 3], rtol=1e-5, atol=1e-6)
