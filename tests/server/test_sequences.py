"""The sequences of a model, without a protocol: order, generations, step indexes, ends, bounds. Bits are a lone
stream's."""

import asyncio
import random

import numpy as np
import pytest
from graph_builder import GraphBuilder

from fastrnn.graph.dims import BATCH, TIME
from fastrnn.model import Model
from fastrnn.serving.server.faults import Fault
from fastrnn.serving.server.lane import Lane
from fastrnn.serving.server.options import Options
from fastrnn.serving.server.sequence import Call
from fastrnn.serving.server.sequences import Sequences

pytestmark = pytest.mark.any_isa


def call(model, id, x, start=False, end=False, index=None, **more):
    """A request of one sequence."""
    name = model.inputs[0].name
    indexes = None if index is None else (index,)
    return Call((id,), (start,), (end,), {name: np.asarray(x)[None]}, indexes=indexes, **more)


def many(model, ids, x, starts=None, ends=None, indexes=None):
    """A step of each of several sequences."""
    none = (False,) * len(ids)
    return Call(tuple(ids), starts or none, ends or none, {model.inputs[0].name: x}, many=True, indexes=indexes)


def first(answer):
    (y,) = [v for v in answer.outputs.values() if v.ndim > 1][:1]
    return y[0]


class Served:
    """Sequences of one version, closed at the end."""

    def __init__(self, model, versions=(1,), **options):
        self.model, self.versions, self.options = model, versions, {"max_delay": 0.0, **options}

    async def __aenter__(self):
        options = Options(**self.options)
        lanes = {v: Lane(self.model, v, options.max_delay, options.tick_rows) for v in self.versions}
        self.sequences = Sequences("m", lanes, options)
        return self.sequences

    async def __aexit__(self, *_):
        await self.sequences.drain()
        for lane in self.sequences.lanes.values():
            await lane.batcher.close()
            live = [s for s in self.sequences.live.values() if s.lane is lane]
            assert len(lane.pool) == len(live), "a slot was left open, or released twice"
        await self.sequences.close()


@pytest.fixture
def run():
    return lambda coroutine: asyncio.run(asyncio.wait_for(coroutine, 60))


def test_steps_and_chunks_are_those_of_a_lone_stream(run, model, frames, alone):
    async def main():
        async with Served(model) as s:
            answers, at = [], 0
            for size in (1, 3, 0, 70, 1, 130):  # 0: one step without a time axis
                x = frames[at] if size == 0 else frames[at : at + size]
                answer = await s.run(call(model, 42, x, start=at == 0))
                assert answer.first == (at,)
                at += max(size, 1)
                assert answer.done == (at,)
                y = first(answer)
                answers.append(y[None] if size == 0 else y)
            assert np.array_equal(np.concatenate(answers), alone[:at])

    run(main())


def test_requests_sent_at_once_run_in_their_order(run, model, frames, alone):
    async def main():
        async with Served(model) as s:
            calls = [call(model, "a", frames[t], start=t == 0, end=t == 19) for t in range(20)]
            answers = await asyncio.gather(*map(s.run, calls))
            assert np.array_equal(np.stack([first(a) for a in answers]), alone[:20])
            assert not s.live

    run(main())


def test_integer_and_string_ids_differ(run, model, frames, alone):
    async def main():
        async with Served(model) as s:
            await s.run(call(model, 5, frames[0], start=True))
            with pytest.raises(Fault, match="sequence 5 to model 'm' must specify the START flag") as caught:
                await s.run(call(model, "5", frames[1]))
            assert (caught.value.code, caught.value.status) == ("INVALID_ARGUMENT", 400)
            assert "this server started at" in str(caught.value)
            answer = await s.run(call(model, 5, frames[1]))
            assert np.array_equal(first(answer), alone[1])

    run(main())


def test_start_on_a_live_id_begins_anew(run, model, frames, alone):
    async def main():
        async with Served(model) as s:
            calls = [call(model, 1, frames[t], start=t == 0) for t in range(5)]
            calls += [call(model, 1, frames[t], start=t == 0) for t in range(3)]
            answers = await asyncio.gather(*map(s.run, calls))
            assert np.array_equal(np.stack([first(a) for a in answers]), np.concatenate([alone[:5], alone[:3]]))
            assert [a.done[0] for a in answers] == [1, 2, 3, 4, 5, 1, 2, 3]
            assert s.starts == 2
            assert s.ends == {"restarted": 1}
            assert len(s.live) == 1

    run(main())


