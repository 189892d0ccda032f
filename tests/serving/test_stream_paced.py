"""Streams whose outputs come at paces of their own: what step, push, flush and state answer, and when."""

import numpy as np
import pytest
from graph_builder import GraphBuilder
from test_stream_windows import Stack, in_steps, real

import fastrnn
from fastrnn.graph.cells import CellSpec
from fastrnn.graph.dims import BATCH, TIME
from fastrnn.model import Model
from fastrnn.serving.stream import PacedStream, Stream
from fastrnn.streaming.timetable import INPUT, Clock, Timetable


def same(delay=2, H=4):
    """A convolution that looks `delay` steps ahead, and a GRU."""
    return Model(Stack().conv(k=2 * delay + 1, pads=(delay, delay)).cell(H=H).done())


def fed(T=20, batch=None, seed=5, C=3):
    x = in_steps(real(seed, batch or 1, C, T))
    return x[0] if batch is None else x


class TestCalls:
    def test_step_is_none_while_nothing_comes_and_leaves_out_alone(self):
        model, x = same(), fed()
        s, out = model.stream(), np.full(4, 7, np.float32)
        assert isinstance(s, PacedStream)
        assert s.delay == model.delay == 2
        assert s.step(x[0], out=out) is None
        assert s.step(x[1].tolist(), out=out) is None
        assert (out == 7).all()
        assert s.step(x[2], out=out) is out
        want = model.run(in_steps(x[None]))[0][0, :, 0]
        assert out.tobytes() == want.tobytes()

    def test_what_is_causal_is_a_plain_stream(self):
        assert type(Model(Stack().conv(pads=(2, 0)).cell().done()).stream()) is Stream

    def test_flush_ends_the_sequence(self):
        model, x = same(), fed()
        s = model.stream()
        assert s.push(x).shape == (18, 4)
        assert s.flush().shape == (2, 4)
        for call in (lambda: s.step(x[0]), lambda: s.push(x), s.flush, lambda: s.step([1, 2])):
            with pytest.raises(fastrnn.StreamError, match="at its end"):
                call()
        s.reset()
        assert s.push(x).shape == (18, 4)

    def test_flush_at_once_and_of_too_little(self):
        assert same().stream().flush().shape == (0, 4)
        valid = Model(Stack().conv(k=5).conv(k=1, pads=(3, 3)).done())
        s = valid.stream()
        came = [
            s.push(fed(2)),
            s.flush(),
        ]  # a whole run refuses two steps: the padding of the second layer is no answer
        assert came[1].shape == (0, 4)
        with pytest.raises(fastrnn.ShapeError):
            valid.run(real(1, 1, 3, 2))

    def test_a_copy_goes_on_by_itself(self):
        model, x = Model(Stack().conv(k=4, stride=3).cell().done()), fed(31)
        s = model.stream()
        s.push(x[:11])
        other = s.copy()
        rest = [s.push(x[11:]), s.flush()]
        assert [a.tobytes() for a in rest] == [a.tobytes() for a in (other.push(x[11:]), other.flush())]
        assert s.copy().ended

    @pytest.mark.parametrize("batch", [None, 2])
    def test_states_tell_where_in_the_sequence_they_belong(self, batch):
        model, x = Model(Stack().conv(k=4, stride=3).cell().done()), fed(31, batch)
        shown = {i.name: i for i in model.states}
        assert shown["steps_done"].dtype == "int64"
        assert shown["node_conv_0.tail"].dims == ("batch", 3, 3)
        s, other = model.stream(batch_size=batch), model.stream(batch_size=batch)
        first, last = (x[:11], x[11:]) if batch is None else (x[:, :11], x[:, 11:])
        s.push(first)
        other.state = s.state
        assert other.steps_done == 11
        assert other.push(last).tobytes() == s.push(last).tobytes()
        s.flush()
        other.state = s.state
        assert other.ended
        with pytest.raises(fastrnn.StreamError, match="at its end"):
            other.push(last)

    @pytest.mark.parametrize("position", [None, -2, [1, 2], "x"])
    def test_a_state_of_no_position_is_refused(self, position):
        s = same().stream()
        state = s.state
        state["steps_done"] = position
        if position is None:
            del state["steps_done"]
        with pytest.raises((fastrnn.StateError, fastrnn.ShapeError), match="steps_done"):
            s.state = state

    def test_several_steps_at_once_have_an_axis(self):
        model, x = Model(Stack().repeat(2).conv(M=2, k=1, pads=(1, 0)).done()), fed(3)
        s = model.stream()
        assert [s.step(row).shape for row in x] == [(3, 2), (2, 2), (2, 2)]
        with pytest.raises(fastrnn.StreamError, match="takes no out"):
            model.stream().step(x[0], out=np.empty((2, 2), np.float32))
        assert model.stream(batch_size=1).step(x[:1]).shape == (1, 3, 2)

    def test_outputs_of_several_paces(self):
        stack = Stack().conv(pads=(1, 1))
        slow = stack.x
        model, x = Model(stack.conv(k=2, stride=2).last().done(slow)), fed(6)
        s = model.stream()
        answers = [s.step(row) for row in x]
        assert [(a is None, b is None) for a, b in answers] == [(True, True), *[(False, False)] * 5]
        with pytest.raises(fastrnn.ShapeError, match="2 outputs"):
            s.step(x[0], out=np.empty(4, np.float32))
        outs = (np.full((4, 1), 7, np.float32), np.empty(4, np.float32))
        assert s.step(x[0], out=outs)[0] is outs[0]

    def test_wrong_arrays_change_nothing(self):
        model, x = same(), fed()
        s, t = model.stream(), model.stream()
        for bad in (np.zeros(5, np.float32), np.zeros(3), "x"):
            with pytest.raises(fastrnn.ShapeError):
                s.step(bad)
            with pytest.raises(fastrnn.ShapeError):
                s.push(bad)
        assert s.push(x).tobytes() == t.push(x).tobytes()

    def test_an_index_outside_the_table_changes_nothing(self):
        b = GraphBuilder("tokens")
        x = b.add("gather", b.constant("E", real(1, 9, 3)), b.input("x", "int64", BATCH, TIME), axis=0)
        W = b.constant("W", real(2, 4, 3, 3))
        y = b.add("conv", b.add("transpose", x, perm=(0, 2, 1)), W, strides=(1,), dilations=(1,), pads=(1, 1), groups=1)
        model = Model(b.done(y))
        s, t = model.stream(), model.stream()
        tokens = np.array([1, 2, 3, 8, 0])
        for stream in (s, t):
            stream.push(tokens)
        with pytest.raises(fastrnn.ShapeError, match="outside"):
            s.push(np.array([4] * 70 + [9]))
        assert s.steps_done == 5
        assert s.push(tokens).tobytes() == t.push(tokens).tobytes()

    def test_inputs_without_time_are_remembered_for_flush(self):
        stack = Stack().conv(pads=(1, 1))
        scale = stack.b.input("scale", "float32", BATCH, 4, 1)
        model = Model(stack.add(scale, "mul").done())
        x, by = real(1, 1, 3, 9), real(2, 1, 4, 1)
        with pytest.raises(fastrnn.StreamError, match="before the first step"):
            model.stream().flush()
        s = model.stream()
        parts = [s.push((in_steps(x)[0], by[0])), s.flush()]
        assert np.concatenate(parts).tobytes() == in_steps(model.run(x, by)[0]).tobytes()

    def test_the_delay_is_shown(self):
        assert "delay 2" in repr(same().stream())


