"""Loops over a cell that an exporter wrote out: rolled up where they are one cell, else left as they are."""

import numpy as np
import pytest
from onnx import helper, numpy_helper

from fastrnn.graph import reference
from fastrnn.importers.onnx import import_onnx

B, I, H = 2, 3, 4  # noqa: E741  (the project's word for the input size)
GATES = {"rnn": 1, "gru": 3, "lstm": 4}


class Loop:
    """The file of a loop over a cell, as PyTorch's exporters write it for `steps` steps.

    start : "zeros" (a constant), "folded" (its product too), "live" (inputs h0, c0), "ones" (a constant that is not 0).
    results : of "stack" (every h), "head" (a linear layer of every h), "last" (h behind the last step), "middle".
    """

    def __init__(self, kind, steps, *, axis=1, start="zeros", results=("head", "last"), order=None, odd=None):
        self.kind, self.axis, self.nodes = kind, axis, []
        rng = np.random.default_rng(5)
        rows = GATES[kind] * H
        shapes = {"Wi": (rows, I), "Wh": (rows, H), "bi": (rows,), "bh": (rows,), "V": (2, H), "v": (2,)}
        self.arrays = {k: (rng.standard_normal(s) * 0.5).astype(np.float32) for k, s in shapes.items()}
        self.arrays |= {"Wx": self.arrays["Wh"] * 2, "h0": np.full((B, H), start == "ones", np.float32)}
        self.arrays |= {
            "axes": np.int64([axis]),
            "c0": np.zeros((B, H), np.float32),
            "sizes": np.int64([H] * (rows // H)),
        }
        if start == "folded":
            self.arrays["folded"] = np.tile(self.arrays["bh"], (B, 1))
        self.arrays |= {f"i{t}": np.int64(t) for t in range(steps)}
        h, c, every = "h0", "c0", []
        for t, index in enumerate(order or range(steps)):
            self.add("Gather", ["x", f"i{index}"], [f"x{t}"], axis=axis)
            self.add("Gemm", [f"x{t}", "Wi", "bi"], [f"a{t}"], transB=1)
            if not (t == 0 and start == "folded"):
                self.add("Gemm", [h, "Wx" if t == odd else "Wh", "bh"], [f"b{t}"], transB=1)
            h, c = self.step(t, f"a{t}", "folded" if t == 0 and start == "folded" else f"b{t}", h, c)
            every.append(h)
        self.outputs = list(results)
        for name in results:
            self.result(name, every, h, steps)
        self.states = ["h0", "c0"][: 1 + (kind == "lstm")] if start == "live" else []
        self.steps = steps

    def add(self, op, inputs, outputs, **attrs):
        self.nodes.append(helper.make_node(op, inputs, outputs, name=outputs[0], **attrs))
        return outputs[0]

    def step(self, t, a, b, h, c):
        def name(what):
            return f"{what}_{t}"

        if self.kind == "rnn":
            return self.add("Tanh", [self.add("Add", [a, b], [name("s")])], [name("h")]), c
        if self.kind == "lstm":
            parts = [name(k) for k in ("pi", "pf", "pg", "po")]
            self.add("Split", [self.add("Add", [b, a], [name("s")]), "sizes"], parts, axis=1)
            i, f, o = (self.add("Sigmoid", [parts[k]], [name(g)]) for k, g in ((0, "gi"), (1, "gf"), (3, "go")))
            g = self.add("Tanh", [parts[2]], [name("gg")])
            kept, fresh = self.add("Mul", [f, c], [name("k")]), self.add("Mul", [i, g], [name("m")])
            c = self.add("Add", [kept, fresh], [name("c")])
            return self.add("Mul", [o, self.add("Tanh", [c], [name("tc")])], [name("h")]), c
        ins, own = ([name(p + k) for k in "rzn"] for p in ("i", "o"))
        self.add("Split", [a, "sizes"], ins, axis=1)
        self.add("Split", [b, "sizes"], own, axis=1)
        r, z = (
            self.add("Sigmoid", [self.add("Add", [own[k], ins[k]], [name(f"s{k}")])], [name(f"g{k}")]) for k in (0, 1)
        )
        gated = self.add("Mul", [own[2], r], [name("q")])
        n = self.add("Tanh", [self.add("Add", [ins[2], gated], [name("u")])], [name("n")])
        moved = self.add("Mul", [self.add("Sub", [h, n], [name("d")]), z], [name("e")])
        return self.add("Add", [moved, n], [name("h")]), c

    def result(self, name, every, h, steps):
        if name == "last":
            self.add("Identity", [h], ["last"])
        elif name == "middle":
            self.add("Relu", [every[steps // 2]], ["middle"])
        else:
            if name == "head":
                made = [self.add("Gemm", [v, "V", "v"], [f"{v}/linear"], transB=1) for v in every]
                every = [self.add("Sigmoid", [v], [f"{v}/act"]) for v in made]
            every = [self.add("Unsqueeze", [v, "axes"], [f"{v}/{name}"]) for v in every]
            self.add("Concat", every, [name], axis=self.axis)

    def model(self):
        shape = [B, self.steps, I] if self.axis else [self.steps, B, I]
        inputs = [helper.make_tensor_value_info("x", 1, shape)]
        inputs += [helper.make_tensor_value_info(n, 1, [B, H]) for n in self.states]
        outputs = [helper.make_tensor_value_info(n, 1, None) for n in self.outputs]
        read = {i for n in self.nodes for i in n.input} - set(self.states)
        constants = [numpy_helper.from_array(a, n) for n, a in self.arrays.items() if n in read]
        graph = helper.make_graph(self.nodes, "g", inputs, outputs, constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def feeds(self):
        rng = np.random.default_rng(9)
        shapes = {"x": (B, self.steps, I) if self.axis else (self.steps, B, I)} | dict.fromkeys(self.states, (B, H))
        return {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}


def cells(graph):
    return [n.attrs["spec"].kind for n in graph.nodes if n.op == "cell"]


def agrees(graph, loop):
    """The graph of one file gives what onnxruntime makes of another, of any number of steps."""
    ort = pytest.importorskip("onnxruntime")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    want = ort.InferenceSession(loop.model().SerializeToString(), options).run(None, loop.feeds())
    for got, wanted in zip(reference.run(graph, loop.feeds()), want, strict=True):
        assert got.shape == wanted.shape
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("results", [("head", "last"), ("stack",), ("last",), ("stack", "head")])
@pytest.mark.parametrize("start", ["zeros", "folded", "live"])
@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("kind", GATES)
def test_a_written_out_loop_is_one_cell(kind, axis, start, results):
    options = {"axis": axis, "start": start, "results": results}
    graph = import_onnx(Loop(kind, 5, **options).model())
    assert cells(graph) == [kind]
    dims = [str(d) for d in graph.values["x"].dims]
    assert dims == (["batch", "time", "3"] if axis else ["time", "batch", "3"])
    assert any("rolled up into one" in n for n in graph.notes)
    for steps in (5, 2, 9):
        agrees(graph, Loop(kind, steps, **options))


@pytest.mark.parametrize("kind", GATES)
def test_two_steps_are_enough(kind):
    graph = import_onnx(Loop(kind, 2).model())
    assert cells(graph) == [kind]
    agrees(graph, Loop(kind, 4))


@pytest.mark.parametrize(
    "options",
    [
        {"results": ("stack", "middle")},
        {"start": "ones"},
        {"odd": 2},
        {"odd": 4},
        {"order": [0, 2, 1, 3, 4]},
        {"order": [4, 3, 2, 1, 0]},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", GATES)
def test_what_is_not_one_cell_stays_and_is_right(kind, options):
    loop = Loop(kind, 5, **options)
    graph = import_onnx(loop.model())
    assert cells(graph) == []
    agrees(graph, loop)
