"""Whole recurrent models as PyTorch modules; make_graph_fixtures.py exports tests/data/graphs.tar.xz from them.

Sizes are tiny and odd, so that all files together stay small. Each model is a commonly deployed architecture.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from fixture_modules import FixtureModel, floats, tokens
from torch import nn

BTF = ("batch", "time")


class CausalConv(nn.Module):
    """A convolution over [batch, channels, time] that sees no later step."""

    def __init__(self, channels, maps, kernel, dilation=1):
        super().__init__()
        self.before = (kernel - 1) * dilation
        self.conv = nn.Conv1d(channels, maps, kernel, dilation=dilation)

    def forward(self, x):
        return self.conv(F.pad(x, (self.before, 0)))


class VoiceDetector(nn.Module):
    """Two causal convolutions, a batch norm, GRU, one probability per step."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.norm = CausalConv(5, 6, 3), CausalConv(6, 6, 3, 2), nn.BatchNorm1d(6)
        self.norm.running_mean.uniform_(-1, 1)
        self.norm.running_var.uniform_(0.5, 1.5)
        self.rnn, self.out = nn.GRU(6, 7, batch_first=True), nn.Linear(7, 1)

    def forward(self, x):
        y = torch.relu(self.first(x.transpose(1, 2)))
        y = torch.relu(self.norm(self.second(y))).transpose(1, 2)
        return torch.sigmoid(self.out(self.rnn(y)[0])).squeeze(-1)


class ResidualNormed(nn.Module):
    """Two LSTM blocks, each x + LSTM(x), then LayerNorm."""

    def __init__(self):
        super().__init__()
        self.into = nn.Linear(5, 6)
        self.layers = nn.ModuleList(nn.LSTM(6, 6, batch_first=True) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(6) for _ in range(2))

    def forward(self, x):
        x = self.into(x)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(x + layer(x)[0])
        return x


class AdditiveAttention(nn.Module):
    """GRU, scores v tanh(W h) over all steps, their softmax weighs the states."""

    def __init__(self):
        super().__init__()
        self.rnn, self.key = nn.GRU(5, 6, batch_first=True), nn.Linear(6, 4)
        self.score, self.out = nn.Linear(4, 1, bias=False), nn.Linear(6, 3)

    def forward(self, x):
        h, _ = self.rnn(x)
        weights = torch.softmax(self.score(torch.tanh(self.key(h))), dim=1)
        return self.out((weights * h).sum(dim=1)), weights.squeeze(-1)


