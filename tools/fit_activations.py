"""Fit the polynomials of fastrnn/_kernels/body_math.h and print them as C constants.

Each is the minimax polynomial of a form that keeps the leading terms exact, found by the Remez exchange in 60-digit
arithmetic (mpmath), rounded to float32, and measured again after rounding. `error` is the largest relative error of
the whole form in units of 2^-24 (half an ULP at worst), before the rounding errors of evaluation; for the `erf_tail`
form it is absolute, in the exponent.

Run: python tools/fit_activations.py            (needs mpmath; a few seconds)
"""

from __future__ import annotations

import mpmath as mp
import numpy as np

mp.mp.dps = 60


def remez(target, weight, lo, hi, degree, rounds=12):
    """Coefficients c0..c_degree that minimise max |weight(x) * (target(x) - poly(x))| on [lo, hi].

    target, weight : callables of an mpf; weight must be positive inside the interval.
    """
    n = degree + 2
    mid, half = (mp.mpf(lo) + hi) / 2, (mp.mpf(hi) - lo) / 2
    nodes = [mid - half * mp.cos(mp.pi * (2 * i + 1) / (2 * n)) for i in range(n)]
    grid = [mid - half * mp.cos(mp.pi * i / 600) for i in range(601)]
    values = [(x, target(x), weight(x)) for x in grid]
    coefs = None
    for _ in range(rounds):
        rows = [[x**j for j in range(degree + 1)] + [(-1) ** i / weight(x)] for i, x in enumerate(nodes)]
        solution = mp.lu_solve(mp.matrix(rows), mp.matrix([target(x) for x in nodes]))
        coefs = list(solution)[:-1]
        errors = [(x, w * (f - mp.polyval(coefs[::-1], x))) for x, f, w in values]
        nodes = _extrema(errors, n, nodes)
    return coefs


def _extrema(errors, n, old):
    """The largest error of each run of equal sign; the old nodes if there are not n runs."""
    best = []
    for x, e in errors:
        if best and (best[-1][1] > 0) == (e > 0):
            if abs(e) > abs(best[-1][1]):
                best[-1] = (x, e)
        else:
            best.append((x, e))
    while len(best) > n:
        best.pop(0 if abs(best[0][1]) < abs(best[-1][1]) else -1)
    return [x for x, _ in best] if len(best) == n else old


def report(name, form, coefs, error_at, lo, hi):
    """Print float32 coefficients from the highest power down (Horner's order) and the remaining error."""
    rounded = [np.float32(float(c)) for c in coefs]
    exact = [mp.mpf(float(c)) for c in rounded]
    points = [mp.mpf(lo) + (mp.mpf(hi) - lo) * i / 2000 for i in range(2001)]
    worst = max(abs(error_at(x, mp.polyval(exact[::-1], x))) for x in points) * 2**24
    print(f"/* {name}: {form} on [{float(lo):.7g}, {float(hi):.7g}], error {float(worst):.3f} * 2^-24 */")
    print(", ".join(f"{float(c):.9g}f" for c in rounded[::-1]) + "\n")


def fit_exp():
    edge = mp.log(2) / 2 * mp.mpf("1.0005")
    coefs = remez(
        lambda r: (mp.expm1(r) - r) / r**2 if r else mp.mpf(1) / 2,
        lambda r: r**2 / mp.exp(r) + mp.mpf(10) ** -9,
        -edge,
        edge,
        4,
    )
    report("exp", "exp(r) = 1 + r + r^2 Q(r)", coefs, lambda r, q: (1 + r + r**2 * q) / mp.exp(r) - 1, -edge, edge)
    # The same form for expm1: relative to expm1 itself, which needs one more term.
    coefs = remez(
        lambda r: (mp.expm1(r) - r) / r**2 if r else mp.mpf(1) / 2, lambda r: abs(r) + mp.mpf(10) ** -9, -edge, edge, 5
    )
    report("expm1", "expm1(r) = r + r^2 Q(r)", coefs,
           lambda r, q: (r + r**2 * q) / mp.expm1(r) - 1 if r else mp.mpf(0), -edge, edge)  # fmt: skip