class TestRefused:
    def problem(self, build, match):
        b = GraphBuilder("refused")
        x = b.input("x", "float32", BATCH, 3, TIME)
        model = Model(b.done(build(b, x)))
        assert not model.streamable
        assert model.delay == 0
        with pytest.raises(fastrnn.StreamError, match=match):
            model.stream()

    def test_a_reverse_cell_after_a_window(self):
        def build(b, x):
            W = b.constant("W", real(2, 4, 3, 3))
            y = b.add("conv", x, W, strides=(2,), dilations=(1,), pads=(1, 1), groups=1)
            y = b.add("transpose", y, perm=(2, 0, 1))
            spec = CellSpec("gru", 4, 2, reverse=True)
            (y,) = b.add(
                "cell", y, b.constant("a", real(1, 6, 4)), b.constant("c", real(1, 6, 2)), outputs=("y",), spec=spec
            )
            return y

        self.problem(build, "needs the future")

    def test_softmax_and_mirrors_over_time(self):
        self.problem(lambda b, x: b.add("softmax", x, axis=2, log=False), r"node_softmax.*all steps")
        pads = {"pads": (0, 0, 1, 0, 0, 0), "value": 0.0}
        self.problem(lambda b, x: b.add("pad", x, **pads, mode="reflect"), r"node_pad.*mirror")

    def test_a_mean_over_all_steps_that_meets_them(self):
        def build(b, x):
            y = b.add("pool", x, fn="max", kernel=(2,), strides=(1,), pads=(0, 0), dilations=(1,), ceil=False,
                      count_include_pad=False)  # fmt: skip
            return b.add("binary", y, b.add("reduce", y, fn="mean", axes=(2,), keepdims=True), fn="sub")

        self.problem(build, "whole sequence together with its single steps")

    def test_a_window_beyond_all_bounds(self):
        def build(b, x):
            W = b.constant("W", real(2, 1, 3, 2))
            return b.add("conv", x, W, strides=(1,), dilations=(20_000,), pads=(0, 0), groups=1)

        self.problem(build, r"node_conv.*reach over")

    def test_sequences_of_other_lengths_that_meet(self):
        def build(b, x):
            a = b.add("slice", x, axis=2, start=0, stop=TIME - 1, step=1)
            return b.add("concat", a, x, axis=2)

        self.problem(build, r"node_concat")


