"""Zipformer2 of icefall (arXiv 2310.11230), whose caches sherpa-onnx hands on: six for each layer, and two more."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .files import Encoder, seeded

FEATURES, CHUNK, LEFT = 20, 8, 16  # mel bands; frames of a chunk and of the left context, after the embedding
DIMS, LAYERS, DOWN, HEADS, KERNELS = (16, 24), (1, 2), (1, 2), (2, 3), (7, 5)
QUERY, VALUE, PLACE, PLACES, JOINER = 4, 3, 2, 8, 20
PAD = 7 + 2 * 3  # frames that the embedding takes beyond two for each of its own


def swoosh_r(x: Tensor) -> Tensor:
    """log(1 + exp(x - 1)) - 0.08 x - 0.313261687, as the exporter writes it."""
    zero = torch.tensor(0.0)
    above, apart = torch.max(zero, x - 1.0), torch.abs(zero - (x - 1.0))
    return above + torch.log1p(torch.exp(-apart)) - 0.08 * x - 0.313261687


def swoosh_l(x: Tensor) -> Tensor:
    zero = torch.tensor(0.0)
    above, apart = torch.max(zero, x - 4.0), torch.abs(zero - (x - 4.0))
    return above + torch.log1p(torch.exp(-apart)) - 0.08 * x - 0.035


class BiasNorm(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.log_scale, self.bias = nn.Parameter(torch.tensor(1.0)), nn.Parameter(0.1 * torch.randn(dim))

    def forward(self, x: Tensor) -> Tensor:
        scales = torch.mean((x - self.bias) ** 2, dim=-1, keepdim=True) ** -0.5 * self.log_scale.exp()
        return x * scales


class Embedding(nn.Module):
    """Halves the frames: three convolutions, then a ConvNeXt that looks three of its frames ahead."""

    def __init__(self, dim: int, channels: tuple = (4, 6, 8), wide: int = 16):
        super().__init__()
        a, b, c = channels
        self.a, self.b = nn.Conv2d(1, a, 3, padding=(0, 1)), nn.Conv2d(a, b, 3, stride=2)
        self.c = nn.Conv2d(b, c, 3, stride=(1, 2))
        self.deep = nn.Conv2d(c, c, (7, 7), groups=c, padding=(3, 3))
        self.up, self.down = nn.Conv2d(c, wide, 1), nn.Conv2d(wide, c, 1)
        self.freqs, self.channels = ((FEATURES - 1) // 2 - 1) // 2, c
        self.out, self.norm = nn.Linear(c * self.freqs, dim), BiasNorm(dim)

    def forward(self, x: Tensor, lens: Tensor, cache: Tensor):
        x = x.unsqueeze(1)
        x = swoosh_r(self.c(swoosh_r(self.b(swoosh_r(self.a(x))))))
        T = x.size(2) - 3
        through = x[:, :, :T, :]
        x = torch.cat([cache, x], dim=2)
        cache = x[:, :, T : 3 + T, :]
        x = F.conv2d(x, self.deep.weight, self.deep.bias, padding=(0, 3), groups=self.channels)
        x = through + self.down(swoosh_l(self.up(x)))
        b, c, t, f = x.size()
        x = self.norm(self.out(x.transpose(1, 2).reshape(b, t, c * f)))
        return x, (lens - 7) // 2 - 3, cache


class Weights(nn.Module):
    """The attention weights of a layer, which four of its parts use."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.into, self.place = (
            nn.Linear(dim, heads * (2 * QUERY + PLACE)),
            nn.Linear(PLACES, heads * PLACE, bias=False),
        )

    def forward(self, x: Tensor, places: Tensor, cached: Tensor, left: int, hidden: Tensor):
        x = self.into(x)
        seq_len, batch, _ = x.shape
        wide = QUERY * self.heads
        q, k, p = x[..., 0:wide], x[..., wide : 2 * wide], x[..., 2 * wide :]
        k = torch.cat([cached, k], dim=0)
        cached = k[-left:, ...]
        k_len = k.shape[0]
        q = q.reshape(seq_len, batch, self.heads, QUERY).permute(2, 1, 0, 3)
        p = p.reshape(seq_len, batch, self.heads, PLACE).permute(2, 1, 0, 3)
        k = k.reshape(k_len, batch, self.heads, QUERY).permute(2, 1, 3, 0)
        scores = torch.matmul(q, k)
        places = self.place(places)
        around = 2 * seq_len - 1 + left
        places = places.reshape(-1, around, self.heads, PLACE).permute(2, 0, 3, 1)
        by_place = torch.matmul(p, places)  # [heads, batch, queries, places]
        (heads, batch, queries, n) = by_place.shape
        rows = torch.arange(start=queries - 1, end=-1, step=-1).repeat(batch * heads).unsqueeze(-1)
        indexes = rows + torch.arange(k_len)
        by_place = torch.gather(by_place.reshape(-1, n), dim=1, index=indexes)
        scores = scores + by_place.reshape(heads, batch, queries, k_len)
        scores = scores.masked_fill(hidden.to(torch.bool).unsqueeze(1), -1000)
        return scores.softmax(dim=-1), cached


