"""The PyTorch modules behind tests/data/onnx: each one thing that exporters are known to write in a special way.

Used by make_torch_fixtures.py. Sizes are small and odd on purpose (H = 20, 33, 5): no multiple of any vector length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

BTF, TBF = ("batch", "time"), ("time", "batch")


@dataclass(frozen=True)
class FixtureModel:
    """A module, its inputs, and what its axes mean.

    build: makes the module (seeded by the caller). example: (time, batch) -> tuple of tensors, one an input.
    axes: value name -> one of "batch", "time" or a size, an axis. states: input -> output of a hand-threaded state.
    ways: which of make_torch_fixtures.WAYS to export (None: its USUAL four). context: what its streams are opened with.
    """

    about: str
    build: Callable[[], nn.Module]
    example: Callable[[int, int], tuple]
    axes: dict
    inputs: tuple[str, ...] = ("x",)
    outputs: tuple[str, ...] = ("y",)
    states: dict = field(default_factory=dict)
    streamable: bool = True
    ways: tuple[str, ...] | None = None
    context: int | None = None


def floats(layout, *features):
    """An example maker: one float32 tensor, batch and time in the order of `layout`."""

    def make(time, batch):
        sizes = {"time": time, "batch": batch}
        return (torch.randn(*[sizes[a] for a in layout], *features),)

    return make


def tokens(vocabulary, layout=BTF):
    """An example maker: one int64 tensor of token numbers."""

    def make(time, batch):
        sizes = {"time": time, "batch": batch}
        return (torch.randint(0, vocabulary, [sizes[a] for a in layout]),)

    return make


class Head(nn.Module):
    """A recurrent layer (first result only) and what follows it."""

    def __init__(self, rnn, *after, before=()):
        super().__init__()
        self.before, self.rnn, self.after = nn.Sequential(*before), rnn, nn.Sequential(*after)

    def forward(self, x):
        y, _ = self.rnn(self.before(x))
        return self.after(y)


class LastStates(nn.Module):
    """A recurrent layer that also gives its last states."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x):
        y, last = self.rnn(x)
        return (y, *last) if isinstance(last, tuple) else (y, last)


class GivenLSTM(LastStates):
    """Takes its first states too. (torch.export wants a written-out signature, no *states.)"""

    def forward(self, x, h0, c0):
        y, (hn, cn) = self.rnn(x, (h0, c0))
        return y, hn, cn


class GivenGRU(LastStates):
    """Takes its first state too."""

    def forward(self, x, h0):
        return self.rnn(x, h0)


class LearnedStart(nn.Module):
    """First states are parameters, expanded to the batch."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(6, 20, batch_first=True)
        self.h0 = nn.Parameter(torch.randn(1, 1, 20))
        self.c0 = nn.Parameter(torch.randn(1, 1, 20))
        self.out = nn.Linear(20, 3)

    def forward(self, x):
        n = x.shape[0]
        y, _ = self.rnn(x, (self.h0.expand(-1, n, -1).contiguous(), self.c0.expand(-1, n, -1).contiguous()))
        return self.out(y)


class ZeroStart(nn.Module):
    """The first state written out as `torch.zeros(layers, x.size(0), H)`, the way tutorials do it."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(6, 20, num_layers=2, batch_first=True)
        self.out = nn.Linear(20, 3)

    def forward(self, x):
        h0 = torch.zeros(2, x.size(0), 20, dtype=x.dtype)
        y, _ = self.rnn(x, h0)
        return self.out(y)


class LastStep(nn.Module):
    """A classifier of the last step."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(6, 20, batch_first=True)
        self.drop = nn.Dropout(0.3)
        self.out = nn.Linear(20, 4)

    def forward(self, x):
        y, _ = self.rnn(x)
        return torch.softmax(self.out(self.drop(y[:, -1])), dim=-1)


class LastHidden(nn.Module):
    """A classifier of h_n of the top layer."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(6, 20, num_layers=2, batch_first=True)
        self.out = nn.Linear(20, 4)

    def forward(self, x):
        _, h = self.rnn(x)
        return self.out(h[-1])


