"""Batcher: callers that wait at the same time share a call; what is wrong with one is that one's alone."""

import asyncio
import threading
import time

import numpy as np
import pytest
from pool_models import MODELS, PACED, data, opened, same, step_of
from test_model_stream import some

import fastrnn
from fastrnn.aio import Batcher

pytestmark = pytest.mark.any_isa


def run(main):
    return asyncio.run(asyncio.wait_for(main, 30))


class TestTicks:
    @pytest.mark.parametrize("name", ["lstm", "two sides", "words", "looks ahead", "biased"])
    def test_answers_are_those_of_lone_streams(self, name):
        model = (MODELS | PACED)[name]
        pool, slots = opened(model, 40)

        async def caller(batcher, i):
            rng, lone, inputs = np.random.default_rng(i), model.stream(), data(model, 12, i)
            for t in range(12):
                await asyncio.sleep(rng.random() * 0.003)
                x = step_of(inputs, t)
                assert same(await batcher.step(slots[i], x), lone.step(x))

        async def main():
            async with Batcher(pool, max_delay=0.001) as batcher:
                await asyncio.gather(*(caller(batcher, i) for i in range(40)))
                assert batcher.steps == 480
                assert batcher.ticks < 400
                assert "480 taken" in repr(batcher)

        run(main())

    def test_those_who_wait_share_a_tick(self):
        pool, slots = opened(MODELS["lstm"], 30)

        async def main():
            async with Batcher(pool, max_delay=5.0) as batcher:  # a full pool does not wait for more
                began = time.monotonic()
                await asyncio.gather(*(batcher.step(s, some(4)) for s in slots))
                assert time.monotonic() - began < 2
                assert batcher.ticks == 1

        run(main())

    def test_steps_of_one_stream_keep_their_order(self):
        model = MODELS["lstm"]
        pool, (slot,) = opened(model, 1)
        x = some(20, 4)

        async def main():
            async with Batcher(pool, max_delay=0) as batcher:
                ys = await asyncio.gather(*(batcher.step(slot, f) for f in x))
                assert (batcher.steps, batcher.steps_done(slot)) == (20, 20)
                return np.stack(ys)

        assert np.array_equal(run(main()), model.stream().push(x))

    def test_steps_of_one_stream_keep_their_order_where_the_queue_is_full(self):
        """One waits for room; another one comes just when there is some, and has to come after it."""
        model = MODELS["lstm"]
        pool, slots = opened(model, 2)
        x = some(3, 4)

        async def main():
            async with Batcher(pool, max_delay=0, max_queue=1) as batcher:
                go = asyncio.Event()

                async def late():
                    await go.wait()
                    return await batcher.step(slots[0], x[2])

                tick = batcher._next
                batcher._next = lambda: (go.set(), tick())[1]  # the late one is woken first when there is room
                asked = [batcher.step(slots[0], x[0]), batcher.step(slots[0], x[1]), late()]
                return np.stack(await asyncio.gather(*asked))

        assert np.array_equal(run(main()), model.stream().push(x))

    def test_max_rows(self):
        pool, slots = opened(MODELS["lstm"], 10)

        async def main():
            async with Batcher(pool, max_delay=0.01, max_rows=4) as batcher:
                await asyncio.gather(*(batcher.step(s, some(4)) for s in slots))
                assert batcher.ticks == 3

        run(main())

    def test_the_queue_is_bounded(self):
        pool, slots = opened(MODELS["lstm"], 50)

        async def main():
            async with Batcher(pool, max_delay=0.001, max_queue=5) as batcher:
                longest = 0

                async def ask(s):
                    nonlocal longest
                    task = asyncio.ensure_future(batcher.step(s, some(4)))
                    await asyncio.sleep(0)
                    longest = max(longest, len(batcher))
                    return await task

                assert len(await asyncio.gather(*map(ask, slots))) == 50
                assert longest == 5

        run(main())

    def test_the_loop_goes_on_while_a_tick_runs(self):
        model = fastrnn.Model(MODELS["lstm"].graph)
        pool, slots = opened(model, 2)
        slow, begun = pool.step, threading.Event()

        class Slow:
            def __getattr__(self, name):
                return getattr(pool, name)

            def __len__(self):
                return len(pool)

            def step(self, slots, x):
                begun.set()
                time.sleep(0.2)
                return slow(slots, x)

        async def main():
            async with Batcher(Slow(), max_delay=0) as batcher:
                task = asyncio.ensure_future(batcher.step(slots[0], some(4)))
                while not begun.is_set():
                    await asyncio.sleep(0.001)
                turns = 0
                while not task.done():
                    await asyncio.sleep(0.001)
                    turns += 1
                assert turns > 20
                task.result()

        run(main())


