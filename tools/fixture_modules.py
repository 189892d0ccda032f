"""Modules and helpers of fixture_models.py, each something that exporters are known to write in a special way."""

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
