"""Recurrences written in parallel: running sums, logarithms of decays, scans in steps of two."""

import torch
from torch.nn import functional as F

from .registry import linear, lstm, noise, program


@program("x: B T 5", T=12, w=linear(5, 12))
def min_gru_by_logs(net, x):
    k, n = net.w(x).chunk(2, -1)
    log_z, log_keep = -F.softplus(-k), -F.softplus(k)
    a = log_keep.cumsum(1)
    return torch.exp(a + (log_z + F.softplus(n).log() - a).logcumsumexp(1))


@program("x: B T 5", T=8, w=linear(5, 12))
def min_gru_by_cumsum(net, x):
    z, n = net.w(x).chunk(2, -1)
    keep = torch.sigmoid(z)
    a = torch.log(keep).cumsum(1)
    return torch.exp(a) * ((1 - keep) * n * torch.exp(-a)).cumsum(1)


@program("x: B T 5", T=8, w=linear(5, 12))
def min_gru_by_cumprod(net, x):
    z, n = net.w(x).chunk(2, -1)
    keep = torch.sigmoid(z)
    a = keep.cumprod(1)
    return a * ((1 - keep) * n / a).cumsum(1)


@program("x: B T 6", T=12, q=linear(6, 6), k=linear(6, 6))
def linear_attention_causal(net, x):
    q, k = F.elu(net.q(x)) + 1, F.elu(net.k(x)) + 1
    memory = (k.unsqueeze(-1) * x.unsqueeze(-2)).cumsum(1)
    total = k.cumsum(1)
    return (q.unsqueeze(-2) @ memory).squeeze(-2) / (q * total).sum(-1, keepdim=True)


@program("x: B T 6", T=8, q=linear(6, 6), k=linear(6, 6))
def retention(net, x):
    at = torch.arange(x.shape[1])
    away = at[:, None] - at[None, :]
    decay = torch.where(away >= 0, 0.8 ** away.clamp(min=0).float(), torch.zeros(()))
    return (net.q(x) @ net.k(x).transpose(1, 2) * decay) @ x


@program("x: B T 4", T=16)
def moving_average_by_powers(net, x):
    w = 0.9 ** torch.arange(x.shape[1]).float().view(1, -1, 1)
    return w * (x / w).cumsum(1) * 0.1


@program("x: B T 4", T=8, multiple=8)
def scan_by_doubling(net, x):
    """A running sum in steps of 1, 2 and 4."""
    for step in (1, 2, 4):
        x = x + F.pad(x, (0, 0, step, 0))[:, : x.shape[1]]
    return x


@program("x: B T 4", T=12)
def scan_by_doubling_to_the_length(net, x):
    step = 1
    while step < x.shape[1]:
        x = x + F.pad(x, (0, 0, step, 0))[:, : x.shape[1]]
        step *= 2
    return x


@program("x: B T 4", T=12, a=lambda: -torch.rand(4), w=linear(4, 4))
def diagonal_state_space_by_conv(net, x):
    """The kernel of a diagonal recurrence, as long as the input."""
    T = x.shape[1]
    k = torch.exp(net.a[:, None] * torch.arange(T).float())
    y = F.conv1d(F.pad(x.transpose(1, 2), (T - 1, 0)), k.flip(1).unsqueeze(1), groups=4)
    return net.w(y.transpose(1, 2))


@program("x: B T 4", T=12, w=linear(4, 4), decay=noise(4))
def time_mix_of_rwkv(net, x):
    before = F.pad(x, (0, 0, 1, -1))
    k = net.w(x * 0.7 + before * 0.3)
    at = torch.arange(x.shape[1]).float().view(1, -1, 1)
    up = torch.exp(at * 0.1 * torch.sigmoid(net.decay))
    weight = torch.exp(k) * up
    return (weight * x).cumsum(1) / weight.cumsum(1)


@program("x: B T 4", T=12, w=linear(4, 4))
def token_shift(net, x):
    before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], 1)
    return net.w(0.6 * x + 0.4 * before)


@program("x: B T 5", T=12, rnn=lstm())
def running_mean_by_cumsum(net, x):
    y = net.rnn(x)[0]
    return y.cumsum(1) / torch.arange(1, y.shape[1] + 1).float().unsqueeze(1)


@program("x: B T 5", T=12, rnn=lstm())
def running_mean_by_ones(net, x):
    y = net.rnn(x)[0]
    return y.cumsum(1) / torch.ones_like(y).cumsum(1)


@program("x: B T 5", T=12, least=3)
def moving_sum_by_cumsum(net, x):
    s = F.pad(x, (0, 0, 1, 0)).cumsum(1)
    return s[:, 3:] - s[:, :-3]


@program("x: B T 4", T=8, a=linear(4, 4))
def mamba_like_by_cumsum(net, x):
    step = F.softplus(net.a(x))
    a = (-step).cumsum(1)
    return (torch.exp(a) * (step * x * torch.exp(-a)).cumsum(1)) * torch.sigmoid(x)


@program("x: B T 4", T=150, B=1, noted="parallel form", w=linear(4, 8))
def min_gru_by_cumsum_at_150(net, x):
    z, n = net.w(x).chunk(2, -1)
    keep = torch.sigmoid(z)
    a = torch.log(keep).cumsum(1)
    return torch.exp(a) * ((1 - keep) * n * torch.exp(-a)).cumsum(1)
