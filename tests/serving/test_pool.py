"""StreamPool: every stream of it has the bits of a lone stream, whatever is opened, closed and stepped around it."""

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from pool_models import KEPT, MODELS, PACED, data, same, stacked, step_of

import fastrnn


class PoolMachine(RuleBasedStateMachine):
    """Opens, closes, resets, steps, pushes, grows and copies at random; beside each slot lives a lone stream."""

    models = MODELS

    @initialize(choose=st.data(), capacity=st.integers(1, 6))
    def begin(self, choose, capacity):
        self.model = self.models[choose.draw(st.sampled_from(sorted(self.models)))]
        self.pool = self.model.pool(capacity=capacity)
        self.live, self.gone, self.seed, self.chain = {}, [], 0, []

    def slots(self, choose):
        order = choose.draw(st.permutations(sorted(self.live)))
        return order[: choose.draw(st.integers(1, len(order)))]

    def inputs(self, T):
        self.seed += 1
        return data(self.model, T, self.seed)

    @precondition(lambda self: len(self.pool) < self.pool.capacity)
    @rule()
    def open(self):
        slot = self.pool.open()
        assert slot not in self.live
        assert slot not in self.gone
        self.live[slot] = self.model.stream()

    @precondition(lambda self: len(self.pool) == self.pool.capacity)
    @rule(more=st.integers(0, 5))
    def full(self, more):
        with pytest.raises(fastrnn.StateError, match="open"):
            self.pool.open()
        self.pool.grow(self.pool.capacity + more)

    @precondition(lambda self: self.live)
    @rule(choose=st.data())
    def close(self, choose):
        slot = choose.draw(st.sampled_from(sorted(self.live)))
        self.pool.close(slot)
        del self.live[slot]
        self.gone.append(slot)

    @precondition(lambda self: self.live)
    @rule(choose=st.data())
    def reset(self, choose):
        slot = choose.draw(st.sampled_from(sorted(self.live)))
        self.pool.reset(slot)
        self.live[slot].reset()

    @precondition(lambda self: 0 < len(self.live) < self.pool.capacity)
    @rule(choose=st.data())
    def copy(self, choose):
        slot = choose.draw(st.sampled_from(sorted(self.live)))
        self.live[self.pool.copy(slot)] = self.live[slot].copy()

    @precondition(lambda self: self.live)
    @rule(choose=st.data(), bad=st.booleans())
    def step(self, choose, bad):
        slots = self.slots(choose)
        arrays = [step_of(self.inputs(1), 0) for _ in slots]
        if bad and isinstance(arrays[0], np.ndarray) and arrays[0].dtype == np.float32:
            arrays[0] = arrays[0] * np.float32(np.nan)  # stays with its own stream
        y = self.pool.step(np.array(slots), stacked(arrays))
        for i, (slot, x) in enumerate(zip(slots, arrays, strict=True)):
            mine = tuple(o[i] for o in y) if isinstance(y, tuple) else y[i]
            assert same(self.live[slot].step(x), mine)

    @precondition(lambda self: self.live)
    @rule(choose=st.data())
    def flush(self, choose):
        slot = choose.draw(st.sampled_from(sorted(self.live)))
        lone = self.live[slot]
        if lone.steps_done == 0:
            return
        try:
            rest = lone.flush()
        except fastrnn.StreamError:  # its state was set before its first step: its input without time is not known
            with pytest.raises(fastrnn.StreamError, match="flush before the first step"):
                self.pool.flush(slot)
            return
        assert same(rest, self.pool.flush(slot))
        if self.model.delay or self.models is PACED:
            with pytest.raises(fastrnn.StreamError, match="flushed"):
                self.pool.push([slot], [self.inputs(1)])
            state = self.pool.state(slot)
            assert state["steps_done"] == -1
            self.pool.set_state(slot, state)
            self.pool.reset(slot)
            lone.reset()

    @precondition(lambda self: self.live)
    @rule(choose=st.data())
    def push(self, choose):
        slots = self.slots(choose)
        chunks = [self.inputs(choose.draw(st.integers(0, 80))) for _ in slots]
        for slot, chunk, y in zip(slots, chunks, self.pool.push(slots, chunks), strict=True):
            assert same(self.live[slot].push(chunk), y)

    @precondition(lambda self: self.live)
    @rule(choose=st.data())
    def state(self, choose):
        slots = self.slots(choose)
        states = [self.pool.state(s) for s in slots]
        target = slots[0]
        self.pool.set_state(target, states[-1])
        self.live[target].state = states[-1]

    @precondition(lambda self: 0 < len(self.live) < self.pool.capacity)
    @rule(choose=st.data(), into_stream=st.booleans())
    def snapshot(self, choose, into_stream):
        slot = choose.draw(st.sampled_from(sorted(self.live)))
        blob = self.pool.snapshot(slot)
        lone = self.live[slot].copy()
        if into_stream:
            lone = self.model.stream()
            lone.restore(blob)
        self.live[self.pool.restore(blob)] = lone

    @precondition(lambda self: self.live)
    @rule(capacity=st.integers(6, 12))
    def another_process(self, capacity):
        self.increment()
        self.pool = self.model.pool(capacity=max(capacity, len(self.live)))
        self.live = {new: self.live[old] for old, new in self.pool.restore_all(self.chain).items()}
        self.gone, self.chain = [], []

    @precondition(lambda self: self.pool.program is not None)
    @rule()
    def increment(self):
        self.chain.append(self.pool.snapshot_all(since=self.chain[-1] if self.chain else None))

    @precondition(lambda self: self.gone)
    @rule(choose=st.data())
    def stale(self, choose):
        slot = choose.draw(st.sampled_from(self.gone))
        live = sorted(self.live)[:1]
        arrays = [step_of(self.inputs(1), 0) for _ in [*live, slot]]
        assert slot not in self.pool
        for call in (
            lambda: self.pool.step([*live, slot], stacked(arrays)),
            lambda: self.pool.push([*live, slot], [self.inputs(2) for _ in [*live, slot]]),
            lambda: self.pool.state(slot),
            lambda: self.pool.set_state(slot, {}),
            lambda: self.pool.reset(slot),
            lambda: self.pool.close(slot),
            lambda: self.pool.copy(slot),
        ):
            with pytest.raises(fastrnn.StateError, match="was closed"):
                call()

    @invariant()
    def every_state_is_that_of_the_lone_stream(self):
        if not hasattr(self, "pool"):
            return
        assert len(self.pool) == len(self.live)
        assert sorted(self.pool) == sorted(self.live)
        for slot, stream in self.live.items():
            mine, lone = self.pool.state(slot), stream.state
            assert mine.keys() == lone.keys()
            assert all(same(mine[k], lone[k]) for k in lone)
            assert self.pool.steps_done(slot) == stream.steps_done


PoolMachine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestPoolIsManyStreams = PoolMachine.TestCase


class PacedMachine(PoolMachine):
    """The same with models that look ahead or change the rate."""

    models = PACED


PacedMachine.TestCase.settings = settings(PoolMachine.TestCase.settings, max_examples=40)
TestPacedPoolIsManyStreams = PacedMachine.TestCase


class KeptMachine(PoolMachine):
    """The same with every other kind of state."""

    models = KEPT


KeptMachine.TestCase.settings = settings(PoolMachine.TestCase.settings, max_examples=30)
TestPoolOfEveryStateIsManyStreams = KeptMachine.TestCase
