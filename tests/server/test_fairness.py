"""No client starves another one. Nothing here asks for the time: ticks, and the steps in them, are counted."""

import asyncio
import random
import threading
from collections import Counter
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest
from test_sequences import Served, call, first, many

from fastrnn.errors import FastRNNError
from fastrnn.serving._queues import Close, Many, Push, Step
from fastrnn.serving.server import whole
from fastrnn.serving.server.faults import Fault
from fastrnn.serving.server.options import Options
from fastrnn.serving.server.shares import Shares, TickQueues, Ticks
from fastrnn.serving.server.whole import WholeRuns

pytestmark = pytest.mark.any_isa

HEAVY = 4000
ROWS = 16


class Blocked:
    """Meanwhile the thread of a lane waits, and so does what comes for its ticks."""

    def __init__(self, lane):
        self._go = threading.Event()
        self._lane = lane

    async def __aenter__(self):
        self._waits = asyncio.ensure_future(self._lane.call(self._go.wait, 60))
        return self

    async def __aexit__(self, *_):
        self._go.set()
        await self._waits


async def started(s, model, frames, number):
    """Start sequences from 1 on."""
    ids = range(1, number + 1)
    await s.run(many(model, ids, np.repeat(frames[:1], number, 0), (True,) * number))
    return ids


class Asked:
    """A request, which is in the queue of its client from now on.

    ticks, steps : of its lane when it was answered
    """

    def __init__(self, s, call, order=None):
        self._future = asyncio.get_running_loop().create_future()
        (self._lane,), self._order, self.ticks = s.lanes.values(), order, None
        s.post(call, self._tell)

    def _tell(self, result):
        self.ticks, self.steps = self._lane.batcher.ticks, self._lane.batcher.steps
        self._future.set_result(result)
        if self._order is not None:
            self._order.append(self)

    def __await__(self):
        return self._future.__await__()


def test_a_step_does_not_wait_for_the_thousands_of_another_client(run, model, frames, alone):
    """It is in one of the next two ticks, and these take ROWS steps each. All 4,000 were in one tick before."""

    async def main():
        async with Served(model, tick_rows=ROWS) as s:
            (lane,) = s.lanes.values()
            ids = await started(s, model, frames, HEAVY)
            await s.run(call(model, "light", frames[0], start=True, client="light"))
            async with Blocked(lane):
                heavy = [Asked(s, call(model, i, frames[1], client="heavy")) for i in ids]
                await asyncio.sleep(0)  # the first tick has begun, and waits for the thread
                ticks, steps = lane.batcher.ticks, lane.batcher.steps
                light = Asked(s, call(model, "light", frames[1], client="light"))
            assert np.array_equal(first(await light), alone[1])
            assert light.ticks - ticks <= 2
            assert light.steps - steps <= ROWS  # of the ticks before its own
            for future in heavy:
                assert np.array_equal(first(await future), alone[1])

    run(main())


def test_the_requests_of_a_client_are_answered_in_their_order(run, model, frames):
    async def main():
        async with Served(model, tick_rows=ROWS) as s:
            (lane,) = s.lanes.values()
            ids = await started(s, model, frames, 100)
            order = []
            async with Blocked(lane):
                asked = [Asked(s, call(model, i, frames[1]), order) for i in ids]
            await s.drain()
            assert order == asked

    run(main())


def test_two_requests_for_many_take_turns_with_another_client(run, model, frames, alone):
    """Neither is split, and the second one is not in the tick of the first."""

    async def main():
        async with Served(model, tick_rows=ROWS) as s:
            (lane,) = s.lanes.values()
            ids = await started(s, model, frames, 600)
            await s.run(call(model, "light", frames[0], start=True, client="light"))
            x = np.repeat(frames[1:2], 300, 0)
            async with Blocked(lane):
                one, two = (Asked(s, many(model, some, x)) for some in (ids[:300], ids[300:]))
                light = Asked(s, call(model, "light", frames[1], client="light"))
            assert np.array_equal(first(await light), alone[1])
            for future in (one, two):
                assert np.array_equal(next(iter((await future).outputs.values())), np.repeat(alone[1:2], 300, 0))
            assert one.ticks == light.ticks == two.ticks - 1

    run(main())


