"""Index -1 of an embedding is an error in models of PyTorch, as it is there; in ONNX's Gather it is the last row."""

import io

import numpy as np
import pytest
import torch
from graph_builder import GraphBuilder
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F

import fastrnn
from fastrnn.errors import ModelFormatError, ShapeError
from fastrnn.graph import reference
from fastrnn.graph.dims import BATCH, TIME
from fastrnn.importers.onnx import import_onnx
from fastrnn.importers.pytorch import exporting, modules, nesting
from fastrnn.model import Model

ROWS = 7
IDS = torch.tensor([[1, 6, 0, 3], [2, 2, 5, 4]])


class Tagger(nn.Module):
    """Symbols in, features out; traced by torch.fx."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.emb, self.rnn = nn.Embedding(ROWS, 4), nn.GRU(4, 5, batch_first=True)

    def rows(self, ids):
        return self.emb(ids)

    def forward(self, ids):
        return self.rnn(self.rows(ids))[0]


class Functional(Tagger):
    def rows(self, ids):
        return F.embedding(ids, self.emb.weight)


class Padded(Tagger):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(ROWS, 4, padding_idx=0)


class Selected(Tagger):
    def rows(self, ids):
        return self.emb.weight.index_select(0, ids.reshape(-1)).reshape(ids.shape[0], ids.shape[1], 4)


class Positions(Tagger):
    """Also an embedding of the steps' numbers, which are of no input."""

    def __init__(self):
        super().__init__()
        self.pos = nn.Embedding(12, 4)

    def rows(self, ids):
        return self.emb(ids) + self.pos(torch.arange(ids.shape[1]))


class Looped(nn.Module):
    """Scripted: a loop over the steps, in which symbols are looked up."""

    def __init__(self):
        super().__init__()
        self.emb, self.cell = nn.Embedding(ROWS, 5), nn.Linear(5, 5)

    def forward(self, ids):
        h = ids[:, :1].float() * torch.zeros(5)
        out = torch.jit.annotate(list[torch.Tensor], [])
        for t in range(ids.size(1)):
            h = torch.tanh(self.emb(ids[:, t]) + self.cell(h))
            out.append(h)
        return torch.stack(out, 1)


class Indexed(Tagger):
    """Indexing takes -1, in PyTorch too."""

    def rows(self, ids):
        return self.emb.weight[ids]


def torchscript(module, make):
    with modules.quiet():
        return fastrnn.from_torch(make(module.eval()), IDS)


def state_dict() -> bytes:
    file = io.BytesIO()
    torch.save(Tagger().state_dict(), file)
    return file.getvalue()


SOURCES = {
    "traced": lambda: fastrnn.from_torch(Tagger()),
    "traced, functional": lambda: fastrnn.from_torch(Functional(), IDS),
    "traced, padding_idx": lambda: fastrnn.from_torch(Padded()),
    "traced, index_select": lambda: fastrnn.from_torch(Selected(), IDS),
    "traced, positions": lambda: fastrnn.from_torch(Positions(), IDS),
    "newer exporter": lambda: exported(Tagger(), True),
    "newer exporter, functional": lambda: exported(Functional(), True),
    "newer exporter, positions": lambda: exported(Positions(), True),
    "older exporter": lambda: exported(Tagger(), False),
    "older exporter, functional": lambda: exported(Functional(), False),
    "older exporter, positions": lambda: exported(Positions(), False),
    "TorchScript": lambda: torchscript(Tagger(), lambda m: torch.jit.trace(m, IDS)),
    "layers=": lambda: fastrnn.load(state_dict(), layers=["embedding:emb", "gru:rnn"]),
}


def exported(module, dynamo: bool) -> Model:
    """As from_torch makes it of a module that torch.fx can't trace."""
    with torch.no_grad(), modules.quiet():
        proto = exporting.export(module.eval(), nesting.bound(module, IDS), dynamo, free=False)
    assert "Gather" not in {n.op_type for n in proto.graph.node if "emb" in "".join(n.input)}
    return Model(import_onnx(proto))


@pytest.mark.parametrize("source", SOURCES)
def test_an_index_below_zero_is_an_error(source):
    model = SOURCES[source]()
    ids = IDS.numpy()
    with torch.no_grad():
        module = Positions() if "positions" in source else Padded() if "padding" in source else Tagger()
        np.testing.assert_allclose(model.run(ids)[0], module.eval()(IDS), atol=1e-6)
    for bad in (-1, -ROWS, ROWS, -(1 << 62)):
        wrong = ids.copy()
        wrong[1, 2] = bad
        with pytest.raises(ShapeError, match=rf"index {bad} is outside the table's \[0, {ROWS}\)"):
            model.run(wrong)


def test_a_lookup_in_a_loop_over_the_steps():
    module, ids = Looped().eval(), IDS.numpy().copy()
    model = torchscript(module, torch.jit.script)
    with torch.no_grad():
        np.testing.assert_allclose(model.run(ids)[0], module(IDS), atol=1e-6)
    ids[0, 3] = -1
    with pytest.raises(ShapeError, match=rf"index -1 is outside the table's \[0, {ROWS}\)"):
        model.run(ids)


