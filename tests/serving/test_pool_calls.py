"""Calls of a pool: rows of any order, chunks of any length, models that look ahead, wrong calls."""

import numpy as np
import pytest
from graph_builder import GraphBuilder
from pool_models import MODELS, PACED, data, open_size, opened, same, stacked, step_of
from test_model_stream import some, stack
from test_plan import weights

import fastrnn
from fastrnn.graph.cells import CellSpec
from fastrnn.graph.dims import TIME
from fastrnn.model import Model


class TestRows:
    """Sizes that fill no tile, one call, several calls, many steps a call."""

    @pytest.mark.parametrize("name", sorted(MODELS))
    @pytest.mark.parametrize("n", [1, 7, 65, 300])
    def test_steps_of_any_subset(self, name, n):
        model = MODELS[name]
        pool, slots = opened(model, n)
        lone = [model.stream() for _ in range(n)]
        rng = np.random.default_rng(n)
        for tick in range(3):
            some_of = rng.permutation(n)[: 1 + rng.integers(n)]
            arrays = [step_of(data(model, 1, 1000 * tick + int(i)), 0) for i in some_of]
            y = pool.step(slots[some_of], stacked(arrays))
            for row, i in enumerate(some_of):
                mine = tuple(o[row] for o in y) if isinstance(y, tuple) else y[row]
                assert same(lone[i].step(arrays[row]), mine)

    def test_ragged_chunks_beside_each_other(self):
        model = MODELS["lstm"]
        pool, slots = opened(model, 150)
        lengths = np.random.default_rng(1).integers(0, 300, 150)
        chunks = [data(model, int(t), i) for i, t in enumerate(lengths)]
        for chunk, y in zip(chunks, pool.push(slots, chunks), strict=True):
            assert same(model.stream().push(chunk), y)
        assert [pool.steps_done(s) for s in slots] == lengths.tolist()

    @pytest.mark.parametrize("name", ["lstm", "rnn, last step", "words"])
    def test_chunks_that_are_plain_and_chunks_that_are_not(self, name):
        """Lists, strided and half-precision arrays between plain ones: all of a call take the same way."""
        model = MODELS[name]
        pool, slots = opened(model, 6)
        chunks = [data(model, t, t) for t in (3, 0, 70, 5, 1, 2)]
        lone = [model.stream() for _ in slots]
        for round_ in range(3):
            given, exact = list(chunks), list(chunks)
            if round_ == 1:
                given[2] = np.repeat(chunks[2], 2, 0)[::2]
                given[0] = chunks[0].tolist()
                if chunks[3].dtype == np.float32:
                    given[3] = chunks[3].astype(np.float16)
                    exact[3] = given[3].astype(np.float32)
            for s, x, y in zip(lone, exact, pool.push(slots, given), strict=True):
                assert same(s.push(x), y)
        with pytest.raises(fastrnn.ShapeError, match="chunk 4: input"):
            pool.push(slots, [*chunks[:4], np.float32(1), chunks[5]])
        assert [pool.steps_done(s) for s in slots] == [s.steps_done for s in lone]

    def test_nan_stays_where_it_is(self):
        model = MODELS["lstm"]
        pool, slots = opened(model, 20)
        clean, same_slots = opened(model, 20)
        x = some(20, 4)
        dirty = x.copy()
        dirty[3] = np.nan
        for _ in range(3):
            y, want = pool.step(slots, dirty), clean.step(same_slots, x)
        assert np.isnan(y[3]).all()
        assert np.array_equal(np.delete(y, 3, 0), np.delete(want, 3, 0))
        pool.close(slots[3])
        again = pool.open()  # the same place: nothing of the one before is left
        assert same(pool.step([again], x[:1]), model.stream(1).step(x[:1]))

    def test_a_whole_sequence_has_the_same_bits(self):
        model = MODELS["gru"]
        x = some(11, 70, 4)
        whole = model(np.ascontiguousarray(x.swapaxes(0, 1))).swapaxes(0, 1)
        pool, slots = opened(model, 11, 20)
        assert np.array_equal(np.stack(pool.push(slots, x)), whole)

    def test_a_model_without_a_batch_axis(self):
        b = GraphBuilder("lone")
        rng = np.random.default_rng(2)
        x = b.input("x", "float32", TIME, 1, 4)
        y, _ = b.add("cell", x, weights(rng, b, "W", 6, 4), weights(rng, b, "R", 6, 6), outputs=("y", None),
                     spec=CellSpec("rnn", 4, 6))  # fmt: skip
        model = Model(b.done(y))
        pool, slots = opened(model, 5)
        lone = [model.stream() for _ in range(5)]
        x = some(5, 9, 1, 4)
        for t in range(4):
            y = pool.step(slots[::-1], x[:, t])
            assert all(same(lone[4 - i].step(x[i, t]), y[i]) for i in range(5))
        assert all(map(same, pool.push(slots, list(x)), [s.push(c) for s, c in zip(lone, x, strict=True)]))

    @pytest.mark.parametrize("first", ["step", "push"])
    def test_a_size_that_the_file_leaves_open_comes_with_the_first_step(self, first):
        model = Model(open_size())
        pool = model.pool(capacity=3)
        slots = [pool.open() for _ in range(2)]
        pool.close(slots.pop(0))
        slots.append(pool.copy(slots[0]))
        pool.grow(4)
        assert pool.memory_bytes == 4 * 5 * 8
        with pytest.raises(fastrnn.StateError, match="size is known from the first step on"):
            pool.state(slots[0])
        assert pool.push([], []) == []
        x, lone = some(2, 5, 7), model.stream(2)
        if first == "step":
            assert np.array_equal(pool.step(slots, x[:, 0]), lone.step(x[:, 0]))
        else:
            assert np.array_equal(np.stack(pool.push(slots, x)), lone.push(x))
        assert pool.memory_bytes == 4 * 5 * 8 + pool.slab.nbytes
        with pytest.raises(fastrnn.ShapeError, match="x"):
            pool.step(slots, some(2, 8))
        more = pool.open()
        assert np.array_equal(pool.step([more], x[:1, 0]), model.stream(1).step(x[:1, 0]))


