"""The robustness analysis: figures with a known truth, data from files, and what it says of models of all kinds."""

import json
import math
import wave
from pathlib import Path

import numpy as np
import pytest
from graph_builder import GraphBuilder

import fastrnn
from fastrnn.graph import dims as D
from fastrnn.graph import reference
from fastrnn.graph.cells import Activation, CellSpec
from fastrnn.insight import analysis
from fastrnn.insight.analysis import corruption, float64, memory, precision
from fastrnn.insight.analysis.figures import DEFINITIONS, ErrorFigures
from fastrnn.insight.analysis.runner import Runner
from fastrnn.model import Model

pytestmark = pytest.mark.any_isa
ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "tone_words.onnx"
BOTH_WAYS = ROOT / "tests" / "data" / "onnx" / "bigru_stacked.script.onnx"
FAST = {"long_steps": 300, "seconds": 0.3}


def linear_rnn(radius, H=6, seed=0, identity_input=False):
    """h = radius * Q h + W x, Q orthogonal: a push of h shrinks by `radius` a step, whatever x is."""
    rng = np.random.default_rng(seed)
    Q, _ = np.linalg.qr(rng.standard_normal((H, H)))
    build = GraphBuilder("linear")
    x = build.input("x", "float32", D.BATCH, D.TIME, H)
    W = np.eye(H) if identity_input else rng.standard_normal((H, H))
    constants = {"W": W, "R": radius * Q}
    names = [build.constant(n, a.astype(np.float32)) for n, a in constants.items()]
    turned = build.add("transpose", x, perm=(1, 0, 2))
    spec = CellSpec("rnn", H, H, activations=(Activation("affine", 1.0, 0.0),))
    y = build.add("cell", turned, *names, name="cell", outputs=("h",), spec=spec)[0]
    return Model(build.done(build.add("transpose", y, name="y", perm=(1, 0, 2))), threads=1)


class TestMemory:
    @pytest.mark.parametrize("radius", [0.5, 0.9, 0.97])
    def test_the_forgetting_time_of_a_linear_rnn_is_that_of_its_spectral_radius(self, radius):
        found = analysis.analyze(linear_rnn(radius), long_steps=300, seconds=60.0)  # ends long before
        # radius ** n <= 0.01 first holds at n = log 0.01 / log radius.
        expected = math.ceil(math.log(0.01) / math.log(radius))
        assert found.forgetting.steps == pytest.approx(expected, abs=1)
        assert found.forgetting.worst == pytest.approx(expected, abs=1)
        assert found.forgetting.decay == pytest.approx(radius, rel=0.01)
        np.testing.assert_allclose(found.forgetting.curve[:4], [1, radius, radius**2, radius**3], rtol=0.01)

    def test_a_state_that_is_never_forgotten(self):
        found = memory.forgetting(Runner(linear_rnn(1.0)), {"x": np.zeros((1, 20, 6), np.float32)}, _rng(), seconds=0.1)
        assert found.steps is None
        assert found.worst is None
        assert found.decay == pytest.approx(1.0, abs=1e-4)

    def test_a_fresh_stream_is_wrong_as_long_as_the_state_is_remembered(self):
        x = {"x": np.ones((1, 400, 6), np.float32)}
        found = memory.forgetting(Runner(linear_rnn(0.9)), x, _rng())
        assert 20 < found.warm_up < 60  # 0.9 ** 44 is 1 %
        assert memory.forgetting(Runner(linear_rnn(0.999)), x, _rng(), 0.1).warm_up is None

    def test_a_touch_dies_out_as_the_state_does(self):
        x = {"x": np.ones((2, 100, 6), np.float32)}
        found = memory.touch(Runner(linear_rnn(0.8, identity_input=True)), x, _rng())
        np.testing.assert_allclose(found.response[:10], 0.8 ** np.arange(10), rtol=1e-3)
        assert found.total == pytest.approx(5.0, rel=0.01)  # 1 / (1 - 0.8)
        assert found.half == 3  # 1 + 0.8 + 0.64 + 0.512 > 2.5

    def test_settled(self):
        assert memory._settled(np.array([1.0, 0.5, 0.0]), 0.5) == 1
        assert memory._settled(np.array([1.0, 0.1, 1.0, 0.1]), 0.5) == 3
        assert memory._settled(np.array([0.1]), 0.5) == 0
        assert memory._settled(np.array([1.0, np.nan]), 0.5) is None


