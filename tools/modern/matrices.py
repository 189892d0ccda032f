"""Linear attention and its relatives: the state is a matrix [heads, keys, values] that a step decays and updates."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .registry import HEADS, D, K, cell


class Heads(nn.Module):
    """Queries, keys and values of all heads; `more` other projections, each [B, .., heads, K]."""

    shapes = ((HEADS, K, K),)
    more = 0

    def __init__(self):
        super().__init__()
        self.w, self.sizes = nn.Linear(D, (3 + self.more) * D), [3 + self.more, HEADS, K]

    def split(self, x):
        """q, k, v, ..: [B, .., heads, K] each."""
        return self.w(x).unflatten(-1, self.sizes).unbind(-3)

    def over_heads(self, x):
        """The same over all steps: [B, heads, T, K] each."""
        return [a.transpose(1, 2) for a in self.split(x)]

    def read(self, q, s):
        """q S of each head, joined: [B, D]."""
        return (q.unsqueeze(-2) @ s).flatten(1)

    def joined(self, y):
        """[B, heads, T, K] -> [B, T, D]."""
        return y.transpose(1, 2).flatten(2)


def outer(k, v):
    return k.unsqueeze(-1) * v.unsqueeze(-2)


def lower(x, diagonal: int = 0):
    """bool [T, T] for x [B, T, D]: i - j >= -diagonal."""
    return torch.tril(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool), diagonal)


@cell("Linear attention", "arXiv 2006.16236")
class LinearAttention(Heads):
    shapes = ((HEADS, K, K), (HEADS, K))

    def forward(self, x, s, n):
        q, k, v = self.split(x)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        s, n = s + outer(k, v), n + k
        y = (q.unsqueeze(-2) @ s).squeeze(-2) / (q * n).sum(-1, keepdim=True)
        return y.flatten(1), s, n

    def parallel(self, x):
        q, k, v = self.over_heads(x)
        weights = torch.tril((F.elu(q) + 1) @ (F.elu(k) + 1).transpose(2, 3))
        return self.joined(weights @ v / weights.sum(-1, keepdim=True))


@cell("RetNet", "arXiv 2307.08621")
class RetNet(Heads):
    def __init__(self):
        super().__init__()
        self.decay = nn.Parameter(1 - 2.0 ** (-5 - torch.arange(HEADS)))

    def forward(self, x, s):
        q, k, v = self.split(x)
        s = self.decay[:, None, None] * s + outer(k, v)
        return self.read(q, s), s

    def parallel(self, x):
        q, k, v = self.over_heads(x)
        at = torch.arange(x.shape[1])
        away = at[:, None] - at[None, :]
        decay = torch.where(away >= 0, self.decay[:, None, None] ** away.clamp(min=0).float(), torch.zeros(()))
        return self.joined((q @ k.transpose(2, 3) * decay) @ v)


@cell("GLA", "arXiv 2312.06635")
class GLA(Heads):
    more = 1

    def forward(self, x, s):
        q, k, v, a = self.split(x)
        s = torch.sigmoid(a).unsqueeze(-1) * s + outer(k, v)
        return self.read(q, s), s

    def parallel(self, x):
        q, k, v, a = self.over_heads(x)
        e = torch.exp(F.logsigmoid(a).cumsum(2))
        return self.joined(torch.tril((q * e) @ (k / e).transpose(2, 3)) @ v)


@cell("HGRN2", "arXiv 2404.07904")
class HGRN2(Heads):
    def forward(self, x, s):
        q, f, v = self.split(x)
        f = torch.sigmoid(f)
        s = f.unsqueeze(-1) * s + outer(1 - f, v)
        return self.read(q, s), s

    def parallel(self, x):
        q, f, v = self.over_heads(x)
        e = torch.exp(F.logsigmoid(f).cumsum(2))
        return self.joined(torch.tril((q * e) @ ((1 - torch.sigmoid(f)) / e).transpose(2, 3)) @ v)


class SSD(Heads):
    """One decay for each head and step."""

    def __init__(self):
        super().__init__()
        self.dt, self.a = nn.Linear(D, HEADS), nn.Parameter(torch.rand(HEADS))

    def forward(self, x, s):
        c, b, v = self.split(x)
        dt = F.softplus(self.dt(x))
        s = torch.exp(-dt * torch.exp(self.a))[..., None, None] * s + outer(b, dt.unsqueeze(-1) * v)
        return self.read(c, s), s

    def decayed(self, x):
        """(log of the decays [B, heads, T], c, b, v) with dt in v."""
        c, b, v = self.over_heads(x)
        dt = F.softplus(self.dt(x)).transpose(1, 2)
        return -dt * torch.exp(self.a)[:, None], c, b, dt.unsqueeze(-1) * v


@cell("Mamba-2", "arXiv 2405.21060, differences of running sums")
class Mamba2(SSD):
    def parallel(self, x):
        decay, c, b, v = self.decayed(x)
        a = decay.cumsum(2)
        away = (a.unsqueeze(-1) - a.unsqueeze(-2)).masked_fill(~lower(x), -torch.inf)
        return self.joined((c @ b.transpose(2, 3) * torch.exp(away)) @ v)


@cell("Mamba-2 by segsum", "arXiv 2405.21060, listing 1")
class Mamba2Segments(SSD):
    def parallel(self, x):
        decay, c, b, v = self.decayed(x)
        rows = decay.unsqueeze(-1).expand(-1, -1, -1, x.shape[1])
        strict = lower(x, -1)
        sums = rows.masked_fill(~strict, 0.0).cumsum(2).masked_fill(~lower(x), -torch.inf)
        return self.joined((c @ b.transpose(2, 3) * torch.exp(sums)) @ v)


@cell("DeltaNet", "arXiv 2406.06484")
class DeltaNet(Heads):
    more = 1

    def forward(self, x, s):
        q, k, v, b = self.split(x)
        k = F.normalize(k, dim=-1)
        s = s + outer(k, torch.sigmoid(b) * (v - (k.unsqueeze(-2) @ s).squeeze(-2)))
        return self.read(q, s), s


@cell("Gated DeltaNet", "arXiv 2412.06464")
class GatedDeltaNet(Heads):
    more = 1

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(D, HEADS)

    def forward(self, x, s):
        q, k, v, b = self.split(x)
        k = F.normalize(k, dim=-1)
        s = torch.sigmoid(self.a(x))[..., None, None] * s
        s = s + outer(k, torch.sigmoid(b) * (v - (k.unsqueeze(-2) @ s).squeeze(-2)))
        return self.read(q, s), s


@cell("RWKV-5", "arXiv 2404.05892, Eagle")
class RWKV5(Heads):
    def __init__(self):
        super().__init__()
        self.decay, self.bonus = nn.Parameter(torch.rand(HEADS, K, 1)), nn.Parameter(torch.rand(HEADS, K, 1))

    def forward(self, x, s):
        r, k, v = self.split(x)
        u = outer(k, v)
        return self.read(r, s + self.bonus * u), torch.exp(-torch.exp(self.decay)) * s + u


@cell("RWKV-6", "arXiv 2404.05892, Finch")
class RWKV6(Heads):
    more = 1
    shapes = ((HEADS, K, K), (D,))

    def __init__(self):
        super().__init__()
        self.bonus, self.mix = nn.Parameter(torch.rand(HEADS, K, 1)), nn.Parameter(torch.rand(D))

    def forward(self, x, s, before):
        r, k, v, w = self.split(x + (before - x) * self.mix)
        u = outer(k, v)
        return self.read(r, s + self.bonus * u), torch.exp(-torch.exp(w)).unsqueeze(-1) * s + u, x


@cell("RWKV-7", "arXiv 2503.14456, Goose")
class RWKV7(Heads):
    more = 2

    def forward(self, x, s):
        r, k, v, w, a = self.split(x)
        a, unit = torch.sigmoid(a), F.normalize(k, dim=-1)
        kept = torch.exp(-0.606531 * torch.sigmoid(w)).unsqueeze(-1) * s
        s = kept - outer(unit * a, (unit.unsqueeze(-2) @ s).squeeze(-2)) + outer(k, v)
        return self.read(r, s), s


@cell("mLSTM", "arXiv 2405.04517")
class MLSTM(Heads):
    shapes = ((HEADS, K, K), (HEADS, K), (HEADS, 1))

    def __init__(self):
        super().__init__()
        self.gates = nn.Linear(D, 2 * HEADS)

    def forward(self, x, s, n, m):
        q, k, v = self.split(x)
        i, f = self.gates(x).unsqueeze(-1).chunk(2, -2)
        f = F.logsigmoid(f)
        most = torch.maximum(f + m, i)
        i, f = torch.exp(i - most), torch.exp(f + m - most)
        s, n = f.unsqueeze(-1) * s + i.unsqueeze(-1) * outer(k, v), f * n + i * k
        size = torch.maximum((q * n).sum(-1, keepdim=True).abs(), torch.exp(-most))
        return ((q.unsqueeze(-2) @ s).squeeze(-2) / size).flatten(1), s, n, most


@cell("Longhorn", "arXiv 2407.14207")
class Longhorn(Heads):
    def __init__(self):
        super().__init__()
        self.b = nn.Linear(D, HEADS)

    def forward(self, x, s):
        q, k, v = self.split(x)
        b = torch.sigmoid(self.b(x)).unsqueeze(-1)
        d = b / (1 + b * (k * k).sum(-1, keepdim=True))
        s = (1 - d.unsqueeze(-1) * (k * k).unsqueeze(-1)) * s + outer(d * k, v)
        return self.read(q, s), s


@cell("TTT-Linear", "arXiv 2407.04620, one inner step")
class TTT(Heads):
    def forward(self, x, s):
        q, k, v = self.split(x)
        s = s - 0.1 * outer(k, (k.unsqueeze(-2) @ s).squeeze(-2) - v)
        return self.read(q, s), s


@cell("Titans", "arXiv 2501.00663, memory of one matrix with momentum")
class Titans(Heads):
    shapes = ((HEADS, K, K), (HEADS, K, K))

    def __init__(self):
        super().__init__()
        self.gates = nn.Linear(D, 3 * HEADS)

    def forward(self, x, s, p):
        q, k, v = self.split(x)
        a, b, c = torch.sigmoid(self.gates(x))[..., None, None].chunk(3, -3)
        p = a * p - b * outer(k, (k.unsqueeze(-2) @ s).squeeze(-2) - v)
        s = (1 - c) * s + p
        return self.read(q, s), s, p
