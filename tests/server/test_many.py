"""Requests for many sequences, and callers that are told by a function: the short ways of admission and answer."""

import asyncio
import gc

import numpy as np
import pytest
from test_sequences import Served, call, first, many

from fastrnn.serving.server.faults import Fault
from fastrnn.serving.server.sequences import Sequences

pytestmark = pytest.mark.any_isa


@pytest.fixture
def run():
    return lambda coroutine: asyncio.run(asyncio.wait_for(coroutine, 60))


def test_many_rows_at_rest_take_the_short_way_and_others_the_long_one(run, model, frames, alone, monkeypatch):
    """Both give the same bits and indexes; a row that ends, waits, has left or runs on another version is seen."""
    short = []
    before = Sequences._begun
    monkeypatch.setattr(Sequences, "_begun", lambda self, work: short.append(len(work.rows)) or before(self, work))
    ids = list(range(1, 41))

    async def main():
        async with Served(model) as s:
            n = len(ids)
            await s.run(many(model, ids, frames[:1].repeat(n, 0), starts=(True,) * n))
            assert short == []  # rows that start have no slot yet
            for t in range(1, 6):
                answer = await s.run(many(model, ids, frames[t][None].repeat(n, 0)))
                assert np.array_equal(answer.outputs["y"], alone[t][None].repeat(n, 0))
                assert answer.first == (t,) * n
                assert answer.done == (t + 1,) * n
            assert short == [n] * 5
            # One row waits: two requests at once, of which the second takes the long way.
            first = s.run(many(model, ids, frames[6][None].repeat(n, 0)))
            second = s.run(call(model, 7, frames[7]))
            third = s.run(many(model, ids[:3], frames[7][None].repeat(3, 0), ends=(False, True, False)))
            a, b, c = await asyncio.gather(first, second, third)
            assert short == [n] * 6
            assert np.array_equal(a.outputs["y"], alone[6][None].repeat(n, 0))
            assert np.array_equal(b.outputs["y"][0], alone[7])
            assert np.array_equal(c.outputs["y"], alone[7][None].repeat(3, 0))
            assert 2 not in s.live
            with pytest.raises(Fault, match="sequence 2 was ended by its client, after 8 steps"):
                await s.run(many(model, ids[:3], frames[8][None].repeat(3, 0)))
            assert {s.live[id].steps for id in (1, 3, 7)} == {8}  # none ran
            await s.run(many(model, [1, 3], frames[8][None].repeat(2, 0), ends=(True, True)))
            assert short == [n] * 6 + [2]
            assert 1 not in s.live
            assert len(s.live) == n - 3

    run(main())


def test_a_start_of_many_is_all_or_nothing(run, model, frames, monkeypatch):
    """If one of the slots can't be opened, none stays open, and every row may start again."""

    async def main():
        async with Served(model) as s:
            lane = s.lanes[1]
            opened = lane.pool.open
            left = [3]

            def fail():
                left[0] -= 1
                if left[0] < 0:
                    raise MemoryError("no memory for a stream")
                return opened()

            monkeypatch.setattr(lane.pool, "open", fail)
            x = frames[:1].repeat(5, 0)
            with pytest.raises(Fault, match="no memory for a stream; try again") as caught:
                await s.run(many(model, [1, 2, 3, 4, 5], x, starts=(True,) * 5))
            assert caught.value.code == "UNAVAILABLE"
            assert len(lane.pool) == 0
            assert not s.live
            monkeypatch.setattr(lane.pool, "open", opened)
            await s.run(many(model, [1, 2, 3, 4, 5], x, starts=(True,) * 5))
            assert len(lane.pool) == len(s.live) == 5

    run(main())


def test_a_caller_that_is_told_by_a_function(run, model, frames, alone):
    """`post` tells once, in order; not after it was withdrawn; a function that fails harms nobody else."""

    async def main():
        async with Served(model, max_delay=0.05) as s:
            told = []
            s.post(call(model, 1, frames[0], start=True), told.append)
            s.post(call(model, 1, frames[1]), lambda answer: 1 / 0)
            gone = s.post(call(model, 1, frames[9]), told.append)
            s.post(call(model, 1, frames[2]), told.append)
            s.withdraw(gone)
            answer = await s.run(call(model, 1, frames[3]))
            assert np.array_equal(first(answer), alone[3])
            assert [a.first for a in told] == [(0,), (2,)]
            assert np.array_equal(first(told[1]), alone[2])
            with pytest.raises(Fault, match="START"):
                s.post(call(model, 2, frames[0]), told.append)
            assert len(told) == 2
            assert s.rejected == {"unknown_sequence": 1}

    run(main())


def test_a_message_that_is_not_aligned(run, model, frames, alone):
    """Tensors of a body begin at any byte; what is not an aligned float32 array of the right shape is converted."""

    async def main():
        async with Served(model) as s:
            for t in range(8):
                room = np.zeros(5 * 4 + 8, np.uint8)
                raw = room[t % 4 : t % 4 + 20]
                raw[:] = np.frombuffer(frames[t].tobytes(), np.uint8)
                x = np.frombuffer(bytes(room), np.float32, 5) if t % 4 == 0 else raw.view(np.float32)
                assert x.flags.aligned == (t % 4 == 0)
                answer = await s.run(call(model, 1, x, start=t == 0))
                room[:] = 255  # the caller goes on to use its memory
                assert np.array_equal(first(answer), alone[t])
            answer = await s.run(call(model, 1, np.array(frames[8][::-1])[::-1]))
            assert np.array_equal(first(answer), alone[8])
            with pytest.raises(Fault, match="float32"):
                await s.run(call(model, 1, frames[9].astype(np.float64)))

    run(main())


def test_requests_leave_nothing_to_the_garbage_collector(run, model, frames):
    """Cycles of thousands of requests a second would stop all steps for as long as it takes to find them."""

    async def main():
        async with Served(model) as s:
            await s.run(call(model, 1, frames[0], start=True))
            gc.collect()
            gc.disable()
            try:
                for t in range(1, 200):
                    told = asyncio.Event()
                    s.post(call(model, 1, frames[t]), lambda _, told=told: told.set())
                    await told.wait()
                del told
                assert gc.collect() < 100
            finally:
                gc.enable()

    run(main())
