"""Caches that grow by the steps of each call become what a stream keeps, with the answers of the file's own calls."""

import numpy as np
import pytest
from growing_caches import WIDTH, called, decoder

import fastrnn
from fastrnn.graph import reference
from fastrnn.graph.caches import caches, empty
from fastrnn.graph.dims import evaluate
from fastrnn.streaming.caches import streamed

STEPS = 12
XS = np.random.default_rng(0).standard_normal((3, STEPS, WIDTH)).astype(np.float32)

CASES = {
    "one step": {},
    "one row": {"calls": "row", "layers": 2},
    "one step, positions": {"position": "past", "layers": 2},
    "one row, a table sliced": {"calls": "row", "position": "slice"},
    "one step, the count as a number": {"position": "number", "mask": "less"},
    "one step, a counter": {"position": "count", "layers": 2, "layout": "btf"},
    "one row, a triangle": {"calls": "row", "mask": "tril"},
    "one step, a window": {"mask": "band", "position": "past"},
    "one step, a wide window": {"mask": "far band"},
    "one step, heads last": {"layout": "bthf", "mask": "add"},
    "one step, the operator": {"form": "op", "layers": 2},
    "many steps": {"calls": "many", "mask": "tril"},
    "many steps, added": {"calls": "many", "mask": "add", "layers": 2, "layout": "btf"},
    "many steps, compared": {"calls": "many", "mask": "less", "position": "past", "layers": 2},
    "many steps, a table sliced": {"calls": "many", "mask": "less", "position": "slice", "layout": "bthf"},
    "many steps, a window": {"calls": "many", "mask": "band", "position": "past"},
    "many steps, the operator": {"calls": "many", "form": "op", "mask": "less", "layers": 2},
}  # fmt: skip


def loaded(**options):
    return fastrnn.load(decoder(**options).SerializeToString())


def shaped(model, x):
    """Steps [..., 8] in the form that a stream of the model takes."""
    one = model.inputs[0].dims[1:] == (1, WIDTH)
    return np.ascontiguousarray(x[..., None, :] if one else x)


