"""Model and Stream: one engine, called by whole sequences, by step and by chunk, with the same bits."""

import threading

import numpy as np
import pytest
from graph_builder import GraphBuilder
from hypothesis import given, settings
from hypothesis import strategies as st
from test_plan import tagger, weights

import fastrnn
from fastrnn.graph import reference
from fastrnn.graph.cells import CellSpec
from fastrnn.graph.dims import BATCH, TIME
from fastrnn.model import Model


def stack(kind="lstm", time_major=False, last=False, head=True, I=5, H=20):  # noqa: E741
    """Two layers of a cell, a linear head with tanh."""
    rng, b = np.random.default_rng(7), GraphBuilder(f"{kind} stack")
    dims = (TIME, BATCH, I) if time_major else (BATCH, TIME, I)
    x = b.input("x", "float32", *dims)
    x = x if time_major else b.add("transpose", x, perm=(1, 0, 2))
    G = {"rnn": 1, "gru": 3, "lstm": 4}[kind]
    for layer, size in enumerate((I, H)):
        spec = CellSpec(kind, size, H, linear_before_reset=kind == "gru" and layer == 1)
        args = [weights(rng, b, f"W{layer}", G * H, size), weights(rng, b, f"R{layer}", G * H, H)]
        args += [weights(rng, b, f"Wb{layer}", G * H), weights(rng, b, f"Rb{layer}", G * H)]
        x, _ = b.add("cell", x, *args, outputs=(f"y{layer}", None), name=f"cell{layer}", spec=spec)
    if last:
        x = b.add("slice", x, axis=0, start=TIME - 1, stop=TIME, step=1)
        x = b.add("reshape", x, dims=(BATCH, H))
    elif not time_major:
        x = b.add("transpose", x, perm=(1, 0, 2))
    if head:
        x = b.add(
            "linear", x, weights(rng, b, "L", H, 3), weights(rng, b, "Lb", 3), activation="tanh", alpha=0.0, beta=0.0
        )
    return b.done(x)


