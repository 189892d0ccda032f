"""Numbers that are a length or a batch, or only look like one."""

import math

import torch
from torch import nn

from .registry import gru, linear, lstm, program


@program("x: B T 5")
def divided_by_the_length(net, x):
    return x / x.shape[1]


@program("x: B T 5", rnn=lstm())
def lstm_divided_by_the_length(net, x):
    return net.rnn(x)[0] / x.shape[1]


@program("x: B T 5", rnn=lstm())
def sum_divided_by_the_length(net, x):
    return net.rnn(x)[0].sum(1) / x.shape[1]


@program("x: B T 5", T=16, rnn=lstm())
def times_the_length_to_minus_a_half(net, x):
    return net.rnn(x)[0] * x.shape[1] ** -0.5


@program("x: B T 5", T=12, rnn=lstm())
def sum_over_the_root_of_the_length(net, x):
    return net.rnn(x)[0].sum(1) / math.sqrt(x.shape[1])


@program("x: B T 5", rnn=lstm())
def plus_the_length(net, x):
    return net.rnn(x)[0] + x.shape[1]


@program("x: B T 5", rnn=lstm())
def minus_half_the_length(net, x):
    return net.rnn(x)[0] - x.shape[1] // 2


@program("x: B T 5", rnn=lstm())
def times_the_length_less_one(net, x):
    return net.rnn(x)[0] * (x.shape[1] - 1)


@program("x: B T 5", rnn=lstm())
def times_the_length_and_one(net, x):
    return net.rnn(x)[0] * (x.shape[1] + 1)


@program("x: B T 5", T=12, rnn=lstm(i=6))
def length_as_a_feature(net, x):
    B, T, _ = x.shape
    return net.rnn(torch.cat([x, torch.full((B, T, 1), float(T))], -1))[0]


@program("x: B T 5", T=20, rnn=lstm(), out=linear(7, 3))
def length_beside_the_last_step(net, x):
    y = net.rnn(x)[0][:, -1]
    return net.out(torch.cat([y, torch.full((x.shape[0], 1), x.shape[1] / 10)], -1))


@program("x: B T 5", T=12, rnn=lstm())
def times_the_log_of_the_length(net, x):
    return net.rnn(x)[0] * math.log(x.shape[1])


@program("x: B T 5", T=12, least=2, rnn=lstm())
def unbiased_sum(net, x):
    return net.rnn(x)[0].sum(1) / (x.shape[1] - 1)


@program("x: B T 5", T=7, rnn=lstm())
def sum_over_the_length_and_one(net, x):
    return net.rnn(x)[0].sum(1) / (x.shape[1] + 1)


@program("x: B T 5", T=12, rnn=lstm(i=6))
def positions_over_the_length(net, x):
    B, T, _ = x.shape
    place = (torch.arange(T) / T).view(1, T, 1).expand(B, T, 1)
    return net.rnn(torch.cat([x, place], -1))[0]


@program("x: B T 5", T=8, rnn=lstm())
def positions_over_the_length_less_one(net, x):
    T = x.shape[1]
    return net.rnn(x)[0] * (torch.arange(T).float() / max(T - 1, 1)).view(1, T, 1)


@program("x: B T 5", T=12, rnn=lstm())
def linspace_over_time(net, x):
    T = x.shape[1]
    return net.rnn(x)[0] * torch.linspace(0, 1, T).view(1, T, 1)


@program("x: B T 5", T=8, rnn=lstm())
def distance_to_the_end(net, x):
    T = x.shape[1]
    return net.rnn(x)[0] * (T - torch.arange(T)).float().view(1, T, 1)


