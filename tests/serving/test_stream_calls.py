"""Calls of a model and its streams: rows and steps, objects, and a model that was saved."""

import copy
import os
import pickle
from typing import ClassVar

import numpy as np
import pytest
from graph_builder import GraphBuilder
from test_model_stream import some, stack
from test_plan import weights

import fastrnn
from fastrnn.graph import reference
from fastrnn.graph.cells import CellSpec
from fastrnn.graph.dims import BATCH, TIME
from fastrnn.model import Model


class TestRowsAndSteps:
    """What lets rows of a batch or steps of a sequence meet is found before anything is run."""

    def graph(self, build, *dims):
        b = GraphBuilder("meet")
        return b.done(build(b, b.input("x", "float32", *(dims or (BATCH, TIME, 4)))))

    def cell(self, b, x, h0=None, name="c"):
        rng = np.random.default_rng(1)
        args = (weights(rng, b, f"{name}W", 12, 4), weights(rng, b, f"{name}R", 12, 4))
        x = b.add("transpose", x, perm=(1, 0, 2))
        y, h = b.add(
            "cell",
            x,
            *args,
            None,
            None,
            None,
            h0,
            outputs=(f"{name}y", f"{name}h"),
            name=name,
            spec=CellSpec("gru", 4, 4),
        )
        return b.add("transpose", y, perm=(1, 0, 2)), h

    BATCHES: ClassVar = {
        "softmax over rows": lambda b, x: b.add("softmax", x, axis=0, log=False),
        "mean over rows": lambda b, x: b.add("reduce", x, fn="mean", axes=(0,), keepdims=False),
        "rows reversed": lambda b, x: b.add("slice", x, axis=0, start=BATCH - 1, stop=-1, step=-1),
        "first row": lambda b, x: b.add("slice", x, axis=0, start=0, stop=1, step=1),
        "twice the rows": lambda b, x: b.add("concat", x, x, axis=0),
        "rows and steps swapped": lambda b, x: b.add("reshape", x, dims=(TIME, BATCH, 4)),
    }

    @pytest.mark.parametrize("name", BATCHES)
    def test_rows_that_meet(self, name):
        model = Model(self.graph(self.BATCHES[name]))
        assert not model.streamable
        with pytest.raises(fastrnn.StreamError, match=r"node_\w+|output"):
            model.stream(batch_size=2)
        with pytest.raises(fastrnn.ShapeError, match=r"lengths don't apply|must be plain batch"):
            model(some(2, 3, 4), lengths=[1, 3])

    def steps(self, name):
        def build(b, x):
            y, h = self.cell(b, x)
            if name == "minus its mean":
                return b.add("binary", y, b.add("reduce", y, fn="mean", axes=(1,), keepdims=True), fn="sub")
            if name == "plus its last step":
                return b.add("binary", y, b.add("slice", y, axis=1, start=TIME - 1, stop=TIME, step=1), fn="add")
            if name == "last state spread":
                return b.add("binary", y, b.add("reshape", h, dims=(BATCH, 1, 4)), fn="add")
            if name == "decoder from the last state":
                return self.cell(b, x, h0=h, name="d")[0]
            if name == "decoder over the last step":
                last = b.add("slice", y, axis=1, start=TIME - 1, stop=TIME, step=1)
                return self.cell(b, b.add("expand", last, dims=(BATCH, TIME, 4)), name="d")[0]
            assert name == "variance"
            d = b.add("binary", y, b.add("reduce", y, fn="mean", axes=(1,), keepdims=True), fn="sub")
            return b.add("reduce", b.add("binary", d, d, fn="mul"), fn="mean", axes=(1,), keepdims=False)

        return self.graph(build)

    STEPS = ("minus its mean", "plus its last step", "last state spread", "decoder from the last state",
             "decoder over the last step", "variance")  # fmt: skip

    @pytest.mark.parametrize("name", STEPS)
    def test_a_value_of_all_steps_must_not_meet_a_step(self, name):
        model = Model(self.steps(name))
        assert not model.streamable
        with pytest.raises(fastrnn.StreamError, match="whole sequence together with its single steps"):
            model.stream()
        (want,) = reference.run(model.graph, {"x": some(2, 5, 4)})
        assert np.abs(model(some(2, 5, 4)) - want).max() < 1e-5

    def test_merged_axes_stay_apart(self):
        """[batch, time, 4] as [batch*time, 4] and back keeps rows and steps; so does [time*batch, 4]."""

        def build(b, x):
            flat = b.add("unary", b.add("reshape", x, dims=(BATCH * TIME, 4)), fn="tanh", alpha=0.0, beta=0.0)
            y, _ = self.cell(b, b.add("reshape", flat, dims=(BATCH, TIME, 4)))
            back = b.add("reshape", b.add("transpose", y, perm=(1, 0, 2)), dims=(BATCH * TIME, 2, 2))
            return b.add("reshape", back, name="y", dims=(TIME, BATCH, 4))

        model, x = Model(self.graph(build)), some(3, 9, 4)
        y = model(x)
        assert np.array_equal(model.stream(batch_size=3).push(x), y.swapaxes(0, 1))

    def test_a_constant_output_has_no_rows(self):
        b = GraphBuilder("constant")
        x = b.input("x", "float32", BATCH, TIME, 4)
        c = b.add("unary", b.constant("c", some(5)), fn="tanh", alpha=0.0, beta=0.0)
        model = Model(b.done(self.cell(b, x)[0], c))
        _, got = model.stream(batch_size=3).step(some(3, 4))
        assert np.array_equal(got, model.run(some(1, 1, 4))[1])

    def test_many_axes(self):
        model = Model(self.graph(lambda b, x: self.cell(b, b.add("reshape", x, dims=(BATCH, TIME, 4)))[0],
                                 BATCH, TIME, *[1] * 10, 4))  # fmt: skip
        x = some(2, 3, *[1] * 10, 4)
        assert np.array_equal(model.stream(batch_size=2).push(x), model(x))
        assert np.array_equal(model.stream().step(x[0, 0]), model(x)[0, 0])

    def test_neither_time_nor_state(self):
        model = Model(self.graph(lambda b, x: b.add("unary", x, fn="tanh", alpha=0.0, beta=0.0), BATCH, 9, 4))
        assert not model.streamable
        with pytest.raises(
            fastrnn.StreamError, match=r"neither a time axis nor a state .*; by their sizes states="
        ) as e:
            model.stream()
        (x,), (y,) = model.graph.inputs, model.graph.outputs
        assert str(e.value).endswith(f"states={{...}} could continue {x!r} from {y!r}")

    def test_a_state_that_is_read_elsewhere_too(self):
        b = GraphBuilder("leak")
        x, h0 = b.input("x", "float32", BATCH, TIME, 4), b.input("h0", "float32", BATCH, 4)
        y, h = self.cell(b, x, h0=h0)
        model = Model(
            b.done(b.add("binary", y, b.add("reshape", h0, dims=(BATCH, 1, 4)), fn="add"), h, states={"h0": h})
        )
        assert not model.streamable
        assert model.states == ()
        with pytest.raises(fastrnn.StreamError, match="state h0"):
            model.stream()
        assert model(some(2, 3, 4)).shape == (2, 3, 4)

    def test_a_third_free_size_is_run_and_may_be_fixed_at_load(self, tmp_path):
        from fastrnn.graph.dims import symbol

        model = Model(self.graph(lambda b, x: b.add("softmax", x, axis=2, log=False), BATCH, TIME, symbol("width")))
        for width in (*range(1, 20), 3):
            x = some(2, 3, width)
            (want,) = reference.run(model.graph, {"x": x})
            assert np.abs(model(x) - want).max() < 1e-6
        model.save(tmp_path / "m.fastrnn")
        fixed = fastrnn.load(tmp_path / "m.fastrnn", sizes={"width": 3})
        assert np.array_equal(fixed.stream(batch_size=2).push(x), model(x))
        with pytest.raises(fastrnn.ShapeError, match="no input has the size 'height'"):
            fastrnn.load(tmp_path / "m.fastrnn", sizes={"height": 3})

    def test_a_third_free_size_is_that_of_the_first_step(self):
        from fastrnn.graph.dims import symbol

        model = Model(self.graph(lambda b, x: b.add("softmax", x, axis=2, log=False), BATCH, TIME, symbol("width")))
        assert model.streamable
        stream, x = model.stream(batch_size=2), some(2, 3, 7)
        for call in (lambda: stream.state, stream.flush, stream.snapshot):
            with pytest.raises(fastrnn.StreamError, match="width is known from the first step on"):
                call()
        with pytest.raises(fastrnn.ShapeError, match="a step has 1 axes"):
            stream.step(np.float32(0))
        stream.reset()
        other, whole = stream.copy(), model(x)
        assert np.array_equal(stream.push(x), whole)
        assert np.array_equal(other.step(x[:, 0]), whole[:, 0])
        assert np.array_equal(stream.copy().step(x[:, 1]), whole[:, 1])
        with pytest.raises(fastrnn.ShapeError, match=r"one step is \[2, 7\], got \[2, 6\]"):
            stream.step(some(2, 6))
        assert np.array_equal(model.stream().step(x[0, 0, :4]), model(x[:1, :1, :4])[0, 0])
        sized = list(model._core._fixed.values())
        assert len(sized) == 2
        assert model.memory_bytes >= sum(p.scratch_bytes for m in sized for p in m._programs.values()) > 0


