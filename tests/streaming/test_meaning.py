"""The name of what a model means: names, order, layout and passes don't change it; everything that changes an answer
does."""

import random
from dataclasses import replace

import numpy as np
import pytest
from graph_builder import GraphBuilder
from pool_models import KEPT, MODELS, PACED, data, same
from test_model_stream import some, stack

import fastrnn
from fastrnn import passes
from fastrnn.graph import Node, Value, validate
from fastrnn.graph.dims import BATCH, TIME
from fastrnn.model import Model

pytestmark = pytest.mark.any_isa
ALL = MODELS | PACED | KEPT


def renamed(graph):
    """Every value, constant and node under another name, the inputs and outputs too."""
    new = {n: f"v{i}" for i, n in enumerate(sorted(graph.values, key=lambda n: n[::-1]))}

    def names(some):
        return tuple(None if n is None else new[n] for n in some)

    nodes = tuple(
        Node(n.op, f"n{i}", names(n.inputs), names(n.outputs), n.attrs) for i, n in enumerate(reversed(graph.nodes))
    )[::-1]
    return validate(
        graph.replace(
            name="other",
            inputs=names(graph.inputs),
            outputs=names(graph.outputs),
            nodes=nodes,
            values={new[n]: Value(new[n], v.dtype, v.dims) for n, v in reversed(graph.values.items())},
            constants={new[n]: a for n, a in reversed(graph.constants.items())},
            states={new[a]: new[b] for a, b in graph.states.items()},
            held=(),
            undecided=(),
        )
    )


def shuffled(graph, seed):
    """The nodes in another order in which each is made before it is read."""
    rng, left, done, order = random.Random(seed), list(graph.nodes), {*graph.inputs, *graph.constants}, []
    late = {o for n in graph.nodes if n.op == "state" for o in n.outputs}
    while left:
        ready = [n for n in left if n.op == "state" or all(i is None or i in done for i in n.inputs)]
        ready = [n for n in ready if n.op != "state" or n.inputs[0] not in late] or ready
        node = rng.choice(ready)
        left.remove(node)
        order.append(node)
        done |= {o for o in node.outputs if o is not None}
    return graph.replace(nodes=tuple(order))


def with_moves(graph):
    """With moves that cancel each other out in front of every node that is no move, and + and * the other way round."""
    nodes, values = [], dict(graph.values)
    for node in graph.nodes:
        inputs = list(node.inputs)
        if node.op == "binary" and node.attrs["fn"] in ("add", "mul"):
            inputs.reverse()
        for i, name in enumerate(inputs):
            if name is None or name in graph.constants or node.op == "state" or not values[name].dims:
                continue
            value = values[name]
            wide, back = f"{node.name}.{i}.wide", f"{node.name}.{i}.back"
            values[wide] = Value(wide, value.dtype, (1, *value.dims, 1))
            values[back] = Value(back, value.dtype, value.dims)
            nodes.append(Node("reshape", wide, (name,), (wide,), {"dims": values[wide].dims}))
            nodes.append(Node("reshape", back, (wide,), (back,), {"dims": value.dims}))
            inputs[i] = back
        nodes.append(replace(node, inputs=tuple(inputs)))
    return validate(graph.replace(nodes=tuple(nodes), values=values))


def continues(old, new, steps=(7, 6)):
    """A snapshot of the one goes on in the other with the same bits."""
    x, rest = (data(old, n, seed) for seed, n in enumerate(steps))
    stream, other = old.stream(), new.stream()
    stream.push(x)
    other.restore(stream.snapshot())
    assert other.steps_done == steps[0]
    return same(stream.push(rest), other.push(rest))