class Attention(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.into, self.out = nn.Linear(dim, heads * VALUE), nn.Linear(heads * VALUE, dim)

    def forward(self, x: Tensor, weights: Tensor, cached: Tensor, left: int):
        (seq_len, batch, _) = x.shape
        heads = weights.shape[0]
        x = torch.cat([cached, self.into(x)], dim=0)
        cached = x[-left:, ...]
        x = x.reshape(seq_len + left, batch, heads, -1).permute(2, 1, 0, 3)
        width = x.shape[-1]
        x = torch.matmul(weights, x).permute(2, 1, 0, 3).contiguous().view(seq_len, batch, heads * width)
        return self.out(x), cached


class NonlinAttention(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.hidden = 3 * dim // 4
        self.into, self.out = nn.Linear(dim, 3 * self.hidden), nn.Linear(self.hidden, dim)

    def forward(self, x: Tensor, weights: Tensor, cached: Tensor, left: int):
        x = self.into(x)
        (seq_len, batch, _) = x.shape
        s, x, y = x.chunk(3, dim=2)
        s = torch.tanh(s).unsqueeze(-1).reshape(seq_len, batch, self.hidden)
        x = x * s
        heads = weights.shape[0]
        x = x.reshape(seq_len, batch, heads, -1).permute(2, 1, 0, 3)
        padded = torch.cat([cached, x], dim=2)
        cached = padded[:, :, -left:, :]
        x = torch.matmul(weights, padded).permute(2, 1, 0, 3).reshape(seq_len, batch, -1)
        return self.out(x * y), cached


class Convolution(nn.Module):
    """A causal convolution, and one over the chunk alone whose edges are scaled."""

    def __init__(self, dim: int, kernel: int):
        super().__init__()
        half = (kernel + 1) // 2
        self.kernel, self.into, self.out = kernel, nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.causal = nn.Conv1d(dim, dim, half, groups=dim)
        self.chunkwise = nn.Conv1d(dim, dim, kernel, groups=dim, padding=kernel // 2)
        self.scale = nn.Parameter(0.1 * torch.randn(2, dim, kernel))

    def _scale(self, size: int) -> Tensor:
        left, right = self.scale[0], self.scale[1]
        if size < self.kernel:
            return 1.0 + (left[:, :size] + right[:, -size:])
        pad = torch.zeros(left.shape[0], size - self.kernel)
        return 1.0 + (torch.cat((left, pad), dim=-1) + torch.cat((pad, right), dim=-1))

    def forward(self, x: Tensor, cache: Tensor, hidden: Tensor):
        x, s = self.into(x).chunk(2, dim=2)
        x = (x * torch.sigmoid(s)).permute(1, 2, 0)
        x = x.masked_fill(hidden.to(torch.bool).unsqueeze(1).expand_as(x), 0.0)
        (_, _, seq_len) = x.shape
        left = self.kernel // 2
        x = torch.cat([cache, x], dim=2)
        cache = x[..., -left:]
        of_chunk = self.chunkwise(x[..., left:]) * self._scale(seq_len)
        return self.out(swoosh_r((of_chunk + self.causal(x)).permute(2, 0, 1))), cache


class Bypass(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(dim))

    def forward(self, before: Tensor, after: Tensor) -> Tensor:
        return before + (after - before) * self.scale


def feed(dim: int) -> nn.Module:
    class Feed(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)

        def forward(self, x):
            return self.down(swoosh_l(self.up(x)))

    return Feed()


class Layer(nn.Module):
    def __init__(self, dim: int, heads: int, kernel: int):
        super().__init__()
        self.weights, self.nonlin = Weights(dim, heads), NonlinAttention(dim)
        self.attend = nn.ModuleList([Attention(dim, heads) for _ in range(2)])
        self.convolve = nn.ModuleList([Convolution(dim, kernel) for _ in range(2)])
        self.feed = nn.ModuleList([feed(dim) for _ in range(3)])
        self.middle, self.bypass, self.norm = Bypass(dim), Bypass(dim), BiasNorm(dim)

    def forward(self, x: Tensor, places: Tensor, states: list[Tensor], left: int, hidden: Tensor):
        key, nonlin, val1, val2, conv1, conv2 = states
        before = x
        weights, key = self.weights(x, places, key, left, hidden)
        x = x + self.feed[0](x)
        made, nonlin = self.nonlin(x, weights[0:1], nonlin, left)
        x = x + made
        made, val1 = self.attend[0](x, weights, val1, left)
        x = x + made
        made, conv1 = self.convolve[0](x, conv1, hidden[:, left:])
        x = x + made
        x = self.middle(before, x + self.feed[1](x))
        made, val2 = self.attend[1](x, weights, val2, left)
        x = x + made
        made, conv2 = self.convolve[1](x, conv2, hidden[:, left:])
        x = self.norm(x + made + self.feed[2](x + made))
        return self.bypass(before, x), [key, nonlin, val1, val2, conv1, conv2]


class Places(nn.Module):
    """Positions relative to a query, compressed."""

    def __init__(self, most: int = 100):
        super().__init__()
        x = torch.arange(-(most - 1), most).to(torch.float32).unsqueeze(1)
        freqs, wide = 1 + torch.arange(PLACES // 2), PLACES**0.5
        x = wide * x.sign() * ((x.abs() + wide).log() - math.log(wide))
        x = (x / (PLACES / (2.0 * math.pi))).atan()
        pe = torch.stack([(x * freqs).cos(), (x * freqs).sin()], -1).reshape(len(x), PLACES)
        pe[:, -1] = 1.0
        self.register_buffer("pe", pe)

    def forward(self, x: Tensor, left: int) -> Tensor:
        size = x.size(0) + left
        start, end = self.pe.size(0) // 2 - size + 1, self.pe.size(0) // 2 + x.size(0)
        return self.pe[start:end].unsqueeze(0)


class Stack(nn.Module):
    """Layers at a lower rate of frames."""

    def __init__(self, dim: int, layers: int, down: int, heads: int, kernel: int):
        super().__init__()
        self.down, self.places = down, Places()
        self.layers = nn.ModuleList([Layer(dim, heads, kernel) for _ in range(layers)])
        self.bias = nn.Parameter(torch.randn(down))
        self.combine = Bypass(dim)

    def forward(self, x: Tensor, states: list[Tensor], left: int, hidden: Tensor):
        before, new = x, []
        if self.down > 1:
            x = downsampled(x, self.bias)
        places = self.places(x, left)
        for k, layer in enumerate(self.layers):
            x, made = layer(x, places, states[6 * k : 6 * k + 6], left, hidden)
            new += made
        if self.down == 1:
            return x, new
        (seq_len, batch, dim) = x.shape
        x = x.unsqueeze(1).expand(seq_len, self.down, batch, dim).reshape(seq_len * self.down, batch, dim)
        return self.combine(before, x[: before.shape[0]]), new


def downsampled(x: Tensor, bias: Tensor) -> Tensor:
    """The weighted mean of each few frames; the frames fill them."""
    (seq_len, batch, dim), ds = x.shape, bias.shape[0]
    x = x.reshape((seq_len + ds - 1) // ds, ds, batch, dim)
    return (x * bias.softmax(dim=0).unsqueeze(-1).unsqueeze(-1)).sum(dim=1)


class Zipformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = Embedding(DIMS[0])
        rows = zip(DIMS, LAYERS, DOWN, HEADS, KERNELS, strict=True)
        self.stacks = nn.ModuleList([Stack(*row) for row in rows])
        self.bias, self.project = nn.Parameter(torch.randn(2)), nn.Linear(max(DIMS), JOINER)

    def forward(self, x: Tensor, *states: Tensor):
        batch = x.size(0)
        size = 2 * CHUNK + PAD
        # The older exporter writes the list of its example, one length, as a constant.
        lens = torch.full((batch,), size) if torch.compiler.is_exporting() else torch.tensor([size] * batch)
        x, lens, embed = self.embed(x, lens, states[-2])
        padding = torch.arange(CHUNK).expand(batch, CHUNK) >= lens.unsqueeze(-1)
        done = states[-1]
        before = torch.arange(LEFT).expand(batch, LEFT)
        before = (done.unsqueeze(1) <= before).flip(1)
        hidden = torch.cat([before, padding], dim=1)
        x = x.permute(1, 0, 2)
        outs, new, first = [], [], 0
        for dim, layers, down, stack in zip(DIMS, LAYERS, DOWN, self.stacks, strict=True):
            if x.shape[-1] < dim:
                x = torch.cat((x, torch.zeros(x.shape[0], x.shape[1], dim - x.shape[-1])), dim=-1)
            x, made = stack(
                x[..., :dim], list(states[6 * first : 6 * (first + layers)]), LEFT // down, hidden[..., ::down]
            )
            first, new = first + layers, new + made
            outs.append(x)
        x = downsampled(x, self.bias)
        return self.project(x.permute(1, 0, 2)), *new, embed, done + lens


def zipformer(batch: int = 1) -> Encoder:
    """As zipformer/export-onnx-streaming.py of icefall writes it."""
    module = seeded(Zipformer)
    inputs = {"x": torch.rand(batch, 2 * CHUNK + PAD, FEATURES)}
    axes = {"x": {0: "N"}, "encoder_out": {0: "N"}}
    states: dict[str, str] = {}

    def add(name: str, at: int, *size: int, dtype=torch.float32) -> None:
        inputs[name], states[name] = torch.zeros(size, dtype=dtype), f"new_{name}"
        axes[name] = axes[f"new_{name}"] = {at: "N"}

    number = 0
    for dim, layers, down, heads, kernel in zip(DIMS, LAYERS, DOWN, HEADS, KERNELS, strict=True):
        for _ in range(layers):
            left, pad = LEFT // down, kernel // 2
            add(f"cached_key_{number}", 1, left, batch, QUERY * heads)
            add(f"cached_nonlin_attn_{number}", 1, 1, batch, left, 3 * dim // 4)
            add(f"cached_val1_{number}", 1, left, batch, VALUE * heads)
            add(f"cached_val2_{number}", 1, left, batch, VALUE * heads)
            add(f"cached_conv1_{number}", 0, batch, dim, pad)
            add(f"cached_conv2_{number}", 0, batch, dim, pad)
            number += 1
    add("embed_states", 0, batch, 8, 3, module.embed.freqs)
    add("processed_lens", 0, batch, dtype=torch.int64)
    metadata = {
        "model_type": "zipformer2",
        "version": "1",
        "model_author": "k2-fsa",
        "comment": "streaming zipformer2",
        "decode_chunk_len": str(2 * CHUNK),
        "T": str(2 * CHUNK + PAD),
        "num_encoder_layers": ",".join(map(str, LAYERS)),
        "encoder_dims": ",".join(map(str, DIMS)),
        "cnn_module_kernels": ",".join(map(str, KERNELS)),
        "left_context_len": ",".join(str(LEFT // k) for k in DOWN),
        "query_head_dims": ",".join([str(QUERY)] * len(DIMS)),
        "value_head_dims": ",".join([str(VALUE)] * len(DIMS)),
        "num_heads": ",".join(map(str, HEADS)),
    }
    outputs = ("encoder_out", *states.values())
    return Encoder(
        "Zipformer2",
        module,
        inputs,
        outputs,
        states,
        axes,
        chunk=2 * CHUNK + PAD,
        shift=2 * CHUNK,
        batch=frozenset("N"),
        metadata=metadata,
    )
