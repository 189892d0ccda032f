"""The idle limit and the most sequences of gateways, and requests that ended their sequence and come again."""

import asyncio

import numpy as np
import pytest
from test_gateway import MUST_START, refused, simulate  # noqa: F401

from fastrnn.ray.words import GATEWAY
from fastrnn.serving.server.options import Options

pytestmark = pytest.mark.any_isa


def marked(client):
    """Give the callers of the gateways numbers of gateways, before their first call."""
    for hosted in client.gateways:
        hosted.sequences.cluster.caller.id += GATEWAY


def live(client, gateway=0):
    return client.gateways[gateway].sequences.watch.live


def test_idle_sequences_end(simulate, x):  # noqa: F811
    async def test(client, world):
        marked(client)
        await asyncio.gather(*(client.step(id, x[0, 0], id % 2, sequence_start=True) for id in range(1, 9)))
        for k in range(1, 12):  # 1 and 2 go on
            await asyncio.sleep(1)
            await asyncio.gather(*(client.step(id, x[k, 0], id % 2) for id in (1, 2)))
        assert live(client) == live(client, 1) == 2
        callers = [hosted.sequences.cluster.caller for hosted in client.gateways]
        assert [sorted(caller.table.rows) for caller in callers] == [[2], [1]], "rows are forgotten with their streams"
        for id, gateway in ((3, 0), (3, 1), (4, 0)):
            again = client.send(x[1:2, 0], gateway, sequence_id=id)
            await refused("NOT_FOUND", again, MUST_START.format(id), f"sequence {id} expired after 5 s idle")
        await client.step(3, x[5, 0], 1, sequence_start=True)  # a new beginning
        await client.step(3, x[6, 0], 1, sequence_end=True)
        await refused("INVALID_ARGUMENT", client.send(x[:1, 0], 1, sequence_id=3), "was ended by its client")

    simulate(test, gateways=2, options=Options(idle_timeout=5.0))


def test_a_sequence_whose_gateway_is_gone_ends_too(simulate, x):  # noqa: F811
    async def test(client, world):
        marked(client)
        await client.step(1, x[0, 0], 1, sequence_start=True)
        await client.step(2, x[0, 0], 0, sequence_start=True)
        client.gateways[1].sequences.watch.end()
        for k in range(1, 16):
            await asyncio.sleep(1)
            await client.step(2, x[k, 0], 0)
        assert live(client) == 1
        await refused("NOT_FOUND", client.send(x[:1, 0], 0, sequence_id=1), "sequence 1 expired after 3 s idle")

    simulate(test, gateways=2, options=Options(idle_timeout=3.0))


def test_the_streams_of_programs_have_no_idle_limit(simulate, x):  # noqa: F811
    async def test(client, world):
        program = await world.caller(99)
        await program.open(["a"])
        await program.step(["a"], [x[0, :1]])
        marked(client)
        await client.step(1, x[0, 0], sequence_start=True)
        await asyncio.sleep(30)
        assert live(client) == 0
        assert (await program.steps_done(["a"])).tolist() == [1]

    simulate(test, options=Options(idle_timeout=2.0))


def test_an_idle_sequence_of_a_shard_that_was_restored_ends(simulate, x):  # noqa: F811
    async def test(client, world):
        marked(client)
        await asyncio.gather(*(client.step(id, x[0, 0], sequence_start=True) for id in range(1, 7)))
        await asyncio.sleep(2)
        world.crash("a-0")
        await asyncio.sleep(30)
        assert live(client) == 0
        await refused("NOT_FOUND", client.send(x[:1, 0], 0, sequence_id=1), "expired after 4 s idle")

    simulate(test, actors=1, options=Options(idle_timeout=4.0))


def test_the_most_sequences(simulate, x):  # noqa: F811
    async def test(client, world):
        marked(client)
        for id in range(1, 5):
            await client.step(id, x[0, 0], id % 2, sequence_start=True)
            await asyncio.sleep(1.5)  # for the other gateway, to count it
        for gateway in (0, 1):
            more = client.send(x[:1, 0], gateway, sequence_id=9, sequence_start=True)
            text = "sequence 9 can't start: 'words' has 4 live sequences of at most 4"
            fault = await refused("UNAVAILABLE", more, text)
            assert fault.retry_after > 0
        await client.step(2, x[0, 0], 0, sequence_start=True)  # a live one may begin again
        await client.step(2, x[1, 0], 0, sequence_end=True)
        at_once = [client.send(x[:1, 0], 0, sequence_id=id, sequence_start=True) for id in (20, 21)]
        done = await asyncio.gather(*at_once, return_exceptions=True)
        assert [isinstance(d, Exception) for d in done] == [False, True]
        assert live(client) == 4

    simulate(test, gateways=2, options=Options(max_sequences=4))


def test_a_request_that_ended_its_sequence_may_come_again(simulate, x):  # noqa: F811
    async def test(client, world):
        marked(client)
        for id, last in ((1, x[1, 0]), ("two", x[1:4, 0])):  # a step, and a chunk
            await client.step(id, x[0, 0], 0, sequence_start=True, step_index=0)
            told = await client.step(id, last, 0, sequence_end=True, step_index=1)
            for _ in range(2):
                again = await client.send(last[None], 0, sequence_id=id, sequence_end=True, step_index=1)
                assert np.array_equal(again.outputs[client.output], told.outputs[client.output])
                assert again.parameters == told.parameters
            other = client.send(last[None], 0, sequence_id=id, sequence_end=True, step_index=2)
            await refused("INVALID_ARGUMENT", other, "was ended by its client")
        for _ in range(2):  # START and END in one request
            reply = await client.send(x[:1, 0], 0, sequence_id=5, sequence_start=True, sequence_end=True, step_index=0)
            assert reply.parameters["step_index"] == 0

        # Through another gateway the sequence began anew, and ended at the same index: its answer is another one.
        await client.step(1, x[7, 0], 1, sequence_start=True, step_index=0)
        stale = client.send(x[1:2, 0], 0, sequence_id=1, sequence_end=True, step_index=3)
        await refused("FAILED_PRECONDITION", stale, "sequence 1 expects step_index 1, got 3")
        await client.step(1, x[8, 0], 1, sequence_end=True, step_index=1)
        again = client.send(x[8:9, 0], 0, sequence_id=1, sequence_end=True, step_index=1)
        await refused("INVALID_ARGUMENT", again, "was ended by its client")

    simulate(test, gateways=2)


def test_many_sequences_that_ended_together_may_come_again(simulate, x):  # noqa: F811
    async def test(client, world):
        marked(client)
        given = {"SEQUENCE_IDS": np.array([4, 5, 6])}
        begin = {**given, "SEQUENCE_START": np.ones(3, np.bool_), "STEP_INDEX": np.zeros(3, np.int64)}
        await client.send(x[0, :3], 0, begin)
        end = {**given, "SEQUENCE_END": np.ones(3, np.bool_), "STEP_INDEX": np.ones(3, np.int64)}
        told = await client.send(x[1, :3], 0, end)
        again = await client.send(x[1, :3], 0, end)
        assert np.array_equal(again.outputs[client.output], told.outputs[client.output])

    simulate(test)
