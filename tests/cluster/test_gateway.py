"""Sequences of the Open Inference Protocol as streams of a cluster: gateways in simulated time, without Ray."""

import asyncio
import random

import numpy as np
import pytest
from simulated import Clock, World

from fastrnn.ray.deployment import UNARY
from fastrnn.ray.engine import PoolEngine, sides_of
from fastrnn.ray.hosted import ClusterHosted
from fastrnn.serving.server.engine import Engine
from fastrnn.serving.server.faults import Fault
from fastrnn.serving.server.grpc import methods_of
from fastrnn.serving.server.hosted import Request
from fastrnn.serving.server.limits import Limits
from fastrnn.serving.server.options import Options

pytestmark = pytest.mark.any_isa
QUIET = dict(loss=0, duplicates=0)
MUST_START = "inference request for sequence {} to model 'words' must specify the START flag"


class Handle:
    """A StreamCluster over a simulated world."""

    name = "simulated"

    def __init__(self, model, caller):
        self.model, self.caller = model, caller
        self.inputs, self.outputs = sides_of(model)

    async def _ready(self):
        return self.caller


class Client:
    """Sends requests to gateways in turn, and compares answers with those of lone streams."""

    def __init__(self, model, gateways):
        self.model, self.gateways, self.lone = model, gateways, {}
        self.input = model.inputs[0].name
        self.output = model.outputs[0].name

    async def send(self, x, gateway=0, inputs=None, **parameters):
        given = {self.input: np.asarray(x, np.float32), **(inputs or {})}
        return await self.gateways[gateway].infer(Request("words", "", "", parameters, given, (), "test"))

    async def step(self, id, x, gateway=0, **parameters):
        """[F] is a step, [T, F] a chunk."""
        if parameters.get("sequence_start"):
            self.lone[id] = self.model.stream()
        lone = self.lone[id]
        reply = await self.send(x[None], gateway, sequence_id=id, **parameters)
        first = lone.steps_done
        want = lone.step(x) if x.ndim == 1 else lone.push(x)
        assert np.array_equal(reply.outputs[self.output][0], want), f"{id!r}: other bits at step {first}"
        assert reply.parameters == {"sequence_id": id, "step_index": first, "steps_done": lone.steps_done}
        return reply


@pytest.fixture
def simulate(model):
    """simulate(test, gateways=1, options, **world): run test(client, world) in virtual time."""

    def run(test, gateways=1, options=None, seed=1, **settings):
        loop = Clock()

        async def main():
            world = World(seed, loop, engine=lambda: PoolEngine(model), **(QUIET | settings))
            hosted = []
            for k in range(gateways):
                handle = Handle(model, await world.caller(k + 1))
                hosted.append(ClusterHosted("words", {1: handle}, options or Options()))
            try:
                await asyncio.wait_for(test(Client(model, hosted), world), 2000)
                for one in hosted:
                    sequences = one.sequences
                    assert (len(sequences._open), len(sequences._last), sequences._due) == (0, 0, []), "left over"
            finally:
                world.end()
                for one in hosted:
                    for task in one.sequences._tasks:
                        task.cancel()  # after a failure it would wait for dead processes
                    await one.close()

        try:
            asyncio.set_event_loop(loop)
            loop.run_until_complete(main())
        finally:
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()
            asyncio.set_event_loop(None)

    return run


async def refused(code, work, *texts):
    with pytest.raises(Fault) as caught:
        await work
    assert caught.value.code == code, caught.value
    for text in texts:
        assert text in str(caught.value)
    return caught.value


def test_requests_of_many_sequences_share_a_call(simulate, x):
    async def test(client, world):
        calls = []
        carry = world.call
        world.call = lambda actor, method, *args: calls.append(method) or carry(actor, method, *args)
        for caller in world.callers:
            caller.transport = world
        for k in range(4):
            ids = [5, "5", *range(100, 120)]
            await asyncio.gather(
                *(client.step(id, x[k, i], sequence_start=k == 0) for i, id in enumerate(ids)),
                client.step("chunks", x[3 * k : 3 * k + 3, 22], sequence_start=k == 0),
            )
        assert calls.count("step") == 8, "a call of steps and one of chunks, each tick"
        lane = client.gateways[0].sequences.lane
        assert (lane.ticks, lane.requests, lane.steps) == (4, 4 * 23, 4 * 22 + 12)

    simulate(test, shards=1, actors=1)