def fit_tanh():
    """C = r coth r, for which e^2r = (C + r) / (C - r), up to where n turns 1 (|r| is less from there on).

    A search among the float32 neighbours of the coefficients gained only 0.02 ULP, so they are simply rounded.
    """
    edge = mp.log(2) / 4 + mp.mpf("0.0778")
    coefs = remez(
        lambda s: (mp.sqrt(s) * mp.coth(mp.sqrt(s)) - 1) / s if s > mp.mpf(10) ** -20 else mp.mpf(1) / 3,
        lambda s: s + mp.mpf(10) ** -9,
        0,
        edge**2,
        1,
    )
    report("tanh", "r coth r = 1 + s P(s), s = r^2", coefs,
           lambda s, q: (1 + s * q) * mp.tanh(mp.sqrt(s)) / mp.sqrt(s) - 1 if s else mp.mpf(0), 0, edge**2)  # fmt: skip


def fit_log():
    lo, hi = mp.sqrt(mp.mpf(1) / 2) - 1, mp.sqrt(2) - 1

    def p(f):
        return (mp.log1p(f) - f + f**2 / 2) / f**3 if abs(f) > 1e-12 else mp.mpf(1) / 3

    coefs = remez(p, lambda f: f**2 + mp.mpf(10) ** -9, lo, hi, 8)
    report("log", "log(1 + f) = f - f^2/2 + f^3 P(f)", coefs,
           lambda f, q: (f - f**2 / 2 + f**3 * q) / mp.log1p(f) - 1 if f else mp.mpf(0), lo, hi)  # fmt: skip


def fit_erf():
    split = mp.mpf("0.921875")
    root = lambda s: mp.sqrt(s)  # noqa: E731
    ratio = lambda s: mp.erf(root(s)) / root(s) if s else 2 / mp.sqrt(mp.pi)  # noqa: E731
    coefs = remez(ratio, lambda s: 1 / ratio(s), 0, split**2, 6)
    report("erf_small", "erf(x) = x S(x^2)", coefs, lambda s, q: q / ratio(s) - 1, 0, split**2)
    top = mp.mpf("3.95")
    coefs = remez(lambda t: mp.log(mp.erfc(t)), lambda t: mp.erfc(t), split, top, 8)
    report("erf_tail", "erf(t) = 1 - exp(L(t))", coefs, lambda t, q: mp.erfc(t) - mp.exp(q), split, top)


def fit_sin_cos():
    edge = (mp.pi / 4 * mp.mpf("1.0005")) ** 2

    def sin_p(s):
        x = mp.sqrt(s)
        return (mp.sin(x) - x) / x**3 if s > 1e-20 else mp.mpf(-1) / 6

    def cos_p(s):
        x = mp.sqrt(s)
        return (mp.cos(x) - 1 + s / 2) / s**2 if s > 1e-10 else mp.mpf(1) / 24

    coefs = remez(sin_p, lambda s: s + mp.mpf(10) ** -9, 0, edge, 3)
    report("sin", "sin(x) = x + x s P(s), s = x^2", coefs,
           lambda s, q: (1 + s * q) / (mp.sin(mp.sqrt(s)) / mp.sqrt(s)) - 1 if s else mp.mpf(0), 0, edge)  # fmt: skip
    coefs = remez(cos_p, lambda s: s**2 + mp.mpf(10) ** -9, 0, edge, 3)
    report("cos", "cos(x) = 1 - s/2 + s^2 P(s), s = x^2", coefs,
           lambda s, q: (1 - s / 2 + s**2 * q) / mp.cos(mp.sqrt(s)) - 1, 0, edge)  # fmt: skip


def split_constants():
    """ln 2 and pi / 2 in parts with trailing zeros, so that n * part is exact for the n that occur."""
    for name, value, bits in (("ln 2", mp.log(2), (14, 24)), ("pi / 2", mp.pi / 2, (9, 9, 9, 24))):
        rest, parts = value, []
        for b in bits:
            scale = mp.mpf(2) ** (b - 1 - mp.floor(mp.log(abs(rest), 2)))
            part = mp.nint(rest * scale) / scale
            parts.append(part)
            rest -= part
        print(f"/* {name} = " + " + ".join(f"{float(np.float32(float(p))):.9g}f" for p in parts) + " */")


if __name__ == "__main__":
    fit_exp()
    fit_tanh()
    fit_log()
    fit_erf()
    fit_sin_cos()
    split_constants()
