"""from_torch: live modules, traced or written by the exporters, against themselves; files by allow_torch."""

import copy
import io
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch_nets
from torch import nn

import fastrnn
from fastrnn.errors import ModelFormatError, UnsupportedError
from fastrnn.importers.pytorch.modules import candidates

pytestmark = pytest.mark.any_isa
TRACED = [name for name in torch_nets.NETS if not name.endswith(("_cell", "_cell_relu"))]


def agrees(model, module, *x, atol=1e-5):
    """Every output of a model is the module's, at the sizes of these inputs."""
    with torch.no_grad():
        want = list(torch_nets.flat(module(*x)))
    feeds = [t.numpy() for t in torch_nets.flat(x)]
    got = model.run(*feeds)
    assert len(got) == len(want)
    for mine, theirs in zip(got, want, strict=True):
        np.testing.assert_allclose(mine, theirs.numpy(), rtol=1e-5, atol=atol)


@pytest.mark.parametrize("name", TRACED)
@pytest.mark.filterwarnings("ignore:LSTM with projections", "ignore:Using padding='same'")
def test_traced_without_an_example(name):
    """Free in batch and time, and the same layers as the file of its weights."""
    module = torch_nets.made(name)
    model = fastrnn.from_torch(module)
    assert model.graph.notes[0] == "the module was traced by torch.fx"
    assert model.inputs[0].dims[:2] == ("batch", "time")
    agrees(model, module, torch_nets.feed(name))
    agrees(model, module, torch_nets.feed(name, batch=1, time=16))


class WithStates(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x, *_):
        raise NotImplementedError


class GruStates(WithStates):
    def forward(self, x, h):
        y, h = self.rnn(x, h)
        return torch.relu(y), h


class LstmStates(WithStates):
    def forward(self, x, h, c):
        y, (h, c) = self.rnn(x, (h, c))
        return y, h, c


class NestedStates(WithStates):
    def forward(self, x, state):
        h, c = state
        return self.rnn(x, (h, c))


class CellStates(WithStates):
    def forward(self, x, h, c):
        return self.rnn(x, (h, c))


STATES = {
    "gru": (GruStates(nn.GRU(4, 6)), {"x": ("time", "batch", 4), "h": (1, "batch", 6)}),
    "gru_deep_both_ways": (
        GruStates(nn.GRU(4, 6, 2, bidirectional=True, batch_first=True)),
        {"x": ("batch", "time", 4), "h": (4, "batch", 6)},
    ),
    "lstm": (
        LstmStates(nn.LSTM(4, 6, 2, batch_first=True)),
        {"x": ("batch", "time", 4), "h": (2, "batch", 6), "c": (2, "batch", 6)},
    ),
    "lstm_cell": (CellStates(nn.LSTMCell(4, 6)), {"x": ("batch", 4), "h": ("batch", 6), "c": ("batch", 6)}),
    "lstm_projected": (
        LstmStates(nn.LSTM(4, 6, 2, proj_size=3, batch_first=True)),
        {"x": ("batch", "time", 4), "h": (2, "batch", 3), "c": (2, "batch", 6)},
    ),
}


@pytest.mark.parametrize("name", STATES)
@pytest.mark.filterwarnings("ignore:LSTM with projections")
def test_initial_states_are_inputs(name):
    """Given and returned states pair into a stream's, whose steps give the run's bits."""
    torch.manual_seed(3)
    module, dims = copy.deepcopy(STATES[name][0]), STATES[name][1]
    model = fastrnn.from_torch(module)
    assert {info.name: info.dims for info in model.inputs} == dims
    sizes = {"batch": 3, "time": 5}
    x = [torch.randn([sizes.get(d, d) for d in shape]) for shape in dims.values()]
    agrees(model, module, *x)
    if name == "lstm_projected":  # a stream's states are moved about, and a projection computes
        assert not model.streamable
        return
    assert len(model.graph.states) == len(dims) - 1
    if name in ("gru", "lstm"):
        stream = model.stream(batch_size=3)
        stream.state = {n: t.numpy() for n, t in zip(list(dims)[1:], x[1:], strict=True)}
        axis = dims["x"].index("time")
        steps = [stream.step(x[0].numpy().take(t, axis)) for t in range(5)]
        whole = model.run(*(t.numpy() for t in x))[0]
        got = np.stack([s[0] if isinstance(s, tuple) else s for s in steps], axis)
        assert got.tobytes() == whole.tobytes()


