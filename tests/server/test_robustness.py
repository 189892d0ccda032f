"""The batch loop under faults: errors in the engine, callers that cancel, ids that begin again, memory that is short.
No caller waits for ever, no slot is left, and every other sequence keeps the bits of a lone stream."""

import asyncio
import gc
import threading

import numpy as np
import pytest
from test_sequences import Served, call, first, many

from fastrnn.errors import StateError
from fastrnn.serving.server.faults import Fault
from fastrnn.serving.server.whole import WholeRuns

pytestmark = pytest.mark.any_isa


@pytest.fixture
def run():
    return lambda coroutine: asyncio.run(asyncio.wait_for(coroutine, 60))


def pool_of(sequences):
    return sequences.lanes[1].pool


def test_an_id_that_is_used_again_before_its_end_has_run(run, model, frames, alone):
    """START and END in one request, sent again and again at once: the end of one is not that of the next."""

    async def main():
        async with Served(model) as s:
            for rounds in range(20):
                once = [call(model, 7, frames[:3], start=True, end=True) for _ in range(4)]
                last = call(model, 7, frames[:2], start=True)
                answers = await asyncio.gather(*map(s.run, [*once, last]))
                assert all(np.array_equal(first(a), alone[:3]) for a in answers[:4])
                assert list(s.live) == [7], rounds
                assert np.array_equal(first(await s.run(call(model, 7, frames[2]))), alone[2])
            assert s.starts == 100

    run(main())


def test_a_start_with_another_step_index_changes_nothing(run, model, frames, alone):
    async def main():
        async with Served(model) as s:
            await s.run(call(model, 1, frames[0], start=True))
            for id in (1, 2):
                with pytest.raises(Fault, match=f"sequence {id} expects step_index 0, got 3") as caught:
                    await s.run(call(model, id, frames[0], start=True, index=3))
                assert (caught.value.code, caught.value.status) == ("FAILED_PRECONDITION", 409)
            assert list(s.live) == [1]
            assert np.array_equal(first(await s.run(call(model, 1, frames[1]))), alone[1])

    run(main())


def test_a_chunk_without_a_step_changes_nothing(run, model, frames):
    async def main():
        async with Served(model) as s:
            with pytest.raises(Fault, match="the chunk has no step") as caught:
                await s.run(call(model, 1, frames[:0], start=True))
            assert caught.value.status == 400
            assert not s.live

    run(main())


@pytest.mark.parametrize("error", [MemoryError("no memory"), RuntimeError("broken"), StateError("all are open")])
def test_no_slot_can_be_opened(run, model, frames, alone, monkeypatch, error):
    """Callers are told, nothing is left, and the next START works."""

    async def main():
        async with Served(model) as s:
            await s.run(call(model, 1, frames[0], start=True))

            def refuse():
                raise type(error)(*error.args)  # a new one each time: its traceback keeps what is in this loop

            monkeypatch.setattr(pool_of(s), "open", refuse)
            requests = [call(model, 2, frames[t], start=t == 0) for t in range(3)]
            results = await asyncio.gather(*map(s.run, requests), return_exceptions=True)
            assert {type(r) for r in results} == {Fault}
            assert "sequence 2 can't start" in str(results[0])
            assert results[0].code == ("INTERNAL" if type(error) is RuntimeError else "UNAVAILABLE")
            assert ("try again after 1 s" in str(results[0])) == (results[0].retry_after is not None)
            with pytest.raises(Fault, match="can't start"):
                await s.run(many(model, [3, 4], frames[:2], starts=(True, True)))
            assert list(s.live) == [1]
            monkeypatch.undo()
            for t in range(3):
                assert np.array_equal(first(await s.run(call(model, 2, frames[t], start=t == 0))), alone[t])
            assert np.array_equal(first(await s.run(call(model, 1, frames[1]))), alone[1])
            assert s.starts == 2

    run(main())


@pytest.mark.parametrize("error", [RuntimeError("broken"), MemoryError(), KeyError("x")])
def test_the_engine_fails(run, model, frames, alone, monkeypatch, error):
    """Every caller of the tick is told, no state has changed, and the loop goes on."""

    async def main():
        async with Served(model, max_delay=0.01) as s:
            await asyncio.gather(*(s.run(call(model, id, frames[0], start=True)) for id in range(1, 9)))
            pool, step = pool_of(s), pool_of(s).step
            fails = [error, error]

            def failing(*args):
                if fails:
                    raise fails.pop()
                return step(*args)

            monkeypatch.setattr(pool, "step", failing)
            both = [call(model, id, frames[1], index=1) for id in range(1, 8)]
            results = await asyncio.gather(*map(s.run, both), return_exceptions=True)
            assert {type(r) for r in results} == {Fault}
            memory = isinstance(error, MemoryError)
            assert {r.code for r in results} == {"UNAVAILABLE" if memory else "INTERNAL"}
            assert {bool(r.retry_after) for r in results} == {memory}
            assert not s.lanes[1].batcher._ticker.done()
            for id in range(1, 8):
                while True:
                    try:
                        answer = await s.run(call(model, id, frames[1], index=1))
                        break
                    except Fault:
                        assert len(fails) < 2, "a state was left that the client can't know"
                assert np.array_equal(first(answer), alone[1])
                assert answer.first == (1,)
            answer = await s.run(many(model, range(1, 8), np.repeat(frames[2][None], 7, axis=0), indexes=(2,) * 7))
            assert all(np.array_equal(row, alone[2]) for row in next(iter(answer.outputs.values())))

    run(main())


