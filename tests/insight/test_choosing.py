"""choose_precision: what is kept fits the data as a whole, is not slower, and follows from times and errors alone."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from graph_builder import GraphBuilder

import fastrnn
from fastrnn.graph import dims as D
from fastrnn.graph.cells import CellSpec
from fastrnn.insight import choosing
from fastrnn.insight.analysis.runner import Runner
from fastrnn.insight.choosing import timing
from fastrnn.insight.choosing.search import Option, search, worth_trying, worthwhile
from fastrnn.insight.profiling import Call
from fastrnn.model import Model

pytestmark = pytest.mark.any_isa
DATA = Path(__file__).resolve().parents[1] / "data" / "onnx"
MODELS = Path(__file__).resolve().parents[3] / "shared" / "models"
# How long a layer takes in each format, against float32.
SPEED = {"float32": 1.0, "bfloat16": 0.7, "int8-a16": 0.5, "int8": 0.4}


@pytest.fixture
def clock(monkeypatch):
    """Times that don't depend on the machine: a layer takes 1 us per weight byte in float32, times `SPEED`. Returns
    what may be changed: `speed`, and `whole`, the times of the two calls as a whole."""
    found = SimpleNamespace(speed=SPEED, whole=(100.0, 50.0), compared=0)

    def layer_times(models, batch, steps, seconds, progress=None):
        sizes = {i.name: i.bytes for i in models["float32"].layers}
        return {name: {layer: size * found.speed[name] for layer, size in sizes.items()} for name in models}

    def paired_ns(calls, seconds):
        found.compared += 1
        return found.whole[: len(calls)]

    monkeypatch.setattr(choosing, "layer_times", layer_times)
    monkeypatch.setattr(choosing, "paired_ns", paired_ns)
    return found


def two_layers(scale=None):
    """A GRU and a classifier. scale: of its logits, which then have no bias."""
    rng = np.random.default_rng(5)
    named = {"rnn.weight_ih_l0": (96, 20), "rnn.weight_hh_l0": (96, 32), "rnn.bias_ih_l0": (96,),
             "rnn.bias_hh_l0": (96,), "out.weight": (10, 32), "out.bias": (10,)}  # fmt: skip
    arrays = {n: (rng.uniform(-1, 1, s) / 5).astype(np.float32) for n, s in named.items()}
    if scale is not None:
        arrays["out.weight"] *= scale
        arrays["out.bias"][:] = 0
    return fastrnn.load(arrays, layers=["gru:rnn", "linear:out", "softmax"])


def frames(rows=2, steps=50, size=20, seed=0):
    return np.random.default_rng(seed).normal(size=(rows, steps, size)).astype(np.float32)


def error(choice, model, x):
    """The largest share of an output's largest element, measured anew."""
    (want,), (got,) = model.run(x), choice.model.run(x)
    return np.abs(got.astype(np.float64) - want).max() / np.abs(want).max()


class TestSearch:
    def test_all_of_the_fastest_if_they_fit_together(self):
        options = [Option("a", "bfloat16", 7, 3, 1e-4), Option("a", "int8", 4, 6, 1e-2), Option("b", "int8", 1, 1, 0.0)]
        assert search(options, lambda wanted: True) == {"a": "int8", "b": "int8"}
        assert search([], lambda wanted: False) == {}

    def test_what_does_not_fit_together_is_added_by_what_it_saves_for_its_error(self):
        cost = {("a", "int8"): 5, ("a", "bfloat16"): 1, ("b", "int8"): 4, ("c", "int8"): 3}
        gain = {("a", "int8"): 10, ("a", "bfloat16"): 4, ("b", "int8"): 9, ("c", "int8"): 3}
        options = [Option(*key, 20 - gain[key], gain[key], cost[key]) for key in cost]
        tried = []

        def fits(wanted):
            tried.append(wanted)
            return sum(cost[item] for item in wanted.items()) <= 6

        found = search(options, fits)
        assert found == {"a": "bfloat16", "b": "int8"}  # 4 per error, 2.25, then 2 and 1, which no longer fit
        assert tried[0] == {"a": "int8", "b": "int8", "c": "int8"}
        assert fits(found)
        assert search(options, fits) == found

    def test_a_faster_format_replaces_a_precise_one_if_it_fits(self):
        options = [Option("a", "bfloat16", 6, 4, 1.0), Option("a", "int8", 1, 9, 3.0), Option("b", "int8", 9, 1, 9.0)]
        fits = lambda wanted: "b" not in wanted  # noqa: E731
        assert search(options, fits) == {"a": "int8"}

    def test_ties_go_to_the_more_precise(self):
        options = [Option("a", "int8", 98, 102, 0.1), Option("a", "int8-a16", 100, 100, 0.2),
                   Option("b", "int8-a16", 100, 100, 0.1), Option("b", "int8", 90, 110, 0.1)]  # fmt: skip
        kept = [(o.layer, o.precision) for o in worth_trying(options)]
        assert kept == [("a", "int8-a16"), ("b", "int8-a16"), ("b", "int8")]

    @pytest.mark.parametrize(
        ("ns", "gain", "whole", "worth"),
        [(95, 5, 100, True), (96, 4, 100, False), (110, -10, 100, False), (50, 50, 1e6, False), (0, 0, 0, False),
         (math.nan, math.nan, 100, False)],
    )  # fmt: skip
    def test_what_gains_enough(self, ns, gain, whole, worth):
        assert worthwhile(ns, gain, whole) is worth