class Residual(nn.Module):
    """Two LSTM blocks with LayerNorm and a skip around each."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.LSTM(20, 20, batch_first=True), nn.LSTM(20, 20, batch_first=True)
        self.na, self.nb = nn.LayerNorm(20), nn.LayerNorm(20)
        self.into, self.out = nn.Linear(6, 20), nn.Linear(20, 3)

    def forward(self, x):
        x = self.into(x)
        x = x + self.a(self.na(x))[0]
        x = x + self.b(self.nb(x))[0]
        return self.out(x)


class Normed(nn.Module):
    """BatchNorm1d over features, before and after a GRU: features move to axis 1 and back."""

    def __init__(self):
        super().__init__()
        self.na, self.nb = nn.BatchNorm1d(6), nn.BatchNorm1d(20)
        self.rnn, self.out = nn.GRU(6, 20, batch_first=True), nn.Linear(20, 3)
        for norm in (self.na, self.nb):
            norm.running_mean.copy_(torch.randn(norm.num_features))
            norm.running_var.copy_(torch.rand(norm.num_features) + 0.5)
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)

    def forward(self, x):
        y, _ = self.rnn(self.na(x.transpose(1, 2)).transpose(1, 2))
        return self.out(self.nb(y.transpose(1, 2)).transpose(1, 2))


class FeatureMean(nn.Module):
    """Means, sums and maxima over features, kept and dropped: reductions that stream."""

    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(6, 20, batch_first=True)

    def forward(self, x):
        y, _ = self.rnn(x - x.mean(-1, keepdim=True))
        return y.mean(-1), y.sum(-1, keepdim=True), y.amax(-1)


class TimeMean(nn.Module):
    """A classifier of the mean over time."""

    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.GRU(6, 20, batch_first=True), nn.Linear(20, 4)

    def forward(self, x):
        y, _ = self.rnn(x)
        return self.out(y.mean(1))


class Two(nn.Module):
    """Two heads on one trunk, one on the first layer, one on the second."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.LSTM(6, 20, batch_first=True), nn.GRU(20, 33, batch_first=True, bias=False)
        self.voice, self.pitch = nn.Linear(20, 1), nn.Linear(33, 5)

    def forward(self, x):
        low, _ = self.a(x)
        high, _ = self.b(low)
        return torch.sigmoid(self.voice(low)).squeeze(-1), self.pitch(high)


class TwoInputs(nn.Module):
    """Tokens and floats side by side: Embedding, Concat, LSTM."""

    def __init__(self):
        super().__init__()
        self.emb, self.rnn, self.out = nn.Embedding(17, 5), nn.LSTM(9, 20, batch_first=True), nn.Linear(20, 3)

    def forward(self, tokens, x):
        y, _ = self.rnn(torch.cat([self.emb(tokens), x], dim=-1))
        return self.out(y)


class Gated(nn.Module):
    """A head that splits its features and gates one half with the other; clamp, scale, shift, divide."""

    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.GRU(6, 20, batch_first=True), nn.Linear(20, 12)

    def forward(self, x):
        y, _ = self.rnn(x)
        a, b = self.out(y).chunk(2, dim=-1)
        y = a * torch.sigmoid(b)
        return torch.clamp(-(y * 3.0 - 0.5) / 0.7, -1.0, 2.0)


class Folded(nn.Module):
    """Batch and time folded into one axis around a head, then unfolded: Reshape with a live size."""

    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.LSTM(6, 20, batch_first=True), nn.Linear(20, 5)

    def forward(self, x):
        y, _ = self.rnn(x)
        n, t, h = y.shape
        return torch.log_softmax(self.out(y.reshape(n * t, h)), dim=-1).reshape(n, t, 5)


class Stepped(nn.Module):
    """A step function over an LSTMCell: one step in, states threaded by the caller, no time axis."""

    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.LSTMCell(6, 20), nn.Linear(20, 3)

    def forward(self, x, h0, c0):
        h, c = self.cell(x, (h0, c0))
        return self.out(h), h, c


def given_states(layout, features, states):
    """An example maker: x and first states, each [layers*D, batch, H] of `states`."""

    def make(time, batch):
        return (*floats(layout, features)(time, batch), *[torch.randn(n, batch, h) for n, h in states])

    return make


