"""Calls and answers as values of Ray: what is cut is joined again, and no value is above Ray's limit."""

import asyncio

import numpy as np
import pytest

import fastrnn
from fastrnn.ray import messages
from fastrnn.ray.messages import PIECE, answer, answered, counts_of, packed, unpacked

pytestmark = pytest.mark.any_isa


def arrays(n):
    rng = np.random.default_rng(n)
    return [np.arange(5 * n).reshape(5, n), rng.normal(size=(n, 3, 7)).astype(np.float32), np.ones((n, 1), np.int8)]


@pytest.mark.parametrize("n", [0, 1, 100, 1000, 4000])
def test_calls(n):
    given = arrays(n)
    head, *pieces = packed(("about", 1), given)
    assert all(len(p) <= PIECE for p in pieces)
    assert sum(a.nbytes for a in head[2]) <= PIECE
    about, found = unpacked(head, tuple(pieces))
    assert about == ("about", 1)
    for a, b in zip(given, found, strict=True):
        assert np.array_equal(a, b)
        assert a.dtype == b.dtype
    if n == 100:
        assert len(pieces) == 0
    if n == 4000:
        assert len(pieces) == 2 + 4 + 1


@pytest.mark.parametrize("n", [0, 1, 100, 1000, 4000])
def test_answers(n):
    given, marks = arrays(n)[1:], np.arange(6).reshape(2, 3)
    for a in given:
        a.flags.writeable = False  # as in a message
    counts = counts_of([a.nbytes for a in given])
    reply = answer(("done", given, marks), counts)
    values = list(reply) if counts else [reply]
    assert len(values) == messages.values_of(counts)
    assert all(len(p) <= PIECE for p in values[1:])
    word, found, told = answered(values)
    assert word == "done"
    assert np.array_equal(told, marks)
    assert not np.shares_memory(told, marks)
    for a, b in zip(given, found, strict=True):
        assert np.array_equal(a, b)
        assert a.dtype == b.dtype
        assert b.flags.writeable  # nobody else has it
        assert not np.shares_memory(a, b)


def test_refusals_have_as_many_values_as_were_asked_for():
    counts = counts_of([5 * PIECE, 8])
    assert counts == [5, 1]
    reply = answer(("refused", {3: "moved"}), counts)
    assert len(reply) == 7
    assert answered(list(reply)) == ("refused", {3: "moved"})
    assert answered([answer(("failed", "why"), [])]) == ("failed", "why")


def test_what_is_above_rays_bound_of_a_message_is_not_cut():
    large = np.zeros(messages.MOST + 1, np.uint8)
    assert counts_of([large.nbytes, 8]) == [0, 0]
    head, *pieces = packed((), [large, large[:8]])
    assert pieces[0] is large
    assert [len(a) for a in unpacked(head, pieces)[1]] == [len(large), 8]
    assert answered(list(answer(("done", [large], np.zeros(2)), [0])))[1][0] is large


@pytest.mark.ray
@pytest.mark.filterwarnings("default")
def test_large_steps_through_ray(nodes, tmp_path):
    """600 streams of 100 outputs, so inputs and outputs are cut: steps, a repeated one and chunks, on two actors."""
    rng = np.random.default_rng(3)
    W, R = (rng.normal(size=(300, k)).astype(np.float32) * 0.1 for k in (80, 100))
    model = fastrnn.from_arrays("gru", W=W, R=R, order="zrh", threads=1)
    x = rng.normal(size=(4, 600, 80)).astype(np.float32)
    pool = model.pool(600)
    slots = np.array([pool.open() for _ in range(600)])
    alone = [pool.step(slots, x[k]) for k in range(4)]

    async def main():
        cluster = fastrnn.ray.StreamCluster(model, 12, tmp_path, name="large", actors=2)
        ids = np.arange(600)
        await cluster.open(ids)
        assert np.array_equal(await cluster.step(ids, x[0]), alone[0])
        y = await cluster.step(ids, x[1])
        assert np.array_equal(y, alone[1])
        y[:] = 0  # the caller's own
        again = await cluster.step(ids, x[1], step_index=np.ones(600, np.int64))
        assert np.array_equal(again, alone[1])
        chunks = await cluster.push(ids, [x[2 : 3 + i % 2, i] for i in range(600)])
        for i, chunk in enumerate(chunks):
            assert np.array_equal(chunk, np.stack([alone[k][i] for k in range(2, 3 + i % 2)]))
        await cluster.shutdown()

    asyncio.run(main())
