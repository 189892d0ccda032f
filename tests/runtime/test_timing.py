"""The clock around a plan's ops: what it writes, and that a program without one is the same program."""

from pathlib import Path

import numpy as np
import pytest
from graph_builder import GraphBuilder

import fastrnn
from fastrnn.graph import dims as D
from fastrnn.model import Model
from fastrnn.runtime._timing import OpTimer, clock_ns

pytestmark = pytest.mark.any_isa
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "tone_words.onnx"


@pytest.fixture
def stream():
    return fastrnn.load(EXAMPLE, threads=1).stream()


def test_a_timer_is_filled_call_by_call_and_then_leaves_off(stream):
    x, program = np.ones(20, np.float32), stream.program
    program.timer = timer = OpTimer(len(program.plan.ops), 3)
    for _ in range(5):
        stream.step(x)
    assert (timer.calls, timer.capacity, timer.n_ops) == (3, 3, len(program.plan.ops))
    assert timer.ns.shape == (3, len(program.plan.ops))
    assert (timer.ns > 0).all()


def test_timed_steps_have_the_bits_of_untimed_ones(stream):
    x = np.random.default_rng(0).standard_normal((6, 20)).astype(np.float32)
    plain = stream.push(x)
    stream.reset()
    stream.program.timer = OpTimer(len(stream.program.plan.ops), 100)
    np.testing.assert_array_equal(stream.push(x), plain)


def test_an_op_that_fails_names_its_node_under_a_timer_too():
    build = GraphBuilder("lookup")
    index = build.input("index", "int64", D.BATCH, D.TIME)
    table = build.constant("table", np.ones((4, 2), np.float32))
    model = Model(build.done(build.add("gather", table, index, name="find", axis=0)))
    model._core._program("run").timer = OpTimer(len(model._core._program("run").plan.ops), 2)
    with pytest.raises(fastrnn.ShapeError, match="node_find: index 9"):
        model.run(np.array([[9]]))


def test_the_clock_costs_less_than_a_microsecond():
    assert 0 < clock_ns() < 1000
