"""Random programs: statements drawn from templates, each tried on real tensors before it is kept.

A template is lines of Python with holes. `{a}` and `{b}` are values [B, t, F], `{v}` and `{w}` values [B, F]. `{F}` is
the number of features of `a`, `{k}` a small number below its length, `{H}` a hidden size, `{c}` a number (often one
that looks like a length), `{m}` a part of the network, made by the text behind `|`. Running it shows what a template
yields; there are no rules.

What its file can't tell apart from another program is left out: branches on a length, slices that the exporter drops,
numbers of rows at one row, and numbers that are a batch, which is no evidence anywhere.
"""

from __future__ import annotations

import linecache
import math
import random
import re
from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F

from .inputs import parse_inputs
from .registry import Program

CELL = "h, out = {a}.new_zeros({a}.shape[0], {H}), []\nfor t in {steps}:\n    {update}\n    out.append(h)\n{y} = "
STEPS = (
    "range({a}.shape[1])",
    "range({a}.shape[1])",
    "range({a}.shape[1] - 1, -1, -1)",
    "range(0, {a}.shape[1], 2)",
    "range(1, {a}.shape[1])",
    "range({a}.shape[1] // 2)",
)
UPDATES = (
    "h = net.{m}({a}[:, t], h) | nn.GRUCell({F}, {H})",
    "h = net.{m}({a}[:, t], h) | nn.RNNCell({F}, {H})",
    "h = net.{m}({a}[:, t], h if t % 3 else torch.zeros_like(h)) | nn.GRUCell({F}, {H})",
    "h = torch.tanh(net.{m}(torch.cat([{a}[:, t], h], -1))) | nn.Linear({F} + {H}, {H})",
    "h = 0.9 * h + 0.1 * net.{m}({a}[:, t]) | nn.Linear({F}, {H})",
    "h = torch.maximum(h, net.{m}({a}[:, t])) | nn.Linear({F}, {H})",
    "h = net.{m}({a}[:, t], h) * ((t + 1) / {a}.shape[1]) | nn.GRUCell({F}, {H})",
)
LOOPS = tuple(
    CELL.replace("{steps}", s).replace("{update}", u.split(" | ")[0]) + end + " | " + u.split(" | ")[1]
    for s in STEPS
    for u in UPDATES
    for end in ("torch.stack(out, 1)", "h", "torch.stack(out[::-1], 1)")
)
LAYERS = (
    "{y} = net.{m}({a})[0] | nn.LSTM({F}, {H}, batch_first=True)",
    "{y} = net.{m}({a})[0] | nn.GRU({F}, {H}, batch_first=True)",
    "{y} = net.{m}({a})[0] | nn.RNN({F}, {H}, batch_first=True)",
    "{y} = net.{m}({a})[0] | nn.LSTM({F}, {H}, batch_first=True, bidirectional=True)",
    "{y} = net.{m}({a})[0] | nn.GRU({F}, {H}, num_layers=2, batch_first=True)",
    "{y} = net.{m}({a})[1][-1] | nn.GRU({F}, {H}, batch_first=True)",
    "{y} = net.{m}({a})[1][0][0] | nn.LSTM({F}, {H}, batch_first=True)",
    "{y} = net.{m}({a}, {v}.unsqueeze(0))[0] | nn.GRU({F}, {v}.shape[-1], batch_first=True)",
    "{y} = net.{m}({a}.transpose(0, 1))[0].transpose(0, 1) | nn.GRU({F}, {H})",
    "{y} = net.{m}({a}.flip(1))[0].flip(1) | nn.LSTM({F}, {H}, batch_first=True)",
)
DENSE = (
    "{y} = net.{m}({a}) | nn.Linear({F}, {H})",
    "{y} = torch.relu(net.{m}({a})) | nn.Linear({F}, {H})",
    "{y} = net.{m}({v}) | nn.Linear({v}.shape[-1], {H})",
    "{y} = net.{m}({a}) | nn.LayerNorm({F})",
    "{y} = net.{m}({a}.reshape(-1, {F})).view({a}.shape[0], {a}.shape[1], {H}) | nn.Linear({F}, {H})",
    "{y} = net.{m}({a}.reshape(-1, {F})).view({a}.shape[0], -1, {H}) | nn.Linear({F}, {H})",
    "{y} = torch.tanh({a})",
    "{y} = torch.sigmoid({a})",
    "{y} = {a}.abs() + 0.1",
    "{y} = torch.softmax({a}, -1)",
)
CONVS = (
    "{y} = net.{m}({a}.transpose(1, 2)).transpose(1, 2) | nn.Conv1d({F}, {H}, 3, padding=1)",
    "{y} = net.{m}(F.pad({a}.transpose(1, 2), (2, 0))).transpose(1, 2) | nn.Conv1d({F}, {H}, 3)",
    "{y} = net.{m}({a}.transpose(1, 2)).transpose(1, 2) | nn.Conv1d({F}, {H}, 3)",
    "{y} = net.{m}({a}.transpose(1, 2)).transpose(1, 2) | nn.Conv1d({F}, {H}, 3, stride=2, padding=1)",
    "{y} = net.{m}({a}.transpose(1, 2)).transpose(1, 2) | nn.Conv1d({F}, {H}, 2, dilation=2, padding=1)",
    "{y} = net.{m}({a}.transpose(1, 2)).transpose(1, 2) | nn.ConvTranspose1d({F}, {H}, 4, stride=2, padding=1)",
    "{y} = F.max_pool1d({a}.transpose(1, 2), 2).transpose(1, 2)",
    "{y} = F.avg_pool1d({a}.transpose(1, 2), 3, 1, 1).transpose(1, 2)",
    "{y} = F.interpolate({a}.transpose(1, 2), scale_factor=2, mode='nearest').transpose(1, 2)",
)
SLICES = (
    "{y} = {a}[:, {k}:]",
    "{y} = {a}[:, :{k} + 1]",
    "{y} = {a}[:, :-{k}]",
    "{y} = {a}[:, -{k}:]",
    "{y} = {a}[:, ::2]",
    "{y} = {a}[:, {a}.shape[1] // 2:]",
    "{y} = {a}[:, :{a}.shape[1] // 2]",
    "{y} = {a}[:, {a}.shape[1] - {k}:]",
    "{y} = {a}[:, :{a}.shape[1] - {k}]",
    "{y} = {a}[:, :{a}.shape[1] // 4 * 4]",
    "{y} = {a}[:, {k}]",
    "{y} = {a}[:, -{k}]",
    "{y} = {a}[:, -1]",
    "{y} = {a}[:, 0]",
    "{y} = {a}[:, {a}.shape[1] // 2]",
    "{y} = {a}.flip(1)",
    "{y} = torch.roll({a}, {k}, 1)",
    "{y} = torch.roll({a}, {a}.shape[1] // 2, 1)",
    "{y} = torch.cat([{a}[:, {a}.shape[1] // 2:], {a}[:, :{a}.shape[1] // 2]], 1)",
    "{y} = torch.cat([{a}[:, {k}:], {a}[:, :{k}]], 1)",
    "{y} = torch.cat([{a}, {a}.flip(1)], 1)",
    "{y} = {a}.narrow(1, {k}, {a}.shape[1] - {k})",
    "{y} = {a}.index_select(1, torch.arange({a}.shape[1] - 1, -1, -1))",
    "{y} = {a}[:, torch.arange({a}.shape[1]) // 2]",
    "{y} = F.pad({a}, (0, 0, {k}, 0))",
    "{y} = F.pad({a}, (0, 0, 0, {k}))",
    "{y} = F.pad({a}, (0, 0, {k}, -{k}))",
    "{y} = F.pad({a}, (0, 0, 0, {a}.shape[1] // 2))",
    "{y} = {a}.repeat_interleave(2, 1)",
    "{y} = {a}[:, :{a}.shape[1] // 2 * 2].reshape({a}.shape[0], {a}.shape[1] // 2, {F} * 2)",
    "{y} = {a}.reshape({a}.shape[0], -1, {F} * 2)",
    "{y} = {a}.reshape({a}.shape[0], {a}.shape[1] * 2, {F} // 2)",
    "{y} = {a}[:, 1:] - {a}[:, :-1]",
    "{y} = sum({a}.chunk(2, 1))",
    "{y} = torch.stack([s.mean(1) for s in {a}.split({k}, 1)], 1)",
    "{y} = {a}.unfold(1, 3, {s}).flatten(2)",
    "{y} = {a}.reshape({a}.shape[0], -1)",
)
SCALARS = (
    "{y} = {a} / {a}.shape[1]",
    "{y} = {a} * {a}.shape[1] ** -0.5",
    "{y} = {a} + {a}.shape[1]",
    "{y} = {a} - ({a}.shape[1] - 1)",
    "{y} = {a} * ({a}.shape[1] + 1) / 10",
    "{y} = {a} + {a}.shape[1] // 2",
    "{y} = {a} * math.log({a}.shape[1])",
    "{y} = {v} / a0.shape[1]",
    "{y} = {v} + a0.shape[1]",
    "{y} = {a}.sum(1) / {a}.shape[1]",
    "{y} = {a}.sum(1) / ({a}.shape[1] + 1)",
    "{y} = {a} * {c}",
    "{y} = {a} + {c}",
    "{y} = {a} / {c}",
    "{y} = torch.cat([{a}, torch.full_like({a}[..., :1], {a}.shape[1] / 10)], -1)",
)
POSITIONS = (
    "{y} = {a} + net.{m}[:{a}.shape[1]] | nn.Parameter(torch.randn(64, {F}))",
    "{y} = {a} + net.{m}[:{a}.shape[1]] | nn.Parameter(torch.randn(T, {F}))",
    "{y} = {a} * net.{m}[:{a}.shape[1], None] | nn.Parameter(torch.rand(T))",
    "{y} = {a} + net.{m}(torch.arange({a}.shape[1])) | nn.Embedding(64, {F})",
    "{y} = {a} * torch.arange({a}.shape[1]).view(1, -1, 1)",
    "{y} = {a} * torch.cos(torch.arange({a}.shape[1]) * 0.3).view(1, -1, 1)",
    "{y} = {a} + (torch.arange({a}.shape[1]) / {a}.shape[1]).view(1, -1, 1)",
    "{y} = {a} * torch.linspace(0, 1, {a}.shape[1]).view(1, -1, 1)",
    "{y} = {a} * ({a}.shape[1] - torch.arange({a}.shape[1])).view(1, -1, 1)",
    "{y} = {a} * (torch.arange({a}.shape[1]) < {k}).float().view(1, -1, 1)",
    "{y} = {a} * (torch.arange({a}.shape[1]) >= {a}.shape[1] - {k}).float().view(1, -1, 1)",
    "{y} = {a} * (torch.arange({a}.shape[1]) >= {a}.shape[1] // 2).float().view(1, -1, 1)",
    "{y} = torch.cat([{a}, torch.ones({a}.shape[0], {a}.shape[1], 1)], -1)",
    "{y} = torch.cat([{a}.new_zeros({a}.shape[0], {k}, {F}), {a}], 1)",
    "{y} = torch.cat([net.{m}.expand({a}.shape[0], -1, -1), {a}], 1) | nn.Parameter(torch.randn(1, 1, {F}))",
)
OVER_TIME = (
    "{y} = {a}.mean(1)",
    "{y} = {a}.amax(1)",
    "{y} = {a}.sum(1)",
    "{y} = {a}.std(1)",
    "{y} = {a}.norm(dim=1)",
    "{y} = {a}.cumsum(1)",
    "{y} = {a}.cummax(1).values",
    "{y} = (1 + 0.1 * torch.tanh({a})).cumprod(1)",
    "{y} = {a}.cumsum(1) / torch.arange(1, {a}.shape[1] + 1).view(1, -1, 1)",
    "{y} = {a}.flip(1).cumsum(1).flip(1)",
    "{y} = torch.softmax({a}, 1)",
    "{y} = {a} - {a}.mean(1, keepdim=True)",
    "{y} = {a} / ({a}.std(1, keepdim=True) + 0.1)",
    "{y} = F.adaptive_avg_pool1d({a}.transpose(1, 2), 1).squeeze(-1)",
    "{y} = (torch.softmax({a}.mean(-1, keepdim=True), 1) * {a}).sum(1)",
    "{y} = {a}.sort(1).values",
)
MASKED = """s = {a} @ {a}.transpose(1, 2)
future = torch.triu(torch.ones_like(s), 1) > 0
{y} = torch.softmax(s.masked_fill(future, -1e9), -1) @ {a}"""
ATTENTION = (
    "{y} = torch.softmax({a} @ {a}.transpose(1, 2) * {F} ** -0.5, -1) @ {a}",
    MASKED,
    "{y} = torch.tril({a} @ {a}.transpose(1, 2)) @ {a}",
    "{y} = F.scaled_dot_product_attention({a}, {a}, {a}, is_causal=True)",
    "{y} = net.{m}({a}, {a}, {a})[0] | nn.MultiheadAttention({F}, 1, batch_first=True)",
    "{y} = ({a} @ {a}.transpose(1, 2) / {a}.shape[1]) @ {a}",
)
ROWS = (
    "{y} = {a}[:1]",
    "{y} = {a} - {a}.mean(0, keepdim=True)",
    "{y} = {a} + torch.arange({a}.shape[0]).view(-1, 1, 1)",
    "{y} = {a}.flip(0)",
    "{y} = torch.roll({a}, 1, 0)",
    "{y} = torch.stack([{a}[i] * (i + 1) for i in range({a}.shape[0])])",
    "{y} = {a} - {a}[0]",
    "{y} = {a}.cumsum(0)",
    "{y} = {a} * net.{m} | nn.Parameter(torch.rand(B, 1, 1))",
)
CASTS = (
    "{y} = {a}.double().cumsum(1).float()",
    "{y} = ({a} > 0.1).float() * {a}",
    "{y} = torch.where({a} > 0, {a}, torch.zeros(()))",
    "{y} = ({a} > 0).long().cumsum(1).float()",
)
JOINS = (
    "{y} = {a} + {b}",
    "{y} = {a} * torch.sigmoid({b})",
    "{y} = torch.cat([{a}, {b}], -1)",
    "{y} = torch.cat([{a}, {b}], 1)",
    "{y} = {a} + {v}.unsqueeze(1)",
    "{y} = torch.cat([{a}, {v}.unsqueeze(1).expand(-1, {a}.shape[1], -1)], -1)",
    "{y} = {v}.unsqueeze(1).repeat(1, {a}.shape[1], 1)",
    "{y} = torch.cat([{v}, {w}], -1)",
    "{y} = ({a} @ {v}.unsqueeze(-1)).squeeze(-1)",
    "{y} = torch.einsum('btf,bf->bt', {a}, {v})",
)
# How often each family is drawn.
FAMILIES = (
    (LAYERS, 5), (LOOPS, 3), (DENSE, 3), (CONVS, 3), (SLICES, 7), (SCALARS, 3), (POSITIONS, 3), (OVER_TIME, 4),
    (ATTENTION, 2), (ROWS, 1), (CASTS, 1), (JOINS, 3),
)  # fmt: skip
INPUTS = (
    "x: B T 4",
    "x: B T 4",
    "x: B T 4",
    "x: B T 4; z: B 3",
    "x: B T 4; u: B T 4",
    "x: B T <7",
    "x: B 4 T",
    "x: T B 4",
)
START = {
    "x: B T <7": "a0 = net.m0(x) | nn.Embedding(7, 4)",
    "x: B 4 T": "a0 = x.transpose(1, 2)",
    "x: T B 4": "a0 = x.transpose(0, 1)",
}
NAMES = {"torch": torch, "nn": nn, "F": F, "math": math}


