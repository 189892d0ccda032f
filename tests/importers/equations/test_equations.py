"""from_equations: cells that no framework has, against a NumPy loop; whole, streamed, by chunk, in a batch."""

import re
from pathlib import Path

import numpy as np
import pytest
from equation_cases import CELLS, FUSED, loop, make_case

import fastrnn
from fastrnn import ModelFormatError, ShapeError
from fastrnn.graph import reference
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
    "also read three steps late": (
        "rnn", "h = tanh(W @ x + R @ prev(h)); y = V @ prev(h, 3)", {"W": (4, 3), "R": (4, 4), "V": (2, 4)}),
}  # fmt: skip


@pytest.mark.parametrize("also", ["h + prev(c)", "h + prev(c, 2)", "prev(f) * h"])
def test_a_cell_whose_inside_others_read_one_step_late(also):
    """A memory cell's c is not to be had step by step from a cell, so the cycle stays as it is written."""
    text = f"""f = sigmoid(W @ x + R @ prev(h)); c = f * prev(c) + (1 - f) * tanh(V @ x + S @ prev(h))
    o = sigmoid(V @ x); h = o * tanh(c); y = {also}"""
    arrays = arrays_of({"W": (4, 3), "R": (4, 4), "V": (4, 3), "S": (4, 4)})
    feeds = {"x": RNG.normal(size=(2, 6, 3)).astype(np.float32)}
    (expected,) = reference.run(from_equations(text, arrays), feeds)
    np.testing.assert_allclose(fastrnn.from_equations(text, **arrays)(feeds["x"]), expected, rtol=0, atol=1e-6)


def test_numbers_that_float32_can_not_hold():
    for where in ({"W": np.full((2, 2), 1e300)}, {"W": np.ones((2, 2)), "initial": {"h": np.full(2, -1e39)}}):
        with pytest.raises(ModelFormatError, match=r"(W|h).* has numbers up to 1e\+\d+, which float32 can't hold"):
            fastrnn.from_equations("h = tanh(W @ x + prev(h))", **where)
    with pytest.raises(ModelFormatError, match="which float32 can't hold"):
        fastrnn.from_arrays("rnn", W=np.full((2, 2), 1e300), R=np.ones((2, 2)))


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


# ---- pools, files, threads -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lstm_two_steps_back", "slstm", "convolutional", "forget_and_output"])
def test_pools_files_and_threads_have_the_same_bits(name, tmp_path):
    case = make_case(name, seed=3)
    model = model_of(case, threads=1)
    x = RNG.normal(size=(5, 12, model.inputs[0].dims[-1])).astype(np.float32)
    y = model(x)
    pool = model.pool(capacity=5)
    slots = [pool.open() for _ in range(5)]
    order = np.array([3, 0, 4, 1, 2])
    got = np.stack([pool.step(np.array(slots)[order], x[order, t]) for t in range(12)], 1)
    assert np.array_equal(got, y[order])
    blob = pool.snapshot(slots[2])
    pool.close(slots[2])
    again = pool.restore(blob)
    longer = model(np.concatenate([x, x[:, :1]], 1))
    assert np.array_equal(pool.step(np.array([again]), x[2:3, 0]), longer[2:3, 12])
    model.save(tmp_path / "cell.fastrnn")
    assert np.array_equal(fastrnn.load(tmp_path / "cell.fastrnn")(x), y)
    assert np.array_equal(model_of(case, threads=2)(x), y)


def test_a_heavy_cycle_shared_by_threads_has_the_same_bits():
    case = make_case("lstm_two_steps_back", I=96, H=256)
    x = RNG.normal(size=(64, 4, 96)).astype(np.float32)
    assert np.array_equal(model_of(case, threads=2)(x), model_of(case, threads=1)(x))


def test_states_are_shown_set_and_reset():
    case = make_case("lstm_two_steps_back", seed=4)
    model = model_of(case)
    assert sorted((s.name, s.dims) for s in model.states) == [("c", ("batch", 8)), ("h", ("batch", 16))]
    x = RNG.normal(size=(2, 9, 5)).astype(np.float32)
    stream = model.stream(batch_size=2)
    stream.push(x[:, :4])
    kept = stream.state
    rest = stream.push(x[:, 4:])
    stream.reset()
    stream.state = kept
    assert np.array_equal(stream.push(x[:, 4:]), rest)
    whole = loop(case, x[0, :4], ("h",))["h"]
    np.testing.assert_allclose(kept["h"][0], whole[-2:].ravel(), rtol=0, atol=1e-5)


