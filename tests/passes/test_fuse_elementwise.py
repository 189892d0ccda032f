"""Elementwise nodes in one program: which are joined, and that no bit changes by it."""

import numpy as np
from graph_builder import GraphBuilder
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrnn.compile import lowering
from fastrnn.graph import reference
from fastrnn.graph.dims import BATCH, TIME
from fastrnn.passes.fuse_elementwise import MAX_INPUTS, MAX_INSTRUCTIONS, activations, groups
from fastrnn.runtime._executor import Program

BITS = {"float32": np.float32, "bool": np.bool_}


def run(graph, **feeds):
    """(outputs by name, kinds of the plan's ops)."""
    env = {"batch": 1, "time": 1} | reference.bind_sizes(graph, feeds)
    outs = [
        np.empty([d if isinstance(d, int) else env[str(d)] for d in graph.values[n].dims], BITS[graph.values[n].dtype])
        for n in graph.outputs
    ]
    plan = lowering.lower(graph, "run", lowering.Weights())
    Program(plan).run([feeds[n] for n in graph.inputs], outs, env["batch"], env["time"])
    return dict(zip(graph.outputs, outs, strict=True)), [op.kind for op in plan.ops]


def unary(b, x, fn, alpha=0.0, beta=0.0):
    return b.add("unary", x, fn=fn, alpha=alpha, beta=beta)


def real(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def gate():
    """x * sigmoid(x) where x + bias > 0, else -1: four functions, a bool on the way, a value read twice."""
    b = GraphBuilder("gate")
    x = b.input("x", "float32", BATCH, TIME, 7)
    shifted = b.add("binary", x, b.constant("bias", real(1, 7)), fn="add")
    above = b.add("binary", shifted, b.constant("zero", np.zeros((), np.float32)), fn="greater")
    product = b.add("binary", shifted, unary(b, shifted, "sigmoid"), fn="mul")
    return b, b.add("where", above, product, b.constant("low", np.float32([-1.0])))


def test_a_net_of_nodes_is_one_program_with_the_bits_of_many():
    b, y = gate()
    x = real(2, 3, 50, 7)
    one, kinds = run(b.done(y), x=x)
    assert kinds == ["elementwise"]
    every = tuple(n.outputs[0] for n in b.nodes)
    many, kinds = run(b.done(*every), x=x)
    assert kinds.count("elementwise") == 5
    assert one[y].tobytes() == many[y].tobytes()
    np.testing.assert_allclose(one[y], reference.run(b.done(y), {"x": x})[0], rtol=1e-6, atol=1e-6)


def test_what_others_read_and_what_is_smaller_stays_apart():
    b = GraphBuilder("apart")
    x, row = b.input("x", "float32", BATCH, TIME, 6), b.input("row", "float32", 6)
    small = unary(b, row, "exp")  # once, not for every step
    big = b.add("binary", x, small, fn="mul")
    shown = unary(b, big, "tanh")
    last = unary(b, shown, "neg")
    soft = b.add("softmax", b.add("binary", last, last, fn="add"), axis=2, log=False)
    graph = b.done(shown, soft)
    found = groups(graph)
    assert [[n.outputs[0] for n in g.nodes] for g in found.values()] == [[last, "binary_4"], [big, shown]]
    feeds = {"x": real(1, 2, 3, 6), "row": real(2, 6)}
    outs, _ = run(graph, **feeds)
    for ours, theirs in zip(outs.values(), reference.run(graph, feeds), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)


def test_programs_keep_within_their_limits():
    b = GraphBuilder("long")
    x = b.input("x", "float32", BATCH, 5)
    y = x
    for i in range(40):
        y = unary(b, y, "neg" if i % 2 else "tanh")
    assert sorted(len(g.nodes) for g in groups(b.done(y)).values()) == [8, MAX_INSTRUCTIONS]
    b = GraphBuilder("wide")
    y = b.input("x0", "float32", BATCH, 5)
    for i in range(1, 12):
        y = b.add("binary", y, b.input(f"x{i}", "float32", BATCH, 5), fn="add")
    graph = b.done(y)
    assert max(len(g.inputs) for g in groups(graph).values()) == MAX_INPUTS
    feeds = {f"x{i}": real(i, 2, 5) for i in range(12)}
    outs, kinds = run(graph, **feeds)
    assert kinds == ["elementwise"] * 2
    np.testing.assert_allclose(outs[y], reference.run(graph, feeds)[0], rtol=1e-6, atol=1e-6)


def test_an_activation_belongs_to_its_convolution():
    b = GraphBuilder("conv")
    x, W = b.input("x", "float32", BATCH, 3, TIME), b.constant("W", real(1, 4, 3, 1))
    attrs = {"strides": (1,), "dilations": (1,), "pads": (0, 0), "groups": 1}
    y = b.add("conv", x, W, **attrs)
    z = unary(b, y, "relu")
    end = unary(b, z, "exp")
    graph = b.done(end)
    assert [n.outputs[0] for n in activations(graph).values()] == [z]
    assert activations(b.done(y, end)) == {}  # an output is needed as it is
    outs, kinds = run(graph, x=real(2, 2, 3, 5))
    assert kinds == ["copy", "conv", "elementwise"]
    np.testing.assert_allclose(outs[end], reference.run(graph, {"x": real(2, 2, 3, 5)})[0], rtol=1e-5)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_random_nets_keep_their_bits(data):
    b = GraphBuilder("random")
    known = [b.input("x", "float32", BATCH, TIME, 5), b.input("y", "float32", BATCH, 1, 5)]
    bools = []
    for _ in range(data.draw(st.integers(1, 14))):
        one, two = (known[data.draw(st.integers(0, len(known) - 1))] for _ in range(2))
        kind = data.draw(st.sampled_from(["unary", "binary", "compare", "where"]))
        if kind == "unary":
            known.append(unary(b, one, data.draw(st.sampled_from(["tanh", "neg", "sigmoid", "leaky_relu"])), 0.3))
        elif kind == "binary":
            known.append(b.add("binary", one, two, fn=data.draw(st.sampled_from(["add", "sub", "mul", "max"]))))
        elif kind == "compare":
            bools.append(b.add("binary", one, two, fn="greater"))
        elif bools:
            known.append(b.add("where", data.draw(st.sampled_from(bools)), one, two))
    if not b.nodes:
        return
    feeds = {"x": real(1, 3, 4, 5), "y": real(2, 3, 1, 5)}
    last = b.nodes[-1].outputs[0]
    every, _ = run(b.done(*(n.outputs[0] for n in b.nodes)), **feeds)
    alone, _ = run(b.done(last), **feeds)
    assert alone[last].tobytes() == every[last].tobytes()
