"""Written-out loops over any body: one cycle if all copies are the same, else as the file has them.

Each file is made for a number of steps, so that one made for another number says what the loop computes there.
"""

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

import fastrnn
from fastrnn.importers.onnx import import_onnx

B, I, H = 2, 3, 4  # noqa: E741  (the project's word for the input size)


class Written:
    """A file under construction. x: its input [B, steps, I]. odd: the step at which `number` is another one."""

    def __init__(self, steps, batch=B, odd=None, opset=18):
        self.steps, self.batch, self.odd, self.opset = steps, batch, odd, opset
        self.nodes, self.arrays, self.inputs, self.outputs, self.t = [], {}, {"x": (batch, steps, I)}, [], 0
        rng = np.random.default_rng(3)
        shapes = {"W": (I, H), "R": (H, H), "V": (H, H), "A": (I, H), "G": (I, 2 * H), "Q": (H, 2 * H)}
        shapes["L"] = (I + 2 * H, 2 * H)
        self.random = {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}

    def __call__(self, op, *inputs, count=1, **attrs):
        """Add a node; returns its output, or a list of them."""
        made = [f"v{len(self.nodes)}_{k}" for k in range(count)]
        self.nodes.append(helper.make_node(op, list(inputs), made, name=f"n{len(self.nodes)}", **attrs))
        return made[0] if count == 1 else made

    def weight(self, name):
        self.arrays[name] = self.random[name]
        return name

    def const(self, value, dtype=np.int64):
        """A constant of its own, as exporters write one per step."""
        return self("Constant", value=numpy_helper.from_array(np.asarray(value, dtype)))

    def number(self, value):
        return self.const(value + 1 if self.t == self.odd else value, np.float32)

    def zeros(self, *dims):
        return self.const(np.zeros(dims), np.float32)

    def at(self, sequence, t, form="gather", axis=1):
        """Step t of a sequence."""
        if form == "gather":
            return self("Gather", sequence, self.const(t), axis=axis)
        taken = self("Slice", sequence, self.const([t]), self.const([t + 1]), self.const([axis]))
        return self("Squeeze", taken, self.const([axis])) if form == "squeeze" else taken

    def stack(self, values, axis=1):
        return self("Concat", *(self("Unsqueeze", v, self.const([axis])) for v in values), axis=axis)

    def output(self, name):
        self.outputs.append(name)

    def model(self):
        ins = [helper.make_tensor_value_info(k, TensorProto.FLOAT, v) for k, v in self.inputs.items()]
        outs = [helper.make_tensor_value_info(k, TensorProto.FLOAT, None) for k in self.outputs]
        tensors = [numpy_helper.from_array(v, k) for k, v in self.arrays.items()]
        graph = helper.make_graph(self.nodes, "loop", ins, outs, tensors)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=8)


def steps_of(f, backwards=False):
    for t in reversed(range(f.steps)) if backwards else range(f.steps):
        f.t = t
        yield t


def own_cell(f, form="gather", backwards=False):
    """h = z * h + (1 - z) * n, with z and n of one product."""
    h, out = f.zeros(f.batch, H), []
    for t in steps_of(f, backwards):
        x = f.at("x", t, form)
        both = f("Add", f("MatMul", x, f.weight("G")), f("MatMul", h, f.weight("Q")))
        z, n = f("Split", both, f.const([H, H]), count=2, axis=1)
        z = f("Sigmoid", f("Mul", z, f.number(2.0)))
        h = f("Add", f("Mul", z, h), f("Mul", f("Sub", f.number(1.0), z), f("Tanh", n)))
        out.append(h)
    f.output(f.stack(out[::-1] if backwards else out))
    f.output(h)


def own_cell_backwards(f):
    own_cell(f, backwards=True)


def own_cell_by_slices(f):
    own_cell(f, "squeeze")


