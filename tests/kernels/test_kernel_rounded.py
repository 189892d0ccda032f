"""Products in reduced precision on every instruction set: against float64 sums of the rounded numbers, and the promise
of the same bits on all of them."""

import itertools

import numpy as np
import pytest
from test_kernel_cells import FORMS, MEANING, Layer, run, same

from fastrnn.machine import _isa
from fastrnn.machine import _kernel_calls as calls

ISAS = _isa.isa_info()["available"] + _isa.isa_info()["emulated"]
FORMATS = ("bfloat16", "int8", "int8-a16")
FUSED = [isa for isa in ISAS if isa != "baseline"]  # baseline rounds a multiply-add twice
SIZES = [1, 3, 4, 5, 8, 9, 15, 16, 17, 20, 31, 32, 33, 48, 50, 63, 64, 65, 100, 130]
MOST = {"int8": 127, "int8-a16": 16256}


def to_bfloat16(a):
    """The nearest bfloat16 of each element, ties to even, as float64."""
    bits = np.asarray(a, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32).astype(np.float64)


def rounded_weights(W, format):
    """The weights as the kernels keep them, float64: [columns, K], a scale per column."""
    if format == "bfloat16":
        return to_bfloat16(W)
    scale = np.abs(W).max(axis=1, keepdims=True) / np.float32(127)
    return np.clip(np.rint(W / np.where(scale > 0, scale, 1)), -127, 127) * scale.astype(np.float64)


def rounded_rows(x, format):
    """Rows of x or h as the kernels round them, float64."""
    if format == "bfloat16":
        return to_bfloat16(x)
    most = np.float32(MOST[format])
    size = np.abs(x).max(axis=1, keepdims=True)
    inverse = most / np.where(size > 0, size, 1)
    return np.clip(np.rint(x * inverse), -most, most) * (size / most).astype(np.float64)


class Rounded(Layer):
    """A cell whose weights, x and h are rounded before its products; the rest in float64."""

    def __init__(self, form, I, H, format, seed=0):  # noqa: E741
        super().__init__(form, I, H, seed)
        self.format = format

    def pack(self, isa):
        return _isa.pack_cell(self.spec, self.W, self.R, self.Wb, self.Rb, self.P, isa=isa, weights=self.format)

    def step(self, x, h, c):
        """(h, c) after the step: products of rounded numbers, float64."""
        exact = Layer.__new__(Layer)
        exact.__dict__.update(self.__dict__)
        exact.W, exact.R = rounded_weights(self.W, self.format), rounded_weights(self.R, self.format)
        rounded_h = rounded_rows(h, self.format)
        if self.spec.kind != "gru":
            return exact.step(rounded_rows(x, self.format), rounded_h, c)
        return self.gru(exact, rounded_rows(x, self.format), rounded_h, h)

    def gru(self, exact, x, rounded_h, h):
        """A GRU mixes in the h that was not rounded, and resets it before it is."""
        spec, H = self.spec, self.spec.hidden_size
        limit = np.inf if spec.clip is None else spec.clip
        acts = [lambda v, a=a: MEANING[a.name](np.clip(v, -limit, limit), a.alpha, a.beta) for a in spec.activations]
        xs, hs = x @ exact.W.T + self.Wb, rounded_h @ exact.R.T + self.Rb
        (xz, xr, xn), (hz, hr, hn) = (np.split(a, 3, axis=1) for a in (xs, hs))
        z, r = acts[0](xz + hz), acts[0](xr + hr)
        if spec.linear_before_reset:
            n = acts[1](xn + r * hn)
        else:
            reset = rounded_rows((r * h).astype(np.float32), self.format)
            n = acts[1](xn + reset @ exact.R[2 * H :].T + self.Rb[2 * H :])
        return (1 - z) * n + z * h, None


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("form", FORMS)
def test_against_float64(form, format, isa):
    for H, I in itertools.product(SIZES, (1, 5, 70)):  # noqa: E741
        layer = Rounded(form, I, H, format)
        packed = layer.pack(isa)
        assert packed.weights == format
        x, h, c = layer.rows(1 + (H + I) % 13)
        y, c_new = run(packed, x, h, c)
        y_exact, c_exact = layer.step(x, h, c)
        # where r * h is rounded, a last bit may decide which way
        loose = layer.spec.kind == "gru" and not layer.spec.linear_before_reset
        close = dict(rtol=2e-5, atol=2e-2 if loose and format == "int8" else 2e-3 if loose else 4e-6)
        np.testing.assert_allclose(y, y_exact, **close, err_msg=f"I={I} H={H}")
        if loose:
            assert np.median(np.abs(y - y_exact)) < 4e-6
        if c is not None:
            np.testing.assert_allclose(c_new, c_exact, rtol=2e-5, atol=4e-6, err_msg=f"I={I} H={H}")


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("form", FORMS)
def test_instruction_sets_give_the_same_bits(form, format):
    for H, I in itertools.product(SIZES, (1, 5, 70)):  # noqa: E741
        layer = Rounded(form, I, H, format)
        x, h, c = layer.rows(1 + (H + I) % 13)
        answers = [run(layer.pack(isa), x, h, c) for isa in FUSED]
        for isa, answer in zip(FUSED, answers, strict=True):
            assert same(answer, answers[0]), f"{isa} I={I} H={H}"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("form", ["rnn", "lstm", "lstm peephole", "gru after", "gru before"])
