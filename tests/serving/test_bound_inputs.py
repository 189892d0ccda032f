"""stream(bind=...) and pool(bind=...): inputs that have one value for all steps."""

import numpy as np
import pytest
from decoder_steps import decoded, decoder
from graph_builder import GraphBuilder
from pool_models import PACED, data, same
from test_model_stream import some

import fastrnn
from fastrnn.aio import Batcher
from fastrnn.graph.dims import BATCH
from fastrnn.model import Model

pytest.importorskip("onnxruntime")
FILES = {
    "a step": {"x": "b,5"},
    "a step that keeps its axis": {"x": "b,1,5"},
    "any length": {"x": "b,t,5"},
    "frozen": {"x": "1,1,5", "batch": "1", "memory": "1,S,7"},
    "frozen memory": {"x": "1,1,5", "batch": "1", "memory": "1,11,7"},
}


def case(name, memory=11, batch=3, steps=4):
    """(model, x [steps, batch, its own axes], memory [batch, S, 7], y [steps, batch, 3] of onnxruntime)."""
    made = decoder(**FILES[name])
    model = fastrnn.from_onnx(made)
    xs, kept = some(steps, batch, 5), some(batch, memory, 7)
    if FILES[name].get("batch"):
        want = np.concatenate([decoded(made, xs[:, [i]], kept[[i]]) for i in range(batch)], 1)
    else:
        want = decoded(made, xs, kept)
    own = model.inputs[0].dims
    return model, xs[:, :, None] if own[1] == 1 else xs, kept, want


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("batch", [1, 3])
def test_a_stream_keeps_what_is_bound(name, batch):
    model, xs, kept, want = case(name, batch=batch)
    stream = model.stream(batch_size=batch, bind={"memory": kept})
    got = np.stack([stream.step(x) for x in xs])
    np.testing.assert_allclose(got.reshape(want.shape), want, rtol=1e-4, atol=1e-5)
    each = model.stream(batch_size=batch)
    assert np.stack([each.step((x, kept)) for x in xs]).tobytes() == got.tobytes()
    whole = model.stream(batch_size=batch, bind={"memory": kept}).push(np.ascontiguousarray(xs.swapaxes(0, 1)))
    assert whole.swapaxes(0, 1).tobytes() == got.tobytes()
    for i in range(batch):
        lone = model.stream(bind={"memory": kept[i]})
        assert np.stack([lone.step(x) for x in xs[:, i]]).tobytes() == got[:, i].tobytes()
        lone = model.stream(bind={"memory": kept[[i]]})
        parts = [lone.push(xs[:1, i]), lone.push(xs[1:, i]), lone.push(xs[:0, i])]
        assert np.concatenate(parts).tobytes() == got[:, i].tobytes()
    alike = model.stream(batch_size=batch, bind={"memory": kept[0]})
    assert np.stack([alike.step(x) for x in xs])[:, 0].tobytes() == got[:, 0].tobytes()


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_pool_keeps_it_for_all_slots(name):
    model, xs, kept, _ = case(name)
    pool = model.pool(4, bind={"memory": kept[0]})
    slots = [pool.open() for _ in range(3)]
    lone = [model.stream(bind={"memory": kept[0]}) for _ in slots]
    assert same(pool.step(slots, xs[0]), np.stack([s.step(x) for s, x in zip(lone, xs[0], strict=True)]))
    chunks = [xs[1:, 0], xs[1:2, 1], xs[1:3, 2]]
    for s, chunk, y in zip(lone, chunks, pool.push(slots[::-1], chunks[::-1])[::-1], strict=True):
        assert same(s.push(chunk), y)
    for s, slot in zip(lone, slots, strict=True):
        assert same(pool.flush(slot), s.flush())
        again = model.stream(bind={"memory": kept[0]})
        again.restore(pool.snapshot(slot))
        assert same(again.step(xs[3, 0]), s.step(xs[3, 0]))


def test_the_value_is_a_copy_and_goes_on_in_a_copy_of_the_stream():
    model, xs, kept, _ = case("a step", batch=1)
    want = model.stream(bind={"memory": kept[0]}).push(xs[:, 0])
    mine = kept[0].copy()
    stream = model.stream(bind={"memory": mine})
    mine[:] = np.nan
    first = stream.step(xs[0, 0])
    other = stream.copy()
    assert np.stack([first, *other.push(xs[1:, 0])]).tobytes() == want.tobytes()
    stream.reset()
    assert stream.push(xs[:, 0]).tobytes() == want.tobytes()
    assert list(stream.bound) == ["memory"]
    assert model.stream().bound is None


def test_memories_of_other_lengths():
    for size in (1, 2, 30):
        model, xs, kept, want = case("a step", memory=size, batch=1)
        got = model.stream(bind={"memory": kept[0]}).push(xs[:, 0])
        np.testing.assert_allclose(got, want[:, 0], rtol=1e-4, atol=1e-5)


