"""A store that fails, hangs or is slow: steps go on, requests keep their order, and what is wrong is said."""

import asyncio

import numpy as np
import pytest

pytest.importorskip("fsspec", reason="no fsspec: pip install 'fastrnn[serve]'")
pytest.importorskip("uvicorn", reason="no uvicorn: pip install 'fastrnn[serve]'")
from store_nodes import Node, Slow, refused

from fastrnn.serving.server.faults import Fault

pytestmark = pytest.mark.any_isa


def test_steps_go_on_while_the_store_fails(run, model, frames, alone, folder):
    async def main():
        store = Slow(folder)
        async with Node(model, store) as one:
            await one.step(1, frames[0], start=True)
            store.broken = True
            for t in range(1, 20):
                assert np.array_equal(await one.y(1, frames[t]), alone[t])
                await asyncio.sleep(0.01)
            assert np.array_equal(await one.y(2, frames[0], start=True), alone[0])
            assert "the store has failed for" in one.vault.health()
            assert "the store has failed for" in one.engine.troubles()
            assert "on fire" not in one.engine.troubles()  # strangers read it, and an error names hosts and files
            assert one.engine.ready()
            assert one.vault.failures
            fault = await refused(one, 3, frames[0], "can't be read now: the store is on fire", "UNAVAILABLE", 503)
            assert fault.retry_after
            with pytest.raises(Fault, match=r"could not be written, and goes on here once the store works") as caught:
                await one.engine.move("m", 1)
            assert caught.value.code == "UNAVAILABLE"
            assert one.s.keeper.snapshot_failures
            waiting = asyncio.ensure_future(one.y(1, frames[20]))  # the store may have it as given up
            assert np.array_equal(await one.y(2, frames[1]), alone[1])
            assert not waiting.done()
            store.broken = False
            assert np.array_equal(await waiting, alone[20])
            await one.written(1, 21)
            await one.written(2, 2)
            assert one.vault.health() == ""
        async with Node(model, folder) as two:
            assert np.array_equal(await two.y(1, frames[21]), alone[21])
            assert np.array_equal(await two.y(2, frames[2]), alone[2])

    run(main())


def test_steps_go_on_while_the_store_hangs(run, model, frames, alone, folder):
    async def main():
        store = Slow(folder)
        async with Node(model, store) as one:
            await one.step(1, frames[0], start=True)
            store.gate.clear()
            for t in range(1, 20):
                assert np.array_equal(await one.y(1, frames[t]), alone[t])
                await asyncio.sleep(0.01)
            answer = asyncio.ensure_future(one.step(9, frames[0]))  # waits for the store
            assert np.array_equal(await one.y(1, frames[20]), alone[20])
            assert not answer.done()
            store.gate.set()
            with pytest.raises(Fault, match="this server started at"):
                await answer
            await one.written(1, 21)
        assert set(store.most.values()) == {1}  # of writes at once of each sequence

    run(main())


def test_a_server_goes_on_to_hear_what_others_want_after_an_error(run, model, frames, alone, folder):
    """Whatever a store raises that is not ours: other servers would wait for its sequences until it ends."""

    async def main():
        async with Node(model, folder) as one, Node(model, folder, patience=100.0) as two:
            read, failed = one.vault.store.read, asyncio.Event()

            async def fails(key):
                if not failed.is_set():
                    failed.set()
                    raise ValueError("of a library")
                return await read(key)

            await one.step(1, frames[:5], start=True)
            one.vault.store.read = fails
            await asyncio.wait_for(failed.wait(), 30)
            assert np.array_equal(await asyncio.wait_for(two.y(1, frames[5]), 30), alone[5])

    run(main())


def test_only_what_has_changed_is_written(run, model, frames, folder):
    async def main():
        store = Slow(folder)
        async with Node(model, store) as one:
            await one.step(1, frames[0], start=True)
            await one.step(2, frames[0], start=True)
            await one.written(1, 1)
            await one.written(2, 1)
            while one.s.keeper.dirty or any(store.flying.values()):
                await asyncio.sleep(0.01)
            before = store.calls
            await asyncio.sleep(0.2)  # ten rounds
            assert store.calls == before
            assert one.vault.snapshots >= 2
            counts = [h.count for h in (one.s.keeper.snapshot_bytes, one.s.keeper.snapshot_seconds)]
            assert counts == [one.vault.snapshots] * 2

    run(main())


