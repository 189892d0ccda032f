"""analyze on number formats: the kernels of each, and models that are in reduced precision already."""

import math
from pathlib import Path

import numpy as np
import pytest
from graph_builder import GraphBuilder

import fastrnn
from fastrnn.graph import dims as D
from fastrnn.graph import reference
from fastrnn.insight import analysis
from fastrnn.insight.analysis import precision
from fastrnn.insight.analysis.figures import ErrorFigures
from fastrnn.insight.analysis.runner import Runner
from fastrnn.model import Model

pytestmark = pytest.mark.any_isa
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "tone_words.onnx"
FAST = {"long_steps": 300, "seconds": 0.3}


def test_formats_are_those_of_loaded_models():
    model, x = (
        fastrnn.load(EXAMPLE),
        {"bands": np.random.default_rng(0).standard_normal((2, 30, 20)).astype(np.float32)},
    )
    runner = Runner(model)
    figures = ErrorFigures(runner.run(x))
    found = precision.roundings(model, x, figures)
    assert [r.to for r in found] == ["bfloat16", "int8", "int8-a16"]
    for r in found:
        small = fastrnn.load(EXAMPLE, precision={i.name: r.to for i in model.layers})
        assert (r.relative_error, r.largest_change, r.decisions_changed) == figures.errors(runner.run(x, small))
        assert r.layers == len(model.layers)
        assert r.bytes_before == sum(i.bytes for i in model.layers)
        assert r.bytes_after == sum(i.bytes for i in small.layers)


def test_a_model_in_reduced_precision():
    """What rounding inputs and states costs it, and what the layers that are float32 would."""
    names = [i.name for i in fastrnn.load(EXAMPLE).layers]
    model = fastrnn.load(EXAMPLE, precision=dict.fromkeys(names[:2], "int8"))
    x = {"bands": np.random.default_rng(0).standard_normal((2, 30, 20)).astype(np.float32)}
    found = precision.roundings(model, x, ErrorFigures(Runner(model).run(x)))
    assert [(r.to, r.layers) for r in found] == [("float32", 2), ("bfloat16", 1), ("int8", 1), ("int8-a16", 1)]
    exact = reference.run(model.graph, x)  # of the weights that are held
    (got,) = model.run(x["bands"])
    assert found[0].largest_change == pytest.approx(np.abs(got - exact[0]).max(), abs=1e-6)
    assert found[0].bytes_after > 3 * found[0].bytes_before


def test_drift_of_a_model_in_reduced_precision():
    names = [i.name for i in fastrnn.load(EXAMPLE).layers]
    model = fastrnn.load(EXAMPLE, precision=dict.fromkeys(names, "int8"))
    found = analysis.analyze(model, **FAST)
    assert found.drift.how == "chunk by chunk"
    assert 1e-4 < found.drift.spans[0][1] < 0.2
    assert [r.to for r in found.roundings] == ["float32"]
    assert math.isfinite(found.roundings[0].relative_error)


def test_a_model_without_layers():
    build = GraphBuilder("plain")
    x = build.input("x", "float32", D.TIME, D.BATCH, 4)
    model = Model(build.done(build.add("unary", x, fn="tanh", alpha=0.0, beta=0.0)))
    assert analysis.analyze(model, **FAST).roundings == ()
