"""Binding a program to another batch: the same answers as a program that never saw another one, and no memory grows."""

import numpy as np
import pytest
from test_model_stream import some, stack
from test_plan import tagger
from test_windows import CASES, conv_graph

from fastrnn.model import Model

BATCHES = [5, 3, 8, 8, 1, 33, 2, 40, 7, 64, 3]
GRAPHS = {
    "lstm": stack("lstm"),
    "gru, time major": stack("gru", time_major=True),
    "bidirectional": tagger(),
    "convolution": conv_graph(CASES["same"]),
    "strided convolution": conv_graph(CASES["strided"]),
}

pytestmark = pytest.mark.any_isa


@pytest.mark.parametrize("name", GRAPHS)
def test_runs_of_changing_batch(name):
    model = Model(GRAPHS[name])
    dims = model.graph.values[model.graph.inputs[0]].dims
    for i, n in enumerate(BATCHES):
        for T in (40, 31):
            sizes = {"batch": n, "time": T}
            x = some(*(d if isinstance(d, int) else sizes[str(d)] for d in dims), seed=i)
            assert np.array_equal(model(x), Model(GRAPHS[name])(x)), (n, T)


def test_streams_of_several_batches_share_a_program():
    model = Model(stack("lstm"))
    streams = {n: model.stream(batch_size=n) for n in (1, 3, 20, 2)}
    x = some(20, 30, 5)
    want = model(x)
    for t in range(0, 30, 3):
        for n, s in streams.items():
            assert np.array_equal(s.push(x[:n, t : t + 3]), want[:n, t : t + 3])


def test_a_growing_batch_makes_few_arenas_and_a_changing_one_none():
    model = Model(stack("lstm"))
    x = some(200, 1, 5)
    sizes = []
    for n in [*range(1, 201), *range(200, 0, -1)]:
        model(x[:n])
        sizes.append(model._core._program("run").scratch_bytes)
    assert len(set(sizes[:200])) < 10  # the room doubles
    assert len(set(sizes[200:])) == 1
    lone = Model(GRAPHS["lstm"])
    lone(x)
    assert sizes[-1] <= 2 * lone._core._program("run").scratch_bytes
