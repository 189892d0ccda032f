"""Matrix states that are computed in chunks of steps, and scans by doubling, as the papers' code writes them."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from .matrices import SSD, Heads, outer
from .registry import HEADS, D, K, cell

Q = 3  # steps of a chunk


def segment_sums(x):
    """[.., i, j]: the sum of x from j + 1 to i; -inf above the diagonal."""
    size = x.shape[-1]
    ones = torch.ones(size, size, dtype=torch.bool)
    rows = x.unsqueeze(-1).expand(*x.shape, size).masked_fill(~torch.tril(ones, -1), 0.0)
    return rows.cumsum(-2).masked_fill(~torch.tril(ones), -torch.inf)


@cell("Mamba-2 in chunks", "arXiv 2405.21060, listing 1 over chunks")
class Mamba2Chunks(SSD):
    def parallel(self, x):
        c, b, v = self.split(x)
        dt, batch = F.softplus(self.dt(x)), x.shape[0]
        v, a = dt.unsqueeze(-1) * v, -dt * torch.exp(self.a)
        c, b, v = (z.reshape(batch, -1, Q, HEADS, K) for z in (c, b, v))
        a = a.reshape(batch, -1, Q, HEADS).permute(0, 3, 1, 2)
        total = a.cumsum(-1)
        inside = torch.einsum("bclhn,bcshn,bhcls,bcshp->bclhp", c, b, torch.exp(segment_sums(a)), v)
        new = torch.einsum("bclhn,bhcl,bclhp->bchpn", b, torch.exp(total[..., -1:] - total), v)
        new = torch.cat([torch.zeros_like(new[:, :1]), new], 1)
        kept = torch.exp(segment_sums(F.pad(total[..., -1], (1, 0))))
        states = torch.einsum("bhzc,bchpn->bzhpn", kept, new)[:, :-1]
        before = torch.einsum("bclhn,bchpn,bhcl->bclhp", c, states, torch.exp(total))
        return (inside + before).reshape(batch, -1, D)


def chunked(x):
    """[B, heads, T, ..] -> [B, heads, chunks, Q, ..]."""
    return x.reshape(-1, HEADS, x.shape[2] // Q, Q, *x.shape[3:])


def inverse(x):
    """The inverse of I - x, for x below the diagonal."""
    made, done = torch.eye(x.shape[-1]) + x, 2
    while done < x.shape[-1]:
        x = x @ x
        made, done = made + made @ x, 2 * done
    return made


@cell("GLA in chunks", "arXiv 2312.06635, section 4")
class GLAChunks(Heads):
    more = 1

    def forward(self, x, s):
        q, k, v, a = self.split(x)
        s = torch.sigmoid(a).unsqueeze(-1) * s + outer(k, v)
        return self.read(q, s), s

    def parallel_fixed(self, x):
        q, k, v, a = (chunked(z) for z in self.over_heads(x))
        total = F.logsigmoid(a).cumsum(-2)
        q, last = q * torch.exp(total), total[..., -1:, :]
        inside = torch.tril(q @ (k * torch.exp(-total)).transpose(-1, -2)) @ v
        new = (k * torch.exp(last - total)).transpose(-1, -2) @ v
        s, out = new[:, :, 0], [inside[:, :, 0]]
        for c in range(1, x.shape[1] // Q):
            out.append(inside[:, :, c] + q[:, :, c] @ s)
            s = torch.exp(last[:, :, c]).transpose(-1, -2) * s + new[:, :, c]
        return self.joined(torch.stack(out, 2).flatten(2, 3))


class OfHeads(Heads):
    """A strength, and a decay, for each head and step."""

    def __init__(self):
        super().__init__()
        self.gates = nn.Linear(D, 2 * HEADS)

    def strength(self, x):
        """(strength, logarithm of the decay), each [.., HEADS]."""
        b, a = self.gates(x).chunk(2, -1)
        return torch.sigmoid(b), F.logsigmoid(a)


@cell("DeltaNet in chunks", "arXiv 2406.06484, the inverse of a triangle")
class DeltaNetChunks(OfHeads):
    def forward(self, x, s):
        q, k, v = self.split(x)
        k = F.normalize(k, dim=-1)
        b = self.strength(x)[0].unsqueeze(-1)
        s = s + outer(k, b * (v - (k.unsqueeze(-2) @ s).squeeze(-2)))
        return self.read(q, s), s

    def parallel_fixed(self, x):
        q, k, v = self.over_heads(x)
        k = F.normalize(k, dim=-1)
        b = self.strength(x)[0].transpose(1, 2).unsqueeze(-1)
        q, k, v, e = (chunked(z) for z in (q, k, b * v, b * k))
        turned = inverse(-torch.tril(e @ k.transpose(-1, -2), -1))
        u, w = turned @ v, turned @ e
        s, out = torch.zeros_like(q[:, :, 0, :1].transpose(-1, -2) * v[:, :, 0, :1]), []
        for c in range(x.shape[1] // Q):
            new = u[:, :, c] - w[:, :, c] @ s
            out.append(q[:, :, c] @ s + torch.tril(q[:, :, c] @ k[:, :, c].transpose(-1, -2)) @ new)
            s = s + k[:, :, c].transpose(-1, -2) @ new
        return self.joined(torch.stack(out, 2).flatten(2, 3))


@cell("Gated DeltaNet in chunks", "arXiv 2412.06464, the inverse of a triangle")
class GatedDeltaNetChunks(OfHeads):
    def forward(self, x, s):
        q, k, v = self.split(x)
        k = F.normalize(k, dim=-1)
        b, a = self.strength(x)
        s = torch.exp(a)[..., None, None] * s
        s = s + outer(k, b.unsqueeze(-1) * (v - (k.unsqueeze(-2) @ s).squeeze(-2)))
        return self.read(q, s), s

    def parallel_fixed(self, x):
        q, k, v = self.over_heads(x)
        k = F.normalize(k, dim=-1)
        b, a = self.strength(x)
        b = b.transpose(1, 2).unsqueeze(-1)
        q, k, v, e, a = (chunked(z) for z in (q, k, b * v, b * k, a.transpose(1, 2)))
        total = a.cumsum(-1)
        grown = torch.exp(total).unsqueeze(-1)
        away = torch.tril(torch.exp(torch.tril(total.unsqueeze(-1) - total.unsqueeze(-2))))
        turned = inverse(-torch.tril((e @ k.transpose(-1, -2)) * away, -1))
        u, w = turned @ v, turned @ (e * grown)
        s, out = torch.zeros_like(q[:, :, 0, :1].transpose(-1, -2) * v[:, :, 0, :1]), []
        for c in range(x.shape[1] // Q):
            last = total[:, :, c, -1:]
            new = u[:, :, c] - w[:, :, c] @ s
            inside = (q[:, :, c] @ k[:, :, c].transpose(-1, -2)) * away[:, :, c]
            out.append((q[:, :, c] * grown[:, :, c]) @ s + inside @ new)
            left = k[:, :, c] * torch.exp(last - total[:, :, c]).unsqueeze(-1)
            s = torch.exp(last).unsqueeze(-1) * s + left.transpose(-1, -2) @ new
        return self.joined(torch.stack(out, 2).flatten(2, 3))


@cell("Mamba-1 by doubling", "arXiv 2312.00752, an associative scan")
class Mamba1Doubling(nn.Module):
    shapes = ((D, 4),)

    def __init__(self):
        super().__init__()
        self.dt, self.bc, self.a = nn.Linear(D, D), nn.Linear(D, 8), nn.Parameter(torch.rand(D, 4))

    def parts(self, x):
        dt = F.softplus(self.dt(x))
        b, c = self.bc(x).chunk(2, -1)
        keep = torch.exp(-dt.unsqueeze(-1) * torch.exp(self.a))
        return keep, (dt * x).unsqueeze(-1) * b.unsqueeze(-2), c.unsqueeze(-2)

    def forward(self, x, h):
        keep, new, c = self.parts(x)
        h = keep * h + new
        return (h * c).sum(-1), h

    def parallel_fixed(self, x):
        a, h, c = self.parts(x)
        shift = 1
        while shift < x.shape[1]:
            h = torch.cat([h[:, :shift], a[:, shift:] * h[:, :-shift] + h[:, shift:]], 1)
            a = torch.cat([a[:, :shift], a[:, shift:] * a[:, :-shift]], 1)
            shift *= 2
        return (h * c).sum(-1)

    def parallel_fixed_associative(self, x):
        """torch's own operator."""
        from torch._higher_order_ops.associative_scan import associative_scan

        a, h, c = self.parts(x)

        def combine(left, right):
            return right[0] * left[0], right[0] * left[1] + right[1]

        return (associative_scan(combine, (a, h), dim=1, combine_mode="generic")[1] * c).sum(-1)
