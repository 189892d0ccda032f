"""Batcher: fair queues with bounds, timeouts, chunks, slots that are opened and closed by tasks, idle streams."""

import asyncio
import threading

import numpy as np
import pytest
from pool_models import MODELS, PACED, data, opened, same, step_of
from test_model_stream import some

import fastrnn
from fastrnn.aio import Batcher, QueueFullError

pytestmark = pytest.mark.any_isa
LSTM = MODELS["lstm"]


def run(main):
    return asyncio.run(asyncio.wait_for(main, 60))


class Held:
    """The pool is in a call of another thread, so that no tick runs."""

    def __init__(self, pool):
        self.pool, self.leave, self.entered = pool, threading.Event(), threading.Event()

    def _hold(self):
        with self.pool._alone():
            self.entered.set()
            self.leave.wait(30)

    def __enter__(self):
        self.thread = threading.Thread(target=self._hold)
        self.thread.start()
        self.entered.wait(30)
        return self

    def __exit__(self, *_):
        self.leave.set()
        self.thread.join()


class TestFairness:
    def test_a_backlog_does_not_delay_other_streams(self):
        """Between a step's call and its answer, the flooded stream gets a few ticks, not its whole backlog."""
        pool, slots = opened(LSTM, 3)

        async def main():
            async with Batcher(pool, max_delay=0.0005) as batcher:
                flood = [asyncio.ensure_future(batcher.step(slots[0], some(4))) for _ in range(5000)]
                await asyncio.sleep(0)
                passed = []
                for _ in range(20):
                    before = batcher.steps_done(slots[0])
                    await batcher.step(slots[1], some(4))
                    passed.append(batcher.steps_done(slots[0]) - before)
                assert max(passed) <= 4 * batcher.max_stream_queue
                assert not flood[-1].done()
                await asyncio.gather(*flood)
                assert batcher.steps_done(slots[0]) == 5000

        run(main())

    def test_a_tick_takes_several_steps_of_a_stream(self):
        pool, (slot,) = opened(LSTM, 1)
        x = some(1000, 4)

        async def main():
            async with Batcher(pool, max_delay=0) as batcher:
                ys = await asyncio.gather(*(batcher.step(slot, f) for f in x))
                assert batcher.ticks < 500
                assert batcher.steps == 1000
                return np.stack(ys)

        assert np.array_equal(run(main()), LSTM.stream().push(x))

    @pytest.mark.parametrize("name", ["lstm", "two sides", "words", "looks ahead"])
    def test_many_streams_with_backlogs_keep_their_bits(self, name):
        model = (MODELS | PACED)[name]
        pool, slots = opened(model, 12)
        lengths = [1, 3, 40, 7, 64, 2, 33, 5, 8, 90, 13, 21]

        async def caller(batcher, i):
            inputs = data(model, lengths[i], i)
            steps = [step_of(inputs, t) for t in range(lengths[i])]
            return await asyncio.gather(*(batcher.step(slots[i], x) for x in steps))

        async def main():
            async with Batcher(pool, max_delay=0.001, max_stream_queue=4, max_queue=20, max_rows=7) as batcher:
                return await asyncio.gather(*(caller(batcher, i) for i in range(12)))

        for i, answers in enumerate(run(main())):
            lone, inputs = model.stream(), data(model, lengths[i], i)
            assert all(same(y, lone.step(step_of(inputs, t))) for t, y in enumerate(answers))

    def test_the_queue_of_a_stream_is_bounded(self):
        pool, slots = opened(LSTM, 2)

        async def main():
            async with Batcher(pool, max_delay=0.001, max_stream_queue=3) as batcher:
                with Held(pool):
                    asked = [asyncio.ensure_future(batcher.step(slots[0], some(4))) for _ in range(40)]
                    await asyncio.sleep(0.05)  # the first tick has the first three
                    assert len(batcher) == 3
                await asyncio.gather(*asked)

        run(main())

    def test_full_queues_may_raise(self):
        pool, slots = opened(LSTM, 2)

        async def main():
            async with Batcher(pool, max_delay=0.001, max_stream_queue=3, on_full="raise") as batcher:
                with Held(pool):
                    asked = [asyncio.ensure_future(batcher.step(slots[0], some(4))) for _ in range(3)]
                    await asyncio.sleep(0.05)
                    asked += [asyncio.ensure_future(batcher.step(slots[0], some(4))) for _ in range(3)]
                    await asyncio.sleep(0)
                    with pytest.raises(QueueFullError, match=r"slot \d+ is full: at most 3 steps .* max_stream_queue"):
                        await batcher.step(slots[0], some(4))
                    asked[-1].cancel()  # its place is free again
                    await asyncio.sleep(0)
                    asked[-1] = asyncio.ensure_future(batcher.step(slots[0], some(4)))
                    asked.append(asyncio.ensure_future(batcher.step(slots[1], some(4))))
                    await asyncio.sleep(0)
                assert len(await asyncio.gather(*asked)) == 7
                assert (batcher.steps_done(slots[0]), batcher.steps_done(slots[1])) == (6, 1)
                assert issubclass(QueueFullError, fastrnn.StreamError)

        run(main())

    @pytest.mark.parametrize(
        "wrong", [{"max_stream_queue": 0}, {"on_full": "drop"}, {"idle_timeout": -1}, {"idle_timeout": "1"}]
    )
    def test_wrong_arguments(self, wrong):
        with pytest.raises(fastrnn.ShapeError, match=next(iter(wrong))):
            Batcher(LSTM.pool(capacity=1), **wrong)