def _rng():
    return np.random.default_rng(0)


class TestCorruption:
    x = np.random.default_rng(1).standard_normal((2, 5000, 4)).astype(np.float32)

    @pytest.mark.parametrize("spoil", [corruption._noise, corruption._impulses])
    @pytest.mark.parametrize("snr", [0, 20])
    def test_noise_has_the_power_that_it_should(self, spoil, snr):
        added = spoil(self.x, snr, _rng()) - self.x
        ratio = 10 * np.log10(np.mean(self.x**2) / np.mean(added**2))
        assert ratio == pytest.approx(snr, abs=0.5)

    def test_dropped_steps_are_all_zero(self):
        kept = np.any(corruption._drop_steps(self.x, 0.2, _rng()) != 0, axis=2)
        assert np.mean(kept) == pytest.approx(0.8, abs=0.02)
        assert not np.all(np.any(corruption._drop_steps(self.x[:, :3], 0.0, _rng()) != 0, axis=2))

    def test_dropped_features_are_gone_at_every_step(self):
        left = np.any(corruption._drop_features(self.x, 0.25, _rng()) != 0, axis=(0, 1))
        assert left.sum() == 3

    def test_saturation(self):
        assert np.abs(corruption._saturate(self.x, 0.5, _rng())).max() == pytest.approx(np.abs(self.x).max() / 2)

    def test_gaps_of_a_model_without_memory(self):
        """y = x: within a gap the output is what was fed, after it nothing is wrong."""
        runner = Runner(linear_rnn(0.0, identity_input=True))
        x = {"x": np.ones((1, 60, 6), np.float32)}
        found = {(g.steps, g.fill): g for g in corruption.gaps(runner, x, ErrorFigures(runner.run(x)))}
        assert {steps for steps, _ in found} == {1, 5}
        assert found[5, "zeroed"].error_within == pytest.approx(1.0)
        assert found[5, "held"].error_within == found[5, "skipped"].error_within == 0
        assert all(g.error_after == 0 and g.recovery == 0 for g in found.values())

    def test_a_skipped_gap_leaves_the_state_as_it_was(self):
        runner = Runner(linear_rnn(0.5))
        x = {"x": np.random.default_rng(0).standard_normal((2, 40, 6)).astype(np.float32)}
        y = corruption._skipped(runner, x, 10, 15)[0]
        joined = {"x": np.delete(x["x"], np.s_[10:15], axis=1)}
        np.testing.assert_array_equal(np.delete(y, np.s_[10:15], axis=1), runner.run(joined)[0])
        np.testing.assert_array_equal(y[:, 10:15], np.repeat(y[:, 9:10], 5, axis=1))


class TestFigures:
    def test_relative_error_and_largest_change(self):
        figures = ErrorFigures([np.array([[3.0, 4.0]]), np.array([[0.0, 5.0]])])
        relative, largest, decisions = figures.errors([np.array([[3.0, 4.0]]), np.array([[0.0, 4.0]])])
        assert relative == pytest.approx(1 / math.sqrt(50))
        assert (largest, decisions) == (1.0, None)

    def test_decisions(self):
        soft = np.array([[[0.9, 0.1], [0.2, 0.8]]])
        assert ErrorFigures([soft]).errors([np.array([[[0.4, 0.6], [0.2, 0.8]]])])[2] == 0.5
        assert ErrorFigures([np.log(soft)]).decides == ["largest"]
        assert ErrorFigures([np.array([[[0.7], [0.2]]])]).errors([np.array([[[0.6], [0.9]]])])[2] == 0.5
        assert ErrorFigures([np.array([[[0.7, 0.9]]])]).decides == ["above 0.5"]
        assert ErrorFigures([np.random.default_rng(0).random((1, 3, 257))]).decides == [None]

    def test_outputs_that_say_nothing_are_told(self):
        assert "all zero" in ErrorFigures([np.zeros((1, 2))]).problems[0]
        assert "NaN" in ErrorFigures([np.full((1, 2), np.nan)]).problems[0]