def test_strict_sequences_refuse_that(run, model, frames, alone):
    async def main():
        async with Served(model, strict_sequences=True) as s:
            await s.run(call(model, 1, frames[0], start=True))
            with pytest.raises(Fault, match="is live already") as caught:
                await s.run(call(model, 1, frames[0], start=True))
            assert (caught.value.code, caught.value.status) == ("ALREADY_EXISTS", 409)
            assert np.array_equal(first(await s.run(call(model, 1, frames[1]))), alone[1])

    run(main())


def test_step_index_is_taken_once(run, model, frames, alone):
    async def main():
        async with Served(model) as s:
            got = [await s.run(call(model, 9, frames[t], start=t == 0, index=t)) for t in range(4)]
            again = await s.run(call(model, 9, frames[3], index=3))
            assert np.array_equal(first(again), first(got[3]))
            assert again.done == (4,)
            for wrong in (2, 5):
                with pytest.raises(Fault, match=f"sequence 9 expects step_index 4, got {wrong}") as caught:
                    await s.run(call(model, 9, frames[4], index=wrong))
                assert (caught.value.code, caught.value.status) == ("FAILED_PRECONDITION", 409)
            chunk = await s.run(call(model, 9, frames[4:104], index=4))
            assert np.array_equal(first(chunk), alone[4:104])
            again = await s.run(call(model, 9, frames[4:104], index=4))
            assert np.array_equal(first(again), alone[4:104])
            assert np.array_equal(first(await s.run(call(model, 9, frames[104], index=104))), alone[104])

    run(main())


def test_a_request_sent_twice_at_once_steps_once(run, model, frames, alone):
    async def main():
        async with Served(model) as s:
            await s.run(call(model, 9, frames[0], start=True, index=0))
            both = await asyncio.gather(*(s.run(call(model, 9, frames[1], index=1)) for _ in range(2)))
            assert all(np.array_equal(first(a), alone[1]) for a in both)
            assert np.array_equal(first(await s.run(call(model, 9, frames[2], index=2))), alone[2])

    run(main())


def test_a_caller_that_goes_leaves_the_state_or_is_told(run, model, frames, alone):
    """Whatever was cancelled, step indexes tell which steps were taken."""

    async def main():
        rng = random.Random(3)
        async with Served(model) as s:
            await s.run(call(model, 1, frames[0], start=True, index=0))
            at = 1
            while at < 300:
                size = rng.choice([1, 2, 90])
                x = frames[at : at + size]
                task = asyncio.ensure_future(s.run(call(model, 1, x, index=at)))
                await asyncio.sleep(rng.choice([0, 0, 0.0001, 0.001]))
                task.cancel()
                try:
                    y = first(await task)
                except asyncio.CancelledError:
                    y = first(await s.run(call(model, 1, x, index=at)))  # as whole as if it had never been sent
                assert np.array_equal(y, alone[at : at + len(x)])
                at += len(x)

    run(main())


def test_the_queue_of_a_sequence_is_bounded(run, model, frames, alone):
    async def main():
        async with Served(model, queue_size=4) as s:
            await s.run(call(model, 1, frames[0], start=True))
            tasks = [asyncio.ensure_future(s.run(call(model, 1, frames[t]))) for t in range(1, 8)]
            results = await asyncio.gather(*tasks, return_exceptions=True)
            full = [r for r in results if isinstance(r, Fault)]
            assert len(full) == 2
            assert full[0].status == 429
            assert full[0].retry_after
            assert np.array_equal(np.stack([first(r) for r in results[:5]]), alone[1:6])
            assert s.rejected == {"queue_full": 2}

    run(main())


def test_sequences_are_bounded(run, model, frames):
    async def main():
        async with Served(model, max_sequences=2) as s:
            for id in (1, 2):
                await s.run(call(model, id, frames[0], start=True))
            with pytest.raises(Fault, match="2 live sequences of at most 2") as caught:
                await s.run(call(model, 3, frames[0], start=True))
            assert caught.value.status == 503
            assert caught.value.retry_after
            await s.run(call(model, 2, frames[0], start=True))  # a new beginning needs no more room
            await s.run(call(model, 1, frames[1], end=True))
            await s.run(call(model, 3, frames[0], start=True))

    run(main())