class TestTimeouts:
    def test_a_step_that_is_not_taken_can_be_sent_again(self):
        pool, slots = opened(LSTM, 2)
        x = some(4)

        async def main():
            async with Batcher(pool, max_delay=0) as batcher:
                with Held(pool):
                    first = asyncio.ensure_future(batcher.step(slots[1], some(4)))
                    await asyncio.sleep(0.02)  # the worker waits for the pool with this one
                    with pytest.raises(TimeoutError, match=rf"slot {slots[0]}.*1 steps wait.*unchanged.*sent again"):
                        await batcher.step(slots[0], x, timeout=0.02)
                    assert batcher.steps_done(slots[0]) == 0
                await first
                y = await batcher.step(slots[0], x, timeout=30)
                assert batcher.steps_done(slots[0]) == 1
                assert np.array_equal(y, LSTM.stream().step(x))

        run(main())

    def test_a_step_that_was_taken_has_no_timeout(self):
        pool, slots = opened(LSTM, 1)

        async def main():
            async with Batcher(pool, max_delay=0) as batcher:
                with Held(pool):
                    task = asyncio.ensure_future(batcher.step(slots[0], some(4), timeout=0.01))
                    await asyncio.sleep(0.1)
                    assert not task.done()
                assert (await task).shape == (3,)

        run(main())

    def test_a_chunk_that_was_begun_has_no_timeout(self):
        """Between two of its parts it waits, but some of its steps were taken: sending it again would repeat them."""
        pool, slots = opened(LSTM, 2)
        x = some(64 * 40, 4)

        async def main():
            async with Batcher(pool, max_delay=0.01) as batcher:
                chunk = asyncio.ensure_future(batcher.push(slots[0], x, timeout=0.03))
                while not chunk.done():
                    await asyncio.wait([asyncio.ensure_future(batcher.step(slots[1], some(4)))])
                return await chunk

        assert np.array_equal(run(main()), LSTM.stream().push(x))

    def test_a_timeout_is_seconds(self):
        pool, slots = opened(LSTM, 1)

        async def main():
            async with Batcher(pool) as batcher:
                with pytest.raises(fastrnn.ShapeError, match="timeout must be seconds >= 0, got -1"):
                    await batcher.step(slots[0], some(4), timeout=-1)
                assert len(batcher) == 0

        run(main())


