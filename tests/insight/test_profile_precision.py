"""The performance model of number formats: bytes, peaks and times of reduced precision."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from graph_builder import GraphBuilder
from test_profile import MACHINE

import fastrnn
from fastrnn.bench.models import cell_weights
from fastrnn.graph import dims as D
from fastrnn.graph.cells import CellSpec
from fastrnn.insight import cost_model, limits
from fastrnn.insight.limits import FormatRates, Limits
from fastrnn.model import Model

pytestmark = pytest.mark.any_isa
ROOT = Path(__file__).resolve().parents[2]
FIGURES = json.loads((ROOT / "tests" / "data" / "bench_figures_reduced.json").read_text())
FORMATS = {"bfloat16": FormatRates(80e9, 1.5, 0.02), "int8": FormatRates(400e9, 0.5, 0.2),
           "int8-a16": FormatRates(200e9, 0.6, 0.4)}  # fmt: skip
KNOWN = dataclasses.replace(MACHINE, formats=FORMATS)
SIZE = {"float32": 4, "bfloat16": 2, "int8": 1, "int8-a16": 1}


def cell(kind, H, precision):
    """The plan of a stream of one cell in a format."""
    build = GraphBuilder(f"{kind}{H}")
    x = build.input("x", "float32", D.TIME, D.BATCH, H)
    names = [build.constant(n, a) for n, a in cell_weights(kind, H, H, 0).items()]
    spec = CellSpec(kind, H, H, linear_before_reset=kind == "gru")
    graph = build.done(build.add("cell", x, *names, name="cell", outputs=("y",), spec=spec)[0])
    return Model(graph, 1, {"node_cell": precision})._core._program("stream").plan


@pytest.fixture(scope="module")
def plans():
    """(kind, H, format) -> plan, made once."""
    made = {}

    def found(*key):
        if key not in made:
            made[key] = cell(*key)
        return made[key]

    return found


def test_most_predictions_are_within_30_percent(plans):
    """The committed figures: medians of CPU time, and the limits of the machine, made by tools/cost_model.py."""
    machine, outside = Limits.from_dict(FIGURES["limits"]), []
    for case in FIGURES["cases"]:
        costs = cost_model.predict(plans(case["kind"], case["H"], case["precision"]), machine, case["batch"])
        ratio = (machine.step_ns + sum(c.ns for c in costs)) / case["ns"]
        if not 0.7 <= ratio <= 1.3:
            outside.append((case["id"], round(ratio, 2)))
    assert len(FIGURES["cases"]) == 96
    assert len(outside) <= 0.1 * len(FIGURES["cases"]), outside


@pytest.mark.parametrize("precision", SIZE)
def test_weights_are_counted_in_their_own_bytes(plans, precision):
    (cost,) = cost_model.predict(plans("lstm", 128, precision), KNOWN)
    assert cost.weight_bytes == 4 * 128 * (256 * SIZE[precision] + 4)


def test_the_roofline_has_the_peak_of_the_format(plans):
    """With many rows, the least time is that of the products: 400 GFLOP/s in int8, and for bfloat16, which is slower
    than float32 here, what float32 allows."""
    least = {}
    for precision in SIZE:
        (cost,) = cost_model.predict(plans("lstm", 128, precision), KNOWN, 1024)
        least[precision] = cost.least_ns
        assert cost.least_ns <= cost.ns
    flops = 1e9 * 1024 * 2 * 4 * 128 * 256
    assert least == pytest.approx(
        {"float32": flops / 100e9, "bfloat16": flops / 100e9, "int8": flops / 400e9, "int8-a16": flops / 200e9}
    )


def test_rounding_rows_costs_time(plans):
    dear = dataclasses.replace(KNOWN, formats={**FORMATS, "int8": FormatRates(400e9, 0.5, 1.2)})
    cheap, more = (cost_model.predict(plans("lstm", 128, "int8"), m, 16)[0].ns for m in (KNOWN, dear))
    assert more - cheap == pytest.approx(16 * 256 * 1.0)


def test_other_layers():
    """A convolution and an embedding in 8 bits."""
    rng, build = np.random.default_rng(0), GraphBuilder("layers")
    ids = build.input("ids", "int64", D.TIME, D.BATCH)
    table = build.constant("table", rng.standard_normal((50, 64)).astype(np.float32))
    x = build.add("gather", table, ids, axis=0)
    W = build.constant("W", rng.standard_normal((64, 40)).astype(np.float32))
    graph = build.done(build.add("linear", x, W, None, activation=None, alpha=0.0, beta=0.0))
    costs = {}
    for precision in ("float32", "int8"):
        model = Model(graph, 1, {n.name: precision for n in graph.nodes})
        assert model.precision == precision
        costs[precision] = cost_model.predict(model._core._program("stream").plan, KNOWN, 3)
    for wide, small in zip(costs["float32"], costs["int8"], strict=True):
        assert small.weight_bytes * 4 == wide.weight_bytes > 0
        assert small.flops == wide.flops


def test_a_record_has_the_formats():
    record = json.loads(json.dumps(KNOWN.as_dict()))
    assert Limits.from_dict(record) == KNOWN
    assert Limits.from_dict({k: v for k, v in record.items() if k != "formats"}).formats == {}
    for wrong in ({"int8": {"flops": 0, "term_ns": 1, "round_ns": 1}}, {"int8": {"flops": 1}}, {"int8": 3}, [1]):
        with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
            Limits.from_dict({**record, "formats": wrong})


def test_the_best_of_two_measurements():
    other = dataclasses.replace(KNOWN, formats={"int8": FormatRates(500e9, 0.6, 0.1)})
    assert limits.best_of(KNOWN, other).formats == {"int8": FormatRates(500e9, 0.5, 0.1)}


def test_this_machine_can_be_measured(monkeypatch):
    monkeypatch.setattr(limits, "TRIES", 1)
    found = limits._format_rates("int8", fastrnn.cpu_info().isa.lanes)
    assert min(found.flops, found.term_ns, found.round_ns) > 0


def test_a_profile(capsys):
    model = fastrnn.load(ROOT / "examples" / "tone_words.onnx")
    names = [i.name for i in model.layers]
    found = fastrnn.profile(Model(model.graph, 1, dict.fromkeys(names, "int8")), seconds=0.02, machine=KNOWN)
    plain = fastrnn.profile(model, seconds=0.02, machine=KNOWN)
    assert found.weight_bytes < 0.5 * plain.weight_bytes
    assert found.flops == plain.flops
    assert json.loads(json.dumps(found.as_dict()))["limits"]["formats"]["int8"]["flops"] == 400e9
    assert len(found.by_size) == len(plain.by_size)
