"""Each text of docs/guide/equations_gallery.md is the recurrence of its paper, and streams."""

import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from gallery import STEPS

import fastrnn
from fastrnn.graph import reference

PAGE = Path(__file__).resolve().parents[3] / "docs" / "guide" / "equations_gallery.md"
TEXTS = {
    re.split(", (?:arXiv|Voelker)", name)[0]: text
    for name, text in re.findall(r"^([a-zA-Z][^\n]*):\n\n```text\n(.*?)```", PAGE.read_text(), re.S | re.M)
}
X, H, K, N = 5, 6, 4, 3
VECTORS = {"Linear attention", "RetNet", "GLA", "HGRN2", "Mamba-2", "DeltaNet", "Gated DeltaNet", "RWKV-5", "RWKV-6",
           "RWKV-7", "mLSTM", "Longhorn", "TTT-Linear", "Titans"}  # fmt: skip
SHAPES = {
    "S4D": dict.fromkeys("ABC", (X, 4)) | {"D": (X,)},
    "Mamba-1": {"Wd": (X, X), "bd": (X,), "A": (X, 4), "Wb": (4, X), "Wc": (4, X), "D": (X,)},
    "RG-LRU (Griffin)": {"L": (X,), "Wr": (X, X), "Wi": (X, X)},
    "SRU": dict.fromkeys(("W", "Wf", "Wr"), (X, X)) | dict.fromkeys(("Vf", "Vr"), (X,)),
    "QRNN": dict.fromkeys(("Vz", "Vf", "Vo"), (H, X)),
    "RWKV-4": {"M": (X,)},
    "CfC": dict.fromkeys(("Wf", "Wg", "Wh"), (H, H)),
    "LRU": dict.fromkeys(("Cr", "Ci"), (3, H)),
    "coRNN": {"V": (H, H)},
    "LMU": {"A": (4, 4), "B": (4,), "Wu": (X,), "Ru": (H,), "V": (H, 4)},
    "Mogrifier LSTM": {"Q": (X, H), "P": (H, X)},
    "LSTM with layer norms": {"W": (4 * H, X), "R": (4 * H, H), "Gx": (4 * H,), "Gh": (4 * H,), "b": (4 * H,)},
    "Mamba-2": {"Wd": (X,), "bd": (), "A": ()},
    "DeltaNet": {"Wb": (X,)},
    "Gated DeltaNet": {"Wb": (X,), "Wa": (X,)},
    "RWKV-5": {"U": (K, 1), "D": (K, 1)},
    "RWKV-6": {"U": (K, 1)},
    "mLSTM": {"Wi": (X,), "Wf": (X,)},
    "Longhorn": {"Wb": (X,)},
    "Titans": {"Wa": (X,), "Wb": (X,), "Wg": (X,)},
}


def arrays_of(name):
    """Random arrays for the names of a text: W of x, R of h; others a row of units."""
    rng = np.random.default_rng(sorted(STEPS).index(name))
    text = TEXTS[name]
    assigned = set(re.findall(r"\b(\w+) =(?!=)", text))
    words = {w for w in re.findall(r"\b([A-Z]\w*|b[a-z]?)\b(?!\()", text) if w not in assigned}
    arrays = {}
    for word in sorted(words):
        rows = (N if word == "Wv" else K) if name in VECTORS else H
        shape = {"W": (rows, X), "R": (H, H)}.get(word[0], (rows,))
        shape = SHAPES.get(name, {}).get(word, shape)
        arrays[word] = rng.normal(0, 0.6, shape).astype(np.float32)
    if name in ("S4D", "Mamba-1"):
        arrays["A"] = -np.abs(arrays["A"])
    if name.startswith("Running mean"):
        arrays["L"] = np.float32(np.log(0.9)).reshape(())
    return arrays | ({"L": rng.uniform(0.1, 0.6, H).astype(np.float32)} if name == "HGRN" else {})


class State(SimpleNamespace):
    """What the recurrence carries: zero, or nothing, until it is set."""

    def __getattr__(self, name):
        return 0.0


def by_paper(name, arrays, x):
    wide, state = SimpleNamespace(**{k: v.astype(np.float64) for k, v in arrays.items()}), State()
    return np.array([STEPS[name](wide, row, state) for row in x.astype(np.float64)])


def test_every_text_has_a_reading():
    assert set(TEXTS) == set(STEPS)
    assert len(TEXTS) >= 41


@pytest.mark.parametrize("name", STEPS)
def test_it_is_the_recurrence_of_its_paper(name):
    arrays = arrays_of(name)
    last = "y" if name.startswith("RWKV") else re.findall(r"(\w+) =(?!=)", TEXTS[name])[-1]
    model = fastrnn.from_equations(TEXTS[name], inputs={"x": X}, outputs=last, **arrays)
    x = np.random.default_rng(1).standard_normal((2, 20, X)).astype(np.float32)
    want = np.stack([by_paper(name, arrays, row) for row in x])
    (exact,) = reference.run(model.graph, {"x": x})
    np.testing.assert_allclose(exact, want, rtol=0, atol=2e-6 * max(1.0, np.abs(want).max()))  # constants are float32
    got = model(x)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * max(1.0, np.abs(want).max()))
    stream = model.stream()
    assert np.array_equal(np.stack([stream.step(row) for row in x[0, :9]]), got[0, :9])
    assert np.array_equal(stream.push(x[0, 9:]), got[0, 9:])