class TestTheEnd:
    """However it ends, nobody waits for ever."""

    def test_a_close_that_is_cancelled_goes_on(self):
        pool, slots = opened(MODELS["lstm"], 4)

        async def main():
            batcher = Batcher(pool, max_delay=0)
            pool._hold_for_fork()  # the worker waits for the pool
            asked = [asyncio.ensure_future(batcher.step(s, some(4))) for s in slots]
            try:
                await asyncio.sleep(0.02)
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(batcher.close(), 0.02)
            finally:
                pool._let_go_after_fork()
            with pytest.raises(fastrnn.StreamError, match="closed"):
                await batcher.step(slots[0], some(4))
            assert all(y.shape == (3,) for y in await asyncio.gather(*asked))
            await batcher.close()

        run(main())

    @pytest.mark.parametrize("when", ["waiting", "running"])
    def test_its_task_is_cancelled(self, when):
        """As a service does that cancels every task at its end."""
        pool, slots = opened(MODELS["lstm"], 4)

        async def main():
            batcher = Batcher(pool, *((0, 2) if when == "running" else (5, 9)))
            if when == "running":
                pool._hold_for_fork()
            asked = [asyncio.ensure_future(batcher.step(s, some(4))) for s in slots[:3]]
            try:
                await asyncio.sleep(0.02)
                for task in asyncio.all_tasks():
                    if task.get_name() == "fastrnn-batcher":
                        task.cancel()
                got = await asyncio.gather(*asked, return_exceptions=True)
            finally:
                if when == "running":
                    pool._let_go_after_fork()
            assert [type(y) for y in got] == [fastrnn.StreamError] * 3
            assert "stopped" in str(got[0])
            with pytest.raises(fastrnn.StreamError, match="closed"):
                await batcher.step(slots[3], some(4))
            await batcher.close()

        run(main())

    def test_closing_drains_those_who_wait_for_room_too(self):
        pool, slots = opened(MODELS["lstm"], 9)

        async def main():
            batcher = Batcher(pool, max_delay=5, max_queue=2)
            asked = [asyncio.ensure_future(batcher.step(s, some(4))) for s in slots]
            await asyncio.sleep(0)
            await batcher.close()
            assert all(y.shape == (3,) for y in await asyncio.gather(*asked))

        run(main())

    def test_another_loop_may_close_what_the_first_one_left(self):
        pool, slots = opened(MODELS["lstm"], 2)
        batcher = Batcher(pool)

        async def step():
            await batcher.step(slots[0], some(4))

        run(step())
        run(batcher.close())
        assert not any(t.is_alive() for t in batcher._worker._threads)

    def test_another_loop_does_not_close_it_while_the_first_one_runs(self):
        pool, slots = opened(MODELS["lstm"], 2)

        async def main():
            async with Batcher(pool) as batcher:
                await batcher.step(slots[0], some(4))
                with pytest.raises(fastrnn.StreamError, match="another event loop"):
                    await asyncio.to_thread(asyncio.run, batcher.close())

        run(main())


