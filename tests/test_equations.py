"""from_equations: cells that no framework has, against a NumPy loop; whole, streamed, by chunk, in a batch."""

import numpy as np
import pytest
from equation_cases import CELLS, FUSED, loop, make_case

import fastrnn
from fastrnn import reference
from fastrnn.importers.equations import from_equations

RNG = np.random.default_rng(11)


def model_of(case, **options):
    return fastrnn.from_equations(case.text, **case.options, **options, **case.arrays)


def last_name(text):
    return [line.split("=")[0].strip() for line in text.replace("\n", ";").split(";")][-1]


@pytest.mark.parametrize("name", sorted(CELLS))
def test_a_cell_is_what_a_numpy_loop_makes_of_it(name):
    case = make_case(name)
    model, out = model_of(case), last_name(case.text)
    size = model.inputs[0].dims[-1]
    for batch, steps in ((1, 1), (3, 9), (2, 70)):
        x = RNG.normal(size=(batch, steps, size)).astype(np.float32)
        y = model(x)
        expected = np.stack([loop(case, row, (out,))[out] for row in x])
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)
        (whole,) = reference.run(model.graph, {"x": x})
        np.testing.assert_allclose(whole, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", sorted(CELLS))
def test_streams_have_the_bits_of_the_whole_run(name):
    case = make_case(name, seed=1)
    model = model_of(case)
    x = RNG.normal(size=(3, 67, model.inputs[0].dims[-1])).astype(np.float32)
    y = model(x)
    for b in range(3):
        assert np.array_equal(model(x[b : b + 1])[0], y[b])
    stream = model.stream(batch_size=3)
    assert np.array_equal(np.stack([stream.step(x[:, t]) for t in range(67)], 1), y)
    stream.reset()
    chunks = np.split(x, [0, 1, 6, 40], axis=1)
    assert np.array_equal(np.concatenate([stream.push(c) for c in chunks], 1), y)
    one = model.stream()
    halves = [one.push(x[1, :20])]
    other = one.copy()
    assert np.array_equal(np.concatenate([*halves, other.push(x[1, 20:])]), y[1])


def test_no_steps():
    case = make_case("lstm_two_steps_back")
    assert model_of(case)(np.zeros((2, 0, 5), np.float32)).shape == (2, 0, 8)


@pytest.mark.parametrize("name", sorted(CELLS))
def test_a_known_cell_in_other_words_is_that_cell(name):
    model = model_of(make_case(name, seed=2))
    assert [n.attrs["spec"].kind for n in model.graph.nodes if n.op == "cell"] == (
        [FUSED[name]] if name in FUSED else []
    )
    assert any(n.op == "state" for n in model.graph.nodes) == (name not in FUSED)
    assert any("rolled the cycle" in note for note in model.graph.notes) == (name in FUSED)


IN_OTHER_WORDS = {
    "all weights in one, on x and prev(h) side by side": (
        "lstm",
        """a = W @ concat(prev(h), x) + b; i = sigmoid(a[:4]); f = sigmoid(a[4:8])
        c = f * prev(c) + i * tanh(a[8:12]); h = sigmoid(a[12:]) * tanh(c)""", {"W": (16, 7), "b": (16,)}),
    "coupled gates": (
        "lstm",
        """i = sigmoid(W @ x + R @ prev(h)); c = prev(c) - i * prev(c) + i * tanh(V @ x + S @ prev(h) + b)
        h = tanh(c) * sigmoid(Wo @ x + Ro @ prev(h))""",
        {"W": (4, 3), "R": (4, 4), "V": (4, 3), "S": (4, 4), "b": (4,), "Wo": (4, 3), "Ro": (4, 4)}),
    "two inputs": ("rnn", "h = relu(W @ x + V @ u + R @ prev(h))", {"W": (4, 3), "V": (4, 2), "R": (4, 4)}),
    "rows from the right": ("rnn", "h = tanh(x @ W + prev(h) @ R)", {"W": (3, 4), "R": (4, 4)}),
    "a scaled sum": ("rnn", "h = tanh(2 * (W @ x - R @ prev(h)) - b)", {"W": (4, 3), "R": (4, 4), "b": (4,)}),
    "as PyTorch writes a GRU": (
        "gru",
        """r = sigmoid(Wr @ x + Rr @ prev(h)); z = sigmoid(Wz @ x + Rz @ prev(h))
        n = tanh(Wn @ x + r * (Rn @ prev(h))); h = n + z * (prev(h) - n)""",
        {"Wr": (4, 3), "Wz": (4, 3), "Wn": (4, 3), "Rr": (4, 4), "Rz": (4, 4), "Rn": (4, 4)}),
    "also read one step late": (
        "rnn", "h = tanh(W @ x + R @ prev(h)); y = V @ prev(h)", {"W": (4, 3), "R": (4, 4), "V": (2, 4)}),
}  # fmt: skip


def arrays_of(shapes):
    return {name: RNG.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("words", sorted(IN_OTHER_WORDS))
def test_cells_in_other_words(words):
    kind, text, shapes = IN_OTHER_WORDS[words]
    arrays = arrays_of(shapes)
    inputs = ("x", "u") if "u" in text.split() else ("x",)
    read = from_equations(text, arrays, inputs=inputs)
    model = fastrnn.from_equations(text, inputs=inputs, **arrays)
    assert [n.attrs["spec"].kind for n in model.graph.nodes if n.op == "cell"] == [kind]
    feeds = {name: RNG.normal(size=(2, 6, {"x": 3, "u": 2}[name])).astype(np.float32) for name in inputs}
    (expected,) = reference.run(read, feeds)
    (y,) = model.run(**feeds)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-5)


ALMOST = {
    "a leak": "h = tanh(W @ x + R @ prev(h)) + 0.000001 * prev(h)",
    "a bound": "h = tanh(max(W @ x + R @ prev(h), b))",
    "two steps back": "h = tanh(W @ x + R @ prev(h, 2))",
    "another function in one gate": (
        "z = sigmoid(W @ x + R @ prev(h)); r = tanh(b * prev(h) + W @ x); n = tanh(W @ x + R @ (r * prev(h)))\n"
        "h = z * prev(h) + (1 - z) * n"
    ),
    "r on part of the product": (
        "z = sigmoid(W @ x + R @ prev(h)); r = sigmoid(b * prev(h) + W @ x); n = tanh(r * (W @ x + R @ prev(h)))\n"
        "h = z * prev(h) + (1 - z) * n"
    ),
    "gates that see c through a product": (
        "i = sigmoid(W @ x + R @ prev(c)); f = sigmoid(W @ x + R @ prev(h) + b); o = sigmoid(W @ x - R @ prev(h))\n"
        "c = f * prev(c) + i * tanh(W @ x); h = o * tanh(c)"
    ),
    "c before the update": (
        "i = sigmoid(W @ x + R @ prev(h)); f = sigmoid(W @ x + R @ prev(h) + b); o = sigmoid(W @ x - R @ prev(h))\n"
        "c = f * prev(c) + i * tanh(W @ x); h = o * tanh(prev(c))"
    ),
    "h goes on outside": "h = tanh(W @ x + R @ prev(h)); g = exp(h); k = 0.5 * prev(k) + g * b",
}


@pytest.mark.parametrize("words", sorted(ALMOST))
def test_what_is_almost_a_cell_stays_what_it_is(words):
    text, shapes = ALMOST[words], {"W": (4, 3), "R": (4, 4), "b": (4,)}
    arrays = arrays_of({n: s for n, s in shapes.items() if f"{n} " in text or f" {n}" in text})
    model = fastrnn.from_equations(text, **arrays)
    states = [n for n in model.graph.nodes if n.op == "state"]
    assert states
    assert any(n.op == "cell" for n in model.graph.nodes) == (words == "h goes on outside")
    x = RNG.normal(size=(2, 6, 3)).astype(np.float32)
    np.testing.assert_allclose(model(x), reference.run(from_equations(text, arrays), {"x": x})[0], rtol=0, atol=1e-5)


def test_a_cell_whose_inner_values_are_asked_for_stays_what_it_is():
    case = make_case("lstm")
    model = model_of(case, outputs=("h", "c", "i"))
    assert not any(n.op == "cell" for n in model.graph.nodes)
    x = RNG.normal(size=(1, 7, 5)).astype(np.float32)
    expected = loop(case, x[0], ("h", "c", "i"))
    for y, name in zip(model.run(x), ("h", "c", "i"), strict=True):
        np.testing.assert_allclose(y[0], expected[name], rtol=0, atol=1e-5)