class TestUnchanged:
    @pytest.mark.parametrize("change", [renamed, lambda g: shuffled(g, 1), lambda g: shuffled(g, 2), with_moves])
    @pytest.mark.parametrize("name", sorted(ALL))
    def test_another_file_of_the_same_model(self, name, change):
        model = ALL[name]
        try:
            other = Model(change(model.graph))
        except fastrnn.FastRNNError:
            pytest.skip("not a graph that runs")
        if not other.streamable:
            pytest.skip("the passes don't undo these moves around the cycle")
        assert set(other._core.identity.models) & set(model._core.identity.models)
        assert continues(model, other)

    @pytest.mark.parametrize("left", passes.standard_passes, ids=lambda p: p.__name__)
    @pytest.mark.parametrize("name", sorted(ALL))
    def test_a_release_without_one_of_the_passes(self, name, left, monkeypatch):
        model, graph = ALL[name], SOURCES[name]
        monkeypatch.setattr(passes, "standard_passes", [p for p in passes.standard_passes if p is not left])
        other = Model(graph)
        assert other.fingerprint in Model(model.graph)._core.identity.models
        if other.streamable:
            assert continues(model, other)

    def test_a_product_its_bias_and_its_activation_apart(self):
        graph = stack("gru")
        node = graph.nodes[-1]
        x, W, b = node.inputs
        dims = graph.values[node.outputs[0]].dims
        values = dict(graph.values) | {n: Value(n, "float32", dims) for n in ("p", "q")}
        apart = (
            Node("matmul", "p", (x, W), ("p",)),
            Node("binary", "q", (b, "p"), ("q",), {"fn": "add"}),
            Node("unary", "r", ("q",), node.outputs, {"fn": "tanh", "alpha": 1.0, "beta": 0.0}),
        )
        other = validate(graph.replace(nodes=(*graph.nodes[:-1], *apart), values=values))
        assert Model(other).fingerprint == Model(graph).fingerprint
        assert continues(Model(graph), Model(other))

    def test_biases_of_a_cell_the_other_way_round(self):
        graph = stack("lstm")
        constants = dict(graph.constants)
        for layer in "01":
            constants[f"Wb{layer}"], constants[f"Rb{layer}"] = constants[f"Rb{layer}"], constants[f"Wb{layer}"]
        assert continues(Model(graph), Model(graph.replace(constants=constants)))

    def test_biases_that_are_zero_or_absent(self):
        graph = stack("gru")
        zeros = {n: np.zeros_like(a) if n.startswith("Rb") else a for n, a in graph.constants.items()}
        nodes = tuple(replace(n, inputs=(*n.inputs[:4], None)) if n.op == "cell" else n for n in graph.nodes)
        values = {n: v for n, v in graph.values.items() if not n.startswith("Rb")}
        constants = {n: a for n, a in graph.constants.items() if not n.startswith("Rb")}
        alone = graph.replace(nodes=nodes, values=values, constants=constants)
        assert continues(Model(graph.replace(constants=zeros)), Model(alone))

    def test_the_least_bit_of_a_bias(self):
        """Cells add their biases in float32, where it gets lost: it is another model all the same."""
        graph = stack("lstm")
        for name, other in (("Wb0", "Rb0"), ("Rb1", "Wb1")):
            array = graph.constants[name].copy()
            array[3], large = np.float32(1e-20), graph.constants[other].copy()
            large[3] = np.float32(1e8)
            one = graph.replace(constants={**graph.constants, name: array, other: large})
            nearly = array.copy()
            nearly[3] = np.nextafter(array[3], np.float32(1))
            refused(one, one.replace(constants={**one.constants, name: nearly}))

    def test_time_first_or_batch_first(self):
        assert continues(Model(stack("gru", time_major=True)), Model(stack("gru", time_major=False)))

    def test_states_that_the_caller_threads_or_not(self):
        threaded = MODELS["threaded"].graph
        nodes = tuple(replace(n, inputs=n.inputs[:6]) if n.op == "cell" else n for n in threaded.nodes)
        alone = threaded.replace(nodes=nodes, states={}, inputs=("x",), outputs=threaded.outputs[:1])
        alone = passes.remove_dead_nodes(alone)
        assert continues(MODELS["threaded"], Model(alone))

    def test_outputs_that_show_the_last_states(self):
        graph = stack("lstm", head=False)
        nodes = list(graph.nodes)
        cell = nodes[2]
        nodes[2] = replace(cell, outputs=(cell.outputs[0], "h", "c"))
        values = dict(graph.values) | {n: Value(n, "float32", (BATCH, 20)) for n in "hc"}
        more = validate(graph.replace(nodes=tuple(nodes), values=values, outputs=(*graph.outputs, "h", "c")))
        plain, more = Model(graph), Model(more)
        assert plain.fingerprint == more.fingerprint
        stream, other = plain.stream(), more.stream()
        stream.push(some(5, 5))
        other.restore(stream.snapshot())
        assert same(stream.step(some(5)), other.step(some(5))[0])


def flipped(array, rng):
    """One bit of one element is another one."""
    raw = bytearray(np.ascontiguousarray(array).tobytes())
    raw[rng.integers(len(raw))] ^= 1 << int(rng.integers(8))
    return np.frombuffer(bytes(raw), array.dtype).reshape(array.shape)


def refused(graph, other):
    old, new = Model(graph), Model(other)
    stream = old.stream()
    stream.push(data(old, 3, 0))
    assert not set(old._core.identity.models) & set(new._core.identity.models)
    with pytest.raises(fastrnn.StateError, match=r"belongs to the model"):
        new.stream().restore(stream.snapshot())