def test_any_gateway_answers_any_sequence(simulate, x):
    async def test(client, world):
        for k in range(12):
            flags = {"sequence_start": k == 0, "sequence_end": k == 11}
            await asyncio.gather(*(client.step(id, x[k, id], (k + id) % 2, **flags) for id in (1, 2, 3)))
        for k in (0, 1):
            await refused("INVALID_ARGUMENT", client.send(x[:1, 0], k, sequence_id=1), MUST_START.format(1), "ended")
        await client.step(4, x[0, 0], 0, sequence_start=True)
        await client.step(4, x[1, 0], 0)
        await client.step(4, x[2, 0], 1, sequence_start=True)  # again, elsewhere: the first gateway knew another stream
        await client.step(4, x[3, 0], 0)
        await client.step(4, x[4, 0], 0, sequence_start=True, step_index=0)
        await client.step(4, x[5, 0], 1, sequence_end=True)
        await refused("INVALID_ARGUMENT", client.send(x[:1, 0], 0, sequence_id=4), MUST_START.format(4))

    simulate(test, gateways=2)


def test_one_bad_request_leaves_those_of_its_tick_alone(simulate, x):
    async def test(client, world):
        for id in range(1, 6):
            await client.step(id, x[0, id], sequence_start=True, step_index=0)
        again = client.send(x[0, 1][None], sequence_id=1, step_index=0)
        wrong = client.send(x[0, 2][None], sequence_id=2, step_index=7)
        never = client.send(x[0, 2][None], sequence_id="2")
        late = client.send(x[0, 3][None], sequence_id=9, sequence_start=True, step_index=3)
        good = [client.step(4, x[1, 4]), client.step(5, x[1, 5], step_index=1), client.step(3, x[1:4, 3])]
        found = await asyncio.gather(again, wrong, never, late, *good, return_exceptions=True)
        assert found[0].parameters == {"sequence_id": 1, "step_index": 0, "steps_done": 1}
        assert np.array_equal(found[0].outputs[client.output][0], client.model.stream().step(x[0, 1]))
        codes = ["FAILED_PRECONDITION", "INVALID_ARGUMENT", "FAILED_PRECONDITION"]
        assert [f.code for f in found[1:4]] == codes
        assert str(found[1]) == "sequence 2 expects step_index 1, got 7"
        assert MUST_START.format("2") in str(found[2])
        assert "never started" in str(found[2])
        assert str(found[3]) == "sequence 9 expects step_index 0, got 3"
        assert not [f for f in found[4:] if isinstance(f, BaseException)], found[4:]
        await client.step(2, x[1, 2], step_index=1)

    simulate(test)


def test_many_sequences_in_a_request(simulate, x):
    async def test(client, world):
        ids = np.array([3, 4, 5], np.int64)
        starts, ends = np.ones(3, np.bool_), np.array([False, True, False])
        lone = [client.model.stream() for _ in ids]

        async def send(k, gateway=0, **inputs):
            reply = await client.send(x[k, :3], gateway, inputs={"SEQUENCE_IDS": ids, **inputs})
            want = np.stack([s.step(x[k, i]) for i, s in enumerate(lone)])
            assert np.array_equal(reply.outputs[client.output], want)
            assert reply.outputs["STEP_INDEX"].tolist() == [k] * 3

        await send(0, SEQUENCE_START=starts)
        await send(1, STEP_INDEX=np.full(3, 1))
        wrong = {"SEQUENCE_IDS": ids, "STEP_INDEX": np.array([2, 2, 5])}
        await refused("FAILED_PRECONDITION", client.send(x[2, :3], inputs=wrong), "5 expects step_index 2, got 5")
        strange = {"SEQUENCE_IDS": np.array([3, 8])}
        await refused("INVALID_ARGUMENT", client.send(x[2, :2], inputs=strange), MUST_START.format(8))
        await send(2, 1, SEQUENCE_END=ends)  # none of the refused steps was taken
        await refused("INVALID_ARGUMENT", client.send(x[3, :3], inputs={"SEQUENCE_IDS": ids}), MUST_START.format(4))
        reply = await client.send(x[3, :1], sequence_id=3)
        assert reply.parameters["step_index"] == 3

    simulate(test, gateways=2)