# ---- options ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lstm_two_steps_back", "lstm"])
def test_initial_states(name):
    case = make_case(name, seed=5)
    h, c = RNG.normal(size=(2, 8)).astype(np.float32)
    model = model_of(case, initial={"h": h, "c": c})
    x = RNG.normal(size=(2, 6, 5)).astype(np.float32)
    expected = np.stack([loop(case, row, ("h",), {"h": h.astype(float), "c": c.astype(float)})["h"] for row in x])
    np.testing.assert_allclose(model(x), expected, rtol=0, atol=1e-5)
    assert np.array_equal(model.stream(batch_size=2).push(x), model(x))


def test_an_initial_state_for_each_step_ago():
    model = fastrnn.from_equations("h = prev(h, 3) + W @ x", W=np.eye(2), initial={"h": [[1, 2], [3, 4], [5, 6]]})
    y = model(np.zeros((1, 5, 2), np.float32))[0]
    assert y.tolist() == [[5, 6], [3, 4], [1, 2], [5, 6], [3, 4]]
    assert np.array_equal(model.stream().push(np.zeros((5, 2), np.float32)), y)


def test_several_inputs_and_outputs():
    text = "a = W @ x + V @ u; s = prev(s) + a; m = mean(s); p = softmax(concat(s, m)); d = prev(x); n = prev(n) + 1"
    W, V = RNG.normal(size=(2, 3, 4)).astype(np.float32)
    model = fastrnn.from_equations(text, inputs=("x", "u"), outputs=("p", "d", "n"), W=W, V=V)
    assert [(t.name, t.dims) for t in model.outputs] == [
        ("p", ("batch", "time", 4)), ("d", ("batch", "time", 4)), ("n", ("batch", "time"))
    ]  # fmt: skip
    x, u = RNG.normal(size=(2, 2, 6, 4)).astype(np.float32)
    p, d, n = model.run(x=x, u=u)
    s = np.cumsum(x @ W.T + u @ V.T, 1)
    e = np.exp(np.concatenate([s, s.mean(-1, keepdims=True)], -1))
    np.testing.assert_allclose(p, e / e.sum(-1, keepdims=True), atol=1e-5)
    assert np.array_equal(d, np.concatenate([np.zeros((2, 1, 4)), x[:, :-1]], 1))
    assert n.tolist() == [[1, 2, 3, 4, 5, 6]] * 2
    stream = model.stream(batch_size=2)
    parts = [stream.push((x[:, a:b], u[:, a:b])) for a, b in ((0, 1), (1, 1), (1, 6))]
    for k, whole in enumerate((p, d, n)):
        assert np.array_equal(np.concatenate([part[k] for part in parts], 1), whole)


def test_features_of_several_axes():
    """Channels of a convolution, a product over the first of two axes, powers, slices, numbers."""
    text = "k = conv1d(K, x); h = 0.5 * tanh(k)**3 + prev(h) / 2; m = V @ h; y = m[1:4] - -m[:3]"
    K, V = RNG.normal(size=(2, 3, 4)).astype(np.float32), RNG.normal(size=(3, 2)).astype(np.float32)
    model = fastrnn.from_equations(text, inputs={"x": (3, 5)}, K=K, V=V)
    x = RNG.normal(size=(2, 4, 3, 5)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (0, 0), (0, 0), (1, 2)))
    k = sum(np.einsum("oc,btcl->btol", K[:, :, j], padded[..., j : j + 5]) for j in range(4))
    h = np.zeros((2, 2, 5))
    for t in range(4):
        h = 0.5 * np.tanh(k[:, t]) ** 3 + h / 2
        m = V @ h
        np.testing.assert_allclose(model(x)[:, t], m[..., 1:4] + m[..., :3], atol=1e-5)


# ---- what is wrong with a text, said by line -------------------------------------------------------------------------