class TestChanged:
    @pytest.mark.parametrize("name", sorted(ALL))
    def test_one_bit_of_each_weight(self, name):
        graph, rng = ALL[name].graph, np.random.default_rng(len(name))
        seen = {ALL[name].fingerprint}
        floats = [n for n, a in graph.constants.items() if a.dtype == np.float32]
        for constant in floats * 3:
            other = graph.replace(constants={**graph.constants, constant: flipped(graph.constants[constant], rng)})
            seen.add(Model(other).fingerprint)
        assert len(seen) >= 1 + 2 * len(floats)  # two random bits of three may be the same one

    def test_one_bit_is_refused(self):
        graph, rng = stack("gru"), np.random.default_rng(0)
        for name in graph.constants:
            refused(graph, graph.replace(constants={**graph.constants, name: flipped(graph.constants[name], rng)}))

    def test_two_layers_of_one_shape_exchanged(self):
        graph = stack("lstm", I=20, H=20)
        order = {f"{k}{i}": f"{k}{1 - i}" for k in ("W", "R", "Wb", "Rb") for i in (0, 1)}
        constants = {n: graph.constants[order.get(n, n)] for n in graph.constants}
        refused(graph, graph.replace(constants=constants))

    @pytest.mark.parametrize(
        "change",
        [
            {"linear_before_reset": True},
            {"clip": 3.0},
            {"activations": fastrnn.graph.cells.CellSpec("gru", 5, 20).activations[::-1]},
        ],
    )
    def test_the_form_of_a_cell(self, change):
        graph = stack("gru")
        nodes = list(graph.nodes)
        nodes[1] = replace(nodes[1], attrs={"spec": replace(nodes[1].attrs["spec"], **change)})
        refused(graph, graph.replace(nodes=tuple(nodes)))

    def test_attributes_of_an_activation(self):
        refused(parallel(alpha=0.1), parallel(alpha=0.2))

    def test_the_input_forget_form(self):
        graph = stack("lstm")
        nodes = list(graph.nodes)
        nodes[1] = replace(nodes[1], attrs={"spec": replace(nodes[1].attrs["spec"], input_forget=True)})
        refused(graph, graph.replace(nodes=tuple(nodes)))

    def test_another_wiring(self):
        for other in ("residual", "swapped concat", "both from x", "outputs swapped", "sub swapped"):
            refused(parallel("plain" if other != "sub swapped" else "sub"), parallel(other))

    def test_windows(self):
        graphs = [windows(k, d, p) for k, d, p in ((3, 1, (2, 0)), (3, 2, (4, 0)), (3, 1, (1, 1)), (3, 1, (0, 2)))]
        assert len({Model(g).fingerprint for g in graphs}) == len(graphs)


def parallel(kind="plain", alpha=0.1):
    """Two equal layers side by side, in several wirings."""
    rng, b = np.random.default_rng(2), GraphBuilder("parallel")
    x = b.input("x", "float32", TIME, BATCH, 6)
    spec = fastrnn.graph.cells.CellSpec("gru", 6, 6)
    weights = {
        n: b.constant(n, rng.standard_normal(s).astype(np.float32) * 0.3)
        for n, s in (("W", (18, 6)), ("R", (18, 6)), ("W2", (18, 6)), ("R2", (18, 6)))
    }
    first, _ = b.add("cell", x, weights["W"], weights["R"], outputs=("a", None), spec=spec)
    source = x if kind == "both from x" else first
    second, _ = b.add("cell", source, weights["W2"], weights["R2"], outputs=("b", None), spec=spec)
    if kind == "residual":
        second = b.add("binary", second, x, fn="add")
    pair = (second, first) if kind == "swapped concat" else (first, second)
    y = b.add("concat", *pair, axis=2)
    y = b.add("unary", y, fn="leaky_relu", alpha=alpha, beta=0.0)
    if kind.startswith("sub"):
        z = b.add("binary", *((second, first) if kind == "sub" else (first, second)), fn="sub")
        return b.done(y, z)
    z = b.add("unary", first, fn="tanh", alpha=0.0, beta=0.0)
    return b.done(*((z, y) if kind == "outputs swapped" else (y, z)))


def windows(k, dilation, pads):
    b = GraphBuilder("windows")
    x = b.input("x", "float32", BATCH, 4, TIME)
    W = b.constant("W", some(5, 4, k))
    return b.done(b.add("conv", x, W, strides=(1,), dilations=(dilation,), pads=pads, groups=1))


SOURCES = {name: model._core._imported or model.graph for name, model in ALL.items()}