def test_steps_go_between_the_long_chunks_of_their_own_client(run, model, frames, alone):
    """A chunk that has steps left goes behind the others of its client."""

    async def main():
        async with Served(model, tick_rows=ROWS) as s:
            (lane,) = s.lanes.values()
            ids = await started(s, model, frames, 20)
            async with Blocked(lane):
                long = [Asked(s, call(model, i, np.tile(frames[1:], (10, 1)))) for i in ids[:19]]
                step = Asked(s, call(model, 20, frames[1]))
            assert np.array_equal(first(await step), alone[1])
            assert all(asked.ticks is None for asked in long)
            whole = model.stream().push(np.concatenate([frames[:1], np.tile(frames[1:], (10, 1))]))[1:]
            for future in long:
                assert np.array_equal(first(await future), whole)

    run(main())


def test_what_waits_for_its_share_can_be_cancelled_expires_and_is_drained(run, model, frames, alone):
    async def main():
        async with Served(model, tick_rows=ROWS) as s:
            (lane,) = s.lanes.values()
            ids = await started(s, model, frames, 200)
            async with Blocked(lane):
                tasks = [asyncio.ensure_future(s.run(call(model, i, frames[1]))) for i in ids[:198]]
                late = asyncio.ensure_future(s.run(call(model, 199, frames[1], timeout=0.001)))
                ended = asyncio.ensure_future(s.run(call(model, 200, frames[1], end=True)))
                await asyncio.sleep(0)
                for task in tasks[100:150]:
                    task.cancel()
                with pytest.raises(Fault, match="no tick took the request"):
                    await late
            await s.drain()
            found = await asyncio.gather(*tasks, return_exceptions=True)
            assert [isinstance(a, asyncio.CancelledError) for a in found] == [100 <= i < 150 for i in range(198)]
            assert all(np.array_equal(first(a), alone[1]) for a in found if not isinstance(a, BaseException))
            assert np.array_equal(first(await ended), alone[1])
            for i in (101, 199):  # their states are as they were
                assert np.array_equal(first(await s.run(call(model, i, frames[1]))), alone[1])

    run(main())


@pytest.mark.parametrize("seed", range(4))
def test_random_clients_get_the_bits_of_lone_streams(run, model, frames, alone, seed):
    source = random.Random(seed)

    async def one(s, client, id):
        at = 0
        while at < 120:
            size = source.choice((0, 0, 0, 1, 5, 70))
            x = frames[at] if not size else frames[at : at + size]
            task = asyncio.ensure_future(s.run(call(model, id, x, start=not at, index=at, client=client)))
            if at and source.random() < 0.1:
                await asyncio.sleep(0)
                task.cancel()
            try:
                answer = await task
            except asyncio.CancelledError:  # it was taken, or not; the index tells
                while not s.live[id].at_rest:
                    await asyncio.sleep(0.001)
                at = s.live[id].steps
                continue
            y = first(answer)
            assert np.array_equal(y if size else y[None], alone[at : at + max(size, 1)])
            at = answer.done[0]

    async def main():
        async with Served(model, tick_rows=source.choice((1, 2, 7))) as s:
            clients = [f"client {n}" for n in range(5) for _ in range(source.choice((1, 3, 20)))]
            await asyncio.gather(*(one(s, client, k + 1) for k, client in enumerate(clients)))
            assert not len(next(iter(s.lanes.values())).batcher)

    run(main())


# -- the queues alone --
class Caller:
    """The future of a request, as Work is."""

    def __init__(self, client):
        self.call, self.gone = self, False
        self.client = client

    def done(self):
        return self.gone


