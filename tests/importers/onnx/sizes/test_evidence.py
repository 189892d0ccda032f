"""What holds a frozen size at the file's number, what explains such a number, and what the caller may overrule."""

import warnings

import numpy as np
import onnx
import pytest
from onnx_text import END, RNN, agrees_with_onnxruntime, dims, model, noise

import fastrnn
from fastrnn.errors import FastRNNWarning, ShapeError
from fastrnn.graph import reference
from fastrnn.importers.onnx import import_onnx
from fastrnn.importers.onnx.sizes.evidence import Policy


def along_time(*, start, end, step=1):
    return model(
        "(float[19,4,3] x) => (float[n,1,4,2] y, float[n,4,3] z)",
        "z = Slice(x, a, b, c, d)\n y, h = RNN <hidden_size = 2> (x, W, R)",
        a=np.int64([start]),
        b=np.int64([end]),
        c=np.int64([0]),
        d=np.int64([step]),
    )


@pytest.mark.parametrize(
    ("start", "end", "text"),
    [
        (0, 5, "takes steps up to 5"),
        (3, 4, "takes step 3 by its number"),
        (4, END, "takes steps from 4 on"),
        (2, END, "takes steps from 2 on"),
        (0, 24, "takes steps up to 24"),
    ],
)
@pytest.mark.parametrize("strict", [True, False])
def test_a_position_by_number_holds_the_length(start, end, text, strict):
    graph = import_onnx(along_time(start=start, end=end), policy=Policy(strict=strict))
    assert dims(graph, "x") == [19, "batch", 3]
    why = {(name, axis): why for name, axis, why in graph.held}["x", 0]
    assert text in why
    assert "dynamic axis" in why
    assert "strict=False" not in why


NEAR_THEEND = [
    (0, 19, np.s_[:]),
    (18, 19, np.s_[-1:]),
    (1, 19, np.s_[1:]),
    (-9, END, np.s_[-9:]),
    (0, -9, np.s_[:-9]),
]


@pytest.mark.parametrize(("start", "end", "key"), NEAR_THEEND)
def test_the_length_or_a_part_of_it_as_a_position_holds_it_unless_overruled(start, end, key):
    """x[:19] of 19 steps: all of them, or the first 19 of any sequence. x[-9:]: the last half, or the last nine."""
    made = along_time(start=start, end=end)
    graph = import_onnx(made)
    assert dims(graph, "x") == [19, "batch", 3]
    assert any(axis == 0 and "strict=False" in why for _, axis, why in graph.held)
    with pytest.warns(FastRNNWarning, match="freed from 19, although node"):
        graph = import_onnx(made, policy=Policy(strict=False))
    assert dims(graph, "x") == ["time", "batch", 3]
    assert not any(axis == 0 for _, axis, _ in graph.held)
    x = noise(23, 2, 3)
    np.testing.assert_array_equal(reference.run(graph, {"x": x})[1], x[key].astype(np.float64))


def test_a_lag_is_no_position():
    """x[2:] - x[:-2], the difference to the step before last."""
    made = model(
        "(float[19,4,3] x) => (float[n,4,3] z, float[19,1,4,2] y)",
        "p = Slice(x, two, far, zero) q = Slice(x, zero, back, zero) z = Sub(p, q) " + RNN.format(x="x"),
        two=np.int64([2]),
        far=np.int64([END]),
        back=np.int64([-2]),
        zero=np.int64([0]),
    )
    assert dims(import_onnx(made), "z") == ["time-2", "batch", 3]


SCALARS = [19.0, 18.0, 20.0, 9.0, 9.5, 1 / 19, 1 / 18, 19**0.5, 19**-0.5]


@pytest.mark.parametrize("number", SCALARS)
def test_a_scalar_of_the_length_holds_it_unless_overruled(number):
    made = model(
        "(float[19,4,3] x) => (float[19,1,4,2] y)",
        "p = Mul(x, k) " + RNN.format(x="p"),
        k=np.float32(number),
    )
    graph = import_onnx(made)
    assert dims(graph, "x") == [19, "batch", 3]
    assert any(axis == 0 and "strict=False" in why for _, axis, why in graph.held)
    with pytest.warns(FastRNNWarning, match="has the number"):
        graph = import_onnx(made, policy=Policy(strict=False))
    assert dims(graph, "x") == ["time", "batch", 3]
    assert any("although node" in note for note in graph.notes)


@pytest.mark.parametrize("number", [0.3, 2.0, 0.5, 17.0, 1e-5])
def test_another_scalar_is_none(number):
    made = model("(float[19,4,3] x) => (float[19,1,4,2] y)", "p = Mul(x, k) " + RNN.format(x="p"), k=np.float32(number))
    assert dims(import_onnx(made), "x") == ["time", "batch", 3]


