"""Snapshots of a pool that is stepped meanwhile, and increments: they restore what was there, to the last bit."""

import json
import os
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from pool_models import MODELS, PACED, data, opened, same, step_of
from test_model_stream import some, stack

import fastrnn
from fastrnn.model import Model
from fastrnn.runtime import snapshots
from fastrnn.serving import pool_snapshots

pytestmark = pytest.mark.any_isa


@pytest.fixture
def small(monkeypatch):
    """Slices of a few streams."""
    monkeypatch.setattr(pool_snapshots, "SLICE_PLACES", 3)
    monkeypatch.setattr(pool_snapshots, "SLICE_BYTES", 100)


def parts_of(blob):
    return snapshots.read_parts(blob)


def everything(pool, slots=None):
    """slot -> (steps, states) of every stream."""
    return {int(s): (pool.steps_done(s), pool.state(s)) for s in (pool.slots if slots is None else slots)}


def equal(found, wanted):
    assert found.keys() == wanted.keys()
    for slot, (steps, states) in wanted.items():
        assert found[slot][0] == steps
        assert all(same(found[slot][1][k], states[k]) for k in states)


def restored(model, sources, capacity=64):
    """As `everything`, of a new pool, by the slots of the old one."""
    pool = model.pool(capacity=capacity)
    where = pool.restore_all(sources)
    there = everything(pool)
    assert len(pool) == len(where)
    return {old: there[new] for old, new in where.items()}


class TestIncrements:
    @pytest.mark.parametrize("name", [*MODELS, *PACED])
    def test_a_base_and_increments_are_the_pool(self, name, small, tmp_path):
        """Streams are stepped, opened, closed, reset, set, copied and restored between increments."""
        model = (MODELS | PACED)[name]
        rng, pool = np.random.default_rng(5), model.pool(capacity=20)
        slots = [pool.open() for _ in range(11)]
        pool.push(slots, [data(model, 4, i) for i in range(11)])
        chain, token = [pool.snapshot_all()], None
        for turn in range(8):
            some_slots = list(rng.permutation(slots)[: rng.integers(0, 4)])
            pool.push(
                some_slots, [data(model, int(rng.integers(0, 3)), 100 * turn + i) for i in range(len(some_slots))]
            )
            if turn % 2:
                pool.close(slots.pop(int(rng.integers(len(slots)))))
                slots.append(pool.open())
                pool.reset(slots[0])
            if turn == 3:
                pool.close(slots.pop())
                slots += [pool.copy(slots[1]), pool.restore(pool.snapshot(slots[2]))]
                pool.set_state(slots[3], pool.state(slots[4]))
                pool.flush(slots[5])
            if turn < 4:
                chain.append(pool.snapshot_all(since=chain[-1]))
            else:
                chain.append(tmp_path / f"increment {turn}")
                token = pool.snapshot_all(chain[-1], since=token or chain[-2])
                assert isinstance(token, str)
            equal(restored(model, chain), everything(pool))
        joined = b"".join(c if isinstance(c, bytes) else c.read_bytes() for c in chain)
        equal(restored(model, joined), everything(pool))
        assert pool.snapshot_all(since=joined)
        assert token in pool._tokens

    def test_only_what_changed_is_there(self):
        model = MODELS["lstm"]
        pool, slots = opened(model, 50)
        token = pool.snapshot_all(os.devnull)
        pool.step(slots[[3, 7]], some(2, 4))
        pool.close(slots[9])
        (part,) = parts_of(pool.snapshot_all(since=token))
        assert part.slots.tolist() == slots[[3, 7]].tolist()
        assert (part.gone & 0xFFFFFF).tolist() == [9]
        (part,) = parts_of(pool.snapshot_all(since=pool.snapshot_all()))
        assert len(part.slots) == 0
        assert part.gone is None
        pool.state(slots[0]), pool.steps_done(slots[1]), pool.snapshot(slots[2])  # none of these changes a stream
        pool.grow(500)
        (part,) = parts_of(pool.snapshot_all(since=token))
        assert part.slots.tolist() == slots[[3, 7]].tolist()

    def test_a_failed_snapshot_is_none_that_another_can_follow(self, tmp_path):
        pool, _ = opened(MODELS["lstm"], 3)
        with pytest.raises(OSError):
            pool.snapshot_all(tmp_path)
        assert not pool._tokens

    def test_tokens_are_those_of_this_pool_and_not_too_old(self, monkeypatch):
        monkeypatch.setattr(pool_snapshots, "MOST_TOKENS", 2)
        pool, other = MODELS["lstm"].pool(2), MODELS["lstm"].pool(2)
        first = pool.snapshot_all(os.devnull)
        for since in (first, pool.snapshot_all(), "", "x"):
            with pytest.raises(fastrnn.StateError, match="not one of the last 2 snapshots of this pool"):
                other.snapshot_all(since=since)
        second = pool.snapshot_all(os.devnull, since=first)
        assert pool.snapshot_all(since=first)  # its use keeps it
        assert pool.snapshot_all(since=first)
        with pytest.raises(fastrnn.StateError, match="not one of the last 2"):
            pool.snapshot_all(since=second)
        with pytest.raises(fastrnn.StateError, match=r"since=.* got int"):
            pool.snapshot_all(since=3)
        with pytest.raises(fastrnn.StateError, match="since: not a snapshot"):
            pool.snapshot_all(since=b"123")
        with pytest.raises(fastrnn.StateError, match="since=None is not"):
            pool.snapshot_all(since=MODELS["lstm"].stream().snapshot())