@pytest.mark.parametrize("seed", range(30))
def test_each_client_has_its_share_of_each_tick(seed):
    """Of random requests, at random moments: nothing is lost, nothing is taken twice, those of a client keep their
    order, each client that waits is in every tick, and two that have enough have the same."""
    source = random.Random(seed)
    rows = source.choice((1, 3, 10, 64))
    queues = TickQueues(rows)
    clients = [f"client {n}" for n in range(source.randint(1, 8))]
    heavy = clients[: source.randint(0, 3)]
    waiting = {client: [] for client in clients}
    put = taken = gone = 0
    for tick in range(60):
        for client in clients if tick < 40 else []:
            for _ in range(source.randint(0, 100 if client in heavy else 2)):
                request = Step(put, Caller(client), ())
                queues.put(request)
                waiting[client].append(request)
                put += 1
        present = [*chain(*waiting.values())]
        for request in source.sample(present, k=min(len(present), source.randint(0, 3))):
            request.future.gone = True
            gone += 1
        live = {client: [r for r in some if not r.future.gone] for client, some in waiting.items()}
        rounds = queues.take()
        found = rounds[0] if rounds else []
        assert len(rounds) <= 1
        counts = Counter(r.future.client for r in found)
        for client, some in live.items():
            mine = [r for r in found if r.future.client == client]
            assert mine == some[: len(mine)]
            assert all(r.taken for r in mine)
            assert mine or not some
            waiting[client] = some[len(mine) :]
        asking = sum(map(bool, live.values()))
        assert len(found) <= max(rows, asking)
        assert len(found) >= min(rows, sum(map(len, live.values())))
        left = [counts[client] for client in clients if waiting[client]]  # these could have had more
        assert not left or max(counts.values()) - min(left) <= 1
        taken += len(found)
    while rounds := queues.take():
        taken += len(rounds[0])
    assert put == taken + gone
    assert not queues.size
    assert not queues.clients


def test_what_a_request_costs_of_a_tick():
    queues = TickQueues(10)
    big = Many(range(3000), Caller("a"), [])
    behind = Step(1, Caller("a"), ())
    chunks = [Push(n, Caller("b"), [], 1000) for n in range(9)]
    end = Close(5, Caller("b"))
    others = [Step(n, Caller("c"), ()) for n in range(5)]
    for request in (big, behind, *chunks, end, *others):
        queues.put(request)
    (found,) = queues.take()
    assert {r for r in found if r.future.client == "a"} == {big}
    assert found.count(chunks[0]) == 1
    assert chunks[1] not in found, "64 steps of a chunk are as much as the share of a client"
    assert end in found
    assert [r for r in found if r.future.client == "c"] == others[:2]
    queues.put_back([chunks[0]])
    assert not chunks[0].taken
    found = []
    while rounds := queues.take():
        found += rounds[0]
    assert [r for r in found if r.future.client == "b"] == [*chunks[1:], chunks[0]]
    assert queues.clear() == []


def test_the_wait_of_a_tick_counts_from_the_oldest_request_in_it(run, model):
    """Those that were left over count too."""

    async def main():
        async with Served(model, tick_rows=4) as s:
            (lane,) = s.lanes.values()
            frame = np.zeros(5, np.float32)
            await asyncio.gather(*(s.run(call(model, i, frame, start=True)) for i in range(1, 41)))
            stats = lane.batcher.stats()
            assert stats["queue_wait_seconds"]["count"] == stats["ticks"] >= 10

    run(main())


@pytest.mark.parametrize(("rows", "threads", "found"), [(None, 1, 64), (None, 3, 192), (None, 9, 256), (5, 9, 5)])
def test_rows_of_a_tick(model, rows, threads, found):
    ticks = Ticks(model.pool(2), 0.0, rows, threads)
    assert (ticks.max_rows, ticks._queues.rows) == (found, found)
    ticks._worker.shutdown()


def test_rows_follow_the_time_of_steps_alone(model):
    """Ends of streams are quicker than steps: many of them at once must not make the ticks after them long."""
    ticks = Ticks(model.pool(2), 0.0, None, 1)

    def tick(make, seconds, rows=64):
        for _ in range(rows):
            ticks._queues.put(make(0, SimpleNamespace(done=lambda: False, call=SimpleNamespace(client="a"))))
        found = ticks._next()
        assert [*map(len, found)] == [rows]
        ticks._counts.tick(seconds, rows)

    tick(lambda slot, future: Step(slot, future, ()), 64 * 50e-6)
    tick(Close, 64 * 1e-6)
    tick(lambda slot, future: Step(slot, future, ()), 0.0)  # shorter than the clock can tell
    tick(Close, 64 * 1e-6)
    assert ticks.max_rows == 64
    tick(lambda slot, future: Step(slot, future, ()), 64 * 20e-6)
    ticks._next()
    assert ticks.max_rows == 100
    ticks._worker.shutdown()


