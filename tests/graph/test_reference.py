"""The float64 reference's cells against three others: onnxruntime, torch in float64, Keras; and by hand."""

import itertools
import math

import numpy as np
import pytest
from rnn_cases import (
    CASES,
    CHOICES,
    DRAWN,
    RnnCase,
    expected,
    graph_of,
    make_inputs,
    make_model,
    make_weights,
    ort_run,
    ort_supports,
    pairs,
    possible,
    switches,
)

from fastrnn.errors import ShapeError
from fastrnn.graph import reference
from fastrnn.graph.cells import GATES, KERAS_ORDER, TORCH_ORDER, CellSpec, activation, reorder_gates

RNG = np.random.default_rng(7)


def named(cases):
    return pytest.mark.parametrize("case", cases, ids=[case.id for case in cases])


# ---- the list itself -------------------------------------------------------------------------------------------------


def test_the_list_is_long_and_its_names_differ():
    assert len(CASES) >= 300
    assert len({case.id for case in CASES}) == len(CASES)


@pytest.mark.parametrize("kind", GATES)
def test_every_pair_of_switches_occurs(kind):
    table = switches(kind)
    wanted = set()
    for (a, values_a), (b, values_b) in itertools.combinations(table.items(), 2):
        for x, y in itertools.product(values_a, values_b):
            if possible({"layout": 0, "opset": 14} | {a: x, b: y}):
                wanted |= pairs({a: x, b: y})
    drawn = [choice for name, choice in CHOICES.items() if name.startswith(kind)]
    assert len(drawn) == DRAWN[kind]
    assert wanted - set().union(*map(pairs, drawn)) == set()


@pytest.mark.parametrize("name", ["I", "H", "T", "batch"])
def test_every_small_size_occurs(name):
    sizes = {getattr(case, name) for case in CASES}
    assert sizes >= ({1, 2, 3, 7, 20} if name == "T" else {1, 2, 3, 5, 7})


@named(CASES)
def test_models_are_valid_onnx_and_graphs_say_the_same(case):
    import onnx

    onnx.checker.check_model(make_model(case), full_check=True)
    inputs = make_inputs(case)
    answers = reference.run(graph_of(case), inputs)
    for name, answer in zip(case.outputs, answers, strict=True):
        np.testing.assert_array_equal(answer, expected(case, inputs)[name])


# ---- onnxruntime -----------------------------------------------------------------------------------------------------

# Ten float32 ulps of a value near 1, or of the largest answer. onnxruntime's tanh is rational and good to some 3e-8 in
# absolute terms, so small answers get no smaller bound. Saturating weights make preacts, and their ulps, 12 times as
# large.
ORT_TOLERANCE = 10 * 2.0**-23


def ort_bound(case, answers):
    scale = max([1.0] + [float(np.max(np.abs(a))) for a in answers.values() if a.size])
    return ORT_TOLERANCE * scale * (12 if case.weights == "saturating" else 1)


@named(CASES)
def test_onnxruntime_agrees(case):
    inputs = make_inputs(case)
    answers = expected(case, inputs)
    for name, theirs in ort_run(case, inputs).items():
        assert theirs.shape == answers[name].shape
        np.testing.assert_allclose(theirs, answers[name], rtol=0, atol=ort_bound(case, answers), err_msg=name)