class TestRefused:
    def chain(self):
        pool, slots = opened(MODELS["lstm"], 10)
        chain = [pool.snapshot_all()]
        for i in range(2):
            pool.step(slots[:5], some(5, 4) + i)
            chain.append(pool.snapshot_all(since=chain[-1]))
        return chain

    @pytest.mark.parametrize(
        ("order", "match"),
        [
            ([1], "pass that first"),
            ([1, 2], "pass that first"),
            ([0, 2], "is followed by an increment of the snapshot"),
            ([0, 2, 1], "is followed by an increment"),
            ([0, 1, 1], "is followed by an increment"),
            ([0, 0], "followed by a snapshot of all"),
            ([0, 1, 0], "followed by a snapshot of all"),
            ([], "no snapshot at all"),
        ],
    )
    def test_another_order(self, order, match):
        chain, pool = self.chain(), MODELS["lstm"].pool(10)
        for sources in ([chain[i] for i in order], b"".join(chain[i] for i in order)):
            if sources:
                with pytest.raises(fastrnn.StateError, match=match):
                    pool.restore_all(sources)
        with pytest.raises(fastrnn.StateError, match=match):
            pool.restore_all([chain[i] for i in order])
        assert len(pool) == 0

    def test_a_part_is_missing_or_in_another_place(self, small):
        model = MODELS["lstm"]
        pool, _ = opened(model, 10)
        blob, pieces = pool.snapshot_all(), []
        rest = memoryview(blob)
        while len(rest):
            pieces.append(bytes(rest[: snapshots.container.parse_first(rest)[1]]))
            rest = rest[len(pieces[-1]) :]
        assert len(pieces) > 4
        other, target = pool.snapshot_all(), model.pool(10)
        for bad in (pieces[:-1], pieces[1:], pieces[:2] + pieces[3:], [pieces[1], pieces[0], *pieces[2:]],
                    [pieces[0], other[len(pieces[0]) :]], [pieces[0], *pieces], [*pieces, pieces[-1]]):  # fmt: skip
            with pytest.raises(fastrnn.StateError, match=r"missing|truncated"):
                target.restore_all(b"".join(bad))
        with pytest.raises(fastrnn.StateError, match="whole pool, 10 streams: restore_all"):
            target.restore(blob)
        with pytest.raises(fastrnn.StateError, match="whole pool"):
            model.stream().restore(blob)
        assert len(target) == 0
        assert len(target.restore_all(blob)) == 10

    def test_every_byte_counts(self):
        blob, pool = self.chain()[1], MODELS["lstm"].pool(10)
        base = self.chain()[0]
        for i in range(0, len(blob), 7):
            with pytest.raises(fastrnn.StateError):
                pool.restore_all([base, blob[:i] + bytes([blob[i] ^ 4]) + blob[i + 1 :]])
        assert len(pool) == 0

    def test_malformed_parts_with_a_checksum_that_fits(self):
        blob, pool = self.chain()[0], MODELS["lstm"].pool(10)
        for part in ("[]", "3", "{}", '{"snapshot": 1, "number": 0, "last": true}', "{"):
            found = snapshots.container.parse(blob)
            metadata = found.metadata | {"part": part}
            metadata["checksum"] = snapshots._checksum(metadata, found.tensors)
            bad = snapshots.container.join(snapshots.container.chunks(found.tensors, metadata))
            with pytest.raises(fastrnn.StateError, match="malformed"):
                pool.restore_all(bad)

    @pytest.mark.parametrize("gone", [np.array([-1]), np.array([0.0]), np.zeros((1, 1), np.int64)])
    def test_places_that_are_none(self, gone):
        base, blob = self.chain()[:2]
        found = snapshots.container.parse(blob)
        metadata, tensors = dict(found.metadata), {**found.tensors, "gone": gone}
        metadata["checksum"] = snapshots._checksum(metadata, tensors)
        bad = snapshots.container.join(snapshots.container.chunks(tensors, metadata))
        with pytest.raises(fastrnn.StateError, match="gone"):
            MODELS["lstm"].pool(10).restore_all([base, bad])

    def test_too_few_free_slots_open_none(self, small):
        chain = self.chain()
        pool = MODELS["lstm"].pool(12)
        kept = [pool.open() for _ in range(3)]
        with pytest.raises(fastrnn.StateError, match="needs 10 slots, 9 of 12 are free"):
            pool.restore_all(chain)
        assert pool.slots.tolist() == kept

    def test_a_part_that_fails_closes_what_was_opened(self, small, monkeypatch):
        model = MODELS["lstm"]
        source, pool = opened(model, 10)[0].snapshot_all(), model.pool(10)
        calls = []

        def fails(*given):
            calls.append(given)
            if len(calls) == 3:
                raise MemoryError
            return opens(*given)

        opens = pool_snapshots._open
        monkeypatch.setattr(pool_snapshots, "_open", fails)
        with pytest.raises(fastrnn.FastRNNMemoryError):
            pool.restore_all(source)
        assert len(calls) == 3
        assert len(pool) == 0

    def test_an_error_in_the_middle_of_a_part_leaves_no_slot_open(self, monkeypatch):
        """As if memory ran out: streams that look ahead keep arrays of their own."""
        model = PACED["biased"]
        pool, slots = opened(model, 5)
        pool.push(slots, [data(model, 4, i) for i in range(5)])
        target, calls = model.pool(5), []

        def fails(*args):
            calls.append(args)
            if len(calls) % 3 == 0:
                raise MemoryError
            return type(target)._set_steps(target, *args)

        monkeypatch.setattr(target, "_set_steps", fails, raising=False)
        for _ in range(2):
            with pytest.raises(fastrnn.FastRNNMemoryError):
                target.restore_all(pool.snapshot_all())
            assert len(target) == 0
        calls[:] = [0, 0]
        with pytest.raises((MemoryError, fastrnn.FastRNNMemoryError)):
            target.restore(pool.snapshot(slots[0]))
        assert len(target) == 0
        monkeypatch.undo()
        assert len(target.restore_all(pool.snapshot_all())) == 5


