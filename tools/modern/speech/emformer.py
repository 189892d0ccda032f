"""ConvEmformer of icefall (arXiv 2010.10759, with convolutions): memories, keys and values of earlier chunks, and
frames ahead that are computed anew with each chunk. Batch and heads are one axis."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .files import Encoder, seeded

FEATURES, D, HEADS, LAYERS, KERNEL = 20, 16, 2, 2, 5
CHUNK, RIGHT, LEFT, MEMORY = 4, 2, 8, 3  # frames after the subsampling; memories are means of chunks
FRAMES = 4 * (CHUNK + RIGHT) + 11  # that a chunk is made of


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.query, self.key_value, self.out = nn.Linear(D, D), nn.Linear(D, 2 * D), nn.Linear(D, D)
        self.summary = nn.AvgPool1d(CHUNK, CHUNK, ceil_mode=True)
        self.into, self.deep, self.onto = nn.Conv1d(D, 2 * D, 1), nn.Conv1d(D, D, KERNEL, groups=D), nn.Conv1d(D, D, 1)
        self.feed = nn.ModuleList(
            [nn.Sequential(nn.Linear(D, 2 * D), nn.SiLU(), nn.Linear(2 * D, D)) for _ in range(2)]
        )
        self.norm = nn.LayerNorm(D)

    def attend(self, chunk: Tensor, right: Tensor, memory: Tensor, keys: Tensor, values: Tensor):
        (U, B, _), R, M = chunk.size(), right.size(0), memory.size(0)
        q = self.query(torch.cat([right, chunk]))
        k, v = self.key_value(torch.cat([memory, right, chunk])).chunk(2, dim=2)
        k = torch.cat([k[: M + R], keys, k[M + R :]])
        v = torch.cat([v[: M + R], values, v[M + R :]])
        hidden = torch.zeros(q.size(0), k.size(0)).to(dtype=torch.bool)
        heads = [t.contiguous().view(-1, B * HEADS, D // HEADS).transpose(0, 1) for t in (q, k, v)]
        weights = torch.bmm(heads[0] * (D // HEADS) ** -0.5, heads[1].transpose(1, 2))
        weights = torch.softmax(weights.masked_fill(hidden.unsqueeze(0), -1e8), dim=-1)
        out = torch.bmm(weights, heads[2]).transpose(0, 1).contiguous().view(R + U, B, D)
        return self.out(out), k[M + R :], v[M + R :]

    def convolve(self, chunk: Tensor, right: Tensor, cache: Tensor):
        U, R = chunk.size(0), right.size(0)
        x = F.glu(self.into(torch.cat([chunk, right], dim=0).permute(1, 2, 0)), dim=1)
        x = torch.cat([cache, x], dim=2)
        cache = x[:, :, -R - (KERNEL - 1) : -R]
        x = self.onto(F.silu(self.deep(x)))
        return torch.cat([x[:, :, U:].permute(2, 0, 1), x[:, :, :U].permute(2, 0, 1)]), cache

    def forward(self, chunk: Tensor, right: Tensor, states: list[Tensor]):
        memory, keys, values, cache = states
        R = right.size(0)
        x = torch.cat([right, chunk])
        x = x + self.feed[0](x)
        summary = self.summary(x[R:].permute(1, 2, 0)).permute(2, 0, 1)[:1, :, :]
        made, new_keys, new_values = self.attend(x[R:], x[:R], memory, keys, values)
        memory = torch.cat([memory, summary])
        memory = memory[memory.size(0) - MEMORY :]
        keys, values = new_keys[new_keys.size(0) - LEFT :], new_values[new_values.size(0) - LEFT :]
        x = x + made
        made, cache = self.convolve(x[R:], x[:R], cache)
        x = x + made
        x = self.norm(x + self.feed[1](x))
        return x[R:], x[:R], [memory, keys, values, cache]


class Emformer(nn.Module):
    def __init__(self, joiner: int = 20):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 6, 3, 2), nn.Conv2d(6, 6, 3, 2)
        self.embed = nn.Linear(6 * (((FEATURES - 1) // 2 - 1) // 2), D)
        self.layers, self.out = nn.ModuleList([Layer() for _ in range(LAYERS)]), nn.Linear(D, joiner)

    def forward(self, x: Tensor, *states: Tensor):
        x = F.relu(self.b(F.relu(self.a(x.unsqueeze(1)))))
        b, c, t, f = x.size()
        x = self.embed(x.transpose(1, 2).reshape(b, t, c * f))[:, 1:-1, :].permute(1, 0, 2)
        x, right, new = x[:-RIGHT], x[-RIGHT:], []
        for k, layer in enumerate(self.layers):
            x, right, made = layer(x, right, list(states[4 * k : 4 * k + 4]))
            new += made
        return self.out(x.permute(1, 0, 2)), *new


def emformer(batch: int = 1) -> Encoder:
    """As conv_emformer_transducer_stateless2/export-onnx.py of icefall writes it."""
    inputs, states = {"x": torch.rand(batch, FRAMES, FEATURES)}, {}
    axes = {"x": {0: "N"}, "encoder_out": {0: "N"}}
    sizes = [(MEMORY, batch, D), (LEFT, batch, D), (LEFT, batch, D), (batch, D, KERNEL - 1)]
    for k in range(4 * LAYERS):
        name, size = f"state_{k}", sizes[k % 4]
        inputs[name], states[name] = torch.zeros(size), f"new_{name}"
        axes[name] = axes[f"new_{name}"] = {0 if k % 4 == 3 else 1: "N"}
    metadata = {
        "model_type": "conv-emformer",
        "version": "1",
        "model_author": "k2-fsa",
        "decode_chunk_len": str(4 * CHUNK),
        "T": str(FRAMES),
        "num_encoder_layers": str(LAYERS),
        "memory_size": str(MEMORY),
        "cnn_module_kernel": str(KERNEL),
        "right_context_length": str(4 * RIGHT),
        "left_context_length": str(LEFT),
        "encoder_dim": str(D),
    }
    return Encoder(
        "ConvEmformer",
        seeded(Emformer),
        inputs,
        ("encoder_out", *states.values()),
        states,
        axes,
        chunk=FRAMES,
        shift=4 * CHUNK,
        batch=frozenset("N"),
        metadata=metadata,
    )
