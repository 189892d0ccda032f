"""scan, the ends of convolutions by Winograd, and turn, on every instruction set: values, bits, canaries."""

import numpy as np
import pytest

from fastrnn.machine import _isa
from fastrnn.machine import _kernel_calls as calls

ISAS = [isa for isa in _isa.isa_info()["available"] if _isa.kernels_of(isa) == isa]
SIZES = [1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 31, 33, 64, 65]
CANARY = np.float32(12345.0)
DECAYS = ("none", "of all", "of a row", "of an element", "of a column", "exp")


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def decay_of(kind, K, V):
    """(decay, rate, the float64 factor of each element)."""
    if kind == "none":
        return None, None, np.float64(1)
    rows, columns = {"of all": (1, 1), "of a row": (K, 1), "of a column": (1, V)}.get(kind, (K, V))
    decay = normal([K, V, 1], rows, columns)
    if kind != "exp":
        return decay, None, decay.astype(np.float64)
    rate = normal([K, V, 2], K)
    return decay, rate, np.exp(rate[:, None].astype(np.float64) * decay)


def guarded(rows, columns, gap):
    whole = np.full((rows + 1, columns + gap), CANARY, np.float32)
    return whole, whole[:rows, :columns]


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("kind", DECAYS)
@pytest.mark.parametrize("isa", ISAS)
def test_scan(isa, kind, across):
    for K in SIZES:
        for V in SIZES[1:]:
            state, u, w = normal([K, V, 3], K, V), normal([K, V, 4], K), normal([K, V, 5], V)
            q = normal([K, V, 6], V if across else K)
            decay, rate, factor = decay_of(kind, K, V)
            whole, out = guarded(K, V, 3)
            ends = np.full((K if across else V) + 2, CANARY, np.float32)
            calls.scan(state, decay, rate, [([u, u], w)], q, across, out, ends[:-2], isa=isa)
            exact = factor * state + np.outer(u.astype(np.float64) ** 2, w)
            np.testing.assert_allclose(out, exact, rtol=1e-5, atol=1e-4, err_msg=f"{K} x {V}")
            read = out.astype(np.float64) @ q if across else q @ out.astype(np.float64)
            np.testing.assert_allclose(ends[:-2], read, rtol=1e-4, atol=1e-3 * np.sqrt(K + V), err_msg=f"{K} x {V}")
            assert (ends[-2:] == CANARY).all()
            out[...] = CANARY
            assert (whole == CANARY).all()


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("isa", ISAS)
def test_a_state_in_place_and_one_that_is_only_read(isa, across):
    for K, V in ((5, 17), (16, 64), (33, 9)):
        state, w, u = normal(1, K, V), normal(2, V), normal(3, K)
        q = normal(4, V if across else K)
        out, y = calls.scan(state, None, None, [([u], w)], q, across, isa=isa)
        same, z = calls.scan(state.copy(), None, None, [([u], w)], q, across, isa=isa)
        kept = state.copy()
        calls.scan(kept, None, None, [([u], w)], q, across, kept, isa=isa)
        assert kept.tobytes() == out.tobytes() == same.tobytes()
        assert y.tobytes() == z.tobytes()
        untouched = out.copy()
        _, again = calls.scan(
            out, q=q, across=across, keep=False, isa=isa
        )  # what is read after the step is what is read alone
        assert again.tobytes() == y.tobytes()
        assert out.tobytes() == untouched.tobytes()


def terms_of(kind, K, V):
    """(terms, their sum in float64)."""
    u, u2 = normal([K, V, 7], K), normal([K, V, 8], K)
    w, whole = normal([K, V, 9], V), normal([K, V, 10], K, V)
    wide = {n: a.astype(np.float64) for n, a in {"u": u, "u2": u2, "w": w, "whole": whole}.items()}
    return {
        "nothing": ([], np.zeros((K, V))),
        "taken away": ([([u], w, -1)], -np.outer(wide["u"], w)),
        "two": ([([u, u2], w, -1), ([u2], w)], np.outer(wide["u2"] - wide["u"] * u2, w)),
        "a matrix": ([([], whole)], wide["whole"]),
        "rows of a matrix": ([([u], whole, -1)], -wide["u"][:, None] * whole),
        "a row and a matrix": ([([u], w), ([u2], whole)], np.outer(wide["u"], w) + wide["u2"][:, None] * whole),
    }[kind]


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("kind", ["nothing", "taken away", "two", "a matrix", "rows of a matrix", "a row and a matrix"])
@pytest.mark.parametrize("isa", ISAS)
def test_terms(isa, kind, across):
    """Every sum of terms with every decay; read alone, the state has the bits of the state that is kept."""
    for K, V in ((1, 2), (3, 17), (16, 16), (5, 64), (33, 70)):
        state, q = normal([K, V, 3], K, V), normal([K, V, 6], V if across else K)
        terms, added = terms_of(kind, K, V)
        for how in DECAYS[:-1]:
            decay, _, factor = decay_of(how, K, V)
            if terms:
                out, y = calls.scan(state, decay, None, terms, q, across, isa=isa)
                exact = factor * state + added
                np.testing.assert_allclose(out, exact, rtol=1e-5, atol=1e-4, err_msg=f"{how} {K} x {V}")
                kept = state.copy()
                calls.scan(kept, decay, None, terms, q, across, kept, isa=isa)
                assert kept.tobytes() == out.tobytes()
            else:
                exact = factor * state
            untouched = state.copy()
            _, alone = calls.scan(state, decay, None, terms, q, across, keep=False, isa=isa)
            assert state.tobytes() == untouched.tobytes()
            assert not terms or alone.tobytes() == y.tobytes()
            read = exact @ q if across else q @ exact
            np.testing.assert_allclose(alone, read, rtol=1e-4, atol=1e-3 * np.sqrt(K + V), err_msg=f"{how} {K} x {V}")


