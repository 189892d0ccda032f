"""Windows over axes, pad, argmax and cumsum: the reference against torch in float64, sizes, and what is refused."""

import numpy as np
import pytest
from graph_builder import GraphBuilder

from fastrnn.errors import ModelFormatError, ShapeError
from fastrnn.graph import artifact, reference
from fastrnn.graph.dims import BATCH, TIME, evaluate
from fastrnn.graph.shapes import windows

RNG = np.random.default_rng(23)


def one(op, x, *constants, **attrs):
    """The reference's answer of a graph with this one node, its batch and last axis free."""
    b = GraphBuilder(op)
    if x.ndim > 2:
        x_dims = (BATCH, *x.shape[1:-1], TIME)
    else:
        x_dims = x.shape
    name = b.input("x", str(x.dtype).replace("float64", "float32"), *x_dims)
    weights = [None if c is None else b.constant(f"c{k}", c.astype(np.float32)) for k, c in enumerate(constants)]
    b.add(op, name, *weights, name="y", **attrs)
    return reference.run(b.done("y"), {"x": x})[0]


def numbers(*shape):
    """Small multiples of 1/8: exact in float32 weights."""
    return RNG.integers(-16, 17, shape).astype(np.float64) / 8


CONVS = [
    # C, M, kernel, strides, dilations, pads, groups, L
    (3, 4, (3,), (1,), (1,), (0, 0), 1, (9,)),
    (4, 6, (3,), (2,), (1,), (2, 0), 2, (9,)),
    (4, 4, (2,), (3,), (2,), (1, 4), 4, (11,)),
    (2, 3, (1,), (1,), (1,), (0, 0), 1, (5,)),
    (2, 4, (3, 2), (2, 1), (1, 2), (1, 0, 2, 3), 2, (7, 6)),
    (3, 5, (1, 5), (1, 2), (1, 1), (0, 2, 0, 2), 1, (2, 9)),
]


@pytest.mark.parametrize("case", CONVS)
@pytest.mark.parametrize("bias", [False, True])
def test_conv_is_that_of_torch(case, bias):
    import torch
    from torch.nn import functional as F

    C, M, kernel, strides, dilations, pads, groups, L = case
    rank = len(kernel)
    x, W, add = numbers(2, C, *L), numbers(M, C // groups, *kernel), numbers(M) if bias else None
    around = [p for i in reversed(range(rank)) for p in (pads[i], pads[rank + i])]
    theirs = (F.conv1d, F.conv2d)[rank - 1](
        F.pad(torch.tensor(x), around), torch.tensor(W), None if add is None else torch.tensor(add),
        strides, 0, dilations, groups,
    )  # fmt: skip
    ours = one("conv", x, W, add, strides=strides, dilations=dilations, pads=pads, groups=groups)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("case", CONVS)
def test_conv_transpose_is_that_of_torch(case):
    import torch
    from torch.nn import functional as F

    C, M, kernel, strides, dilations, _, groups, L = case
    rank = len(kernel)
    extra = tuple(max(s, d) - 1 for s, d in zip(strides, dilations, strict=True))
    pads = tuple(min(1, k - 1) for k in kernel)
    x, W, add = numbers(2, C, *L), numbers(C, M // groups, *kernel), numbers(M)
    theirs = (F.conv_transpose1d, F.conv_transpose2d)[rank - 1](
        torch.tensor(x), torch.tensor(W), torch.tensor(add), strides, pads, extra, groups, dilations
    )
    ours = one(
        "conv_transpose", x, W, add, strides=strides, dilations=dilations, pads=pads * 2, output_padding=extra,
        groups=groups,
    )  # fmt: skip
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("fn", ["max", "mean"])
@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("count_include_pad", [False, True])
@pytest.mark.parametrize(
    ("kernel", "stride", "pad", "L"), [(2, 2, 0, 9), (3, 2, 1, 8), (3, 1, 1, 5), (4, 3, 2, 10), (2, 3, 1, 7)]
)
def test_pools_are_those_of_torch(fn, ceil, count_include_pad, kernel, stride, pad, L):
    import torch
    from torch.nn import functional as F

    x = numbers(2, 3, L)
    if fn == "max":
        theirs = F.max_pool1d(torch.tensor(x), kernel, stride, pad, ceil_mode=ceil)
    else:
        theirs = F.avg_pool1d(torch.tensor(x), kernel, stride, pad, ceil, count_include_pad)
    ours = one(
        "pool", x, fn=fn, kernel=(kernel,), strides=(stride,), pads=(pad, pad), dilations=(1,), ceil=ceil,
        count_include_pad=count_include_pad,
    )  # fmt: skip
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-14)


def test_dilated_pool_over_two_axes_is_that_of_torch():
    import torch

    x = numbers(1, 2, 9, 8)
    theirs = torch.nn.functional.max_pool2d(torch.tensor(x), (3, 2), (2, 1), (1, 1), (2, 3))
    ours = one(
        "pool", x, fn="max", kernel=(3, 2), strides=(2, 1), pads=(1, 1, 1, 1), dilations=(2, 3), ceil=False,
        count_include_pad=False,
    )  # fmt: skip
    np.testing.assert_array_equal(ours, theirs.numpy())


@pytest.mark.parametrize("size", range(1, 20))
@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "begin", "end"), [(2, 2, 1, 0, 0), (3, 2, 2, 1, 4), (5, 3, 1, 2, 0)]
)
def test_windows_of_a_free_size_are_those_of_the_size(size, kernel, stride, dilation, begin, end):
    for ceil in (False, True):
        free = windows(TIME, kernel, stride, dilation, begin, end, ceil)
        assert evaluate(free, {"time": size}) == windows(size, kernel, stride, dilation, begin, end, ceil)
    padded, reach = size + begin + end, dilation * (kernel - 1) + 1
    whole = [s for s in range(0, padded, stride) if s + reach <= padded]
    if padded >= reach:
        assert windows(size, kernel, stride, dilation, begin, end) == len(whole)


