"""Snapshots of another model, and of the same model whose plan keeps its states elsewhere."""

import json

import numpy as np
import pytest
from graph_builder import GraphBuilder
from pool_models import KEPT, MODELS, PACED, data, same
from safetensors.numpy import load as load_tensors
from test_meaning import continues, renamed
from test_model_stream import some, stack
from test_snapshots import changed, metadata_of

import fastrnn
from fastrnn.graph.dims import BATCH, TIME, symbol
from fastrnn.model import Model

pytestmark = pytest.mark.any_isa


def moved(blob, order):
    """The snapshot as a plan with its states in another order would write it."""
    states, rows = json.loads(metadata_of(blob)["states"]), load_tensors(blob)["rows"]
    columns, made, at = [], [], 0
    for k in order(list(range(len(states)))):
        *head, begin, floats = states[k]
        columns.append(rows[:, begin : begin + floats])
        made.append([*head, at, floats])
        at += floats
    tensors = {"rows": np.ascontiguousarray(np.concatenate(columns, 1))}
    return changed(blob, {"states": json.dumps(made)}, tensors)


class TestStatesElsewhere:
    @pytest.mark.parametrize("name", sorted(MODELS | PACED | KEPT))
    def test_in_another_order(self, name):
        model = (MODELS | PACED | KEPT)[name]
        stream, other = model.stream(), model.stream()
        stream.push(data(model, 9, 1))
        other.restore(moved(stream.snapshot(), lambda k: k[::-1]))
        assert np.array_equal(stream.slab, other.slab)
        chunk = data(model, 6, 2)
        assert same(stream.push(chunk), other.push(chunk))

    def test_whole_pools(self):
        model = MODELS["lstm"]
        pool, other = model.pool(4), model.pool(4)
        slots = [pool.open() for _ in range(3)]
        pool.push(slots, [data(model, n, n) for n in (2, 3, 4)])
        new = other.restore_all(moved(pool.snapshot_all(), lambda k: k[::-1]))
        for slot in slots:
            want, got = pool.state(slot), other.state(new[slot])
            assert all(np.array_equal(want[k], got[k]) for k in want)

    def test_one_that_is_gone_is_named(self):
        model = MODELS["lstm"]
        stream = model.stream()
        stream.push(data(model, 3, 1))
        blob = moved(stream.snapshot(), lambda k: k[1:])
        for migrate in (False, True):
            with pytest.raises(fastrnn.StateError, match=r"states that differ: it has none, this model .*cell0\.h \("):
                model.stream().restore(blob, migrate=migrate)

    def test_a_cell_is_found_by_its_weights(self):
        """If a pass changes what comes before a cell, its key is another one; the layer is not."""
        model = MODELS["lstm"]
        stream, other = model.stream(), model.stream()
        stream.push(data(model, 3, 1))
        states = json.loads(metadata_of(stream.snapshot())["states"])
        blob = changed(stream.snapshot(), {"states": json.dumps([[f"{i}", *s[1:]] for i, s in enumerate(states)])})
        other.restore(blob)
        assert np.array_equal(stream.slab, other.slab)
        lost = changed(blob, {"states": json.dumps([[f"{i}", "", *s[2:]] for i, s in enumerate(states)])})
        with pytest.raises(fastrnn.StateError, match="states that differ"):
            other.restore(lost)
        with pytest.warns(fastrnn.FastRNNWarning, match="its states are computed in another way"):
            other.restore(lost, migrate=True)


def other_weights(graph, *names):
    weights = {n: graph.constants[n] * np.float32(1.5) for n in names}
    return graph.replace(constants={**graph.constants, **weights})