class TestObjects:
    def test_a_model_is_pickled_as_its_file(self):
        model, x = Model(stack()), some(2, 5, 5)
        again = pickle.loads(pickle.dumps(model))
        assert np.array_equal(again(x), model(x))
        assert again.fingerprint == model.fingerprint
        assert copy.deepcopy(model) is model
        with pytest.raises(AttributeError):
            model.inputs = ()

    def test_a_stream_is_copied_but_not_pickled(self):
        s = Model(stack()).stream()
        s.push(some(7, 5))
        twin = copy.deepcopy(s)
        assert (twin.steps_done, s.steps_done) == (7, 7)
        assert np.array_equal(twin.step(some(5)), s.step(some(5)))
        s.reset()
        assert s.steps_done == 0
        with pytest.raises(TypeError, match="can't be pickled"):
            pickle.dumps(s)

    def test_a_stream_in_use_is_not_read(self):
        s = Model(stack()).stream()
        with s._held():
            for use in (s.reset, s.copy, lambda: s.state, lambda: s.step(some(5)), lambda: s.push(some(2, 5))):
                with pytest.raises(fastrnn.StreamError, match="another thread"):
                    use()
        s.step(some(5))

    @pytest.mark.parametrize("state", [None, 3, {"a": 1}])
    def test_a_state_is_a_dict_of_arrays(self, state):
        s = Model(stack()).stream()
        with pytest.raises(fastrnn.StateError, match="state"):
            s.state = state

    def test_a_state_keeps_its_dtype(self):
        s = Model(stack()).stream()
        for wrong in (np.zeros(20, complex), np.full(20, 1e300), np.array(["a"] * 20)):
            with pytest.raises(fastrnn.ShapeError, match=r"state node_cell0\.h"):
                s.state = s.state | {"node_cell0.h": wrong}

    @pytest.mark.parametrize("x", [[[1.0, 2.0], [3.0]], object(), "text"])
    def test_what_is_no_array(self, x):
        with pytest.raises(fastrnn.ShapeError, match="input x"):
            Model(stack()).run(x)

    def test_outs_that_overlap(self):
        b = GraphBuilder("two")
        x = b.input("x", "float32", BATCH, TIME, 3)
        s = Model(b.done(*(b.add("reduce", x, fn=fn, axes=(1,), keepdims=False) for fn in ("max", "min")))).stream()
        out = np.zeros(5, np.float32)
        with pytest.raises(fastrnn.ShapeError, match="shares memory"):
            s.step(some(3), out=(out[:3], out[2:]))

    def test_scratch_of_many_lengths_is_given_back(self):
        model = Model(stack())
        for n in range(50):
            model(some(16, 5000 + n, 5))
        assert model.memory_bytes < 64 << 20
        model(some(1, 3, 5))
        assert np.array_equal(model(some(16, 50, 5)), model(some(16, 50, 5)))

    def test_a_row_without_steps_is_named(self):
        with pytest.raises(fastrnn.ShapeError, match="row 1, of length 0"):
            Model(stack(last=True))(some(3, 4, 5), lengths=[2, 0, 4])

    def test_save_keeps_to_its_suffix_and_the_umask(self, tmp_path):
        model = Model(stack())
        with pytest.raises(fastrnn.ModelFormatError, match=r"\.fastrnn"):
            model.save(tmp_path / "model")
        before = os.umask(0o077)
        try:
            model.save(tmp_path / "m.fastrnn")
        finally:
            os.umask(before)
        assert (tmp_path / "m.fastrnn").stat().st_mode & 0o777 == 0o600


