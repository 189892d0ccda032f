"""Decoders with growing caches of keys and values, with the inputs that exporters of transformers give them.

Each is written after its paper with random weights, two layers and 16 features. A call takes tokens [batch, steps], the
caches and what else the exporter's interface has, and returns logits and the caches with its own steps behind them.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from programs.exports import quiet
from torch import Tensor, nn

import fastrnn
from fastrnn.streaming.caches import streamed

from .speech.trials import TOLERANCE, by_onnxruntime

WIDTH, HEADS, FEATURES, LAYERS, TOKENS, PLACES = 16, 4, 4, 2, 32, 128
MEMORY = 6  # steps of an encoder
BATCH, STEPS, HELD = 2, 3, 5  # of the example
ROWS, LENGTH, CUTS = 3, 13, (4, 1, 6, 2)  # of the trials

Tensors = dict[str, Tensor]


class Attention(nn.Module):
    """groups : heads of keys and values. rotary : whether positions turn queries and keys."""

    def __init__(self, groups: int = HEADS, rotary: bool = False):
        super().__init__()
        self.groups, self.rotary = groups, rotary
        self.q, self.o = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.k, self.v = (nn.Linear(WIDTH, groups * FEATURES) for _ in range(2))

    def forward(self, x: Tensor, past: tuple[Tensor, Tensor], mask: Tensor, places: Tensor | None = None):
        q, k, v = (_heads(part(x)) for part in (self.q, self.k, self.v))
        if self.rotary:
            q, k = _turned(q, places), _turned(k, places)
        k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        return self.o(_attend(q, k, v, mask)), k, v

    def across(self, x: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.o(_attend(_heads(self.q(x)), k, v, None))


def _feed_forward() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))


def _heads(x: Tensor) -> Tensor:
    return x.reshape(x.shape[0], x.shape[1], -1, FEATURES).transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    if k.shape[1] != q.shape[1]:
        k, v = (x.repeat_interleave(HEADS // x.shape[1], 1) for x in (k, v))
    scores = q @ k.transpose(2, 3) / math.sqrt(FEATURES)
    if mask is not None:
        scores = scores.masked_fill(~mask, torch.finfo(torch.float32).min)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def _turned(x: Tensor, places: Tensor) -> Tensor:
    angles = places[:, None, :, None] * 100.0 ** -(torch.arange(FEATURES // 2) / (FEATURES // 2))
    a, b = x.chunk(2, -1)
    return torch.cat((a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()), -1)


class Decoder(nn.Module):
    """inputs : names of the inputs beside the tokens and the caches. stacked : one cache for all layers. window : steps
    that a query sees, 0 for all. memory : whether layers attend to an encoder. tail : whether a convolution with a tail
    of two steps follows the embedding."""

    def __init__(self, inputs=(), groups=HEADS, rotary=False, stacked=False, window=0, memory=False, tail=False):
        super().__init__()
        self.inputs, self.stacked, self.window, self.memory, self.tail = inputs, stacked, window, memory, tail
        self.rotary = rotary
        self.tokens, self.places = nn.Embedding(TOKENS, WIDTH), nn.Embedding(PLACES, WIDTH)
        self.layers = nn.ModuleList(Attention(groups, rotary) for _ in range(LAYERS))
        self.across = nn.ModuleList(Attention() for _ in range(LAYERS if memory else 0))
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(LAYERS))
        self.more = nn.ModuleList(_feed_forward() for _ in self.norms)
        self.near = nn.Conv1d(WIDTH, WIDTH, 3, groups=WIDTH)
        self.logits = nn.Linear(WIDTH, TOKENS)

    def forward(self, input_ids: Tensor, *rest: Tensor):
        given = dict(zip(self.names(), rest, strict=True))
        caches = [given[n] for n in self.caches()]
        pasts = [(caches[0][i, 0], caches[0][i, 1]) for i in range(LAYERS)] if self.stacked else None
        pasts = pasts or [(caches[2 * i], caches[2 * i + 1]) for i in range(LAYERS)]
        held, steps = pasts[0][0].shape[2], input_ids.shape[1]
        own = given.get("cache_position", torch.arange(held, held + steps))
        x, ends = self.tokens(input_ids), []
        if self.tail:
            whole = torch.cat((given["conv_cache"], x.transpose(1, 2)), 2)
            x, ends = x + self.near(whole).transpose(1, 2), [whole[:, :, -2:]]
        places = given.get("position_ids")
        if places is None and "attention_mask" in given:
            places = (given["attention_mask"].cumsum(1) - 1)[:, held:]
        if places is None:
            places = own[None]
        x = x if self.rotary else x + self.places(places)
        keys = torch.arange(held + steps)
        mask = (keys[None] <= own[:, None])[None, None]
        if self.window:
            mask = mask & (keys[None] > own[:, None] - self.window)
        if "attention_mask" in given:
            mask = mask & given["attention_mask"][:, None, None].bool()
        for i, (layer, norm) in enumerate(zip(self.layers, self.norms, strict=True)):
            y, k, v = layer(norm(x), pasts[i], mask, places)
            x, ends = x + y, [*ends, k, v]
            if self.memory:
                x = x + self.across[i].across(x, given[f"encoder.{i}.key"], given[f"encoder.{i}.value"])
            x = x + self.more[i](x)
        if self.stacked:
            ends = [torch.stack([torch.stack(ends[2 * i : 2 * i + 2]) for i in range(LAYERS)])]
        return (self.logits(x), *ends)

    def caches(self) -> list[str]:
        return ["past"] if self.stacked else [f"past.{i}.{w}" for i in range(LAYERS) for w in ("key", "value")]

    def memories(self) -> list[str]:
        return [f"encoder.{i}.{w}" for i in range(LAYERS) for w in ("key", "value")] if self.memory else []

    def names(self) -> list[str]:
        """The inputs beside the tokens, in order."""
        return [*self.inputs, *self.memories(), *["conv_cache"] * self.tail, *self.caches()]

    def outputs(self) -> list[str]:
        return ["logits", *["new_conv_cache"] * self.tail, *(n.replace("past", "present") for n in self.caches())]


@dataclass(frozen=True)
class Case:
    """asks : the inputs of a step of its stream."""

    name: str
    make: Callable[[], Decoder]
    asks: tuple[str, ...] = ("input_ids",)


CASES = (
    Case("GPT-2", lambda: Decoder(("attention_mask", "position_ids")), ("input_ids", "position_ids")),
    Case("OPT", lambda: Decoder(("attention_mask",))),
    Case("Llama", lambda: Decoder(("attention_mask", "cache_position"), groups=2, rotary=True)),
    Case("Mistral", lambda: Decoder(("cache_position",), groups=2, rotary=True, window=6)),
    Case("Whisper", lambda: Decoder(memory=True)),
    Case("One cache for all layers", lambda: Decoder(("attention_mask",), stacked=True)),
    Case("Convolution and attention", lambda: Decoder(("attention_mask",), tail=True)),
)


def feeds(module: Decoder, batch: int, held: int, steps: int) -> Tensors:
    """What a caller hands to a call, with random caches."""
    own = torch.arange(held, held + steps)
    groups = module.layers[0].groups
    past = (batch, groups, held, FEATURES)
    found = {
        "input_ids": torch.randint(TOKENS, (batch, steps)),
        "attention_mask": torch.ones(batch, held + steps, dtype=torch.int64),
        "position_ids": own.expand(batch, steps).clone(),
        "cache_position": own,
        "conv_cache": torch.randn(batch, WIDTH, 2),
    }
    found |= {n: torch.randn((LAYERS, 2, *past) if module.stacked else past) for n in module.caches()}
    found |= {n: torch.randn(batch, HEADS, MEMORY, FEATURES) for n in module.memories()}
    return {n: found[n] for n in ("input_ids", *module.names())}


def exported(module: Decoder, exporter: str) -> bytes:
    """The bytes of its file, with open sizes. exporter: "script" or "dynamo"."""
    axes = {"input_ids": {0: "batch", 1: "steps"}, "attention_mask": {0: "batch", 1: "total"}}
    axes |= {"position_ids": axes["input_ids"], "cache_position": {0: "steps"}, "conv_cache": {0: "batch"}}
    axes |= {n: {2: "batch", 4: "held"} if module.stacked else {0: "batch", 2: "held"} for n in module.caches()}
    axes |= {n: {0: "batch"} for n in module.memories()}
    module = module.eval()
    example = feeds(module, BATCH, HELD, STEPS)
    names = {"input_names": list(example), "output_names": module.outputs()}
    buffer = io.BytesIO()
    if exporter == "script":
        sizes = {n: axes[n] for n in example} | {"logits": axes["input_ids"]}
        with quiet():
            torch.onnx.export(
                module, tuple(example.values()), buffer, dynamo=False, opset_version=17, dynamic_axes=sizes, **names
            )
        return buffer.getvalue()
    shapes = [dict.fromkeys(axes[n], torch.export.Dim.AUTO) for n in example]
    with quiet(), torch.no_grad():
        made = torch.onnx.export(
            module,
            tuple(example.values()),
            dynamo=True,
            verbose=False,
            dynamic_shapes=(shapes[0], tuple(shapes[1:])),
            **names,
        )
    return made.model_proto.SerializeToString()


# -- trials --
def tried(case: Case, content: bytes) -> dict[str, str]:
    """What fails of a file: {} if it equals onnxruntime token by token and in chunks, and gives the same bits in
    streams and a pool."""
    try:
        model = fastrnn.load(content, threads=1)
        asked = tuple(n for n in streamed(model.graph).inputs if n not in model.graph.states)
        if asked[: len(case.asks)] != case.asks or any(not n.startswith("encoder") for n in asked[len(case.asks) :]):
            return {"asks": f"for {', '.join(asked)}"}
        return _compared(case, content, model)
    except fastrnn.FastRNNError as error:
        return {type(error).__name__: str(error)}


def _compared(case: Case, content: bytes, model) -> dict[str, str]:
    rng = np.random.default_rng(19)
    tokens = rng.integers(0, TOKENS, (ROWS, LENGTH))
    memory = {
        n: rng.standard_normal((ROWS, HEADS, MEMORY, FEATURES)).astype(np.float32) for n in case.make().memories()
    }
    given = {"input_ids": tokens, "position_ids": np.tile(np.arange(LENGTH), (ROWS, 1))}
    data = tuple(given[n] for n in case.asks)
    bounds = {} if case.make().window else {"context": LENGTH}
    whole = model.stream(ROWS, bind=memory or None, **bounds).push(data if len(data) > 1 else data[0])
    for cuts in ((1,) * LENGTH, CUTS):
        want = _by_onnxruntime(case.make(), content, tokens, memory, cuts)
        if np.abs(whole - want).max() > TOLERANCE * max(np.abs(want).max(), 1):
            return {"answers": f"differ by {np.abs(whole - want).max():.1g} in calls of {cuts}"}
    for row in range(ROWS):
        stream = model.stream(bind={n: a[row] for n, a in memory.items()} or None, **bounds)
        steps = [_step(data, row, t) for t in range(LENGTH)]
        if np.stack([stream.step(x) for x in steps]).tobytes() != whole[row].tobytes():
            return {"bits": f"of the lone stream {row} differ"}
    if memory:  # what each slot attends to is one value for a pool
        return {}
    pool, at = model.pool(ROWS, **bounds), [0] * ROWS
    slots = [pool.open() for _ in at]
    while min(at) < LENGTH:  # each at its own pace
        rows = [k for k in range(ROWS) if at[k] < LENGTH and rng.random() < 0.5]
        parts = [_step(data, k, at[k]) for k in rows]
        many = tuple(map(np.array, zip(*parts, strict=True))) if len(data) > 1 else np.array(parts)
        for k, y in zip(rows, pool.step([slots[k] for k in rows], many) if rows else (), strict=True):
            if y.tobytes() != whole[k, at[k]].tobytes():
                return {"bits": f"of slot {k} differ at step {at[k]}"}
            at[k] += 1
    return {}


def _step(data: tuple, row: int, step: int):
    parts = tuple(array[row, step] for array in data)
    return parts if len(parts) > 1 else parts[0]


def _by_onnxruntime(module: Decoder, content: bytes, tokens: np.ndarray, memory: dict, cuts: tuple) -> np.ndarray:
    """The logits of calls of so many steps, whose caches are handed on."""
    run = by_onnxruntime(content)
    kept, found, held = {n: a.numpy() for n, a in feeds(module, len(tokens), 0, 1).items()}, [], 0
    kept = {n: np.zeros_like(kept[n]) for n in (*module.caches(), *["conv_cache"] * module.tail)}
    for steps in cuts:
        more = {n: a.numpy() for n, a in feeds(module, len(tokens), held, steps).items() if n not in kept}
        more |= {"input_ids": tokens[:, held : held + steps], **memory}
        out = run(more | kept)
        kept = {n: out["new_conv_cache" if n == "conv_cache" else n.replace("past", "present")] for n in kept}
        found.append(out["logits"])
        held += steps
    return np.concatenate(found, 1)
