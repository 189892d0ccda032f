"""A cache in front of each chunk and a growing cache in one file: a convolution whose tail the caller hands on, beside
attention over all steps so far."""

import numpy as np
import onnx
import pytest
from growing_caches import WIDTH, decoder
from onnx import numpy_helper

import fastrnn

STEPS = 12
XS = np.random.default_rng(0).standard_normal((3, STEPS, WIDTH)).astype(np.float32)
BEHIND = (
    "turned = Transpose <perm = [0,2,1]> (last) whole = Concat <axis = 2> (conv, turned) "
    "new_conv = Slice(whole, minus2, far, ax2) c = Conv <group = 8> (whole, near) end = Transpose <perm = [0,2,1]> (c)"
)
NUMBERS = {"minus2": np.int64([-2]), "far": np.int64([2**62]), "ax2": np.int64([2]), "ax1": np.int64([1])}
CASES = {
    "one step": {"calls": "one"},
    "many steps": {"calls": "many", "mask": "less"},
    "many steps, positions": {"calls": "many", "mask": "less", "position": "past"},
    "many steps, a window": {"calls": "many", "mask": "band"},
    "many steps, a mask of tokens": {"calls": "many", "mask": "input"},
}


def made(extra=BEHIND, more="", **options):
    file = decoder(extra=extra, outputs="float[b,8,2] new_conv" + more, **options)
    file.graph.input.append(onnx.helper.make_tensor_value_info("conv", onnx.TensorProto.FLOAT, ["b", 8, 2]))
    near = np.random.default_rng(5).standard_normal((8, 1, 3)).astype(np.float32)
    file.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in (NUMBERS | {"near": near}).items())
    return file


def by_calls(file, lengths):
    import onnxruntime

    session = onnxruntime.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"])
    names, inputs = [o.name for o in session.get_outputs()], [i.name for i in session.get_inputs()]
    kept = {n: np.zeros((3, 2, 0, 4), np.float32) for n in ("past_k0", "past_v0")}
    kept["conv"], at, found = np.zeros((3, 8, 2), np.float32), 0, []
    for n in lengths:
        more = {"there": np.ones((3, at + n), np.int64)} if "there" in inputs else {}
        out = dict(zip(names, session.run(None, {"x": XS[:, at : at + n], **kept, **more}), strict=True))
        kept = {k: out["new_conv" if k == "conv" else k.replace("past", "new")] for k in kept}
        found.append(out["y"])
        at += n
    return np.concatenate(found, 1)


def steps_of(model):
    return np.ascontiguousarray(XS[:, :, None] if model.inputs[0].dims[1] == 1 else XS)


@pytest.mark.parametrize("case", CASES)
def test_a_stream_answers_as_the_calls_of_the_file(case):
    file = made(**CASES[case])
    model = fastrnn.load(file.SerializeToString())
    context = {} if "window" in case else {"context": STEPS}
    x = steps_of(model)
    got = model.stream(3, **context).push(x)
    for lengths in ([1] * STEPS, [5, 1, 4, 2]) if "many" in case else ([1] * STEPS,):
        np.testing.assert_allclose(got.reshape(XS.shape), by_calls(file, lengths), rtol=1e-4, atol=2e-5)
    stream = model.stream(**context)
    assert np.stack([stream.step(step) for step in x[0]]).tobytes() == got[0].tobytes()
    pool = model.pool(3, **context)
    slots = [pool.open(), pool.open()]
    first = pool.push(slots[:1], [x[0, :7]])[0]
    rest = pool.push(slots, [x[0, 7:], x[1]])
    assert np.concatenate([first, rest[0]]).tobytes() == got[0].tobytes()
    assert rest[1].tobytes() == got[1].tobytes()
    again = pool.restore(pool.snapshot(slots[1]))
    assert pool.state(again)["conv"].tobytes() == pool.state(slots[1])["conv"].tobytes()


def test_the_tail_begins_with_what_the_caller_says():
    model = fastrnn.load(made(calls="many", mask="less").SerializeToString())
    zeros = np.zeros((3, 2, 0, 4), np.float32)
    conv = np.random.default_rng(2).standard_normal((3, 8, 2)).astype(np.float32)
    stream = model.stream(3, context=STEPS)
    stream.state = {**stream.state, "conv": conv}
    want = model.run(XS, zeros, zeros, conv=conv)[0]
    np.testing.assert_allclose(stream.push(XS), want, rtol=1e-4, atol=2e-5)


REFUSED = {
    r"\(steps\): counts steps: the file begins anew": {"position": "anew"},
    r"\(reduce\): takes the mean of the steps so far": {
        "extra": BEHIND + " mean = ReduceMean <keepdims = 0> (last, ax1)", "more": ", float[b,8] mean",
    },
    r"\(conv\): looks along time without a cache": {
        "extra": BEHIND.replace("(c)", "(d)").replace("end =", "d = Conv <pads = [2,0], group = 8> (c, near) end ="),
    },
}  # fmt: skip


@pytest.mark.parametrize("text", REFUSED)
def test_what_begins_anew_with_each_chunk_is_refused(text):
    model = fastrnn.load(made(calls="many", mask="less", **REFUSED[text]).SerializeToString())
    with pytest.raises(fastrnn.StreamError, match=text):
        model.stream()