ARRAYS = {"W": np.ones((4, 3)), "R": np.ones((4, 4)), "b": np.ones(4)}
WRONG = {
    "h = W @ x +": (ModelFormatError, "equation in line 1"),
    "": (ModelFormatError, "0 equations"),
    "h = W @ x; import os": (ModelFormatError, "equation 2 .import os.: expected name = expression"),
    "h = __import__('os').system('true')": (ModelFormatError, "is not a function that is known here"),
    "h = (lambda: W)() @ x": (ModelFormatError, "is not a function that is known here"),
    "h = W.T @ x": (ModelFormatError, "W.T is not part of the grammar"),
    "h = [W for W in x]": (ModelFormatError, "is not part of the grammar"),
    "h = W @ x if b else R": (ModelFormatError, "is not part of the grammar"),
    "h += W @ x": (ModelFormatError, "expected name = expression"),
    "h, c = W @ x": (ModelFormatError, "expected name = expression"),
    "h = tanh(W @ q)": (ModelFormatError, "q is neither a given array .W. nor assigned before"),
    "h = tanh(h + W @ x)": (ModelFormatError, r"its value one step ago is prev\(h\)"),
    "h = W @ x; h = R @ h": (ModelFormatError, "equation 2.*h is assigned twice"),
    "W = x": (ModelFormatError, "W is an array already"),
    "x = W @ x": (ModelFormatError, "x is an input already"),
    "tanh = W @ x": (ModelFormatError, "tanh is a function already"),
    "h = tanh + W @ x": (ModelFormatError, "tanh is a function: write"),
    "h = tanh(W @ x, b)": (ModelFormatError, "tanh takes 1 arguments, got 2"),
    "h = norm(W @ x, eps=1)": (ModelFormatError, "norm takes 1 to 3 arguments and epsilon=number"),
    "h = W @ prev(x, 0)": (ModelFormatError, "prev takes a name and how many steps ago"),
    "h = W @ prev(x, -1)": (ModelFormatError, "prev takes a name and how many steps ago"),
    "h = W @ x + prev(R @ x)": (ModelFormatError, "prev takes a name"),
    "h = W @ x + prev(g)": (ModelFormatError, r"prev\(g\), but g is never assigned"),
    "h = W @ x + prev(b)": (ModelFormatError, r"prev\(b\), but b is an array"),
    "h = (W @ x) ** 0.5": (ModelFormatError, "a power is a whole number from 1 to 16, got 0.5"),
    "h = (W @ x)[::2]": (ModelFormatError, "features are cut as"),
    "h = (W @ x)[3:9]": (ShapeError, r"the features are \[4\]"),
    "h = W @ x + True": (ModelFormatError, "True is not a number"),
    "h = W @ x + 1e99": (ModelFormatError, "is not a number that fits"),
    "h = W @ x + 'a'": (ModelFormatError, "is not a number"),
    "h = W @ x; y = W @ h": (ShapeError, r"equation 2 .y = W @ h.: W @ h: \[4, 3\] @ \[4\]: 3 is expected, got 4"),
    "h = W @ x; y = R @ x": (ShapeError, r"R @ x: \[4, 4\] @ \[3\]: 4 is expected, got 3"),
    "h = R @ prev(h) + (W @ x)[:3]": (ShapeError, "don't go together"),
    "h = sum(W @ x); y = R @ prev(h)": (ShapeError, r"R @ prev\(h\): \[4, 4\] @ \[1\]: 4 is expected, got 1"),
    "h = (W @ x) @ tanh(W @ x)": (ShapeError, r"\[4\] @ \[4\]: of two values, @ takes .* write sum\(a \* b\)"),
    "h = outer(W @ x, x) @ (W @ x)": (ShapeError, r"\[4, 3\] @ \[4\]: of two values"),
    "h = outer(W @ x, 2)": (ShapeError, "outer takes features .* a single number"),
    "h = reshape(W @ x, 3)": (ShapeError, r"the features \[4\] can't be put into \[3\]"),
    "h = reshape(W @ x, x)": (ModelFormatError, "reshape takes whole numbers"),
    "h = sum(W @ x, 1)": (ShapeError, r"axis 1 of the features \[4\]"),
    "h = sum(W @ x, 0.5)": (ModelFormatError, "sum takes whole numbers"),
    "h = where(W @ x, 1, 2)": (ModelFormatError, "where takes one comparison"),
    "h = where(0 < x < 1, W @ x, 2)": (ModelFormatError, "where takes one comparison"),
    "h = W @ x < 1": (ModelFormatError, "is not part of the grammar"),
    "h = where(b < W @ x, b, clip(W @ x, -1, 1)) + amax(W @ x)": (None, ""),
    "h = tanh(x) + prev(h)": (ShapeError, "no equation gives the size of x; give inputs="),
    "h = conv1d(x, b) + W @ x": (ShapeError, "weights are an array"),
    "h = conv1d(W, x)": (ShapeError, "weights are an array"),
    "h = W @ x + conv1d(b, b)": (ModelFormatError, "conv1d of arrays alone"),
    "h = norm(W @ x, x)": (ShapeError, "argument 2 must be an array"),
    "h = softmax(prev(n)); n = prev(n) + 1 + sum(W @ x)[0:1]": (None, ""),
    "h = concat(W @ x, 1)": (ShapeError, "concat of a single number"),
    "h = " + "-" * 100 + "x": (ModelFormatError, "nested"),
    "h = " + "(" * 300 + "x" + ")" * 300: (ModelFormatError, "equation"),
    "x = 1\x00": (ModelFormatError, "equation"),
    "a = W @ x; " * 501: (ModelFormatError, "equations; at most 500"),
    "h = W @ x" + " " * 30000: (ModelFormatError, "at most 20000 characters"),
}