class TestMeanwhile:
    """Other threads step, open and close streams, and the pool grows."""

    STEPS = 40
    turns = 0  # calls of the thread that steps

    def go_on(self, thread, turns):
        """Wait until the thread has made some calls more."""
        wanted = self.turns + turns
        while self.turns < wanted and thread.is_alive():
            time.sleep(0.0005)

    def world(self, streams=24):
        """A model, the inputs of some streams, and the states and outputs of lone ones after each step."""
        model = Model(stack("gru", I=4, H=16))
        inputs = [some(self.STEPS, 4) * (1 + i) for i in range(streams)]
        states, outputs = [], []
        for x in inputs:
            lone = model.stream()
            states.append([lone.state])
            outputs.append([])
            for t in range(self.STEPS):
                outputs[-1].append(lone.step(x[t]))
                states[-1].append(lone.state)
        return model, inputs, states, outputs

    def stepping(self, pool, inputs, outputs, stop, problems, names):
        """Step streams over and over, each from its beginning to its end; names: slot -> number of its inputs."""
        rng = np.random.default_rng(0)
        slots = [pool.open() for _ in inputs]
        names.update({int(s): i for i, s in enumerate(slots)})
        at = [0] * len(inputs)
        try:
            while not stop.is_set():
                chosen = rng.permutation(len(inputs))[: 1 + rng.integers(len(inputs))]
                for i in [i for i in chosen if at[i] == self.STEPS]:
                    pool.close(slots[i])
                    slots[i], at[i] = pool.open(), 0
                    names[int(slots[i])] = i
                y = pool.step([slots[i] for i in chosen], np.stack([inputs[i][at[i]] for i in chosen]))
                for row, i in zip(y, chosen, strict=True):
                    if not same(row, outputs[i][at[i]]):
                        problems.append(f"stream {i} step {at[i]}")
                    at[i] += 1
                self.turns += 1
        except Exception as error:
            problems.append(repr(error))

    def test_each_stream_of_a_snapshot_is_of_one_moment(self, small):
        """Every stream that is restored has the state of a lone stream after as many steps; increments too."""
        model, inputs, states, outputs = self.world()
        pool, names, problems, stop = model.pool(capacity=24), {}, [], threading.Event()
        thread = threading.Thread(target=self.stepping, args=(pool, inputs, outputs, stop, problems, names))
        thread.start()
        chains = []
        try:
            for _ in range(15):
                self.go_on(thread, 3)
                chain = [pool.snapshot_all()]
                for _ in range(4):
                    chain.append(pool.snapshot_all(since=chain[-1]))
                chains.append(chain)
                pool.grow(pool.capacity + 7)
        finally:
            stop.set()
            thread.join()
        assert problems == []
        middle = 0
        for chain in chains:
            for n in (1, 5):
                there = model.pool(capacity=200)
                where = there.restore_all(chain[:n])
                for old, new in where.items():
                    steps = there.steps_done(new)
                    middle += 0 < steps < self.STEPS
                    wanted = states[names[old]][steps]
                    found = there.state(new)
                    assert all(same(found[k], wanted[k]) for k in wanted)
        assert middle > 20

    def test_a_pool_that_is_closed_writes_no_file(self, small, tmp_path, monkeypatch):
        """Between two slices; nor does a stream of it say what model it was."""
        pool, _ = opened(MODELS["lstm"], 10)
        chunks = snapshots.chunks

        def closes(taken):
            yield from chunks(taken)
            pool.close()

        monkeypatch.setattr(snapshots, "chunks", closes)
        with pytest.raises(fastrnn.StreamError, match="pool was closed"):
            pool.snapshot_all(tmp_path / "pool")
        assert list(tmp_path.iterdir()) == []

    def test_a_pool_that_grows_gives_the_same_bits(self):
        """From kilobytes to megabytes, where its memory begins to be moved."""
        model, inputs, _, outputs = self.world()
        pool, problems, stop = model.pool(capacity=24), [], threading.Event()
        thread = threading.Thread(target=self.stepping, args=(pool, inputs, outputs, stop, problems, {}))
        thread.start()
        try:
            for i in range(200):
                pool.grow(24 + i * i * 5)
                self.go_on(thread, 1)
        finally:
            stop.set()
            thread.join()
        assert problems == []
        assert pool.capacity == 24 + 199 * 199 * 5


