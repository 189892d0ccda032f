"""Masks by position, by lengths, and attention that sees them."""

import torch
from torch.nn import functional as F

from .registry import gru, linear, lstm, program


def attend(y, keep, low=-1e9):
    s = y @ y.transpose(1, 2) * 0.4
    return torch.softmax(s.masked_fill(~keep, low), -1) @ y


@program("x: B T 5", T=8, rnn=lstm())
def causal_by_tril(net, x):
    y = net.rnn(x)[0]
    return attend(y, torch.tril(torch.ones(y.shape[1], y.shape[1])).bool())


@program("x: B T 5", T=12)
def causal_by_triu_of_infinity(net, x):
    T = x.shape[1]
    s = x @ x.transpose(1, 2) + torch.triu(torch.full((T, T), float("-inf")), 1)
    return torch.softmax(s, -1) @ x


@program("x: B T 5", T=8, rnn=lstm())
def causal_by_positions(net, x):
    y, at = net.rnn(x)[0], torch.arange(x.shape[1])
    return attend(y, at[:, None] >= at[None, :])


@program("x: B T 5", T=12, rnn=lstm())
def banded(net, x):
    y, at = net.rnn(x)[0], torch.arange(x.shape[1])
    return attend(y, (at[:, None] - at[None, :]).abs() <= 2)


@program("x: B T 5", T=12, rnn=lstm())
def banded_and_causal(net, x):
    y, at = net.rnn(x)[0], torch.arange(x.shape[1])
    away = at[:, None] - at[None, :]
    return attend(y, (away >= 0) & (away < 4), float("-inf"))


@program("x: B T 5; n: B lengths", T=8, B=3, rnn=lstm())
def keys_by_lengths(net, x, n):
    y = net.rnn(x)[0]
    keep = torch.arange(y.shape[1])[None, :] < n[:, None]
    return attend(y, keep[:, None, :])


@program("x: B T 5; n: B lengths", T=8, B=2, rnn=lstm())
def mean_by_lengths(net, x, n):
    y = net.rnn(x)[0]
    m = (torch.arange(y.shape[1])[None, :] < n[:, None]).float().unsqueeze(-1)
    return (y * m).sum(1) / m.sum(1)


@program("x: B T 5; n: B lengths", T=12, B=2, rnn=lstm())
def max_by_lengths(net, x, n):
    y = net.rnn(x)[0]
    off = torch.arange(y.shape[1])[None, :] >= n[:, None]
    return y.masked_fill(off.unsqueeze(-1), float("-inf")).amax(1)


@program("x: B T 5; m: B T bool", T=8, rnn=gru())
def masked_inputs(net, x, m):
    return net.rnn(x * m.unsqueeze(-1).float())[0]


@program("x: B T 5; m: B T bool", T=8, rnn=gru())
def keys_by_mask_no_key_seen(net, x, m):
    """Rows of which no key may be seen happen."""
    y = net.rnn(x)[0]
    none = m & (torch.arange(x.shape[1]) < 1)
    return attend(y, none[:, None, :], -1e4)


@program("x: B T 5", T=8, rnn=lstm())
def alibi(net, x):
    y, at = net.rnn(x)[0], torch.arange(x.shape[1])
    slopes = torch.tensor([0.5, 0.25]).view(2, 1, 1)
    q = y.view(y.shape[0], y.shape[1], 2, 3).transpose(1, 2)
    s = q @ q.transpose(2, 3) - slopes * (at[:, None] - at[None, :]).abs()
    return (torch.softmax(s, -1) @ q).transpose(1, 2).reshape(y.shape)


@program("x: B T 5", T=8, rnn=lstm(), bias=lambda: torch.nn.Embedding(9, 1))
def relative_positions_clipped(net, x):
    y, at = net.rnn(x)[0], torch.arange(x.shape[1])
    away = (at[:, None] - at[None, :]).clamp(-4, 4) + 4
    return torch.softmax(y @ y.transpose(1, 2) + net.bias(away).squeeze(-1), -1) @ y


@program("x: B T 5", T=8, rnn=lstm(), bias=lambda T: torch.nn.Parameter(torch.randn(2 * T - 1)))
def relative_positions_all(net, x):
    y, T = net.rnn(x)[0], x.shape[1]
    away = torch.arange(T)[:, None] - torch.arange(T)[None, :] + T - 1
    return torch.softmax(y @ y.transpose(1, 2) + net.bias[away], -1) @ y


@program("x: B T 5", T=12, rnn=lstm())
def eye_removed(net, x):
    y = net.rnn(x)[0]
    return (y @ y.transpose(1, 2) * (1 - torch.eye(y.shape[1]))) @ y


@program("x: B T 5", T=12, rnn=lstm())
def first_steps_dropped_by_mask(net, x):
    keep = (torch.arange(x.shape[1]) >= 2).float()
    return net.rnn(x * keep.view(1, -1, 1))[0]


@program("x: B T 5", T=12, rnn=lstm())
def second_half_by_mask(net, x):
    T = x.shape[1]
    keep = (torch.arange(T) >= T // 2).float()
    return net.rnn(x)[0] * keep.view(1, T, 1)


@program("x: B T 5", T=8, rnn=lstm())
def cumulative_mean_by_tril(net, x):
    T = x.shape[1]
    w = torch.tril(torch.ones(T, T))
    return (w / w.sum(1, keepdim=True)) @ net.rnn(x)[0]


@program("x: B T 5", T=8)
def decay_matrix(net, x):
    at = torch.arange(x.shape[1]).float()
    away = at[:, None] - at[None, :]
    return torch.where(away >= 0, 0.9 ** away.clamp(min=0), torch.zeros(())) @ x


@program("x: B T <9", T=8, emb=lambda: torch.nn.Embedding(9, 5), rnn=lstm())
def padding_tokens(net, x):
    y = net.rnn(net.emb(x))[0]
    m = (x != 0).float().unsqueeze(-1)
    return (y * m).sum(1) / m.sum(1).clamp(min=1)


@program("x: B T 5; n: B lengths", T=8, B=2, out=linear(5, 3))
def log_softmax_by_lengths(net, x, n):
    m = torch.arange(x.shape[1])[None, :] < n[:, None]
    return torch.where(m.unsqueeze(-1), F.log_softmax(net.out(x), -1), torch.zeros(()))


@program("x: B T 5", T=16, rnn=lstm(), q=linear(6, 6), k=linear(6, 6))
def local_blocks_of_four(net, x):
    y = net.rnn(x)[0]
    block = torch.arange(x.shape[1]) // 4
    s = net.q(y) @ net.k(y).transpose(1, 2)
    return torch.softmax(torch.where(block[:, None] == block[None, :], s, torch.tensor(-1e9)), -1) @ y