@pytest.mark.parametrize(("features", "held"), [(16, False), (3, True)])
def test_the_scale_of_a_product_is_none(features, held):
    """1/4 at 16 steps is 1 / sqrt(16): of the features that are multiplied and added, if there are as many."""
    made = model(
        f"(float[16,4,{features}] x) => (float[16,4,n] z, float[16,1,4,2] y)",
        "m = MatMul(x, K) z = Mul(m, k) " + RNN.format(x="x"),
        K=noise(features, 5),
        k=np.float32(0.25),
        F=features,
    )
    assert (dims(import_onnx(made), "x")[0] == 16) is held


def test_at_few_steps_only_a_scalar_that_meets_a_sum_over_them_counts():
    body = "m = ReduceMean <axes = [0], keepdims = 1> ({x}) z = Mul(m, k) y, h = RNN <hidden_size = 2> (x, W, R)"
    for scaled, held in (("x", True), ("y0", False)):
        text = body.format(x="x") if held else "y0 = Mul(x, k) y, h = RNN <hidden_size = 2> (y0, W, R) z = Relu(y0)"
        made = model("(float[4,2,3] x) => (float[n,2,3] z, float[4,1,2,2] y)", text, k=np.float32(4))
        assert (dims(import_onnx(made), "x")[0] == 4) is held, scaled


def test_a_constant_of_unlike_rows_is_the_state_of_each():
    """h0 of a GRU as a parameter with a row for each of the batch: the first row was every row's."""
    made = model(
        "(float[5,2,3] x) => (float[5,1,2,2] y)", "y, h = RNN <hidden_size = 2> (x, W, R, , , h0)", h0=noise(1, 2, 2)
    )
    assert dims(import_onnx(made), "x") == ["time", 2, 3]
    agrees_with_onnxruntime(made, x=noise(5, 2, 3))


def test_nothing_is_freed_if_the_caller_says_so():
    graph = import_onnx(model("(float[6,4,3] x) => (float[6,1,4,2] y)", RNN.format(x="x")), policy=Policy(thaw=False))
    assert dims(graph, "x") == [6, 4, 3]


