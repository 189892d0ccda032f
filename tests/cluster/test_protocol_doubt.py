"""Streams whose gateway and actor ended together: nobody knows whether answered steps are gone, so the next caller is
told, until a call says the step index."""

import asyncio
import sys

import numpy as np
import pytest
from histories import Lone
from simulated import World, in_virtual_time, mixed

from fastrnn.errors import StateError, StreamError
from fastrnn.ray.words import StepsLost, shards_of

pytestmark = pytest.mark.any_isa
QUIET = dict(loss=0, duplicates=0, shards=1, actors=1, checkpoint_seconds=1e6)
ONE = np.ones(1, np.uint64)


def simulated(test):
    def ran():
        in_virtual_time(test)

    ran.__name__, ran.__doc__ = test.__name__, test.__doc__
    return ran


async def flushed(world):
    """Checkpoints that are kept hold everything so far."""
    for process in world.processes.values():
        for _ in range(2):
            for own in process.host.owned.values():
                own.dirty = True
            await process.flush(list(process.host.owned))


async def orphaned(loop, callers=1, **options):
    """A stream 1 of which five steps were answered and the checkpoint has three; its caller and its actor are gone.

    (world, what the lone stream answers, other callers)
    """
    world = World(1, loop, **(QUIET | options))
    first, *others = [await world.caller(k + 1) for k in range(1 + callers)]
    await first.open([1])
    lone = Lone()
    lone.open(1)
    for k in range(5):
        (out,) = await first.step([1], [ONE])
        assert out == lone.step(1, ONE)
        if k == 2:
            await flushed(world)
    world.leave(first)
    world.crash("a-0")
    return world, lone, others


async def told(caller, at=3, **call):
    with pytest.raises(StepsLost, match=f"1: from {at} on") as caught:
        await caller.step([1], [ONE], **call)
    assert caught.value.missing == {1: range(at, sys.maxsize)}


async def goes_on(caller, lone, at=3):
    """With the index of the lone stream's step `at`, and without one after that."""
    state = lone.state[1][at]
    (out,) = await caller.step([1], [ONE], index=np.array([at]))
    assert out == (state := mixed(state, ONE))
    (out,) = await caller.step([1], [ONE])
    assert out == mixed(state, ONE)


@simulated
async def test_a_stream_whose_caller_and_actor_ended_together_is_not_stepped_without_an_index(loop):
    world, lone, (other,) = await orphaned(loop)
    await told(other)
    await told(other, lengths=np.array([1]))
    await told(other, index=np.array([5]))  # a client that counts: its steps 3 and 4 are gone
    assert (await other.steps_done([1])).tolist() == [3]
    await goes_on(other, lone)
    world.end()


@simulated
async def test_calls_that_were_sent_ahead_are_not_taken_either(loop):
    world, _, (other,) = await orphaned(loop)
    ahead = [asyncio.ensure_future(other.step([1], [ONE])) for _ in range(3)]
    found = await asyncio.gather(*ahead, return_exceptions=True)
    assert [type(error) for error in found] == [StepsLost] * 3
    world.end()


@simulated
async def test_the_next_callers_are_told_until_one_says_the_index(loop):
    world, lone, (second, third, fourth) = await orphaned(loop, callers=3)
    for other in (second, third, second):
        await told(other)
    await goes_on(third, lone)
    (out,) = await fourth.step([1], [ONE])  # all steps that count are here
    state = lone.state[1][3]
    for _ in range(3):
        state = mixed(state, ONE)
    assert out == state
    world.end()


@simulated
async def test_a_further_loss_does_not_forget_that_a_stream_is_in_doubt(loop):
    """The caller that was told ends, too, or lives; the shard is restored, or handed over."""
    world, lone, (second, third, fourth) = await orphaned(loop, callers=3, actors=2)
    await told(second)
    world.crash("a-0")
    await told(second)
    world.leave(second)
    world.crash("a-0")
    await told(third)
    before = world.processes["a-0"]
    assert await before.run(before.host.hand_over(0))
    world.owner = np.array([1])
    await told(third)
    await told(fourth)
    await goes_on(fourth, lone)
    world.end()


@simulated
async def test_who_has_said_the_index_goes_on_after_a_further_loss(loop):
    world, lone, (second, third) = await orphaned(loop, callers=2)
    await told(second)
    await goes_on(second, lone)
    world.crash("a-0")  # the checkpoint is from before the index was said
    state = lone.state[1][3]
    for _ in range(3):
        state = mixed(state, ONE)
    (out,) = await second.step([1], [ONE])
    assert out == state
    await flushed(world)
    world.crash("a-0")
    (out,) = await third.step([1], [ONE])  # `second` lives, and says that nothing is gone
    assert out == mixed(state, ONE)
    world.end()


@simulated
async def test_a_loss_that_a_caller_has_not_told_yet_is_told_by_the_next_one(loop):
    """The first caller could not keep all inputs, and finds that out before its own callers do."""
    world = World(1, loop, **(QUIET | dict(lease=3.0, replay_steps=2)))
    first, second = await world.caller(1), await world.caller(2)
    await first.open([1])
    for _ in range(5):
        await first.step([1], [ONE])
    world.crash("a-0")
    await asyncio.sleep(20)
    assert first.counts["lost_steps"] == 5
    await told(second, at=0)
    with pytest.raises(StepsLost, match="1: "):
        await first.step([1], [ONE])
    (out,) = await second.step([1], [ONE], index=np.array([0]))
    assert out == mixed(np.zeros(1, np.uint64), ONE)
    world.end()