@dataclass(frozen=True)
class Statement:
    """Lines of Python that set `name`; `part` (text, or "") makes `net.<made>`."""

    name: str
    lines: str
    made: str = ""
    part: str = ""


@dataclass(frozen=True)
class Draft:
    """A random program: statements, the names that it returns, and the exported size."""

    seed: int
    inputs: str
    T: int
    B: int
    statements: tuple[Statement, ...] = ()
    returned: tuple[str, ...] = ()

    def text(self) -> str:
        """The program as a module of tests/programs would have it."""
        parts = "".join(f", {s.made}=lambda T: {s.part}" for s in self.statements if s.part).replace(
            "(B, 1, 1)", f"({self.B}, 1, 1)"
        )
        names = ", ".join(i.name for i in parse_inputs(self.inputs))
        body = "".join(f"    {line}\n" for s in self.statements for line in s.lines.split("\n"))
        head = f'@program("{self.inputs}", T={self.T}, B={self.B}{parts})\ndef fuzz_{self.seed}(net, {names}):\n'
        return f"{head}{body}    return {', '.join(self.returned)}\n"

    def program(self) -> Program:
        text, file = self.text(), f"<fuzz_{self.seed}>"
        linecache.cache[file] = (len(text), None, text.splitlines(True), file)
        made = {}
        names = {**NAMES, "program": lambda inputs, T, B, **parts: lambda f: made.update(f=f, parts=parts)}
        exec(compile(text, file, "exec"), names)  # text of the templates above
        return Program(
            f"fuzz_{self.seed}", made["f"], parse_inputs(self.inputs), self.T, self.B, "fuzz", parts=made["parts"]
        )