@pytest.mark.parametrize("saved", [False, True])
def test_steps_pools_and_files_keep_the_rule(saved, tmp_path):
    model = fastrnn.from_torch(Tagger())
    if saved:
        model.save(tmp_path / "m.fastrnn")
        model = fastrnn.load(tmp_path / "m.fastrnn")
    s, pool = model.stream(), model.pool(2)
    slots = [pool.open(), pool.open()]
    y = s.step(3)
    before = s.state
    for call in (
        lambda: s.step(-1), lambda: s.push([1, 2, -1]), lambda: pool.step(slots, [1, -1]),
        lambda: pool.push(slots, [[1, 2], [3, -1]]), lambda: model.run([[1, -1]]),
    ):  # fmt: skip
        with pytest.raises(ShapeError, match=r"index -1 is outside the table's \[0, 7\)"):
            call()
    assert all(np.array_equal(v, before[n]) for n, v in s.state.items())
    np.testing.assert_array_equal(pool.step(slots, [3, 3])[1], y)  # no step before it has been taken
    with pytest.raises(ShapeError, match=r"index -1 is outside \[0, 7\)"):
        reference.run(model.graph, {"ids": np.array([[1, -1]])})


def test_indexing_takes_an_index_from_the_end_as_in_pytorch():
    module = Indexed().eval()
    model = fastrnn.from_torch(module, IDS)
    ids = IDS.clone()
    ids[0, 1] = -1
    with torch.no_grad():
        np.testing.assert_allclose(model.run(ids)[0], module(ids), atol=1e-6)


def gather(ids=None):
    table = numpy_helper.from_array(np.arange(14, dtype=np.float32).reshape(ROWS, 2), "table")
    ends = [
        helper.make_tensor_value_info("ids", TensorProto.INT64, ["B", "T"]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["B", "T", 2]),
    ]
    graph = helper.make_graph([helper.make_node("Gather", ["table", "ids"], ["y"])], "g", ends[:1], ends[1:], [table])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def test_gather_of_onnx_counts_from_the_end():
    import onnxruntime

    blob, ids = gather().SerializeToString(), np.array([[-1, 0, -ROWS, 3]])
    (theirs,) = onnxruntime.InferenceSession(blob, providers=["CPUExecutionProvider"]).run(None, {"ids": ids})
    np.testing.assert_array_equal(fastrnn.load(blob).run(ids)[0], theirs)
    with pytest.raises(ShapeError, match=r"index -8 is outside the table's \[-7, 7\)"):
        fastrnn.load(blob).run([[-8]])


@pytest.mark.parametrize(
    ("ids", "words"), [([[0, 6]], None), ([[0, -1]], "index -1 is below 0"), ([[7, 0]], "outside")]
)
def test_constant_indices_of_a_lookup(ids, words):
    model = gather()
    node = model.graph.node[0]
    node.op_type, node.domain, node.input[1] = "Lookup", "fastrnn", "picks"
    model.graph.initializer.append(numpy_helper.from_array(np.array(ids), "picks"))
    model.graph.node.append(helper.make_node("Cast", ["ids"], ["also"], to=TensorProto.FLOAT))
    model.graph.output.append(helper.make_tensor_value_info("also", TensorProto.FLOAT, ["B", "T"]))
    if words is None:
        np.testing.assert_array_equal(fastrnn.from_onnx(model).run([[1]])[0], [[[0, 1], [12, 13]]])
    else:
        with pytest.raises(ModelFormatError, match=words):
            fastrnn.from_onnx(model)


def test_a_lookup_along_another_axis():
    b = GraphBuilder("columns")
    ids = b.input("ids", "int64", BATCH, TIME)
    table = b.constant("table", np.arange(6, dtype=np.float32).reshape(2, 3))
    model = Model(b.done(b.add("gather", table, ids, name="y", axis=1, from_zero=True)))
    np.testing.assert_array_equal(model.run([[2, 0]])[0], [[[2, 0]], [[5, 3]]])
    with pytest.raises(ShapeError, match=r"index -1 is outside the table's \[0, 3\)"):
        model.run([[2, -1]])


def test_constant_picks_of_a_graph_keep_the_rule():
    """Picks in even steps are a view of the table, but not those that are refused."""
    for picks, fine in (([0, 2], True), ([-1, -2], False)):
        b = GraphBuilder("picks")
        x = b.input("x", "float32", BATCH, TIME, 3)
        model = Model(
            b.done(b.add("gather", x, b.constant("picks", np.array(picks)), name="y", axis=2, from_zero=True))
        )
        if fine:
            np.testing.assert_array_equal(model.run([[[1.0, 2, 3]]])[0], [[[1, 3]]])
        else:
            with pytest.raises(ShapeError, match="index -1 is outside"):
                model.run([[[1.0, 2, 3]]])
