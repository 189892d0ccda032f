"""The recurrent cells on every instruction set: against float64, and the promise of the same bits."""

import itertools
import math
import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fastrnn.errors import FastRNNError, ShapeError
from fastrnn.graph.cells import ACTIVATIONS, CellSpec, activation
from fastrnn.machine import _isa
from fastrnn.machine import _kernel_calls as calls

ISAS = [isa for isa in _isa.isa_info()["available"] if _isa.kernels_of(isa) == isa]  # with float32 kernels of their own
SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 15, 16, 17, 20, 24, 31, 32, 33, 40, 47, 48, 49, 50, 64, 65, 80, 130]
FORMS = {
    "rnn": dict(kind="rnn"),
    "lstm": dict(kind="lstm"),
    "lstm peephole": dict(kind="lstm", peephole=True),
    "lstm clip": dict(kind="lstm", clip=0.7, peephole=True),
    "lstm input_forget": dict(kind="lstm", input_forget=True),
    "gru after": dict(kind="gru", linear_before_reset=True),
    "gru before": dict(kind="gru"),
    "gru after clip": dict(kind="gru", linear_before_reset=True, clip=0.5),
    "gru before clip": dict(kind="gru", clip=0.5),
    "rnn clip": dict(kind="rnn", clip=0.4),
    "lstm other": dict(kind="lstm", activations=("hard_sigmoid", "softsign", "relu")),
    "gru other": dict(kind="gru", activations=("hard_sigmoid", "scaled_tanh")),
    "gru before other": dict(kind="gru", linear_before_reset=False, activations=("softsign", "elu")),
}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


MEANING = {  # of (x, alpha, beta), float64
    "sigmoid": lambda x, a, b: sigmoid(x),
    "tanh": lambda x, a, b: np.tanh(x),
    "relu": lambda x, a, b: np.maximum(x, 0),
    "affine": lambda x, a, b: a * x + b,
    "leaky_relu": lambda x, a, b: np.where(x < 0, a * x, x),
    "thresholded_relu": lambda x, a, b: np.where(x < a, 0, x),
    "scaled_tanh": lambda x, a, b: a * np.tanh(b * x),
    "hard_sigmoid": lambda x, a, b: np.clip(a * x + b, 0, 1),
    "elu": lambda x, a, b: np.where(x < 0, a * (np.exp(x) - 1), x),
    "softsign": lambda x, a, b: x / (1 + np.abs(x)),
    "softplus": lambda x, a, b: np.log(1 + np.exp(x)),
    "exp": lambda x, a, b: np.exp(x),
    "selu": lambda x, a, b: b * np.where(x > 0, x, a * (np.exp(x) - 1)),
    "gelu": lambda x, a, b: x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x, a, b: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "silu": lambda x, a, b: x * sigmoid(x),
    "hard_swish": lambda x, a, b: x * np.clip(x + 3, 0, 6) / 6,
    "mish": lambda x, a, b: x * np.tanh(np.log(1 + np.exp(x))),
    "clip": lambda x, a, b: np.clip(x, a, b),
}