def test_the_queue_the_timeout_and_the_end_of_a_client(simulate, x):
    async def test(client, world):
        await client.step(1, x[0, 0], sequence_start=True)
        full = [asyncio.ensure_future(client.step(1, x[k, 0])) for k in range(1, 4)]
        await asyncio.sleep(0)
        fault = await refused("RESOURCE_EXHAUSTED", client.send(x[4:5, 0], sequence_id=1), "2 requests waiting")
        assert fault.retry_after
        room = asyncio.ensure_future(client.gateways[0].sequences.room(1))
        await asyncio.sleep(0)
        assert not room.done()
        await asyncio.gather(*full, room)
        first = asyncio.ensure_future(client.step(1, x[4, 0]))
        await asyncio.sleep(0)
        gone = asyncio.ensure_future(client.send(x[9:10, 0], sequence_id=1))
        await asyncio.sleep(0)
        gone.cancel()  # its turn has not come: the sequence goes on without it
        await first
        first = asyncio.ensure_future(client.step(1, x[5, 0]))
        await asyncio.sleep(0)
        await refused("DEADLINE_EXCEEDED", client.send(x[9:10, 0], sequence_id=1, timeout=1), "state is unchanged")
        await first
        await client.step(1, x[6, 0])
        client.gateways[0].sequences.draining = True
        await refused("UNAVAILABLE", client.send(x[:1, 0], sequence_id=2, sequence_start=True), "draining")
        await client.step(1, x[7, 0], sequence_end=True)

    simulate(test, options=Options(queue_size=2))


def test_strict_sequences(simulate, x):
    async def test(client, world):
        await client.step(1, x[0, 0], 0, sequence_start=True)
        for k in (0, 1):
            again = client.send(x[:1, 0], k, sequence_id=1, sequence_start=True)
            await refused("ALREADY_EXISTS", again, "sequence 1 is live already")
        await client.step(1, x[1, 0], 1)

    simulate(test, gateways=2, options=Options(strict_sequences=True))


def test_lost_steps_are_named(simulate, x):
    """No checkpoint, and a gateway that keeps two steps: a crash loses the rest, and clients are told which."""

    async def test(client, world):
        await asyncio.gather(*(client.step(id, x[0, 0], sequence_start=True) for id in (1, 2)))
        for k in range(1, 5):
            await client.step(1, x[k, 0])
        world.crash("a-0")
        lost, _ = await asyncio.gather(
            refused("FAILED_PRECONDITION", client.send(x[5:6, 0], sequence_id=1), "sequence 1 expects step_index 0"),
            client.step(2, x[1, 0]),
        )
        assert "steps 0 to 4 are lost" in str(lost)
        assert "send them again from step_index 0" in str(lost)
        client.lone[1] = client.model.stream()
        for k in range(3):
            await client.step(1, x[k, 0], step_index=k)

    simulate(test, shards=1, actors=1, replay_steps=2, checkpoint_seconds=1e6, lease=1e9)


def test_a_sequence_whose_gateway_and_actor_ended_together(simulate, x):
    async def test(client, world):
        for k in range(5):
            await client.step(1, x[k, 0], 0, sequence_start=k == 0)
            if k == 2:
                for process in world.processes.values():
                    await process.flush([0])
        world.leave(world.callers[0])
        world.crash("a-0")
        many = {"SEQUENCE_IDS": np.array([1])}
        for counted in ({}, {"step_index": 5}):
            lost = client.send(x[5:6, 0], 1, sequence_id=1, **counted)
            await refused("FAILED_PRECONDITION", lost, "expects step_index 3: steps from 3 on may be lost")
        await refused("FAILED_PRECONDITION", client.send(x[5:6, 0], 1, inputs=many), "steps from 3 on may be lost")
        client.lone[1] = client.model.stream()
        client.lone[1].push(x[:3, 0])
        await client.step(1, x[3, 0], 1, step_index=3)
        await client.step(1, x[4, 0], 1)

    simulate(test, gateways=2, shards=1, actors=1, checkpoint_seconds=1e6)


