"""Dims, tensors and plans: views that cost nothing, loops that merge, an arena that is shared."""

import numpy as np
import pytest
from graph_builder import GraphBuilder
from hypothesis import given
from hypothesis import strategies as st

from fastrnn import dims as D
from fastrnn import lowering
from fastrnn.cells import CellSpec
from fastrnn.dims import BATCH, TIME
from fastrnn.errors import ModelFormatError, ShapeError, UnsupportedError
from fastrnn.tensors import Buffer, Tensor, collapse, contiguous


class TestDims:
    def test_arithmetic_has_one_normal_form(self):
        assert (TIME + 1) * 2 - 2 == 2 * TIME
        assert TIME - TIME == 0
        assert BATCH * TIME == TIME * BATCH
        assert (3 * TIME + 7) // 3 == TIME + 2
        assert ((TIME + 2) // 3 + 1) // 2 == (TIME + 5) // 6

    @given(st.integers(0, 50), st.integers(1, 5), st.integers(1, 5), st.integers(-9, 9), st.integers(-9, 9))
    def test_nested_strides_floor_as_ints_do(self, t, a, b, p, q):
        dim = D.floordiv(D.floordiv(TIME + p, a) + q, b)
        assert D.evaluate(dim, {"time": t}) == ((t + p) // a + q) // b

    @pytest.mark.parametrize("dim", [3, TIME, 2 * TIME * BATCH - 1, (TIME + 3) // 4 * BATCH, -TIME + 2])
    def test_text_and_back(self, dim):
        assert D.parse(str(dim) if isinstance(dim, D.Dim) else dim) == dim

    @pytest.mark.parametrize(
        "text", ["", "time**2", "f(x)", "1.5", "time/2", "__import__('os')", "x" * 5000, None, True]
    )
    def test_other_text_is_refused(self, text):
        with pytest.raises(ModelFormatError, match="dim"):
            D.parse(text)

    def test_division_is_exact_or_refused(self):
        assert D.exact_div(6 * TIME * BATCH, 2 * BATCH) == 3 * TIME
        assert D.exact_div(TIME + 1, BATCH) is None
        with pytest.raises(ShapeError, match="divide"):
            D.floordiv(TIME, BATCH)

    @given(st.integers(0, 30), st.integers(0, 5), st.integers(-9, 9), st.integers(-2, 2))
    def test_positive_is_max_with_zero(self, t, b, p, q):
        dim = D.positive(q * TIME + p) - D.positive((TIME - p) // 3) * BATCH
        sizes = {"time": t, "batch": b}
        expected = max(q * t + p, 0) - max((t - p) // 3, 0) * b
        assert D.evaluate(dim, sizes) == expected
        assert D.evaluate(D.substitute(dim, {"batch": b}), {"time": t}) == expected
        assert expected >= 0 or D.may_be_negative(dim)

    def test_what_can_not_be_negative_needs_no_max(self):
        assert D.positive(TIME + 3) == TIME + 3
        assert D.positive(-2 - TIME) == 0
        assert D.positive(-2) == 0
        assert str(D.positive(TIME - 10)) == "max(time-10, 0)"
        assert D.positive(TIME - 10) == D.positive(TIME - 10) != D.positive(TIME - 11)
        assert not D.may_be_negative(TIME // 2 * BATCH)
        assert D.may_be_negative((TIME - 1) // 2)

    def test_a_missing_size_is_named(self):
        with pytest.raises(ShapeError, match="batch"):
            D.evaluate(TIME * BATCH, {"time": 2})


def numbered(dims, order=None):
    """A tensor over 0, 1, 2, .. and a function that reads any view of it."""
    buffer = Buffer("arena", "float32", int(np.prod(dims)))
    data = np.arange(int(np.prod(dims)), dtype=np.float32)

    def read(view: Tensor):
        steps = [4 * s for s in view.strides]
        return np.lib.stride_tricks.as_strided(data[view.offset :], view.dims, steps)

    return contiguous(buffer, dims, order), read


class TestTensors:
    @given(st.permutations(range(4)), st.permutations(range(4)))
    def test_views_are_numpys(self, order, perm):
        t, read = numbered((2, 3, 1, 4), order)
        base = read(t)
        assert np.array_equal(read(t.transpose(perm)), base.transpose(perm))
        assert np.array_equal(read(t.narrow(1, 1, 2)), base[:, 1:3])
        assert np.array_equal(read(t.narrow(3, 3, 2, -2)), base[..., 3::-2])
        assert np.array_equal(read(t.squeeze(2)), base[:, :, 0])
        assert np.array_equal(read(t.unsqueeze(1)), base[:, None])
        assert np.array_equal(read(t.expand((5, 2, 3, 6, 4))), np.broadcast_to(base, (5, 2, 3, 6, 4)))

    @given(
        st.permutations(range(4)),
        st.sampled_from([(24,), (6, 4), (2, 12), (4, 6), (3, 2, 4), (2, 3, 2, 2), (8, 3), (1, 24)]),
    )
    def test_a_reshape_is_a_view_or_none(self, order, target):
        t, read = numbered((2, 3, 1, 4), order)
        view = t.reshape(target)
        if view is not None:
            assert np.array_equal(read(view), read(t).reshape(target))
        elif tuple(order) in ((0, 1, 2, 3), (2, 0, 1, 3), (0, 2, 1, 3)):
            pytest.fail("a row-major tensor can take any shape")

    def test_symbolic_merges(self):
        t = contiguous(Buffer("arena", "float32", 0), (BATCH, TIME, 6))
        assert t.reshape((BATCH * TIME, 6)).strides == (6, 1)
        assert t.reshape((BATCH, 6 * TIME)).strides == (6 * TIME, 1)
        assert t.transpose((1, 0, 2)).reshape((BATCH * TIME, 6)) is None
        assert t.reshape((BATCH, TIME, 2, 3)).strides == (6 * TIME, 6, 3, 1)

    def test_loops_merge_where_all_operands_agree(self):
        x = contiguous(Buffer("arena", "float32", 0), (BATCH, TIME, 6))
        assert collapse(x.dims, (x.strides, x.strides), x.order) == [(6 * BATCH * TIME, (1, 1))]
        y = contiguous(Buffer("arena", "float32", 0), (BATCH, TIME, 6), (1, 0, 2))
        assert len(collapse(x.dims, (x.strides, y.strides), x.order)) == 3


def weights(rng, b, name, *shape):
    return b.constant(name, (rng.standard_normal(shape) / 3).astype(np.float32))


def tagger():
    """[batch, time, 5] -> bidirectional LSTM 7 -> linear 3 -> softmax, moved about as exporters do."""
    rng, b = np.random.default_rng(1), GraphBuilder("tagger")
    x = b.add("transpose", b.input("x", "float32", BATCH, TIME, 5), perm=(1, 0, 2))
    W, R = weights(rng, b, "W", 28, 5), weights(rng, b, "R", 28, 7)
    parts = []
    for d in (False, True):
        y, _ = b.add("cell", x, W, R, outputs=(f"y{d}", None), name=f"cell{d}", spec=CellSpec("lstm", 5, 7, reverse=d))
        parts.append(b.add("reshape", y, dims=(TIME, 1, BATCH, 7)))
    joined = b.add("transpose", b.add("concat", *parts, axis=1), perm=(0, 2, 1, 3))
    flat = b.add("reshape", joined, dims=(TIME, BATCH, 14))
    tags = b.add(
        "linear", flat, weights(rng, b, "L", 14, 3), weights(rng, b, "b", 3), activation=None, alpha=0.0, beta=0.0
    )
    return b.done(b.add("softmax", b.add("transpose", tags, perm=(1, 0, 2)), axis=2, log=False))


class TestLowering:
    def test_moves_vanish(self):
        plan = lowering.lower(tagger(), "run", lowering.Weights())
        assert [op.kind for op in plan.ops] == ["cell", "cell", "linear", "softmax"]

    def test_the_arena_is_shared(self):
        rng, b = np.random.default_rng(1), GraphBuilder("deep")
        x = b.input("x", "float32", TIME, BATCH, 8)
        for i in range(6):
            x = b.add("linear", x, weights(rng, b, f"W{i}", 8, 8), activation="tanh", alpha=0.0, beta=0.0)
        plan = lowering.lower(b.done(x), "run", lowering.Weights())
        assert len(plan.arena) == 5
        assert len(plan.slot_sizes) == 2  # one is read while the other is written

    def test_all_that_has_no_kernel_is_named(self):
        b = GraphBuilder("ints")
        x = b.input("x", "int64", TIME, BATCH)
        y = b.add("binary", x, x, name="root", fn="prelu")
        z = b.add("binary", x, x, name="square", fn="prelu")
        with pytest.raises(UnsupportedError) as error:
            lowering.lower(b.done(y, z), "run", lowering.Weights())
        assert len(error.value.problems) == 2
        assert "node_root" in str(error.value)
        assert "node_square" in str(error.value)

    def test_a_plan_prints(self):
        text = str(lowering.lower(tagger(), "run", lowering.Weights()))
        assert "cell(" in text
        assert "batch*time" in text
