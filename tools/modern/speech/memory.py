"""Encoders that do nothing but convolve over a cache and an open chunk: FSMN-VAD of FunASR, MDTC of wekws."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .files import Encoder, seeded

FEATURES, PROJECTED, ORDER, LAYERS = 20, 8, 6, 2
HIDDEN, KERNEL, STACKS, LEVELS = 12, 5, 2, 2


class Memory(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.into, self.out = nn.Linear(dim, PROJECTED, bias=False), nn.Linear(PROJECTED, dim)
        self.conv = nn.Conv2d(PROJECTED, PROJECTED, [ORDER, 1], groups=PROJECTED, bias=False)

    def forward(self, x: Tensor, cache: Tensor):
        x = torch.unsqueeze(self.into(x), 1).permute(0, 3, 2, 1)  # [batch, channels, time, 1]
        before = torch.cat((cache, x), dim=2)
        cache = before[:, :, -(ORDER - 1) :, :]
        x = (x + self.conv(before)).permute(0, 3, 2, 1).squeeze(1)
        return torch.relu(self.out(x)), cache


class FSMN(nn.Module):
    def __init__(self, dim: int = 16, classes: int = 10):
        super().__init__()
        self.up, self.into = nn.Linear(FEATURES, 14), nn.Linear(14, dim)
        self.layers = nn.ModuleList([Memory(dim) for _ in range(LAYERS)])
        self.down, self.out = nn.Linear(dim, 14), nn.Linear(14, classes)

    def forward(self, x: Tensor, *caches: Tensor):
        x, new = torch.relu(self.into(self.up(x))), []
        for layer, cache in zip(self.layers, caches, strict=True):
            x, cache = layer(x, cache)
            new.append(cache)
        return torch.softmax(self.out(self.down(x)), -1), *new


def fsmn() -> Encoder:
    """As FunASR writes its voice activity detector: the number of frames is open, the batch is 1."""
    inputs = {"speech": torch.randn(1, 30, FEATURES)}
    inputs |= {f"in_cache{k}": torch.zeros(1, PROJECTED, ORDER - 1, 1) for k in range(LAYERS)}
    states = {f"in_cache{k}": f"out_cache{k}" for k in range(LAYERS)}
    axes = {"speech": {1: "feats_length"}}
    outputs = ("logits", *states.values())
    return Encoder("FSMN-VAD", seeded(FSMN), inputs, outputs, states, axes, chunk=1, shift=1, opset=14)


class Block(nn.Module):
    """A depthwise convolution of some dilation, and a product."""

    def __init__(self, dilation: int):
        super().__init__()
        self.padding = dilation * (KERNEL - 1)
        self.deep = nn.Conv1d(HIDDEN, HIDDEN, KERNEL, dilation=dilation, groups=HIDDEN)
        self.norm, self.point = nn.BatchNorm1d(HIDDEN), nn.Conv1d(HIDDEN, HIDDEN, 1)

    def forward(self, x: Tensor, cache: Tensor):
        y = torch.cat((cache, x), dim=2)
        cache = y[:, :, -self.padding :]
        return torch.relu(x + self.point(torch.relu(self.norm(self.deep(y))))), cache


class MDTC(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean, self.istd = nn.Buffer(torch.randn(FEATURES)), nn.Buffer(torch.rand(FEATURES) + 0.5)
        self.into, self.out = nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, 2)
        dilations = [1, *(2**k for _ in range(STACKS) for k in range(LEVELS))]
        self.blocks = nn.ModuleList([Block(d) for d in dilations])
        self.padding = sum(block.padding for block in self.blocks)

    def forward(self, x: Tensor, cache: Tensor):
        x = torch.relu(self.into((x - self.mean) * self.istd)).transpose(1, 2)
        new, at, ends = [], 0, []
        for k, block in enumerate(self.blocks):
            x, made = block(x, cache[:, :, at : at + block.padding])
            new.append(made)
            at += block.padding
            if k and k % LEVELS == 0:
                ends.append(x)
        y = torch.zeros_like(ends[-1])
        for end in ends:
            y = y + end
        return torch.sigmoid(self.out(y.transpose(1, 2))), torch.cat(new, dim=2)


def mdtc() -> Encoder:
    """As wekws writes it: one cache, of which each block has its part."""
    module = seeded(MDTC)
    inputs = {"input": torch.randn(1, 100, FEATURES), "cache": torch.zeros(1, HIDDEN, module.padding)}
    axes = {"input": {1: "T"}, "output": {1: "T"}}
    metadata = {"cache_dim": str(HIDDEN), "cache_len": str(module.padding)}
    states = {"cache": "r_cache"}
    outputs = ("output", "r_cache")
    return Encoder("MDTC", module, inputs, outputs, states, axes, chunk=1, shift=1, metadata=metadata)
