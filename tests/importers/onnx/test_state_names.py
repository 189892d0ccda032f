"""Names of states as real exporters and projects write them: each small file streams as onnxruntime threads it."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import fastrnn
from fastrnn.importers.onnx import import_onnx

ort = pytest.importorskip("onnxruntime")

# (where it is from, [(input, output) of each state, all in one class of dims], how it is found)
CONVENTIONS = [
    ("silero v5", [("state", "stateN")], "name"),
    ("silero v3", [("h0", "hn"), ("c0", "cn")], "name"),
    ("torch.onnx of an LSTM", [("h", "hy"), ("c", "cy")], "name"),
    ("torch.onnx of a cell", [("hx", "hy")], "name"),
    ("step cell", [("h_prev", "h_next")], "name"),
    ("step cell, next state without a mark", [("h_prev", "h")], "name"),
    ("step cell, numbered", [("h0", "h1")], "name"),
    ("own step cell", [("y0", "y1")], "name"),
    ("icefall zipformer", [("cached_key_0", "new_cached_key_0"), ("cached_conv1_0", "new_cached_conv1_0")], "name"),
    ("icefall zipformer of 2023", [("cached_len_0", "new_cached_len_0"), ("cached_avg_0", "new_cached_avg_0")], "name"),
    ("icefall, embedding", [("embed_states", "new_embed_states")], "name"),
    ("icefall lstm", [("h", "next_h"), ("c", "next_c")], "name"),
    ("icefall, numbered", [("state_2", "new_state_2"), ("state_3", "new_state_3")], "name"),
    ("sherpa-onnx conformer", [("attn_cache", "next_attn_cache"), ("cnn_cache", "next_cnn_cache")], "name"),
    ("wenet", [("att_cache", "r_att_cache"), ("cnn_cache", "r_cnn_cache")], "name"),
    ("wekws", [("cache", "r_cache")], "name"),
    (
        "NeMo",
        [
            ("cache_last_channel", "cache_last_channel_next"),
            ("cache_last_time", "cache_last_time_next"),
            ("cache_last_channel_len", "cache_last_channel_next_len"),
        ],
        "name",
    ),
    ("NeMo decoder", [("input_states_1", "output_states_1"), ("input_states_2", "output_states_2")], "name"),
    ("NeMo, marked", [("states_1", "next_states_1"), ("states_2", "next_states_2")], "name"),
    ("FunASR", [("in_cache0", "out_cache0"), ("in_cache1", "out_cache1")], "name"),
    ("FunASR, numbered apart", [("cache_in_0", "cache_out_0"), ("cache_in_1", "cache_out_1")], "name"),
    ("GTCRN", [("conv_cache", "conv_cache_out"), ("tra_cache", "tra_cache_out")], "name"),
    ("DeepFilterNet", [("erb_buf_in", "erb_buf_out"), ("df_buf_in", "df_buf_out")], "name"),
    ("RNNoise", [("vad_gru_state", "vad_gru_state_out"), ("noise_gru_state", "noise_gru_state_out")], "name"),
    ("openWakeWord", [("feature_buffer", "feature_buffer_new")], "name"),
    ("VITS decoder", [("hidden_in", "hidden_out")], "name"),
    ("optimum", [("past_key_values.0.key", "present.0.key"), ("past_key_values.0.value", "present.0.value")], "name"),
    (
        "optimum, seq2seq",
        [
            ("past_key_values.0.decoder.key", "present.0.decoder.key"),
            ("past_key_values.0.decoder.value", "present.0.decoder.value"),
        ],
        "name",
    ),
    ("optimum, whole name", [("past_key_values.1.key", "present_key_values.1.key")], "name"),
    ("transformers", [("past_0", "present_0"), ("past_1", "present_1")], "name"),
    ("past and present of data", [("past_x.0", "present_x.0"), ("past_x.1", "present_x.1")], "name"),
    ("camel case", [("stateIn", "stateOut"), ("cellStateIn", "cellStateOut")], "name"),
    ("capitals", [("STATE_IN", "STATE_OUT")], "name"),
    ("lengths", [("len", "len_out")], "name"),
    ("r1i", [("r1i", "r1o"), ("r2i", "r2o")], "name"),
    ("robust video matting", [("r1i", "r1o")], "name"),
    ("own names", [("old_mem", "new_mem"), ("old_sum", "new_sum")], "name"),
    ("initial and final", [("initial_state", "final_state")], "name"),
    ("tf2onnx", [("lstm/while/Placeholder_2:0", "lstm/while/Identity_2:0")], "name"),
    ("tf2onnx, signature", [("serving_default_state_in:0", "StatefulPartitionedCall:1")], "order"),
    ("keras2onnx", [("input_3", "lstm_1_1")], "order"),
    ("paddle", [("h_in", "save_infer_model/scale_1.tmp_0")], "order"),
    ("paddle2onnx", [("linear_0.tmp_0", "tanh_1.tmp_0")], "order"),
    ("old torch.onnx", [("onnx::GRU_5", "123")], "order"),
    ("torch.onnx, numbered", [("input.3", "output.2")], "order"),
    ("state of unlike names", [("encoder_state", "157")], "order"),
    ("one letter", [("a", "b")], "order"),
]
SIZE, DATA, OUT = 4, 3, 2


def step_file(states, outputs=None, mixed=True, x="x", y="y"):
    """One step of an own cell: each new state of x and its old value, and (mixed) of all states before it.

    states : (input, output) of each. outputs : their order in the file.
    """
    rng, nodes, arrays = np.random.default_rng(5), [], {}

    def weight(name, *shape):
        arrays[name] = rng.standard_normal(shape).astype(np.float32) * 0.5
        return name

    for k, (old, new) in enumerate(states):
        parts = [("x", weight(f"W{k}", DATA, SIZE), x)]
        parts += [("own", weight(f"U{k}", SIZE, SIZE), old)]
        parts += [(f"m{j}", weight(f"M{k}{j}", SIZE, SIZE), states[j][0]) for j in range(k)] if mixed else []
        terms = [f"t{k}.{name}" for name, _, _ in parts]
        nodes += [
            helper.make_node("MatMul", [source, w], [term]) for (_, w, source), term in zip(parts, terms, strict=True)
        ]
        nodes += [helper.make_node("Sum", terms, [f"s{k}"]), helper.make_node("Tanh", [f"s{k}"], [new])]
    ends = [new for _, new in states]
    nodes += [
        helper.make_node("Concat", [x, *(old for old, _ in states), *ends], ["all.of"], axis=1),
        helper.make_node("MatMul", ["all.of", weight("V", DATA + 2 * len(states) * SIZE, OUT)], [y]),
    ]
    inputs = [old for old, _ in states]

    def tensor(name, n):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["b", n])

    graph = helper.make_graph(
        nodes,
        "step",
        [tensor(x, DATA), *(tensor(n, SIZE) for n in inputs)],
        [tensor(y, OUT), *(tensor(n, SIZE) for n in outputs or ends)],
        [numpy_helper.from_array(a, n) for n, a in arrays.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return made


def threaded(made, states, xs, y="y", x="x"):
    """What onnxruntime makes of these steps, each state threaded by hand."""
    session = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    shapes = {i.name: i.shape[1] for i in session.get_inputs()}
    now = {old: np.zeros((xs.shape[1], shapes[old]), np.float32) for old, _ in states}
    found = []
    for step in xs:
        names = [y, *(new for _, new in states)]
        first, *new = session.run(names, {x: step, **now})
        found.append(first)
        now = {old: value for (old, _), value in zip(states, new, strict=True)}
    return np.stack(found)


def streams_as_onnxruntime(made, states, batch=3, steps=5, **names):
    model = fastrnn.from_onnx(made)
    assert dict(model.graph.states) == dict(states)
    xs = np.random.default_rng(1).standard_normal((steps, batch, DATA)).astype(np.float32)
    want = threaded(made, states, xs, **names)
    stream = model.stream(batch_size=batch)
    got = np.stack([stream.step(step) for step in xs])
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    one = fastrnn.from_onnx(made).stream()
    assert np.stack([one.step(step) for step in xs[:, 0]]).tobytes() == got[:, 0].tobytes()
    return model


@pytest.mark.parametrize(("where", "states", "how"), CONVENTIONS, ids=[c[0] for c in CONVENTIONS])
def test_a_convention_is_paired_and_streams(where, states, how):
    model = streams_as_onnxruntime(step_file(states), states)
    for old, new in states:
        assert f"state {old} -> {new}, found by {how}" in model.notes


def test_there_are_enough_conventions():
    assert len({tuple(c[1]) for c in CONVENTIONS}) >= 39


@pytest.mark.parametrize(
    ("where", "states", "how"), [c for c in CONVENTIONS if len(c[1]) > 1], ids=lambda v: str(v)[:24]
)
def test_states_of_equal_shape_follow_their_names_in_any_order(where, states, how):
    """Inputs in the file's order, outputs in another: order alone would give each state the other's value."""
    made = step_file(states, outputs=[new for _, new in states][::-1])
    model = streams_as_onnxruntime(made, states)
    assert all(f"state {old} -> {new}, found by name" in model.notes for old, new in states)


@pytest.mark.parametrize("outputs", [["201", "202"], ["202", "201"]])
def test_states_of_equal_shape_without_names_follow_the_dataflow(outputs):
    """The second state sees the first, as a layer above sees the one below: only one way to pair them agrees."""
    states = [("onnx::Add_3", "201"), ("onnx::Add_7", "202")]
    model = streams_as_onnxruntime(step_file(states, outputs=outputs), states)
    assert all(f"state {old} -> {new}, found by dataflow" in model.notes for old, new in states)


def crossed(states, ends, *, both=False):
    """Each new state depends on the old one of the other (both: and on its own)."""
    made = step_file(states, mixed=False)
    graph = made.graph
    a, b = (old for old, _ in states)
    for node in graph.node:
        if node.output[0] in ("t0.own", "t1.own"):
            node.input[0] = b if node.input[0] == a else a
    if both:
        weight = next(t for t in graph.initializer if t.name == "U0")
        graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(weight) * 0.3, "X"))
        sums = [n for n in graph.node if n.op_type == "Sum"]
        for name, node in zip((a, b), sums, strict=True):
            graph.node.insert(0, helper.make_node("MatMul", [name, "X"], [f"extra.{name}"]))
            node.input.append(f"extra.{name}")
    assert [o.name for o in graph.output][1:] == ends
    return made


def test_names_that_the_dataflow_contradicts_are_refused(tmp_path):
    """a_out depends on b_in alone, and b_out on a_in: either the names lie, or the states cross on purpose."""
    states = [("a_in", "a_out"), ("b_in", "b_out")]
    made = crossed(states, ["a_out", "b_out"])
    model = fastrnn.from_onnx(made)
    assert not model.graph.states
    assert not model.streamable
    with pytest.raises(fastrnn.StreamError, match=r"'a_in' looks like a state.*states=\{'a_in': 'a_out'\} or states="):
        model.stream()
    model.save(tmp_path / "crossed.fastrnn")
    with pytest.raises(fastrnn.StreamError, match="'a_in' looks like a state"):
        fastrnn.load(tmp_path / "crossed.fastrnn").stream()
    xs = np.random.default_rng(1).standard_normal((5, 2, DATA)).astype(np.float32)
    for pairs in (states, [("a_in", "b_out"), ("b_in", "a_out")]):
        stream = fastrnn.from_onnx(made, states=dict(pairs)).stream(batch_size=2)
        got = np.stack([stream.step(x) for x in xs])
        np.testing.assert_allclose(got, threaded(made, pairs, xs), rtol=1e-4, atol=1e-5)


def test_names_decide_if_each_output_depends_on_every_state():
    states = [("h_in", "h_out"), ("c_in", "c_out")]
    model = streams_as_onnxruntime(crossed(states, ["h_out", "c_out"], both=True), states)
    assert "state h_in -> h_out, found by name" in model.notes
    unnamed = [("p", "q"), ("r", "s")]
    model = fastrnn.from_onnx(crossed(unnamed, ["q", "s"], both=True))
    assert not model.graph.states  # order alone is no proof
    with pytest.raises(fastrnn.StreamError, match=r"states=\{\.\.\.\} could continue 'p' from 'q' or 's'"):
        model.stream()


def test_a_proof_by_dataflow_overrides_names():
    """What the names call c is the h of the LSTM."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[t,b,3] x, float[1,b,2] h0, float[1,b,2] c0)
        => (float[t,1,b,2] y, float[1,b,2] hn, float[1,b,2] cn)
        { y, cn, hn = LSTM <hidden_size = 2> (x, W, R, , , h0, c0) }"""
    made = onnx.parser.parse_model(text)
    rng = np.random.default_rng(3)
    for name, shape in (("W", (1, 8, 3)), ("R", (1, 8, 2))):
        made.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    graph = import_onnx(made)
    assert dict(graph.states) == {"h0": "cn", "c0": "hn"}
    assert "state h0 -> cn, found by dataflow" in graph.notes


@pytest.mark.parametrize(
    ("old", "new", "x", "y"),
    [
        ("emb", "proj", "x", "y"),  # a speaker and what comes out of it
        ("decoder_in", "decoder_out", "x", "y"),
        ("frame_in", "frame_out", "x", "y"),
        ("noise", "enhanced", "state_of_all", "y"),
        ("a", "logits", "x", "y"),
        ("mask", "final_mask", "x", "y"),
    ],
)
def test_data_of_equal_dims_are_no_state(old, new, x, y):
    made = step_file([(old, new)], x=x, y=y)
    graph = import_onnx(made)
    assert not graph.states
    assert not graph.undecided


def test_the_first_input_and_output_of_unnamed_files_are_data():
    """Without names, order and dims: 1 -> 4 has the dims of data in and out, 2 -> 5 those of a state."""
    made = step_file([("2", "5")], x="1", y="4")
    assert dict(import_onnx(made).states) == {"2": "5"}
    made.graph.output.insert(0, made.graph.output.pop())
    assert not import_onnx(made).states  # the one that may be a state comes first: it may be data too
    made = step_file([("2", "5")], x="1", y="4")
    made.graph.input.insert(0, made.graph.input.pop())
    assert not import_onnx(made).states


def window_file(old, new, written):
    """y is made of the last values and x; the last ones are kept. x: [b, 3]."""
    size = 4 if written == "dropped first" else 2
    numbers = {"zero": 0, "one": 1, "three": 3, "five": 5, "four": 4}
    cuts = {
        "of all": [helper.make_node("Slice", ["all", "three", "five", "one"], [new])],
        "of x": [helper.make_node("Slice", ["x", "one", "three", "one"], [new])],
        "dropped first": [
            helper.make_node("Slice", [old, "three", "four", "one"], ["kept"]),
            helper.make_node("Concat", ["kept", "x"], [new], axis=1),
        ],
    }
    nodes = [helper.make_node("Concat", [old, "x"], ["all"], axis=1), *cuts[written]]
    nodes.append(helper.make_node("MatMul", ["all", "V"], ["y"]))
    arrays = {k: np.int64([v]) for k, v in numbers.items()}
    arrays["V"] = np.random.default_rng(2).standard_normal((size + DATA, 1)).astype(np.float32)
    sizes = {"x": DATA, old: size, "y": 1, new: size}
    ends = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", k]) for n, k in sizes.items()}
    weights = [numpy_helper.from_array(a, n) for n, a in arrays.items()]
    graph = helper.make_graph(nodes, "window", [ends["x"], ends[old]], [ends["y"], ends[new]], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize(
    ("old", "new", "written", "how"),
    [
        ("p", "q", "of all", "dataflow"),
        ("p", "q", "dropped first", "dataflow"),
        ("seen", "more", "dropped first", "dataflow"),
        ("ctx_in", "ctx_out", "of x", "name"),  # no new value depends on an old one
        ("6", "9", "of x", "order"),
        ("old_frame", "new_frame", "of x", "name"),
    ],
)
def test_a_window_is_a_state(old, new, written, how):
    model = streams_as_onnxruntime(window_file(old, new, written), [(old, new)])
    assert f"state {old} -> {new}, found by {how}" in model.notes


def test_what_only_repeats_x_is_no_window_by_itself():
    """The end of x is what the window would be, but it may as well be there for its own sake."""
    assert not import_onnx(window_file("speaker", "tail", "of x")).states


def test_an_unchanged_input_is_no_state():
    made = step_file([("a", "b")])
    made.graph.node.append(helper.make_node("Identity", ["a"], ["same"]))
    made.graph.output[1].name = "same"
    graph = import_onnx(made)
    assert not graph.states
    assert not graph.undecided