def selective_scan(f):
    """h = exp(dt * A) * h + dt * x * B, y = sum(h * C), with dt, B and C of x: a loop as in Mamba."""
    dt = f("Softplus", f("MatMul", "x", f.const(np.full((I, I), 0.3), np.float32)))
    state, read = f("MatMul", "x", f.weight("A")), f("MatMul", "x", f.weight("W"))
    h, out = f.zeros(f.batch, I, H), []
    for t in steps_of(f):
        step = f("Unsqueeze", f.at(dt, t), f.const([2]))
        keep = f("Exp", f("Mul", step, f.const(-np.abs(f.random["A"]), np.float32)))
        new = f(
            "Mul",
            f("Mul", step, f("Unsqueeze", f.at("x", t), f.const([2]))),
            f("Unsqueeze", f.at(state, t), f.const([1])),
        )
        h = f("Add", f("Mul", keep, h), f("Mul", new, f.number(1.5)))
        y = f("MatMul", h, f("Unsqueeze", f.at(read, t), f.const([2])))
        out.append(f("Squeeze", y, f.const([2])))
    f.output(f.stack(out))


def two_layers(f):
    h = g = f.zeros(f.batch, H)
    out = []
    for t in steps_of(f):
        h = f("Tanh", f("Add", f("MatMul", f.at("x", t), f.weight("W")), f("MatMul", h, f.weight("R"))))
        g = f("Tanh", f("Add", f("MatMul", h, f.weight("V")), f("Mul", g, f.number(0.5))))
        out.append(g)
    f.output(f.stack(out))
    f.output(h)


def one_product(f):
    """The input and two states side by side, as in CfC: no operator of the body broadcasts them."""
    h, c, out = f.zeros(f.batch, H), f.const(np.ones((f.batch, H)), np.float32), []
    for t in steps_of(f):
        both = f("MatMul", f("Concat", f.at("x", t), h, c, axis=1), f.weight("L"))
        h, c = f("Split", f("Tanh", f("Mul", both, f.number(0.5))), f.const([H, H]), count=2, axis=1)
        out.append(h)
    f.output(f.stack(out))
    f.output(c)


def the_largest_so_far(f):
    """It starts from the first step, which is a step of the loop too."""
    best, out = f.at("x", 0), []
    for t in steps_of(f):
        best = f("Max", best, f("Mul", f.at("x", t), f.number(0.9)))
        out.append(best)
    f.output(f.stack(out))


def the_state_before_last(f):
    f.inputs |= {"a0": (f.batch, I), "b0": (f.batch, I)}
    a, b, out = "a0", "b0", []
    for t in steps_of(f):
        a, b = b, f("Add", f("Sub", f("Mul", b, f.number(0.5)), f("Mul", a, f.const(0.3, np.float32))), f.at("x", t))
        out.append(b)
    f.output(f.stack(out))


def steps_that_keep_their_axis(f):
    h, out = f.zeros(f.batch, 1, I), []
    for t in steps_of(f):
        h = f("Add", f("Mul", h, f.number(0.5)), f.at("x", t, "slice"))
        out.append(h)
    f.output(f("Concat", *out, axis=1))


def steps_of_one_split(f):
    parts = f("Split", "x", f.const([1] * f.steps), count=f.steps, axis=1)
    h, out = f.zeros(f.batch, I), []
    for t in steps_of(f):
        h = f("Sub", f("Squeeze", parts[t], f.const([1])), f("Mul", h, f.number(0.25)))
        out.append(f("Relu", h))
    f.output(f.stack(out, axis=2))


def both_ways(f):
    """Two loops over one input, which share the steps; no state has an initial value."""
    parts = []
    for backwards in (False, True):
        own_cell(f, backwards=backwards)
        f.outputs.pop()
        parts.append(f.outputs.pop())
    f.output(f("Concat", *parts, axis=2))


def the_last_step_alone(f):
    p = f.const(np.ones((f.batch, I)), np.float32)
    for t in steps_of(f):
        p = f("Mul", p, f("Add", f("Mul", f.at("x", t), f.const(0.1, np.float32)), f.number(1.0)))
    f.output(p)


BODIES = [
    own_cell, own_cell_backwards, own_cell_by_slices, selective_scan, two_layers, one_product, the_largest_so_far,
    the_state_before_last, steps_that_keep_their_axis, steps_of_one_split, both_ways, the_last_step_alone,
]  # fmt: skip


def written(body, steps, **options):
    f = Written(steps, **options)
    body(f)
    return f.model()


def feeds_of(model, seed=0):
    rng = np.random.default_rng(seed)
    return {
        v.name: rng.standard_normal([d.dim_value for d in v.type.tensor_type.shape.dim]).astype(np.float32)
        for v in model.graph.input
    }


def right(model, feeds):
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feeds)


