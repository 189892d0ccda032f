"""Ops on single elements at sizes of more than one run or block: integers, and copies between orders of axes."""

import itertools

import numpy as np
import pytest
from onnx_text import model

import fastrnn


def answer(made, *inputs):
    return fastrnn.from_onnx(made)(*inputs)


@pytest.mark.parametrize("perm", list(itertools.permutations(range(4))))
def test_transposes_are_exact(perm):
    text = ",".join(map(str, perm))
    made = model(
        "(float[2,17,9,33] x) => (float[A,B,C,D] y)", f"z = Neg(x) t = Transpose <perm=[{text}]> (z) y = Neg(t)"
    )
    x = np.arange(2 * 17 * 9 * 33, dtype=np.float32).reshape(2, 17, 9, 33)
    assert np.array_equal(answer(made, x), x.transpose(perm))


@pytest.mark.parametrize("type", ["int64", "int32", "uint8", "uint64"])
@pytest.mark.parametrize(
    ("op", "meaning"),
    [
        ("Add", np.add),
        ("Sub", np.subtract),
        ("Greater", np.greater),
        ("LessOrEqual", np.less_equal),
        ("Equal", np.equal),
    ],
)
def test_integers_of_several_runs(op, meaning, type):
    out = "bool" if op in ("Greater", "LessOrEqual", "Equal") else type
    made = model(f"({type}[3,1,300] a, {type}[3,40,1] b) => ({out}[3,40,300] y)", f"y = {op}(a, b)")
    rng = np.random.default_rng(5)
    ends = np.iinfo(type)
    a, b = (rng.integers(ends.min, ends.max, size=n, dtype=type, endpoint=True) for n in ((3, 1, 300), (3, 40, 1)))
    a[0, 0, ::7] = b[0, 3, 0]
    assert np.array_equal(answer(made, a, b), meaning(a, b))


def test_a_mask_of_several_runs():
    made = model(
        "(int64[1,300] a, int64[200,1] b, int64[200,300] c) => (int64[200,300] y)",
        "p = Greater(a, b) q = Less(c, b) r = And(p, q) s = Or(p, q) z = Where(r, a, c) y = Where(s, z, b)",
    )
    rng = np.random.default_rng(6)
    a, b, c = (rng.integers(-9, 9, size=n) for n in ((1, 300), (200, 1), (200, 300)))
    p, q = a > b, c < b
    assert np.array_equal(answer(made, a, b, c), np.where(p | q, np.where(p & q, a, c), b))