@pytest.mark.any_isa
@pytest.mark.parametrize("text", sorted(WRONG), ids=lambda text: text[:40])
def test_what_is_wrong_is_said_with_the_equation(text):
    error, words = WRONG[text]
    names = {name: array for name, array in ARRAYS.items() if name in text.replace("tanh", "").replace("sub", "")}
    if error is None:
        fastrnn.from_equations(text, **names)
        return
    with pytest.raises(error, match=words):
        fastrnn.from_equations(text, **names)


@pytest.mark.any_isa
def test_wrong_options():
    with pytest.raises(ModelFormatError, match=r"outputs= .'q',. must be some of the assigned names, each once: h"):
        fastrnn.from_equations("h = W @ x", outputs="q", W=np.ones((4, 3)))
    with pytest.raises(ModelFormatError, match=r"initial= names c, but no equation uses prev\(\)"):
        fastrnn.from_equations("h = W @ x + prev(h)", initial={"c": 1}, W=np.ones((4, 3)))
    with pytest.raises(ShapeError, match=r"initial\['h'\] is \[3\]; \[4\] is expected"):
        fastrnn.from_equations("h = W @ x + prev(h)", initial={"h": np.zeros(3)}, W=np.ones((4, 3)))
    with pytest.raises(ModelFormatError, match="no equation uses the array V"):
        fastrnn.from_equations("h = W @ x", W=np.ones((4, 3)), V=np.ones(3))
    with pytest.raises(ModelFormatError, match="no equation uses the input u"):
        fastrnn.from_equations("h = W @ x", inputs=("x", "u"), W=np.ones((4, 3)))
    with pytest.raises(ShapeError, match=r"4 elsewhere|3 is expected, got 4"):
        fastrnn.from_equations("h = W @ x", inputs={"x": 4}, W=np.ones((4, 3)))
    with pytest.raises(ModelFormatError, match="inputs= names each input"):
        fastrnn.from_equations("h = W @ x", inputs={"x": -1}, W=np.ones((4, 3)))
    with pytest.raises(ModelFormatError, match="array W is of complex128"):
        fastrnn.from_equations("h = W @ x", W=np.ones((4, 3)) * 1j)
    with pytest.raises(ModelFormatError, match="array W"):
        fastrnn.from_equations("h = W @ x", W=[[1, 2], [3]])


def test_the_guide_runs(tmp_path, monkeypatch):
    """Every block of docs/guide/equations.md, one after the other."""
    text = (Path(__file__).resolve().parents[3] / "docs" / "guide" / "equations.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names = {}
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for block in blocks:
        exec(compile(block, "docs/guide/equations.md", "exec"), names)
    assert len(blocks) == 4