class TestPaced:
    @pytest.mark.parametrize("name", sorted(PACED))
    def test_slots_at_all_phases(self, name):
        model = PACED[name]
        pool, slots = opened(model, 150)
        lone = [model.stream() for _ in range(150)]
        for round_ in range(3):
            chunks = [data(model, (i * (7 + round_)) % 75, i) for i in range(150)]
            for s, chunk, y in zip(lone, chunks, pool.push(slots, chunks), strict=True):
                assert same(s.push(chunk), y)
        frames = [step_of(data(model, 1, i), 0) for i in range(150)]
        for s, x, y in zip(lone, frames, pool.step(slots, stacked(frames)), strict=True):
            assert same(s.step(x), y)

    def test_memory_counts_what_streams_were_told(self):
        model = PACED["biased"]
        pool, slots = opened(model, 3)
        before = pool.memory_bytes
        for s in slots:
            pool.step([s], (some(1, 3), some(1, 4, 1)))
        assert pool.memory_bytes == before + 3 * 16
        for s in slots:
            pool.close(s)
        assert pool.memory_bytes == before

    @pytest.mark.parametrize("order", [[0, 1, 2], [1, 0, 2], [2, 1, 0]])
    def test_a_snapshot_of_all_beside_a_state_from_outside(self, order):
        """The input without time that its stream kept is not in a state. No slot keeps the others from a snapshot."""
        model = PACED["biased"]
        pool, slots = opened(model, 3)
        first, second, third = (int(slots[i]) for i in order)
        pool.push([first], [data(model, 3, 1)])
        pool.set_state(second, pool.state(first))
        others = model.pool(4)
        there = others.restore_all(pool.snapshot_all())
        for slot in (first, second, third):
            lone = model.stream()
            lone.restore(pool.snapshot(slot))
            assert all(same(a, others.state(there[slot])[name]) for name, a in lone.state.items())
            assert others.steps_done(there[slot]) == lone.steps_done == (0 if slot == third else 3)
        for p, slot in ((pool, second), (others, there[second])):
            with pytest.raises(fastrnn.StreamError, match="inputs unknown that have no time axis"):
                p.flush(slot)
        again = model.pool(4)
        now = again.restore_all(others.snapshot_all())
        for slot in (first, second, third):
            chunk, copy = data(model, 2, 2), there[slot]
            y = pool.push([slot], [chunk])[0]
            assert same(y, others.push([copy], [chunk])[0])
            assert same(y, again.push([now[copy]], [chunk])[0])
            assert same(pool.flush(slot), others.flush(copy))

    def test_a_state_from_outside_is_a_snapshot_before_a_step(self):
        model = PACED["biased"]
        pool, slots = opened(model, 2)
        first, second = (int(s) for s in slots)
        pool.push([first], [data(model, 3, 1)])
        pool.set_state(second, pool.state(first))
        lone = model.stream()
        lone.restore(pool.snapshot(second))
        chunk = data(model, 1, 2)
        assert same(pool.push([second], [chunk])[0], lone.push(chunk))
        assert len(model.pool(2).restore_all(pool.snapshot_all())) == 2

    def test_no_out(self):
        pool, slots = opened(PACED["looks ahead"], 2)
        with pytest.raises(fastrnn.StreamError, match="no out"):
            pool.step(slots, some(2, 3), out=np.zeros((2, 5), np.float32))

    def test_a_chunk_of_no_steps_leaves_what_flush_needs(self):
        model = PACED["biased"]
        lone, pool = model.stream(), model.pool(1)
        slot, x, who = pool.open(), some(2, 3), some(4, 1)
        lone.push((x, who)), pool.push([slot], [(x, who)])
        lone.push((x[:0], 2 * who)), pool.push([slot], [(x[:0], 2 * who)])
        want = model(np.ascontiguousarray(x.T[None]), who[None])[0, :, 1:].T
        assert lone.flush().tobytes() == pool.flush(slot).tobytes() == np.ascontiguousarray(want).tobytes()