class TestOtherWeights:
    def test_a_stream_keeps_its_states_and_its_steps(self):
        old, new = Model(stack("gru")), Model(other_weights(stack("gru"), "W1", "L"))
        stream, other = old.stream(), new.stream()
        stream.push(some(5, 5))
        blob = stream.snapshot()
        with pytest.raises(fastrnn.StateError, match=r"other weights .* node_cell1, node_linear_\d; .*migrate=True"):
            other.restore(blob)
        assert other.steps_done == 0
        with pytest.warns(fastrnn.FastRNNWarning, match=r"other weights or settings in node_cell1, node_linear_\d$"):
            other.restore(blob, migrate=True)
        assert other.steps_done == 5
        by_hand = new.stream()
        by_hand.state = stream.state
        x = some(4, 5, seed=3)
        assert same(other.push(x), by_hand.push(x))

    def test_pools(self, tmp_path):
        old, new = Model(stack("lstm")), Model(other_weights(renamed(stack("lstm")), "v1"))
        pool, other = old.pool(5), new.pool(5)
        slots = [pool.open() for _ in range(3)]
        pool.push(slots, [some(n, 5) for n in (1, 2, 3)])
        path = tmp_path / "pool"
        pool.snapshot_all(path)
        for call in (lambda: other.restore_all(path), lambda: other.restore(pool.snapshot(slots[0]))):
            with pytest.raises(fastrnn.StateError, match="belongs to the model 'lstm stack'"):
                call()
        with pytest.warns(fastrnn.FastRNNWarning, match="other weights or settings in n") as caught:
            found = other.restore_all(path, migrate=True)
        assert len(caught) == 1
        assert [other.steps_done(found[s]) for s in slots] == [1, 2, 3]
        with pytest.warns(fastrnn.FastRNNWarning):
            assert other.steps_done(other.restore(pool.snapshot(slots[2]), migrate=True)) == 3

    def test_layers_in_other_places(self):
        graph = stack("lstm", I=20, H=20)
        order = {f"{k}{i}": f"{k}{1 - i}" for k in ("W", "R", "Wb", "Rb") for i in (0, 1)}
        other = Model(graph.replace(constants={n: graph.constants[order.get(n, n)] for n in graph.constants}))
        stream = Model(graph).stream()
        stream.push(some(3, 20))
        with pytest.raises(fastrnn.StateError, match="the layers node_cell0, node_cell1 are in other places"):
            other.stream().restore(stream.snapshot())
        restored = other.stream()
        with pytest.warns(fastrnn.FastRNNWarning, match="are in other places"):
            restored.restore(stream.snapshot(), migrate=True)
        assert np.array_equal(restored.slab, stream.slab)  # first layer to first layer: the order of the dataflow

    @pytest.mark.parametrize("other", [stack("lstm"), stack("gru", H=21), stack("gru", I=6), MODELS["words"].graph])
    def test_other_states_are_refused_all_the_same(self, other):
        stream = Model(stack("gru")).stream()
        stream.push(some(3, 5))
        new = Model(other).stream()
        if [s.dims for s in new.model.states] == [s.dims for s in stream.model.states]:
            pytest.skip("these states are the same")
        with pytest.raises(fastrnn.StateError, match=r"states that differ: it has .*gru h, .* in their place"):
            new.restore(stream.snapshot(), migrate=True)
        assert new.steps_done == 0

    def test_a_stream_that_looks_ahead_is_none_that_does_not(self):
        old, new = PACED["looks ahead"], MODELS["gru"]
        stream = old.stream()
        stream.push(data(old, 9, 1))
        with pytest.raises(fastrnn.StateError):
            new.stream().restore(stream.snapshot(), migrate=True)

    def test_no_warning_if_nothing_differs(self, recwarn):
        stream, other = MODELS["gru"].stream(), Model(renamed(MODELS["gru"].graph)).stream()
        stream.push(data(MODELS["gru"], 3, 1))
        other.restore(stream.snapshot(), migrate=True)
        assert not recwarn.list


def with_sizes(*names):
    """Two sizes that the first step tells, whose names are another file's business."""
    b, rng = GraphBuilder("open"), np.random.default_rng(4)
    x = b.input("x", "float32", BATCH, TIME, symbol(names[0]))
    z = b.input("z", "float32", BATCH, TIME, symbol(names[1]))
    parts = [b.add("reduce", v, fn=fn, axes=(2,), keepdims=True) for v, fn in ((x, "max"), (z, "min"))]
    seq = b.add("transpose", b.add("concat", *parts, axis=2), perm=(1, 0, 2))
    weights = [b.constant(n, rng.standard_normal(s).astype(np.float32)) for n, s in (("W", (6, 2)), ("R", (6, 6)))]
    spec = fastrnn.graph.cells.CellSpec("rnn", 2, 6)
    y, _ = b.add("cell", seq, *weights, outputs=("y", None), spec=spec)
    return Model(b.done(b.add("transpose", y, perm=(1, 0, 2))))