def draw(seed: int) -> Draft:
    """A program that runs at its own size; the same for the same seed."""
    rng = random.Random(seed)
    inputs = rng.choice(INPUTS)
    draft = Draft(seed, inputs, rng.choice((5, 7, 8, 9, 12, 16, 19)), rng.choice((1, 2, 2, 3)))
    start = START.get(inputs, "a0 = x")
    lines, _, part = start.partition(" | ")
    draft = replace(draft, statements=(Statement("a0", lines, "m0" if part else "", part),), returned=("a0",))
    for k in range(1, rng.choice((2, 3, 3, 4, 5, 6)) + 1):
        for _ in range(20):
            longer = _extended(draft, k, rng)
            if longer is not None:
                draft = longer
                break
    return draft


def values(draft: Draft, size) -> dict[str, torch.Tensor] | None:
    """Every value of a program by name; None if it does not run at this size (T, B)."""
    whole = replace(draft, returned=tuple(s.name for s in draft.statements))
    try:
        program = whole.program()
        with torch.no_grad():
            out = program.net()(*program.tensors(*size))
    except Exception:  # most drafts don't fit: wrong ranks, sizes that don't divide
        return None
    out = (out,) if isinstance(out, torch.Tensor) else out
    return dict(zip(whole.returned, out, strict=True))


