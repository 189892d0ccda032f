"""Programs that the fuzzer found, made small: each was once answered wrongly or broke the loader."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from .registry import gru, linear, lstm, program


@program("x: B T 4", T=7, B=1, rnn=lambda: nn.GRU(4, 5, num_layers=2, batch_first=True))
def middle_step_repeated_over_time(net, x):
    middle = x[:, x.shape[1] // 2]
    return net.rnn(middle.unsqueeze(1).repeat(1, x.shape[1], 1))[0]


@program("x: B T 4", T=9, B=2, rnn=lstm(4, 4))
def largest_repeated_and_turned(net, x):
    y = x.amax(1).unsqueeze(1).repeat(1, x.shape[1], 1)
    return net.rnn(y.flip(1))[0].flip(1)


@program("x: B T <7", T=7, B=2, emb=lambda: nn.Embedding(7, 4), cell=lambda: nn.GRUCell(4, 5), rnn=lstm(5, 5))
def half_loop_interleaved_and_turned(net, x):
    e = net.emb(x)
    h, out = e.new_zeros(e.shape[0], 5), []
    for t in range(e.shape[1] // 2):
        h = net.cell(e[:, t], h if t % 3 else torch.zeros_like(h))
        out.append(h)
    y = torch.stack(out, 1).repeat_interleave(2, 1)
    return net.rnn(y.flip(1))[0].flip(1)


@program("x: T B 4", T=12, B=2, cell=lambda: nn.RNNCell(4, 5))
def half_loop_time_major(net, x):
    x = x.transpose(0, 1)
    h, out = x.new_zeros(x.shape[0], 5), []
    for t in range(x.shape[1] // 2):
        h = net.cell(x[:, t], h)
        out.append(h)
    return torch.stack(out[::-1], 1)


@program("x: T B 4", T=16, B=2, cell=lambda: nn.GRUCell(4, 6))
def reset_loop_time_major(net, x):
    x = x.transpose(0, 1)
    h, out = x.new_zeros(x.shape[0], 6), []
    for t in range(x.shape[1]):
        h = net.cell(x[:, t], h if t % 3 else torch.zeros_like(h))
        out.append(h)
    return torch.stack(out[::-1], 1)


@program("x: T B 4", T=8, B=1, w=linear(4, 3))
def cumulative_max_pooled_time_major(net, x):
    x = x.transpose(0, 1)
    h, out = x.new_zeros(x.shape[0], 3), []
    for t in range(x.shape[1]):
        h = torch.maximum(h, net.w(x[:, t]))
        out.append(h)
    return F.max_pool1d(torch.stack(out[::-1], 1).transpose(1, 2), 2)


@program("x: B T 4", T=9, B=1, conv=lambda: nn.Conv1d(4, 3, 3, stride=2, padding=1))
def one_row_divided_by_the_batch(net, x):
    return net.conv((x / x.shape[0]).transpose(1, 2)).transpose(1, 2)


@program("x: B T 4; u: B T 4", T=7, B=3, w=linear(4, 6), rnn=gru(6, 6))
def cumulative_max_of_one_of_two_inputs(net, x, u):
    h, out = x.new_zeros(x.shape[0], 6), []
    for t in range(x.shape[1]):
        h = torch.maximum(h, net.w(x[:, t]))
        out.append(h)
    return net.rnn(torch.stack(out[::-1], 1))[0] + u.sum()


@program("x: B T 4", T=16, B=2, rnn=gru(4, 3))
def last_state_over_a_padded_length(net, x):
    y = torch.cat([x.new_zeros(x.shape[0], 3, 4), x], 1)
    return net.rnn(x)[1][-1] + y.mean(1)[:, :3]


@program(
    "x: B T <7",
    T=12,
    B=1,
    emb=lambda: nn.Embedding(7, 4),
    up=lambda: nn.ConvTranspose1d(4, 3, 4, stride=2, padding=1),
    att=lambda: nn.MultiheadAttention(3, 1, batch_first=True),
)
def upsampled_then_attended(net, x):
    y = net.up(net.emb(x).transpose(1, 2)).transpose(1, 2)
    return net.att(y, y, y)[0]


@program(
    "x: B T 4",
    T=8,
    B=1,
    att=lambda: nn.MultiheadAttention(4, 1, batch_first=True),
    up=lambda: nn.ConvTranspose1d(4, 3, 4, stride=2, padding=1),
)
def attended_then_upsampled(net, x):
    y = net.att(x, x, x)[0]
    return net.up(y.transpose(1, 2)).transpose(1, 2)


@program("x: B 4 T", T=8, B=3, a=lstm(4, 6), b=lstm(6, 5), cell=lambda: nn.GRUCell(5, 4))
def every_second_step_behind_two_lstms(net, x):
    x = x.transpose(1, 2)
    y = net.b(net.a(x.index_select(1, torch.arange(x.shape[1] - 1, -1, -1)))[0])[0]
    h = y.new_zeros(y.shape[0], 4)
    for t in range(0, y.shape[1], 2):
        h = net.cell(y[:, t], h)
    return h


@program("x: B T 4", T=8, B=2, w=linear(4, 6))
def half_loop_turned_by_arange(net, x):
    h, out = x.new_zeros(x.shape[0], 6), []
    for t in range(x.shape[1] // 2):
        h = torch.maximum(h, net.w(x[:, t]))
        out.append(h)
    y = torch.stack(out[::-1], 1)
    return y.index_select(1, torch.arange(y.shape[1] - 1, -1, -1))


@program("x: B 4 T", T=4, B=2, rnn=lambda: nn.GRU(4, 6))
def stacked_by_two_behind_time_major(net, x):
    y = net.rnn(x.permute(2, 0, 1))[0].transpose(0, 1)
    return y.reshape(y.shape[0], -1, 12)


@program("x: B T 4", T=7, B=2, w=linear(4, 3), rnn=lstm(3, 5))
def tenths_of_the_length_and_one(net, x):
    y = torch.relu(net.w(x))
    return net.rnn(y * (y.shape[1] + 1) / 10)[0]


@program("x: B T 4; z: B 3", T=7, B=2)
def as_often_as_the_first_five(net, x, z):
    return z.unsqueeze(1).repeat(1, x[:, :5].shape[1], 1)


@program("x: B T 4", T=7, B=2, conv=lambda: nn.Conv1d(4, 5, 3))
def linspace_behind_a_causal_conv(net, x):
    y = net.conv(F.pad(x.transpose(1, 2), (2, 0))).transpose(1, 2)
    return y * torch.linspace(0, 1, y.shape[1]).view(1, -1, 1)


@program("x: B T 4", T=7, B=1, rnn=lstm(8, 4, bidirectional=True))
def mean_by_hand_beside_each_step(net, x):
    m = x.sum(1) / x.shape[1]
    return net.rnn(torch.cat([x, m.unsqueeze(1).expand(-1, x.shape[1], -1)], -1))[0]


@program("x: B T 4", T=9, B=1, rnn=lstm(4, 6, bidirectional=True))
def times_the_log_of_the_length_before(net, x):
    return net.rnn(x * math.log(x.shape[1]))[0]