def test_sizes_are_told_by_their_places():
    old, new = with_sizes("a", "b"), with_sizes("n", "m")  # the order of the names is another one
    assert old.fingerprint == new.fingerprint
    stream, other, lone = old.stream(), new.stream(), new.pool(2)
    stream.step((some(3), some(5)))
    other.restore(stream.snapshot())
    slot = lone.restore(stream.snapshot())
    x = (some(3, seed=1), some(5, seed=2))
    want = stream.step(x)
    assert same(other.step(x), want)
    assert same(lone.step([slot], tuple(v[None] for v in x))[0], want)
    wrong = new.stream()
    wrong.step((some(5), some(3)))
    with pytest.raises(
        fastrnn.StateError, match=r"it has the sizes \{'a': 3, 'b': 5\}, this stream \{'n': 5, 'm': 3\}"
    ):
        wrong.restore(stream.snapshot())


class TestBoundValues:
    def streams(self, *values):
        model = MODELS["two sides"]
        return [model.stream(bind={"who": v}) if v is not None else model.stream() for v in values]

    def test_another_value_is_refused(self):
        model, (one, two) = MODELS["two sides"], (some(1, 6), some(1, 6, seed=1))
        stream, again, other, free = self.streams(one, one.copy(), two, None)
        stream.push(some(4, 4))
        blob = stream.snapshot()
        again.restore(blob)
        free.restore(blob)  # its caller passes the value
        pool = model.pool(2, bind={"who": two})
        for call in (other.restore, pool.restore):
            with pytest.raises(fastrnn.StateError, match=r"input number 1 was bound to another value \(bind=\)"):
                call(blob)
            with pytest.warns(fastrnn.FastRNNWarning, match="bound to another value"):
                call(blob, migrate=True)
        good = model.pool(2, bind={"who": one})
        slot = good.restore(blob)
        x = some(3, 4, seed=5)
        want = stream.push(x)
        assert same(again.push(x), want)
        assert same(good.push([slot], [x])[0], want)

    def test_increments_say_it_too(self):
        model, one = MODELS["two sides"], some(1, 6)
        pool = model.pool(3, bind={"who": one})
        pool.open()
        whole = pool.snapshot_all()
        pool.open()
        more = pool.snapshot_all(since=whole)
        with pytest.raises(fastrnn.StateError, match="bound to another value"):
            model.pool(3, bind={"who": one + 1}).restore_all([whole, more])
        assert len(model.pool(3, bind={"who": one}).restore_all([whole, more])) == 2


def test_formats_of_one_set_of_weights(tmp_path):
    """Arrays, a state dict with and without a list of layers, and what is saved of them."""
    rng = np.random.default_rng(3)
    tensors = {
        f"{kind}_{end}_l0": rng.standard_normal(shape).astype(np.float32) * 0.4
        for kind, shape in (("weight", (24, 3)), ("bias", (24,)))
        for end in ("ih", "hh")
    }
    tensors["weight_hh_l0"] = rng.standard_normal((24, 8)).astype(np.float32) * 0.4
    arrays = {"W": "weight_ih_l0", "R": "weight_hh_l0", "Wb": "bias_ih_l0", "Rb": "bias_hh_l0"}
    models = [
        fastrnn.from_arrays("gru", **{k: tensors[n] for k, n in arrays.items()}),
        fastrnn.load(tensors),
        fastrnn.load({f"gru.{n}": a for n, a in tensors.items()}, layers=["gru:gru"]),
    ]
    models[0].save(tmp_path / "model.fastrnn")
    models.append(fastrnn.load(tmp_path / "model.fastrnn"))
    assert len({m.fingerprint for m in models}) == 1
    assert all(continues(a, b) for a in models for b in models)
    one = replace_one(tensors)
    assert fastrnn.load(one).fingerprint != models[0].fingerprint


def replace_one(tensors):
    """The least change of one weight."""
    some_weight = tensors["weight_hh_l0"].copy()
    some_weight[2, 3] = np.nextafter(some_weight[2, 3], np.float32(9))
    return {**tensors, "weight_hh_l0": some_weight}