def some(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


KINDS = ["rnn", "gru", "lstm"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("time_major", [False, True])
class TestSameBits:
    def whole(self, kind, time_major, x):
        model = Model(stack(kind, time_major))
        y = model(np.ascontiguousarray(x.swapaxes(0, 1)) if time_major else x)
        return model, y.swapaxes(0, 1) if time_major else y

    def test_whole_is_the_reference(self, kind, time_major):
        x = some(3, 11, 5)
        model, y = self.whole(kind, time_major, x)
        (want,) = reference.run(model.graph, {"x": x.swapaxes(0, 1) if time_major else x})
        assert np.abs((want.swapaxes(0, 1) if time_major else want) - y).max() < 3e-6

    def test_steps_and_chunks(self, kind, time_major):
        x = some(3, 203, 5)
        model, y = self.whole(kind, time_major, x)
        s = model.stream()
        assert np.array_equal(np.stack([s.step(f) for f in x[0]]), y[0])
        batch = model.stream(batch_size=3)
        assert np.array_equal(np.stack([batch.step(x[:, t]) for t in range(203)], 1), y)
        rng, at, chunks = np.random.default_rng(5), 0, []
        batch.reset()
        while at < 203:
            n = int(rng.integers(0, 90))
            chunks.append(batch.push(x[:, at : at + n]))
            at += n
        assert np.array_equal(np.concatenate(chunks, 1), y)

    def test_a_row_does_not_see_its_neighbours(self, kind, time_major):
        x = some(7, 5, 5)
        _, y = self.whole(kind, time_major, x)
        for row in range(7):
            _, lone = self.whole(kind, time_major, x[row : row + 1])
            assert np.array_equal(lone[0], y[row])
        dirty = x.copy()
        dirty[3] = np.nan
        _, seen = self.whole(kind, time_major, dirty)
        assert np.isnan(seen[3]).all()
        assert np.array_equal(np.delete(seen, 3, 0), np.delete(y, 3, 0))


def test_the_other_byte_order_is_converted():
    model, x = Model(stack()), some(5)
    out = np.zeros(3, ">f4")
    assert np.array_equal(model.stream().step(x.astype(">f4")), model.stream().step(x))
    with pytest.raises(fastrnn.ShapeError, match="out"):
        model.stream().step(x, out=out)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.lists(st.integers(0, 70), max_size=6), st.sampled_from(KINDS), st.integers(1, 40))
def test_any_cut_gives_the_same_bits(batch, cuts, kind, H):
    model = Model(stack(kind, H=H))
    x = some(batch, sum(cuts), 5)
    s = model.stream(batch_size=batch)
    parts, at = [], 0
    for n in cuts:
        parts.append(s.push(x[:, at : at + n]))
        at += n
    assert np.array_equal(np.concatenate([np.zeros((batch, 0, 3), np.float32), *parts], 1), model(x))


class TestRun:
    def test_lengths_are_runs_of_each_row(self):
        model, x = Model(tagger()), some(6, 9, 5)
        lengths = [9, 0, 4, 4, 1, 7]
        y = model(x, lengths=lengths)
        for row, n in enumerate(lengths):
            assert np.array_equal(y[row, :n], model(x[row : row + 1, :n])[0]) if n else True
            assert not y[row, n:].any()

    def test_an_input_may_have_the_name_of_an_argument(self):
        b = GraphBuilder("named")
        sums = [b.input(name, "float32", BATCH, TIME, 2) for name in ("lengths", "self")]
        model = Model(b.done(b.add("binary", *sums, fn="add")))
        x, y = some(1, 3, 2), some(1, 3, 2)
        for got in (model(x, y), model(x, self=y), model(lengths=x, self=y), *model.run(x, y)):
            np.testing.assert_array_equal(got, x + y)
        np.testing.assert_array_equal(model.run(lengths=x, self=y)[0], x + y)

    def test_lengths_reach_a_last_step(self):
        model, x = Model(stack(last=True)), some(3, 9, 5)
        y = model(x, lengths=[2, 9, 5])
        for row, n in enumerate([2, 9, 5]):
            assert np.array_equal(y[row], model(x[row : row + 1, :n])[0])

    @pytest.mark.parametrize(
        ("lengths", "match"),
        [
            ([1, 2], "3 ints"),
            ([1, 2, 10], "0..9"),
            ([-1, 2, 3], "0..9"),
            ([1.0, 2.0, 3.0], "ints"),
            ([[1, 2, 3]], "ints"),
        ],
    )
    def test_bad_lengths(self, lengths, match):
        with pytest.raises(fastrnn.ShapeError, match=match):
            Model(stack())(some(3, 9, 5), lengths=lengths)

    @pytest.mark.parametrize(
        ("array", "match"),
        [
            (np.zeros((3, 9, 5)), "float32 expected, got float64"),
            (np.zeros((3, 9, 4), np.float32), "axis 2 .* must be 5, got 4"),
            (np.zeros((9, 5), np.float32), r"\[batch, time, 5\] expected, got \[9, 5\]"),
            (np.zeros((3, 9, 5), complex), "complex"),
            (np.array("text"), "float32 expected"),
        ],
    )
    def test_a_wrong_array_is_explained(self, array, match):
        with pytest.raises(fastrnn.ShapeError, match=f"input x: .*{match}"):
            Model(stack()).run(array)

    def test_wrong_names_are_explained(self):
        model = Model(stack())
        with pytest.raises(fastrnn.ShapeError, match="no input 'z'"):
            model.run(z=some(1, 1, 5))
        with pytest.raises(fastrnn.ShapeError, match="x is missing"):
            model.run()
        with pytest.raises(fastrnn.ShapeError, match="twice"):
            model.run(some(1, 1, 5), x=some(1, 1, 5))

    def test_lists_float16_strides_and_empty_batches_are_taken(self):
        model, x = Model(stack()), some(2, 4, 5)
        assert np.array_equal(model(x.tolist()), model(x))
        assert np.array_equal(model(np.asfortranarray(x)), model(x))
        assert np.array_equal(model(x.astype(np.float16)), model(x.astype(np.float16).astype(np.float32)))
        assert model(np.zeros((0, 4, 5), np.float32)).shape == (0, 4, 3)
        assert model(np.zeros((2, 0, 5), np.float32)).shape == (2, 0, 3)


class TestStream:
    def test_out_is_written_and_returned(self):
        s, out = Model(stack()).stream(), np.zeros(3, np.float32)
        assert s.step(some(5), out=out) is out
        assert out.any()

    @pytest.mark.parametrize("out", [np.zeros(4, np.float32), np.zeros(3), np.zeros((1, 3), np.float32), [0, 0, 0]])
    def test_a_wrong_out_is_refused_before_the_state_moves(self, out):
        s = Model(stack()).stream()
        before = s.slab.copy()
        with pytest.raises(fastrnn.ShapeError, match="out"):
            s.step(some(5), out=out)
        with pytest.raises(fastrnn.ShapeError, match="one step is"):
            s.step(some(6))
        assert np.array_equal(s.slab, before)

    def test_a_read_only_out_is_refused(self):
        out = np.zeros(3, np.float32)
        out.flags.writeable = False
        with pytest.raises(fastrnn.ShapeError, match="read-only"):
            Model(stack()).stream().step(some(5), out=out)

    def test_strided_and_overlapping_memory_gives_the_same_bits(self):
        model = Model(stack(head=False, I=20, H=20))
        x = some(20)
        want = model.stream().step(x.copy())
        assert np.array_equal(model.stream().step(np.repeat(x, 2)[::2]), want)
        both = x.copy()
        assert model.stream().step(both, out=both) is both
        assert np.array_equal(both, want)
        wide = np.zeros(40, np.float32)
        model.stream().step(x, out=wide[::2])
        assert np.array_equal(wide[::2], want)

    def test_reset_copy_and_state(self):
        model = Model(stack())
        s = model.stream()
        first = s.push(some(6, 5))
        twin = s.copy()
        assert np.array_equal(s.step(some(5, seed=3)), twin.step(some(5, seed=3)))
        assert (
            set(s.state)
            == {i.name for i in model.states}
            == {"node_cell0.h", "node_cell0.c", "node_cell1.h", "node_cell1.c"}
        )
        kept = s.state
        y = s.step(some(5, seed=4))
        s.state = kept
        assert np.array_equal(s.step(some(5, seed=4)), y)
        s.reset()
        assert np.array_equal(s.push(some(6, 5)), first)
        with pytest.raises(fastrnn.StateError, match=r"node_cell0\.h"):
            s.state = {"h": np.zeros(20)}
        with pytest.raises(fastrnn.ShapeError, match="shape"):
            s.state = kept | {"node_cell0.h": np.zeros(3, np.float32)}

    def test_a_last_step_model_answers_as_if_the_sequence_ended_here(self):
        model, x = Model(stack(last=True)), some(9, 5)
        s = model.stream()
        for t in range(9):
            assert np.array_equal(s.step(x[t]), model(x[None, : t + 1])[0])
        s.reset()
        assert s.push(x[:0]) is None
        assert np.array_equal(s.push(x), model(x[None])[0])

    def test_what_needs_the_future_is_named(self):
        model = Model(tagger())
        assert not model.streamable
        assert model.states == ()
        with pytest.raises(fastrnn.StreamError, match=r"node_cellTrue.*future"):
            model.stream()

    @pytest.mark.parametrize("size", [0, -1, 2.0, "3", True, 2**40, 2**70])
    def test_bad_batch_sizes(self, size):
        with pytest.raises(fastrnn.ShapeError, match="batch_size"):
            Model(stack()).stream(batch_size=size)

    def test_an_index_outside_the_table_costs_an_error_and_nothing_else(self):
        rng, b = np.random.default_rng(2), GraphBuilder("words")
        ids = b.input("ids", "int64", BATCH, TIME)
        rows = b.add("transpose", b.add("gather", weights(rng, b, "E", 10, 4), ids, axis=0), perm=(1, 0, 2))
        W, R = weights(rng, b, "W", 32, 4), weights(rng, b, "R", 32, 8)
        y, _ = b.add("cell", rows, W, R, outputs=("y", None), name="cell", spec=CellSpec("lstm", 4, 8))
        model = Model(b.done(y))
        s = model.stream()
        s.push(np.array([1, -1, 9]))
        before = s.state
        for bad in (10, -11, 2**40):
            with pytest.raises(fastrnn.ShapeError, match=rf"node_gather.* {bad} .*\[-10, 10\)"):
                s.push(np.array([3, bad]))
        assert all(np.array_equal(before[k], v) for k, v in s.state.items())
        assert np.array_equal(s.push(np.array([2, 3])), model(np.array([[1, 9, 9, 2, 3]]))[3:, 0])

    def test_streams_of_one_model_run_in_threads(self):
        model = Model(stack(H=33))
        x = some(8, 400, 5)
        want, got = model(x), [None] * 8

        def work(i):
            s = model.stream()
            got[i] = np.stack([s.step(f) for f in x[i]])

        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        [t.start() for t in threads]
        [t.join() for t in threads]
        assert np.array_equal(np.stack(got), want)


class TestStates:
    def test_a_mean_over_time_is_the_mean_so_far(self):
        b = GraphBuilder("mean")
        model = Model(
            b.done(b.add("reduce", b.input("x", "float32", BATCH, TIME, 3), fn="mean", axes=(1,), keepdims=False))
        )
        x = some(2, 500, 3)
        s = model.stream(batch_size=2)
        for t in range(500):
            assert np.array_equal(s.step(x[:, t]), model(x[:, : t + 1]))
        assert np.abs(s.step(x[:, 0]) - np.concatenate([x, x[:, :1]], 1).mean(1, dtype=np.float64)).max() < 1e-7
        assert s.state["node_reduce_0.mean"].dtype == np.float64
        assert s.state["node_reduce_0.mean"][0, -1] == 501

    def step_function(self, swapped=False):
        """Two cells of one step whose states are packed into one tensor [batch, 2, 6], as a caller would thread it."""
        rng, b = np.random.default_rng(3), GraphBuilder("packed")
        x = b.add("reshape", b.input("x", "float32", BATCH, 4), dims=(1, BATCH, 4))
        state, ends, size = b.input("state", "float32", BATCH, 2, 6), [], 4
        for i in range(2):
            one = b.add("reshape", b.add("slice", state, axis=1, start=i, stop=i + 1, step=1), dims=(BATCH, 6))
            args = (weights(rng, b, f"W{i}", 18, size), weights(rng, b, f"R{i}", 18, 6), None, None, None, one)
            x, h = b.add("cell", x, *args, outputs=(f"y{i}", f"h{i}"), name=f"cell{i}", spec=CellSpec("gru", size, 6))
            ends.append(b.add("reshape", h, dims=(BATCH, 1, 6)))
            size = 6
        new = b.add("concat", *(ends[::-1] if swapped else ends), name="new", axis=1)
        return b.done(b.add("reshape", x, name="y", dims=(BATCH, 6)), new, states={"state": "new"})

    def test_a_packed_state_is_kept_by_the_stream(self):
        model, x = Model(self.step_function()), some(7, 3, 4)
        assert [(s.name, s.dims) for s in model.states] == [("state", ("batch", 2, 6))]
        s, state = model.stream(batch_size=3), np.zeros((3, 2, 6), np.float32)
        for t in range(7):
            y, state = model.run(x[t], state)
            assert np.array_equal(s.step(x[t]), y)
            assert np.array_equal(s.state["state"], state)
        s.state = {"state": np.zeros((3, 2, 6), np.float32)}
        assert np.array_equal(s.push(x.swapaxes(0, 1))[:, -1], y)

    def test_a_state_that_comes_back_in_another_order_is_refused(self):
        with pytest.raises(fastrnn.StreamError, match=r"state -> new.*another order"):
            Model(self.step_function(swapped=True)).stream()

    def test_a_slice_of_steps_that_are_not_there_is_refused(self):
        b = GraphBuilder("head")
        x = b.input("x", "float32", BATCH, TIME, 3)
        model = Model(b.done(b.add("slice", x, axis=1, start=1, stop=5, step=1)))
        assert model(some(2, 5, 3)).shape == (2, 4, 3)
        with pytest.raises(fastrnn.ShapeError, match=r"slice \[1:5:1\].* time is 4"):
            model(some(2, 4, 3))