class TestGrow:
    @pytest.mark.parametrize("sizes", [(3, 5), (3, 200_000), (200_000, 900_000), (100_000, 100_000)])
    def test_streams_stay_as_they_are(self, sizes):
        model = MODELS["lstm"]
        pool = model.pool(sizes[0])
        slots = [pool.open() for _ in range(3)]
        pool.push(slots, [data(model, 5, i) for i in range(3)])
        pool.close(slots.pop(1))
        before = everything(pool)
        pool.grow(sizes[1])
        equal(everything(pool), before)
        assert pool.slab.shape[0] == pool.capacity == sizes[1]
        more = [pool.open() for _ in range(min(sizes[1] - 2, 1000))]
        assert [s & 0xFFFFFF for s in more[:3]] == [1, 3, 4][: len(more)]
        pool.step(more, np.stack([step_of(data(model, 1, i), 0) for i in range(len(more))]))
        equal(everything(pool, slots), before)

    def test_an_array_of_the_slab_stays_readable(self):
        model = MODELS["lstm"]
        pool, slots = opened(model, 50_000)
        pool.step(slots[:2], some(2, 4))
        row = pool.slab[1]
        before = row.copy()
        pool.grow(3_000_000)
        assert np.array_equal(row, before)
        assert np.array_equal(pool.slab[1], before)
        pool.step(slots[:2], some(2, 4))
        assert np.array_equal(row, before)
        assert not np.array_equal(pool.slab[1], before)

    def test_the_slab_is_moved_not_copied(self):
        """No second copy of it is there, not even for a moment."""
        done = fresh_process(GROWS)
        assert done[0] > 100_000_000
        assert done[1] < 32 << 20


GROWS = """
import resource
import numpy as np, fastrnn
W = np.zeros((3 * 64, 4), "f4"); R = np.zeros((3 * 64, 64), "f4")
pool = fastrnn.from_arrays("gru", W=W, R=R, order="zrh", threads=1).pool(400_000)
slots = np.array([pool.open() for _ in range(pool.capacity)])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
pool.grow(1_000_000)
print(pool.slab[:400_000].nbytes, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10) - before)
"""


def fresh_process(program):
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=100, check=True)
    return list(map(int, done.stdout.split()))


def test_the_bytes_are_the_file(tmp_path):
    pool, _ = opened(MODELS["lstm"], 5)
    token = pool.snapshot_all(tmp_path / "a")
    blob = pool.snapshot_all()
    mine, theirs = parts_of(blob)[0], parts_of(tmp_path / "a")[0]
    assert theirs.part == snapshots.Part(token, 0, True, None)
    assert same(mine.slots, theirs.slots)
    assert json.loads(json.dumps(token)) == token
