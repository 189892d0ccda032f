"""Steps that a mask leaves out: the state stays, the output repeats it, whole and streamed, with the same bits."""

from __future__ import annotations

import numpy as np
import pytest

from fastrnn.errors import ModelFormatError, ShapeError
from fastrnn.graph import reference
from fastrnn.graph.artifact import load, to_bytes
from fastrnn.graph.cells import CellSpec
from fastrnn.graph.dims import BATCH, TIME
from fastrnn.importers.shared.builder import GraphWriter
from fastrnn.model import Model

KINDS = [
    ("rnn", {}), ("lstm", {}), ("gru", {"linear_before_reset": True}), ("gru", {"linear_before_reset": False})
]  # fmt: skip


def masked_cell(kind: str, I: int = 3, H: int = 5, y: bool = True, **spec):  # noqa: E741
    """A graph of one cell whose mask is an input of its own: x [B, T, I], mask [B, T] -> y [B, T, H] and h_n [B, H]."""
    rng = np.random.default_rng(7)
    w = GraphWriter("masked")
    x, mask = w.input("x", "float32", (BATCH, TIME, I)), w.input("mask", "bool", (BATCH, TIME))
    spec = CellSpec(kind, I, H, **spec)
    G = spec.gates * H
    arrays = [rng.normal(size=s).astype(np.float32) * 0.5 for s in ((G, I), (G, H), (G,), (G,))]
    held = [w.constant(a) for a in arrays]
    inputs = [w.transpose(x, 1, 0, 2), *held, None, None, None, None, w.transpose(mask, 1, 0)]
    out, h_n, _ = w.many("cell", inputs, {"spec": spec}, (y, True, False), "cell")
    outputs = [w.transpose(out, 1, 0, 2)] if y else []
    return w.done(*outputs, h_n), spec, arrays


def by_hand(spec, arrays, x, mask):
    """Each row alone, the steps that are left out taken away beforehand, their outputs filled in afterwards."""
    ys, ends = [], []
    for row, there in zip(x, mask, strict=True):
        y, h, _ = reference.cell(spec, row[there][:, None], *arrays)
        filled, now = np.zeros((len(row), spec.hidden_size)), np.zeros(spec.hidden_size)
        steps = iter(y[::-1, 0] if spec.reverse else y[:, 0])
        for t in reversed(range(len(row))) if spec.reverse else range(len(row)):
            now = next(steps) if there[t] else now
            filled[t] = now
        ys.append(filled)
        ends.append(h[0])
    return np.array(ys), np.array(ends)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_a_masked_step_is_as_if_it_were_not_there(kind, options, reverse):
    graph, spec, arrays = masked_cell(kind, reverse=reverse, **options)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(7, 9, 3)).astype(np.float32)
    mask = rng.random((7, 9)) < 0.6
    mask[0], mask[1] = True, False
    x[~mask] = np.nan  # and is not even looked at
    want = by_hand(spec, arrays, x, mask)
    for got in (reference.run(graph, {"x": x, "mask": mask}), Model(graph).run(x, mask)):
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("kind", "options"), KINDS)
@pytest.mark.parametrize("y", [True, False])
def test_bits_do_not_depend_on_neighbours_chunks_or_threads(kind, options, y):
    graph, _, _ = masked_cell(kind, I=6, H=70, y=y, **options)  # 70: input sums are made ahead where nothing is masked
    rng = np.random.default_rng(2)
    x = rng.normal(size=(9, 13, 6)).astype(np.float32)
    mask = rng.random((9, 13)) < 0.5
    mask[4] = True
    whole = Model(graph, threads=1).run(x, mask)
    for a, b in zip(whole, Model(graph, threads=2).run(x, mask), strict=True):
        np.testing.assert_array_equal(a, b)
    model = Model(load(to_bytes(graph)))
    for row in range(9):
        alone = model.run(x[row : row + 1], mask[row : row + 1])
        for a, b in zip(alone, whole, strict=True):
            np.testing.assert_array_equal(a[0], b[row])
    stream = model.stream(batch_size=9)
    got, at = [], 0
    for size in (1, 4, 0, 3, 5):
        got.append(stream.push((x[:, at : at + size], mask[:, at : at + size])))
        at += size
    last = got[-1][-1] if y else got[-1]
    np.testing.assert_array_equal(last, whole[-1])
    if y:
        np.testing.assert_array_equal(np.concatenate([g[0] for g in got], 1), whole[0])


def test_a_mask_of_ones_changes_no_bit():
    graph, spec, arrays = masked_cell("lstm", I=4, H=64)
    w = GraphWriter("plain")
    x = w.input("x", "float32", (BATCH, TIME, 4))
    y = w.cell(w.transpose(x, 1, 0, 2), spec, (*arrays, None))[0]
    plain = Model(w.done(w.transpose(y, 1, 0, 2)))
    data = np.random.default_rng(3).normal(size=(2, 20, 4)).astype(np.float32)
    np.testing.assert_array_equal(Model(graph).run(data, np.ones((2, 20), bool))[0], plain(data))


def test_a_mask_of_another_form_is_refused():
    w = GraphWriter("wrong")
    x, mask = w.input("x", "float32", (BATCH, TIME, 3)), w.input("mask", "float32", (BATCH, TIME))
    spec = CellSpec("rnn", 3, 2)
    held = [w.constant(np.zeros(s)) for s in ((2, 3), (2, 2))]
    parts = [w.transpose(x, 1, 0, 2), *held, None, None, None, None, None, None]
    with pytest.raises(ShapeError, match="mask must be bool"):
        w.many("cell", [*parts, w.transpose(mask, 1, 0)], {"spec": spec}, (True,), "cell")
    with pytest.raises((ShapeError, ModelFormatError), match=r"mask must be \[time, batch\]"):
        w.many("cell", [*parts, mask], {"spec": spec}, (True,), "cell")