def test_callers_that_cancel_while_their_tick_runs(run, model, frames, alone, monkeypatch):
    """A result for a future that is done must not end the loop, and the others of the tick get theirs."""

    async def main():
        async with Served(model, max_delay=0.005) as s:
            ids = range(1, 41)
            await asyncio.gather(*(s.run(call(model, id, frames[0], start=True)) for id in ids))
            loop, pool, step = asyncio.get_running_loop(), pool_of(s), pool_of(s).step
            tasks = {}

            def stepping(*args):
                for id in (3, 17, 40):
                    asyncio.run_coroutine_threadsafe(cancel(id), loop).result(10)
                return step(*args)

            async def cancel(id):
                tasks[id].cancel()

            monkeypatch.setattr(pool, "step", stepping)
            tasks.update({id: asyncio.ensure_future(s.run(call(model, id, frames[1], index=1))) for id in ids})
            await asyncio.wait(tasks.values())
            monkeypatch.undo()
            for id, task in tasks.items():
                assert task.cancelled() == (id in (3, 17, 40))
                answer = await (s.run(call(model, id, frames[1], index=1)) if task.cancelled() else task)
                assert np.array_equal(first(answer), alone[1]), id
            answers = await asyncio.gather(*(s.run(call(model, id, frames[2], index=2)) for id in ids))
            assert all(np.array_equal(first(a), alone[2]) for a in answers)

    run(main())


def test_the_idle_clock_stands_while_a_request_waits(run, model, frames, alone, monkeypatch):
    """A limit far shorter than the time of a tick ends no sequence that has something to do."""

    async def main():
        async with Served(model, idle_timeout=0.2) as s:
            await s.run(call(model, 1, frames[0], start=True))
            loop, lane = asyncio.get_running_loop(), s.lanes[1]
            held = asyncio.Event()
            blocked = asyncio.ensure_future(
                lane.call(lambda: asyncio.run_coroutine_threadsafe(held.wait(), loop).result(30))
            )
            tasks = [asyncio.ensure_future(s.run(call(model, 1, frames[t]))) for t in range(1, 4)]
            await asyncio.sleep(0.8)  # four times the limit, while nothing can run
            assert 1 in s.live
            held.set()
            await blocked
            assert np.array_equal(np.stack([first(await t) for t in tasks]), alone[1:4])

    run(main())


def test_a_request_that_comes_as_its_sequence_expires(run, model, frames, alone):
    """Its sequence goes on, or is gone as a whole: never a new one under the old id."""

    async def main():
        async with Served(model, idle_timeout=0.02) as s:
            lost = went_on = 0
            for _ in range(25):
                await s.run(call(model, 1, frames[0], start=True))
                await asyncio.sleep(0.0195)
                try:
                    answer = await s.run(call(model, 1, frames[1]))
                except Fault as fault:
                    assert "expired after 0.02 s idle, after 1 steps" in str(fault)
                    lost += 1
                    continue
                assert np.array_equal(first(answer), alone[1])
                went_on += 1
                again = await s.run(call(model, 1, frames[0], start=True))
                assert np.array_equal(first(again), alone[0])
            assert lost + went_on == 25

    run(main())


def test_thousands_of_sequences_share_ticks(run, model, frames, alone):
    """Batches don't fall apart with the number of clients: many sequences are stepped in each tick."""

    async def main():
        async with Served(model, max_delay=0.02) as s:
            ids = range(1, 3001)
            for t in range(3):
                answers = await asyncio.gather(*(s.run(call(model, id, frames[t], start=t == 0)) for id in ids))
                assert all(np.array_equal(first(a), alone[t]) for a in answers)
            batcher = s.lanes[1].batcher
            assert batcher.steps == 9000
            assert batcher.steps / batcher.ticks > 50
            await asyncio.gather(*(s.run(call(model, id, frames[3], end=True)) for id in ids))
            assert not s.live

    run(main())


def test_tasks_and_futures_survive_the_collector(run, model, frames, alone):
    """Nothing that is needed is held by a weak reference alone."""

    async def main():
        async with Served(model, max_delay=0.002) as s:
            for t in range(10):
                tasks = [asyncio.ensure_future(s.run(call(model, id, frames[t], start=t == 0))) for id in range(1, 30)]
                await asyncio.sleep(0)
                gc.collect()
                assert all(np.array_equal(first(a), alone[t]) for a in await asyncio.gather(*tasks))
            assert not [task for task in s._tasks if not task.done()]

    run(main())


