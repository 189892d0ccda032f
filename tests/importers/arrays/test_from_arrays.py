"""from_arrays: any order of gates, the forms of a GRU, peepholes, directions, against loops written here in float64."""

import itertools

import numpy as np
import pytest

import fastrnn
from fastrnn.errors import FastRNNError, ModelFormatError, ShapeError

pytestmark = pytest.mark.any_isa  # how arrays are laid out; the kernels have tests of their own
INPUT, HIDDEN = 3, 5
GATES = {"lstm": "ifog", "gru": "rzn", "rnn": "i"}


def sigmoid(a):
    return 1 / (1 + np.exp(-a))


def blocks(kind, order, seed=0):
    """(name -> gate -> block) of random weights, and the arrays that hold them in this order."""
    rng = np.random.default_rng(seed)
    shapes = {"W": (HIDDEN, INPUT), "R": (HIDDEN, HIDDEN), "Wb": (HIDDEN,), "Rb": (HIDDEN,)}
    parts = {name: {g: rng.normal(size=shape) for g in GATES[kind]} for name, shape in shapes.items()}
    aliases = {"c": "g", "j": "g"} if kind == "lstm" else {"h": "n", "g": "n", "c": "n", "u": "z"}
    arrays = {name: np.concatenate([part[aliases.get(g, g)] for g in order]) for name, part in parts.items()}
    return parts, arrays


def x_of(batch=2, time=6):
    return np.random.default_rng(9).normal(size=(batch, time, INPUT)).astype(np.float32)


def walked(step, x, h0=None, c0=None):
    """y [batch, time, H] of step(x_t, h, c) -> h, c."""
    h, c = (np.zeros(HIDDEN) if s is None else s for s in (h0, c0))
    h, c, out = np.tile(h, (len(x), 1)), np.tile(c, (len(x), 1)), []
    for t in range(x.shape[1]):
        h, c = step(x[:, t].astype(np.float64), h, c)
        out.append(h)
    return np.stack(out, 1)


def lstm_step(parts, P=None, forget=False):
    P = P or dict.fromkeys("ifo", 0.0)

    def step(x, h, c):
        a = {g: x @ parts["W"][g].T + h @ parts["R"][g].T + parts["Wb"][g] + parts["Rb"][g] for g in "ifog"}
        i = sigmoid(a["i"] + P["i"] * c)
        f = 1 - i if forget else sigmoid(a["f"] + P["f"] * c)
        c = f * c + i * np.tanh(a["g"])
        return sigmoid(a["o"] + P["o"] * c) * np.tanh(c), c

    return step


def gru_step(parts, reset="after", z_keeps="old", gate=sigmoid):
    def step(x, h, c):
        a = {g: x @ parts["W"][g].T + parts["Wb"][g] for g in "rzn"}
        b = {g: h @ parts["R"][g].T + parts["Rb"][g] for g in "rzn"}
        r, z = gate(a["r"] + b["r"]), gate(a["z"] + b["z"])
        inner = r * b["n"] if reset == "after" else (r * h) @ parts["R"]["n"].T + parts["Rb"]["n"]
        n = np.tanh(a["n"] + inner)
        return (z * h + (1 - z) * n, c) if z_keeps == "old" else ((1 - z) * h + z * n, c)

    return step


def close(model, x, want):
    np.testing.assert_allclose(model(x), want, rtol=0, atol=2e-6)


ORDERS = ["".join(o) for letters in ("ifog", "ifoc") for o in itertools.permutations(letters)] + ["ijfo"]


def test_every_order_of_an_lstm():
    x = x_of()
    for order in ORDERS:
        parts, arrays = blocks("lstm", order)
        close(fastrnn.from_arrays("lstm", **arrays, order=order), x, walked(lstm_step(parts), x))


def test_every_order_and_form_of_a_gru():
    x = x_of()
    for order in map("".join, itertools.chain(*(itertools.permutations(s) for s in ("rzn", "rzh", "ruc", "rzg")))):
        parts, arrays = blocks("gru", order)
        for reset, z_keeps in itertools.product(("after", "before"), ("old", "new")):
            model = fastrnn.from_arrays("gru", **arrays, order=order, reset=reset, z_keeps=z_keeps)
            close(model, x, walked(gru_step(parts, reset, z_keeps), x))


