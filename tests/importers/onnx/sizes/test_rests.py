"""What a length lacks to a multiple, as padding to whole chunks computes it."""

import numpy as np
import pytest
from onnx_text import agrees_with_onnxruntime, dims, model, noise

from fastrnn.errors import UnsupportedError
from fastrnn.importers.onnx import import_onnx

COUNTED = """s = Shape(x) t = Gather <axis = 0> (s, zero) {made}
             shape = Unsqueeze(n, zeros) wide = Concat <axis = 0> (shape, ones) e = Expand(one, wide) y = Identity(e)
             z, h = RNN <hidden_size = 2> (x, W, R)"""


@pytest.mark.parametrize(
    "made",
    {
        "rest": "m = Mod(t, four) n = Add(m, unit)",
        "lacks": "m = Mod(t, four) d = Sub(four, m) r = Mod(d, four) n = Add(r, t)",
        "lacks one more": "u = Add(t, unit) m = Mod(u, four) d = Sub(four, m) r = Mod(d, four) n = Add(r, t)",
        "minus": "g = Neg(t) r = Mod(g, four) n = Add(r, unit)",
        "below zero": "d = Sub(unit, t) r = Mod(d, four) n = Add(r, unit)",
        "twice": "d = Mul(t, two) r = Mod(d, four) n = Add(r, unit)",
        "of a quotient": "q = Div(t, two) r = Mod(q, four) n = Add(r, unit)",
        "less a quotient": "q = Div(t, two) d = Sub(t, q) r = Mod(d, four) n = Add(r, unit)",
        "rounded up": "m = Mod(t, four) d = Sub(four, m) r = Mod(d, four) p = Add(t, r) n = Min(t, p)",
        "rounded up, turned": "m = Mod(t, four) d = Sub(four, m) r = Mod(d, four) p = Add(t, r) n = Min(p, t)",
        "rounded down": "q = Div(t, four) p = Mul(q, four) k = Min(t, p) n = Add(k, unit)",
        "of itself and one more": "p = Add(t, unit) n = Min(p, t)",
    }.items(),
    ids=lambda case: case[0],
)
def test_rests_and_smallest_sizes_are_followed(made):
    file = model(
        "(float[t,b,3] x) => (float[n,2] y, float[t,1,b,2] z)",
        COUNTED.format(made=made[1]), zero=np.int64(0), zeros=np.int64([0]), ones=np.int64([2]), four=np.int64(4),
        two=np.int64(2), unit=np.int64(1), one=np.float32([1.0]),
    )  # fmt: skip
    assert dims(import_onnx(file), "x")[0] == "time"
    for steps in (1, 2, 3, 4, 5, 8, 11):
        agrees_with_onnxruntime(file, x=noise(steps, 2, 3))


@pytest.mark.parametrize("made", ["p = Sub(t, four) n = Min(six, t)", "q = Div(t, four) n = Min(t, six)"])
def test_sizes_of_which_either_may_be_the_smaller_one_are_refused(made):
    """Only one of the two readings would be right at each length."""
    file = model(
        "(float[t,b,3] x) => (float[n,2] y, float[t,1,b,2] z)",
        COUNTED.format(made=made), zero=np.int64(0), zeros=np.int64([0]), ones=np.int64([2]), four=np.int64(4),
        six=np.int64(6), one=np.float32([1.0]),
    )  # fmt: skip
    with pytest.raises(UnsupportedError, match="must be constant or a size"):
        import_onnx(file)
