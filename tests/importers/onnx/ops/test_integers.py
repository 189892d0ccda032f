"""Integers stay exact: sums, extremes, pads, bounds and picks of int64 and int32 over their whole range."""

import numpy as np
import onnx
import onnx.parser
import pytest

import fastrnn
from fastrnn.graph import reference

ort = pytest.importorskip("onnxruntime", reason="operators are compared with onnxruntime, which is not installed")


def file_of(nodes: str, x: np.ndarray, made: str, opset: int = 18, **inits) -> bytes:
    """A file of an input like x, whose axes are batch and time and what is left, and an output of type `made`."""
    name = {"int64": "int64", "int32": "int32", "float32": "float", "bool": "bool"}[x.dtype.name]
    dims = ",".join(["batch", "time", *map(str, x.shape[2:])])
    held = ", ".join(
        f"int64[{len(v)}] {k} = {{{','.join(map(str, v))}}}" if np.ndim(v) else f"int64 {k} = {{{v}}}"
        for k, v in inits.items()
    )
    text = f'<ir_version: 8, opset_import: ["": {opset}]> g ({name}[{dims}] x) => ({made} y) <{held}> {{ {nodes} }}'
    model = onnx.parser.parse_model(text)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model.SerializeToString()


def run_all(nodes: str, x: np.ndarray, made: str, **inits) -> list[np.ndarray]:
    """What onnxruntime, the engine and the reference make of x."""
    data = file_of(nodes, x, made, **inits)
    loaded = fastrnn.load(data, threads=1)
    want = ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"x": x})
    return [want[0], *loaded.run(x=x), reference.run(loaded.graph, {"x": x})[0]]


def refused(nodes: str, x: np.ndarray, made: str, why: str, **inits) -> None:
    with pytest.raises(fastrnn.ShapeError, match=why):
        fastrnn.load(file_of(nodes, x, made, **inits), threads=1).run(x=x)


def same(*answers: np.ndarray) -> None:
    """onnxruntime's and the engine's answers are equal in every bit; the reference has wider types."""
    want, got, meant = answers
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(meant.astype(want.dtype), want)


def drawn(dtype: str, *shape: int) -> np.ndarray:
    """The whole range, its ends, and numbers that float64 can't tell apart."""
    ends = np.iinfo(dtype)
    x = np.random.default_rng(5).integers(ends.min, ends.max, shape, dtype=dtype, endpoint=True)
    x.flat[:3] = ends.min, ends.max, ends.max - 1
    return x


@pytest.mark.parametrize("dtype", ["int64", "int32"])
@pytest.mark.parametrize("keepdims", [0, 1])
@pytest.mark.parametrize("axes", [[1], [2], [1, 2], [0]], ids=str)
@pytest.mark.parametrize("op", ["ReduceMax", "ReduceMin"])
def test_extremes(op, axes, keepdims, dtype):
    for b, t in ((2, 7), (1, 1), (3, 4)):
        same(*run_all(f"y = {op}<keepdims = {keepdims}>(x, axes)", drawn(dtype, b, t, 5), dtype, axes=axes))
        small = drawn("int32", b, t, 5).astype(dtype) % 3
        same(*run_all(f"y = {op}<keepdims = {keepdims}>(x, axes)", small, dtype, axes=axes))


@pytest.mark.parametrize("dtype", ["int64", "int32"])
@pytest.mark.parametrize("axes", [[1], [2], [1, 2], [0]], ids=str)
def test_sums(axes, dtype):
    for b, t in ((2, 7), (1, 1), (3, 4)):
        x = drawn(dtype, b, t, 5) // 64
        _, *got = run_all("y = ReduceSum<keepdims = 0>(x, axes)", x, dtype, axes=axes)
        same(x.sum(tuple(axes), dtype=dtype), *got)  # onnxruntime sums int64 through float64