def test_requests_of_one_sequence_that_is_looked_for_run_in_their_order(run, model, frames, alone, folder):
    async def main():
        async with Node(model, folder) as one:
            await one.step(1, frames[0], start=True)
        store = Slow(folder)
        async with Node(model, store) as two:
            store.gate.clear()
            calls = [asyncio.ensure_future(two.y(1, frames[t])) for t in range(1, 12)]
            await asyncio.sleep(0.05)
            store.gate.set()
            assert np.array_equal(np.stack(await asyncio.gather(*calls)), alone[1:12])
            assert store.reads == 1

    run(main())


def test_a_start_while_a_record_is_looked_for(run, model, frames, alone, folder):
    async def main():
        async with Node(model, folder) as one:
            await one.step(1, frames[:9], start=True)
        store = Slow(folder)
        async with Node(model, store) as two:
            store.gate.clear()
            late = asyncio.ensure_future(two.y(1, frames[9]))
            await asyncio.sleep(0)
            anew = asyncio.ensure_future(two.y(1, frames[0], start=True))
            await asyncio.sleep(0.05)
            store.gate.set()
            assert np.array_equal(await late, alone[9])
            assert np.array_equal(await anew, alone[0])
            assert np.array_equal(await two.y(1, frames[1]), alone[1])

    run(main())


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_move_whose_end_nobody_knows_is_never_gone_on_with_twice(run, model, frames, alone, folder, when):
    """The write of a move fails, and may have arrived. The sequence takes no step until it is taken back, or another
    server goes on with it: never both."""

    async def main():
        store = Slow(folder)
        async with Node(model, store) as one, Node(model, folder) as two:
            await one.step(1, frames[:5], start=True)
            await one.written(1, 5)
            store.ambiguous = True
            with pytest.raises(Fault, match="could not be written"):
                await one.engine.move("m", 1)
            step = asyncio.ensure_future(one.step(1, frames[5]))
            if when == "before":  # another server is asked while this one still can't reach the store
                assert np.array_equal(await two.y(1, frames[5]), alone[5])
                store.ambiguous = False
                with pytest.raises(Fault, match="was moved"):
                    await step
                assert np.array_equal(await two.y(1, frames[6]), alone[6])
            else:
                store.ambiguous = False
                assert (await step).done == (6,)
                assert np.array_equal(await two.y(1, frames[6]), alone[6])  # it was asked for, with every step

    run(main())


def test_an_end_while_a_sequence_is_given_up(run, model, frames, folder):
    """It is over, whoever asks: its last state is not left behind as one to go on with."""

    async def main():
        store = Slow(folder)
        async with Node(model, store) as one:
            await one.step(1, frames[0], start=True)
            await one.written(1, 1)
            store.gate.clear()
            moved = asyncio.ensure_future(one.engine.move("m", 1))
            while not any(store.flying.values()):
                await asyncio.sleep(0.001)
            ended = asyncio.ensure_future(one.s.evict(1))
            await asyncio.sleep(0)
            assert 1 not in one.s.live
            store.gate.set()
            with pytest.raises(Fault, match="sequence 1 was evicted"):
                await moved
            await ended
            while one.s.keeper._tasks:
                await asyncio.sleep(0.001)
        async with Node(model, folder) as two:
            await refused(two, 1, frames[1], "sequence 1 was evicted, after 1 steps", "NOT_FOUND", 404)

    run(main())


def test_ends_that_the_store_is_not_told_of_are_one_line(run, model, frames, folder, caplog):
    """A line for each would let clients fill the log while the store is down."""

    async def main():
        store = Slow(folder)
        async with Node(model, store) as one:
            store.broken = True
            for id in range(1, 21):
                await one.step(id, frames[0], start=True, end=True)
            for _ in range(3000):
                if one.vault.unmarked == 20:
                    break
                await asyncio.sleep(0.01)
            assert one.vault.unmarked == 20
            store.broken = False
            await one.step(99, frames[0], start=True)
            await one.written(99, 1)
            assert one.vault.unmarked == 0

    run(main())
    texts = [record.getMessage() for record in caplog.records]
    assert len(texts) == 2
    assert texts[0] == "the store fails, and sequences go on without it: the store is on fire"
    assert texts[1].endswith("; it was not told of the ends of 20 sequences")