class TestChoice:
    @pytest.mark.parametrize("tolerance", [1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.3])
    def test_what_is_kept_is_within_the_tolerance(self, clock, tolerance):
        model, x = two_layers(), frames()
        choice = fastrnn.choose_precision(model, x, tolerance=tolerance)
        found = error(choice, model, x)
        assert found <= tolerance
        assert choice.outputs[0].error == pytest.approx(found, rel=1e-6)
        assert choice.outputs[0].decisions_changed <= tolerance
        assert choice.precision == {i.name: p for i, p in zip(model.layers, choice.precision.values(), strict=True)}

    def test_more_tolerance_never_saves_less(self, clock):
        model, x, saved = two_layers(), frames(), []
        for tolerance in (0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0):
            choice = fastrnn.choose_precision(model, x, tolerance=tolerance)
            chosen = [t for t in choice.trials if choice.precision[t.layer] == t.precision]
            saved.append(sum(t.gain_ns for t in chosen))
        assert saved == sorted(saved)
        assert saved[0] == 0 < saved[3] < saved[-1]

    def test_no_tolerance_leaves_the_model_itself(self, clock):
        model = two_layers()
        choice = fastrnn.choose_precision(model, frames(), tolerance=0)
        assert choice.model is model
        assert set(choice.precision.values()) == {"float32"}
        assert choice.bytes_before == choice.bytes_after
        assert all("beyond the tolerance" in t.verdict for t in choice.trials if t.precision != "float32")

    def test_any_tolerance_takes_the_fastest(self, clock):
        model = two_layers()
        choice = fastrnn.choose_precision(model, frames(), tolerance=1e9)
        assert choice.model.precision == "int8"
        assert choice.bytes_after < 0.4 * choice.bytes_before
        assert choice.after_ns == 50

    def test_decisions_count(self, clock):
        """Classes whose logits differ by less than int8's rounding: no large error, but other decisions."""
        model = two_layers(scale=1e-3)
        free = fastrnn.choose_precision(model, frames(4, 200), tolerance=1.0)
        changed = free.outputs[0].decisions_changed
        assert 0 < free.outputs[0].error < changed < 1
        choice = fastrnn.choose_precision(model, frames(4, 200), tolerance=free.outputs[0].error)
        assert choice.outputs[0].decisions_changed <= free.outputs[0].error
        assert choice.precision != free.precision

    def test_integers_of_an_output_are_decisions(self, clock):
        b, rng = GraphBuilder("words"), np.random.default_rng(0)
        x = b.input("x", "float32", D.TIME, D.BATCH, 20)
        W, R = (b.constant(n, rng.normal(size=s).astype(np.float32)) for n, s in (("W", (16, 20)), ("R", (16, 16))))
        y = b.add("cell", x, W, R, outputs=("y",), spec=CellSpec("rnn", 20, 16))[0]
        model = Model(b.done(b.add("argmax", y, axis=2, keepdims=False, last=False, largest=True)))
        choice = fastrnn.choose_precision(model, frames(2, 400), tolerance=1.0)
        (found,) = choice.outputs
        same = np.mean(model(frames(2, 400).swapaxes(0, 1)) == choice.model(frames(2, 400).swapaxes(0, 1)))
        assert found.error is None
        assert 0 < found.decisions_changed == pytest.approx(1 - same)
        tight = fastrnn.choose_precision(model, frames(2, 400), tolerance=found.decisions_changed / 2)
        assert tight.outputs[0].decisions_changed <= found.decisions_changed / 2

    def test_slow_formats_are_not_tried(self, clock):
        clock.speed = {"float32": 1.0, "bfloat16": 1.4, "int8-a16": 0.98, "int8": 1.0}
        choice = fastrnn.choose_precision(two_layers(), frames(), tolerance=1.0)
        assert choice.model.precision == "float32"
        assert {t.verdict for t in choice.trials if t.precision != "float32"} == {"not faster than float32"}
        assert all(t.errors is None for t in choice.trials)
        assert choice.table[0][-1] == "no format is faster"

    def test_a_choice_that_is_slower_as_a_whole_is_dropped(self, clock):
        clock.whole = (100.0, 101.0)
        model = two_layers()
        choice = fastrnn.choose_precision(model, frames(), tolerance=1.0)
        assert clock.compared == 2  # once more before it is believed
        assert choice.model is model
        assert choice.before_ns == choice.after_ns == 100
        assert "took 1.0% longer as a whole" in choice.notes[0]
        assert any(t.verdict == "not faster in the model as a whole" for t in choice.trials)

    def test_equal_times_and_data_give_an_equal_choice(self, clock):
        first, second = (fastrnn.choose_precision(two_layers(), frames(), tolerance=0.01) for _ in range(2))
        assert first.as_dict() == second.as_dict()
        assert first.model.fingerprint == second.model.fingerprint

    def test_layers_that_can_not_have_a_format(self, clock):
        b = GraphBuilder("odd")
        x = b.input("x", "float32", D.TIME, D.BATCH, 20)
        weights = np.ones((20, 16), np.float32) * np.linspace(0.1, 1, 16, dtype=np.float32)
        plain = {"activation": None, "alpha": 0.0, "beta": 0.0}
        first = b.add("linear", x, b.constant("A", weights), None, **plain)
        weights = np.where(np.arange(256).reshape(16, 16) == 3, np.float32(np.inf), np.float32(0.1))
        second = b.add("linear", b.add("unary", first, fn="tanh", alpha=0.0, beta=0.0), b.constant("B", weights), None,
                       **plain)  # fmt: skip
        model = Model(b.done(first, second))
        choice = fastrnn.choose_precision(model, frames(), tolerance=1.0)
        good, bad = (i.name for i in model.layers)
        assert choice.precision == {good: "int8", bad: "float32"}
        assert all("not finite" in t.verdict for t in choice.trials if t.layer == bad and t.precision != "float32")
        json.loads(choice.to_json())

    def test_a_model_without_layers(self, clock):
        b = GraphBuilder("plain")
        x = b.input("x", "float32", D.TIME, D.BATCH, 20)
        choice = fastrnn.choose_precision(Model(b.done(b.add("unary", x, fn="tanh", alpha=0.0, beta=0.0))), frames())
        assert choice.precision == {}
        assert choice.model.precision == "float32"
        assert "no layer has products" in choice.notes[0]
        assert choice.table == []
        assert "no layer has products" in str(choice)

    @pytest.mark.parametrize("file", ["gru_states.script.onnx", "bigru_stacked.script.onnx"])
    def test_states_of_the_caller_and_models_that_do_not_stream(self, clock, file):
        model = fastrnn.load(DATA / file)
        size = Runner(model).inputs[0].features[0]
        choice = fastrnn.choose_precision(model, frames(3, 40, size), tolerance=0.05)
        assert (choice.rows, choice.steps) == (3, 40)
        assert choice.model.precision != "float32"
        assert len(choice.outputs) == len(Runner(model).outputs)
        assert max(e.error for e in choice.outputs) <= 0.05

    def test_a_file_keeps_the_choice(self, clock, tmp_path):
        choice = fastrnn.choose_precision(two_layers(), frames(), tolerance=0.02)
        choice.model.save(tmp_path / "m.fastrnn")
        loaded = fastrnn.load(tmp_path / "m.fastrnn")
        assert loaded.precision == choice.model.precision != "float32"
        assert loaded.fingerprint == choice.model.fingerprint
        assert loaded(frames()).tobytes() == choice.model(frames()).tobytes()
        assert any("were chosen on 2 rows of 50 steps with tolerance 0.02" in note for note in loaded.notes)

    def test_it_is_shown(self, clock):
        choice = fastrnn.choose_precision(two_layers(), frames(), tolerance=0.01)
        text, html, record = str(choice), choice._repr_html_(), json.loads(choice.to_json())
        for shown in (text, html):
            assert "2.00 times as fast" in shown
            assert all(name in shown for name in choice.precision)
        assert record["precision"] == choice.precision
        assert len(record["trials"]) == 4 * len(choice.precision)
        assert [row[0] for row in choice.table] == list(choice.precision)
        assert all(len(row) == len(choice.columns) for row in choice.table)