def test_same_bits_whatever_the_rows(form, format, isa):
    for H in (1, 5, 16, 20, 33, 50, 64, 130):
        layer = Rounded(form, 7, H, format)
        packed = layer.pack(isa)
        x, h, c = layer.rows(13)
        whole = run(packed, x, h, c)
        for count in range(1, 13):  # fewer rows, anywhere
            a = 13 - count if count % 2 else 0
            part = run(packed, x[a : a + count], h[a : a + count], None if c is None else c[a : a + count])
            expected = whole[0][a : a + count], None if c is None else whole[1][a : a + count]
            assert same(part, expected), f"H={H}, {count} rows"
        for cut in range(packed.blocks + 1):  # any split of the blocks, in either order, one row and many
            how = dict(splits=(cut,), backwards=cut % 2 == 0)
            assert same(run(packed, x, h, c, **how), whole), f"H={H}, {how}"
            one = run(packed, x[:1], h[:1], None if c is None else c[:1], **how)
            assert one[0].tobytes() == whole[0][:1].tobytes(), f"H={H}, one row, {how}"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("form", FORMS)
def test_sums_over_x_that_were_made_ahead_have_the_same_bits(form, format, isa):
    for H, I in ((1, 1), (5, 3), (20, 7), (33, 70), (64, 64), (130, 5)):  # noqa: E741
        layer = Rounded(form, I, H, format)
        packed = layer.pack(isa)
        x, h, c = layer.rows(9)
        x[7, I // 2] = np.nan
        (pre,) = calls.cell_input(packed, x)
        assert same(run(packed, None, h, c, pre=pre), run(packed, x, h, c)), f"I={I} H={H}"
        one = np.concatenate([calls.cell_input(packed, x[i : i + 1], splits=(packed.blocks // 2,)) for i in range(9)])
        assert one.tobytes() == calls.cell_input(packed, x, steps=9).tobytes(), f"I={I} H={H}"
        for i, pre in enumerate(calls.cell_input(packed, x, steps=3)):  # tiles of rows from several steps
            three = slice(3 * i, 3 * i + 3)
            part = None if c is None else c[three]
            assert same(run(packed, None, h[three], part, pre=pre), run(packed, x[three], h[three], part))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("form", ["rnn", "lstm", "gru after", "gru before"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_row_is_nan_and_no_other(bad, form, format, isa):
    layer = Rounded(form, 9, 33, format)
    packed = layer.pack(isa)
    x, h, c = layer.rows(7)
    good = run(packed, x, h, c)
    for what, column in ((x, 0), (x, 8), (h, 0), (h, 32)):
        kept = what[3, column]
        what[3, column] = bad
        y, state = run(packed, x, h, c)
        what[3, column] = kept
        assert np.isnan(y[3]).all()
        others = [0, 1, 2, 4, 5, 6]
        assert y[others].tobytes() == good[0][others].tobytes()
        assert c is None or state[others].tobytes() == good[1][others].tobytes()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", FORMATS)
def test_extreme_rows(format, isa):
    """Zeros, denormals, rows of one huge number, and an h of the caller beyond 1 keep their accuracy."""
    layer = Rounded("lstm", 40, 24, format)
    packed = layer.pack(isa)
    x, h, c = layer.rows(6)
    x[0], x[1], x[2] = 0, 1e-40, 1e-20
    x[3, 5] = 1e30
    h[4] *= 40
    h[5] = 0
    y, c_new = run(packed, x, h, c)
    with np.errstate(over="ignore"):
        y_exact, c_exact = layer.step(x, h, c)
    np.testing.assert_allclose(y, y_exact, rtol=2e-5, atol=4e-6)
    np.testing.assert_allclose(c_new, c_exact, rtol=2e-5, atol=4e-6)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", ["int8", "int8-a16"])
def test_integers_do_not_saturate(format, isa):
    """The largest sums of products that 8-bit weights and rows can make, of either sign."""
    layer = Rounded("rnn", 2000, 8, format)
    layer.W[:], layer.R[:], layer.Wb[:], layer.Rb[:] = 0.001, 0, 0, 0
    layer.W[::2] *= -1
    x, h, c = layer.rows(3)
    x[:] = 0.5
    x[1] *= -1
    x[2, ::2] *= -1  # cancels
    y, _ = run(layer.pack(isa), x, h, c)
    sign = np.array([1.0, -1.0] * 4) * -1
    np.testing.assert_allclose(y[:2], [np.tanh(sign), np.tanh(-sign)], atol=1e-6)
    assert not y[2].any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("format", FORMATS)
def test_linear(format, isa):
    rng = np.random.default_rng(3)
    for K, N, rows in itertools.product((1, 7, 64, 70), (1, 4, 5, 16, 33, 64, 130), (1, 2, 5, 13)):
        W = rng.normal(size=(K, N)).astype(np.float32)
        bias = rng.normal(size=N).astype(np.float32)
        x = rng.normal(size=(rows, K)).astype(np.float32)
        packed = _isa.pack_linear(W, bias, isa=isa, weights=format)
        y = calls.linear(packed, x, "tanh")
        exact = np.tanh(rounded_rows(x, format) @ rounded_weights(np.ascontiguousarray(W.T), format).T + bias)
        np.testing.assert_allclose(y, exact, rtol=2e-5, atol=1e-5, err_msg=f"{K} {N} {rows}")
        assert calls.linear(packed, x[:1], "tanh").tobytes() == y[:1].tobytes()
        if isa != "baseline":
            first = calls.linear(_isa.pack_linear(W, bias, isa=FUSED[0], weights=format), x, "tanh")
            assert y.tobytes() == first.tobytes(), f"{K} {N} {rows}"


@pytest.mark.parametrize("isa", ISAS)
def test_scales_of_the_caller(isa):
    """8-bit weights of a file keep their own scales, and may be -128."""
    layer = Rounded("lstm", 20, 12, "int8")
    scales = [np.float32(2.0) ** -layer.rng.integers(8, 12, 48).astype(np.float32) for _ in range(2)]
    integers = [layer.rng.integers(-128, 128, (48, n)) for n in (20, 12)]
    for q in integers:
        q[::3, ::2] = -128
    layer.W, layer.R = ((q * s[:, None]).astype(np.float32) for q, s in zip(integers, scales, strict=True))
    packed = _isa.pack_cell(layer.spec, layer.W, layer.R, layer.Wb, layer.Rb, isa=isa, weights="int8",
                            W_scale=scales[0], R_scale=scales[1])  # fmt: skip
    x, h, c = layer.rows(4)
    exact = Layer.__new__(Layer)
    exact.__dict__.update(layer.__dict__)
    y, _ = run(packed, x, h, c)
    y_exact, _ = exact.step(rounded_rows(x, "int8"), rounded_rows(h, "int8"), c)
    np.testing.assert_allclose(y, y_exact, rtol=2e-5, atol=4e-6)


def test_classes_of_equal_bits():
    for format in FORMATS:
        assert {_isa.bits_class(format, isa) for isa in FUSED} == {format}
        assert _isa.bits_class(format, "baseline") == f"{format} baseline"
    assert len({_isa.bits_class("float32", isa) for isa in ISAS}) > 1