def compare(ours, model, feeds):
    got = ours.run(**feeds)
    for a, b in zip(got if isinstance(got, tuple) else (got,), right(model, feeds), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("body", BODIES, ids=lambda b: b.__name__)
def test_a_loop_is_one_cycle_at_every_length(body):
    ours = fastrnn.from_onnx(written(body, 7))
    assert any("7 copies of" in note for note in ours.notes)
    for steps, batch in ((7, B), (3, 1), (2, 5), (12, B), (33, 3)):
        other = written(body, steps, batch=batch)
        compare(ours, other, feeds_of(other, steps))


@pytest.mark.parametrize("batch", [1, 3])
def test_a_state_beside_the_input_follows_the_batch(batch):
    ours = fastrnn.from_onnx(written(one_product, 7, batch=batch))
    assert [str(d) for d in ours.inputs[0].dims] == ["batch", "time", str(I)]
    other = written(one_product, 4, batch=2)
    compare(ours, other, feeds_of(other))


def test_rows_that_start_apart_beside_the_input_keep_the_batch():
    def body(f):
        h, out = f.const(np.arange(B * H).reshape(B, H), np.float32), []
        for t in steps_of(f):
            h = f("Tanh", f("MatMul", f("Concat", f.at("x", t), h, h, axis=1), f.weight("L")))
            h, _ = f("Split", h, f.const([H, H]), count=2, axis=1)
            out.append(h)
        f.output(f.stack(out))

    ours, made = fastrnn.from_onnx(written(body, 7)), written(body, 9)
    assert ours.inputs[0].dims[0] == B
    compare(ours, made, feeds_of(made))


@pytest.mark.parametrize(
    "body", [own_cell, selective_scan, two_layers, steps_that_keep_their_axis], ids=lambda b: b.__name__
)
@pytest.mark.parametrize("batch", [1, 3])
def test_a_loop_streams(body, batch):
    if body is own_cell or body is two_layers:
        first = body

        def body(f):
            first(f)
            del f.outputs[1]  # the last state

    ours = fastrnn.from_onnx(written(body, 6))
    x = feeds_of(written(body, 11, batch=batch), 4)["x"]
    (whole,) = ours.run(x)
    by_step, in_chunks = ours.stream(batch), ours.stream(batch)
    got = np.stack([by_step.step(np.ascontiguousarray(x[:, t])) for t in range(11)], 1)
    np.testing.assert_array_equal(got, whole)
    parts = [in_chunks.push(np.ascontiguousarray(x[:, a:b])) for a, b in ((0, 4), (4, 5), (5, 11))]
    np.testing.assert_array_equal(np.concatenate(parts, 1), whole)


@pytest.mark.parametrize("odd", [0, 1, 3, 6])
@pytest.mark.parametrize("body", BODIES, ids=lambda b: b.__name__)
def test_a_loop_with_one_other_constant_keeps_its_length(body, odd):
    made = written(body, 7, odd=odd)
    ours = fastrnn.from_onnx(made)
    compare(ours, made, feeds_of(made))
    if odd == 0 and any("copies of" in note for note in ours.notes):  # it only changes what the first step starts from
        compare(ours, written(body, 9, odd=0), feeds_of(written(body, 9)))
        return
    with pytest.raises(fastrnn.ShapeError):
        ours.run(**feeds_of(written(body, 8)))


def uses(f, what):
    """A loop that does one thing that only its own length can mean."""
    h, out = f.zeros(f.batch, I), []
    order = {"another order": [0, 2, 1, 3, 4, 5, 6], "some steps": range(1, 7), "not the last step": range(6)}
    for t in order.get(what, range(7)):
        x = f.at("x", t)
        if what == "the step before too" and t:
            x = f("Add", x, f.at("x", t - 1))
        if what == "a step by its number":
            x = f("Add", x, f.at("x", 3))
        if what == "another operator at the end" and t == 6:
            x = f("Neg", x)
        if what == "a step's own number":
            x = f("Mul", x, f.const(t / 7, np.float32))
        h = f("Tanh", f("Sub", x, h))
        out.append(h)
    results = {
        "a result in the middle": [out[3]],
        "two results swapped": [f.stack([out[1], out[0], *out[2:]])],
        "all but one result": [f.stack(out[:-1])],
        "results of one step twice": [f.stack([*out, out[0]])],
    }
    for name in results.get(what, [f.stack(out)]):
        f.output(name)


@pytest.mark.parametrize("what", [
    "another order", "some steps", "not the last step", "the step before too", "a step by its number",
    "another operator at the end", "a step's own number", "a result in the middle", "two results swapped",
    "all but one result", "results of one step twice",
])  # fmt: skip
def test_what_only_one_length_can_mean_keeps_it(what):
    f = Written(7)
    uses(f, what)
    made = f.model()
    ours = fastrnn.from_onnx(made)
    assert not any("copies of" in note for note in ours.notes)
    compare(ours, made, feeds_of(made))
    with pytest.raises(fastrnn.ShapeError):
        ours.run(**feeds_of(written(own_cell, 9)))


def test_one_step():
    ours, other = fastrnn.from_onnx(written(own_cell, 7)), written(own_cell, 1, batch=3)
    compare(ours, other, feeds_of(other))


def test_an_open_length_is_read_as_far_as_the_file_was_written():
    made = written(own_cell, 5)
    made.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "n"
    ours = fastrnn.from_onnx(made)
    feeds = feeds_of(written(own_cell, 8))
    compare(ours, made, feeds)


def test_a_known_cell_is_that_cell():
    """The layer above is the same node in the loop, which the matcher of single cells does not know."""

    def body(f):
        h = g = f.zeros(f.batch, H)
        out = []
        for t in steps_of(f):
            h = f("Tanh", f("Add", f("MatMul", f.at("x", t), f.weight("W")), f("MatMul", h, f.weight("R"))))
            g = f("Tanh", f("Add", f("MatMul", h, f.weight("V")), f("MatMul", g, f.weight("R"))))
            out.append(g)
        f.output(f.stack(out))

    ours = fastrnn.from_onnx(written(body, 6))
    assert [n.op for n in ours.graph.nodes].count("cell") == 2
    other = written(body, 10, batch=3)
    compare(ours, other, feeds_of(other))


def test_rows_may_be_the_steps():
    """A cell of one row: the batch of the cycle is a number."""
    f = Written(6)
    h, out = f.zeros(1, H), []
    for b in range(B):
        x = f("Gather", f("Slice", "x", f.const([b]), f.const([b + 1]), f.const([0])), f.const(0), axis=1)
        h = f("Tanh", f("Add", f("MatMul", x, f.weight("W")), f("MatMul", h, f.weight("R"))))
        out.append(h)
    f.output(f("Concat", *out, axis=0))
    made = f.model()
    compare(fastrnn.from_onnx(made), made, feeds_of(made))


@pytest.mark.parametrize("steps", [50, 400])
def test_long_loops(steps):
    ours = import_onnx(written(own_cell, steps))
    assert len(ours.nodes) < 40
    assert sum(n.op == "state" for n in ours.nodes) == 1


def test_a_python_loop_of_a_torch_module_streams_at_any_length():
    torch = pytest.importorskip("torch")

    class Scan(torch.nn.Module):
        """A selective scan, as written in PyTorch."""

        def __init__(self):
            super().__init__()
            torch.manual_seed(4)
            self.A, self.project = torch.nn.Parameter(-torch.rand(I, H)), torch.nn.Linear(I, I + 2 * H)

        def forward(self, x):
            step, b, c = self.project(x).split([I, H, H], -1)
            keep = torch.exp(torch.einsum("bld,dn->bldn", torch.nn.functional.softplus(step), self.A))
            new = torch.einsum("bld,bln->bldn", x, b)
            h, out = torch.zeros(x.shape[0], I, H), []
            for t in range(x.shape[1]):
                h = keep[:, t] * h + new[:, t]
                out.append(torch.einsum("bdn,bn->bd", h, c[:, t]))
            return torch.stack(out, 1)

    module = Scan().eval()
    ours, x = fastrnn.from_torch(module, torch.randn(B, 6, I)), torch.randn(1, 13, I)
    with torch.no_grad():
        want = module(x).numpy()
    (whole,) = ours.run(x.numpy())
    np.testing.assert_allclose(whole, want, rtol=2e-5, atol=2e-5)
    stream = ours.stream()
    parts = [stream.push(x.numpy()[0, a:b]) for a, b in ((0, 5), (5, 6), (6, 13))]
    np.testing.assert_array_equal(np.concatenate(parts), whole[0])
