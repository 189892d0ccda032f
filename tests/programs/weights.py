"""Weights with a row per step, and constants made of the length."""

import math

import torch
from torch import nn

from .registry import gru, lstm, program


def per_step(features):
    return lambda T: nn.Parameter(torch.randn(T, features))


@program("x: B T 5", T=12, rnn=lstm(), place=per_step(5))
def learned_positions(net, x):
    return net.rnn(x + net.place[: x.shape[1]])[0]


@program("x: B T 5", T=12, rnn=lstm(), place=lambda: nn.Parameter(torch.randn(100, 5)))
def learned_positions_of_a_long_table(net, x):
    return net.rnn(x + net.place[: x.shape[1]])[0]


@program("x: B T 5", T=8, rnn=lstm(), place=per_step(5))
def learned_positions_all(net, x):
    return net.rnn(x + net.place)[0]


@program("x: B T 5", T=8, rnn=lstm(), place=lambda: nn.Embedding(8, 5))
def embedded_positions(net, x):
    return net.rnn(x + net.place(torch.arange(x.shape[1])))[0]


@program("x: B T 5", T=8, rnn=lstm(), place=lambda: nn.Embedding(200, 5))
def embedded_positions_of_200(net, x):
    return net.rnn(x + net.place(torch.arange(x.shape[1])).unsqueeze(0))[0]


@program("x: B T <11", T=12, emb=lambda: nn.Embedding(11, 5), place=lambda: nn.Embedding(50, 5), rnn=lstm())
def tokens_and_places(net, x):
    at = torch.arange(x.size(1)).unsqueeze(0).expand_as(x)
    return net.rnn(net.emb(x) + net.place(at))[0]


@program("x: B T 5", T=16, rnn=gru())
def hann_window(net, x):
    return net.rnn(x * torch.hann_window(x.shape[1]).view(1, -1, 1))[0]


@program("x: B T 5", T=16, rnn=gru(), window=lambda T: torch.hann_window(T))
def hann_window_held(net, x):
    return net.rnn(x * net.window[:, None])[0]


@program("x: B T 5", T=8, rnn=lstm(), bias=per_step(6))
def bias_per_step(net, x):
    return net.rnn(x)[0] + net.bias


@program("x: B T 5", T=8, rnn=lstm(), bias=lambda T: nn.Parameter(torch.randn(T, 1)))
def one_bias_per_step(net, x):
    return net.rnn(x)[0] + net.bias


@program("x: B T 5", T=7, rnn=lstm(), w=lambda T: nn.Parameter(torch.rand(T)))
def weighted_sum_over_steps(net, x):
    return (net.rnn(x)[0] * net.w[:, None]).sum(1)


@program("x: B T 5", T=7, rnn=lstm(), w=lambda T: nn.Parameter(torch.randn(T)))
def weighted_sum_by_einsum(net, x):
    return torch.einsum("btf,t->bf", net.rnn(x)[0], net.w)


@program("x: B T 5", T=8, rnn=lstm(), mix=lambda T: nn.Linear(T, T))
def linear_over_time(net, x):
    return net.mix(net.rnn(x)[0].transpose(1, 2)).transpose(1, 2)


@program("x: B T 5", T=8, rnn=lstm(), out=lambda T: nn.Linear(6 * T, 3))
def linear_over_all_steps(net, x):
    return net.out(net.rnn(x)[0].flatten(1))


@program("x: B T 5", T=12, rnn=lstm(), norm=lambda T: nn.LayerNorm([T, 6]))
def layer_norm_of_steps_and_features(net, x):
    return net.norm(net.rnn(x)[0])


@program("x: B T 5", T=12, rnn=lstm(), norm=lambda T: nn.LayerNorm([T, 6], elementwise_affine=False))
def layer_norm_of_steps_and_features_bare(net, x):
    return net.norm(net.rnn(x)[0])


@program("x: B T 5", T=8, rnn=lstm(), keep=lambda T: torch.tril(torch.ones(T, T)))
def mask_held(net, x):
    y = net.rnn(x)[0]
    s = (y @ y.transpose(1, 2)).masked_fill(net.keep == 0, -1e9)
    return torch.softmax(s, -1) @ y


@program("x: B T 5", T=8, rnn=lstm(), bias=lambda T: nn.Parameter(torch.randn(T, T)))
def learned_bias_of_attention(net, x):
    y = net.rnn(x)[0]
    return torch.softmax(y @ y.transpose(1, 2) + net.bias, -1) @ y


@program("x: B T 5", T=8, B=2, rnn=lstm(), start=lambda: nn.Parameter(torch.randn(1, 2, 6)))
def learned_state_per_row(net, x):
    return net.rnn(x, (net.start, net.start * 0.5))[0]


