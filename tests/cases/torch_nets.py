"""Small PyTorch modules and the list of layers that says each: for files of weights and for live modules alike.

`NETS`: id -> (make, layers, input), where make() is a module that takes [batch, time, features] (or ids), layers is
what `fastrnn.load` is told (None: nothing), and input is the number of features, or "ids".
"""

from __future__ import annotations

import warnings

import torch
from torch import nn

IDS = 11  # size of every vocabulary


class Layers(nn.Module):
    """Modules by name, run one after the other as `forward` says: rows of (name or function)."""

    def __init__(self, modules: dict, *steps):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.steps = steps

    def forward(self, x):
        for step in self.steps:
            x = step(self, x) if callable(step) else called(getattr(self, step), x)
        return x


def called(module, x):
    """The sequence that a module makes of x; asked of the module, which torch.fx can follow, not of its answer."""
    return module(x)[0] if isinstance(module, nn.RNNBase) else module(x)


def first(y):
    return y[0] if isinstance(y, tuple) else y


class Stepped(nn.Module):
    """A cell run over all steps, so that its module is a layer like any other."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x):
        state, out = None, []
        for t in range(x.shape[1]):
            state = self.cell(x[:, t], state)
            out.append(first(state))
        return torch.stack(out, 1)


def stack(kind, i, h, **more):
    return lambda: nn.Sequential(getattr(nn, kind)(i, h, batch_first=True, **more))[0]


def conv(module):
    return lambda net, x: getattr(net, module)(x.transpose(1, 2)).transpose(1, 2)


def causal(module, count):
    return lambda net, x: getattr(net, module)(nn.functional.pad(x.transpose(1, 2), (count, 0))).transpose(1, 2)


def norm(features):
    """A BatchNorm1d with statistics as after training."""
    module = nn.BatchNorm1d(features)
    with torch.no_grad():
        for tensor in (module.running_mean, module.weight, module.bias):
            tensor.copy_(torch.randn(features))
        module.running_var.copy_(torch.rand(features) + 0.3)
    return module


def residual(name):
    return lambda net, x: called(getattr(net, name), x) + x


def act(fn):
    return lambda net, x: fn(x)


def net(modules, *steps):
    return lambda: Layers({name: make() for name, make in modules.items()}, *steps)


LAST = act(lambda x: x[:, -1])
LSTM8 = {"rnn": stack("LSTM", 5, 8)}

NETS = {
    # bare stacks: no list is needed
    "rnn": (stack("RNN", 5, 7), None, 5),
    "rnn_relu": (stack("RNN", 5, 7, nonlinearity="relu"), ["rnn_relu"], 5),
    "rnn_deep": (stack("RNN", 5, 7, num_layers=3, bidirectional=True), None, 5),
    "lstm": (stack("LSTM", 5, 8), None, 5),
    "lstm_no_bias": (stack("LSTM", 5, 8, bias=False, num_layers=2), None, 5),
    "lstm_both_ways": (stack("LSTM", 5, 8, num_layers=2, bidirectional=True), None, 5),
    "lstm_projected": (stack("LSTM", 5, 8, num_layers=2, proj_size=3), None, 5),
    "lstm_projected_both_ways": (stack("LSTM", 5, 8, num_layers=2, proj_size=3, bidirectional=True), None, 5),
    "gru": (stack("GRU", 5, 8), None, 5),
    "gru_both_ways": (stack("GRU", 3, 17, num_layers=2, bidirectional=True), None, 3),
    "gru_no_bias": (stack("GRU", 5, 8, bias=False), None, 5),
    "square": (stack("LSTM", 8, 8, num_layers=2), None, 8),
    "one": (stack("GRU", 1, 1), None, 1),
    "rnn_cell": (lambda: Stepped(nn.RNNCell(5, 7)), None, 5),
    "rnn_cell_relu": (lambda: Stepped(nn.RNNCell(5, 7, nonlinearity="relu")), ["rnn_relu:cell"], 5),
    "lstm_cell": (lambda: Stepped(nn.LSTMCell(5, 7)), None, 5),
    "gru_cell": (lambda: Stepped(nn.GRUCell(5, 7, bias=False)), None, 5),
    # whole models
    "tagger": (
        net(
            {
                "emb": lambda: nn.Embedding(IDS, 6),
                "rnn": stack("LSTM", 6, 8, bidirectional=True),
                "out": lambda: nn.Linear(16, 4),
            },
            "emb", "rnn", "out", act(lambda x: torch.softmax(x, -1)),
        ),
        ["embedding:emb", "lstm:rnn", "linear:out", "softmax"],
        "ids",
    ),
    "last": (
        net({**LSTM8, "out": lambda: nn.Linear(8, 4)}, "rnn", LAST, "out", act(lambda x: torch.log_softmax(x, -1))),
        ["lstm:rnn", "last", "linear:out", "log_softmax"],
        5,
    ),
    "final": (
        net(
            {"rnn": stack("GRU", 5, 8, bidirectional=True), "out": lambda: nn.Linear(16, 4)},
            lambda net, x: net.rnn(x)[1].transpose(0, 1).flatten(1), "out",
        ),
        ["gru:rnn", "final", "linear:out"],
        5,
    ),
    "final_projected": (
        net({"rnn": stack("LSTM", 5, 8, proj_size=3, num_layers=2)}, lambda net, x: net.rnn(x)[1][0][-1]),
        ["lstm:rnn", "final"],
        5,
    ),
    "mean": (net(LSTM8, "rnn", act(lambda x: x.mean(1))), ["lstm:rnn", "mean"], 5),
    "max": (net(LSTM8, "rnn", act(lambda x: x.amax(1))), ["lstm:rnn", "max"], 5),
    "residual": (
        net(
            {"a": lambda: nn.Linear(5, 8), "b": stack("GRU", 8, 8), "n": lambda: nn.LayerNorm(8, eps=1e-3)},
            "a", act(torch.relu), residual("b"), "n",
        ),
        ["linear:a", "relu", "gru:b", "residual", "layernorm:n(eps=1e-3)"],
        5,
    ),
    "residual_over_two": (
        net(
            {"a": lambda: nn.Linear(5, 5, bias=False), "b": stack("GRU", 5, 8)},
            lambda net, x: torch.tanh(net.a(x)) + x, "b",
        ),
        ["linear:a", "tanh", "residual(over=2)", "gru:b"],
        5,
    ),
    "conv": (
        net(
            {
                "front": lambda: nn.Conv1d(5, 8, 3, stride=2, padding=1),
                "bn": lambda: norm(8),
                "rnn": stack("GRU", 8, 6),
            },
            conv("front"), conv("bn"), act(torch.relu), "rnn",
        ),
        ["conv1d:front(stride=2, padding=1)", "batchnorm:bn", "relu", "gru:rnn"],
        5,
    ),
    "conv_grouped": (
        net(
            {"pre": lambda: nn.Linear(5, 8), "front": lambda: nn.Conv1d(8, 12, 3, groups=4, dilation=2, bias=False)},
            "pre", causal("front", 4),
        ),
        ["linear:pre", "conv1d:front(padding=causal, dilation=2)"],
        5,
    ),
    "conv_depthwise_first": (
        net({"front": lambda: nn.Conv1d(6, 6, 4, groups=6, padding="same")}, conv("front")),
        ["conv1d:front(groups=6, padding=same)"],
        6,
    ),
    "prelu": (
        net(
            {"a": lambda: nn.Linear(5, 6), "p": nn.PReLU, "b": lambda: nn.Linear(6, 4), "q": lambda: nn.PReLU(4)},
            "a", "p", "b", conv("q"),
        ),
        ["linear:a", "prelu:p", "linear:b", "prelu:q"],
        5,
    ),
    "plain_norms": (
        net(
            {"a": lambda: nn.Linear(5, 6), "n": lambda: nn.LayerNorm(6, elementwise_affine=False)}, "a", "n",
        ),
        ["linear:a", "layernorm", "dropout"],
        5,
    ),
    "functions": (
        net(
            {"a": lambda: nn.Linear(5, 6)},
            "a", act(nn.functional.gelu), act(nn.functional.silu), act(lambda x: nn.functional.leaky_relu(x, 0.2)),
            act(nn.functional.elu), act(nn.functional.selu), act(nn.functional.mish), act(nn.functional.softplus),
            act(nn.functional.softsign), act(nn.functional.hardswish), act(nn.functional.relu6), act(torch.sigmoid),
            act(torch.tanh),
        ),
        "linear:a gelu silu leaky_relu(alpha=0.2) elu selu mish softplus softsign hard_swish relu6 sigmoid tanh",
        5,
    ),
}  # fmt: skip


def made(name: str) -> nn.Module:
    """The module, in eval mode, its weights the same on every call and every bias away from zero."""
    torch.manual_seed(sum(map(ord, name)))
    module = NETS[name][0]().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    return module


def feed(name: str, batch: int = 3, time: int = 9) -> torch.Tensor:
    torch.manual_seed(time)
    size = NETS[name][2]
    return torch.randint(0, IDS, (batch, time)) if size == "ids" else torch.randn(batch, time, size)


def answer(module: nn.Module, *x) -> torch.Tensor:
    """What a module answers (the first of several), without gradients."""
    with torch.no_grad(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="LSTM with projections|Using padding='same'")  # of speed alone
        return first(module(*x))


def flat(value):
    """Every tensor of an answer, in order."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        yield from flat(list(value.values()))
    else:
        for part in value:
            yield from flat(part)
