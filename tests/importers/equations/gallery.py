"""The recurrences of papers in NumPy, float64: name -> step(arrays, x, state) -> (y, state). See test_gallery.py.

A state is a dict that is filled as steps go; what it lacks is zero. x [5]; vectors of 6 units; matrices [4, 3].
"""

from __future__ import annotations

import numpy as np
from numpy import exp, tanh

STEPS = {}


def step(name: str):
    def add(function):
        STEPS[name] = function
        return function

    return add


def sig(v):
    return 1 / (1 + exp(-v))


def plus(v):
    return np.logaddexp(0, v)


@step("minGRU")
def _(a, x, s):
    gate = sig(a.Wz @ x + a.bz)
    s.h = s.h + gate * (a.Wh @ x + a.bh - s.h)
    return s.h


@step("minLSTM")
def _(a, x, s):
    f, i = sig(a.Wf @ x), sig(a.Wi @ x)
    s.h = f / (f + i) * s.h + i / (f + i) * (a.Wh @ x)
    return s.h


@step("HGRN")
def _(a, x, s):
    keep, u = a.L + (1 - a.L) * sig(a.Wf @ x), a.Wi @ x
    s.h = keep * s.h + (1 - keep) * u * sig(u)
    return sig(a.Wg @ x) * s.h


@step("GateLoop")
def _(a, x, s):
    s.h = sig(a.Wa @ x) * s.h + (a.Wk @ x) * (a.Wv @ x)
    return s.h * (a.Wq @ x)


@step("LRU")
def _(a, x, s):
    """In complex numbers."""
    s.h = (a.A + 1j * a.B) * s.h + a.Wr @ x + 1j * (a.Wi @ x)
    return ((a.Cr + 1j * a.Ci) @ s.h).real


@step("S4D")
def _(a, x, s):
    s.h = np.array([exp(a.A[d]) * (s.h[d] if np.ndim(s.h) else 0) + a.B[d] * x[d] for d in range(5)])
    return np.einsum("dn,dn->d", a.C, s.h) + a.D * x


@step("Mamba-1")
def _(a, x, s):
    dt, b, c = plus(a.Wd @ x + a.bd), a.Wb @ x, a.Wc @ x
    s.h = exp(np.einsum("d,dn->dn", dt, a.A)) * s.h + np.einsum("d,d,n->dn", dt, x, b)
    return np.einsum("dn,n->d", s.h, c) + a.D * x


@step("RG-LRU (Griffin)")
def _(a, x, s):
    decay = sig(-a.L) ** (8 * sig(a.Wr @ x))  # sigmoid(-L) = exp(-softplus(L))
    s.h = decay * s.h + np.sqrt(1 - decay**2) * sig(a.Wi @ x) * x
    return s.h


@step("QRNN")
def _(a, x, s):
    z, f, o = (v @ (s.x * np.ones(5)) + w @ x for v, w in ((a.Vz, a.Wz), (a.Vf, a.Wf), (a.Vo, a.Wo)))
    s.x, s.c = x, sig(f) * s.c + sig(-f) * tanh(z)
    return sig(o) * s.c


@step("RWKV-4")
def _(a, x, s):
    """Without the running maximum, which only keeps exponentials small."""
    mixed = a.M * x + (1 - a.M) * s.x
    k, v, r = a.Wk @ mixed, a.Wv @ mixed, a.Wr @ mixed
    y = sig(r) * (s.top + exp(a.U + k) * v) / (s.bottom + exp(a.U + k))
    s.x, s.top, s.bottom = x, exp(-a.D) * s.top + exp(k) * v, exp(-a.D) * s.bottom + exp(k)
    return y


@step("SRU")
def _(a, x, s):
    f, r = sig(a.Wf @ x + a.Vf * s.c), sig(a.Wr @ x + a.Vr * s.c)
    s.c = f * s.c + (1 - f) * (a.W @ x)
    return r * s.c + (1 - r) * x


@step("IndRNN")
def _(a, x, s):
    s.h = np.maximum(0, a.W @ x + a.U * s.h + a.b)
    return s.h


@step("CfC")
def _(a, x, s):
    backbone = 1.7159 * tanh(0.666 * (a.W @ x + a.R @ (s.h * np.ones(6))))
    t = sig(a.Wf @ backbone)
    s.h = (1 - t) * tanh(a.Wg @ backbone) + t * tanh(a.Wh @ backbone)
    return s.h


@step("LTC")
def _(a, x, s):
    f = sig(a.W @ x + a.R @ (s.h * np.ones(6)))
    s.h = (s.h + 0.3 * f * a.A) / (1 + 0.3 * (a.T + f))
    return s.h