@program("x: B T 5", T=8, B=2, rnn=lstm(), start=lambda: nn.Parameter(torch.randn(1, 1, 6)))
def learned_state(net, x):
    h = net.start.expand(-1, x.shape[0], -1).contiguous()
    return net.rnn(x, (h, h))[0]


@program("x: B T 5", T=8, B=3, scale=lambda: nn.Parameter(torch.randn(3, 1, 1)), rnn=gru())
def scale_per_row(net, x):
    return net.rnn(x * net.scale)[0]


def table(length, features):
    """Sines and cosines of positions, [1, length, features]."""
    at = torch.arange(length).unsqueeze(1)
    rates = torch.exp(torch.arange(0, features, 2) * (-math.log(10000.0) / features))
    made = torch.zeros(1, length, features)
    made[0, :, 0::2], made[0, :, 1::2] = torch.sin(at * rates), torch.cos(at * rates)
    return made


@program("x: B T 6", T=12, rnn=lstm(6, 6), pe=lambda: table(64, 6))
def sines_of_a_long_table(net, x):
    return net.rnn(x + net.pe[:, : x.size(1)])[0]


@program("x: B T 6", T=12, rnn=lstm(6, 6), pe=lambda T: table(T, 6))
def sines_of_a_table_of_this_length(net, x):
    return net.rnn(x + net.pe[:, : x.size(1)])[0]


@program("x: T B 6", T=8, rnn=lambda: nn.GRU(6, 6), pe=lambda: table(64, 6).transpose(0, 1))
def sines_time_major(net, x):
    return net.rnn(x + net.pe[: x.size(0)])[0]


@program("x: B T 6", T=12, rnn=lstm(6, 6))
def sines_made_in_place(net, x):
    at = torch.arange(x.shape[1]).unsqueeze(1)
    rates = torch.exp(torch.arange(0, 6, 2) * (-math.log(10000.0) / 6))
    pe = torch.cat([torch.sin(at * rates), torch.cos(at * rates)], -1)
    return net.rnn(x + pe)[0]


@program("x: B T 6", T=16, rnn=lstm(6, 6))
def sine_of_positions_over_the_length(net, x):
    T = x.shape[1]
    return net.rnn(x + torch.sin(2 * math.pi * torch.arange(T) / T).view(1, T, 1))[0]


@program("x: B T 6", T=8, rnn=lstm(6, 6))
def rotary_positions(net, x):
    T = x.shape[1]
    angle = torch.arange(T).float().unsqueeze(1) * torch.tensor([1.0, 0.1, 0.01])
    a, b = x[..., :3], x[..., 3:]
    turned = torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)
    return net.rnn(turned)[0]


@program("x: B T 5", T=8, rnn=lstm())
def constant_of_steps_concatenated(net, x):
    y = net.rnn(x)[0]
    return torch.cat([y, torch.ones(1, 2, 6).expand(y.shape[0], 2, 6)], 1)


@program("x: B T 5", T=8, rnn=lstm(i=6))
def ones_as_a_feature(net, x):
    return net.rnn(torch.cat([x, x.new_ones(x.shape[0], x.shape[1], 1)], -1))[0]


@program("x: B T 5", T=8, rnn=lstm(i=6))
def ones_like_as_a_feature(net, x):
    return net.rnn(torch.cat([x, torch.ones_like(x[..., :1])], -1))[0]


@program("x: B T 5", T=12, rnn=lstm())
def even_steps_only(net, x):
    even = (torch.arange(x.shape[1]) % 2 == 0).float().view(1, -1, 1)
    return net.rnn(x * even)[0]


@program("x: B T 5", T=12, rnn=lstm())
def first_three_steps_weighted(net, x):
    w = (torch.arange(x.shape[1]) < 3).float().view(1, -1, 1)
    return net.rnn(x)[0] * (1 + w)


@program("x: B T 5", T=12, rnn=lstm())
def last_three_steps_weighted(net, x):
    T = x.shape[1]
    w = (torch.arange(T) >= T - 3).float().view(1, -1, 1)
    return net.rnn(x)[0] * (1 + w)


@program("x: B T 5", T=12, rnn=lstm())
def discounted_sum(net, x):
    w = 0.9 ** torch.arange(x.shape[1]).float()
    return (net.rnn(x)[0] * w[:, None]).sum(1)


@program("x: B T 5", T=12, rnn=lstm())
def discounted_to_the_end(net, x):
    T = x.shape[1]
    w = 0.9 ** torch.arange(T - 1, -1, -1).float()
    return (net.rnn(x)[0] * w[:, None]).sum(1)