class Layer:
    """Random weights of one cell, and its step in float64 as the ONNX text has it."""

    def __init__(self, form, I, H, seed=0, bias=True):  # noqa: E741
        options = dict(FORMS[form]) if isinstance(form, str) else dict(form)
        peephole = options.pop("peephole", False)
        if "activations" in options:
            options["activations"] = tuple(activation(a) for a in options["activations"])
        self.spec = CellSpec(input_size=I, hidden_size=H, **options)
        rng, G = np.random.default_rng([seed, I, H]), self.spec.gates
        self.rng = rng
        scale = 1 / np.sqrt(H)
        self.W, self.R = (rng.uniform(-scale, scale, (G * H, n)).astype(np.float32) for n in (I, H))
        self.Wb, self.Rb = (rng.uniform(-1, 1, G * H).astype(np.float32) if bias else None for _ in range(2))
        self.P = rng.uniform(-1, 1, 3 * H).astype(np.float32) if peephole else None

    def pack(self, isa):
        return _isa.pack_cell(self.spec, self.W, self.R, self.Wb, self.Rb, self.P, isa=isa)

    def rows(self, count):
        """x, h, c of `count` random rows; c is None where the cell has none."""
        x, h, c = (self.rng.normal(size=(count, n)).astype(np.float32) for n in
                   (self.spec.input_size, self.spec.hidden_size, self.spec.hidden_size))  # fmt: skip
        return x, np.tanh(h), c if self.spec.kind == "lstm" else None

    def step(self, x, h, c):
        """(h, c) after the step, float64."""
        spec, H = self.spec, self.spec.hidden_size
        x, h, W, R = (np.asarray(a, np.float64) for a in (x, h, self.W, self.R))
        Wb, Rb = (np.zeros(len(W)) if b is None else b.astype(np.float64) for b in (self.Wb, self.Rb))
        limit = np.inf if spec.clip is None else spec.clip
        acts = [lambda v, a=a: MEANING[a.name](np.clip(v, -limit, limit), a.alpha, a.beta) for a in spec.activations]
        xs, hs = x @ W.T + Wb, h @ R.T + Rb
        if spec.kind == "rnn":
            return acts[0](xs + hs), None
        if spec.kind == "gru":
            (xz, xr, xn), (hz, hr, hn) = (np.split(a, 3, axis=1) for a in (xs, hs))
            z, r = acts[0](xz + hz), acts[0](xr + hr)
            if not spec.linear_before_reset:
                n = acts[1](xn + (r * h) @ R[2 * H :].T + Rb[2 * H :])
            else:
                n = acts[1](xn + r * hn)
            return (1 - z) * n + z * h, None
        i, o, f, g = np.split(xs + hs, 4, axis=1)
        c = c.astype(np.float64)
        P = np.zeros(3 * H) if self.P is None else self.P.astype(np.float64)
        i = acts[0](i + P[:H] * c)
        f = 1 - i if spec.input_forget else acts[0](f + P[2 * H :] * c)
        c = f * c + i * acts[1](g)
        h_act = spec.activations[2]  # sees c as it is, without the clip
        return acts[0](o + P[H : 2 * H] * c) * MEANING[h_act.name](c, h_act.alpha, h_act.beta), c


def run(packed, x, h, c, **options):
    """The kernel's step on copies: bytes-comparable (y, c)."""
    c = None if c is None else c.copy()
    y = calls.cell_step(packed, x, h, c, **options)
    return y, c


def same(a, b):
    return a[0].tobytes() == b[0].tobytes() and (a[1] is None or a[1].tobytes() == b[1].tobytes())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("form", FORMS)
def test_against_float64(form, isa):
    for H, I in itertools.product(SIZES, (1, 5, 64)):  # noqa: E741
        layer = Layer(form, I, H, bias=(H + I) % 5 != 0)
        packed = layer.pack(isa)
        x, h, c = layer.rows(1 + (H + I) % 13)
        y, c_new = run(packed, x, h, c)
        y_exact, c_exact = layer.step(x, h, c)
        np.testing.assert_allclose(y, y_exact, rtol=2e-5, atol=3e-6, err_msg=f"I={I} H={H}")
        if c is not None:
            np.testing.assert_allclose(c_new, c_exact, rtol=2e-5, atol=3e-6, err_msg=f"I={I} H={H}")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_each_activation_in_each_place(name, isa):
    for kind, count in (("rnn", 1), ("lstm", 3), ("gru", 2)):
        for place, before in itertools.product(range(count), (False, True)):
            names = ["sigmoid", "tanh", "tanh"][:count]
            names[place] = name
            layer = Layer(dict(kind=kind, activations=names, linear_before_reset=before), 3, 21)
            x, h, c = layer.rows(4)
            y, _ = run(layer.pack(isa), x, h, c)
            np.testing.assert_allclose(y, layer.step(x, h, c)[0], rtol=2e-5, atol=3e-6, err_msg=f"{kind} {place}")


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("form", FORMS)
def test_same_bits_whatever_the_rows(form, isa):
    for H in (1, 5, 16, 20, 33, 50, 64, 130):
        layer = Layer(form, 7, H)
        packed = layer.pack(isa)
        x, h, c = layer.rows(13)
        whole = run(packed, x, h, c)
        for count in range(1, 13):  # fewer rows, anywhere
            a = 13 - count if count % 2 else 0
            part = run(packed, x[a : a + count], h[a : a + count], None if c is None else c[a : a + count])
            expected = whole[0][a : a + count], None if c is None else whole[1][a : a + count]
            assert same(part, expected), f"H={H}, {count} rows"
        order = np.random.default_rng(1).permutation(13)  # any order
        mixed = run(packed, x[order], h[order], None if c is None else c[order])
        assert same(mixed, (whole[0][order], None if c is None else whole[1][order])), f"H={H}"
        for cut in range(packed.blocks + 1):  # any split of the blocks, in either order, one row and many
            how = dict(splits=(cut,), backwards=cut % 2 == 0)
            assert same(run(packed, x, h, c, **how), whole), f"H={H}, {how}"
            one = run(packed, x[:1], h[:1], None if c is None else c[:1], **how)
            assert one[0].tobytes() == whole[0][:1].tobytes(), f"H={H}, one row, {how}"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("form", "H"), [("rnn", 1030), ("lstm peephole", 515), ("gru after", 405), ("gru before", 430), ("lstm", 520)]
)
def test_far_weights_have_the_same_bits(form, H, isa):
    """From FRNN_FAR_FLOATS on, tiles of every height prefetch their part of the next block, in either direction."""
    layer = Layer(form, H, H)
    packed = layer.pack(isa)
    x, h, c = layer.rows(17)
    rows = [run(packed, x[i : i + 1], h[i : i + 1], None if c is None else c[i : i + 1]) for i in range(17)]
    for count, backwards in itertools.product((2, 3, 4, 5, 6, 10, 17), (False, True)):
        first = slice(17 - count, 17)
        y, state = run(packed, x[first], h[first], None if c is None else c[first], backwards=backwards)
        assert y.tobytes() == b"".join(row[0].tobytes() for row in rows[first])
        assert c is None or state.tobytes() == b"".join(row[1].tobytes() for row in rows[first])
    (pre,) = calls.cell_input(packed, x)
    assert same(run(packed, None, h, c, pre=pre), run(packed, x, h, c))