class TestArtifact:
    def test_saved_and_loaded_gives_the_same_bits(self, tmp_path):
        model, x = Model(stack("gru")), some(2, 30, 5)
        model.save(tmp_path / "m.fastrnn")
        again = fastrnn.load(tmp_path / "m.fastrnn")
        assert np.array_equal(again(x), model(x))
        assert again.fingerprint == model.fingerprint
        assert str(again.graph) == str(model.graph)
        assert np.array_equal(fastrnn.load((tmp_path / "m.fastrnn").read_bytes())(x), model(x))
        assert [p.name for p in tmp_path.iterdir()] == ["m.fastrnn"]

    def test_damage_is_found(self, tmp_path):
        Model(stack("gru")).save(tmp_path / "m.fastrnn")
        good = (tmp_path / "m.fastrnn").read_bytes()
        rng = np.random.default_rng(3)
        cuts = [good[:n] for n in (0, 1, 7, 8, 100, len(good) - 1)]
        flips = []
        for at in rng.integers(0, len(good), 60):
            flips.append(bytes([*good[:at], good[at] ^ 0x55, *good[at + 1 :]]))
        for blob in cuts + flips:
            (tmp_path / "bad.fastrnn").write_bytes(blob)
            with pytest.raises(fastrnn.ModelFormatError):
                fastrnn.load(tmp_path / "bad.fastrnn")
