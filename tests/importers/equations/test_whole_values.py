"""Whole values of equations: counters in int64, which stay exact where float32 stops."""

import numpy as np
import pytest

import fastrnn
from fastrnn.graph import reference


def states(model):
    return {n.name: model.graph.values[n.outputs[0]].dtype for n in model.graph.nodes if n.op == "state"}


def run(text, steps=12, outputs=None, **options):
    model = fastrnn.from_equations(text, inputs={"x": 2}, outputs=outputs, **options)
    x = np.ones((1, steps, 2), np.float32)
    got = model.run(x)
    wide = reference.run(model.graph, {"x": x})
    for a, b in zip(got, wide, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    return model, got[0] if outputs is None else got


@pytest.mark.parametrize("start", [2**24 - 2, 2**40 + 7, -(2**50)])
def test_a_counter_goes_on_where_float32_stops(start):
    text = "t = prev(t) + 1; y = (t % 1000) * x + (t - prev(t))"
    model, (y, t) = run(text, 6, ("y", "t"), initial={"t": np.array(start)})
    assert states(model) == {"t": "int64"}
    want = start + np.arange(1, 7)
    assert t.dtype == np.int64
    assert np.array_equal(t[0], want)
    assert np.array_equal(y[0, :, 0], (want % 1000 + 1).astype(np.float32))
    stream = model.stream()
    for k in range(6):
        step, count = stream.step(np.ones(2, np.float32))
        assert np.array_equal(step, y[0, k])
        assert count == want[k]
    assert stream.state["t"].dtype == np.int64


def test_a_pool_counts_each_of_its_rows_apart():
    model = fastrnn.from_equations(
        "t = prev(t) + 1; h = 0.5 * prev(h) + where(t % 3 == 0, W @ x, -(W @ prev(h)))",
        outputs=("h", "t"), W=np.random.default_rng(0).normal(size=(3, 3)),
    )  # fmt: skip
    x = np.random.default_rng(1).normal(size=(2, 9, 3)).astype(np.float32)
    h, _ = model.run(x)
    pool = model.pool(2)
    first, second = pool.open(), pool.open()
    pool.step(np.array([first]), x[:1, 0])
    for k in range(8):
        step, count = pool.step(np.array([first, second]), np.stack([x[0, k + 1], x[1, k]]))
        assert np.array_equal(step, np.stack([h[0, k + 1], h[1, k]]))
        assert count.tolist() == [k + 2, k + 1]


@pytest.mark.parametrize(
    ("text", "of"),
    {
        "t = where(prev(t) >= 7, 0, prev(t) + 1); y = t * x": lambda n: (n + 1) % 8,
        "u = clip(prev(u) + 1, 0, 5); y = u * x": lambda n: min(n + 1, 5),
        "u = min(prev(u) + 2, 9) - 1; y = u * x": lambda n: min(n + 1, 8),
        "h = 1 - prev(h); y = h * x": lambda n: (n + 1) % 2,
        "h = -prev(h) + 1; y = h * x": lambda n: (n + 1) % 2,
        "n = 3; y = prev(n) * x": lambda n: 3 * (n > 0),
        "t = prev(t) + 1; y = (x - t) % 3": lambda n: (0 - n) % 3,
        "a = prev(b, 2) + 1; b = max(a, 4); y = b * x": lambda n: 4 + n // 2,
    }.items(),
)
def test_what_whole_numbers_make_is_whole(text, of):
    model, y = run(text)
    assert set(states(model).values()) == {"int64"}
    assert y[0, :, 0].tolist() == [of(n) for n in range(12)]


def test_a_generator_of_random_numbers():
    text = "s = (1103515245 * prev(s) + 12345) % 2147483648; y = (s / 2147483648) * x"
    model, y = run(text, 30)
    assert states(model) == {"s": "int64"}
    s = 0
    for k in range(30):
        s = (1103515245 * s + 12345) % 2**31
        assert y[0, k, 0] == pytest.approx(s / 2**31, rel=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        "n = 2 * prev(n) + 1; y = n * x",
        "n = prev(n) + prev(n, 2) + 1; y = n * x",
        "t = prev(t) + 1.0; y = t * x",
        "t = 0.5 * prev(t) + 1; y = t * x",
        "t = prev(t) / 2 + 1; y = t * x",
        "n = prev(n) - 3 * prev(n) + 1; y = n * x",
        "n = (prev(n) * prev(n) + 1) * 4611686018427387904 % 7; y = n * x",
    ],
)
def test_what_could_leave_int64_stays_in_float32(text):
    model, _ = run(text)
    assert set(states(model).values()) == {"float32"}


def test_sums_of_counters_stay_in_float32_even_if_they_begin_late():
    for grown in ("t", "max(0, t - 1000)"):
        model, _ = run(f"t = prev(t) + 1; s = prev(s) + {grown}; y = s * x")
        assert states(model) == {"t": "int64", "s": "float32"}


def test_a_start_that_is_no_whole_number_makes_it_float32():
    model, y = run("t = prev(t) + 1; y = t * x", initial={"t": 0.5})
    assert states(model) == {"t": "float32"}
    assert y[0, 0, 0] == 1.5


def test_powers_of_a_counter_are_taken_in_float32():
    """t * t * t of int64 would wrap around at 2**21 steps."""
    _, y = run("t = prev(t) + 1; y = t * t * t * x", 2, initial={"t": np.array(2**30)})
    assert y[0, 0, 0] == pytest.approx(float(2**30 + 1) ** 3, rel=1e-6)


def test_a_saved_counter_goes_on(tmp_path):
    model = fastrnn.from_equations("t = prev(t) + 1; y = (t % 5) * x", inputs={"x": 2})
    model.save(tmp_path / "m.fastrnn")
    stream = fastrnn.load(tmp_path / "m.fastrnn").stream()
    for k in range(1, 8):
        assert stream.step(np.ones(2, np.float32))[0] == k % 5