class TestPrecision:
    @pytest.mark.parametrize(
        "spec",
        [
            CellSpec("lstm", 3, 4),
            CellSpec("lstm", 3, 4, input_forget=True, clip=0.5),
            CellSpec("gru", 3, 4),
            CellSpec("gru", 3, 4, linear_before_reset=True),
            CellSpec("rnn", 3, 4),
        ],
    )
    @pytest.mark.parametrize("peephole", [False, True])
    def test_the_quick_float64_cell_is_the_reference(self, spec, peephole):
        rng = np.random.default_rng(0)
        rows = spec.gates * 4
        P = rng.standard_normal(12) if peephole and spec.kind == "lstm" else None
        args = [rng.standard_normal(s) for s in ((7, 2, 3), (rows, 3), (rows, 4), (rows,), (rows,))]
        states = [rng.standard_normal((2, 4)) for _ in range(2)]
        for got, want in zip(
            float64.cell(spec, *args, P, *states), reference.cell(spec, *args, P, *states), strict=True
        ):
            np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-14)

    @pytest.mark.parametrize("kind", ["gru", "lstm"])
    def test_a_float64_step_runs_cells_over_an_axis_of_its_own_both_ways(self, kind):
        """A step function of [batch, 5, 3]: its cells run over the 5, in both directions, with no state between steps;
        what is between steps is a sum that the caller threads."""
        rng = np.random.default_rng(0)
        build = GraphBuilder("inner")
        x = build.input("x", "float32", D.BATCH, 5, 3)
        kept = build.input("kept", "float32", 5, D.BATCH, 4)
        turned, made = build.add("transpose", x, perm=(1, 0, 2)), kept
        for reverse in (False, True):
            spec = CellSpec(kind, 3, 4, reverse=reverse)  # of GRUs the form that has no quick way
            shapes = {"W": (spec.gates * 4, 3), "R": (spec.gates * 4, 4)}
            names = [
                build.constant(f"{n}{reverse}", 0.5 * rng.standard_normal(s).astype(np.float32))
                for n, s in shapes.items()
            ]
            y = build.add("cell", turned, *names, name=f"cell{reverse}", outputs=(f"y{reverse}",), spec=spec)[0]
            made = build.add("binary", made, y, fn="add")
        doubled = build.add("binary", made, made, fn="add", name="doubled")
        model = Model(build.done(doubled, made, states={"kept": made}))
        runner = Runner(model)
        chunk = {"x": rng.standard_normal((1, 6, 5, 3)).astype(np.float32)}
        exact = float64.Float64(model.graph)
        parts = [exact.push(runner.cut(chunk, a, b), runner)[0] for a, b in ((0, 4), (4, 6))]
        state = np.zeros((5, 1, 4))
        for t, got in enumerate(np.concatenate(parts, axis=1)[0]):
            want, state = reference.run(model.graph, {"x": chunk["x"][:, t], "kept": state})
            np.testing.assert_allclose(got, want.reshape(got.shape), rtol=1e-12, atol=1e-13)

    def test_drift_of_a_masked_cell(self):
        """Its state is carried from chunk to chunk, steps that the mask leaves out included."""
        spec = CellSpec("gru", 3, 4, linear_before_reset=True)
        rng = np.random.default_rng(0)
        build = GraphBuilder("masked")
        x = build.input("x", "float32", D.TIME, D.BATCH, 3)
        mask = build.input("mask", "bool", D.TIME, D.BATCH)
        shapes = {"W": (12, 3), "R": (12, 4)}
        names = [build.constant(n, rng.standard_normal(s).astype(np.float32)) for n, s in shapes.items()]
        given = (x, *names, *[None] * 6, mask)
        y = build.add("cell", *given, name="cell", outputs=("y",), spec=spec)[0]
        runner = Runner(Model(build.done(y)))
        data = {"x": rng.standard_normal((1, 40, 3)).astype(np.float32), "mask": rng.random((1, 40)) < 0.7}
        assert float64.chunkable(runner, data)
        found = precision.drift(runner, data, 300, 60.0, lambda share: None)
        assert (found.compared, found.how) == (300, "chunk by chunk")
        assert max(error for _, error in found.spans) < 1e-6

    def test_drift_where_ops_look_beyond_their_step(self):
        """A causal convolution: float64 runs the first steps at once, and the float32 stream is compared with them."""
        build = GraphBuilder("causal")
        x = build.input("x", "float32", D.BATCH, 2, D.TIME)
        W = build.constant("W", np.random.default_rng(0).standard_normal((3, 2, 4)).astype(np.float32))
        runner = Runner(Model(build.done(build.add("conv", x, W, strides=(1,), dilations=(1,), pads=(3, 0), groups=1))))
        data = {"x": np.random.default_rng(1).standard_normal((1, 30, 2)).astype(np.float32)}
        assert not float64.chunkable(runner, data)
        found = precision.drift(runner, data, 200, 60.0, lambda share: None)
        assert (found.steps, found.compared, found.how) == (200, 200, "in one run")
        assert 0 < found.spans[-1][1] < 1e-6

    def test_a_stream_whose_attention_ends_is_looked_at_as_far_as_it_goes(self):
        model = fastrnn.load(ROOT / "tests" / "data" / "onnx" / "causal_block.dynamo_frozen.onnx")
        found = fastrnn.analyze(model, steps=1100, long_steps=3000, seconds=0.4)
        assert found.steps == found.drift.steps == 1024
        assert any("1,024 steps" in text for text in found.skipped)

    def test_drift_keeps_to_its_time(self, monkeypatch):
        """However slow float64 is, or the model: about as many seconds as were given, not those of a whole chunk."""
        now = [0.0]
        monkeypatch.setattr(precision.time, "monotonic", lambda: now[0])
        push, answers = float64.Float64.push, Runner.answers

        def slow_push(self, chunk, runner):
            now[0] += 0.1 * runner.steps_of(chunk)
            return push(self, chunk, runner)

        def slow_answers(self, stream, x, last=False):
            now[0] += 0.001 * self.steps_of(x)
            return answers(self, stream, x, last)

        runner = Runner(_adder(0.5))
        x = {"x": np.full((1, 50, 6), 0.1, np.float32)}
        monkeypatch.setattr(precision, "chunkable", lambda runner, x: True)
        monkeypatch.setattr(precision.Float64, "push", slow_push)
        monkeypatch.setattr(Runner, "answers", slow_answers)
        found = precision.drift(runner, x, 100_000, 4.0, lambda share: None)
        assert 20 <= found.compared <= 45
        assert now[0] <= 7.0
        assert found.steps > 500

    def test_drift_finds_what_float32_loses(self):
        """h = h + x in float32: the error grows with the sum; with a decay it does not."""
        x = {"x": np.full((1, 50, 6), 0.1, np.float32)}
        grows = precision.drift(Runner(_adder(1.0)), x, 4000, 60.0, lambda share: None)
        settles = precision.drift(Runner(_adder(0.5)), x, 4000, 60.0, lambda share: None)
        assert grows.compared == settles.compared == grows.steps == 4000
        assert grows.spans[-1][1] > 5 * settles.spans[-1][1]
        assert settles.spans[-1][1] < 1e-6
        assert grows.finite
        assert grows.largest_state == pytest.approx(400, rel=0.01)

    def test_a_stream_that_explodes_is_told(self):
        x = {"x": np.ones((1, 50, 6), np.float32)}
        assert not precision.drift(Runner(_adder(1.5)), x, 400, 60.0, lambda share: None).finite