def _extended(draft: Draft, k: int, rng: random.Random) -> Draft | None:
    """One statement more; None if what was drawn does not fit."""
    have = values(draft, (draft.T, draft.B))
    seqs = [n for n, v in have.items() if v.dim() == 3]
    vecs = [n for n, v in have.items() if v.dim() == 2] + ["z"] * ("z" in draft.inputs)
    template = rng.choice(rng.choices([f for f, _ in FAMILIES], [w for _, w in FAMILIES])[0])
    if (not seqs and "{a}" in template) or (not vecs and "{v}" in template):
        return None
    if draft.B == 1 and template in ROWS:
        return None
    a = seqs[-1] if seqs and rng.random() < 0.75 else rng.choice(seqs or ["x"])
    near = [draft.T, draft.T - 1, draft.T + 1, draft.T // 2, 1 / draft.T, 0.5, 0.125, 0.1, 2, 7, 3]
    length = have[a].shape[1] if a in have else 2
    holes = {
        "a": a,
        "b": rng.choice([*(seqs or ["x"]), *["u"] * ("u" in draft.inputs)]),
        "v": rng.choice(vecs or ["z"]),
        "w": rng.choice(vecs or ["z"]),
        "y": f"a{k}",
        "m": f"m{k}",
        "F": have[a].shape[-1] if a in have else 4,
        "H": rng.choice((3, 4, 5, 6)),
        "k": rng.randint(1, max(1, min(length - 2, 5))),
        "s": rng.choice((1, 2)),
        "c": round(rng.choice(near), 6),
    }
    if "{v}.shape[-1]" in template and holes["v"] in have:
        template = template.replace("{v}.shape[-1]", str(have[holes["v"]].shape[-1]))
    template = template.replace("z.shape[-1]", "3")
    lines, _, part = template.partition(" | ")
    fill = lambda text: text.format(**holes)  # noqa: E731
    made = Statement(f"a{k}", fill(lines), f"m{k}" if part else "", fill(part))
    longer = replace(draft, statements=(*draft.statements, made), returned=(f"a{k}",))
    found = values(longer, (draft.T, draft.B))
    if found is None or not found[made.name].numel() or found[made.name].numel() > 20000:
        return None
    if found[made.name].dim() not in (2, 3) or not torch.isfinite(found[made.name].float()).all():
        return None
    return longer


def smaller(draft: Draft):
    """Drafts with a statement less, its name replaced by one of those that it was made of, or cut off at the end."""
    if len(draft.statements) > 1:
        yield replace(draft, statements=draft.statements[:-1], returned=(draft.statements[-2].name,))
    names = [s.name for s in draft.statements]
    for k, gone in enumerate(draft.statements):
        for other in names[:k]:
            rest = [s for s in draft.statements if s is not gone]
            renamed = tuple(
                replace(s, lines=_renamed(s.lines, gone.name, other)) if names.index(s.name) > k else s for s in rest
            )
            yield replace(
                draft, statements=renamed, returned=tuple(other if r == gone.name else r for r in draft.returned)
            )


def _renamed(text: str, old: str, new: str) -> str:
    return re.sub(rf"\b{old}\b", new, text)