HEADS = {
    "gelu": (nn.Linear(20, 9), nn.GELU(), nn.Linear(9, 3), nn.Hardsigmoid()),
    "gelu_tanh": (nn.Linear(20, 9), nn.GELU(approximate="tanh"), nn.Linear(9, 3), nn.Tanh()),
    "relus": (
        nn.Linear(20, 9),
        nn.LeakyReLU(0.2),
        nn.Linear(9, 7),
        nn.ELU(0.7),
        nn.Linear(7, 5),
        nn.SELU(),
        nn.ReLU6(),
    ),
    "softs": (
        nn.Linear(20, 9),
        nn.Softplus(),
        nn.Linear(9, 7),
        nn.Softsign(),
        nn.Linear(7, 5),
        nn.SiLU(),
        nn.Hardswish(),
    ),
    "prelu_mish": (nn.Linear(20, 9), nn.PReLU(init=0.1), nn.Linear(9, 7), nn.Mish(), nn.Hardtanh(-0.5, 0.8)),
}


def head_models() -> dict[str, FixtureModel]:
    """A GRU with one chain of activations each."""
    axes = {"x": (*BTF, 6)}
    sizes = {"gelu": 3, "gelu_tanh": 3, "relus": 5, "softs": 5, "prelu_mish": 7}
    return {
        f"head_{name}": FixtureModel(
            f"GRU 20 and {', '.join(type(m).__name__ for m in after)}",
            lambda after=after: Head(nn.GRU(6, 20, batch_first=True), *after),
            floats(BTF, 6),
            axes | {"y": (*BTF, sizes[name])},
            ways=("dynamo", "script"),
        )
        for name, after in HEADS.items()
    }


def _simple(about, build, layout, features, out, **more) -> FixtureModel:
    return FixtureModel(about, build, floats(layout, features), {"x": (*layout, features), "y": (*layout, out)}, **more)


USUAL = ("dynamo", "dynamo_frozen", "script", "script_frozen")
OLD, OLDEST = (*USUAL, "script_op11"), (*USUAL, "script_op9")
MANY = (*USUAL, "dynamo_b1", "dynamo_batch", "script_op11")


class CausalBlock(nn.Module):
    """A GRU and a transformer layer that sees no later step."""

    def __init__(self, features, hidden, heads):
        super().__init__()
        self.rnn = nn.GRU(features, hidden, batch_first=True)
        self.block = nn.TransformerEncoderLayer(hidden, heads, 20, dropout=0.0, batch_first=True)

    def forward(self, x):
        y, _ = self.rnn(x)
        mask = torch.full((x.shape[1], x.shape[1]), float("-inf"), dtype=x.dtype).triu(1)
        return self.block(y, src_mask=mask, is_causal=True)


class Positions(nn.Module):
    """Attention with learned positions, rotated queries and keys, and only some steps back where `window` says so."""

    def __init__(self, features, heads, window=None, learned=True, rotary=False):
        super().__init__()
        self.heads, self.window, self.rotary = heads, window, rotary
        self.rnn = nn.GRU(features, features, batch_first=True)
        self.position = nn.Embedding(24, features) if learned else None
        self.qkv, self.out = nn.Linear(features, 3 * features), nn.Linear(features, 4)

    def rotated(self, x, steps):
        half = x.shape[-1] // 2
        angle = steps[:, None] * 0.5 ** torch.arange(half)
        a, b = x.chunk(2, -1)
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)

    def forward(self, x):
        steps = torch.arange(x.shape[1])
        x = x if self.position is None else x + self.position(steps)
        y, _ = self.rnn(x)
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2) for t in self.qkv(y).chunk(3, -1))
        if self.rotary:
            q, k = self.rotated(q, steps), self.rotated(k, steps)
        mask = None
        if self.window:
            apart = steps[:, None] - steps
            mask = (apart >= 0) & (apart < self.window)
        y = nn.functional.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None)
        return self.out(y.transpose(1, 2).flatten(2))