def scaled():
    """A GRU whose input is multiplied by an input of rank 0."""
    import onnx
    from onnx import helper, numpy_helper

    info = [helper.make_tensor_value_info(n, 1, dims) for n, dims in (("x", ["t", "b", 4]), ("g", []))]
    outs = [helper.make_tensor_value_info("y", 1, ["t", 1, "b", 4])]
    weights = [numpy_helper.from_array(some(1, 12, 4) + k, name) for k, name in enumerate("WR")]
    nodes = [
        helper.make_node("Mul", ["x", "g"], ["xg"]),
        helper.make_node("GRU", ["xg", "W", "R"], ["y", ""], hidden_size=4),
    ]
    graph = helper.make_graph(nodes, "g", info, outs, weights)
    return onnx.helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize("value", [2.0, np.float32(2), np.array(2, np.float32)])
def test_a_scalar(value):
    made = scaled()
    model, fixed = fastrnn.from_onnx(made), fastrnn.from_onnx(made, bind={"g": value})
    xs = some(5, 2, 4)
    want = fixed(xs)
    for i in range(2):
        stream, pushed = (model.stream(bind={"g": value}) for _ in range(2))
        assert np.array_equal(np.stack([stream.step(x) for x in xs[:, i]]).ravel(), want[:, :, i].ravel())
        parts = [pushed.push(xs[:3, i]), pushed.push(xs[3:, i])]
        assert np.array_equal(np.concatenate(parts).ravel(), want[:, :, i].ravel())
    both = model.stream(batch_size=2, bind={"g": value})
    assert np.array_equal(np.stack([both.step(x) for x in xs]).ravel(), want.ravel())
    pool = model.pool(2, bind={"g": value})
    slots = [pool.open(), pool.open()]
    first = pool.step(slots, xs[0])
    rest = pool.push(slots, [xs[1:, 0], xs[1:3, 1]])
    assert np.array_equal(first.ravel(), want[0].ravel())
    assert np.array_equal(rest[0].ravel(), want[1:, :, 0].ravel())
    assert np.array_equal(rest[1].ravel(), want[1:3, :, 1].ravel())


def test_an_output_has_the_length_that_the_step_has():
    model, xs, kept, _ = case("a step")
    stream = model.stream(batch_size=3)
    stream.step((xs[0], kept))
    with pytest.raises(fastrnn.ShapeError, match=r"input memory: one step is \[3, 11, 7\], got \[3, 12, 7\]"):
        stream.step((xs[0], some(3, 12, 7)))


def test_a_model_that_looks_ahead():
    model = PACED["biased"]
    chunk = data(model, 9, 1)
    free = [info.name for info in model.inputs if "time" in info.dims]
    still = [info.name for info in model.inputs if "time" not in info.dims]
    assert still
    named = dict(zip([i.name for i in model.inputs], chunk, strict=True))
    stream, plain = model.stream(bind={n: named[n] for n in still}), model.stream()
    passed = {n: named[n] for n in free}
    assert same(stream.push(passed), plain.push(named))
    assert same(stream.flush(), plain.flush())
    pool = model.pool(2, bind={n: named[n] for n in still})
    slot, plain = pool.open(), model.stream()
    assert same(pool.push([slot], [passed])[0], plain.push(named))
    assert same(pool.flush(slot), plain.flush())


@pytest.mark.parametrize(
    ("bind", "text"),
    [
        ({"speaker": 1.0}, "'speaker' is no input; a stream of decoder takes x, memory"),
        ({"h": np.zeros(6)}, "'h' is a state, which a stream keeps itself"),
        ({"x": np.zeros(5)}, "the input x has a time axis"),
        ({"memory": np.zeros((11, 8), np.float32)}, r"the value of memory is \[11, 7\] or \[2, 11, 7\], got \[11, 8\]"),
        ({"memory": np.zeros((3, 11, 7), np.float32)}, r"got \[3, 11, 7\]"),
        ({"memory": np.full((11, 7), 1e300)}, "bind: memory"),
        (["memory"], r"bind must map inputs to values, such as .*, got \['memory'\]"),
    ],
)
def test_what_does_not_fit(bind, text):
    model = case("frozen memory")[0]
    with pytest.raises(fastrnn.ShapeError, match=text):
        model.stream(batch_size=2, bind=bind)


def test_what_does_not_fit_is_found_at_the_first_step_if_sizes_are_open():
    model, xs, kept, _ = case("a step")
    stream = model.stream(batch_size=3, bind={"memory": kept[:2]})
    with pytest.raises(fastrnn.ShapeError, match=r"the value of memory is \[11, 7\] or \[3, 11, 7\], got \[2, 11, 7\]"):
        stream.step(xs[0])


def test_an_input_is_left_for_the_steps():
    b = GraphBuilder("sum")
    x, h = b.input("x", "float32", BATCH, 3), b.input("h", "float32", BATCH, 3)
    new = b.add("binary", x, h, name="new", fn="add")
    model = Model(b.done(b.add("unary", new, fn="tanh", alpha=0.0, beta=0.0), new, states={"h": "new"}))
    with pytest.raises(fastrnn.ShapeError, match="no input is left for the steps of sum"):
        model.stream(bind={"x": np.zeros(3, np.float32)})


def test_a_batcher_takes_what_is_passed_at_each_step():
    model, _, kept, _ = case("any length")
    with pytest.raises(fastrnn.StreamError, match="pass memory at each step instead"):
        Batcher(model.pool(2, bind={"memory": kept[0]}))