@step("MGU")
def _(a, x, s):
    h = s.h * np.ones(6)
    f = sig(a.Wf @ x + a.Rf @ h)
    s.h = h + f * (tanh(a.Wh @ x + a.Rh @ (f * h)) - h)
    return s.h


@step("UGRNN")
def _(a, x, s):
    h = s.h * np.ones(6)
    g = sig(a.Wg @ x + a.Rg @ h + 1)
    s.h = g * h + (1 - g) * tanh(a.Wc @ x + a.Rc @ h)
    return s.h


@step("FastGRNN")
def _(a, x, s):
    pre = a.W @ x + a.R @ (s.h * np.ones(6))
    z = sig(pre + a.bz)
    s.h = z * s.h + (0.9 * (1 - z) + 0.05) * tanh(pre + a.bh)
    return s.h


@step("Li-GRU")
def _(a, x, s):
    h = s.h * np.ones(6)
    z = sig(a.Wz @ x + a.Rz @ h)
    s.h = z * h + (1 - z) * np.maximum(0, a.Wh @ x + a.Rh @ h)
    return s.h


@step("JANET")
def _(a, x, s):
    c = s.c * np.ones(6)
    pre = a.Wf @ x + a.Rf @ c
    s.c = sig(pre) * c + sig(1 - pre) * tanh(a.Wc @ x + a.Rc @ c)
    return s.c


@step("coRNN")
def _(a, x, s):
    y, z = s.y * np.ones(6), s.z * np.ones(6)
    s.z = z + 0.1 * (tanh(a.W @ x + a.R @ y + a.V @ z) - y - 0.8 * z)
    s.y = y + 0.1 * s.z
    return s.y


@step("LMU")
def _(a, x, s):
    h, m = s.h * np.ones(6), s.m * np.ones(4)
    s.m = a.A @ m + a.B * (a.Wu @ x + a.Ru @ h)
    s.h = tanh(a.W @ x + a.R @ h + a.V @ s.m)
    return s.h


@step("Phased LSTM")
def _(a, x, s):
    h, c = s.h * np.ones(6), s.c * np.ones(6)
    s.t = s.t + 1
    phase, r = (s.t % 8) / 8, 0.25
    k = 2 * phase / r if phase < r / 2 else 2 - 2 * phase / r if phase < r else 0.001 * phase
    i, f, o, g = (w @ x + u @ h for w, u in ((a.Wi, a.Ri), (a.Wf, a.Rf), (a.Wo, a.Ro), (a.Wc, a.Rc)))
    new = np.clip(sig(f) * c + sig(i) * tanh(g), -3, 3)
    s.c, s.h = k * new + (1 - k) * c, k * sig(o) * tanh(new) + (1 - k) * h
    return s.h


@step("AntisymmetricRNN")
def _(a, x, s):
    h = s.h * np.ones(6)
    inside = (a.R - a.R.T - 0.1 * np.eye(6)) @ h
    s.h = h + 0.2 * sig(inside + a.Wz @ x) * tanh(inside + a.Wh @ x)
    return s.h


@step("Mogrifier LSTM")
def _(a, x, s):
    h = s.h * np.ones(6)
    x = 2 * sig(a.Q @ h) * x
    h = 2 * sig(a.P @ x) * h
    i, f, o, g = (w @ x + u @ h for w, u in ((a.Wi, a.Ri), (a.Wf, a.Rf), (a.Wo, a.Ro), (a.Wc, a.Rc)))
    s.c = sig(f) * s.c + sig(i) * tanh(g)
    s.h = sig(o) * tanh(s.c)
    return s.h


@step("LSTM with layer norms")
def _(a, x, s):
    def norm(v, scale):
        return (v - v.mean()) / np.sqrt(v.var() + 1e-5) * scale

    i, f, o, g = (norm(a.W @ x, a.Gx) + norm(a.R @ (s.h * np.ones(6)), a.Gh) + a.b).reshape(4, 6)
    s.c = sig(f + 1) * s.c + sig(i) * tanh(g)
    s.h = sig(o) * tanh(norm(s.c, a.Gc))
    return s.h


@step("Running mean with the bias correction of Adam")
def _(a, x, s):
    s.t, s.m = s.t + 1, 0.9 * s.m + 0.1 * (a.W @ x)
    return s.m / (1 - np.exp(a.L) ** s.t)


@step("sLSTM")
def _(a, x, s):
    """Without the stabiliser, which cancels."""
    h = s.h * np.ones(6)
    i, f, z, o = (w @ x + r @ h for w, r in ((a.Wi, a.Ri), (a.Wf, a.Rf), (a.Wz, a.Rz), (a.Wo, a.Ro)))
    s.c, s.n = sig(f) * s.c + exp(i) * tanh(z), sig(f) * s.n + exp(i)
    s.h = sig(o) * s.c / s.n
    return s.h