MODELS: dict[str, FixtureModel] = {
    "lstm_stacked": _simple(
        "two LSTM layers of 20 with dropout between them (off), Linear, Sigmoid; batch first",
        lambda: Head(nn.LSTM(8, 20, 2, batch_first=True, dropout=0.2), nn.Linear(20, 3), nn.Sigmoid()),
        BTF,
        8,
        3,
        ways=MANY,
    ),
    "lstm_time_major": _simple("one LSTM layer of 33, time first", lambda: Head(nn.LSTM(5, 33)), TBF, 5, 33, ways=OLD),
    "lstm_no_bias": _simple(
        "LSTM 20 without bias",
        lambda: Head(nn.LSTM(5, 20, bias=False), nn.Linear(20, 2)),
        TBF,
        5,
        2,
        ways=OLDEST,
    ),
    "gru_stacked": _simple(
        "two GRU layers of 20, Linear; batch first",
        lambda: Head(nn.GRU(8, 20, 2, batch_first=True), nn.Linear(20, 3)),
        BTF,
        8,
        3,
        ways=MANY,
    ),
    "gru_no_bias": _simple(
        "GRU 33 without bias, time first",
        lambda: Head(nn.GRU(5, 33, bias=False)),
        TBF,
        5,
        33,
        ways=("dynamo", "script"),
    ),
    "rnn_tanh": _simple(
        "two nn.RNN layers of 20, tanh, Linear; the new exporter unrolls nn.RNN",
        lambda: Head(nn.RNN(6, 20, 2, batch_first=True), nn.Linear(20, 3)),
        BTF,
        6,
        3,
        ways=OLD,
    ),
    "rnn_relu": _simple("nn.RNN 33, relu, time first", lambda: Head(nn.RNN(6, 33, nonlinearity="relu")), TBF, 6, 33),
    "tagger": FixtureModel(
        "Embedding, bidirectional LSTM 12, Linear, LogSoftmax",
        lambda: Head(
            nn.LSTM(10, 12, batch_first=True, bidirectional=True),
            nn.Linear(24, 6),
            nn.LogSoftmax(-1),
            before=(nn.Embedding(40, 10),),
        ),
        tokens(40),
        {"x": BTF, "y": (*BTF, 6)},
        streamable=False,
        ways=MANY,
    ),
    "bigru_stacked": _simple(
        "two bidirectional GRU layers of 9, time first",
        lambda: Head(nn.GRU(7, 9, 2, bidirectional=True), nn.Linear(18, 4)),
        TBF,
        7,
        4,
        streamable=False,
    ),
    "birnn": _simple(
        "bidirectional nn.RNN 9",
        lambda: Head(nn.RNN(7, 9, bidirectional=True, batch_first=True)),
        BTF,
        7,
        18,
        streamable=False,
        ways=("dynamo_frozen", "script"),
    ),
    "language_model": FixtureModel(
        "Embedding, GRU 20, Linear, Softmax: next-token probabilities",
        lambda: Head(
            nn.GRU(12, 20, batch_first=True), nn.Linear(20, 30), nn.Softmax(-1), before=(nn.Embedding(30, 12),)
        ),
        tokens(30),
        {"x": BTF, "y": (*BTF, 30)},
        ways=MANY,
    ),
    "lstm_states": FixtureModel(
        "two LSTM layers of 20, batch first; h0, c0 in, hn, cn out",
        lambda: GivenLSTM(nn.LSTM(6, 20, 2, batch_first=True)),
        given_states(BTF, 6, [(2, 20), (2, 20)]),
        {"x": (*BTF, 6), "y": (*BTF, 20)} | dict.fromkeys(("h0", "c0", "hn", "cn"), (2, "batch", 20)),
        ("x", "h0", "c0"),
        ("y", "hn", "cn"),
        {"h0": "hn", "c0": "cn"},
    ),
    "gru_states": FixtureModel(
        "GRU 20, time first; h0 in, hn out",
        lambda: GivenGRU(nn.GRU(6, 20)),
        given_states(TBF, 6, [(1, 20)]),
        {"x": (*TBF, 6), "y": (*TBF, 20)} | dict.fromkeys(("h0", "hn"), (1, "batch", 20)),
        ("x", "h0"),
        ("y", "hn"),
        {"h0": "hn"},
        ways=OLD,
    ),
    "lstm_last_states": FixtureModel(
        "two LSTM layers of 20; hn, cn out, nothing in",
        lambda: LastStates(nn.LSTM(6, 20, 2, batch_first=True)),
        floats(BTF, 6),
        {"x": (*BTF, 6), "y": (*BTF, 20)} | dict.fromkeys(("hn", "cn"), (2, "batch", 20)),
        outputs=("y", "hn", "cn"),
    ),
    "learned_start": _simple(
        "LSTM 20 whose first states are parameters expanded to the batch",
        LearnedStart,
        BTF,
        6,
        3,
        ways=OLDEST,
    ),
    "zero_start": _simple(
        "two GRU layers of 20, first state torch.zeros(2, x.size(0), 20)", ZeroStart, BTF, 6, 3, ways=USUAL
    ),
    "last_step": FixtureModel(
        "LSTM 20, Dropout (off), Linear, softmax of the last step",
        LastStep,
        floats(BTF, 6),
        {"x": (*BTF, 6), "y": ("batch", 4)},
    ),
    "last_hidden": FixtureModel(
        "two GRU layers of 20, Linear on h_n of the top one",
        LastHidden,
        floats(BTF, 6),
        {"x": (*BTF, 6), "y": ("batch", 4)},
    ),
    "residual": _simple("two LSTM 20, each with LayerNorm and a skip", Residual, BTF, 6, 3),
    "batch_norm": _simple("BatchNorm1d, GRU 20, BatchNorm1d", Normed, BTF, 6, 3),
    "feature_mean": FixtureModel(
        "GRU 20; mean, sum, max over features",
        FeatureMean,
        floats(BTF, 6),
        {"x": (*BTF, 6), "y_mean": BTF, "y_sum": (*BTF, 1), "y_max": BTF},
        outputs=("y_mean", "y_sum", "y_max"),
        ways=OLDEST,
    ),
    "time_mean": FixtureModel(
        "GRU 20, mean over time, Linear", TimeMean, floats(BTF, 6), {"x": (*BTF, 6), "y": ("batch", 4)}
    ),
    "two_outputs": FixtureModel(
        "LSTM 20 and GRU 33 (no bias), a head on each; one output without a feature axis",
        Two,
        floats(BTF, 6),
        {"x": (*BTF, 6), "voice": BTF, "pitch": (*BTF, 5)},
        outputs=("voice", "pitch"),
    ),
    "two_inputs": FixtureModel(
        "tokens and floats: Embedding, Concat, LSTM 20",
        TwoInputs,
        lambda time, batch: (*tokens(17)(time, batch), *floats(BTF, 4)(time, batch)),
        {"tokens": BTF, "x": (*BTF, 4), "y": (*BTF, 3)},
        inputs=("tokens", "x"),
    ),
    "gated_head": _simple("GRU 20, chunk in two, gate, scale, clamp", Gated, BTF, 6, 6),
    "folded_head": _simple("LSTM 20, batch and time folded around Linear and log_softmax", Folded, BTF, 6, 5),
    "step_function": FixtureModel(
        "LSTMCell 20 for a single step, no time axis: h0, c0 in, hn, cn out",
        Stepped,
        lambda time, batch: (torch.randn(batch, 6), torch.randn(batch, 20), torch.randn(batch, 20)),
        {"x": ("batch", 6), "y": ("batch", 3)} | dict.fromkeys(("h0", "c0", "hn", "cn"), ("batch", 20)),
        ("x", "h0", "c0"),
        ("y", "hn", "cn"),
        {"h0": "hn", "c0": "cn"},
        ways=("dynamo", "script"),
    ),
    "causal_block": FixtureModel(
        about="GRU 12, TransformerEncoderLayer of 3 heads with a causal mask; batch first",
        build=lambda: CausalBlock(5, 12, 3),
        example=floats(BTF, 5),
        axes={"x": (*BTF, 5), "y": (*BTF, 12)},
        ways=("dynamo_frozen",),
        context=11,
    ),
    "causal_positions": FixtureModel(
        about="learned positions, GRU 12, scaled_dot_product_attention of 3 heads, is_causal; batch first",
        build=lambda: Positions(12, 3),
        example=floats(BTF, 12),
        axes={"x": (*BTF, 12), "y": (*BTF, 4)},
        ways=("dynamo",),
        context=11,
    ),
    "causal_rotary": FixtureModel(
        about="GRU 12, attention of 3 heads with rotary positions, is_causal; batch first",
        build=lambda: Positions(12, 3, learned=False, rotary=True),
        example=floats(BTF, 12),
        axes={"x": (*BTF, 12), "y": (*BTF, 4)},
        ways=("script",),
        context=11,
    ),
    "causal_window": FixtureModel(
        about="GRU 12, attention of 3 heads over the last 4 steps by a mask; batch first",
        build=lambda: Positions(12, 3, window=4, learned=False),
        example=floats(BTF, 12),
        axes={"x": (*BTF, 12), "y": (*BTF, 4)},
        ways=("dynamo",),
    ),
} | head_models()
