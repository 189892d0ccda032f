"""Resize in all its modes against onnxruntime, at sizes other than those of onnx's own cases."""

import numpy as np
import pytest
from onnx_text import model, noise, runs_as_onnxruntime

import fastrnn
from fastrnn.errors import UnsupportedError

SIZES = [(5, 7), (3, 2), (1, 6)]


def resized(attributes, given, height, width, target=None, batch="B", **constants):
    out = "P, Q" if target is None else ", ".join(map(str, target))
    return model(
        f"(float[{batch}, C, {height}, {width}] x) => (float[{batch}, C, {out}] y)",
        f"y = Resize <{attributes}> ({given})",
        opset=19,
        **constants,
    )


def check(made, height, width):
    runs_as_onnxruntime(made, *({"x": noise(b, c, height, width)} for b, c in ((1, 1), (2, 3))), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("target", [(8, 5), (2, 13), (3, 3)])
@pytest.mark.parametrize("how", ["half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"])
@pytest.mark.parametrize("mode", ["linear", "cubic"])
def test_sizes(size, target, how, mode):
    made = resized(
        f'mode = "{mode}", coordinate_transformation_mode = "{how}", axes = [2, 3]', "x, , , sizes", *size,
        sizes=np.array(target),
    )  # fmt: skip
    check(made, *size)


@pytest.mark.parametrize("exclude", [0, 1])
@pytest.mark.parametrize("scales", [(1.5, 2.0), (0.6, 0.8), (2.5, 0.5)])
@pytest.mark.parametrize("how", ["half_pixel", "asymmetric", "half_pixel_symmetric"])
def test_scales_of_cubic(exclude, scales, how):
    made = resized(
        f'mode = "cubic", coordinate_transformation_mode = "{how}", exclude_outside = {exclude}, '
        "cubic_coeff_a = -0.5, axes = [2, 3]",
        "x, , scales", 5, 8, scales=np.float32(scales),
    )  # fmt: skip
    check(made, 5, 8)


@pytest.mark.parametrize("rounding", ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"])
@pytest.mark.parametrize("how", ["half_pixel", "asymmetric", "align_corners", "half_pixel_symmetric"])
@pytest.mark.parametrize("target", [(8, 5), (3, 13)])
def test_nearest(rounding, how, target):
    if how == "half_pixel_symmetric" and rounding in ("floor", "ceil"):
        return  # the middle place is a whole number, which onnxruntime's float32 may miss
    made = resized(
        f'mode = "nearest", nearest_mode = "{rounding}", coordinate_transformation_mode = "{how}", axes = [2, 3]',
        "x, , , sizes", 5, 7, sizes=np.array(target),
    )  # fmt: skip
    check(made, 5, 7)


@pytest.mark.parametrize("mode", ["linear", "cubic"])
@pytest.mark.parametrize("target", [(3, 4), (2, 9), (7, 2)])
@pytest.mark.parametrize("exclude", [0, 1])
def test_antialias(mode, target, exclude):
    made = resized(
        f'mode = "{mode}", antialias = 1, axes = [2, 3], exclude_outside = {exclude}', "x, , , sizes", 8, 9,
        sizes=np.array(target),
    )  # fmt: skip
    check(made, 8, 9)


@pytest.mark.parametrize("policy", ["not_larger", "not_smaller"])
@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_a_kept_ratio(policy, mode):
    made = resized(
        f'mode = "{mode}", keep_aspect_ratio_policy = "{policy}", axes = [2, 3]', "x, , , sizes", 4, 7,
        sizes=np.array([9, 10]),
    )  # fmt: skip
    check(made, 4, 7)


@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("roi", [(0, 0, 0.4, 0.6, 1, 1, 0.6, 0.8), (0, 0, -0.2, 0.3, 1, 1, 1.3, 0.1)])
def test_a_crop(mode, roi):
    made = model(
        "(float[1, 2, 6, 5] x) => (float[1, 2, 4, 3] y)",
        f'y = Resize <mode = "{mode}", coordinate_transformation_mode = "tf_crop_and_resize", '
        "extrapolation_value = 7.0> (x, roi, , sizes)",
        opset=19,
        roi=np.float32(roi),
        sizes=np.array([1, 2, 4, 3]),
    )
    runs_as_onnxruntime(made, {"x": noise(1, 2, 6, 5)}, atol=1e-4)


def test_an_open_size_is_refused_with_its_name():
    made = resized('mode = "cubic", axes = [2, 3]', "x, , , sizes", "H", "W", sizes=np.array([4, 4]))
    with pytest.raises(UnsupportedError, match="Resize"):
        fastrnn.from_onnx(made)


def test_upsample_by_interpolation():
    made = model(
        "(float[B, 2, 3, 4] x) => (float[B, 2, 6, 12] y)",
        'y = Upsample <mode = "linear"> (x, scales)',
        opset=9,
        scales=np.float32([1, 1, 2, 3]),
    )
    runs_as_onnxruntime(made, {"x": noise(2, 2, 3, 4)})