def test_any_of_bools_and_how_many():
    x = np.random.default_rng(6).random((3, 5, 4)) < 0.3
    same(*run_all("i = Cast<to = 7>(x) y = ReduceMax<keepdims = 0>(i, axes)", x, "int64", axes=[1]))
    same(*run_all("i = Cast<to = 6>(x) y = ReduceMin<keepdims = 1>(i, axes)", x, "int32", axes=[1]))
    same(*run_all("i = Cast<to = 7>(x) y = ReduceSum<keepdims = 0>(i, axes)", x, "int64", axes=[1]))


@pytest.mark.parametrize("dtype", ["int64", "int32", "bool"])
@pytest.mark.parametrize("mode", ["constant", "edge"])
def test_pads(mode, dtype):
    x = drawn(dtype, 2, 6, 3) if dtype != "bool" else np.random.default_rng(6).random((2, 6, 3)) < 0.5
    for pads in ([0, 1, 0, 0, 2, 0], [0, 0, 1, 0, 0, 3], [0, -2, 1, 0, 1, 0]):
        same(*run_all(f'y = Pad<mode = "{mode}">(x, pads)', x, dtype, pads=pads))


def test_a_pad_with_a_number():
    x = drawn("int64", 2, 3, 2)
    same(*run_all("y = Pad(x, pads, v)", x, "int64", pads=[0, 1, 0, 0, 0, 0], v=2**62 + 1))


def test_a_reflected_pad():
    x = drawn("int64", 2, 5, 3)
    same(*run_all('y = Pad<mode = "reflect">(x, pads)', x, "int64", pads=[0, 2, 0, 0, 1, 2]))


def test_bounds():
    x = drawn("int64", 2, 4, 3)
    low, high = -(2**60) - 1, 2**60 + 1
    same(*run_all("y = Clip(x, low, high)", x, "int64", low=low, high=high))
    same(*run_all("y = Clip(x, low)", x, "int64", low=low))
    same(*run_all("y = Clip(x, , high)", x, "int64", high=high))


def test_a_computed_bound():
    """The index of the last step but for the length: as PyTorch's exporter writes interpolate."""
    nodes = "s = Shape(x) t = Gather(s, one) last = Sub(t, one) i = Cast<to = 7>(x) y = Clip(i, zero, last)"
    x = np.random.default_rng(1).standard_normal((2, 4, 3)).astype(np.float32) * 9
    same(*run_all(nodes, x, "int64", one=1, zero=0))


def test_integers_as_bools():
    x = drawn("int64", 2, 4, 3) * (np.arange(3) > 0)
    same(*run_all("y = Cast<to = 9>(x)", x, "bool"))


def test_largest_integers():
    x = drawn("int64", 2, 7)
    same(*run_all("y, i = TopK<axis = 1>(x, k)", x, "int64", k=[3]))


def test_integers_put_in_their_places():
    """A permutation turned round, of numbers that float32 would round."""
    x = np.random.default_rng(4).permutation(9).reshape(1, 9)
    nodes = "p = Reshape(x, flat) u = Mul(p, big) y = ScatterElements<axis = 0>(u, p, u)"
    same(*run_all(nodes, x, "int64", flat=[-1], big=2**40 + 1))