def test_nested_states_take_an_example():
    module = NestedStates(nn.LSTM(4, 6, batch_first=True))
    x = (torch.randn(2, 5, 4), (torch.randn(1, 2, 6), torch.randn(1, 2, 6)))
    model = fastrnn.from_torch(module, x)
    assert [info.name for info in model.inputs] == ["x", "state0", "state1"]
    assert len(model.graph.states) == 2
    agrees(model, module, *x)


class Decoder(nn.Module):
    """A state that may be given, and an option that nobody gives."""

    def __init__(self):
        super().__init__()
        self.emb, self.rnn, self.out = nn.Embedding(7, 4), nn.GRU(4, 5, batch_first=True), nn.Linear(5, 7)

    def forward(self, ids, h=None, scale=2.0, flag=True):
        y, h = self.rnn(self.emb(ids), h)
        return (self.out(y) * scale if flag else y), h


def test_arguments_with_defaults_keep_them():
    module, ids, h = Decoder(), torch.randint(0, 7, (2, 3)), torch.randn(1, 2, 5)
    model = fastrnn.from_torch(module)
    assert [info.name for info in model.inputs] == ["ids"]
    agrees(model, module, ids)
    assert model.graph.notes[0] == "the module was traced by torch.fx"
    model = fastrnn.from_torch(module, (ids, h))
    assert [info.name for info in model.inputs] == ["ids", "h"]
    assert model.graph.states == {"h": "y1"}
    agrees(model, module, ids, h)


class Written(nn.Module):
    """A forward of one expression; `rnn`, `lin` and `conv` are at hand."""

    def __init__(self, forward):
        super().__init__()
        self.rnn, self.lin, self.conv = nn.GRU(6, 6, batch_first=True), nn.Linear(6, 6), nn.Conv1d(6, 6, 3, padding=1)
        self.emb, self.scale = nn.Embedding(9, 6), nn.Parameter(torch.randn(6))
        self.register_buffer("window", torch.hann_window(6))
        self.written = forward

    def forward(self, x):
        return self.written(self, x)


