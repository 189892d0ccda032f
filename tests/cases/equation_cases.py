"""Cells of papers as equations, with random arrays, and what a plain NumPy loop over steps makes of them (float64)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

GATES = "z = sigmoid(Wz @ x + Uz @ prev(h) + bz); r = sigmoid(Wr @ x + Ur @ prev(h) + br); "
UPDATE = "; h = (1 - z) * prev(h) + z * n"
LSTM_END = "; c = f * prev(c) + i * g; h = o * tanh(c)"


def gates(names: str, more: str = "") -> str:
    """Sigmoid gates of x and prev(h); `more` goes into each, with $ for its name."""
    return "; ".join(f"{g} = sigmoid(W{g} @ x + R{g} @ prev(h) + b{g}{more.replace('$', g)})" for g in names)


CELLS = {
    "rnn_read_out": "h = sigmoid(Whh @ prev(h) + Wxh @ x + bh); y = Why @ h + by",
    "gru_kept_part_reset": GATES + "n = tanh(Wn @ x + Un @ ((1 - r) * prev(h)) + bn)" + UPDATE,
    "gru_gated_sums": GATES + "n = tanh((Wn @ x) * r + (Un @ prev(h)) * (1 - z) + bn)" + UPDATE,
    "gru_plain_z_swapped": GATES + "n = tanh(Wn @ x + Un @ (r * prev(h)) + bn)" + UPDATE,
    "gru_reset_after": GATES + "n = tanh(Wn @ x + bn + r * (Un @ prev(h) + cn)); h = z * prev(h) + (1 - z) * n",
    "lstm": gates("ifo") + "; g = tanh(Wg @ x + Rg @ prev(h) + bg)" + LSTM_END,
    "lstm_peepholes": (
        "i = sigmoid(Wi @ x + Ri @ prev(h) + Pi * prev(c) + bi)\n"
        "f = sigmoid(Wf @ x + Rf @ prev(h) + Pf * prev(c) + bf)\n"
        "c = f * prev(c) + i * tanh(Wg @ x + Rg @ prev(h) + bg)\n"
        "o = sigmoid(Wo @ x + Ro @ prev(h) + Po * c + bo); h = o * tanh(c)"
    ),
    "lstm_full_peepholes": (
        "i = sigmoid(Wi @ x + Ri @ prev(h) + Pi @ prev(c) + bi)\n"
        "f = sigmoid(Wf @ x + Rf @ prev(h) + Pf @ prev(c) + bf)\n"
        "c = f * prev(c) + i * tanh(Wg @ x + Rg @ prev(h) + bg)\n"
        "o = sigmoid(Wo @ x + Ro @ prev(h) + Po @ c + bo); h = o * tanh(c)"
    ),
    "lstm_two_steps_back": (
        gates("ifo", " + Q$ @ prev(h, 2)") + "; g = tanh(Wg @ x + Rg @ prev(h) + Qg @ prev(h, 2) + bg)" + LSTM_END
    ),
    "forget_and_output": (
        "f = sigmoid(Rf @ prev(h) + Vf @ prev(c) + bf); c = f * prev(c) + Wc @ x + bc\n"
        "o = sigmoid(Ro @ prev(h) + Vo @ c + bo); h = o * tanh(c)"
    ),
    "convolutional": "h = sigmoid(conv1d(Khh, prev(h)) + conv1d(Kxh, x) + bh); y = conv1d(Khy, h) + by",
    "min_gru": "z = sigmoid(Wz @ x + bz); h = (1 - z) * prev(h) + z * (Wn @ x + bn)",
    "layer_norm_lstm": (
        "a = norm(Wa @ x + Ra @ prev(h), ga, ba); i = sigmoid(a[:8]); f = sigmoid(a[8:16]); o = sigmoid(a[16:24])\n"
        "c = f * prev(c) + i * tanh(a[24:]); h = o * tanh(norm(c, gc, bc))"
    ),
    "slstm": (
        "i = Wi @ x + Ri @ prev(h) + bi; f = Wf @ x + Rf @ prev(h) + bf; logf = -softplus(-f)\n"
        "m = max(logf + prev(m), i); ip = exp(i - m); fp = exp(logf + prev(m) - m)\n"
        "c = fp * prev(c) + ip * tanh(Wz @ x + Rz @ prev(h) + bz); n = fp * prev(n) + ip\n"
        "h = sigmoid(Wo @ x + Ro @ prev(h) + bo) * c / n"
    ),
}
FUSED = {"gru_plain_z_swapped": "gru", "gru_reset_after": "gru", "lstm": "lstm", "lstm_peepholes": "lstm"}
FUSED |= {"rnn_read_out": "rnn", "gru_kept_part_reset": "gru"}


@dataclass
class Case:
    """One cell: its text, arrays and options."""

    name: str
    text: str
    arrays: dict
    options: dict = field(default_factory=dict)
    H: int = 8


def make_case(name: str, I: int = 5, H: int = 8, seed: int = 0) -> Case:  # noqa: E741
    """Random arrays of the sizes that the names in the text ask for: W of x, R U V P@ of h, b g a row."""
    text, rng = CELLS[name], np.random.default_rng([seed, sorted(CELLS).index(name)])
    text = (
        text
        if name != "layer_norm_lstm"
        else text.replace("24", str(3 * H)).replace("16", str(2 * H)).replace(":8", f":{H}").replace("[8", f"[{H}")
    )
    arrays = {}
    for word in sorted(set(re.findall(r"\b[A-Za-z]\w+\b|\b[A-Z]\b", text))):
        if word in ("prev", "sigmoid", "tanh", "norm", "conv1d", "max", "exp", "softplus") or re.search(
            rf"\b{word} =", text
        ):
            continue
        rows = 4 * H if name == "layer_norm_lstm" and word in ("Wa", "Ra", "ga", "ba") else H
        if word[0] == "K":
            shape = (3,)
        elif word[0] in "bcg" or (word[0] == "P" and f"{word} *" in text):
            shape = (rows,)
        elif word == "Why":
            shape = (3, H)
        else:
            shape = (rows, I if word[0] == "W" and word != "Whh" else H)
        if word == "by" and "Why" in text:
            shape = (3,)
        scale = 0.5 if len(shape) == 1 else 1.5 / np.sqrt(shape[1])
        arrays[word] = rng.normal(0, scale, shape).astype(np.float32)
    return Case(name, text, arrays, {"inputs": {"x": H}} if name == "convolutional" else {}, H)


def conv1d(w, x):
    around = len(w) - 1
    padded = np.concatenate([np.zeros(around // 2), x, np.zeros(around - around // 2)])
    return np.array([w @ padded[k : k + len(w)] for k in range(len(x))])


def norm(x, scale=1.0, bias=0.0, epsilon=1e-5):
    return (x - x.mean()) / np.sqrt(x.var() + epsilon) * scale + bias


def loop(case: Case, x: np.ndarray, outputs: tuple, initial: dict | None = None) -> dict:
    """name -> float64 [T, ..] of each output, for one sequence x [T, I]: the text, run step by step by Python."""
    functions = {
        "sigmoid": lambda v: 1 / (1 + np.exp(-v)), "tanh": np.tanh, "exp": np.exp, "max": np.maximum,
        "softplus": lambda v: np.logaddexp(0, v), "conv1d": conv1d, "norm": norm,
        "concat": lambda *v: np.concatenate(v),
    }  # fmt: skip
    history: dict[str, list] = {}
    arrays = {k: v.astype(np.float64) for k, v in case.arrays.items()}
    code = compile(re.sub(r"prev\((\w+)", r"prev('\1'", case.text), "equations", "exec")

    def prev(name, ago=1):
        past = history.get(name, [])
        return past[-ago] if len(past) >= ago else (initial or {}).get(name, np.zeros(case.H))

    for row in x.astype(np.float64):
        scope = {**functions, **arrays, "prev": prev, "x": row}
        exec(code, scope)  # a constant of this file
        for name in re.findall(r"\b(\w+) =", case.text):
            history.setdefault(name, []).append(scope[name])
    return {name: np.array(history[name]) for name in outputs}