class TestChunks:
    @pytest.mark.parametrize("name", ["lstm", "two sides", "words", "looks ahead"])
    @pytest.mark.parametrize("steps", [0, 1, 64, 65, 300])
    def test_a_chunk_is_what_a_lone_stream_gives(self, name, steps):
        model = (MODELS | PACED)[name]
        pool, slots = opened(model, 3)

        async def main():
            async with Batcher(pool, max_delay=0) as batcher:
                first = await asyncio.gather(*(batcher.push(s, data(model, steps, i)) for i, s in enumerate(slots)))
                then = [batcher.step(s, step_of(data(model, 1, 9), 0)) for s in slots]
                return first, await asyncio.gather(*then), batcher.steps

        first, then, count = run(main())
        assert count == 3 * (steps + 1)
        for i in range(3):
            lone = model.stream()
            assert same(first[i], lone.push(data(model, steps, i)))
            assert same(then[i], lone.step(step_of(data(model, 1, 9), 0)))

    def test_calls_of_a_stream_keep_their_order(self):
        """A step that comes after a long chunk waits for all of it; other streams don't."""
        pool, slots = opened(LSTM, 2)
        x = some(500, 4)

        async def main():
            async with Batcher(pool, max_delay=0) as batcher:
                chunk = asyncio.ensure_future(batcher.push(slots[0], x))
                step = asyncio.ensure_future(batcher.step(slots[0], some(4)))
                await asyncio.sleep(0)
                await batcher.step(slots[1], some(4))
                assert batcher.steps_done(slots[0]) < 500
                y = await step
                return await chunk, y

        lone = LSTM.stream()
        chunk, step = run(main())
        assert np.array_equal(chunk, lone.push(x))
        assert np.array_equal(step, lone.step(some(4)))

    def test_what_is_wrong_with_a_chunk(self):
        pool, slots = opened(LSTM, 1)

        async def main():
            async with Batcher(pool, max_delay=0) as batcher:
                with pytest.raises(fastrnn.ShapeError, match="a chunk is"):
                    await batcher.push(slots[0], some(4))
                assert batcher.steps_done(slots[0]) == 0

        run(main())


class TestSlots:
    def test_opening_and_closing_don_t_hold_the_loop(self):
        pool = LSTM.pool(capacity=2)

        async def main():
            async with Batcher(pool, max_delay=0) as batcher:
                first = await batcher.open()
                with Held(pool):
                    opening = asyncio.ensure_future(batcher.open())
                    closing = asyncio.ensure_future(batcher.close_slot(first))
                    turns = 0
                    for _ in range(20):
                        await asyncio.sleep(0.001)
                        turns += 1
                    assert turns == 20
                    assert not opening.done()
                    assert not closing.done()
                second = await opening
                await closing
                assert first not in pool
                assert second in pool
                with pytest.raises(fastrnn.StateError, match="was closed"):
                    await batcher.step(first, some(4))

        run(main())

    def test_a_stream_ends_after_the_steps_that_wait(self):
        pool, (slot,) = opened(LSTM, 1)

        async def main():
            async with Batcher(pool, max_delay=5, max_queue=100) as batcher:
                asked = [asyncio.ensure_future(batcher.step(slot, some(4))) for _ in range(5)]
                await asyncio.sleep(0)
                await batcher.close_slot(slot)
                assert all(task.result().shape == (3,) for task in asked)
                assert slot not in pool
                with pytest.raises(fastrnn.StateError, match="was closed"):
                    await batcher.close_slot(slot)

        run(main())

    def test_a_cancelled_open_leaves_no_slot(self):
        pool = LSTM.pool(capacity=1)

        async def main():
            async with Batcher(pool, max_delay=0) as batcher:
                with Held(pool):
                    opening = asyncio.ensure_future(batcher.open())
                    await asyncio.sleep(0.02)
                    opening.cancel()
                    with pytest.raises(asyncio.CancelledError):
                        await opening
                assert await batcher.open() in pool  # the only slot is free again
                with pytest.raises(fastrnn.StateError, match="all 1 slots"):
                    await batcher.open()

        run(main())