@program("x: B T 5", T=8, rnn=lstm())
def distance_to_the_middle(net, x):
    T = x.shape[1]
    return net.rnn(x)[0] * (torch.arange(T) - T // 2).abs().float().view(1, T, 1)


@program("x: B T 5", T=16, rnn=lstm())
def softmax_with_the_length_as_temperature(net, x):
    return torch.softmax(net.rnn(x)[0] / x.shape[1] ** 0.5, -1)


@program("x: B T 5", T=16, rnn=lstm())
def softmax_over_time_with_a_temperature(net, x):
    return torch.softmax(net.rnn(x)[0] * math.log(x.shape[1]), 1)


@program("x: B T 5", T=8)
def mean_by_hand(net, x):
    return x.sum(1, keepdim=True) * (1.0 / x.shape[1])


@program("x: B T 5", T=12, rnn=lstm())
def variance_by_hand(net, x):
    y = net.rnn(x)[0]
    m = y.sum(1, keepdim=True) / y.shape[1]
    return ((y - m) ** 2).sum(1) / y.shape[1]


@program("x: B T 5", T=12, rnn=lstm())
def length_as_an_output(net, x):
    return net.rnn(x)[0], torch.tensor(x.shape[1])


@program("x: B T 5; n: B lengths", T=12, rnn=lstm())
def share_of_the_length(net, x, n):
    return net.rnn(x)[0].sum(1) * (n.float() / x.shape[1]).unsqueeze(1)


@program("x: B T 5", T=64, rnn=lstm())
def scale_of_one_eighth_at_64(net, x):
    return net.rnn(x * 0.125)[0]


@program("x: B T 5", T=64, rnn=lstm(h=8))
def scores_over_root_64(net, x):
    """A scale of 64 ** -0.5 for 64 features, at 64 steps: a coincidence."""
    y = net.rnn(x)[0]
    return torch.softmax(y @ y.transpose(1, 2) * 64**-0.5, -1) @ y


@program("x: B T 5", T=12, rnn=lstm())
def divided_by_twelve_at_twelve(net, x):
    return net.rnn(x / 12)[0]


@program("x: B T 5", T=8, rnn=lstm())
def plus_seven_at_eight(net, x):
    return net.rnn(x)[0] + 7


@program("x: B T 5", T=4, rnn=lstm())
def halves_at_four(net, x):
    return net.rnn(x * 0.5)[0] * 0.25 + 4


@program("x: B T 5", T=4, rnn=lstm(), out=linear(6, 4))
def gelu_by_hand_at_four(net, x):
    y = net.out(net.rnn(x)[0])
    return 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))


@program("x: B T 5", T=16, rnn=lstm())
def divided_by_ten(net, x):
    return net.rnn(x / 10.0)[0]


@program("x: B T 5", T=20, rnn=lstm())
def decibels_at_twenty(net, x):
    return net.rnn(20 * torch.log10(x.abs() + 1e-3))[0]


@program("x: B T 5", T=24, norm=lambda: nn.BatchNorm1d(5), rnn=lstm())
def batch_norm_at_24(net, x):
    return net.rnn(net.norm(x.transpose(1, 2)).transpose(1, 2))[0]


@program("x: B T 5", T=8, rnn=lstm(), out=linear(6, 7))
def seven_classes_at_eight(net, x):
    return net.out(net.rnn(x)[0]).softmax(-1)


@program("x: B T 8", T=8, rnn=lstm(8, 8), out=linear(8, 8))
def everything_is_eight(net, x):
    return net.out(net.rnn(x)[0])


@program("x: B T 7", T=7, B=7, rnn=gru(7, 7))
def everything_is_seven(net, x):
    return net.rnn(x)[0].mean(1)


@program("x: B T 5", T=12, rnn=lstm())
def clamped_to_the_length(net, x):
    return torch.clamp(net.rnn(x)[0] * 100, max=float(x.shape[1]))


@program("x: B T 5", T=12, rnn=lstm())
def power_of_the_length(net, x):
    return torch.sigmoid(net.rnn(x)[0]) ** x.shape[1]


@program("x: B T 5", T=12, rnn=lstm())
def compared_with_the_length(net, x):
    return (net.rnn(x)[0].cumsum(1) * 20 > x.shape[1]).float()


@program("x: B T 5", T=8, rnn=lstm(), twin=lambda net, x: net.rnn(x)[0] * 0.9**8)
def decay_by_the_length(net, x):
    return net.rnn(x)[0] * 0.9 ** x.shape[1]


@program("x: B T 5", T=16, rnn=lstm())
def number_of_frames(net, x):
    frames = (x.shape[1] - 4) // 2 + 1
    return net.rnn(x)[0].sum(1) / max(frames, 1)


@program("x: B T 5", T=12)
def elements_counted(net, x):
    return x.sum((1, 2)) / x[0].numel()


@program("x: B T 5", T=12, B=3)
def all_elements_counted(net, x):
    return x.sum() / x.numel()
