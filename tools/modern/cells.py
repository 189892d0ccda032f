"""Diagonal recurrences: forward(x [B, 16], states..) -> (y [B, 16], states..) is one step.

`shapes` are those of the states, per row. `parallel(x [B, T, 16])` is the form over all steps that the paper trains
with, if it has one; `parallel_...` are others.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .registry import D, cell


def linear(out: int, bias: bool = True) -> nn.Linear:
    return nn.Linear(D, out, bias=bias)


class Cell(nn.Module):
    shapes = ((D,),)


@cell("minGRU", "arXiv 2410.01201")
class MinGRU(Cell):
    def __init__(self):
        super().__init__()
        self.w = linear(2 * D)

    def forward(self, x, h):
        z, n = self.w(x).chunk(2, -1)
        z = torch.sigmoid(z)
        h = (1 - z) * h + z * n
        return h, h

    def parallel(self, x):
        z, n = self.w(x).chunk(2, -1)
        a = F.logsigmoid(-z).cumsum(1)
        return torch.exp(a) * (torch.sigmoid(z) * n * torch.exp(-a)).cumsum(1)


@cell("minGRU of positive states", "arXiv 2410.01201, in logarithms")
class MinGRULogs(Cell):
    def __init__(self):
        super().__init__()
        self.w = linear(2 * D)

    def forward(self, x, h):
        z, n = self.w(x).chunk(2, -1)
        z = torch.sigmoid(z)
        h = (1 - z) * h + z * F.softplus(n)
        return h, h

    def parallel(self, x):
        z, n = self.w(x).chunk(2, -1)
        a = -F.softplus(z).cumsum(1)
        v = -F.softplus(-z) + F.softplus(n).log()
        return torch.exp(a + (v - a).logcumsumexp(1))


@cell("minLSTM", "arXiv 2410.01201")
class MinLSTM(Cell):
    def __init__(self):
        super().__init__()
        self.w = linear(3 * D)

    def forward(self, x, h):
        f, i, n = self.w(x).chunk(3, -1)
        f, i = torch.sigmoid(f), torch.sigmoid(i)
        h = (f * h + i * n) / (f + i)
        return h, h

    def parallel(self, x):
        f, i, n = self.w(x).chunk(3, -1)
        f, i = torch.sigmoid(f), torch.sigmoid(i)
        a = torch.log(f / (f + i)).cumsum(1)
        return torch.exp(a) * (i / (f + i) * n * torch.exp(-a)).cumsum(1)


@cell("HGRN", "arXiv 2311.04823")
class HGRN(Cell):
    def __init__(self):
        super().__init__()
        self.w, self.least = linear(3 * D), nn.Parameter(torch.rand(D) * 0.5)

    def forward(self, x, h):
        f, i, g = self.w(x).chunk(3, -1)
        f = self.least + (1 - self.least) * torch.sigmoid(f)
        h = f * h + (1 - f) * F.silu(i)
        return torch.sigmoid(g) * h, h

    def parallel(self, x):
        f, i, g = self.w(x).chunk(3, -1)
        f = self.least + (1 - self.least) * torch.sigmoid(f)
        a = torch.log(f).cumsum(1)
        return torch.sigmoid(g) * torch.exp(a) * ((1 - f) * F.silu(i) / torch.exp(a)).cumsum(1)


@cell("GateLoop", "arXiv 2311.01927, real gates")
class GateLoop(Cell):
    def __init__(self):
        super().__init__()
        self.w = linear(4 * D)

    def forward(self, x, h):
        q, k, v, a = self.w(x).chunk(4, -1)
        h = torch.sigmoid(a) * h + k * v
        return q * h, h

    def parallel(self, x):
        q, k, v, a = self.w(x).chunk(4, -1)
        a = F.logsigmoid(a).cumsum(1)
        return q * torch.exp(a) * (k * v * torch.exp(-a)).cumsum(1)


@cell("LRU", "arXiv 2303.06349, complex states as pairs")
class LRU(Cell):
    shapes = ((D,), (D,))

    def __init__(self):
        super().__init__()
        self.b, self.c = linear(2 * D, False), nn.Linear(2 * D, D)
        size, angle = 0.9 + 0.09 * torch.rand(D), torch.rand(D)
        self.re, self.im = nn.Parameter(size * torch.cos(angle)), nn.Parameter(size * torch.sin(angle))

    def forward(self, x, re, im):
        u, v = self.b(x).chunk(2, -1)
        re, im = self.re * re - self.im * im + u, self.re * im + self.im * re + v
        return self.c(torch.cat([re, im], -1)), re, im


@cell("S4D", "arXiv 2206.11893, real states")
class S4D(Cell):
    shapes = ((D, 4),)
    steps = 64

    def __init__(self):
        super().__init__()
        self.decay, self.b, self.c = (nn.Parameter(0.4 + torch.rand(D, 4)) for _ in range(3))

    def forward(self, x, h):
        h = torch.exp(-self.decay) * h + self.b * x.unsqueeze(-1)
        return (self.c * h).sum(-1), h

    def parallel_frozen_kernel(self, x):
        """A convolution with a kernel of 64 steps, which is all that the file keeps of the recurrence."""
        at = torch.arange(self.steps, dtype=torch.float32)
        kernel = (self.c.unsqueeze(-1) * self.b.unsqueeze(-1) * torch.exp(-self.decay.unsqueeze(-1) * at)).sum(1)
        padded = F.pad(x.transpose(1, 2), (self.steps - 1, 0))
        return F.conv1d(padded, kernel.flip(-1).unsqueeze(1), groups=D).transpose(1, 2)


class Selective(Cell):
    """A selective state-space model: what both forms of Mamba-1 share."""

    shapes = ((D, 4),)

    def __init__(self):
        super().__init__()
        self.w, self.dt, self.skip = linear(2 * 4 + D), linear(D), nn.Parameter(torch.rand(D))
        self.a = nn.Parameter(torch.log(torch.arange(1, 5).float()).repeat(D, 1))

    def parts(self, x):
        y = self.w(x)
        b, c, dt = y[..., :4], y[..., 4:8], y[..., 8:]
        dt = F.softplus(self.dt(dt))
        return (dt * x).unsqueeze(-1) * b.unsqueeze(-2), c, dt.unsqueeze(-1) * -torch.exp(self.a)

    def forward(self, x, h):
        u, c, decay = self.parts(x)
        h = torch.exp(decay) * h + u
        return (h * c.unsqueeze(-2)).sum(-1) + self.skip * x, h


@cell("Mamba-1", "arXiv 2312.00752")
class Mamba(Selective):
    def parallel(self, x):
        u, c, decay = self.parts(x)
        a = decay.cumsum(1)
        h = torch.exp(a) * (u * torch.exp(-a)).cumsum(1)
        return (h * c.unsqueeze(-2)).sum(-1) + self.skip * x


@cell("Mamba-1 by flips", "arXiv 2312.00752, sums from the last step")
class MambaFlips(Selective):
    def parallel(self, x):
        u, c, decay = self.parts(x)
        e = F.pad(decay[:, 1:], (0, 0, 0, 0, 0, 1)).flip(1).cumsum(1).exp().flip(1)
        return ((u * e).cumsum(1) / e * c.unsqueeze(-2)).sum(-1) + self.skip * x


@cell("RG-LRU (Griffin)", "arXiv 2402.19427")
class RGLRU(Cell):
    def __init__(self):
        super().__init__()
        self.w, self.a = linear(2 * D), nn.Parameter(torch.rand(D))

    def forward(self, x, h):
        r, i = torch.sigmoid(self.w(x)).chunk(2, -1)
        a = torch.exp(-8 * F.softplus(self.a) * r)
        h = a * h + torch.sqrt(1 - a * a) * (i * x)
        return h, h

    def parallel(self, x):
        r, i = torch.sigmoid(self.w(x)).chunk(2, -1)
        decay = -8 * F.softplus(self.a) * r
        a = decay.cumsum(1)
        return torch.exp(a) * (torch.sqrt(1 - torch.exp(2 * decay)) * (i * x) * torch.exp(-a)).cumsum(1)


@cell("sLSTM", "arXiv 2405.04517")
class SLSTM(Cell):
    shapes = ((D,), (D,), (D,), (D,))

    def __init__(self):
        super().__init__()
        self.w = nn.Linear(2 * D, 4 * D)

    def forward(self, x, h, c, n, m):
        i, f, z, o = self.w(torch.cat([x, h], -1)).chunk(4, -1)
        f = F.logsigmoid(f)
        most = torch.maximum(f + m, i)
        i, f = torch.exp(i - most), torch.exp(f + m - most)
        c, n = f * c + i * torch.tanh(z), f * n + i
        h = torch.sigmoid(o) * c / n
        return h, h, c, n, most


@cell("RWKV-4", "arXiv 2305.13048")
class RWKV4(Cell):
    shapes = ((D,), (D,), (D,), (D,))

    def __init__(self):
        super().__init__()
        self.k, self.v, self.r = (linear(D, False) for _ in range(3))
        self.mix, self.decay, self.bonus = (
            nn.Parameter(torch.rand(3, D)),
            nn.Parameter(torch.rand(D)),
            nn.Parameter(torch.rand(D)),
        )

    def forward(self, x, before, a, b, p):
        m = self.mix
        k, v = self.k(x * m[0] + before * (1 - m[0])), self.v(x * m[1] + before * (1 - m[1]))
        r = self.r(x * m[2] + before * (1 - m[2]))
        most = torch.maximum(p, self.bonus + k)
        e, g = torch.exp(p - most), torch.exp(self.bonus + k - most)
        y = torch.sigmoid(r) * (e * a + g * v) / (e * b + g)
        decayed = p - torch.exp(self.decay)
        most = torch.maximum(decayed, k)
        e, g = torch.exp(decayed - most), torch.exp(k - most)
        return y, x, e * a + g * v, e * b + g, most