def test_an_ended_sequence_is_unknown_and_the_reason_is_told(run, model, frames):
    async def main():
        seen = []

        async def evict(id, reason, snapshot):
            pool = model.pool(1)
            seen.append((id, reason, pool.steps_done(pool.restore(snapshot))))

        async with Served(model, idle_timeout=0.15, on_evict=evict) as s:
            await s.run(call(model, 1, frames[:2], start=True, end=True))
            with pytest.raises(Fault, match=r"START flag.*sequence 1 was ended by its client, after 2 steps") as caught:
                await s.run(call(model, 1, frames[2]))
            assert caught.value.status == 400
            await s.run(call(model, 2, frames[:2], start=True))
            await asyncio.sleep(0.4)
            with pytest.raises(
                Fault, match=r"START flag.*sequence 2 expired after 0.15 s idle, after 2 steps"
            ) as caught:
                await s.run(call(model, 2, frames[2]))
            assert (caught.value.code, caught.value.status) == ("NOT_FOUND", 404)
            await s.run(call(model, 3, frames[:3], start=True))
            await s.evict(3)
            with pytest.raises(Fault, match="sequence 3 was evicted, after 3 steps"):
                await s.run(call(model, 3, frames[2]))
            assert seen == [(2, "idle", 2), (3, "evicted", 3)]
            assert s.ends == {"client": 1, "idle": 1, "evicted": 1}

    run(main())


def test_a_sequence_in_use_does_not_expire(run, model, frames, alone):
    async def main():
        async with Served(model, idle_timeout=0.2) as s:
            for t in range(8):
                answer = await s.run(call(model, 1, frames[t], start=t == 0))
                await asyncio.sleep(0.08)
                assert np.array_equal(first(answer), alone[t])

    run(main())


def test_many_sequences_in_one_request(run, model, frames, alone):
    async def main():
        async with Served(model) as s:
            n = 200
            ids = list(range(1, n + 1))
            for t in range(5):
                x = np.repeat(frames[t][None], n, axis=0)
                answer = await s.run(many(model, ids, x, starts=(t == 0,) * n, ends=(t == 4,) * n))
                assert answer.first == (t,) * n
                assert all(np.array_equal(row, alone[t]) for row in next(iter(answer.outputs.values())))
            assert not s.live
            assert s.steps == 5 * n

    run(main())


def test_if_one_row_is_refused_none_runs(run, model, frames, alone):
    async def main():
        async with Served(model) as s:
            await s.run(call(model, 1, frames[0], start=True))
            with pytest.raises(Fault, match="START flag"):
                await s.run(many(model, [1, 7], frames[1:3]))
            await s.run(call(model, 7, frames[0], start=True, index=0))
            with pytest.raises(Fault, match="sequence 7 expects step_index 1, got 2"):
                await s.run(many(model, [1, 7], frames[1:3], indexes=(1, 2)))
            answer = await s.run(many(model, [1, 7], frames[[1, 1]], indexes=(1, 1)))
            assert np.array_equal(next(iter(answer.outputs.values())), alone[[1, 1]])
            again = await s.run(many(model, [1, 7], frames[[1, 1]], indexes=(1, 1)))
            assert np.array_equal(next(iter(again.outputs.values())), alone[[1, 1]])
            assert again.done == (2, 2)

    run(main())


def test_versions(run, model, frames, alone):
    async def main():
        async with Served(model, versions=(1, 2)) as s:
            old = await s.run(call(model, 1, frames[0], start=True, version=1))
            new = await s.run(call(model, 2, frames[0], start=True))
            assert (old.version, new.version) == (1, 2)
            assert (await s.run(call(model, 1, frames[1]))).version == 1
            with pytest.raises(Fault, match="runs on version 1 of 'm', and the request asks for version 2"):
                await s.run(call(model, 1, frames[1], version=2))
            with pytest.raises(Fault, match="has no version 3: it has 1, 2"):
                await s.run(call(model, 3, frames[1], start=True, version=3))
            with pytest.raises(Fault, match="versions 1 and 2"):
                await s.run(many(model, [1, 2], frames[:2]))

    run(main())


def test_a_draining_server_starts_none_and_finishes(run, model, frames, alone):
    async def main():
        async with Served(model) as s:
            tasks = [asyncio.ensure_future(s.run(call(model, 1, frames[t], start=t == 0))) for t in range(9)]
            await asyncio.sleep(0)
            await s.drain()
            assert np.array_equal(np.stack([first(a) for a in await asyncio.gather(*tasks)]), alone[:9])
            with pytest.raises(Fault, match="draining") as caught:
                await s.run(call(model, 2, frames[0], start=True))
            assert caught.value.status == 503
            assert np.array_equal(first(await s.run(call(model, 1, frames[9]))), alone[9])

    run(main())