class TestWhatGoesWrong:
    def test_an_error_is_its_own_callers(self):
        pool, slots = opened(MODELS["words"], 20)

        async def main():
            async with Batcher(pool, max_delay=0.01) as batcher:
                words = [np.int64(99 if i in (3, 11) else 1) for i in range(20)]
                asked = [batcher.step(s, w) for s, w in zip(slots, words, strict=True)]
                got = await asyncio.gather(*asked, return_exceptions=True)
                assert [i for i, y in enumerate(got) if isinstance(y, fastrnn.ShapeError)] == [3, 11]
                assert [pool.steps_done(s) for s in slots] == [0 if i in (3, 11) else 1 for i in range(20)]
                await batcher.step(slots[3], np.int64(1))  # the loop goes on

        run(main())

    def test_at_once_where_it_can_be_seen(self):
        pool, slots = opened(MODELS["lstm"], 3)
        pool.close(slots[2])

        async def main():
            async with Batcher(pool, max_delay=0.01) as batcher:
                for slot, x, error in (
                    (slots[2], some(4), fastrnn.StateError),
                    (-1, some(4), fastrnn.StateError),
                    (None, some(4), fastrnn.StateError),
                    (slots[0], some(5), fastrnn.ShapeError),
                    (slots[0], np.zeros(4), fastrnn.ShapeError),
                ):
                    with pytest.raises(error):
                        await batcher.step(slot, x)
                    assert len(batcher) == 0
                good, bad = (asyncio.ensure_future(batcher.step(s, some(4))) for s in slots[:2])
                await asyncio.sleep(0)
                pool.close(slots[1])  # after it asked, before the tick
                assert (await good).shape == (3,)
                with pytest.raises(fastrnn.StateError, match="was closed"):
                    await bad

        run(main())

    def test_a_cancelled_caller_leaves_its_state_as_it_was(self):
        pool, slots = opened(MODELS["lstm"], 3)

        async def main():
            async with Batcher(pool, max_delay=0.05) as batcher:
                first, second = (asyncio.ensure_future(batcher.step(s, some(4))) for s in slots[:2])
                await asyncio.sleep(0.005)
                first.cancel()
                await second
                with pytest.raises(asyncio.CancelledError):
                    await first
                assert [pool.steps_done(s) for s in slots[:2]] == [0, 1]
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(batcher.step(slots[2], some(4)), 0.01)
                await batcher.step(slots[0], some(4))
                assert [pool.steps_done(s) for s in slots] == [1, 1, 0]

        run(main())

    def test_closing_drains_and_then_refuses(self):
        pool, slots = opened(MODELS["lstm"], 8)

        async def main():
            batcher = Batcher(pool, max_delay=5)
            asked = [asyncio.ensure_future(batcher.step(s, some(4))) for s in slots[:5]]
            await asyncio.sleep(0)
            await batcher.close()
            assert all(t.done() and t.result().shape == (3,) for t in asked)
            await batcher.close()
            with pytest.raises(fastrnn.StreamError, match="closed"):
                await batcher.step(slots[0], some(4))
            idle = Batcher(pool)
            await idle.close()

        run(main())

    def test_one_event_loop(self):
        pool, slots = opened(MODELS["lstm"], 2)
        batcher = Batcher(pool, max_delay=0)

        async def first():
            await batcher.step(slots[0], some(4))

        async def second():
            with pytest.raises(fastrnn.StreamError, match="another event loop"):
                await batcher.step(slots[0], some(4))

        run(first())
        run(second())

    @pytest.mark.parametrize(
        "wrong",
        [{"max_delay": -1}, {"max_delay": "1"}, {"max_delay": float("nan")}, {"max_queue": 0}, {"max_rows": 1.5}],
    )
    def test_wrong_arguments(self, wrong):
        with pytest.raises(fastrnn.ShapeError, match=next(iter(wrong))):
            Batcher(MODELS["lstm"].pool(capacity=1), **wrong)

    def test_numbers_of_numpy(self):
        batcher = Batcher(MODELS["lstm"].pool(1), np.float32(0.5), np.int32(7), np.uint8(3))
        assert (batcher.max_delay, batcher.max_queue, batcher.max_rows) == (0.5, 7, 3)
