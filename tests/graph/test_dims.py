"""Dims as text: what is printed is read back as the same dim."""

import random

import pytest

from fastrnn.graph.dims import BATCH, TIME, evaluate, floordiv, parse

pytestmark = pytest.mark.any_isa


@pytest.mark.parametrize(
    ("dim", "text"),
    [
        (2 * floordiv(TIME, 4), "2*((time)//4)"),
        (TIME - floordiv(TIME, 2), "-((time)//2)+time"),
        (BATCH * floordiv(TIME, 4), "((time)//4)*batch"),
        (floordiv(TIME + 1, 2), "(time+1)//2"),
        (floordiv(TIME, 2) - 1, "(time)//2-1"),
    ],
)
def test_a_quotient_among_factors(dim, text):
    assert parse(str(dim)) == dim
    assert parse(text) == dim
    assert evaluate(parse(str(dim)), {"time": 7, "batch": 3}) == evaluate(dim, {"time": 7, "batch": 3})


def drawn(rng: random.Random, depth: int):
    if depth == 0:
        return rng.choice((TIME, BATCH, rng.randint(-3, 9)))
    a, b = drawn(rng, depth - 1), drawn(rng, depth - 1)
    return rng.choice((lambda: a + b, lambda: a - b, lambda: a * b, lambda: floordiv(a, rng.randint(1, 5))))()


@pytest.mark.parametrize("seed", range(300))
def test_any_dim(seed):
    dim = drawn(random.Random(seed), 1 + seed % 4)
    assert parse(str(dim) if not isinstance(dim, int) else dim) == dim, str(dim)
