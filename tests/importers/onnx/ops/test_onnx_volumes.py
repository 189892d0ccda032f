"""Windows over three axes, norm pools, places of the largest, LRN, Col2Im and pads, against onnxruntime."""

import numpy as np
import pytest
from onnx_text import model, noise, runs_as_onnxruntime

import fastrnn
from fastrnn.errors import ShapeError, UnsupportedError


@pytest.mark.parametrize(
    "attributes",
    [
        "",
        "strides = [2, 1, 2], pads = [1, 0, 1, 0, 1, 2]",
        "dilations = [2, 1, 1], group = 2",
        'auto_pad = "SAME_UPPER", strides = [1, 1, 1]',
    ],
)
def test_a_convolution(attributes):
    groups = 2 if "group" in attributes else 1
    made = model(
        "(float[B, 4, D, H, W] x) => (float[B, 6, P, Q, R] y)",
        f"y = Conv <{attributes}> (x, k, b)" if attributes else "y = Conv (x, k, b)",
        k=noise(6, 4 // groups, 3, 2, 2),
        b=noise(6),
    )
    runs_as_onnxruntime(made, *({"x": noise(b, 4, d, h, w)} for b, d, h, w in ((1, 5, 4, 3), (2, 7, 3, 6))))


@pytest.mark.parametrize(
    "attributes",
    [
        "",
        "strides = [2, 1, 3], pads = [1, 0, 1, 0, 1, 2], output_padding = [1, 0, 0]",
        "dilations = [2, 1, 1], group = 2",
    ],
)
def test_a_transposed_convolution(attributes):
    groups = 2 if "group" in attributes else 1
    made = model(
        "(float[B, 4, D, H, W] x) => (float[B, 6, P, Q, R] y)",
        f"y = ConvTranspose <{attributes}> (x, k, b)" if attributes else "y = ConvTranspose (x, k, b)",
        k=noise(4, 6 // groups, 3, 2, 2),
        b=noise(6),
    )
    runs_as_onnxruntime(made, *({"x": noise(b, 4, d, h, w)} for b, d, h, w in ((1, 5, 4, 3), (2, 2, 3, 6))))


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
@pytest.mark.parametrize(
    "attributes",
    [
        "kernel_shape = [2, 3, 2]",
        "kernel_shape = [2, 3, 2], strides = [2, 1, 2], pads = [1, 1, 0, 1, 2, 1]",
        "kernel_shape = [2, 2, 2], dilations = [2, 1, 1]",
    ],
)
def test_pools(op, attributes):
    extra = ", count_include_pad = 1" if op == "AveragePool" and "pads" in attributes else ""
    extra += ", p = 3" if op == "LpPool" else ""
    opset = 19 if op == "AveragePool" else 18
    made = model(
        "(float[B, 3, D, H, W] x) => (float[B, 3, P, Q, R] y)", f"y = {op} <{attributes}{extra}> (x)", opset=opset
    )
    runs_as_onnxruntime(made, *({"x": noise(b, 3, d, h, w)} for b, d, h, w in ((1, 5, 4, 4), (2, 7, 5, 6))))


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "LpPool"])
@pytest.mark.parametrize("size", [6, 7, 8])
def test_windows_whose_number_is_rounded_up(op, size):
    made = model(
        f"(float[B, 2, {size}, {size + 1}] x) => (float[B, 2, P, Q] y)",
        f"y = {op} <kernel_shape = [3, 2], strides = [2, 3], pads = [1, 0, 1, 1], ceil_mode = 1> (x)",
        opset=19,
    )
    runs_as_onnxruntime(made, {"x": noise(2, 2, size, size + 1)})


