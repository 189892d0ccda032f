"""Inputs beside a growing cache that a stream supplies itself: masks, numbers of steps, lengths of the caches."""

import numpy as np
import pytest
from growing_caches import WIDTH, called, decoder, more_inputs
from onnx import parser

import fastrnn
from fastrnn.streaming.caches import streamed

STEPS = 12
XS = np.random.default_rng(0).standard_normal((3, STEPS, WIDTH)).astype(np.float32)
EMPTY = np.zeros((3, 2, 0, 4), np.float32)

CASES = {
    "a mask of tokens": {"mask": "input"},
    "positions counted from the mask": {"mask": "input", "position": "counted"},
    "a mask of floats": {"mask": "floats"},
    "a mask of queries and keys": {"mask": "seen"},
    "a mask that is added": {"mask": "added"},
    "numbers of steps": {"mask": "numbers"},
    "the length of the cache": {"mask": "length"},
    "the length of the cache, for positions": {"mask": "less", "position": "length"},
    "the length with the call": {"mask": "length so far"},
}


def loaded(**options):
    return fastrnn.load(decoder(**options).SerializeToString())


def shaped(model, x):
    return np.ascontiguousarray(x[..., None, :] if model.inputs[0].dims[1] == 1 else x)


@pytest.mark.parametrize("calls", ["one", "many"])
@pytest.mark.parametrize("case", CASES)
def test_a_stream_asks_for_the_steps_alone_and_answers_as_the_calls_of_the_file(case, calls):
    file = decoder(calls=calls, layers=2, **CASES[case])
    model = fastrnn.load(file.SerializeToString())
    assert streamed(model.graph).inputs == ("x",)
    stream = model.stream(3, context=STEPS)
    got = stream.push(shaped(model, XS)).reshape(XS.shape)
    np.testing.assert_allclose(got, called(file, XS, [1] * STEPS), rtol=1e-4, atol=2e-5)
    if calls == "many":
        np.testing.assert_allclose(got, called(file, XS, [5, 1, 4, 2]), rtol=1e-4, atol=2e-5)
    pool = model.pool(3, context=STEPS)
    slots = [pool.open() for _ in XS]
    pool.push(slots[:1], [shaped(model, XS[0, :5])])  # the others are five steps behind
    assert np.array_equal(pool.push(slots[1:], list(shaped(model, XS[1:])))[1].reshape(STEPS, WIDTH), got[2])
    assert np.array_equal(pool.push(slots[:1], [shaped(model, XS[0, 5:])])[0].reshape(-1, WIDTH), got[0, 5:])


@pytest.mark.parametrize("mask", ["input", "floats"])
def test_a_mask_with_zeros_hides_steps_in_a_call(mask):
    file = decoder(calls="many", mask=mask)
    model = fastrnn.load(file.SerializeToString())
    there = more_inputs(3, 4, 5)["there"].astype(np.float32 if mask == "floats" else np.int64)
    there[1, :2] = there[2, 3] = 0
    past = np.random.default_rng(1).standard_normal((3, 2, 4, 4)).astype(np.float32)
    feeds = {"x": XS[:, :5], "there": there, "past_k0": past, "past_v0": past}
    import onnxruntime

    session = onnxruntime.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"])
    want, got = session.run(None, feeds), model.run(**feeds)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)
    seen = model.run(**feeds | {"there": np.ones_like(there)})[0]
    assert np.array_equal(seen[0], got[0][0])
    assert not np.allclose(seen[1], got[0][1])


def test_a_mask_must_be_as_long_as_the_caches_and_the_call():
    model = loaded(calls="many", mask="input")
    with pytest.raises(fastrnn.ShapeError, match=r"input there: axis 1 must be 5 \(time\+time_2\), got 6"):
        model.run(XS[:, :5], np.ones((3, 6), np.int64), EMPTY, EMPTY)
    ones = np.ones((3, 5), np.int64)
    assert np.array_equal(model(XS[:, :5], ones), model.stream(3).push(XS[:, :5]))  # the caches are empty
    with pytest.raises(fastrnn.ShapeError, match="axis 1 must be 5"):
        model(XS[:, :5], ones[:, :4])


@pytest.mark.parametrize("calls", ["one", "many"])
@pytest.mark.parametrize("options", [{"mask": "weights"}, {"mask": "marks"}])
def test_what_only_looks_like_a_mask_is_refused(options, calls):
    model = loaded(calls=calls, **options)
    with pytest.raises(fastrnn.StreamError, match=r"input there.*no mask that hides steps from attention"):
        model.stream()


def test_numbers_of_another_kind_are_refused():
    file = decoder(calls="many", mask="numbers")
    for value in [*file.graph.input, *file.graph.node]:  # as the tokens of the call, which masks may depend on
        if getattr(value, "name", "") == "cache_position":
            value.name = "tokens"
        for k, name in enumerate(getattr(value, "input", ())):
            if name == "cache_position":
                value.input[k] = "tokens"
    model = fastrnn.load(file.SerializeToString())
    with pytest.raises(fastrnn.StreamError, match="which keys a query sees depends on the input tokens"):
        model.stream()


def test_a_name_that_is_a_sum_of_others_is_that_sum():
    file = parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        summed (float[b,t,4] x, float[b,n,4] c, float[b,m] all) => (float[b,m,4] y, float[b,m] z) {
        y = Concat <axis = 1> (c, x) z = Relu(all) }""")
    file.graph.input[2].type.tensor_type.shape.dim[1].dim_param = "n + t"
    model = fastrnn.load(file.SerializeToString())
    assert model.inputs[2].dims == ("batch", "time+time_2")
    feeds = [np.ones(shape, np.float32) for shape in ((2, 3, 4), (2, 5, 4), (2, 8))]
    assert [a.shape for a in model.run(*feeds)] == [(2, 8, 4), (2, 8)]
    with pytest.raises(fastrnn.ShapeError, match="axis 1 must be 8"):
        model.run(*feeds[:2], feeds[2][:, :7])
    sized = fastrnn.load(file.SerializeToString(), sizes={"n": 5})
    assert sized.inputs[2].dims == ("batch", "time+5")
    for name in ("n + q", "n - t", "n + t +", "99999999999999999999 + n", "n + n()"):  # a size of its own
        file.graph.input[2].type.tensor_type.shape.dim[1].dim_param = name
        assert fastrnn.load(file.SerializeToString()).inputs[2].dims == ("batch", "time_3")