@pytest.mark.parametrize("dtype", ["int64", "int32", "float32"])
@pytest.mark.parametrize(("exclusive", "reverse"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_running_products(exclusive, reverse, dtype):
    """onnxruntime does not have them; NumPy's wrap around too."""
    x = (
        drawn(dtype, 2, 3, 7)
        if dtype != "float32"
        else np.random.default_rng(3).standard_normal((2, 3, 7)).astype(dtype)
    )
    nodes = f"y = CumProd<exclusive = {exclusive}, reverse = {reverse}>(x, axis)"
    model = fastrnn.load(file_of(nodes, x, {"float32": "float"}.get(dtype, dtype), axis=2, opset=26), threads=1)
    turned = x[..., ::-1] if reverse else x
    want = np.cumprod(turned, 2, dtype=dtype)
    want = np.concatenate([np.ones_like(want[..., :1]), want[..., :-1]], 2) if exclusive else want
    want = want[..., ::-1] if reverse else want
    for got in (*model.run(x=x), reference.run(model.graph, {"x": x})[0]):
        np.testing.assert_allclose(got, want, rtol=1e-6 if dtype == "float32" else 0)


# --- other operators that are said by what the graph has -------------------------------------------------------------


@pytest.mark.parametrize("k", [-1, 0, 2])
def test_eye(k):
    x = np.ones((3, 5), np.float32)
    same(*run_all(f"y = EyeLike<k = {k}>(x)", x, "float"))
    same(*run_all(f"y = EyeLike<k = {k}, dtype = 7>(x)", x, "int64"))


def test_steps_by_number_of_an_open_length():
    x = np.random.default_rng(1).standard_normal((2, 8, 3)).astype(np.float32)
    same(*run_all("y = Gather<axis = 1>(x, i)", x, "float", i=[0, 5, -2]))
    refused("y = Gather<axis = 1>(x, i)", x[:, :5], "float", "0 or more", i=[0, 5, -2])


def test_a_part_of_an_open_length():
    x = np.random.default_rng(1).standard_normal((2, 9, 3)).astype(np.float32)
    half = "s = Shape(x) t = Slice(s, one, two) k = Div(t, two)"
    same(*run_all(f"{half} y, i = TopK<axis = 1>(x, k)", x, "float", one=[1], two=[2]))


def test_equal_parts_of_an_open_length():
    x = np.random.default_rng(1).standard_normal((2, 9, 3)).astype(np.float32)
    nodes = "a, b, c = Split<axis = 1, num_outputs = 3>(x) d = Add(a, b) y = Mul(d, c)"
    want, got, meant = run_all(nodes, x, "float")
    np.testing.assert_allclose(got, want, atol=1e-6)
    np.testing.assert_allclose(meant, want, atol=1e-6)
    refused(nodes, x[:, :8], "float", "must be a multiple of")


def test_blocks_and_back():
    x = np.random.default_rng(1).standard_normal((2, 8, 3)).astype(np.float32)
    nodes = """s = Shape(x) b = Slice(s, zero, one) t = Slice(s, one, two) k = Div(t, four)
        to = Concat<axis = 0>(b, k, four, three) z = Reshape(x, to) u = Neg(z)
        back = Concat<axis = 0>(b, t, three) y = Reshape(u, back)"""
    same(*run_all(nodes, x, "float", zero=[0], one=[1], two=[2], four=[4], three=[3]))


HOW = ["asymmetric", "half_pixel", "pytorch_half_pixel", "align_corners"]
ROUND = ["floor", "ceil", "round_prefer_floor", "round_prefer_ceil"]


def resized(mode: str, how: str, rounding: str, old: int, new: int) -> None:
    """Resize of a channel of `old` elements to `new`, in all three."""
    attributes = f'mode = "{mode}", coordinate_transformation_mode = "{how}", nearest_mode = "{rounding}"'
    text = f"""<ir_version: 8, opset_import: ["": 18]> g (float[b,2,{old}] x) => (float[b,2,n] y)
        <int64[1] zero = {{0}}, int64[1] two = {{2}}, int64[1] to = {{{new}}}>
        {{ s = Shape(x) bc = Slice(s, zero, two) size = Concat<axis = 0>(bc, to)
           y = Resize<{attributes}>(x, , , size) }}"""
    data = onnx.parser.parse_model(text).SerializeToString()
    x = np.random.default_rng(old).standard_normal((2, 2, old)).astype(np.float32)
    loaded = fastrnn.load(data, threads=1)
    want = ort.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    for got in (*loaded.run(x=x), reference.run(loaded.graph, {"x": x})[0]):
        np.testing.assert_allclose(got, want, atol=2e-6, err_msg=f"{how} {rounding} {old} to {new}")


@pytest.mark.parametrize("how", HOW)
def test_resized_by_fractions(how):
    for old, new in ((9, 19), (12, 10), (6, 12), (5, 1), (1, 4), (10, 3), (7, 8), (15, 6)):
        resized("linear", how, "floor", old, new)
    for rounding in ROUND:
        for old, new in ((9, 19), (12, 10), (1, 4), (10, 3), (7, 8), (15, 6)):
            resized("nearest", how, rounding, old, new)
