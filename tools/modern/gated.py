"""Gated recurrences: forward(x [B, 16], states..) -> (y [B, 16], states..) is one step."""

from __future__ import annotations

import torch
from torch import nn

from .cells import Cell, linear
from .registry import D, cell


@cell("SRU", "arXiv 1709.02755")
class SRU(Cell):
    def __init__(self):
        super().__init__()
        self.w, self.v = linear(3 * D), nn.Parameter(torch.rand(2, D))

    def forward(self, x, c):
        z, f, r = self.w(x).chunk(3, -1)
        f, r = torch.sigmoid(f + self.v[0] * c), torch.sigmoid(r + self.v[1] * c)
        c = f * c + (1 - f) * z
        return r * c + (1 - r) * x, c


@cell("QRNN", "arXiv 1611.01576, window 2, fo-pooling")
class QRNN(Cell):
    shapes = ((D,), (D,))

    def __init__(self):
        super().__init__()
        self.w = nn.Linear(2 * D, 3 * D)

    def forward(self, x, c, before):
        z, f, o = self.w(torch.cat([before, x], -1)).chunk(3, -1)
        f = torch.sigmoid(f)
        c = f * c + (1 - f) * torch.tanh(z)
        return torch.sigmoid(o) * c, c, x


@cell("IndRNN", "arXiv 1803.04831")
class IndRNN(Cell):
    def __init__(self):
        super().__init__()
        self.w, self.u = linear(D), nn.Parameter(torch.rand(D))

    def forward(self, x, h):
        h = torch.relu(self.w(x) + self.u * h)
        return h, h


@cell("CfC", "arXiv 2106.13898")
class CfC(Cell):
    def __init__(self):
        super().__init__()
        self.w, self.f, self.g, self.h = nn.Linear(2 * D, D), linear(D), linear(D), linear(D)

    def forward(self, x, h):
        s = 1.7159 * torch.tanh(0.666 * self.w(torch.cat([x, h], -1)))
        t = torch.sigmoid(self.f(s))
        h = torch.tanh(self.g(s)) * (1 - t) + t * torch.tanh(self.h(s))
        return h, h


@cell("LTC", "arXiv 2006.04439, three fused Euler steps")
class LTC(Cell):
    def __init__(self):
        super().__init__()
        self.w, self.r, self.a, self.tau = linear(D), linear(D, False), nn.Parameter(torch.rand(D)), 1.5

    def forward(self, x, h):
        for _ in range(3):
            f = torch.sigmoid(self.w(x) + self.r(h))
            h = (h + 0.3 * f * self.a) / (1 + 0.3 * (1 / self.tau + f))
        return h, h


@cell("MGU", "arXiv 1603.09420")
class MGU(Cell):
    def __init__(self):
        super().__init__()
        self.f, self.n = nn.Linear(2 * D, D), nn.Linear(2 * D, D)

    def forward(self, x, h):
        f = torch.sigmoid(self.f(torch.cat([x, h], -1)))
        h = (1 - f) * h + f * torch.tanh(self.n(torch.cat([x, f * h], -1)))
        return h, h


@cell("UGRNN", "arXiv 1611.09913")
class UGRNN(Cell):
    def __init__(self):
        super().__init__()
        self.w = nn.Linear(2 * D, 2 * D)

    def forward(self, x, h):
        g, c = self.w(torch.cat([x, h], -1)).chunk(2, -1)
        g = torch.sigmoid(g + 1)
        h = g * h + (1 - g) * torch.tanh(c)
        return h, h


@cell("FastGRNN", "arXiv 1901.02358")
class FastGRNN(Cell):
    def __init__(self):
        super().__init__()
        self.w, self.u, self.bz, self.bh = (
            linear(D, False),
            linear(D, False),
            *(nn.Parameter(torch.rand(D)) for _ in "ab"),
        )

    def forward(self, x, h):
        p = self.w(x) + self.u(h)
        z = torch.sigmoid(p + self.bz)
        h = (0.9 * (1 - z) + 0.05) * torch.tanh(p + self.bh) + z * h
        return h, h


@cell("Li-GRU", "arXiv 1803.10225, batch norm folded")
class LiGRU(Cell):
    def __init__(self):
        super().__init__()
        self.w, self.u = linear(2 * D), linear(2 * D, False)

    def forward(self, x, h):
        z, n = (self.w(x) + self.u(h)).chunk(2, -1)
        z = torch.sigmoid(z)
        h = z * h + (1 - z) * torch.relu(n)
        return h, h


@cell("JANET", "arXiv 1804.04849")
class JANET(Cell):
    def __init__(self):
        super().__init__()
        self.w = nn.Linear(2 * D, 2 * D)

    def forward(self, x, c):
        s, n = self.w(torch.cat([x, c], -1)).chunk(2, -1)
        c = torch.sigmoid(s) * c + (1 - torch.sigmoid(s - 1)) * torch.tanh(n)
        return c, c


@cell("AntisymmetricRNN", "arXiv 1902.09689")
class Antisymmetric(Cell):
    def __init__(self):
        super().__init__()
        self.w, self.r = linear(D), nn.Parameter(torch.randn(D, D) * 0.3)
        self.register_buffer("unit", torch.eye(D))

    def forward(self, x, h):
        h = h + 0.1 * torch.tanh(h @ (self.r - self.r.T - 0.1 * self.unit) + self.w(x))
        return h, h


@cell("coRNN", "arXiv 2010.00951")
class CoRNN(Cell):
    shapes = ((D,), (D,))

    def __init__(self):
        super().__init__()
        self.w = nn.Linear(3 * D, D)

    def forward(self, x, y, z):
        z = z + 0.1 * (torch.tanh(self.w(torch.cat([x, y, z], -1))) - y - 0.8 * z)
        y = y + 0.1 * z
        return y, y, z


@cell("LMU", "Voelker, Kajic, Eliasmith 2019")
class LMU(Cell):
    shapes = ((D,), (8,))

    def __init__(self):
        super().__init__()
        self.w, self.e, self.a, self.b = (
            nn.Linear(2 * D + 8, D),
            linear(1),
            nn.Parameter(torch.randn(8, 8) * 0.2),
            linear(8),
        )

    def forward(self, x, h, m):
        m = m @ self.a + self.e(x) * self.b(h)
        h = torch.tanh(self.w(torch.cat([x, h, m], -1)))
        return h, h, m


@cell("Mogrifier LSTM", "arXiv 1909.01792, two rounds")
class Mogrifier(Cell):
    shapes = ((D,), (D,))

    def __init__(self):
        super().__init__()
        self.q, self.r, self.w = linear(D), linear(D), nn.Linear(2 * D, 4 * D)

    def forward(self, x, h, c):
        x = 2 * torch.sigmoid(self.q(h)) * x
        h = 2 * torch.sigmoid(self.r(x)) * h
        i, f, g, o = self.w(torch.cat([x, h], -1)).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h, h, c


@cell("LayerNorm LSTM", "arXiv 1607.06450")
class NormLSTM(Cell):
    shapes = ((D,), (D,))

    def __init__(self):
        super().__init__()
        self.w, self.u, self.n, self.m, self.o = (
            linear(4 * D),
            linear(4 * D, False),
            *(nn.LayerNorm(k) for k in (4 * D, 4 * D, D)),
        )

    def forward(self, x, h, c):
        i, f, g, o = (self.n(self.w(x)) + self.m(self.u(h))).chunk(4, -1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(self.o(c))
        return h, h, c