@pytest.mark.parametrize("isa", ISAS)
def test_columns_do_not_depend_on_their_place(isa):
    """A column has the bits that it has in a narrower state, whichever vector it falls into."""
    state, u, w, q = normal(1, 7, 70), normal(2, 7), normal(3, 70), normal(4, 7)
    out, y = calls.scan(state, normal(5, 7, 1), None, [([u], w)], q, isa=isa)
    for v in range(0, 70, 3):
        part, own = calls.scan(state[:, v:], normal(5, 7, 1), None, [([u], w[v:].copy())], q, isa=isa)
        assert part.tobytes() == out[:, v:].tobytes()
        assert own.tobytes() == y[v:].tobytes()


@pytest.mark.parametrize("isa", ISAS)
def test_a_nan_of_one_column_stays_there(isa):
    state = normal(1, 6, 21)
    state[3, 4] = np.nan
    out, y = calls.scan(state, None, None, [([normal(2, 6)], normal(3, 21))], normal(4, 6), isa=isa)
    assert np.isnan(y[4])
    assert not np.isnan(np.delete(y, 4)).any()
    assert np.isnan(out).sum() == 1
    _, y = calls.scan(state, None, None, [([normal(2, 6)], normal(3, 21))], normal(4, 21), True, isa=isa)
    assert np.isnan(y[3])
    assert not np.isnan(np.delete(y, 3)).any()


B = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], np.float64)
A = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], np.float64)


@pytest.mark.parametrize("isa", ISAS)
def test_winograd(isa):
    for C in SIZES:
        taps = normal(C, 16, C)
        whole, y = guarded(16, C, 3)
        calls.winograd_in(taps, y, isa)
        exact = np.einsum("ia,jb,abc->ijc", B, B, taps.reshape(4, 4, C)).reshape(16, C)
        np.testing.assert_allclose(y, exact, rtol=1e-5, atol=1e-5, err_msg=f"C={C}")
        y[...] = CANARY
        assert (whole == CANARY).all()
        bias = normal([C, 1], C) if C % 2 else None
        whole, y = guarded(4, C, 3)
        calls.winograd_out(taps, bias, "relu", y=y, isa=isa)
        exact = np.einsum("ia,jb,abc->ijc", A, A, taps.reshape(4, 4, C)).reshape(4, C) + (0 if bias is None else bias)
        np.testing.assert_allclose(y, np.maximum(exact, 0), rtol=1e-5, atol=1e-5, err_msg=f"C={C}")
        rest = y.copy()
        y[...] = CANARY
        calls.winograd_out(taps, bias, "relu", y=y, skip=[1, 3], isa=isa)
        assert y[::2].tobytes() == rest[::2].tobytes()
        assert (y[1::2] == CANARY).all()
        y[...] = CANARY
        assert (whole == CANARY).all()


@pytest.mark.parametrize("isa", ISAS)
def test_winograd_applies_the_activations_of_map(isa):
    products, bias = normal(1, 16, 19), normal(2, 19)
    plain = calls.winograd_out(products, bias, isa=isa)
    for name in ("relu", "tanh", "silu"):
        y = calls.winograd_out(products, bias, name, isa=isa)
        assert y.tobytes() == calls.map_function(name, plain, isa=isa).tobytes()


@pytest.mark.parametrize("isa", ISAS)
def test_turn(isa):
    for rows in SIZES:
        for columns in SIZES:
            whole, y = guarded(columns, rows, 3)
            x = normal([rows, columns], rows, columns + 2)[:, :columns]
            calls.turn(x, y, isa)
            assert np.array_equal(y, x.T), (rows, columns)
            y[...] = CANARY
            assert (whole == CANARY).all()