@named([case for case in CASES if ort_supports(case)])
def test_reasons_not_to_ask_onnxruntime_are_true(case):
    """When onnxruntime learns one of these, its line leaves ort_supports."""
    import onnxruntime
    from onnxruntime.capi.onnxruntime_pybind11_state import Fail, NotImplemented, RuntimeException

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    inputs = make_inputs(case)
    answers = expected(case, inputs)
    try:
        session = onnxruntime.InferenceSession(
            make_model(case).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        theirs = dict(zip(case.outputs, session.run(list(case.outputs), inputs), strict=True))
    except (Fail, NotImplemented, RuntimeException):
        assert "refuses" in ort_supports(case)
        return
    assert "gives 0" in ort_supports(case)
    assert any(np.max(np.abs(theirs[name] - answers[name])) > ort_bound(case, answers) for name in case.outputs)


def test_most_cases_go_to_onnxruntime_as_they_stand():
    assert sum(ort_supports(case) is None for case in CASES) >= 180


# ---- torch -----------------------------------------------------------------------------------------------------------


def torch_supports(case: RnnCase) -> bool:
    """torch's modules know no lengths of 0, clip, peephole, coupled gates; its GRU resets after the product; and a
    lone reverse layer is asked by flipping x, which ragged rows would need row by row."""
    allowed = {"rnn": [(), ("relu",)], "lstm": [()], "gru": [()]}[case.kind]
    names = tuple(name.lower() for name, _, _ in case.activations)
    return (
        names[: len(names) // case.D] in allowed
        and len(set(names)) <= 1
        and case.clip is None
        and not case.peephole
        and not case.input_forget
        and (case.kind != "gru" or case.linear_before_reset)
        and case.lengths not in ("zeros", "all_zero")
        and (case.direction != "reverse" or case.lengths is None)
    )


TORCH_CASES = [case for case in CASES if torch_supports(case)]


def torch_module(case: RnnCase):
    import torch

    options = {"nonlinearity": "relu"} if case.kind == "rnn" and case.activations else {}
    make = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[case.kind]
    module = make(case.I, case.H, bias=case.bias, bidirectional=case.D == 2, dtype=torch.float64, **options)
    weights, GH = make_weights(case), case.G * case.H
    state = {}
    for d in range(case.D):
        parts = {"weight_ih": weights["W"][d], "weight_hh": weights["R"][d]}
        if case.bias:
            parts |= {"bias_ih": weights["B"][d][:GH], "bias_hh": weights["B"][d][GH:]}
        for name, array in parts.items():
            # Rows of torch's gates, taken from ONNX's: the inverse of what an importer does.
            mine = {"rnn": "i", "lstm": "iofc", "gru": "zrh"}[case.kind]
            blocks = dict(zip(mine, np.split(array.astype(np.float64), len(mine)), strict=True))
            joined = np.concatenate([blocks[gate] for gate in TORCH_ORDER[case.kind]])
            state[f"{name}_l0" + ("_reverse" if d else "")] = torch.from_numpy(joined)
    module.load_state_dict(state)
    return module


def torch_run(case: RnnCase, inputs) -> dict[str, np.ndarray]:
    import torch
    from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

    swap = (lambda a: a.swapaxes(0, 1)) if case.layout else (lambda a: a)
    x = swap(inputs["X"]).astype(np.float64)
    x = np.ascontiguousarray(x[::-1] if case.direction == "reverse" else x)
    zeros = np.zeros((case.D, case.batch, case.H))
    h0, c0 = (
        torch.from_numpy(np.ascontiguousarray(swap(inputs[n])).astype(np.float64) if n in inputs else zeros.copy())
        for n in ("initial_h", "initial_c")
    )
    sequence = torch.from_numpy(x)
    if case.lengths is not None:
        lengths = torch.from_numpy(inputs["sequence_lens"].astype(np.int64))
        sequence = pack_padded_sequence(sequence, lengths, enforce_sorted=False)
    with torch.no_grad():
        y, state = torch_module(case)(sequence, (h0, c0) if case.kind == "lstm" else h0)
    if case.lengths is not None:
        y, _ = pad_packed_sequence(y, total_length=case.T)
    h_n, c_n = state if case.kind == "lstm" else (state, c0)
    y = y.numpy().reshape(case.T, case.batch, case.D, case.H).transpose(0, 2, 1, 3)
    y = y[::-1] if case.direction == "reverse" else y
    answers = {
        "Y": y.transpose(2, 0, 1, 3) if case.layout else y,
        "Y_h": swap(h_n.numpy()),
        "Y_c": swap(c_n.numpy()),
    }
    return {name: answers[name] for name in case.outputs}


@named(TORCH_CASES)
def test_torch_agrees_in_float64(case):
    inputs = make_inputs(case)
    answers = expected(case, inputs)
    scale = max([1.0] + [float(np.max(np.abs(a))) for a in answers.values()])
    for name, theirs in torch_run(case, inputs).items():
        np.testing.assert_allclose(theirs, answers[name], rtol=0, atol=1e-12 * scale, err_msg=name)


def test_torch_is_asked_about_each_kind_and_direction():
    asked = {(case.kind, case.direction) for case in TORCH_CASES}
    assert asked == set(itertools.product(GATES, ("forward", "reverse", "bidirectional")))
    assert {case.lengths for case in TORCH_CASES} >= {None, "mixed"}


# ---- Keras -----------------------------------------------------------------------------------------------------------

# Keras's name -> ours. Keras 3's hard_sigmoid is relu6(x + 3) / 6, its leaky_relu slopes 0.2.
KERAS_ACTIVATIONS = {
    "tanh": activation("tanh"),
    "sigmoid": activation("sigmoid"),
    "relu": activation("relu"),
    "hard_sigmoid": activation("hard_sigmoid", 1 / 6, 0.5),
    "softsign": activation("softsign"),
    "softplus": activation("softplus"),
    "elu": activation("elu", 1.0),
    "leaky_relu": activation("leaky_relu", 0.2),
    "linear": activation("affine", 1.0, 0.0),
}
KERAS_TOLERANCE = 3e-6  # times the largest answer; the other form of a GRU is wrong by 1e-1
# kind, reset_after, activation, recurrent_activation
KERAS_FORMS = [
    *(("rnn", None, name, None) for name in ("tanh", "relu", "softsign", "softplus", "elu", "leaky_relu", "linear")),
    *(("lstm", None, a, r) for a, r in (("tanh", "sigmoid"), ("softsign", "hard_sigmoid"), ("elu", "sigmoid"))),
    *(("gru", after, a, r) for after in (False, True) for a, r in (("tanh", "sigmoid"), ("relu", "hard_sigmoid"))),
]


@pytest.mark.parametrize("masked", [False, True], ids=["all_steps", "masked"])
@pytest.mark.parametrize("backwards", [False, True], ids=["forwards", "go_backwards"])
@pytest.mark.parametrize(("kind", "after", "name", "gate_name"), KERAS_FORMS)
def test_keras_agrees(kind, after, name, gate_name, backwards, masked):
    import keras
    import torch

    if backwards and masked:
        # Keras walks the padding first and holds the state there: the same steps as ours, in another place of y.
        places = "last state only"
    else:
        places = "every step"
    T, batch, I, H, G = 7, 3, 4, 5, GATES[kind]  # noqa: E741
    W, R, Wb, Rb = (0.5 * RNG.normal(size=shape) for shape in ((G * H, I), (G * H, H), (G * H,), (G * H,)))
    if not after:
        Rb = np.zeros(G * H)  # Keras has one bias, except for the GRU that resets after the product
    acts = [KERAS_ACTIVATIONS[name]]
    if kind != "rnn":
        acts = [KERAS_ACTIVATIONS[gate_name], *acts * (2 if kind == "lstm" else 1)]
    spec = CellSpec(kind, I, H, tuple(acts), reverse=backwards, linear_before_reset=bool(after))
    options = {"activation": name, "return_sequences": True, "return_state": True, "go_backwards": backwards}
    options |= {} if kind == "rnn" else {"recurrent_activation": gate_name}
    options |= {"reset_after": after} if kind == "gru" else {}
    make = {"rnn": keras.layers.SimpleRNN, "lstm": keras.layers.LSTM, "gru": keras.layers.GRU}[kind]
    layer = make(H, dtype="float64", **options)
    layer.build((batch, T, I))

    def theirs(array):  # gates in Keras's order
        mine = {"rnn": "i", "lstm": "iofc", "gru": "zrh"}[kind]
        blocks = dict(zip(mine, np.split(array, G), strict=True))
        return np.concatenate([blocks[gate] for gate in KERAS_ORDER[kind]])

    bias = np.stack([theirs(Wb), theirs(Rb)]) if after else theirs(Wb)
    # float64 tensors: Keras on torch makes float32 of arrays on their way in, and of products on their way out, so that
    # only its fused LSTM and GRU, where torch computes them, are float64 throughout. Hence the float32 tolerance.
    layer.set_weights([torch.from_numpy(a.copy()) for a in (theirs(W).T, theirs(R).T, bias)])
    x, h0, c0 = RNG.normal(size=(T, batch, I)), RNG.normal(size=(batch, H)), RNG.normal(size=(batch, H))
    lengths = np.array([7, 3, 1]) if masked else None
    mask = np.arange(T) < lengths[:, None] if masked else None
    states = [torch.from_numpy(a) for a in ([h0, c0] if kind == "lstm" else [h0])]
    rows = torch.from_numpy(x.swapaxes(0, 1).copy())
    outputs = layer(rows, initial_state=states, mask=None if mask is None else torch.from_numpy(mask))
    y, h_n, *c_n = (a.detach().numpy() for a in outputs)

    ours_y, ours_h, ours_c = reference.cell(spec, x, W, R, Wb, Rb, None, h0, c0, lengths)
    np.testing.assert_allclose(h_n, ours_h, rtol=0, atol=KERAS_TOLERANCE * max(1, np.abs(ours_h).max()))
    if kind == "lstm":
        np.testing.assert_allclose(c_n[0], ours_c, rtol=0, atol=KERAS_TOLERANCE * max(1, np.abs(ours_c).max()))
    if places == "every step":
        y = y.swapaxes(0, 1)[::-1] if backwards else y.swapaxes(0, 1)  # Keras gives them in the order it made them
        y = np.where((mask.T if masked else np.ones((T, batch), bool))[:, :, None], y, 0)
        np.testing.assert_allclose(y, ours_y, rtol=0, atol=KERAS_TOLERANCE * max(1, np.abs(ours_y).max()))


# ---- by hand ---------------------------------------------------------------------------------------------------------


def sig(v):
    return 1 / (1 + math.exp(-v))


def test_one_lstm_step_by_hand():
    """Gates i o f c, peepholes i o f; o sees the new c; clip is before f and g and not before h."""
    W, R, Wb, Rb = [[0.1], [0.2], [0.3], [0.4]], [[0.5], [0.6], [0.7], [0.8]], [0.01, 0.02, 0.03, 0.04], [0.1] * 4
    x, h, c, P = 0.9, -0.3, 1.7, [0.11, 0.12, 0.13]
    i = sig(0.1 * x + 0.5 * h + 0.11 + 0.11 * c)
    f = sig(min(0.3 * x + 0.7 * h + 0.13 + 0.13 * c, 0.25))
    c_tilde = math.tanh(min(0.4 * x + 0.8 * h + 0.14, 0.25))
    new_c = f * c + i * c_tilde
    assert new_c > 0.25  # so a clip before h would show
    o = sig(min(0.2 * x + 0.6 * h + 0.12 + 0.12 * new_c, 0.25))
    spec = CellSpec("lstm", 1, 1, clip=0.25)
    y, h_n, c_n = reference.cell(spec, [[[x]]], W, R, Wb, Rb, P, [[h]], [[c]])
    assert c_n[0, 0] == pytest.approx(new_c, abs=1e-15)
    assert h_n[0, 0] == y[0, 0, 0] == pytest.approx(o * math.tanh(new_c), abs=1e-15)


@pytest.mark.parametrize("after", [False, True])
def test_one_gru_step_by_hand(after):
    """z keeps: h = (1 - z) n + z h; the two forms differ in what r multiplies."""
    W, R, Wb, Rb = [[0.1], [0.2], [0.3]], [[0.5], [0.6], [0.7]], [0.01, 0.02, 0.03], [0.1, 0.2, 0.9]
    x, h = 0.9, -0.8
    z = sig(0.1 * x + 0.5 * h + 0.11)
    r = sig(0.2 * x + 0.6 * h + 0.22)
    n = math.tanh(0.3 * x + 0.03 + (r * (0.7 * h + 0.9) if after else 0.7 * (r * h) + 0.9))
    spec = CellSpec("gru", 1, 1, linear_before_reset=after)
    y, h_n, _ = reference.cell(spec, [[[x]]], W, R, Wb, Rb, None, [[h]])
    assert h_n[0, 0] == y[0, 0, 0] == pytest.approx((1 - z) * n + z * h, abs=1e-15)


@pytest.mark.parametrize("kind", GATES)
def test_a_row_with_fewer_steps_is_that_row_alone(kind):
    """Ragged rows in one batch give the very numbers of each row run alone at its own length."""
    spec = CellSpec(kind, 3, 4, reverse=True)
    W, R = RNG.normal(size=(spec.gates * 4, 3)), RNG.normal(size=(spec.gates * 4, 4))
    x, h0, c0 = RNG.normal(size=(6, 4, 3)), RNG.normal(size=(4, 4)), RNG.normal(size=(4, 4))
    lengths = [6, 0, 2, 5]
    y, h_n, c_n = reference.cell(spec, x, W, R, h0=h0, c0=c0, lengths=lengths)
    for row, length in enumerate(lengths):
        one = slice(row, row + 1)
        alone = reference.cell(spec, x[:length, one], W, R, h0=h0[one], c0=c0[one])
        np.testing.assert_allclose(y[:length, one], alone[0], rtol=0, atol=1e-15)
        np.testing.assert_allclose(h_n[one], alone[1], rtol=0, atol=1e-15)
        np.testing.assert_allclose(c_n[one], alone[2], rtol=0, atol=1e-15)
        assert not y[length:, row].any()
    np.testing.assert_array_equal(h_n[1], h0[1])
    np.testing.assert_array_equal(c_n[1], c0[1])


@pytest.mark.parametrize(("T", "batch"), [(0, 2), (3, 0), (0, 0)])
@pytest.mark.parametrize("kind", GATES)
def test_nothing_to_do_is_no_error(kind, T, batch):
    spec = CellSpec(kind, 3, 4)
    W, R, h0 = np.ones((spec.gates * 4, 3)), np.ones((spec.gates * 4, 4)), RNG.normal(size=(batch, 4))
    y, h_n, c_n = reference.cell(spec, np.ones((T, batch, 3)), W, R, h0=h0)
    assert y.shape == (T, batch, 4)
    assert c_n.shape == (batch, 4)
    if T == 0:
        np.testing.assert_array_equal(h_n, h0)


def test_inputs_are_left_alone():
    spec = CellSpec("lstm", 2, 3)
    arrays = [RNG.normal(size=s) for s in ((4, 2, 2), (12, 2), (12, 3), (12,), (12,), (9,), (2, 3), (2, 3))]
    copies = [a.copy() for a in arrays]
    reference.cell(spec, *arrays, np.array([4, 2]))
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("lengths", [[3, -1], [4, 0]])
def test_lengths_outside_the_steps_are_refused(lengths):
    with pytest.raises(ShapeError, match=r"lengths must lie in 0\.\.3"):
        reference.cell(CellSpec("rnn", 1, 1), np.ones((3, 2, 1)), [[1]], [[1]], lengths=lengths)


def test_saturation_and_special_values():
    """No overflow warning at either end, NaN stays in its own row."""
    spec = CellSpec("lstm", 1, 1)
    x = np.array([[[1e30], [-1e30], [np.nan], [0.5]]])
    y, _, c_n = reference.cell(spec, x, [[1]] * 4, [[1]] * 4)
    assert np.isnan(y[0, :, 0]).tolist() == [False, False, True, False]
    assert c_n[0, 0] == 1.0
    assert y[0, 1, 0] == 0.0


def test_gate_orders_are_permutations_of_one_another():
    """reorder_gates undoes the order that the torch and Keras checks above build."""
    blocks = np.arange(8.0).reshape(8, 1)
    by_gate = dict(zip("iofc", np.split(blocks, 4), strict=True))
    torch_order = np.concatenate([by_gate[gate] for gate in TORCH_ORDER["lstm"]])
    np.testing.assert_array_equal(reorder_gates(torch_order, "lstm", TORCH_ORDER["lstm"]), blocks)