class TestTimetable:
    def table(self):
        t = Timetable()
        a = t.add(Clock("window", (TIME + 1) // 2, (INPUT,), stride=2, reach=4, begin=1, end=2))
        b = t.add(Clock("spread", 3 * ((TIME + 1) // 2), (a,), stride=3, reach=5, begin=1, end=1))
        c = t.add(Clock("window", 3 * ((TIME + 1) // 2), (b,), reach=3, begin=1, end=1))
        for clock in (a, b, c):
            t.steps(clock)
            t.add_output(clock, 1, False)
        t.freeze()
        return t

    @pytest.mark.parametrize("steps", [0, 1, 2, 7, 64])
    @pytest.mark.parametrize("final", [False, True])
    def test_equal_phases_have_equal_counts(self, steps, final):
        t = self.table()
        for position in range(t.start + 3 * t.period):
            again = position + 1000 * t.period if position >= t.start else position
            assert t.phase(again) == t.phase(position)
            assert t.counts(again, steps, final) is t.counts(position, steps, final)
            assert t.outputs(again, steps, final) == t.counts(position, steps, final).outputs

    def test_calls_add_up(self):
        t = self.table()
        for cuts in ([1] * 40, [3, 0, 17, 20], [40]):
            position, total = 0, np.zeros(3, int)
            for n in cuts:
                total += t.counts(position, n).outputs
                position += n
            total += t.counts(position, 0, True).outputs
            assert total.tolist() == [20, 60, 60]

    def test_a_long_stream_knows_few_counts(self):
        s, x = same().stream(), fed(1)
        for _ in range(200):
            s.step(x[0])
        assert len(s._timetable._by_number) <= 2

    def test_paces_that_are_equal_are_one(self):
        t = Timetable()
        assert t.add(Clock("window", TIME, (INPUT,), reach=5, begin=4)) == INPUT
        assert t.add(Clock("window", TIME, (INPUT,), reach=5, begin=2, end=2)) != INPUT


class TestPool:
    def test_slots_at_other_positions_have_the_bits_of_streams(self):
        """Values over time too: those of a sequence that ends here, None where it is too short."""
        stack = Stack().conv(k=5, stride=2, pads=(1, 2)).cell(H=4)
        steps = stack.x
        model = Model(stack.last().done(steps))
        x, pool = fed(16, batch=3), model.pool(capacity=3)
        slots, streams = [pool.open() for _ in range(3)], [model.stream() for _ in range(3)]
        rng = np.random.default_rng(2)

        def alike(ours, theirs):
            for a, b in zip(ours, theirs, strict=True):
                assert (a is None) == (b is None)
                assert a is None or a.tobytes() == b.tobytes()

        for t in range(16):
            some = [i for i in range(3) if rng.random() < 0.6]
            got = pool.step([slots[i] for i in some], x[some, t]) if some else []
            for i, ours in zip(some, got, strict=True):
                alike(ours, streams[i].step(x[i, t]))
        for i in range(3):
            alike(pool.flush(slots[i]), streams[i].flush())