PUBLISHED = {
    "silero_vad_v5": ({"bind": {"sr": 16000}, "sizes": {"size": 576}}, "input", lambda x: x[:, 0]),
    "dtln_1": ({}, "input_2", lambda x: x),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_on_recorded_audio(clock, name):
    if not (MODELS / f"{name}.onnx").exists():
        pytest.skip("../shared/models is absent")
    options, key, frames_of = PUBLISHED[name]
    model, x = fastrnn.load(MODELS / f"{name}.onnx", **options), frames_of(np.load(MODELS / f"{name}.npz")[key])[:40]
    loose, tight = (fastrnn.choose_precision(model, x, tolerance=t) for t in (0.5, 0.005))
    assert loose.model.precision != "float32"
    assert loose.outputs[0].error > 0.005 >= tight.outputs[0].error
    assert tight.bytes_after > loose.bytes_after


class TestTimes:
    def test_real_times(self):
        model = two_layers()
        choice = fastrnn.choose_precision(model, frames(), seconds=0.05, batch=2, steps=1)
        assert choice.after_ns <= choice.before_ns
        assert all(t.ns > 0 for t in choice.trials)
        assert choice.outputs[0].error <= 0.01

    def test_layers_have_the_times_of_their_ops(self):
        model = two_layers()
        times = timing.layer_times({"a": model, "b": model}, 1, 1, 0.01)
        names = [i.name for i in model.layers]
        assert [list(times[n]) for n in "ab"] == [names, names]
        plan = Call(model, 1, 1).plan
        assert [[plan.ops[i].kind for i in timing._ops_of(plan, name)] for name in names] == [["cell"], ["linear"]]

    def test_the_middle_half_of_the_calls_counts(self):
        ns = np.array([[10.0], [20.0], [20.0], [30.0], [30.0], [20.0], [1000.0], [30.0]])
        assert timing._typical(ns) == pytest.approx(25.0)
        assert timing._typical(ns[:1]) == 10.0


class TestRefusals:
    @pytest.mark.parametrize(
        ("x", "text"),
        [
            (np.zeros((50, 7), np.float32), r"takes data \[T, 20\] or \[rows, T, 20\], got \[50, 7\]"),
            (np.zeros((1, 20), np.float32), "1 steps long; at least 2 are needed"),
            (np.full((50, 20), np.nan, np.float32), "hold NaN or infinity"),
            ({"x": np.zeros((50, 20)), "y": np.zeros((50, 20))}, "that is not an input"),
            (np.zeros((50, 20), np.complex64), "the data are complex64"),
        ],
    )
    def test_data_that_do_not_fit(self, x, text):
        with pytest.raises(fastrnn.ShapeError, match=text):
            fastrnn.choose_precision(two_layers(), x)

    @pytest.mark.parametrize("tolerance", [-0.1, math.nan, math.inf, "0.1", None, True])
    def test_tolerances(self, tolerance):
        with pytest.raises(fastrnn.FastRNNError, match="tolerance must be a number from 0 up"):
            fastrnn.choose_precision(two_layers(), frames(), tolerance=tolerance)

    @pytest.mark.parametrize("steps", [-3, 0, 1.5, 10**9, True])
    def test_steps(self, steps):
        with pytest.raises(fastrnn.ShapeError, match="steps must be"):
            fastrnn.choose_precision(two_layers(), frames(), steps=steps)

    def test_a_reduced_model(self):
        model = two_layers()
        name = model.layers[0].name
        reduced = Model(model.graph, precision={name: "int8"})
        with pytest.raises(fastrnn.UnsupportedError, match=f"holds {name} in int8 already.*it was converted from"):
            fastrnn.choose_precision(reduced, frames())

    def test_a_path_and_other_things(self):
        with pytest.raises(fastrnn.ModelFormatError, match=r"pass fastrnn\.load\('m\.onnx'\)"):
            fastrnn.choose_precision("m.onnx", frames())
        with pytest.raises(fastrnn.ModelFormatError, match="got list"):
            fastrnn.choose_precision([], frames())

    def test_load_says_what_to_do(self):
        for wanted in ("auto", {"lstm": "auto"}):
            with pytest.raises(fastrnn.ModelFormatError, match=r"fastrnn\.choose_precision, or convert with"):
                fastrnn.load(DATA / "gru_states.script.onnx", precision=wanted)