class TestIdleStreams:
    def test_they_are_closed_and_their_snapshots_continue(self):
        pool = LSTM.pool(capacity=4)
        evicted = asyncio.Queue()

        async def main():
            async with Batcher(
                pool, max_delay=0, idle_timeout=0.05, on_evict=lambda *found: evicted.put(found)
            ) as batcher:
                idle, live = await batcher.open(), await batcher.open()
                y = await batcher.step(idle, some(4))
                while evicted.empty():
                    await batcher.step(live, some(4))
                    await asyncio.sleep(0.005)
                slot, snapshot = evicted.get_nowait()
                assert slot == idle
                assert idle not in pool
                assert live in pool
                with pytest.raises(fastrnn.StateError, match=r"closed after 0\.05 s without a step.*snapshot"):
                    await batcher.step(idle, some(4))
                again = pool.restore(snapshot)
                assert batcher.steps_done(again) == 1
                return y, await batcher.step(again, some(4))

        lone = LSTM.stream()
        assert [np.array_equal(y, lone.step(some(4))) for y in run(main())] == [True, True]

    def test_the_clock_does_not_run_while_a_step_waits(self):
        pool, (slot,) = opened(LSTM, 1)
        evicted = []

        async def main():
            async with Batcher(
                pool, max_delay=0, idle_timeout=0.02, on_evict=lambda *found: evicted.append(found)
            ) as batcher:
                await batcher.step(slot, some(4))
                with Held(pool):
                    waiting = asyncio.ensure_future(batcher.step(slot, some(4)))
                    await asyncio.sleep(0.2)
                    assert evicted == []
                assert (await waiting).shape == (3,)

        run(main())

    def test_a_failing_callback_is_logged(self, caplog):
        pool = LSTM.pool(capacity=1)

        def on_evict(slot, snapshot):
            raise ValueError("full disk")

        async def main():
            async with Batcher(pool, max_delay=0, idle_timeout=0.01, on_evict=on_evict) as batcher:
                slot = await batcher.open()
                while slot in pool or "full disk" not in caplog.text:
                    await asyncio.sleep(0.005)
                assert await batcher.open() in pool

        run(main())
        assert "on_evict failed for slot" in caplog.text

    def test_closing_waits_for_the_callbacks(self, caplog):
        pool, saved = LSTM.pool(capacity=3), {}

        async def on_evict(slot, snapshot):
            await asyncio.sleep(0.05)
            saved[slot] = snapshot

        async def main():
            async with Batcher(pool, max_delay=0, idle_timeout=0.01, on_evict=on_evict) as batcher:
                slots = [await batcher.open() for _ in range(3)]
                while len(pool):
                    await asyncio.sleep(0.001)
            assert sorted(saved) == sorted(slots)

        run(main())
        assert not caplog.text

    def test_a_callback_may_close_the_batcher(self):
        pool, closed = LSTM.pool(capacity=2), []

        async def on_evict(slot, snapshot):
            await batcher.close()
            closed.append(slot)

        async def main():
            nonlocal batcher
            batcher = Batcher(pool, max_delay=0, idle_timeout=1.0, on_evict=on_evict)
            slots = [await batcher.open() for _ in range(2)]
            batcher._idle._used = dict.fromkeys(slots, asyncio.get_running_loop().time())  # both end at one look
            while len(pool):
                await asyncio.sleep(0.001)
            await batcher.close()
            assert sorted(closed) == sorted(slots)

        batcher = None
        run(main())

    def test_a_close_waits_for_a_callback_that_closes_too(self):
        """Its `close` waits for all other calls of on_evict. A `close` from elsewhere waits for it as well."""
        pool, ended = LSTM.pool(capacity=1), []

        async def on_evict(slot, snapshot):
            await batcher.close()
            await asyncio.sleep(0.02)
            ended.append(slot)

        async def main():
            nonlocal batcher
            batcher = Batcher(pool, max_delay=0, idle_timeout=0.01, on_evict=on_evict)
            slot = await batcher.open()
            while not batcher._idle._stopping:
                await asyncio.sleep(0)
            await batcher.close()
            assert ended == [slot]

        batcher = None
        run(main())

    @pytest.mark.parametrize("begun", [False, True])
    def test_a_cancelled_callback_is_logged(self, begun, caplog):
        pool, started = LSTM.pool(capacity=1), []

        async def on_evict(slot, snapshot):
            started.append(slot)
            await asyncio.sleep(100)

        async def main():
            async with Batcher(pool, max_delay=0, idle_timeout=0.01, on_evict=on_evict) as batcher:
                slot = await batcher.open()
                while not (started if begun else batcher._idle._calls):
                    await asyncio.sleep(0.001 if begun else 0)
                for call in batcher._idle._calls:
                    call.cancel()
            assert f"on_evict was cancelled for slot {slot}: its snapshot is lost" in caplog.text

        run(main())