async def repeated(client, id, part, done, reply, gateway, unkept):
    """The last request, sent again."""
    try:
        again = await client.send(part[None], gateway, sequence_id=id, step_index=done)
    except Fault as fault:  # its shard was restored since, and the checkpoint lacks what the gateway has received
        if fault.reason == "steps_lost":
            raise
        assert str(fault) == f"sequence {id} expects step_index {reply.parameters['steps_done']}, got {done}"
        unkept.append(fault)
    else:
        assert np.array_equal(again.outputs[client.output], reply.outputs[client.output])
        assert again.parameters == reply.parameters


@pytest.mark.parametrize("seed", range(48))
def test_random_histories(simulate, x, seed):
    """Messages that get lost, crashes, a second gateway, and clients that count their steps or don't. A gateway that is
    slow to come back may find its streams taken, and its clients are told."""
    rng, gateways = random.Random(seed), 1 + seed % 2
    lost, unkept = [], []

    async def one(client, id):
        life = 0
        while life < 2:
            try:
                await lived(client, id, life)
                life += 1
            except Fault as fault:
                if fault.reason != "steps_lost" or gateways == 1:
                    raise
                lost.append(fault)  # it starts the sequence again

    async def lived(client, id, life):
        done = 0
        for turn in range(rng.randrange(2, 10)):
            counted = {"step_index": done} if rng.random() < 0.5 else {}
            flags = {"sequence_start": not turn} if not turn else {}
            n = rng.choice([0, 0, 1, 3])
            part = x[done + life] if n == 0 else x[done : done + n]
            part = part[3] if n == 0 else part[:, 3]
            where = rng.randrange(gateways)
            reply = await client.step(id, part, where, **counted, **flags)
            if counted and rng.random() < 0.5:
                await repeated(client, id, part, done, reply, rng.randrange(gateways), unkept)
            done += n or 1
            await asyncio.sleep(rng.random() * 0.3)

    async def test(client, world):
        async def trouble():
            for _ in range(10):
                await asyncio.sleep(rng.random() * 2)
                rng.choice([world.fence, world.move, lambda: world.crash(rng.choice(world.actors))])()
                if gateways == 2:
                    world.store_fails = rng.choice([0.0, 0.3])
            world.store_fails = 0.0

        chaos = asyncio.ensure_future(trouble())
        try:
            await asyncio.gather(*(one(client, id) for id in (7, "7", 8, "nine", 10, 11)))
        finally:
            chaos.cancel()

    loss = rng.choice([0, 0.05, 0.1])
    simulate(test, gateways, seed=seed, loss=loss, duplicates=loss, checkpoint_seconds=0.5)
    assert len(lost) + len(unkept) < 12, "both are rare"


def test_what_the_protocol_says_of_it(simulate, model):
    async def test(client, world):
        hosted = client.gateways[0]
        assert hosted.metadata("")["inputs"] == [{"name": client.input, "datatype": "FP32", "shape": [-1, 5]}]
        batching = hosted.config("")["sequence_batching"]
        assert batching["max_sequence_idle_microseconds"] == 60_000_000
        assert batching["oldest"]["max_candidate_sequences"] == 10_000
        x = np.random.default_rng(3).normal(size=(2, 6, 5)).astype(np.float32)
        reply = await client.send(x)  # whole sequences need no cluster
        assert np.array_equal(reply.outputs[client.output], model.run(x)[0])
        engine = Engine({"words": {1: hosted._clusters[1]}}, Options(), Limits(), ClusterHosted)
        assert set(methods_of(engine)) == {*UNARY, "ModelStreamInfer"}
        (told,) = engine.statistics("", "")
        assert (told["name"], told["inference_count"]) == ("words", 0)
        await engine.close()

    simulate(test)