class CausalBlock(nn.Module):
    """GRU, then a transformer block whose steps see no later step."""

    def __init__(self):
        super().__init__()
        self.rnn, self.qkv, self.back = nn.GRU(5, 8, batch_first=True), nn.Linear(8, 24), nn.Linear(8, 8)
        self.first, self.second = nn.LayerNorm(8), nn.LayerNorm(8)
        self.wide, self.narrow = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x):
        x, _ = self.rnn(x)
        b, t, d = x.shape
        q, k, v = (z.view(b, t, 2, d // 2).transpose(1, 2) for z in self.qkv(self.first(x)).split(d, dim=-1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.back(y.transpose(1, 2).reshape(b, t, d))
        return x + self.narrow(F.gelu(self.wide(self.second(x))))


class MaskedBlock(nn.Module):
    """GRU and attention whose mask is written out: triu of ones, masked_fill with -inf."""

    def __init__(self):
        super().__init__()
        self.rnn, self.q, self.k, self.v = nn.GRU(5, 6, batch_first=True), *(nn.Linear(6, 6) for _ in range(3))

    def forward(self, x):
        x, _ = self.rnn(x)
        scores = self.q(x) @ self.k(x).transpose(1, 2) / math.sqrt(6)
        later = torch.triu(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool), diagonal=1)
        return torch.softmax(scores.masked_fill(later, float("-inf")), dim=-1) @ self.v(x)


class ConvRecurrent(nn.Module):
    """2-D convolutions and pools over time and frequency, bidirectional LSTM, log probabilities (CTC)."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d((1, 2)),
            nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d((1, 2)),
        )  # fmt: skip
        self.rnn, self.out = nn.LSTM(12, 5, batch_first=True, bidirectional=True), nn.Linear(10, 4)

    def forward(self, x):
        y = self.features(x.unsqueeze(1))
        b, c, t, f = y.shape
        y = y.permute(0, 2, 1, 3).reshape(b, t, c * f)
        return F.log_softmax(self.out(self.rnn(y)[0]), dim=-1)


class SamePooled(nn.Module):
    """'same' convolutions, max pooling to half the steps, LSTM."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv1d(5, 6, 5, padding="same"), nn.Conv1d(6, 6, 3, padding="same")
        self.rnn, self.out = nn.LSTM(6, 7, batch_first=True), nn.Linear(7, 3)

    def forward(self, x):
        y = F.max_pool1d(torch.relu(self.first(x.transpose(1, 2))), 2)
        return self.out(self.rnn(torch.relu(self.second(y)).transpose(1, 2))[0])


class Encoder(nn.Module):
    """Tokens to the last states of two LSTM layers, and every top state."""

    def __init__(self):
        super().__init__()
        self.emb, self.rnn = nn.Embedding(13, 5), nn.LSTM(5, 6, 2, batch_first=True)

    def forward(self, x):
        y, (h, c) = self.rnn(self.emb(x))
        return y, h, c


class DecoderStep(nn.Module):
    """One token and the states in, attention over the encoder's states, log probabilities and states out."""

    def __init__(self):
        super().__init__()
        self.emb, self.rnn = nn.Embedding(13, 5), nn.LSTM(11, 6, batch_first=True)
        self.query, self.out = nn.Linear(6, 6), nn.Linear(12, 13)

    def forward(self, token, h, c, memory):
        query = self.query(h[-1]).unsqueeze(1)
        weights = torch.softmax(torch.bmm(query, memory.transpose(1, 2)), dim=-1)
        seen = torch.bmm(weights, memory)
        y, (hn, cn) = self.rnn(torch.cat([self.emb(token), seen], dim=-1), (h, c))
        return F.log_softmax(self.out(torch.cat([y, seen], dim=-1)), dim=-1).squeeze(1), hn, cn


class WaveNet(nn.Module):
    """Gated dilated causal convolutions with skips, GRU on their sum; channels first."""

    def __init__(self):
        super().__init__()
        self.into = nn.Conv1d(3, 4, 1)
        self.filters = nn.ModuleList(CausalConv(4, 4, 2, 2**k) for k in range(3))
        self.gates = nn.ModuleList(CausalConv(4, 4, 2, 2**k) for k in range(3))
        self.residuals = nn.ModuleList(nn.Conv1d(4, 4, 1) for _ in range(3))
        self.skips = nn.ModuleList(nn.Conv1d(4, 5, 1) for _ in range(3))
        self.rnn, self.out = nn.GRU(5, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        x, total = self.into(x), 0
        for filtered, gate, residual, skip in zip(self.filters, self.gates, self.residuals, self.skips, strict=True):
            z = torch.tanh(filtered(x)) * torch.sigmoid(gate(x))
            x, total = x + residual(z), total + skip(z)
        return self.out(self.rnn(torch.relu(total).transpose(1, 2))[0])


class LanguageModel(nn.Module):
    """Embedding, two LSTM layers with their states in and out, the embedding again as output weights."""

    def __init__(self):
        super().__init__()
        self.emb, self.rnn, self.out = nn.Embedding(15, 6), nn.LSTM(6, 6, 2, batch_first=True), nn.Linear(6, 15)
        self.out.weight = self.emb.weight

    def forward(self, x, h, c):
        y, (hn, cn) = self.rnn(self.emb(x), (h, c))
        return F.log_softmax(self.out(y), dim=-1), hn, cn


class ManyInputs(nn.Module):
    """Two sequences, one vector and one category per row; the latter two are repeated along time."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.LSTM(4, 6, batch_first=True), nn.GRU(3, 5, batch_first=True)
        self.static, self.emb, self.out = nn.Linear(3, 4), nn.Embedding(7, 3), nn.Linear(18, 2)

    def forward(self, a, b, vector, kind):
        x, _ = self.a(a)
        y, _ = self.b(b)
        z = torch.relu(self.static(vector)).unsqueeze(1).expand(-1, x.shape[1], -1)
        e = self.emb(kind).unsqueeze(1).repeat(1, x.shape[1], 1)
        return self.out(torch.cat([x, y, z, e], dim=-1))


class TwoHeads(nn.Module):
    """A label per step, and one for the whole sequence from the last state."""

    def __init__(self):
        super().__init__()
        self.rnn, self.step, self.whole = nn.GRU(5, 6, 2, batch_first=True), nn.Linear(6, 3), nn.Linear(6, 2)

    def forward(self, x):
        y, h = self.rnn(x)
        return self.step(y), torch.softmax(self.whole(h[-1]), dim=-1)


class Plain(nn.Module):
    """LSTM and a Linear: what make_graph_fixtures.py quantises."""

    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.LSTM(5, 8, batch_first=True), nn.Linear(8, 3)

    def forward(self, x):
        return self.out(self.rnn(x)[0])


class Autoencoder(nn.Module):
    """The last state repeated as often as there were steps, decoded by a second LSTM."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.LSTM(3, 6, batch_first=True), nn.LSTM(6, 6, batch_first=True)
        self.out = nn.Linear(6, 3)

    def forward(self, x):
        _, (h, _) = self.encoder(x)
        return self.out(self.decoder(h[-1].unsqueeze(1).repeat(1, x.size(1), 1))[0])


class PooledByLength(nn.Module):
    """Mean over the steps that a row has, by a mask made from its length in the graph; and its last state."""

    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.GRU(5, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x, lengths):
        y, _ = self.rnn(x)
        mask = (torch.arange(x.shape[1])[None, :] < lengths[:, None]).to(y.dtype).unsqueeze(-1)
        last = y.gather(1, (lengths - 1).view(-1, 1, 1).expand(-1, 1, y.size(2))).squeeze(1)
        return self.out((y * mask).sum(1) / mask.sum(1)), self.out(last)


class DualPath(nn.Module):
    """DPRNN: a bidirectional LSTM over frequency, then an LSTM over time, each with a skip."""

    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Linear(1, 3), nn.Linear(3, 1)
        self.intra, self.inter = nn.LSTM(3, 4, batch_first=True, bidirectional=True), nn.LSTM(3, 4, batch_first=True)
        self.a, self.b = nn.Linear(8, 3), nn.Linear(4, 3)

    def forward(self, x):
        b, t, f = x.shape
        y = self.into(x.unsqueeze(-1))
        z = self.a(self.intra(y.reshape(b * t, f, 3))[0]).reshape(b, t, f, 3)
        y = y + z
        z = self.b(self.inter(y.permute(0, 2, 1, 3).reshape(b * f, t, 3))[0])
        y = y + z.reshape(b, f, t, 3).permute(0, 2, 1, 3)
        return self.out(y).squeeze(-1)


def given(make, *states):
    """An example maker: what `make` makes, then states [size, batch, size] or rows [batch, size]."""

    def both(time, batch):
        return (
            *make(time, batch),
            *[torch.randn([{"batch": batch, "time": time}.get(a, a) for a in s]) for s in states],
        )

    return both


def _many(time, batch):
    kind = torch.randint(0, 7, (batch,))
    return torch.randn(batch, time, 4), torch.randn(batch, time, 3), torch.randn(batch, 3), kind


def _with_lengths(time, batch):
    lengths = torch.randint(1, time + 1, (batch,))
    lengths[0] = time
    return torch.randn(batch, time, 5), lengths


def _one(about, build, layout, features, out, **more) -> FixtureModel:
    axes = {"x": (*layout, features), "y": (*layout, *([] if out is None else [out]))}
    return FixtureModel(about, build, floats(layout, features), axes, **more)


STATES = dict.fromkeys(("h", "c", "hn", "cn"), (2, "batch", 6))
GRAPHS: dict[str, FixtureModel] = {
    "voice_detector": _one("causal convolutions, BatchNorm, GRU, sigmoid", VoiceDetector, BTF, 5, None),
    "residual_normed": _one("LSTM blocks with skips and LayerNorm", ResidualNormed, BTF, 5, 6),
    "additive_attention": FixtureModel(
        "GRU, additive attention over all steps", AdditiveAttention, floats(BTF, 5),
        {"x": (*BTF, 5), "y": ("batch", 3), "weights": BTF}, outputs=("y", "weights"), streamable=False,
    ),
    "causal_block": _one("GRU, causal transformer block", CausalBlock, BTF, 5, 8, streamable=False),
    "masked_block": _one("GRU, attention with a written-out causal mask", MaskedBlock, BTF, 5, 6, streamable=False),
    "conv_recurrent": _one("2-D convolutions, BiLSTM, log_softmax", ConvRecurrent, BTF, 12, 4, streamable=False),
    "same_pooled": FixtureModel(
        "'same' convolutions, max pooling over time, LSTM", SamePooled, floats(BTF, 5),
        {"x": (*BTF, 5), "y": ("batch", "(time)//2", 3)},
    ),
    "encoder": FixtureModel(
        "Embedding, two LSTM layers, states out", Encoder, tokens(13),
        {"x": BTF, "y": (*BTF, 6), "h": (2, "batch", 6), "c": (2, "batch", 6)}, outputs=("y", "h", "c"),
    ),
    "decoder_step": FixtureModel(
        "one step of an LSTM decoder that attends to the encoder's states", DecoderStep,
        given(lambda time, batch: (torch.randint(0, 13, (batch, 1)),), (1, "batch", 6), (1, "batch", 6), (*BTF, 6)),
        {"token": ("batch", 1), "h": (1, "batch", 6), "c": (1, "batch", 6), "memory": (*BTF, 6), "y": ("batch", 13),
         "hn": (1, "batch", 6), "cn": (1, "batch", 6)},
        ("token", "h", "c", "memory"), ("y", "hn", "cn"), {"h": "hn", "c": "cn"}, streamable=False,
    ),
    "wavenet": FixtureModel(
        "gated dilated causal convolutions, GRU", WaveNet,
        lambda time, batch: (torch.randn(batch, 3, time),), {"x": ("batch", 3, "time"), "y": (*BTF, 3)},
    ),
    "language_model": FixtureModel(
        "Embedding, two LSTM layers with states in and out, tied weights", LanguageModel,
        given(tokens(15), (2, "batch", 6), (2, "batch", 6)), {"x": BTF, "y": (*BTF, 15)} | STATES,
        ("x", "h", "c"), ("y", "hn", "cn"), {"h": "hn", "c": "cn"},
    ),
    "many_inputs": FixtureModel(
        "two sequences, a vector and a category", ManyInputs, _many,
        {"a": (*BTF, 4), "b": (*BTF, 3), "vector": ("batch", 3), "kind": ("batch",), "y": (*BTF, 2)},
        ("a", "b", "vector", "kind"), ("y",),
    ),
    "two_heads": FixtureModel(
        "two GRU layers, a label a step and one for all", TwoHeads, floats(BTF, 5),
        {"x": (*BTF, 5), "y": (*BTF, 3), "whole": ("batch", 2)}, outputs=("y", "whole"),
    ),
    "quantised": _one("LSTM and Linear, weights and activations through QuantizeLinear", Plain, BTF, 5, 3),
    "autoencoder": _one("the last state repeated along time", Autoencoder, BTF, 3, 3, streamable=False),
    "pooled_by_length": FixtureModel(
        "mean over each row's own steps, and its last state", PooledByLength, _with_lengths,
        {"x": (*BTF, 5), "lengths": ("batch",), "y": ("batch", 2), "last": ("batch", 2)},
        ("x", "lengths"), ("y", "last"), streamable=False,
    ),
    "dual_path": _one("BiLSTM over frequency, LSTM over time", DualPath, BTF, 5, None, ways=None),
}  # fmt: skip
GRAPHS["dual_path"].axes["y"] = (*BTF, 5)
