"""Chunked encoders for tools/load_time.py: streaming models of many nodes, as their exporters write them.

`encoder(layers)` is a Zipformer-like network over one chunk of frames: attention with relative positions over a cache
of keys, values of two attentions, a gated attention, two causal convolutions with caches, feed-forward modules,
bypasses and BiasNorms. All caches are inputs and outputs, and only the batch is a free axis, as in the exports of
icefall. `save(path, layers)` exports one by PyTorch's older exporter; it needs torch and onnx.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

CHUNK, LEFT, WIDTH, HEADS, QUERY, VALUE, POS, KERNEL = 8, 16, 32, 2, 8, 6, 4, 5


class BiasNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.randn(WIDTH) * 0.1)
        self.log_scale = nn.Parameter(torch.tensor(0.1))

    def forward(self, x: Tensor) -> Tensor:
        scales = torch.mean((x - self.bias) ** 2, dim=-1, keepdim=True) ** -0.5 * self.log_scale.exp()
        return x * scales


def swoosh(x: Tensor, shift: float, less: float) -> Tensor:
    zero = torch.tensor(0.0, dtype=x.dtype)
    shifted = x - shift
    log_sum = torch.max(zero, shifted) + torch.log1p(torch.exp(-torch.abs(zero - shifted)))
    return log_sum - 0.08 * x - less


class FeedForward(nn.Module):
    def __init__(self, hidden: int):
        super().__init__()
        self.wide, self.narrow = nn.Linear(WIDTH, hidden), nn.Linear(hidden, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(swoosh(self.wide(x), 4.0, 0.035))


class Attention(nn.Module):
    """The weights [heads, batch, CHUNK, LEFT + CHUNK] of all three attentions of a layer."""

    def __init__(self):
        super().__init__()
        self.inward = nn.Linear(WIDTH, (2 * QUERY + POS) * HEADS)
        self.positions = nn.Linear(WIDTH, HEADS * POS, bias=False)

    def forward(self, x: Tensor, pos: Tensor, cached: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        x = self.inward(x)
        frames, batch, _ = x.shape
        at, end = QUERY * HEADS, 2 * QUERY * HEADS
        query, key, place = x[..., :at], x[..., at:end], x[..., end:]
        key = torch.cat([cached, key], dim=0)
        cached = key[-LEFT:]
        total = key.shape[0]
        query = query.reshape(frames, batch, HEADS, QUERY).permute(2, 1, 0, 3)
        place = place.reshape(frames, batch, HEADS, POS).permute(2, 1, 0, 3)
        key = key.reshape(total, batch, HEADS, QUERY).permute(2, 1, 3, 0)
        scores = torch.matmul(query, key)
        pos = self.positions(pos)
        length = pos.shape[1]
        pos = pos.reshape(-1, length, HEADS, POS).permute(2, 0, 3, 1)
        along = torch.matmul(place, pos)
        rows = torch.arange(start=frames - 1, end=-1, step=-1).repeat(batch * HEADS).unsqueeze(-1)
        columns = torch.arange(total)
        picks = rows + columns
        along = along.reshape(-1, length)
        along = torch.gather(along, dim=1, index=picks).reshape(HEADS, batch, frames, total)
        scores = (scores + along).masked_fill(mask.unsqueeze(1), -1000.0)
        return scores.softmax(dim=-1), cached


class Values(nn.Module):
    def __init__(self):
        super().__init__()
        self.inward, self.outward = nn.Linear(WIDTH, HEADS * VALUE), nn.Linear(HEADS * VALUE, WIDTH)

    def forward(self, x: Tensor, weights: Tensor, cached: Tensor) -> tuple[Tensor, Tensor]:
        frames, batch, _ = x.shape
        x = torch.cat([cached, self.inward(x)], dim=0)
        cached = x[-LEFT:]
        x = x.reshape(-1, batch, HEADS, VALUE).permute(2, 1, 0, 3)
        x = torch.matmul(weights, x).permute(2, 1, 0, 3).contiguous().view(frames, batch, HEADS * VALUE)
        return self.outward(x), cached


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.inward, self.outward = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, weights: Tensor, cached: Tensor) -> tuple[Tensor, Tensor]:
        s, x, y = self.inward(x).chunk(3, dim=2)
        x = x * torch.tanh(s)
        frames, batch, width = x.shape
        x = x.reshape(frames, batch, 1, width).permute(2, 1, 0, 3)
        x = torch.cat([cached, x], dim=2)
        cached = x[:, :, -LEFT:]
        x = torch.matmul(weights, x).permute(2, 1, 0, 3).reshape(frames, batch, width)
        return self.outward(x * y), cached


class Convolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.inward, self.outward = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.past = nn.Conv1d(WIDTH, WIDTH, KERNEL // 2 + 1, groups=WIDTH)
        self.whole = nn.Conv1d(WIDTH, WIDTH, KERNEL, groups=WIDTH, padding=KERNEL // 2)
        self.edges = nn.Parameter(torch.randn(2, WIDTH, KERNEL) * 0.1)

    def _scale(self, size: int) -> Tensor:
        left, right = self.edges[0], self.edges[1]
        if size < KERNEL:
            left, right = left[:, :size], right[:, KERNEL - size :]
        else:
            filler = torch.zeros(WIDTH, size - KERNEL)
            left, right = torch.cat((left, filler), dim=-1), torch.cat((filler, right), dim=-1)
        return 1.0 + left + right

    def forward(self, x: Tensor, cached: Tensor) -> tuple[Tensor, Tensor]:
        x, s = self.inward(x).chunk(2, dim=2)
        x = (x * torch.sigmoid(s)).permute(1, 2, 0)
        frames = x.shape[2]
        whole = self.whole(x) * self._scale(frames)
        x = torch.cat([cached, x], dim=2)
        cached = x[..., -(KERNEL // 2) :]
        x = (self.past(x) + whole).permute(2, 0, 1)
        return self.outward(swoosh(x, 1.0, 0.313261687)), cached


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.weights, self.norm = Attention(), BiasNorm()
        self.forward1, self.forward2, self.forward3 = FeedForward(48), FeedForward(64), FeedForward(80)
        self.values1, self.values2, self.gated = Values(), Values(), Gated()
        self.conv1, self.conv2 = Convolution(), Convolution()
        self.middle, self.last = nn.Parameter(torch.full((WIDTH,), 0.5)), nn.Parameter(torch.full((WIDTH,), 0.6))

    def forward(self, x: Tensor, pos: Tensor, mask: Tensor, caches: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
        first = x
        weights, key = self.weights(x, pos, caches[0], mask)
        x = x + self.forward1(x)
        part, gated = self.gated(x, weights[0:1], caches[1])
        x = x + part
        part, val1 = self.values1(x, weights, caches[2])
        x = x + part
        part, conv1 = self.conv1(x, caches[4])
        x = x + part
        x = x + self.forward2(x)
        x = first + (x - first) * self.middle
        part, val2 = self.values2(x, weights, caches[3])
        x = x + part
        part, conv2 = self.conv2(x, caches[5])
        x = x + part
        x = self.norm(x + self.forward3(x))
        return first + (x - first) * self.last, [key, gated, val1, val2, conv1, conv2]


class Encoder(nn.Module):
    """x [batch, CHUNK, WIDTH], then six caches per layer -> y and the next caches."""

    def __init__(self, layers: int):
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(layers))
        self.register_buffer("pos", torch.randn(1, 2 * CHUNK + LEFT - 1, WIDTH) * 0.3)

    def forward(self, x: Tensor, *caches: Tensor) -> tuple[Tensor, ...]:
        x = x.permute(1, 0, 2)
        mask = torch.zeros(x.shape[1], CHUNK + LEFT, dtype=torch.bool)
        after: list[Tensor] = []
        for k, layer in enumerate(self.layers):
            x, made = layer(x, self.pos, mask, list(caches[6 * k : 6 * k + 6]))
            after += made
        return (x.permute(1, 0, 2), *after)


NAMES = ("key", "nonlin_attn", "val1", "val2", "conv1", "conv2")


def example(layers: int, batch: int = 1) -> tuple[Tensor, ...]:
    """The inputs of `Encoder(layers)`: a chunk, and empty caches."""
    shapes = [
        (LEFT, batch, QUERY * HEADS),
        (1, batch, LEFT, WIDTH),
        (LEFT, batch, VALUE * HEADS),
        (LEFT, batch, VALUE * HEADS),
        (batch, WIDTH, KERNEL // 2),
        (batch, WIDTH, KERNEL // 2),
    ]
    return (torch.randn(batch, CHUNK, WIDTH), *(torch.zeros(s) for _ in range(layers) for s in shapes))


def save(path: Path, layers: int, free: bool = True) -> None:
    """Export an encoder of this many layers. free: the batch is a free axis of the file."""
    torch.manual_seed(layers)
    caches = [f"cached_{name}_{k}" for k in range(layers) for name in NAMES]
    places = {"key": 1, "nonlin_attn": 1, "val1": 1, "val2": 1, "conv1": 0, "conv2": 0}
    axes = {"x": {0: "N"}, "y": {0: "N"}}
    for name in caches:
        kind = name.removeprefix("cached_").rpartition("_")[0]
        axes[name] = axes["new_" + name] = {places[kind]: "N"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Encoder(layers).eval(),
            example(layers),
            str(path),
            dynamo=False,
            opset_version=13,
            input_names=["x", *caches],
            output_names=["y", *("new_" + name for name in caches)],
            dynamic_axes=axes if free else None,
        )