F = nn.functional
WRITTEN = {
    "arithmetic": lambda m, x: (m.rnn(x)[0] * 2 - x / 3 + 1.5) ** 2 - (1 - x) * m.scale,
    "comparisons": lambda m, x: torch.where(m.rnn(x)[0] > 0.1, x, -x).masked_fill(x < -1, 0.25),
    "clamps": lambda m, x: m.rnn(x)[0].clamp(-0.3, 0.2) + F.relu6(x) + F.hardtanh(x) + x.clamp(min=0),
    "functions": lambda m, x: (
        torch.exp(-m.rnn(x)[0].abs()) + torch.sqrt(x * x + 1) + F.softplus(x) + torch.rsqrt(x**2 + 1)
    ),
    "more_functions": lambda m, x: (
        F.gelu(m.lin(x), approximate="tanh") + F.silu(x) + F.hardsigmoid(x) + F.logsigmoid(x)
    ),
    "buffers": lambda m, x: m.rnn(x * m.window)[0],
    "view_by_size": lambda m, x: m.rnn(x)[0].view(x.size(0), x.size(1), 2, 3).sum(-1),
    "view_flattened": lambda m, x: m.lin(m.rnn(x)[0].reshape(-1, 6)).view(x.shape[0], -1, 6),
    "shape_arithmetic": lambda m, x: m.rnn(x)[0].reshape(x.shape[0] * x.shape[1], 6).reshape(x.shape),
    "flatten": lambda m, x: m.rnn(x)[0].unflatten(-1, (2, 3)).flatten(2),
    "permute": lambda m, x: m.conv(m.rnn(x)[0].permute(0, 2, 1)).permute(0, 2, 1),
    "negative_axes": lambda m, x: m.conv(m.rnn(x)[0].transpose(-1, -2)).transpose(-2, -1).unsqueeze(-1).squeeze(-1),
    "cat_and_stack": lambda m, x: torch.cat([m.rnn(x)[0], x], -1) + torch.stack([x, x], -2).flatten(2),
    "chunks": lambda m, x: torch.cat([a * torch.sigmoid(b) for a, b in [m.rnn(x)[0].chunk(2, -1)]], -1),
    "splits": lambda m, x: torch.cat(m.rnn(x)[0].split([1, 5], 2)[::-1], 2),
    "slices": lambda m, x: m.rnn(x)[0][..., 1:4] + x[:, :, None, -3:].squeeze(2) + x[:, :, ::2],
    "last": lambda m, x: m.rnn(x)[0][:, -1],
    "but_one": lambda m, x: m.rnn(x)[0][:, :-1] - x[:, 1:],
    "hidden": lambda m, x: m.rnn(x)[1].squeeze(0),
    "hidden_index": lambda m, x: m.rnn(x)[1][-1],
    "means": lambda m, x: m.rnn(x)[0].mean(1) + x.amax(dim=1) - x.sum(dim=1, keepdim=True).squeeze(1),
    "max": lambda m, x: m.rnn(x)[0].max(1)[0] + x.max(dim=1).values,
    "softmax": lambda m, x: F.log_softmax(m.rnn(x)[0], dim=-1) + torch.softmax(x, 2),
    "attention": lambda m, x: torch.softmax(m.lin(x) @ m.rnn(x)[0].transpose(1, 2) / 6**0.5, -1) @ x,
    "attention_pooled": lambda m, x: (torch.softmax(m.lin(m.rnn(x)[0])[..., :1], 1) * x).sum(1),
    "bmm": lambda m, x: torch.bmm(x, m.rnn(x)[0].mT),
    "einsum": lambda m, x: torch.einsum("bti,bsi->bts", m.rnn(x)[0], x),
    "zeros": lambda m, x: m.rnn(x, torch.zeros(1, x.size(0), 6))[0],
    "new_zeros": lambda m, x: m.rnn(x, x.new_zeros((1, x.shape[0], 6)))[0],
    "like": lambda m, x: m.rnn(x)[0] + torch.ones_like(x) * 0.5 + torch.zeros_like(x),
    "expand": lambda m, x: m.rnn(x)[0] + m.scale.expand(x.shape[0], 1, 6),
    "expand_minus_one": lambda m, x: m.rnn(x)[0] + x[:, -1:].expand(-1, x.shape[1], -1),
    "repeat": lambda m, x: m.rnn(x)[0].repeat(1, 1, 2),
    "causal": lambda m, x: m.conv(F.pad(x.transpose(1, 2), (2, 0))).transpose(1, 2),
    "pads": lambda m, x: m.conv(F.pad(m.rnn(x)[0].transpose(1, 2), (2, 0), value=0.5)).transpose(1, 2),
    "flip": lambda m, x: m.rnn(x.flip(1))[0].flip([1]),
    "functional": lambda m, x: F.linear(m.rnn(x)[0], m.lin.weight, m.lin.bias) + F.layer_norm(x, (6,)),
    "ids": lambda m, x: m.rnn(F.embedding(m.rnn(x)[0].argmax(-1), m.emb.weight))[0],
    "unbind": lambda m, x: torch.stack(m.rnn(x)[0].unbind(2)[:3], 2),
    "select": lambda m, x: m.rnn(x)[0].select(1, -1) + x.narrow(2, 1, 3).sum((1, 2), keepdim=True).flatten(1),
    "float": lambda m, x: (m.rnn(x)[0] > 0).float() * x,
    "dict": lambda m, x: {"words": m.rnn(x)[0], "hidden": m.rnn(x)[1]},
    "in_place": lambda m, x: m.rnn(x)[0].relu().add(1).mul(x),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_functions_and_methods(name):
    torch.manual_seed(5)
    module = Written(WRITTEN[name]).eval()
    x = torch.randn(2, 5, 6)
    model = fastrnn.from_torch(module, x)
    assert model.graph.notes[0] == "the module was traced by torch.fx"
    agrees(model, module, x)
    if name == "causal":  # its input's form shows behind the padding
        assert fastrnn.from_torch(module).inputs[0].dims == ("batch", "time", 6)
    if name != "expand_minus_one":
        agrees(model, module, torch.randn(3, 8, 6))


MODULES = {
    "conv2d": (nn.Sequential(nn.Conv2d(1, 4, 3, stride=(1, 2), padding=1), nn.BatchNorm2d(4), nn.ReLU()), (2, 1, 9, 8)),
    "conv_transpose": (nn.Sequential(nn.Conv1d(3, 4, 4, stride=2), nn.ConvTranspose1d(4, 3, 4, stride=2)), (2, 3, 20)),
    "conv_same": (nn.Conv1d(3, 4, 5, padding="same", dilation=2), (2, 3, 20)),
    "pools": (nn.Sequential(nn.MaxPool1d(3, 2, 1), nn.AvgPool1d(2), nn.Conv1d(3, 3, 1)), (2, 3, 20)),
    "global_pool": (
        nn.Sequential(nn.Conv1d(3, 5, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(5, 2)),
        (2, 3, 20),
    ),
    "pads": (nn.Sequential(nn.ConstantPad1d((2, 1), 0.5), nn.ReflectionPad1d(2), nn.Conv1d(3, 3, 3)), (2, 3, 20)),
    "norms": (nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 4), nn.LayerNorm(4, bias=False), nn.PReLU()), (2, 5, 6)),
    "embedding": (nn.Sequential(nn.Embedding(7, 4, padding_idx=0), nn.Linear(4, 3)), "ids"),
    "unbatched": (nn.GRU(4, 5, 2), (9, 4)),
    "cell_alone": (nn.GRUCell(4, 5), (3, 4)),
    "softmax": (nn.Sequential(nn.Linear(6, 4), nn.Dropout(0.5), nn.Identity(), nn.LogSoftmax(-1)), (2, 5, 6)),
}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_modules(name):
    torch.manual_seed(6)
    module, shape = MODULES[name]
    module = copy.deepcopy(module)
    module.train()
    x = torch.randint(0, 7, (2, 5)) if shape == "ids" else torch.randn(shape)
    model = fastrnn.from_torch(module, x)
    assert module.training  # left as it was
    assert all(child.training for child in module.modules())
    agrees(model, module.eval(), x)