@simulated
async def test_a_caller_that_lives_and_lacks_nothing_leaves_no_doubt(loop):
    """Its steps are all in checkpoints, so it has nothing to look after; the stream changes hands after a crash."""
    world = World(1, loop, **(QUIET | dict(lease=3.0)))
    first, second = await world.caller(1), await world.caller(2)
    await first.open([1])
    lone = Lone()
    lone.open(1)
    for _ in range(3):
        await first.step([1], [ONE])
        lone.step(1, ONE)
    await flushed(world)
    await asyncio.sleep(10)
    assert not first.log.entries
    for caller in (second, first):
        world.crash("a-0")
        (out,) = await caller.step([1], [ONE])
        assert out == lone.step(1, ONE)
        await flushed(world)
    world.end()


@simulated
async def test_the_end_of_a_cluster_does_not_settle_a_doubt(loop):
    """Shards are given up for all callers while the one that had the stream is gone."""
    world, lone, (second, third) = await orphaned(loop, callers=2)
    await second.open([2])  # the shard is restored
    for _ in range(2):
        world.processes["a-0"].host.let_go()
        await flushed(world)
        world.crash("a-0")
        await told(second)
    await goes_on(second, lone)
    world.processes["a-0"].host.let_go()
    await flushed(world)
    world.crash("a-0")
    await third.step([1], [ONE])  # in order: `second` was let go after its last step
    world.leave(third)
    world.crash("a-0")
    await told(second, at=5)  # the checkpoints say that nobody has the stream, and `third` had it
    world.end()


@simulated
async def test_who_ends_a_cluster_looks_first_whether_its_shards_were_restored(loop):
    world = World(1, loop, **(QUIET | dict(lease=1e9)))
    caller = await world.caller(1)
    caller.beat_seconds = 1e6
    await caller.open([1])
    await caller.step([1], [ONE])
    world.crash("a-0")
    await caller.look_after()
    assert (await caller.steps_done([1])).tolist() == [1]
    world.end()


@simulated
async def test_wrong_indexes_of_a_stream_in_doubt_take_nothing(loop):
    world, lone, (other,) = await orphaned(loop)
    for wrong in (0, 4, 9):
        await told(other, index=np.array([wrong]))
    (again,) = await other.step([1], [ONE], index=np.array([2]))  # the last answer is kept
    assert again == lone.state[1][3]
    await told(other)
    await goes_on(other, lone)
    with pytest.raises(StreamError, match="expects step_index 5, got 3"):
        await other.step([1], [ONE], index=np.array([3]))
    world.end()


@simulated
async def test_the_steps_of_a_stream_are_counted_once_its_caller_has_sent_again_what_its_shard_lacks(loop):
    world = World(1, loop, **(QUIET | dict(lease=5.0)))
    first, second = await world.caller(1), await world.caller(2)
    await first.open([1])
    await flushed(world)
    for _ in range(5):
        await first.step([1], [ONE])
    world.crash("a-0")
    assert (await second.steps_done([1])).tolist() == [5]
    world.end()


@simulated
async def test_a_wrong_index_is_named_with_its_own_stream(loop):
    world = World(1, loop, **QUIET)
    caller = await world.caller(1)
    await caller.open([1, 2])
    two = np.ones(2, np.uint64)
    await caller.step([1, 2], [two])
    with pytest.raises(StreamError, match="stream 2 expects step_index 1, got 5"):
        await caller.step([1, 2], [two], index=np.array([1, 5]))
    world.end()


@simulated
async def test_a_stream_is_not_taken_for_a_later_one_of_its_id(loop):
    """A client ends its sequence and starts it again. The checkpoint has the former one; caller and actor are gone."""
    world = World(1, loop, **QUIET)
    first, second = await world.caller(1), await world.caller(2)
    await first.open([1])
    for _ in range(3):
        await first.step([1], [ONE])
    await flushed(world)
    await first.close([1])
    await first.open([1])
    for _ in range(3):
        await first.step([1], [ONE + ONE])
    world.leave(first)
    world.crash("a-0")
    with pytest.raises((StepsLost, StateError)):
        await second.step([1], [ONE], index=np.array([3]))
    await told(second, at=0)
    world.end()


@simulated
async def test_ids_that_are_new_are_opened_without_a_checkpoint(loop):
    world = World(1, loop, **QUIET)
    caller = await world.caller(1)
    for id in range(3):
        await caller.open([id])
        await caller.close([id])
    assert not world.store.files
    await caller.open([1])
    await caller.close([1])
    files = len(world.store.files)
    assert files == 2
    await caller.open([1, 7])
    assert world.processes["a-0"].host.counts["checkpoints"] == 4
    world.end()


@simulated
async def test_who_asks_for_a_stream_that_was_closed_meanwhile_does_not_ask_for_another_one(loop):
    """The row of a closed stream was used again, for a stream of another actor, which was asked for ever."""
    world = World(1, loop, **(QUIET | dict(shards=2, actors=2)))
    caller = await world.caller(1)
    ids = [id for k in range(2) for id in range(50) if shards_of([id], 2)[0] == k]
    there, elsewhere = ids[0], ids[-1]
    await caller.open([there])
    row = caller.table.rows[there]
    world.processes["a-0"].reachable = False
    asks = asyncio.ensure_future(caller.sync([there]))
    await asyncio.sleep(1)
    closes = asyncio.ensure_future(caller.close([there]))
    await asyncio.sleep(5)
    caller.table.reuse(caller.log.kept)
    await caller.open([elsewhere])
    assert caller.table.rows[elsewhere] != row
    world.processes["a-0"].reachable = True
    await asyncio.wait_for(asyncio.gather(asks, closes), 100)
    await asyncio.sleep(10)
    caller.table.reuse(caller.log.kept)
    await caller.open([there])
    assert caller.table.rows[there] == row, "nobody waits any more"
    world.end()