def test_orders_default_to_pytorch_s():
    for kind, order in (("lstm", "ifgo"), ("gru", "rzn")):
        arrays = blocks(kind, order)[1]
        x = x_of()
        got = fastrnn.from_arrays(kind, **arrays)(x)
        assert got.tobytes() == fastrnn.from_arrays(kind, **arrays, order=order)(x).tobytes()


@pytest.mark.parametrize("order", ["ifgo", "iofc", "ogfi"])
def test_peepholes_lie_as_the_gates_do(order):
    parts, arrays = blocks("lstm", order)
    P = {g: np.random.default_rng(ord(g)).normal(size=HIDDEN) for g in "ifo"}
    given = np.concatenate([P[g] for g in order if g in P])
    x = x_of()
    close(fastrnn.from_arrays("lstm", **arrays, P=given, order=order), x, walked(lstm_step(parts, P), x))


def test_coupled_gates_and_initial_states():
    parts, arrays = blocks("lstm", "ifgo")
    x, h0, c0 = x_of(), np.linspace(-1, 1, HIDDEN), np.linspace(2, -1, HIDDEN)
    model = fastrnn.from_arrays("lstm", **arrays, input_forget=True, h0=h0, c0=c0)
    want = walked(lstm_step(parts, forget=True), x, h0, c0)
    close(model, x, want)
    stream = model.stream(batch_size=2)
    assert np.stack([stream.step(x[:, t]) for t in range(x.shape[1])], 1).tobytes() == model(x).tobytes()


def test_rnn_and_its_activations():
    parts, arrays = blocks("rnn", "i")
    x = x_of()

    def step(fn):
        def one(x, h, c):
            return fn(x @ parts["W"]["i"].T + h @ parts["R"]["i"].T + parts["Wb"]["i"] + parts["Rb"]["i"]), c

        return one

    close(fastrnn.from_arrays("rnn", **arrays), x, walked(step(np.tanh), x))
    close(fastrnn.from_arrays("rnn", **arrays, activations="sigmoid"), x, walked(step(sigmoid), x))
    small = {name: a * 0.3 for name, a in arrays.items()}
    parts = {name: {g: a * 0.3 for g, a in part.items()} for name, part in parts.items()}
    relu = walked(step(lambda a: np.maximum(a, 0)), x)
    close(fastrnn.from_arrays("rnn_relu", **small), x, relu)
    close(fastrnn.from_arrays("rnn", **small, activations=["relu"]), x, relu)
    clipped = walked(step(lambda a: np.tanh(np.clip(a, -0.2, 0.2))), x)
    close(fastrnn.from_arrays("rnn", **small, clip=0.2), x, clipped)
    scaled = walked(step(lambda a: np.clip(0.3 * a + 0.4, 0, 1)), x)
    close(fastrnn.from_arrays("rnn", **small, activations=[("hard_sigmoid", 0.3, 0.4)]), x, scaled)


def test_directions():
    parts, arrays = blocks("gru", "rzn")
    others, more = blocks("gru", "rzn", seed=5)
    x = x_of()
    ahead = walked(gru_step(parts), x)
    back = walked(gru_step(others), x[:, ::-1])[:, ::-1]
    close(fastrnn.from_arrays("gru", **more, direction="reverse"), x, back)
    both = {name: np.stack([arrays[name], more[name]]) for name in arrays}
    close(fastrnn.from_arrays("gru", **both, direction="bidirectional"), x, np.concatenate([ahead, back], 2))


def test_lists_and_other_dtypes_and_the_file(tmp_path):
    """JSON's lists, float16, no biases; saved and loaded it gives the same bits."""
    _, arrays = blocks("lstm", "ifgo")
    x = x_of()
    model = fastrnn.from_arrays("lstm", W=arrays["W"].tolist(), R=arrays["R"].tolist())
    want = fastrnn.from_arrays("lstm", W=arrays["W"], R=arrays["R"], Wb=np.zeros(4 * HIDDEN, np.float16))
    np.testing.assert_array_equal(model(x), want(x))
    model.save(tmp_path / "m.fastrnn")
    assert fastrnn.load(tmp_path / "m.fastrnn")(x).tobytes() == model(x).tobytes()