@step("Linear attention")
def _(a, x, s):
    """All keys and values so far, as the paper's sum."""
    q, k = (np.where(v > 0, v + 1, exp(v)) for v in (a.Wq @ x, a.Wk @ x))
    s.past = [*(s.past or []), (k, a.Wv @ x)]
    weights = [q @ key for key, _ in s.past]
    return sum(w * v for w, (_, v) in zip(weights, s.past, strict=True)) / sum(weights)


def attended(q, past):
    """sum over j of (q . decay of j) k_j v_j'."""
    return sum((q * decay) @ k * v for decay, k, v in past)


def decayed(s, decay, k, v):
    s.past = [*((d * decay, key, value) for d, key, value in s.past or []), (np.ones(4), k, v)]
    return s.past


@step("RetNet")
def _(a, x, s):
    return attended(a.Wq @ x, decayed(s, 0.95, a.Wk @ x, a.Wv @ x))


@step("GLA")
def _(a, x, s):
    return attended(a.Wq @ x, decayed(s, sig(a.Wa @ x), a.Wk @ x, a.Wv @ x))


@step("HGRN2")
def _(a, x, s):
    f = sig(a.Wf @ x)
    return attended(a.Wq @ x, decayed(s, f, 1 - f, a.Wv @ x))


@step("Mamba-2")
def _(a, x, s):
    dt = plus(a.Wd @ x + a.bd)
    return attended(a.Wc @ x, decayed(s, exp(-dt * exp(a.A)), a.Wb @ x, dt * (a.Wv @ x)))


def unit(v):
    return v / np.linalg.norm(v)


@step("DeltaNet")
def _(a, x, s):
    k, b = unit(a.Wk @ x), sig(a.Wb @ x)
    s.S = (np.eye(4) - b * np.outer(k, k)) @ (s.S * np.ones((4, 3))) + b * np.outer(k, a.Wv @ x)
    return s.S.T @ (a.Wq @ x)


@step("Gated DeltaNet")
def _(a, x, s):
    k, b, g = unit(a.Wk @ x), sig(a.Wb @ x), sig(a.Wa @ x)
    s.S = g * (np.eye(4) - b * np.outer(k, k)) @ (s.S * np.ones((4, 3))) + b * np.outer(k, a.Wv @ x)
    return s.S.T @ (a.Wq @ x)


@step("RWKV-5")
def _(a, x, s):
    r, k, v = a.Wr @ x, a.Wk @ x, a.Wv @ x
    y = attended(r, s.past or []) + (r * a.U[:, 0]) @ k * v
    s.past = [*((d * exp(-exp(a.D[:, 0])), key, value) for d, key, value in s.past or []), (np.ones(4), k, v)]
    return y


@step("RWKV-6")
def _(a, x, s):
    r, k, v = a.Wr @ x, a.Wk @ x, a.Wv @ x
    y = attended(r, s.past or []) + (r * a.U[:, 0]) @ k * v
    decayed(s, exp(-exp(a.Wd @ x)), k, v)
    return y


@step("RWKV-7")
def _(a, x, s):
    k, w = a.Wk @ x, exp(-0.606531 * sig(a.Wd @ x))
    u = unit(k)
    s.S = (np.diag(w) - np.outer(u * sig(a.Wa @ x), u)) @ (s.S * np.ones((4, 3))) + np.outer(k, a.Wv @ x)
    return (a.Wr @ x) @ s.S


@step("mLSTM")
def _(a, x, s):
    """Without the stabiliser: the divisor is at least 1."""
    q, k, i, f = a.Wq @ x, a.Wk @ x, exp(a.Wi @ x), sig(a.Wf @ x)
    s.S, s.n = f * s.S + i * np.outer(k, a.Wv @ x), f * s.n + i * k
    return q @ s.S / np.maximum(abs(q @ s.n), 1)


@step("Longhorn")
def _(a, x, s):
    k, b = a.Wk @ x, sig(a.Wb @ x)
    rate = b / (1 + b * (k @ k))
    s.S = (1 - rate * k**2)[:, None] * s.S + rate * np.outer(k, a.Wv @ x)
    return (a.Wq @ x) @ s.S


@step("TTT-Linear")
def _(a, x, s):
    k, S = a.Wk @ x, s.S * np.ones((4, 3))
    s.S = S - 0.1 * np.outer(k, k @ S - a.Wv @ x)  # the gradient of |k S - v|^2 / 2
    return (a.Wq @ x) @ s.S


@step("Titans")
def _(a, x, s):
    k, S = a.Wk @ x, s.S * np.ones((4, 3))
    s.P = sig(a.Wa @ x) * s.P - sig(a.Wb @ x) * np.outer(k, k @ S - a.Wv @ x)
    s.S = (1 - sig(a.Wg @ x)) * S + s.P
    return (a.Wq @ x) @ s.S