@pytest.mark.parametrize("rows", [0, -1, 1.5, True, "64"])
def test_a_wrong_number_of_rows(rows):
    with pytest.raises(FastRNNError, match="tick_rows"):
        Options(tick_rows=rows)


# -- whole sequences --
class Counted(WholeRuns):
    """Counts what each visit to the thread takes; the first one waits for `go`."""

    def __init__(self, model):
        super().__init__(model, 0.0)
        self.visits = []
        self.go = threading.Event()

    def _answers(self, requests):
        assert self.go.wait(60)
        self.visits.append(len(requests))
        return super()._answers(requests)


def test_whole_sequences_of_one_client_do_not_hold_up_another(run, model, frames, alone, monkeypatch):
    monkeypatch.setattr(whole, "RUN_ELEMENTS", 4 * 50 * 5)

    async def main():
        runs = Counted(model)
        heavy = [asyncio.ensure_future(runs.run({"x": frames[None, :50]}, client="heavy")) for _ in range(200)]
        await asyncio.sleep(0)
        light = asyncio.ensure_future(runs.run({"x": frames[None, :50]}, client="light"))
        light.add_done_callback(lambda _: seen.append(len(runs.visits)))
        await asyncio.sleep(0)
        runs.go.set()
        for y in await asyncio.gather(light, *heavy):
            (y,) = y.values()
            assert np.array_equal(y[0], alone[:50])
        await runs.close()
        assert max(runs.visits) <= 5
        assert sum(runs.visits) == 201

    seen = []
    run(main())
    assert seen[0] <= 3


def test_a_client_that_fills_the_queue_of_whole_sequences_leaves_room_for_others(run, model, frames, monkeypatch):
    monkeypatch.setattr(whole, "MOST_WAITING", 8)

    async def main():
        runs = Counted(model)
        ask = lambda client: asyncio.ensure_future(runs.run({"x": frames[None, :3]}, client=client))  # noqa: E731
        tasks = [ask("first")]
        await asyncio.sleep(0)
        await asyncio.sleep(0)  # the thread has it
        tasks += [ask("heavy") for _ in range(8)]
        await asyncio.sleep(0)
        with pytest.raises(Fault, match="8 requests wait for 'gru', 8 of them of this client: send it again"):
            await ask("heavy")
        light = [ask("light") for _ in range(5)]
        await asyncio.sleep(0)
        assert [t.done() for t in light] == [False] * 4 + [True]  # half of the places
        with pytest.raises(Fault, match="12 requests wait"):
            await light.pop()
        runs.go.set()
        await asyncio.gather(*tasks, *light)
        await runs.close()

    run(main())


def test_a_long_sequence_does_not_pad_many_short_ones(run, model, frames, alone, monkeypatch):
    """A joint run of all would have 400 times the elements that were sent."""
    monkeypatch.setattr(whole, "MOST_PADDED", 450 * 5)
    sizes = []

    class Seen(Counted):
        def _together(self, requests):
            sizes.append(len(requests) * max(r["x"].shape[1] for r in requests) * 5)
            return super()._together(requests)

    async def main():
        runs = Seen(model)
        lengths = [400, *[1] * 100, 399, 7, 20]
        tasks = [asyncio.ensure_future(runs.run({"x": frames[None, :n]})) for n in lengths]
        await asyncio.sleep(0)
        runs.go.set()
        for n, y in zip(lengths, await asyncio.gather(*tasks), strict=True):
            assert np.array_equal(next(iter(y.values()))[0], alone[:n])
        await runs.close()

    run(main())
    assert sizes
    assert max(sizes) <= 450 * 5


def test_shares_of_nothing():
    shares = Shares()
    assert shares.some(10) == []
    assert shares.waiting("a") == shares.clients == len(shares) == 0