def _adder(factor, H=6):
    build = GraphBuilder("adder")
    x = build.input("x", "float32", D.TIME, D.BATCH, H)
    names = [build.constant(n, np.eye(H, dtype=np.float32) * f) for n, f in (("W", 1.0), ("R", factor))]
    spec = CellSpec("rnn", H, H, activations=(Activation("affine", 1.0, 0.0),))
    return Model(build.done(build.add("cell", x, *names, name="cell", outputs=("y",), spec=spec)[0]), threads=1)


class TestModels:
    def test_the_example(self):
        seen = []
        found = fastrnn.analyze(
            fastrnn.load(EXAMPLE), steps=60, progress=lambda s, t: seen.append(s), long_steps=300, seconds=60.0
        )
        assert found.synthetic
        assert (found.steps, found.rows, found.streamed) == (60, 2, True)
        assert [level.decides for level in found.levels] == ["above 0.5"]
        assert {c.kind for c in found.corruptions} <= set(DEFINITIONS) | {"noise", "impulses"}
        noise = [c.relative_error for c in found.corruptions if c.kind == "noise"]
        assert noise[0] < noise[-1]
        assert {(g.steps, g.fill) for g in found.gaps} >= {(1, "zeroed"), (5, "held"), (5, "skipped")}
        assert [r.to for r in found.roundings] == ["bfloat16", "int8", "int8-a16"]
        assert 0.5 <= found.roundings[0].bytes_after / found.roundings[0].bytes_before < 0.6  # biases stay float32
        assert found.drift.compared == 300
        assert found.drift.spans[-1][1] < 1e-5
        assert seen == sorted(seen)
        json.dumps(found.as_dict(), allow_nan=False)
        assert isinstance(found, fastrnn.Analysis)

    def test_a_model_that_does_not_stream(self):
        found = analysis.analyze(fastrnn.load(BOTH_WAYS), steps=20, **FAST)
        assert not found.streamed
        assert found.forgetting is None
        assert found.drift is None
        assert any("needs the future" in text for text in found.skipped)
        assert found.corruptions
        assert {g.fill for g in found.gaps} == {"zeroed", "held"}

    def test_the_same_seed_gives_the_same_figures(self):
        a, b = (analysis.analyze(linear_rnn(0.5), steps=30, seed=3, **FAST).as_dict() for _ in range(2))
        assert a == b

    def test_whole_runs_and_streams_see_the_same_axes(self):
        """A model whose file is time first: data are [rows, T, features] all the same."""
        model = _adder(0.0)
        x = {"x": np.random.default_rng(0).standard_normal((3, 8, 6)).astype(np.float32)}
        runner = Runner(model)
        streamed = runner.run(x)[0]
        runner.streams = False
        np.testing.assert_array_equal(runner.run(x)[0], streamed)
        np.testing.assert_array_equal(streamed, x["x"])