def test_a_loop_over_a_cell_goes_through_the_exporter():
    module = torch_nets.made("gru_cell")
    with pytest.raises(ModelFormatError, match=r"Stepped: torch.fx can't trace it .*; pass example="):
        fastrnn.from_torch(module)
    model = fastrnn.from_torch(module, torch_nets.feed("gru_cell").numpy())
    assert "torch.onnx.export(dynamo=True)" in model.graph.notes[0]
    assert model.outputs[0].name == "y"
    agrees(model, module, torch_nets.feed("gru_cell", batch=2, time=4))


class Dances(nn.Module):
    """What it computes depends on its input's values."""

    def forward(self, x):
        return x * 2 if float(x.sum()) > 0 else torch.linalg.inv(x @ x.mT)


def test_what_nobody_can_write_down_says_what_each_said():
    with pytest.raises(UnsupportedError, match=r"(?s)Dances.*traced: .*torch.onnx.export\(dynamo=True\).*dynamo=False"):
        fastrnn.from_torch(Dances(), -torch.ones(1, 3, 3))


def test_a_model_that_answers_otherwise_is_refused():
    """What the exporters bake in, or an importer gets wrong, shows when the model is compared with the module."""
    converted = next(candidates(nn.GRU(3, 4, batch_first=True)))
    model = fastrnn.from_onnx(converted.proto)
    converted.check(model.graph, model.run)

    def wrong(change):
        return lambda **feeds: [change(k, y) for k, y in enumerate(model.run(**feeds))]

    with pytest.raises(UnsupportedError, match=r"at x \[3, 11, 3\] its output y1 is off by 0.\d+"):
        converted.check(model.graph, wrong(lambda k, y: y + 0.5 * k))
    with pytest.raises(UnsupportedError, match=r"its output y0 is \[3, 11\] here and \[3, 11, 4\] of the module"):
        converted.check(model.graph, wrong(lambda k, y: y[..., 0]))
    with pytest.raises(UnsupportedError, match="its output y0 is off by inf"):
        converted.check(model.graph, wrong(lambda k, y: y * np.nan))
    with pytest.raises(UnsupportedError, match="there are 1 outputs here and 2 of the module"):
        converted.check(model.graph, lambda **feeds: model.run(**feeds)[:1])
    # right at the example's length alone
    with pytest.raises(UnsupportedError, match=r"at x \[2, 7, 3\] its output y0 is off"):
        converted.check(model.graph, wrong(lambda k, y: y if 11 in y.shape or k else y + 1))


def test_a_trace_that_differs_from_the_module_is_not_taken():
    module = torch_nets.net({"rnn": torch_nets.stack("GRU", 3, 4)}, lambda m, x: torch_nets.first(m.rnn(x)))()
    with pytest.raises(ModelFormatError, match="traces gives other answers"):
        fastrnn.from_torch(module)


def test_what_it_refuses():
    with pytest.raises(ModelFormatError, match=r"takes a torch\.nn\.Module, got dict"):
        fastrnn.from_torch({})
    with pytest.raises(UnsupportedError, match="float64"):
        fastrnn.from_torch(nn.GRU(3, 4).double())
    with pytest.raises(ModelFormatError, match="example= has no tensor in it"):
        fastrnn.from_torch(nn.GRU(3, 4), "x")
    with pytest.raises(ModelFormatError, match="the form of the input input can't be inferred"):
        fastrnn.from_torch(nn.Sequential(nn.BatchNorm1d(3), nn.Conv1d(3, 3, 3)))