def test_wrong_inputs_change_nothing(run, model, frames, alone):
    name = model.inputs[0].name

    async def main():
        async with Served(model) as s:
            await s.run(call(model, 1, frames[0], start=True))
            for inputs, text in [
                ({}, f"lacks the input '{name}'"),
                ({name: frames[:1], "more": frames}, "has an input 'more'"),
                ({name: frames[:2]}, r"\[1, features\]"),
                ({name: frames[0]}, r"\[1, features\]"),
                ({name: frames[None, :1, :4]}, "5"),
                ({name: np.zeros((1, 5), "S1")}, name),
            ]:
                with pytest.raises(Fault, match=text) as caught:
                    await s.run(Call((1,), (False,), (False,), inputs))
                assert caught.value.status == 400
                with pytest.raises(Fault):
                    await s.run(Call((2,), (True,), (False,), inputs))
            assert list(s.live) == [1]
            assert np.array_equal(first(await s.run(call(model, 1, frames[1]))), alone[1])

    run(main())


def test_nan_stays_in_its_sequence(run, model, frames, alone):
    async def main():
        async with Served(model, max_delay=0.01) as s:
            bad = np.full(5, np.nan, np.float32)
            starts = [s.run(call(model, id, bad if id == 2 else frames[0], start=True)) for id in (1, 2, 3)]
            answers = await asyncio.gather(*starts)
            assert np.isnan(first(answers[1])).all()
            assert all(np.array_equal(first(answers[i]), alone[0]) for i in (0, 2))

    run(main())


def test_a_timeout_leaves_the_state(run, model, frames, alone):
    async def main():
        async with Served(model, max_delay=0.3) as s:
            await s.run(call(model, 1, frames[0], start=True))
            await s.run(call(model, 2, frames[0], start=True))
            with pytest.raises(Fault, match=r"no tick took the request in 0.01 s") as caught:
                await s.run(call(model, 1, frames[1], timeout=0.01))
            assert caught.value.code == "DEADLINE_EXCEEDED"
            assert np.array_equal(first(await s.run(call(model, 1, frames[1]))), alone[1])

    run(main())


def test_churn(run, model, frames, alone):
    """Hundreds of sequences start, step, are cancelled, restart and end, in single and joint requests."""

    async def client(s, id, rng):
        for _ in range(6):
            at, start, length = 0, True, rng.randint(1, 60)
            sizes = rng.choices([1, 1, 1, 5], k=60)
            while at < length:
                x = frames[at : at + sizes[at]]
                task = asyncio.ensure_future(s.run(call(model, id, x, start=start, index=at)))
                if rng.random() < 0.2:
                    await asyncio.sleep(rng.choice([0, 0.0005]))
                    task.cancel()
                try:
                    y = first(await task)
                except asyncio.CancelledError:
                    continue  # sends it again
                assert np.array_equal(y, alone[at : at + len(x)])
                at, start = at + len(x), False
            if rng.random() < 0.5:
                await s.run(call(model, id, frames[at], end=True))

    async def main():
        async with Served(model, idle_timeout=30.0) as s:
            rng = random.Random(1)
            await asyncio.gather(*(client(s, id, random.Random(rng.random())) for id in range(1, 120)))
            assert set(s.ends) <= {"client", "restarted"}

    run(main())


def test_a_model_with_fewer_steps_than_it_takes(run):
    """Every second step has an output: a single step is answered as a chunk of one, with no or one step."""
    rng, b = np.random.default_rng(2), GraphBuilder("halving")
    x = b.input("x", "float32", BATCH, TIME, 5)
    W = b.constant("W", rng.normal(size=(6, 5, 2)).astype(np.float32))
    turned = b.add("transpose", x, perm=(0, 2, 1))
    y = b.add("conv", turned, W, strides=(2,), dilations=(1,), pads=(0, 0), groups=1)
    halving = Model(b.done(b.add("transpose", y, perm=(0, 2, 1))))
    frames = rng.normal(size=(20, 5)).astype(np.float32)
    whole = halving.stream().push(frames)

    async def main():
        async with Served(halving) as s:
            found = [first(await s.run(call(halving, 1, frames[t], start=t == 0))) for t in range(8)]
            found.append(first(await s.run(call(halving, 1, frames[8:]))))
            assert [len(y) for y in found[:8]] == [0, 1] * 4
            assert np.array_equal(np.concatenate(found), whole)
            with pytest.raises(Fault, match="send requests of one sequence each"):
                await s.run(many(halving, [1, 2], frames[:2], starts=(True, True)))

    run(main())