@pytest.mark.parametrize("case", CASES)
def test_a_stream_answers_as_the_calls_of_the_file(case):
    file = decoder(**CASES[case])
    model = fastrnn.load(file.SerializeToString())
    stream = model.stream(3, context=STEPS)
    got = stream.push(shaped(model, XS)).reshape(XS.shape)
    np.testing.assert_allclose(got, called(file, XS, [1] * STEPS), rtol=1e-4, atol=2e-5)
    if CASES[case].get("calls") == "many":
        np.testing.assert_allclose(got, called(file, XS, [5, 1, 4, 2]), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("case", CASES)
def test_bits_are_the_same_alone_in_chunks_and_in_a_pool(case):
    model = loaded(**CASES[case])
    whole = model.stream(3, context=STEPS).push(shaped(model, XS))
    for row, x in enumerate(XS):
        stream = model.stream(context=STEPS)
        steps = [stream.step(shaped(model, step)) for step in x]
        assert np.stack(steps).tobytes() == whole[row].tobytes()
    pool, rng = model.pool(4, context=STEPS), np.random.default_rng(1)
    slots, at = [pool.open() for _ in XS], [0, 0, 0]
    while min(at) < STEPS:  # each at its own pace
        rows = [k for k in range(3) if at[k] < STEPS and rng.random() < 0.5]
        if rows:
            y = pool.step([slots[k] for k in rows], shaped(model, np.stack([XS[k, at[k]] for k in rows])))
        for k, answer in zip(rows, y if rows else (), strict=True):
            assert answer.tobytes() == whole[k, at[k]].tobytes()
            at[k] += 1


@pytest.mark.parametrize("case", [name for name, options in CASES.items() if options.get("calls") == "many"])
def test_in_float64_the_graph_of_a_stream_is_the_file(case):
    graph = loaded(**CASES[case]).graph
    sizes = {"batch": 3, **empty(graph)}
    kept = {n: np.zeros([evaluate(d, sizes) for d in graph.values[n].dims]) for n in caches(graph)}
    found, at = [], 0
    for n in (4, 1, 7):
        out = dict(zip(graph.outputs, reference.run(graph, {"x": XS[:, at : at + n], **kept}), strict=True))
        kept, at = {name: out[after] for name, after in graph.states.items()}, at + n
        found.append(out["y"])
    (whole,) = reference.run(streamed(graph), {"x": XS})
    np.testing.assert_allclose(whole, np.concatenate(found, 1), rtol=1e-12, atol=1e-13)


def test_a_full_cache_says_what_to_do_and_changes_nothing():
    for options in ({}, {"calls": "many", "mask": "less"}):
        model = loaded(**options)
        stream, pool = model.stream(3, context=5), model.pool(2, context=5)
        first = stream.push(shaped(model, XS[:, :5]))
        before = stream.state
        with pytest.raises(fastrnn.StreamError, match="its context of 5 steps is full"):
            stream.step(shaped(model, XS[:, 5]))
        assert all(np.array_equal(before[k], v) for k, v in stream.state.items())
        stream.reset()
        assert np.array_equal(stream.push(shaped(model, XS[:, :5])), first)
        slot, other = pool.open(), pool.open()
        pool.push([slot], [shaped(model, XS[0, :5])])
        with pytest.raises(fastrnn.StreamError, match="its context of 5 steps is full"):
            pool.step([other, slot], shaped(model, XS[:2, 5]))
        assert np.array_equal(pool.step([other], shaped(model, XS[:1, 0]))[0], first[0, 0])


def test_a_window_drops_the_oldest_steps():
    wide, narrow = loaded(), loaded(mask="band")  # of six steps
    want = narrow.stream(3).push(shaped(narrow, XS))
    assert np.array_equal(wide.stream(3, context=6, at_context="window").push(shaped(wide, XS)), want)


def test_a_step_writes_one_place_of_each_cache_in_place():
    model = loaded(layers=2)
    stream = model.stream(context=STEPS)
    for t in range(STEPS):
        before = stream.state
        stream.step(shaped(model, XS[0, t]))
        after = stream.state
        for name in (n for n in after if n[-2:] in (".k", ".v")):
            changed = np.flatnonzero((before[name] != after[name]).any((0, 2)))
            assert changed.tolist() == [t], name


@pytest.mark.parametrize("options", [{"position": "past"}, {"calls": "many", "mask": "less", "position": "past"}])
def test_snapshots_and_copies_continue_with_the_same_bits(options):
    model = loaded(**options)
    x = shaped(model, XS[0])
    whole = model.stream(context=STEPS).push(x)
    stream, pool = model.stream(context=STEPS), model.pool(3, context=STEPS)
    stream.push(x[:7])
    slot = pool.restore(stream.snapshot())
    again = pool.copy(slot)
    assert np.array_equal(pool.push([slot, again], [x[7:], x[7:]])[1], whole[7:])
    blob = pool.snapshot_all()
    restored = fastrnn.load(decoder(**options).SerializeToString()).pool(3, context=STEPS)
    assert restored.restore_all(blob)
    stream.push(x[7:9])
    late = model.stream(context=STEPS)
    late.restore(stream.snapshot())
    assert np.array_equal(late.push(x[9:]), whole[9:])


def test_the_file_keeps_its_own_calls(tmp_path):
    file = decoder(calls="many", mask="less", position="past")
    model = fastrnn.load(file.SerializeToString())
    y, k, _ = model.run(XS[:, :4], *(np.zeros((3, 2, 0, 4), np.float32),) * 2)
    assert y.shape == (3, 4, WIDTH)
    assert k.shape == (3, 2, 4, 4)
    assert np.array_equal(model(XS), model.stream(3).push(XS))  # without its caches, a call begins with empty ones
    model.save(tmp_path / "decoder.fastrnn")
    again = fastrnn.load(tmp_path / "decoder.fastrnn")
    assert again.fingerprint == model.fingerprint
    assert np.array_equal(again.stream(3).push(XS), model(XS))


def test_states_of_the_caller_decide():
    blob = decoder().SerializeToString()
    named = fastrnn.load(blob, states={"past_k0": "new_k0", "past_v0": "new_v0"})
    assert named.fingerprint == fastrnn.load(blob).fingerprint
    assert named.streamable
    counted = fastrnn.load(decoder(position="count").SerializeToString(), states={"pos": "pos_out"})
    x, nothing = XS[:1, :1], np.zeros((1, 2, 0, 4), np.float32)  # the caller passes the caches at each step
    assert len(counted.stream(1).step({"x": x, "past_k0": nothing, "past_v0": nothing})) == 3
    with pytest.raises(fastrnn.StateError, match="can't continue from"):
        fastrnn.load(blob, states={"past_k0": "new_v0"})
    half = fastrnn.load(blob, states={"past_k0": "new_k0"})
    with pytest.raises(fastrnn.StreamError, match="past_v0"):
        half.stream()


REFUSED = {
    "a query sees all steps of its call, also later ones.*sizes=.'time': 1.": {"calls": "many"},
    "which keys a query sees depends on more than their order": {"mask": "top left"},
    "what is added to its scores differs between heads": {"calls": "many", "mask": "distances"},
    "its numbers start anew at each call": {"calls": "many", "mask": "less", "position": "anew"},
    "depends on how many steps the caches hold": {"calls": "many", "mask": "less", "position": "number"},
    r"\(conv\): looks at other steps of the call": {
        "calls": "many", "mask": "less",
        "extra": "turned = Transpose <perm = [0,2,1]> (last) c = Conv <pads = [2,0], group = 8> (turned, near)"
                 " end = Transpose <perm = [0,2,1]> (c)",
    },
    r"\(reduce\): looks at other steps of the call": {
        "calls": "many", "mask": "less",
        "extra": "end = Identity(last) mean = ReduceMean <keepdims = 0> (last, one1)", "outputs": "float[b,8] mean",
    },
    "keys: int64.time.1. has a value for each step of the caches": {"mask": "less", "outputs": "int64[total] keys"},
    "its keys or values .*counts from": {  # keys with a place that is counted from the begin of the call on
        "calls": "many", "mask": "less",
        "keys": "less = Neg(n0) at = Range(less, t0, k1) af = Cast <to = 1> (at) a2 = Unsqueeze(af, one1)"
                " kh = Add(new_k, a2)",
    },
    r"its keys or values .*\(expand\): spreads time": {  # keys with the length of the cache added
        "calls": "many", "mask": "less", "keys": "nf = Cast <to = 1> (n0) kh = Add(new_k, nf)",
    },
    r"node MatMul.heads0. \(matmul\): depends on how many steps the caches hold": {
        "extra": "end = Identity(last) seen = Softmax <axis = -1> (s0)", "outputs": "float[b,2,1,total] seen",
    },
}  # fmt: skip


@pytest.mark.parametrize("text", REFUSED)
def test_what_a_stream_can_not_keep_is_refused_by_name(text):
    file = decoder(**REFUSED[text])
    if "Conv" in REFUSED[text].get("extra", ""):
        from onnx import numpy_helper

        file.graph.initializer.append(numpy_helper.from_array(np.ones((8, 1, 3), np.float32), "near"))
    model = fastrnn.load(file.SerializeToString())
    with pytest.raises(fastrnn.StreamError, match=text):
        model.stream()


@pytest.mark.parametrize("options", [{}, {"calls": "many", "mask": "less"}])
def test_an_analysis_says_that_it_can_not_follow_caches(options):
    with pytest.raises(fastrnn.ShapeError, match="past_k0 grows from call to call"):
        fastrnn.analyze(loaded(**options), XS)


def test_calls_of_one_step_serve_a_file_without_a_mask():
    file = decoder(calls="many")
    model = fastrnn.load(file.SerializeToString(), sizes={"time": 1})
    got = model.stream(3, context=STEPS).push(shaped(model, XS))
    np.testing.assert_allclose(got.reshape(XS.shape), called(file, XS, [1] * STEPS), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("names", [("a", "c"), ("c", "a"), ("h", "x")])
def test_inputs_that_are_only_joined_are_no_caches(names):
    from onnx import parser

    file = parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
        joined (float[b,t,4] {names[0]}, float[b,n,4] {names[1]}) => (float[b,m,4] y, float[b,m,4] z) {{
        y = Concat <axis = 1> ({names[0]}, {names[1]}) z = Relu(y) }}""")
    assert not fastrnn.load(file.SerializeToString()).graph.states