@pytest.mark.parametrize("mode", ["constant", "reflect", "edge"])
def test_pad_is_that_of_numpy_and_negative_pads_cut(mode):
    x = numbers(2, 3, 6)
    more = {"constant_values": 7.0} if mode == "constant" else {}
    ours = one("pad", x, pads=(0, 1, 3, 0, 2, 1), mode=mode, value=7.0)
    np.testing.assert_array_equal(ours, np.pad(x, [(0, 0), (1, 2), (3, 1)], mode=mode, **more))
    cut = one("pad", x, pads=(0, 0, -2, 0, -1, 2), mode=mode, value=7.0)
    np.testing.assert_array_equal(cut, np.pad(x[:, :2, 2:], [(0, 0), (0, 0), (0, 2)], mode=mode, **more))


def test_pads_that_need_more_than_there_is_are_refused():
    with pytest.raises(ShapeError, match="reflect padding by 6 of axis 2"):
        one("pad", numbers(1, 1, 6), pads=(0, 0, 6, 0, 0, 0), mode="reflect", value=0.0)
    with pytest.raises(ShapeError, match="cut more than the 3"):
        one("pad", numbers(1, 1, 3), pads=(0, 0, -2, 0, 0, -2), mode="constant", value=0.0)


def test_argmax_takes_the_first_or_the_last_of_equal_ones():
    x = np.array([[[1.0, 3.0, 3.0, -2.0, -2.0]]])
    answers = {(last, largest): 0 for last in (False, True) for largest in (False, True)}
    for last, largest in answers:
        got = one("argmax", x, axis=2, keepdims=False, last=last, largest=largest)
        assert got.dtype == np.int64
        assert got.shape == (1, 1)
        answers[last, largest] = int(got[0, 0])
    assert answers == {(False, True): 1, (True, True): 2, (False, False): 3, (True, False): 4}
    assert one("argmax", x, axis=2, keepdims=True, last=False, largest=True).shape == (1, 1, 1)


def test_cumsum_forward_reverse_and_exclusive():
    x = np.array([[[1.0, 2.0, 4.0]]])
    results = {(False, False): [1, 3, 7], (True, False): [0, 1, 3], (False, True): [7, 6, 4], (True, True): [6, 4, 0]}
    for (exclusive, reverse), expected in results.items():
        got = one("cumsum", x, axis=2, exclusive=exclusive, reverse=reverse)
        np.testing.assert_array_equal(got[0, 0], expected)
        assert one("cumsum", x[..., :0], axis=2, exclusive=exclusive, reverse=reverse).shape == (1, 1, 0)


CONV = {"strides": (1,), "dilations": (1,), "pads": (0, 0), "groups": 1}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": 3}, "3 groups over the channels"),
        ({"strides": (0,)}, "strides must be 1 numbers of at least 1"),
        ({"pads": (0,)}, "pads must be 2 numbers of at least 0"),
        ({"pads": (-1, 0)}, "pads must be 2 numbers of at least 0"),
        ({"dilations": (1, 1)}, "dilations must be 1 numbers"),
    ],
)
def test_attributes_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ShapeError, match=message):
        one("conv", numbers(1, 4, 8), numbers(2, 4, 3), None, **{**CONV, **change})


def test_a_kernel_longer_than_its_axis_is_refused():
    b = GraphBuilder("short")
    b.input("x", "float32", BATCH, 2, 3)
    b.constant("W", np.zeros((1, 2, 5), np.float32))
    with pytest.raises(ShapeError, match="kernel of 5"):
        b.add("conv", "x", "W", None, name="y", **CONV)


def test_weights_of_windows_must_be_constant():
    b = GraphBuilder("live")
    b.input("x", "float32", BATCH, 2, TIME)
    b.input("W", "float32", 1, 2, 5)
    b.add("conv", "x", "W", None, name="y", **CONV)
    with pytest.raises(ModelFormatError, match="W must be a constant"):
        b.done("y")


def test_windows_survive_saving(tmp_path):
    b = GraphBuilder("saved")
    b.input("x", "float32", BATCH, 2, TIME)
    b.constant("W", numbers(4, 1, 3).astype(np.float32))
    b.constant("V", numbers(4, 2, 2).astype(np.float32))
    b.add("pad", "x", name="p", pads=(0, 0, TIME, 0, 0, -1), mode="constant", value=float("-inf"))
    b.add("unary", "p", name="q", fn="tanh", alpha=0.0, beta=0.0)
    b.add("conv", "q", "W", name="c", strides=(2,), dilations=(1,), pads=(1, 1), groups=2)
    b.add("conv_transpose", "c", "V", name="t", strides=(2,), dilations=(1,), pads=(0, 0), output_padding=(1,),
          groups=1)  # fmt: skip
    b.add("pool", "t", name="l", fn="mean", kernel=(2,), strides=(2,), pads=(0, 1), dilations=(1,), ceil=True,
          count_include_pad=True)  # fmt: skip
    b.add("cumsum", "l", name="s", axis=2, exclusive=True, reverse=False)
    b.add("argmax", "s", name="y", axis=1, keepdims=False, last=True, largest=False)
    graph = b.done("y", "s")
    artifact.save(graph, tmp_path / "m.fastrnn")
    again = artifact.load(tmp_path / "m.fastrnn")
    assert str(again) == str(graph)
    x = numbers(2, 2, 7)
    for a, c in zip(reference.run(graph, {"x": x}), reference.run(again, {"x": x}), strict=True):
        np.testing.assert_array_equal(a, c)