def test_clients_that_go_on_stepping_can_not_keep_a_draining_server(run, model, frames, alone):
    """Each sequence has two of them, so one has always a request; what is refused is sent again."""

    async def client(s, id, done):
        while not done.is_set():
            try:
                await s.run(call(model, id, frames[1]))
            except Fault as fault:
                assert (fault.code, fault.status) == ("UNAVAILABLE", 503)
                assert "draining" in str(fault)
                await asyncio.sleep(0.001)

    async def main():
        async with Served(model) as s:
            done, ids = asyncio.Event(), range(1, 100)
            await asyncio.gather(*(s.run(call(model, id, frames[0], start=True)) for id in ids))
            tasks = [asyncio.ensure_future(client(s, id, done)) for id in (*ids, *ids)]
            while s.steps < 2000:
                await asyncio.sleep(0.001)
            await asyncio.wait_for(s.drain(), 20)
            done.set()
            await asyncio.gather(*tasks)

    run(main())


def test_a_batcher_that_was_stopped(run, model, frames):
    """As by a program that cancels all tasks of its loop: every caller is told, those that wait as well."""

    async def main():
        served = Served(model)
        s = await served.__aenter__()
        await asyncio.gather(*(s.run(call(model, id, frames[0], start=True)) for id in (1, 2)))
        tasks = [asyncio.ensure_future(s.run(call(model, id, frames[t]))) for t in range(1, 5) for id in (1, 2)]
        await asyncio.sleep(0)
        s.lanes[1].batcher._ticker.cancel()
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 20)
        later = await asyncio.gather(s.run(call(model, 1, frames[1])), return_exceptions=True)
        for result in (*results[2:], *later):
            assert (type(result), getattr(result, "code", "")) == (Fault, "UNAVAILABLE"), result
        await asyncio.wait_for(s.drain(), 20)
        s.lanes[1].batcher._worker.shutdown()

    run(main())


@pytest.mark.parametrize("end", ["cancelled", "late", "failed"])
def test_a_start_that_did_not_run_starts_nothing(run, model, frames, alone, monkeypatch, end):
    """What its client sends next must not be answered from a state that lacks the first request."""

    async def main():
        async with Served(model) as s:
            await asyncio.gather(*(s.run(call(model, id, frames[0], start=True)) for id in (1, 2)))
            lane, free = s.lanes[1], threading.Event()
            if end == "failed":

                def broken(*args):
                    raise RuntimeError("broken")

                monkeypatch.setattr(lane.pool, "step", broken)
                for id in (1, 3):
                    with pytest.raises(Fault, match="the step failed: broken"):
                        await s.run(call(model, id, frames[0], start=True))
                monkeypatch.undo()
            else:
                busy = asyncio.ensure_future(lane.call(free.wait, 30))
                timeout = 0.01 if end == "late" else None
                tasks = [asyncio.ensure_future(s.run(call(model, id, frames[0], start=True, timeout=timeout)))
                         for id in (1, 3)]  # fmt: skip
                tasks += [asyncio.ensure_future(s.run(call(model, id, frames[1]))) for id in (1, 3)]
                await asyncio.sleep(0.05)
                for task in tasks[:2]:
                    task.cancel()
                results = await asyncio.gather(*tasks, return_exceptions=True)
                assert [type(r) for r in results[:2]] == [Fault if end == "late" else asyncio.CancelledError] * 2
                assert all("must specify the START flag" in str(r) for r in results[2:])
                free.set()
                await busy
            for id in (1, 3):
                with pytest.raises(Fault, match=f"sequence {id} was not started: its first request was cancelled"):
                    await s.run(call(model, id, frames[1]))
            assert list(s.live) == [2]
            assert np.array_equal(first(await s.run(call(model, 1, frames[0], start=True))), alone[0])
            assert np.array_equal(first(await s.run(call(model, 2, frames[1]))), alone[1])

    run(main())


def test_whole_sequences_that_share_a_run_are_refused_as_alone(run, two_ends):
    """An input of one row must not be repeated for the rows of another input."""
    x, z = np.ones((3, 5, 4), np.float32), np.ones((1, 5, 4), np.float32)

    async def main():
        whole = WholeRuns(two_ends, 0.05)
        asked = [{"x": x, "z": z}, {"x": x, "z": z.repeat(3, 0)}]
        found = await asyncio.gather(*map(whole.run, asked), return_exceptions=True)
        await whole.close()
        return found

    first, second = run(main())
    assert isinstance(first, Fault)
    assert "input z: axis 0 (batch) is 1, but 3 in x" in str(first)
    assert (second["h"] == two_ends(x, z.repeat(3, 0))[0]).all()