def wished() -> int:
    """KiB of this process that ask for huge pages."""
    kib = found = 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line.startswith("Size:"):
            kib = int(line.split()[1])
        elif line.startswith("VmFlags:") and "hg" in line.split():
            found += kib
    return found


def shows_wishes() -> bool:
    """Whether this system has huge pages to ask for and shows who did (qemu-user does not)."""
    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        return False
    before = wished()
    with mmap.mmap(-1, 8 << 20) as memory:
        memory.madvise(mmap.MADV_HUGEPAGE)
        return wished() > before


def wished_for() -> tuple[int, int]:
    """KiB more that ask for huge pages after packing small weights, and after packing 8 MiB."""
    before = wished()
    kept = [Layer("rnn", 64, 64).pack(ISAS[0])]
    small = wished() - before
    kept.append(Layer("lstm", 512, 512).pack(ISAS[0]))
    return small, wished() - before


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="this system does not tell how memory is mapped")
def test_large_weights_ask_for_huge_pages():
    """The wish (`hg`), and not whether the system had such pages to give. In a process of its own: memory that large
    weights of other tests have left keeps its wish, and is given out again."""
    if not shows_wishes():
        pytest.skip("this system does not show which memory asks for huge pages")
    code = f"import sys; sys.path[:] = {sys.path}; import test_kernel_cells as t; print(*t.wished_for())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    small, grown = map(int, done.stdout.split())
    assert small == 0
    assert grown >= 8192


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("form", FORMS)
def test_hoisted_input_has_the_same_bits(form, isa):
    for H, I in ((1, 1), (5, 3), (20, 7), (32, 32), (50, 9), (64, 64), (130, 5)):  # noqa: E741
        layer = Layer(form, I, H)
        packed = layer.pack(isa)
        x, h, c = layer.rows(9)
        (pre,) = calls.cell_input(packed, x)
        assert same(run(packed, None, h, c, pre=pre), run(packed, x, h, c)), f"I={I} H={H}"
        one = np.concatenate([calls.cell_input(packed, x[i : i + 1], splits=(packed.blocks // 2,)) for i in range(9)])
        assert one.tobytes() == calls.cell_input(packed, x, steps=9).tobytes(), f"I={I} H={H}"
        steps = calls.cell_input(packed, x, steps=3)  # tiles of rows from several steps
        for i, pre in enumerate(steps):
            three = slice(3 * i, 3 * i + 3)
            part = None if c is None else c[three]
            assert same(run(packed, None, h[three], part, pre=pre), run(packed, x[three], h[three], part))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("form", FORMS)
def test_stays_in_bounds_at_any_alignment(form, isa):
    """Rows lie at odd offsets between NaNs: a read outside would show as NaN, a write as a changed guard."""
    for H, I in ((1, 1), (3, 2), (5, 9), (16, 4), (17, 16), (20, 7), (50, 3), (67, 5)):  # noqa: E741
        layer = Layer(form, I, H)
        packed = layer.pack(isa)
        x, h, c = layer.rows(5)
        plain = run(packed, x, h, c)
        for gap in (1, 3, 16):
            room = [np.full((5, n + gap), np.nan, np.float32) for n in (I, H, H, H)]
            views = [a[:, gap // 2 : gap // 2 + n] for a, n in zip(room, (I, H, H, H), strict=True)]
            for view, array in zip(views, (x, h, c), strict=False):
                if array is not None:
                    view[...] = array
            calls.cell_step(packed, views[0], views[1], None if c is None else views[2], y=views[3])
            assert views[3].tobytes() == plain[0].tobytes(), f"I={I} H={H} gap={gap}"
            for a, view in zip(room, views, strict=True):
                view[...] = np.nan
                assert np.all(np.isnan(a)), f"I={I} H={H} gap={gap}: written outside a row"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("form", FORMS)
def test_rows_do_not_reach_each_other(form, isa):
    layer = Layer(form, 6, 37)
    packed = layer.pack(isa)
    x, h, c = layer.rows(11)
    clean = run(packed, x, h, c)
    for bad in (np.nan, np.inf):
        poisoned = x.copy()
        poisoned[4] = bad
        y, _ = run(packed, poisoned, h, c)
        rest = np.arange(11) != 4
        assert y[rest].tobytes() == clean[0][rest].tobytes()
        if np.isnan(bad):
            assert np.all(np.isnan(y[4]))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("form", FORMS)
def test_only_the_rows_asked_for(form, isa):
    layer = Layer(form, 6, 37)
    packed = layer.pack(isa)
    x, h, c = layer.rows(11)
    clean = run(packed, x, h, c)
    y = np.full((11, 37), 9.0, np.float32)
    got = run(packed, x, h, c, y=y, rows=(3, 8))
    assert got[0][3:8].tobytes() == clean[0][3:8].tobytes()
    assert np.all(got[0][:3] == 9.0)
    assert np.all(got[0][8:] == 9.0)
    if c is not None:
        assert got[1][:3].tobytes() == c[:3].tobytes()


def test_the_same_bits_on_all_sets_that_fuse():
    fused = [isa for isa in ISAS if isa != "baseline"]
    if len(fused) < 2:
        pytest.skip(f"only {fused} can be compared")
    for form, H in itertools.product(FORMS, (5, 20, 50, 64)):
        layer = Layer(form, 9, H)
        x, h, c = layer.rows(7)
        first, *others = (run(layer.pack(isa), x, h, c) for isa in fused)
        assert all(same(first, other) for other in others), f"{form} H={H}"


@pytest.mark.parametrize("isa", ISAS)
def test_narrow_layers_are_not_padded_to_the_widest_vector(isa):
    lanes = {"avx512": 16, "avx2": 8}.get(isa, 4)
    for H, padded in ((1, 4), (4, 4), (20, 20), (50, 52), (130, 132)):
        layer = Layer("lstm", 8, H)
        floats = layer.pack(isa).nbytes // 4
        assert floats == 4 * (1 + 8 + H) * padded, f"H={H} on {lanes} lanes"


def test_packing_refuses_what_does_not_fit():
    layer = Layer("gru after", 3, 5)
    with pytest.raises(ShapeError, match=r"W: expected shape \[15, 3\], got \[15, 4\]"):
        _isa.pack_cell(layer.spec, np.zeros((15, 4), np.float32), layer.R)
    with pytest.raises(ShapeError, match=r"R: expected a C-contiguous float32 array, got float64 array"):
        _isa.pack_cell(layer.spec, layer.W, layer.R.astype(np.float64))
    with pytest.raises(ShapeError, match="P: a gru has no peephole"):
        _isa.pack_cell(layer.spec, layer.W, layer.R, P=np.zeros(15, np.float32))
    with pytest.raises(FastRNNError, match=r"'sse9': no such instruction set in this build; available: .*baseline"):
        _isa.pack_cell(layer.spec, layer.W, layer.R, isa="sse9")