class TestCalls:
    def test_out_is_written_and_returned(self):
        model = MODELS["lstm"]
        pool, slots = opened(model, 6)
        x, y = some(4, 4), np.zeros((4, 3), np.float32)
        want = model.stream(4).step(x)
        assert pool.step(slots[[5, 0, 2, 1]], x, out=y) is y
        assert np.array_equal(y, want)

    def test_out_may_overlap_x(self):
        model = Model(stack("lstm", I=3, H=9))
        pool, slots = opened(model, 4)
        x = some(4, 3)
        want = model.stream(4).step(x)
        assert np.array_equal(pool.step(slots, x, out=x), want)

    @pytest.mark.parametrize(
        "form", [list, tuple, np.array, lambda s: np.array(s, np.uint64), lambda s: np.array(s, ">i8")]
    )
    def test_slots_of_any_ints(self, form):
        pool = MODELS["lstm"].pool(capacity=4)
        assert pool.step(form([pool.open(), pool.open()]), some(2, 4)).shape == (2, 3)

    def test_strided_slots_and_inputs(self):
        model = MODELS["lstm"]
        pool, slots = opened(model, 8)
        x = some(16, 4)
        assert np.array_equal(pool.step(slots[::2], x[::4]), model.stream(4).step(x[::4]))

    def test_no_rows(self):
        pool, _ = opened(MODELS["lstm"], 2)
        assert pool.step([], np.zeros((0, 4), np.float32)).shape == (0, 3)
        assert pool.push([], []) == []
        twice, _ = opened(MODELS["two sides"], 2)
        shapes = [y.shape for y in twice.step([], (np.zeros((0, 4), np.float32), np.zeros((0, 1, 6), np.float32)))]
        assert shapes == [(0, 1, 6), (0, 6)] or shapes == [(0, 6), (0, 6)]

    @pytest.mark.parametrize(
        ("slots", "error", "match"),
        [
            (lambda s: [s[0], s[1], s[0]], fastrnn.StateError, "twice"),
            (lambda s: [s[0], -1, s[1]], fastrnn.StateError, "not one of this pool's"),
            (lambda s: [s[0], 1 << 62, s[1]], fastrnn.StateError, "not one of this pool's"),
            (lambda s: [s[0], 10**30, s[1]], fastrnn.StateError, "ints that open"),
            (lambda s: [s[0], 0, s[1]], fastrnn.StateError, "not one of this pool's"),
            (lambda s: [s[0] + (4 << 24), s[1], s[2]], fastrnn.StateError, "not one of this pool's"),
            (lambda s: [True, s[0], s[1]], fastrnn.StateError, "slot 1 is not one of this pool's"),
            (lambda s: np.array([s[0], s[1], (1 << 64) - 1], np.uint64), fastrnn.StateError, "not one of this pool's"),
            (lambda s: np.array([s[0]] * 3, float), fastrnn.StateError, "float64"),
            (lambda s: [True, False, True], fastrnn.StateError, "bool"),
            (lambda s: "abc", fastrnn.ShapeError, "one axis"),
            (lambda s: set(s), fastrnn.ShapeError, "a sequence, with one axis, got set"),
            (lambda s: None, fastrnn.ShapeError, "a sequence, with one axis, got NoneType"),
            (lambda s: s[0], fastrnn.ShapeError, "one axis"),
            (lambda s: [[s[0], s[1], s[2]]], fastrnn.ShapeError, "one axis"),
        ],
    )
    def test_wrong_slots(self, slots, error, match):
        pool, good = opened(MODELS["lstm"], 3)
        before = [pool.state(s) for s in good]
        with pytest.raises(error, match=match):
            pool.step(slots(good.tolist()), some(3, 4))
        with pytest.raises(error, match=match):
            pool.push(slots(good.tolist()), some(3, 2, 4))
        for s, state in zip(good, before, strict=True):
            assert all(same(pool.state(s)[k], state[k]) for k in state)
            assert pool.steps_done(s) == 0

    def test_a_slot_of_another_pool(self):
        model = MODELS["lstm"]
        (_, mine), (other, _) = opened(model, 2), opened(model, 2)
        with pytest.raises(fastrnn.StateError, match="not one of this pool's"):
            other.step(mine, some(2, 4))

    @pytest.mark.parametrize("slot", [None, 1.0, "1", True, [1], np.float32(1), 1 << 70, -1])
    def test_a_wrong_slot_of_one(self, slot):
        pool, _ = opened(MODELS["lstm"], 2)
        for call in (pool.close, pool.reset, pool.state, pool.copy, pool.steps_done):
            with pytest.raises(fastrnn.StateError, match="slot"):
                call(slot)
        assert slot not in pool

    @pytest.mark.parametrize(
        ("x", "match"),
        [
            (np.zeros((2, 4), np.float32), r"\[3, 4\], got \[2, 4\]"),
            (np.zeros((3, 5), np.float32), r"\[3, 4\], got \[3, 5\]"),
            (np.zeros((3, 4)), "float32 expected, got float64"),
            (None, "x"),
            (np.ma.masked_array(np.zeros((3, 4), np.float32), mask=np.eye(3, 4)), "mask would be lost"),
        ],
    )
    def test_wrong_inputs(self, x, match):
        pool, slots = opened(MODELS["lstm"], 3)
        with pytest.raises(fastrnn.ShapeError, match=match):
            pool.step(slots, x)

    def test_wrong_chunks_are_numbered(self):
        pool, slots = opened(MODELS["lstm"], 3)
        good = some(2, 4)
        with pytest.raises(fastrnn.ShapeError, match=r"chunk 1: input x: a chunk is \[T, 4\], got \[2, 5\]"):
            pool.push(slots, [good, some(2, 5), good])
        with pytest.raises(fastrnn.ShapeError, match="3 slots take 3 chunks, got 2"):
            pool.push(slots, [good, good])
        for wrong in (None, 3, {"x": [good, good, good]}):
            with pytest.raises(
                fastrnn.ShapeError, match=f"a sequence with one for each slot, got {type(wrong).__name__}"
            ):
                pool.push(slots, wrong)
        assert not any(pool.steps_done(s) for s in slots)

    @pytest.mark.parametrize(
        "out", [np.zeros((3, 4), np.float32), np.zeros((3, 3)), [1.0], np.zeros((3, 6), "f4")[:, ::2]]
    )
    def test_wrong_out(self, out):
        pool, slots = opened(MODELS["lstm"], 3)
        if isinstance(out, np.ndarray) and out.shape == (3, 3) and out.dtype == np.float32:  # strided: copied into
            assert np.array_equal(pool.step(slots, some(3, 4), out=out), MODELS["lstm"].stream(3).step(some(3, 4)))
            return
        with pytest.raises(fastrnn.ShapeError, match="out"):
            pool.step(slots, some(3, 4), out=out)
        assert not any(pool.steps_done(s) for s in slots)

    @pytest.mark.parametrize("call", ["step", "push"])
    def test_a_row_that_fails_in_the_middle_leaves_every_state(self, call):
        model = MODELS["words"]
        pool, slots = opened(model, 200)
        pool.push(slots, np.ones((200, 3), np.int64))
        before = pool.slab.copy()
        ids = np.ones((200, 4), np.int64)
        ids[150, 2] = 99
        with pytest.raises(fastrnn.ShapeError, match="index 99"):
            pool.step(slots, ids[:, 2]) if call == "step" else pool.push(slots, ids)
        assert np.array_equal(pool.slab, before)
        assert {pool.steps_done(s) for s in slots} == {3}
