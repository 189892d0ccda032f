"""Conformers with caches: wenet's, as its exporters for one caller and for a batch write it, and NeMo's."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .files import Encoder, seeded

FEATURES, D, HEADS, LAYERS, KERNEL = 20, 16, 2, 2, 5
CHUNK, LEFT = 4, 8  # frames after the subsampling: of a chunk, and before it
WINDOW = (CHUNK - 1) * 4 + 7  # frames that a chunk is made of
MOST = 500  # positions


def sines(most: int, first: int = 0) -> Tensor:
    """Position embeddings [most, D], from the position `first` on."""
    at = torch.arange(first, first + most, dtype=torch.float32).unsqueeze(1)
    waves = at * torch.exp(torch.arange(0, D, 2, dtype=torch.float32) * -(math.log(10000.0) / D))
    return torch.stack([waves.sin(), waves.cos()], -1).reshape(most, D)


class Feed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(D), nn.Linear(D, 2 * D), nn.Linear(2 * D, D)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.up(self.norm(x))))


class Convolution(nn.Module):
    """A gate, a causal depthwise convolution over cache and chunk, and a product."""

    def __init__(self):
        super().__init__()
        self.into, self.out = nn.Conv1d(D, 2 * D, 1), nn.Conv1d(D, D, 1)
        self.deep, self.norm = nn.Conv1d(D, D, KERNEL, groups=D), nn.LayerNorm(D)

    def rest(self, x: Tensor) -> Tensor:
        x = self.norm(self.deep(x).transpose(1, 2)).transpose(1, 2)
        return self.out(F.silu(x)).transpose(1, 2)


class WenetConvolution(Convolution):
    def forward(self, x: Tensor, cache: Tensor):
        x = torch.cat((cache, x.transpose(1, 2)), dim=2)
        cache = x[:, :, -(KERNEL - 1) :]
        return self.rest(F.glu(self.into(x), dim=1)), cache


class NemoConvolution(Convolution):
    def forward(self, x: Tensor, padding: Tensor, cache: Tensor):
        x = F.glu(self.into(x.transpose(1, 2)), dim=1).masked_fill(padding.unsqueeze(1), 0.0)
        x = torch.cat([cache, F.pad(x, pad=(0, 0))], dim=-1)
        return self.rest(x), x[:, :, -cache.size(-1) :]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(D, D) for _ in range(4))
        self.place = nn.Linear(D, D, bias=False)
        self.u, self.w = nn.Parameter(torch.randn(HEADS, D // HEADS)), nn.Parameter(torch.randn(HEADS, D // HEADS))

    def heads(self, x: Tensor) -> Tensor:
        return x.view(x.size(0), -1, HEADS, D // HEADS)

    def joined(self, weights: Tensor, v: Tensor) -> Tensor:
        x = torch.matmul(weights, v).transpose(1, 2).contiguous().view(weights.size(0), -1, D)
        return self.out(x)


class WenetAttention(Attention):
    def forward(self, x: Tensor, mask: Tensor, places: Tensor, cache: Tensor):
        """cache: keys and values, [batch, heads, time, 2 * width]."""
        q, k, v = self.heads(self.q(x)), self.heads(self.k(x)).transpose(1, 2), self.heads(self.v(x)).transpose(1, 2)
        old_k, old_v = torch.split(cache, cache.size(-1) // 2, dim=-1)
        k, v = torch.cat([old_k, k], dim=2), torch.cat([old_v, v], dim=2)
        cache = torch.cat((k, v), dim=-1)
        p = self.heads(self.place(places)).transpose(1, 2)
        by_content = torch.matmul((q + self.u).transpose(1, 2), k.transpose(-2, -1))
        by_place = torch.matmul((q + self.w).transpose(1, 2), p.transpose(-2, -1))
        scores = (by_content + by_place) / math.sqrt(D // HEADS)
        if mask.size(2) > 0:
            hidden = mask.unsqueeze(1).eq(0)[:, :, :, : scores.size(-1)]
            scores = scores.masked_fill(hidden, -float("inf"))
            weights = torch.softmax(scores, dim=-1).masked_fill(hidden, 0.0)
        else:
            weights = torch.softmax(scores, dim=-1)
        return self.joined(weights, v), cache


class Layer(nn.Module):
    """Half a feed forward, attention, convolution, half a feed forward."""

    def __init__(self, attention: type, convolution: type):
        super().__init__()
        self.first, self.last, self.attention, self.convolution = Feed(), Feed(), attention(), convolution()
        self.before, self.between, self.end = (nn.LayerNorm(D) for _ in range(3))


class WenetLayer(Layer):
    def __init__(self):
        super().__init__(WenetAttention, WenetConvolution)

    def forward(self, x: Tensor, mask: Tensor, places: Tensor, keys: Tensor, frames: Tensor):
        x = x + 0.5 * self.first(x)
        made, keys = self.attention(self.before(x), mask, places, keys)
        x = x + made
        made, frames = self.convolution(self.between(x), frames)
        x = x + made
        return self.end(x + 0.5 * self.last(x)), keys, frames


class Subsampling(nn.Module):
    """A quarter of the frames."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 6, 3, 2), nn.Conv2d(6, 6, 3, 2)
        self.out = nn.Linear(6 * (((FEATURES - 1) // 2 - 1) // 2), D)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.relu(self.a(x.unsqueeze(1)))))
        b, c, t, f = x.size()
        return self.out(x.transpose(1, 2).contiguous().view(b, t, c * f)) * math.sqrt(D)


class Wenet(nn.Module):
    """For one caller: offsets are a number, the caches have no axis for a batch."""

    def __init__(self, left: int = LEFT):
        super().__init__()
        self.left = left
        self.mean, self.istd = nn.Buffer(torch.randn(FEATURES)), nn.Buffer(torch.rand(FEATURES) + 0.5)
        self.embed, self.norm = Subsampling(), nn.LayerNorm(D)
        self.layers = nn.ModuleList([WenetLayer() for _ in range(LAYERS)])
        self.pe = nn.Buffer(sines(MOST).unsqueeze(0))

    def forward(self, chunk: Tensor, offset: Tensor, att_cache: Tensor, cnn_cache: Tensor, att_mask: Tensor):
        x = self.embed((chunk - self.mean) * self.istd)
        cached, size = att_cache.size(2), att_cache.size(2) + x.size(1)
        first = offset - cached
        places = self.pe[:, first : first + size]
        start = 0 if self.left < 0 else size - self.left
        keys, frames = [], []
        for k, layer in enumerate(self.layers):
            x, key, frame = layer(x, att_mask, places, att_cache[k : k + 1], cnn_cache[k])
            keys.append(key[:, :, start:, :])
            frames.append(frame.unsqueeze(0))
        return self.norm(x), torch.cat(keys, dim=0), torch.cat(frames, dim=0)


def wenet() -> Encoder:
    """As wenet/bin/export_onnx_cpu.py writes it for chunks of 4 that see two earlier chunks (16/4 there)."""
    inputs = {
        "chunk": torch.randn(1, WINDOW, FEATURES),
        "offset": torch.tensor(LEFT),
        "att_cache": torch.zeros(LAYERS, HEADS, LEFT, 2 * D // HEADS),
        "cnn_cache": torch.zeros(LAYERS, 1, D, KERNEL - 1),
        "att_mask": torch.ones(1, 1, LEFT + CHUNK, dtype=torch.bool),
    }
    axes = {"chunk": {1: "T"}, "att_cache": {2: "T_CACHE"}, "att_mask": {2: "T_ADD_T_CACHE"}}
    axes |= {"output": {1: "T"}, "r_att_cache": {2: "T_CACHE"}}
    states = {"att_cache": "r_att_cache", "cnn_cache": "r_cnn_cache"}
    metadata = {"batch": "1", "chunk_size": str(CHUNK), "left_chunks": str(LEFT // CHUNK), "num_blocks": str(LAYERS)}
    metadata |= {"output_size": str(D), "head": str(HEADS), "cnn_module_kernel": str(KERNEL)}
    metadata |= {"feature_size": str(FEATURES), "subsampling_rate": "4", "right_context": "6"}
    outputs = ("output", "r_att_cache", "r_cnn_cache")

    def others(call: int) -> dict:
        mask = np.zeros((1, 1, LEFT + CHUNK), bool)
        mask[:, :, -CHUNK * (call + 1) :] = True
        return {"offset": np.array(LEFT + CHUNK * call), "att_mask": mask}

    return Encoder(
        "wenet",
        seeded(Wenet),
        inputs,
        outputs,
        states,
        axes,
        chunk=WINDOW,
        shift=4 * CHUNK,
        metadata=metadata,
        others=others,
        sizes={"T": WINDOW, "T_CACHE": LEFT, "T_ADD_T_CACHE": LEFT + CHUNK},
    )


class WenetBatch(Wenet):
    """For a batch: offsets and masks of caches are states of each row."""

    def forward(self, chunk_xs: Tensor, chunk_lens: Tensor, offset: Tensor, att_cache, cnn_cache, cache_mask):
        offset = offset.squeeze(1)
        T = chunk_xs.size(1)
        live = torch.arange(0, T).unsqueeze(0).expand(chunk_lens.size(0), T) < chunk_lens.unsqueeze(-1)
        live = live.unsqueeze(1).to(chunk_xs.dtype)
        att_cache, cnn_cache = torch.transpose(att_cache, 0, 1), torch.transpose(cnn_cache, 0, 1)
        x = self.embed((chunk_xs - self.mean) * self.istd)
        live = live[:, :, 2::2][:, :, 2::2]
        cached = att_cache.size(3)
        mask = torch.cat((cache_mask, live), dim=2)
        at = (offset - cached).unsqueeze(1) + torch.arange(0, cached + x.size(1))
        places = F.embedding(at * (at > 0), self.pe[0])
        keys, frames = [], []
        for k, layer in enumerate(self.layers):
            x, key, frame = layer(x, mask, places, att_cache[k], cnn_cache[k])
            keys.append(key[:, :, -self.left :, :].unsqueeze(1))
            frames.append(frame.unsqueeze(1))
        x = self.norm(x)
        probs = torch.log_softmax(x, -1)
        best, chosen = torch.topk(probs, 3, dim=2)
        lens, offset = chunk_lens // 4, (offset + x.shape[1]).unsqueeze(1)
        keys, frames = torch.cat(keys, dim=1), torch.cat(frames, dim=1)
        return best, chosen, x, lens, offset, keys, frames, mask[:, :, -self.left :]


def wenet_batch(batch: int = 2) -> Encoder:
    """As wenet/bin/export_onnx_gpu.py writes it; onnxruntime runs it on a CPU too."""
    inputs = {
        "chunk_xs": torch.randn(batch, WINDOW, FEATURES),
        "chunk_lens": torch.full((batch,), WINDOW, dtype=torch.int32),
        "offset": torch.zeros(batch, 1, dtype=torch.int64),
        "att_cache": torch.zeros(batch, LAYERS, HEADS, LEFT, 2 * D // HEADS),
        "cnn_cache": torch.zeros(batch, LAYERS, D, KERNEL - 1),
        "cache_mask": torch.zeros(batch, 1, LEFT),
    }
    states = {"offset": "r_offset", "att_cache": "r_att_cache", "cnn_cache": "r_cnn_cache"}
    states["cache_mask"] = "r_cache_mask"
    outputs = ("log_probs", "log_probs_idx", "chunk_out", "chunk_out_lens", *states.values())
    axes = {name: {0: "B"} for name in (*inputs, *outputs)}
    return Encoder(
        "wenet (batch)",
        seeded(WenetBatch),
        inputs,
        outputs,
        states,
        axes,
        chunk=WINDOW,
        shift=4 * CHUNK,
        batch=frozenset("B"),
        opset=14,
        others=lambda call: {"chunk_lens": np.array(WINDOW, np.int32)},
    )


class NemoAttention(Attention):
    def forward(self, x: Tensor, mask: Tensor, places: Tensor, cache: Tensor):
        """cache: inputs of earlier steps, [batch, time, D]."""
        whole = torch.cat([cache, x], dim=1)
        kept = x.shape[1]
        cache = torch.cat([cache[:, kept:, :], x[:, :kept, :]], dim=1)
        q, k = self.heads(self.q(x)), self.heads(self.k(whole)).transpose(1, 2)
        v = self.heads(self.v(whole)).transpose(1, 2)
        p = self.heads(self.place(places)).transpose(1, 2)
        by_place = self.shifted(torch.matmul((q + self.w).transpose(1, 2), p.transpose(-2, -1)))
        by_content = torch.matmul((q + self.u).transpose(1, 2), k.transpose(-2, -1))
        scores = (by_content + by_place[:, :, :, : by_content.size(-1)]) / math.sqrt(D // HEADS)
        mask = mask.unsqueeze(1)
        scores = scores.masked_fill(mask, -10000.0)
        return self.joined(torch.softmax(scores, dim=-1).masked_fill(mask, 0.0), v), cache

    def shifted(self, x: Tensor) -> Tensor:
        b, h, queries, places = x.size()
        return F.pad(x, pad=(1, 0)).view(b, h, -1, queries)[:, :, 1:].view(b, h, queries, places)


class NemoLayer(Layer):
    def __init__(self):
        super().__init__(NemoAttention, NemoConvolution)

    def forward(self, x: Tensor, mask: Tensor, places: Tensor, padding: Tensor, channel: Tensor, time: Tensor):
        x = x + 0.5 * self.first(x)
        made, channel = self.attention(self.before(x), mask, places, channel)
        x = x + made
        made, time = self.convolution(self.between(x), padding, time)
        x = x + made
        return self.end(x + 0.5 * self.last(x)), channel, time


class Nemo(nn.Module):
    """Cache-aware: each chunk of 4 sees itself and two earlier chunks. Two frames of each chunk are context."""

    drop = 2

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 6, 3, 2), nn.Conv2d(6, 6, 3, 2)
        self.into = nn.Linear(6 * ((FEATURES // 2 + 1) // 2 + 1), D)
        self.layers = nn.ModuleList([NemoLayer() for _ in range(LAYERS)])
        self.pe = nn.Buffer(sines(2 * 64 - 1, -63).flip(0).unsqueeze(0))

    def embedded(self, x: Tensor, lens: Tensor):
        x = x.transpose(1, 2).unsqueeze(1)
        for conv in (self.a, self.b):
            x = F.relu(conv(F.pad(x, (2, 1, 2, 1))))
            lens = torch.floor((lens.to(torch.float) + 3 - 3) / 2 + 1).to(torch.int64)
        b, c, t, f = x.size()
        x = self.into(x.transpose(1, 2).reshape(b, t, c * f)) * math.sqrt(D)
        return x[:, self.drop :, :], (lens - self.drop).clamp(min=0)

    def masks(self, lens: Tensor, most: int, offset: Tensor, cached: int):
        of_chunk = torch.div(torch.arange(0, most, dtype=torch.int), CHUNK, rounding_mode="trunc")
        apart = of_chunk.unsqueeze(1) - of_chunk.unsqueeze(0)
        seen = torch.logical_and(torch.le(apart, LEFT // CHUNK), torch.ge(apart, 0)).unsqueeze(0)
        at = torch.arange(0, most).expand(lens.size(0), -1)
        live = (at < lens.unsqueeze(-1)).logical_and(at >= offset.unsqueeze(-1))
        both = live.unsqueeze(1).repeat([1, most, 1])
        both = torch.logical_and(both, both.transpose(1, 2))
        return ~torch.logical_and(seen, both)[:, cached:], ~live[:, cached:]

    def forward(self, signal: Tensor, length: Tensor, channel: Tensor, time: Tensor, channel_len: Tensor):
        channel, time = channel.transpose(0, 1), time.transpose(0, 1)
        x, lens = self.embedded(signal, length)
        kept, cached = x.size(1), channel.size(2)
        most = kept + cached
        mask, padding = self.masks(lens + cached, most, torch.neg(channel_len) + cached, cached)
        center = self.pe.size(1) // 2 + 1
        places = self.pe[:, center - most : center + most - 1]
        channels, times = [], []
        for k, layer in enumerate(self.layers):
            x, c, t = layer(x, mask, places, padding, channel[k], time[k])
            channels.append(c)
            times.append(t)
        channels, times = torch.stack(channels, dim=0), torch.stack(times, dim=0)
        channel_len = torch.clamp(channel_len + kept, max=cached)
        return x.transpose(1, 2), lens, channels.transpose(0, 1), times.transpose(0, 1), channel_len


def nemo(batch: int = 2) -> Encoder:
    """As NeMo's `export` writes a cache-aware encoder: all axes of batch and time are open, also those of caches."""
    inputs = {
        "audio_signal": torch.randn(batch, FEATURES, 4 * CHUNK + 5),
        "length": torch.full((batch,), 4 * CHUNK + 5, dtype=torch.int64),
        "cache_last_channel": torch.zeros(batch, LAYERS, LEFT, D),
        "cache_last_time": torch.zeros(batch, LAYERS, D, KERNEL - 1),
        "cache_last_channel_len": torch.zeros(batch, dtype=torch.int64),
    }
    states = {"cache_last_channel": "cache_last_channel_next", "cache_last_time": "cache_last_time_next"}
    states["cache_last_channel_len"] = "cache_last_channel_next_len"
    kinds = {"audio_signal": (0, 2), "length": (0,), "cache_last_channel": (0, 2), "cache_last_time": (0, 3)}
    kinds |= {"cache_last_channel_len": (0,), "outputs": (0, 2), "encoded_lengths": (0,)}
    kinds |= {new: kinds[old] for old, new in states.items()}
    axes = {name: {k: f"{name}_dynamic_axes_{k + 1}" for k in at} for name, at in kinds.items()}
    outputs = ("outputs", "encoded_lengths", *states.values())
    size = 4 * CHUNK + 5
    return Encoder(
        "NeMo",
        seeded(Nemo),
        inputs,
        outputs,
        states,
        axes,
        chunk=size,
        shift=4 * CHUNK,
        batch=frozenset(f"{name}_dynamic_axes_1" for name in axes),
        opset=17,
        others=lambda call: {"length": np.array(size)},
        sizes={"audio_signal[2]": size, "cache_last_channel[2]": LEFT},
    )
