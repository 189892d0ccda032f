"""The request that ends a sequence, sent again because its answer did not arrive."""

import asyncio

import numpy as np
import pytest

pytest.importorskip("uvicorn", reason="no uvicorn: pip install 'fastrnn[serve]'")
from store_nodes import Node
from test_sequences import Served, call, first, many

from fastrnn.serving.server import ended
from fastrnn.serving.server.faults import Fault

pytestmark = pytest.mark.any_isa


def test_it_gets_the_same_bits_and_changes_nothing(run, model, frames, alone):
    async def main():
        async with Served(model) as s:
            await s.run(call(model, 1, frames[:3], start=True, index=0))
            got = await s.run(call(model, 1, frames[3:7], end=True, index=3))
            for _ in range(2):
                again = await s.run(call(model, 1, frames[3:7], end=True, index=3))
                assert (again.first, again.done) == ((3,), (7,))
                assert np.array_equal(first(again), first(got))
                assert np.array_equal(first(again), alone[3:7])
            for x, index in ((frames[7], 7), (frames[3:6], 3), (frames[2], 2), (frames[3:7], None)):
                with pytest.raises(Fault, match="sequence 1 was ended by its client, after 7 steps"):
                    await s.run(call(model, 1, x, end=True, index=index))
            assert not s.live
            assert (s.starts, s.steps, s.ends["client"]) == (1, 7, 1)
            assert np.array_equal(first(await s.run(call(model, 1, frames[0], start=True, index=0))), alone[0])
            with pytest.raises(Fault, match="sequence 1 expects step_index 1, got 3"):
                await s.run(call(model, 1, frames[3:7], end=True, index=3))

    run(main())


def test_many_of_which_some_have_ended(run, model, frames, alone):
    async def main():
        async with Served(model) as s:
            ids = (1, 2, 3)
            await s.run(many(model, ids, frames[[0, 0, 0]], starts=(True,) * 3, indexes=(0, 0, 0)))
            for _ in range(3):
                last = many(model, ids, frames[[1, 1, 1]], ends=(True, False, True), indexes=(1, 1, 1))
                answer = await s.run(last)
                assert (answer.first, answer.done) == ((1, 1, 1), (2, 2, 2))
                (y,) = answer.outputs.values()
                assert np.array_equal(y, alone[[1, 1, 1]])
                assert await s.check(last) == 1
            assert list(s.live) == [2]
            assert np.array_equal(first(await s.run(call(model, 2, frames[2], index=2))), alone[2])
            with pytest.raises(Fault, match="sequence 1 was ended by its client"):
                await s.run(last)

    run(main())


@pytest.mark.parametrize("cancel", [False, True])
def test_it_is_sent_again_before_it_has_run(run, model, frames, alone, cancel):
    async def main():
        async with Served(model, max_delay=0.05) as s:
            await s.run(call(model, 1, frames[:3], start=True, index=0))
            last = call(model, 1, frames[3:7], end=True, index=3)
            tasks = [asyncio.ensure_future(s.run(last)) for _ in range(3)]
            await asyncio.sleep(0)
            if cancel:
                tasks.pop(0).cancel()
            for x, more in ((frames[7], {"index": 7}), (frames[7], {"end": True, "index": 7}), (frames[3], {})):
                with pytest.raises(Fault, match="gets no request after the one that ends it"):
                    await s.run(call(model, 1, x, **more))
            for answer in await asyncio.gather(*tasks):
                assert (answer.first, answer.done) == ((3,), (7,))
                assert np.array_equal(first(answer), alone[3:7])
            assert (s.steps, s.ends["client"], len(s.live)) == (7, 1, 0)

    run(main())


def test_the_oldest_answers_are_dropped(run, model, frames, monkeypatch):
    monkeypatch.setattr(ended, "MOST_BYTES", 3 * frames[0].itemsize * 8)

    async def main():
        async with Served(model) as s:
            for id in range(1, 6):
                await s.run(call(model, id, frames[0], start=True, end=True, index=0))
            assert [id for id in range(1, 6) if s.ended.sequence(id) is not None] == [3, 4, 5]
            await s.run(call(model, 4, frames[0], start=True))
            assert s.ended.sequence(4) is None
            assert s.ended._bytes == 2 * frames[0].itemsize * 8

    run(main())


def test_another_server_of_the_store_answers_it_too(run, model, frames, alone, url):
    async def main():
        async with Node(model, url) as one:
            await one.step(1, frames[0], start=True, index=0)
            await one.step(1, frames[1:4], end=True, index=1)
        async with Node(model, url) as two:
            again = await two.step(1, frames[1:4], end=True, index=1)
            assert (again.first, again.done) == ((1,), (4,))
            assert np.array_equal(first(again), alone[1:4])
            with pytest.raises(Fault, match="sequence 1 was ended by its client, after 4 steps"):
                await two.step(1, frames[4], index=4)
            assert not two.s.live

    run(main())