class TestData:
    def test_npy_npz_and_csv(self, tmp_path):
        x = np.random.default_rng(0).standard_normal((30, 20)).astype(np.float32)
        np.save(tmp_path / "x.npy", x)
        np.savez(tmp_path / "x.npz", bands=x)
        np.savetxt(tmp_path / "x.csv", x, "%.9g", ",")
        (tmp_path / "head.csv").write_text(
            ",".join(f"f{i}" for i in range(20)) + "\n" + (tmp_path / "x.csv").read_text()
        )
        runner = Runner(fastrnn.load(EXAMPLE))
        for name in ("x.npy", "x.npz", "x.csv", "head.csv"):
            data = fastrnn.load_data(tmp_path / name)
            assert not data.synthetic
            np.testing.assert_allclose(runner.fit(data.arrays, 400, 8)["bands"], x[None], rtol=1e-6)

    def test_wav_is_cut_into_steps(self, tmp_path):
        pytest.importorskip("soundfile")
        sound = (np.sin(np.arange(1030) / 10) * 20000).astype("<i2")
        with wave.open(str(tmp_path / "s.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16000)
            file.writeframes(sound.tobytes())
        runner = Runner(fastrnn.load(EXAMPLE))
        found = runner.fit(fastrnn.load_data(tmp_path / "s.wav").arrays, 400, 8)["bands"]
        assert found.shape == (1, 51, 20)
        np.testing.assert_allclose(found.ravel(), sound[:1020] / 32768, atol=1e-6)

    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("x.npy", b"junk"),
            ("x.npz", b"junk"),
            ("x.csv", b"a,b\n1,x\n"),
            ("x.wav", b"junk"),
            ("x.txt", b"1"),
            ("x.npy", b""),
        ],
    )
    def test_files_that_are_none(self, tmp_path, name, content):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(fastrnn.ModelFormatError, match=r"x\."):
            fastrnn.load_data(tmp_path / name)

    def test_csv_with_a_head_and_without(self, tmp_path):
        numbers = "1,2\n3,4\n"
        for text in (numbers, "a,b\n" + numbers, "\ufeffa,b\r\n1,2\r\n3,4\r\n", "\n\n" + numbers):
            (tmp_path / "x.csv").write_text(text, encoding="utf-8")
            assert fastrnn.load_data(tmp_path / "x.csv").arrays.tolist() == [[1, 2], [3, 4]]

    @pytest.mark.parametrize("text", ["", "\n", "a,b\n", "1,b\n3,4\n", "1,2\n3\n"])
    def test_csv_that_is_none(self, tmp_path, text):
        """A first line with one number and one word is a row with an error, not a head."""
        (tmp_path / "x.csv").write_text(text)
        with pytest.raises(fastrnn.ModelFormatError):
            fastrnn.load_data(tmp_path / "x.csv")

    def test_data_of_zeros_are_told(self):
        found = fastrnn.analyze(fastrnn.load(EXAMPLE), np.zeros((12, 20), np.float32), **FAST)
        assert any("the data for bands are all zero" in text for text in found.skipped)

    def test_the_shape_in_an_error_is_that_of_the_data(self):
        with pytest.raises(fastrnn.ShapeError, match=r"got \[30, 19\]"):
            fastrnn.analyze(fastrnn.load(EXAMPLE), np.zeros((30, 19), np.float32))

    def test_no_pickle_is_opened(self, tmp_path):
        np.save(tmp_path / "x.npy", np.array([{}], object), allow_pickle=True)
        with pytest.raises(fastrnn.ModelFormatError):
            fastrnn.load_data(tmp_path / "x.npy")
        with pytest.raises(FileNotFoundError):
            fastrnn.load_data(tmp_path / "y.npy")

    @pytest.mark.parametrize(
        ("data", "words"),
        [
            (np.zeros((30, 19), np.float32), r"takes data \[T, 20\]"),
            (np.zeros((1, 20), np.float32), "at least 2"),
            (np.full((30, 20), np.nan, np.float32), "NaN"),
            (np.zeros((30, 20), complex), "float32"),
            ({"x": np.zeros((30, 20)), "y": np.zeros(1)}, "lack"),
            (np.zeros((2, 3, 30, 20), np.float32), "takes data"),
        ],
    )
    def test_data_that_do_not_fit(self, data, words):
        with pytest.raises(fastrnn.ShapeError, match=words):
            fastrnn.analyze(fastrnn.load(EXAMPLE), data, **FAST)

    def test_arguments_that_make_no_sense(self):
        for bad in ({"steps": 1}, {"long_steps": 0}, {"seconds": 0}):
            with pytest.raises(fastrnn.ShapeError):
                fastrnn.analyze(fastrnn.load(EXAMPLE), **bad)
