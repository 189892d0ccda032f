"""Layers of streaming models that carry caches of inputs, and recurrences over planes."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .registry import D, cell


@cell("FSMN-VAD", "arXiv 1803.05030, a memory of 5 steps")
class FSMN(nn.Module):
    shapes = ((D, 4),)

    def __init__(self):
        super().__init__()
        self.up, self.memory, self.down = nn.Linear(D, D), nn.Conv1d(D, D, 5, groups=D, bias=False), nn.Linear(D, D)

    def forward(self, x, cache):
        p = self.up(x).unsqueeze(-1)
        cache = torch.cat([cache, p], -1)
        return torch.relu(self.down((p + self.memory(cache)).squeeze(-1))), cache[:, :, 1:]


@cell("MDTC", "arXiv 2102.13552, a depthwise convolution with dilation 2")
class MDTC(nn.Module):
    shapes = ((D, 8),)

    def __init__(self):
        super().__init__()
        self.deep, self.point = nn.Conv1d(D, D, 5, groups=D, dilation=2), nn.Conv1d(D, D, 1)

    def forward(self, x, cache):
        cache = torch.cat([cache, x.unsqueeze(-1)], -1)
        return torch.relu(self.point(torch.relu(self.deep(cache))).squeeze(-1) + x), cache[:, :, 1:]


@cell("TCN", "arXiv 1803.01271, two levels")
class TCN(nn.Module):
    shapes = ((D, 2), (D, 4))

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv1d(D, D, 3), nn.Conv1d(D, D, 3, dilation=2)

    def forward(self, x, a, b):
        a = torch.cat([a, x.unsqueeze(-1)], -1)
        y = torch.relu(self.one(a))
        b = torch.cat([b, y], -1)
        return torch.relu(self.two(b).squeeze(-1) + x), a[:, :, 1:], b[:, :, 1:]


@cell("Conv cache + GRU", "a convolution of 3 steps in front of a GRU cell")
class ConvGRUCache(nn.Module):
    shapes = ((D, 2), (D,))

    def __init__(self):
        super().__init__()
        self.conv, self.gru = nn.Conv1d(D, D, 3), nn.GRUCell(D, D)

    def forward(self, x, cache, h):
        cache = torch.cat([cache, x.unsqueeze(-1)], -1)
        h = self.gru(F.relu(self.conv(cache).squeeze(-1)), h)
        return h, cache[:, :, 1:], h


@cell("Hawk block", "arXiv 2402.19427: a convolution of 4 steps, RG-LRU and a gate")
class Hawk(nn.Module):
    shapes = ((D, 3), (D,))

    def __init__(self):
        super().__init__()
        self.w, self.conv, self.gates = nn.Linear(D, 2 * D), nn.Conv1d(D, D, 4, groups=D), nn.Linear(D, 2 * D)
        self.a = nn.Parameter(torch.rand(D))

    def forward(self, x, cache, h):
        u, g = self.w(x).chunk(2, -1)
        cache = torch.cat([cache, u.unsqueeze(-1)], -1)
        u = self.conv(cache).squeeze(-1)
        r, i = torch.sigmoid(self.gates(u)).chunk(2, -1)
        a = torch.exp(-8 * F.softplus(self.a) * r)
        h = a * h + torch.sqrt(1 - a * a) * (i * u)
        return h * F.gelu(g), cache[:, :, 1:], h


@cell("ConvGRU", "arXiv 1511.06432, planes of 8 x 8", features=(2, 8, 8))
class ConvGRU(nn.Module):
    shapes = ((4, 8, 8),)

    def __init__(self):
        super().__init__()
        self.gates, self.new = nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(6, 4, 3, padding=1)

    def forward(self, x, h):
        z, r = torch.sigmoid(self.gates(torch.cat([x, h], 1))).chunk(2, 1)
        h = (1 - z) * h + z * torch.tanh(self.new(torch.cat([x, r * h], 1)))
        return h, h


@cell("ConvLSTM", "arXiv 1506.04214, planes of 8 x 8", features=(2, 8, 8))
class ConvLSTM(nn.Module):
    shapes = ((4, 8, 8), (4, 8, 8))

    def __init__(self):
        super().__init__()
        self.gates = nn.Conv2d(6, 16, 3, padding=1)

    def forward(self, x, h, c):
        i, f, g, o = self.gates(torch.cat([x, h], 1)).chunk(4, 1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        return h, h, c