LSTM = blocks("lstm", "ifgo")[1]
GRU = blocks("gru", "rzn")[1]
WRONG = [
    ("lstm", {"W": LSTM["W"].T}, ShapeError, r"W is \[3, 20\], expected \[20, 20\].*transposed: give W.T"),
    ("lstm", {"R": LSTM["R"].T}, ShapeError, r"R is \[5, 20\], expected \[80, 20\].*transposed: give R.T"),
    ("gru", {"W": LSTM["W"], "R": LSTM["R"]}, ShapeError, r"R is \[20, 5\], expected \[15, 5\] \(gru: G = 3"),
    ("lstm", {"Wb": LSTM["Wb"][:-1]}, ShapeError, r"Wb is \[19\], expected \[20\]"),
    ("lstm", {"P": np.zeros(20)}, ShapeError, r"P is \[20\], expected \[15\]"),
    ("lstm", {"h0": np.zeros((2, 5))}, ShapeError, r"h0 is \[2, 5\], expected \[5\]"),
    ("lstm", {"direction": "bidirectional"}, ShapeError, "behind an axis of 2 directions"),
    ("lstm", {"direction": "backward"}, ModelFormatError, "there are forward, reverse, bidirectional"),
    ("lstm", {"W": np.array([["a"]])}, ShapeError, "expected numbers"),
    ("lstm", {"W": np.zeros((20, 0))}, ShapeError, "is empty"),
    ("lstm", {"order": "ifg"}, ModelFormatError, "must name its gates i f o and g"),
    ("lstm", {"order": "ifgc"}, ModelFormatError, "must name its gates"),
    ("gru", {**GRU, "order": "ifgo"}, ModelFormatError, "must name its gates r z and n"),
    ("lstm", {"reset": "before"}, ModelFormatError, "is a gru's, not a lstm's"),
    ("gru", {**GRU, "reset": "middle"}, ModelFormatError, "there are before and after"),
    ("gru", {**GRU, "z_keeps": "both"}, ModelFormatError, "there are old and new"),
    ("gru", {**GRU, "P": np.zeros(15)}, ModelFormatError, "P is an lstm's"),
    ("gru", {**GRU, "z_keeps": "new", "activations": ["tanh", "tanh"]}, ModelFormatError, "such as sigmoid, not tanh"),
    ("gru", {**GRU, "activations": ["tanh"]}, ModelFormatError, "takes 2 activations, got 1"),
    ("gru", {**GRU, "activations": ["tanh", "swish"]}, ModelFormatError, "unknown activation 'swish'"),
    ("lstm", {"clip": -1}, ModelFormatError, "clip must be positive"),
    ("lstm", {"kernel": 1}, ModelFormatError, "unknown kernel; it takes P, R, Rb, W"),
    ("mgu", {}, ModelFormatError, "unknown cell 'mgu'"),
    ("lstm", {"W": None}, ShapeError, "W is missing"),
]


@pytest.mark.parametrize(("kind", "changes", "error", "text"), WRONG, ids=lambda v: str(v)[:30])
def test_what_does_not_fit_is_named(kind, changes, error, text):
    with pytest.raises(error, match=text):
        fastrnn.from_arrays(kind, **{**LSTM, **changes})


def test_a_missing_array_is_named():
    with pytest.raises(FastRNNError, match="R is missing"):
        fastrnn.from_arrays("lstm", W=LSTM["W"])


def test_strings_of_numpy_mean_what_strings_mean():
    """Their repr differs, and names of models are made of such."""
    weights = {"W": np.ones((8, 3)), "R": np.ones((8, 2))}
    plain = fastrnn.from_arrays("lstm", **weights, activations=["sigmoid", "tanh", "tanh"])
    odd = fastrnn.from_arrays(np.array(["lstm"])[0], **weights, activations=list(np.array(["sigmoid", "tanh", "tanh"])))
    assert odd.fingerprint == plain.fingerprint