@pytest.mark.parametrize("p", [1, 2, 3])
def test_a_global_norm(p):
    made = model("(float[B, 3, H, W] x) => (float[B, 3, 1, 1] y)", f"y = GlobalLpPool <p = {p}> (x)")
    runs_as_onnxruntime(made, {"x": noise(1, 3, 2, 5)}, {"x": noise(2, 3, 4, 3)})


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize(
    ("rank", "attributes"),
    [
        (1, "kernel_shape = [3], strides = [2], pads = [1, 1]"),
        (2, "kernel_shape = [2, 3]"),
        (2, "kernel_shape = [2, 3], strides = [2, 1], pads = [1, 1, 0, 1], dilations = [1, 2]"),
    ],
)
def test_places_of_the_largest(order, rank, attributes):
    names = "H, W" if rank == 2 else "H"
    made = model(
        f"(float[B, C, {names}] x) => (float[B, C, {names.replace('H', 'P').replace('W', 'Q')}] y, "
        f"int64[B, C, {names.replace('H', 'P').replace('W', 'Q')}] i)",
        f"y, i = MaxPool <{attributes}, storage_order = {order}> (x)",
    )
    if rank == 1 and order:
        return  # one axis has one order
    sizes = ((1, 1, 5, 6), (2, 3, 6, 7))
    calls = [{"x": np.round(noise(*size[: rank + 2]) * 2)} for size in sizes]  # with ties
    runs_as_onnxruntime(made, *calls)


def test_unpooling():
    made = model(
        "(float[B, 3, 4, 6] x) => (float[B, 3, 4, 6] y)",
        "v, i = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x) "
        "y = MaxUnpool <kernel_shape = [2, 2], strides = [2, 2]> (v, i)",
    )
    runs_as_onnxruntime(made, {"x": noise(1, 3, 4, 6)}, {"x": noise(2, 3, 4, 6)})


@pytest.mark.parametrize("size", [1, 3, 5])  # onnxruntime takes no others
def test_neighbouring_channels(size):
    made = model(
        "(float[B, C, H, W] x) => (float[B, C, H, W] y)",
        f"y = LRN <size = {size}, alpha = 0.2, beta = 0.6, bias = 1.5> (x)",
    )
    runs_as_onnxruntime(made, {"x": noise(1, 5, 2, 3)}, {"x": noise(2, 7, 4, 1)})


@pytest.mark.parametrize(
    ("image", "block", "attributes", "count"),
    [
        ((5, 6), (2, 3), "", 16),
        ((7, 6), (2, 2), "strides = [2, 2], pads = [1, 0, 0, 1]", 12),
        ((6, 6), (2, 2), "dilations = [1, 3]", 15),
    ],
)
def test_images_from_columns(image, block, attributes, count):
    made = model(
        f"(float[B, {3 * block[0] * block[1]}, {count}] x) => (float[B, 3, {image[0]}, {image[1]}] y)",
        f"y = Col2Im <{attributes}> (x, i, b)" if attributes else "y = Col2Im (x, i, b)",
        opset=18,
        i=np.array(image),
        b=np.array(block),
    )
    runs_as_onnxruntime(made, *({"x": noise(b, 3 * block[0] * block[1], count)} for b in (1, 2)))


@pytest.mark.parametrize("mode", ["wrap", "reflect", "edge", "constant"])
@pytest.mark.parametrize("kind", ["float", "int64", "int32"])
def test_pads(mode, kind):
    made = model(
        f"({kind}[B, T] x) => ({kind}[P, Q] y)", f'y = Pad <mode = "{mode}"> (x, pads)', opset=19,
        pads=np.array([0, 2, 0, 1]),
    )  # fmt: skip
    dtype = {"float": np.float32, "int64": np.int64, "int32": np.int32}[kind]
    found = runs_as_onnxruntime(made, *({"x": (noise(b, t) * 9).astype(dtype)} for b, t in ((1, 3), (2, 5))))
    if mode in ("wrap", "reflect"):
        with pytest.raises(ShapeError):
            found.run(np.ones((1, 1), dtype))


def test_what_stays_refused():
    pads = np.array([0, 0, 9, 0, 0, 9])
    made = model("(float[B, 1, 4] x) => (float[B, 1, P] y)", 'y = Pad <mode = "wrap"> (x, p)', p=pads)
    with pytest.raises((UnsupportedError, ShapeError)):
        fastrnn.from_onnx(made).run(noise(1, 1, 4))