def test_precisions():
    module = nn.GRU(3, 4, batch_first=True)
    x = torch.randn(2, 5, 3)
    for dtype in (torch.float64, torch.float16, torch.bfloat16):
        other = copy.deepcopy(module).to(dtype)
        model = fastrnn.from_torch(other, float64_as_float32=True)
        assert next(other.parameters()).dtype == dtype
        agrees(model, other.float(), x)


def saved(thing) -> bytes:
    file = io.BytesIO()
    torch.save(thing, file)
    return file.getvalue()


class TestAllowTorch:
    def test_a_pickled_module(self, tmp_path):
        module = nn.Sequential(nn.Linear(3, 4), nn.Tanh())
        (tmp_path / "m.pt").write_bytes(saved(module))
        with pytest.raises(UnsupportedError, match="allow_torch=True"):
            fastrnn.load(tmp_path / "m.pt")
        agrees(fastrnn.load(tmp_path / "m.pt", allow_torch=True), module, torch.randn(2, 5, 3))

    def test_torchscript(self, tmp_path):
        module = torch_nets.made("residual")
        x = torch_nets.feed("residual")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch 2.13 deprecates TorchScript; files of it stay
            torch.jit.save(torch.jit.trace(module, x), tmp_path / "m.pt")
        with pytest.raises(UnsupportedError, match=r"holds TorchScript, a program: give layers= .*state_dict\(\)"):
            fastrnn.load(tmp_path / "m.pt")
        with pytest.raises(ModelFormatError, match="TorchScript; pass example="):
            fastrnn.load(tmp_path / "m.pt", allow_torch=True)
        model = fastrnn.load(tmp_path / "m.pt", allow_torch=True, example=x)
        agrees(model, module, x)

    def test_a_checkpoint_with_other_things_in_it(self):
        module = torch_nets.made("gru")
        blob = saved({"state_dict": module.state_dict(), "best": np.float64(0.5), "config": torch.nn.Tanh})
        with pytest.raises(UnsupportedError, match="asks for"):
            fastrnn.load(blob)
        model = fastrnn.load(blob, allow_torch=True)
        x = torch_nets.feed("gru").numpy()
        assert model(x).tobytes() == fastrnn.load(saved(module.state_dict()))(x).tobytes()

    def test_weights_are_read_without_it(self, monkeypatch):
        """Where a file is plain, torch is not asked although it may be."""
        from fastrnn.importers.pytorch import through_torch

        monkeypatch.setattr(through_torch, "load", None)
        fastrnn.load(saved(torch_nets.made("gru").state_dict()), allow_torch=True)
        with pytest.raises(ModelFormatError, match="this one holds bare weights"):
            fastrnn.load(saved(torch_nets.made("gru").state_dict()), allow_torch=True, example=torch.zeros(1, 1, 5))


def test_the_guide_runs(tmp_path, monkeypatch):
    """Every block of docs/guide/pytorch.md, one after the other."""
    text = (Path(__file__).resolve().parents[3] / "docs" / "guide" / "pytorch.md").read_text(encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    assert len(blocks) == 6
    for block in blocks:
        exec(compile(block, "docs/guide/pytorch.md", "exec"), names)
    assert names["y"].shape == (16,)


class _EachStep(torch.nn.Module):
    """A loop over the steps, which only an exporter can write down."""

    def __init__(self):
        super().__init__()
        self.rnn = torch.nn.GRU(3, 4, batch_first=True)

    def forward(self, x):
        y = self.rnn(x)[0]
        for t in range(x.shape[1]):
            y = y * torch.sigmoid(y[:, t : t + 1].cumsum(2))
        return y


def test_a_length_that_stays_names_a_remedy_that_the_caller_has():
    model = fastrnn.from_torch(_EachStep().eval(), torch.randn(2, 7, 3))
    with pytest.raises(fastrnn.ShapeError, match="make a model from an example of the size that you need") as error:
        model.run(np.zeros((2, 9, 3), np.float32))
    assert "dynamic axis" not in str(error.value)
    assert "strict=" not in str(error.value)
    with pytest.raises(fastrnn.StreamError, match="an example of the size"):
        model.stream()
