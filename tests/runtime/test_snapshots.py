"""Snapshots: what goes on from one has the same bits; what is no whole one of this model is refused with the reason."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from graph_builder import GraphBuilder
from pool_models import MODELS, data, opened, same, stacked, step_of
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors
from test_model_stream import some, stack
from test_stream_windows import Stack

import fastrnn
from fastrnn.graph.dims import BATCH, TIME
from fastrnn.model import Model
from fastrnn.runtime import snapshots

pytestmark = pytest.mark.any_isa


def taken(name="lstm"):
    """A snapshot of a stream that has taken 7 steps."""
    stream = MODELS[name].stream()
    stream.push(data(MODELS[name], 7, 1))
    return stream, stream.snapshot()


def metadata_of(blob):
    return json.loads(blob[8 : 8 + int.from_bytes(blob[:8], "little")])["__metadata__"]


def changed(blob, metadata=None, tensors=None, checksum=True):
    """The snapshot with other metadata or tensors, its checksum made to fit."""
    meta = metadata_of(blob) | (metadata or {})
    arrays = {k: v for k, v in (load_tensors(blob) | (tensors or {})).items() if v is not None}
    if checksum:
        meta["checksum"] = snapshots._checksum(meta, arrays)
    return save_tensors(arrays, metadata=meta)


class TestTheSameBits:
    @pytest.mark.parametrize("name", sorted(MODELS))
    def test_stream_to_stream_to_slot_and_back(self, name, tmp_path):
        model = MODELS[name]
        stream, blob = taken(name)
        other, pool = Model(model.graph).stream(), Model(model.graph).pool(capacity=9)
        first = pool.open()
        other.push(data(model, 3, 2))  # what it held is replaced
        other.restore(blob)
        slot = pool.restore(blob)
        assert other.steps_done == pool.steps_done(slot) == 7
        assert np.array_equal(other.slab, stream.slab)
        assert np.array_equal(pool.slab[slot & 0xFFFFFF], stream.slab[0])
        path = tmp_path / "a stream.state"
        assert pool.snapshot(slot, path) == path.read_bytes()
        again = model.stream()
        again.restore(path)
        again.restore(str(path))
        chunk = data(model, 50, 3)
        want = stream.push(chunk)
        assert same(other.push(chunk), want)
        assert same(again.push(chunk), want)
        assert same(pool.push([slot, first], [chunk, chunk])[0], want)

    @pytest.mark.parametrize("name", ["lstm", "threaded", "words"])
    def test_streams_in_lock_step(self, name):
        model = MODELS[name]
        a, b = model.stream(batch_size=3), model.stream(batch_size=3)
        one = stacked([data(model, 5, i) for i in range(3)])
        a.push(one)
        b.restore(a.snapshot())
        assert np.array_equal(a.slab, b.slab)
        assert same(a.push(one), b.push(one))

    def test_a_pool_of_nobody(self):
        model = MODELS["lstm"]
        assert model.pool(3).restore_all(model.pool(2).snapshot_all()) == {}

    def test_a_whole_pool(self, tmp_path):
        model = MODELS["two sides"]
        pool, slots = opened(model, 6, 8)
        for n in (6, 4, 1):
            pool.step(slots[:n], stacked([step_of(data(model, 1, i), 0) for i in range(n)]))
        pool.close(slots[2])
        path = tmp_path / "pool"
        pool.snapshot_all(path)
        other = Model(model.graph).pool(capacity=7)
        busy = [other.open(), other.open()]
        where = other.restore_all(path)
        assert set(where) == set(slots.tolist()) - {slots[2]}
        assert len({*where.values(), *busy}) == len(other) == 7
        for old, new in where.items():
            assert other.steps_done(new) == pool.steps_done(old)
            chunk = data(model, 9, old % 97)
            assert same(other.push([new], [chunk])[0], pool.push([old], [chunk])[0])

    def test_a_size_that_the_model_leaves_open_is_in_it(self, published_models):
        model = fastrnn.load(published_models / "silero_vad_v5.onnx", bind={"sr": 16000})
        stream, frames = model.stream(), some(4, 1, 576, seed=2)
        stream.step(frames[0])
        blob = stream.snapshot()
        pool, other, busy = model.pool(capacity=2), model.stream(), model.stream()
        slot = pool.restore(blob)
        other.restore(blob)
        want = stream.step(frames[1])
        assert same(other.step(frames[1]), want)
        assert same(pool.step([slot], frames[1])[0], want)
        busy.step(some(1, 320))
        with pytest.raises(fastrnn.StateError, match=r"sizes \{'size': 576\}, this stream \{'size': 320\}"):
            busy.restore(blob)

    def test_a_stream_that_looks_ahead(self):
        model = Model(Stack().conv(pads=(1, 1)).conv(stride=2, pads=(2, 2)).done())
        for n, cut in ((None, 0), (None, 5), (3, 6), (3, 11)):
            x = some(n or 1, 20, 3) if n else some(20, 3)
            stream, other = model.stream(batch_size=n), Model(model.graph).stream(batch_size=n)
            stream.push(x[..., :cut, :])
            other.restore(stream.snapshot())
            assert same(stream.push(x[..., cut:, :]), other.push(x[..., cut:, :]))
            other.reset()
            other.restore(stream.snapshot())
            assert same(stream.flush(), other.flush())
            other.reset()
            other.restore(stream.snapshot())
            with pytest.raises(fastrnn.StreamError, match="flushed"):
                other.push(x)
        pool, stream = model.pool(capacity=3), model.stream()
        stream.push(some(7, 3))
        slots = [pool.restore(stream.snapshot()), pool.open()]
        pool.flush(slots[1])
        again = model.pool(capacity=3)
        ended = list(again.restore_all(pool.snapshot_all()).values())[1]
        assert same(again.flush(again.slots[0]), stream.flush())
        with pytest.raises(fastrnn.StreamError, match="flushed"):
            again.push([ended], [some(1, 3)])

    def test_its_inputs_without_time_are_in_it(self):
        b = GraphBuilder("with a bias")
        x, who = b.input("x", "float32", BATCH, 3, TIME), b.input("who", "float32", BATCH, 4, 1)
        W = b.constant("W", some(4, 3, 3))
        y = b.add("conv", x, W, strides=(1,), dilations=(1,), pads=(1, 1), groups=1)
        model = Model(b.done(b.add("binary", y, who, fn="add")))
        for n in (None, 2):
            stream, other = model.stream(batch_size=n), model.stream(batch_size=n)
            stream.push((some(*((n,) if n else ()), 5, 3), some(*((n,) if n else ()), 4, 1)))
            other.restore(stream.snapshot())
            if n is None:
                pool = model.pool(capacity=2)
                other = Model(model.graph).stream()
                other.restore(pool.snapshot(pool.restore(stream.snapshot())))
                slot = pool.restore(stream.snapshot())
                assert same(other.flush(), pool.flush(slot))
                other.restore(stream.snapshot())
            assert same(stream.flush(), other.flush())


class TestRefused:
    def refused(self, blob, match, model=None):
        """By a stream and by a pool, with nothing changed."""
        model = model or MODELS["lstm"]
        stream, pool = model.stream(), model.pool(capacity=2)
        stream.push(data(model, 2, 5))
        before = stream.slab.copy()
        for restore in (stream.restore, pool.restore):
            with pytest.raises(fastrnn.StateError, match=match):
                restore(blob)
        assert np.array_equal(stream.slab, before)
        assert stream.steps_done == 2
        assert len(pool) == 0

    def test_every_truncation_and_every_damage(self):
        blob = taken()[1]
        for n in (0, 1, 7, 8, 100, len(blob) // 2, len(blob) - 1):
            self.refused(blob[:n], "not a snapshot, or a truncated or damaged one")
        self.refused(blob + b"\0", "truncated or damaged")
        rng = np.random.default_rng(0)
        for place in rng.integers(0, len(blob), 150):
            bad = bytearray(blob)
            bad[place] ^= 1 << rng.integers(8)
            self.refused(bytes(bad), "snapshot")

    def test_another_model(self):
        self.refused(
            taken("gru")[1], r"belongs to the model 'gru stack' \(fingerprint [0-9a-f]{12}\), not to 'lstm stack'"
        )
        graph = stack("lstm", I=4, H=9)
        weights = dict(graph.constants)
        weights["W0"] = weights["W0"].copy()
        weights["W0"][0, 0] += 1
        self.refused(taken()[1], "belongs to the model", Model(graph.replace(constants=weights)))

    @pytest.mark.parametrize(
        ("text", "match"),
        [
            ("fastrnn snapshot 3", "by a later fastrnn in format 3; this version reads formats 1 to 2"),
            ("fastrnn snapshot 0", "written in format 0"),
            ("fastrnn snapshot 9999999999999999999", "by a later fastrnn"),
            ("fastrnn 1", "not a snapshot: its format is 'fastrnn 1'"),
            ("fastrnn snapshot x", "not a snapshot"),
        ],
    )
    def test_another_format(self, text, match):
        self.refused(changed(taken()[1], {"format": text}), match)

    def test_foreign_files(self, tmp_path):
        self.refused(save_tensors({"a": np.zeros(3)}), "not a snapshot: it has no format of ours")
        MODELS["lstm"].save(tmp_path / "model.fastrnn")
        self.refused((tmp_path / "model.fastrnn").read_bytes(), "not a snapshot: its format is 'fastrnn 1'")
        self.refused(b"PK\3\4 a zip file", "not a snapshot")
        self.refused(None, "bytes or the path of a file, got NoneType")
        self.refused(3, "bytes or the path of a file, got int")
        with pytest.raises(OSError, match="absent"):
            MODELS["lstm"].stream().restore(tmp_path / "absent")

    @pytest.mark.parametrize(
        ("tensors", "match"),
        [
            ({"steps": None}, "malformed"),
            ({"steps": np.array([-1])}, "malformed"),
            ({"steps": np.array([1.0])}, "malformed"),
            ({"steps": np.array(1)}, "malformed"),
            ({"extra": np.zeros((1, 2))}, "malformed"),
            ({"rows": None}, "malformed"),
            ({"rows": np.zeros((1, 2), np.float32)}, "rows of 2 places, of which the states take"),
            ({"rows": np.zeros((2, 2), np.float32)}, "another number of streams"),
            ({"rows": np.zeros((1, 2))}, "malformed"),
            ({"state/more": np.zeros((1, 2), np.float32)}, "'state/more' that is not known"),
            ({"slots": np.array([1, 2])}, "malformed"),
            ({"ended": None}, "malformed"),
            ({"ended": np.zeros(1)}, "malformed"),
            ({"known": np.zeros(1)}, "malformed"),
            ({"known": np.zeros(2, np.bool_)}, "malformed"),
            ({"ended": np.ones(1, bool)}, "looks ahead"),
        ],
    )
    def test_what_is_said_with_a_checksum_that_fits(self, tensors, match):
        self.refused(changed(taken()[1], tensors=tensors), match)

    @pytest.mark.parametrize(
        "states",
        ["[]", "{}", "3", "[[]]", '[["a","","h","h","float32",[2],0,2]]', '[["a","","h","h","float32",[2],-1,18]]',
         '[["a","","h","h","float32",["x"],0,18]]', "[[1,2,3,4,5,6,7,8]]", "[", "twice"],
    )  # fmt: skip
    def test_states_that_are_none(self, states):
        blob = taken()[1]
        if states == "twice":
            own = json.loads(metadata_of(blob)["states"])
            states = json.dumps([own[0], [own[0][0], *own[1][1:]], *own[2:]])
        self.refused(changed(blob, {"states": states}), "malformed")

    @pytest.mark.parametrize("key", ["models", "states", "layers", "bound", "sizes"])
    def test_texts_that_are_none(self, key):
        for text in ("", "[", "[[1]]" if key != "models" else "3", "[" * 100_000, '{"a": 3}'):
            self.refused(changed(taken()[1], {key: text}), "snapshot: ")

    @pytest.mark.parametrize(
        "sizes", ['"size"', '[["size"]]', '[["size",0]]', '[["size",1.5]]', '[["size",3]]', '{"size": 3}']
    )
    def test_sizes_that_are_none(self, sizes):
        stream = MODELS["lstm"].stream()
        with pytest.raises(fastrnn.StateError, match="size"):
            stream.restore(changed(taken()[1], {"sizes": sizes}))

    def test_another_number_of_streams(self):
        model = MODELS["lstm"]
        three, pool = model.stream(batch_size=3), model.pool(capacity=2)
        with pytest.raises(fastrnn.StateError, match="of 1 streams, this stream has 3 rows"):
            three.restore(taken()[1])
        with pytest.raises(fastrnn.StateError, match="of 3 streams"):
            pool.restore(three.snapshot())
        with pytest.raises(fastrnn.StateError, match="restore takes it"):
            pool.restore_all(taken()[1])
        full, slots = opened(model, 3)
        whole = full.snapshot_all()
        with pytest.raises(fastrnn.StateError, match="needs 3 slots, 2 of 2 are free"):
            pool.restore_all(whole)
        with pytest.raises(fastrnn.StateError, match="restore_all takes"):
            pool.restore(whole)
        with pytest.raises(fastrnn.StateError, match="whole pool"):
            model.stream(3).restore(whole)
        with pytest.raises(fastrnn.StateError, match="needs 1 slots, 0 of 3 are free"):
            full.restore(full.snapshot(slots[0]))
        assert len(pool) == 0
        assert len(full) == 3
        twice = changed(whole, tensors={"slots": np.array([5, 5, 6])})
        with pytest.raises(fastrnn.StateError, match="twice"):
            full.restore_all(twice)


KILLED = """
import sys
import fastrnn
pool = fastrnn.load(sys.argv[2]).pool(capacity=3000)
slots = [pool.open() for _ in range(3000)]
while True:
    pool.snapshot_all(sys.argv[1])
    print("written", flush=True)
"""


class TestFiles:
    def test_kill_9_in_the_middle_leaves_a_whole_file(self, tmp_path):
        path = tmp_path / "pool"
        model = Model(stack("lstm", I=4, H=64))
        model.save(tmp_path / "model.fastrnn")
        for i in range(4):
            command = [sys.executable, "-c", KILLED, str(path), str(tmp_path / "model.fastrnn")]
            with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
                assert child.stdout.readline()  # one whole file is there
                time.sleep(0.003 * i)
                os.kill(child.pid, signal.SIGKILL)
            assert len(model.pool(capacity=3000).restore_all(path)) == 3000

    def test_a_failed_write_leaves_the_old_file(self, tmp_path, monkeypatch):
        stream, old = taken()
        path = tmp_path / "state"
        stream.snapshot(path)
        stream.reset()

        def full(descriptor):
            raise OSError(errno.ENOSPC, "no space left")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="no space left") as caught:
            stream.snapshot(path)
        assert caught.value.filename == str(path)  # not the temporary one
        assert [p.name for p in tmp_path.iterdir()] == ["state"]
        assert snapshots.read(path).steps.tolist() == [7]
        assert load_tensors(path.read_bytes()).keys() == load_tensors(old).keys()