def test_a_loop_over_an_open_axis_reads_its_first_steps_and_keeps_the_batch():
    """Two of any number of steps are taken by number, one after the other, as onnxruntime does; the batch stays 2."""
    made = model(
        "(float[2,t,3] x) => (float[2,3] z, float[t,1,2,2] y)",
        """p = Gather <axis = 1> (x, first) a = Tanh(p) q = Gather <axis = 1> (x, second) r = Add(a, q) z = Tanh(r)
           s = Transpose <perm = [1, 0, 2]> (x) y, h = RNN <hidden_size = 2> (s, W, R)""",
        first=np.int64(0),
        second=np.int64(1),
    )
    graph = import_onnx(made)
    assert dims(graph, "x") == [2, "time", 3]
    assert any(axis == 0 and "its first 2 steps alone" in why for _, axis, why in graph.held)
    agrees_with_onnxruntime(made, x=noise(2, 7, 3))


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6, 7])
def test_a_quotient_of_sizes_below_zero_is_refused(steps):
    """(T - 4) / 2 + 1: onnxruntime rounds towards zero, which is not what floor does of negative numbers."""
    made = model(
        "(float[t,b,3] x) => (float[t,b,3] z, float[t,1,b,2] y)",
        """s = Shape(x) n = Gather <axis = 0> (s, zero) m = Sub(n, four) q = Div(m, two) k = Add(q, one)
           f = Cast <to = 1> (k) z = Mul(x, f) y, h = RNN <hidden_size = 2> (x, W, R)""",
        zero=np.int64(0),
        four=np.int64(4),
        two=np.int64(2),
        one=np.int64(1),
    )
    loaded = fastrnn.from_onnx(made)
    if steps < 4:
        with pytest.raises(ShapeError, match="too small"):
            loaded.run(noise(steps, 2, 3))
    else:
        np.testing.assert_allclose(
            loaded.run(noise(steps, 2, 3))[0], noise(steps, 2, 3) * ((steps - 4) // 2 + 1), rtol=1e-6
        )


@pytest.mark.parametrize(("features", "held"), [(6, True), (5, False)])
def test_rows_as_long_as_the_steps_are_ambiguous(features, held):
    """[6, 2, 6] -> [-1, 6]: rows of features, as almost every program means it, or of steps."""
    made = model(
        f"(float[6,2,{features}] x) => (float[n,{features}] z, float[6,1,2,2] y)",
        "z = Reshape(x, s) " + RNN.format(x="x"),
        s=np.int64([-1, features]),
        F=features,
    )
    assert dims(import_onnx(made), "x")[0] == (6 if held else "time")


RNN_FIRST = "s = Transpose <perm = [1, 0, 2]> (x) y, h = RNN <hidden_size = 2> (s, W, R)"


def blocks_as_onnxruntime(made: onnx.ModelProto, block: int) -> None:
    """The file runs at multiples of a block, and means there what onnxruntime says."""
    for b, t in ((2, 2 * block), (1, block), (3, 3 * block)):
        agrees_with_onnxruntime(made, x=noise(b, t, 6))
    with pytest.raises(ShapeError, match="must be a multiple of"):
        fastrnn.load(made.SerializeToString()).run(x=noise(1, block + 1, 6))


@pytest.mark.parametrize(("target", "block"), [([-1, 4, 6], 4), ([2, -1, 6], 2), ([4, -1], 2), ([-1, 12], 2)], ids=str)
def test_blocks_of_an_open_length_are_not_its_example(target, block):
    """[b, t, 6] -> [-1, 4, 6] is blocks of four frames, of any sequence that has them: 4 is not the length."""
    made = model(
        "(float[b,t,6] x) => (float[m] q, float[t,1,b,2] y)",
        f"z = Reshape(x, to) flat = Reshape(z, all) q = Relu(flat) {RNN_FIRST}",
        to=np.int64(target),
        all=np.int64([-1]),
        F=6,
    )
    blocks_as_onnxruntime(made, block)


def test_blocks_of_half_the_steps_are_not_two_steps():
    """[b, t, 6] -> [b, 2, t // 2, 6]: the target follows t, so its 2 is no t."""
    made = model(
        "(float[b,t,6] x) => (float[m] q, float[t,1,b,2] y)",
        """s0 = Shape(x) n = Slice(s0, one, two) half = Div(n, two) b1 = Slice(s0, zero, one)
           to = Concat <axis = 0> (b1, two, half, six) z = Reshape(x, to) flat = Reshape(z, all) q = Relu(flat) """
        + RNN_FIRST,
        zero=np.int64([0]),
        one=np.int64([1]),
        two=np.int64([2]),
        six=np.int64([6]),
        all=np.int64([-1]),
        F=6,
    )
    blocks_as_onnxruntime(made, 2)


def test_a_batch_of_one_between_places_of_one_is_held():
    """[1, 8, 3] -> [8, 1, 3]: rows and steps change places, or all rows stand in a row; nothing tells which."""
    made = model(
        "(float[1,8,3] x) => (float[8,1,3] z, float[8,1,1,2] y)",
        f"z = Reshape(x, to) {RNN_FIRST}",
        to=np.int64([8, 1, 3]),
    )
    assert dims(import_onnx(made), "x")[0] == 1


def test_heads_of_a_batch_of_one_come_apart_as_they_were_put_together():
    """Attention of PyTorch's older exporter: [t, 2*b, 4] -> [8, 8] -> [8, 1, 8], also where the length is held at 8."""
    made = model(
        "(float[1,8,8] x) => (float[8,1,8] z, float[8,1,1,2] y)",
        f"{RNN_FIRST} m = MatMul(s, K) p = Reshape(m, heads) q = Tanh(p) r = Reshape(q, flat) z = Reshape(r, steps)",
        heads=np.int64([8, 2, 4]),
        flat=np.int64([8, 8]),
        steps=np.int64([8, 1, 8]),
        K=np.eye(8, dtype=np.float32),
        F=8,
    )
    for strict in (True, False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FastRNNWarning)
            graph = import_onnx(made, policy=Policy(strict=strict))
        x = noise(2, *((8,) if strict else (5,)), 8)
        np.testing.assert_allclose(reference.run(graph, {"x": x})[0], np.tanh(x.astype(float)).transpose(1, 0, 2))


@pytest.mark.parametrize(
    ("constant", "held"),
    [
        (np.zeros((2, 3), np.float32), 0),  # a row each of the batch of two
        (np.arange(19), 1),
        (np.int64([0, 18]), 1),
        (np.int64([2, 19, 3]), 1),
        (np.float32([0.5, 7.0]), None),
    ],
    ids=["zeros", "positions", "ends", "shape", "settings"],
)
def test_a_constant_output_may_hold_a_size(constant, held):
    made = model("(float[2,19,3] x) => (float[19,1,2,2] y)", f"{RNN_FIRST} k = Identity(c)", c=constant)
    kind = onnx.helper.np_dtype_to_tensor_dtype(constant.dtype)
    made.graph.output.append(onnx.helper.make_tensor_value_info("k", kind, constant.shape))
    found = dims(import_onnx(made), "x")
    if held is None:
        assert found[1] == "time"
    else:
        assert found[held] == (2, 19)[held]


@pytest.mark.parametrize("step", [4, 9, 18])
def test_wide_steps_of_a_slice_hold_the_length(step):
    assert dims(import_onnx(along_time(start=0, end=END, step=step)), "x")[0] == 19
    assert dims(import_onnx(along_time(start=0, end=END, step=2)), "x")[0] == "time"


def test_as_wide_as_the_steps_one_hot_holds_them():
    made = model(
        "(int64[2,19] i, float[19,2,3] x) => (float[2,19,n] z, float[19,1,2,2] y)",
        "z = OneHot(i, depth, values) " + RNN.format(x="x"),
        depth=np.int64([19]),
        values=np.float32([0, 1]),
    )
    assert dims(import_onnx(made), "x")[0] == 19


def test_what_windows_leave_nothing_of_is_refused():
    """Windows of three over two steps: the largest of none was -inf, the mean NaN; PyTorch refuses the sequence."""
    for fn in ("ReduceMax", "ReduceMean"):
        made = model(
            "(float[b,3,t] x) => (float[b,4] z, float[t,1,b,2] y)",
            f"c = Conv(x, K) z = {fn} <axes = [2], keepdims = 0> (c) "
            "s = Transpose <perm = [2, 0, 1]> (x) y, h = RNN <hidden_size = 2> (s, W, R)",
            K=noise(4, 3, 3),
        )
        loaded = fastrnn.from_onnx(made)
        loaded.run(noise(2, 3, 3))
        with pytest.raises(ShapeError, match="of no elements"):
            loaded.run(noise(2, 3, 2))


def test_half_of_an_open_length_counts_from_the_end():
    """x[-(T // 2):] of an open length was refused at every length; of one step it is x[-0:], all of it, and refused."""
    made = model(
        "(float[t,b,3] x) => (float[n,b,3] z, float[t,1,b,2] y)",
        "s = Shape(x) n = Gather <axis = 0> (s, zero) k = Div(n, two) e = Neg(k) z = Slice(x, e, far, zero) "
        + RNN.format(x="x"),
        zero=np.int64([0]),
        two=np.int64([2]),
        far=np.int64([END]),
    )
    for steps in (2, 5, 8):
        agrees_with_onnxruntime(made, x=noise(steps, 2, 3))
    with pytest.raises(ShapeError, match="too small"):
        fastrnn.from_onnx(made).run(noise(1, 2, 3))


@pytest.mark.parametrize(
    ("numbers", "held"),
    [
        (np.arange(3) * 19, True),
        (np.arange(3) / 19, True),
        ([1.0, 2.0, 3.0], False),
        ([0.5, 0.25, 0.125], False),
        ([0.0, 0.0, 0.0], False),
    ],
    ids=str,
)
def test_a_vector_scaled_by_the_length_holds_it(numbers, held):
    made = model(
        "(float[19,2,3] x) => (float[19,1,2,2] y)", "p = Add(x, v) " + RNN.format(x="p"), v=np.float32(numbers)
    )
    assert (dims(import_onnx(made), "x")[0] == 19) is held


POOLS = {  # a pool in the form in which an exporter of PyTorch writes it -> whether it may be adaptive
    "AveragePool <kernel_shape = [3], strides = [3]> (w)": True,
    "AveragePool <ceil_mode = 0, count_include_pad = 1, kernel_shape = [3], pads = [0, 0], strides = [3]> (w)": False,
    "MaxPool <kernel_shape = [3], pads = [0, 0], strides = [3]> (w)": True,
    "MaxPool <ceil_mode = 0, dilations = [1], kernel_shape = [3], pads = [0, 0], strides = [3]> (w)": False,
    "AveragePool <kernel_shape = [2], strides = [1]> (w)": False,
}


@pytest.mark.parametrize("pool", POOLS)
def test_adaptive_pooling_holds_the_length(pool):
    made = model(
        "(float[12,4,3] x) => (float[12,1,4,2] y, float[4,3,n] z)",
        f"w = Transpose <perm = [1, 2, 0]> (x) z = {pool}\n y, h = RNN <hidden_size = 2> (x, W, R)",
    )
    assert dims(import_onnx(made), "x")[0] == "time"  # other exporters leave the settings out of any pool
    made.producer_name = "pytorch"
    assert dims(import_onnx(made), "x") == [12 if POOLS[pool] else "time", "batch", 3]


def test_adaptive_pooling_as_an_image_of_one_row_holds_the_length():
    made = model(
        "(float[12,4,3] x) => (float[12,1,4,2] y, float[4,3,1,n] z)",
        """w = Transpose <perm = [1, 2, 0]> (x) v = Unsqueeze(w, axes)
           z = AveragePool <count_include_pad = 1, pads = [0, 0, 0, 0], kernel_shape = [1, 3], strides = [1, 3]> (v)
           y, h = RNN <hidden_size = 2> (x, W, R)""",
        axes=np.int64([2]),
    )
    made.producer_name = "pytorch"
    assert dims(import_onnx(made), "x") == [12, "batch", 3]
