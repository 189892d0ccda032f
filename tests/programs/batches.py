"""What depends on the batch: rows by number, sums over rows, sizes of the batch, rows and steps merged."""

import torch
from torch import nn

from .registry import gru, linear, lstm, noise, program


@program("x: B T 5", B=3, rnn=lstm())
def first_row(net, x):
    return net.rnn(x)[0][0]


@program("x: B T 5", B=2, rnn=lstm())
def last_row(net, x):
    return net.rnn(x)[0][-1]


@program("x: B T 5", B=3, rnn=lstm())
def second_row(net, x):
    return net.rnn(x)[0][1]


@program("x: B T 5", B=3, rnn=lstm())
def but_the_first_row(net, x):
    return net.rnn(x)[0][1:]


@program("x: B T 5", B=3, rnn=lstm())
def first_two_rows(net, x):
    return net.rnn(x)[0][:2]


@program("x: B T 5", B=1, rnn=lstm())
def only_row_by_number(net, x):
    return net.rnn(x)[0][0]


@program("x: B T 5", B=1, rnn=lstm())
def only_row_squeezed(net, x):
    return net.rnn(x)[0].squeeze(0)


@program("x: B T 5", B=3, rnn=lstm())
def mean_over_rows(net, x):
    return net.rnn(x)[0].mean(0)


@program("x: B T 5", B=2, rnn=lstm())
def mean_over_rows_removed(net, x):
    y = net.rnn(x)[0]
    return y - y.mean(0, keepdim=True)


@program("x: B T 5", B=3, rnn=lstm(), twin=lambda net, x: net.rnn(x / 3)[0])
def divided_by_the_batch(net, x):
    return net.rnn(x / x.shape[0])[0]


@program("x: B T 5", B=2, rnn=lstm())
def sum_over_rows_and_batch(net, x):
    return net.rnn(x)[0].sum(0) / x.shape[0]


@program("x: B T 5", T=12, B=3, rnn=lstm(), out=linear())
def rows_and_steps_merged(net, x):
    B, T, _ = x.shape
    return net.out(net.rnn(x)[0].reshape(B * T, 6))


@program("x: B T 5", T=12, B=2, rnn=lstm(), out=linear())
def rows_and_steps_merged_and_back(net, x):
    B, T, _ = x.shape
    y = net.rnn(x)[0].contiguous().view(B * T, -1)
    return net.out(y).view(B, T, -1)


@program("x: B T 5", T=8, B=2, a=linear(5, 6), rnn=lstm(6, 6))
def merged_before_lstm(net, x):
    B, T, N = x.shape
    return net.rnn(torch.relu(net.a(x.view(B * T, N))).view(B, T, 6))[0]


@program("x: B T 5", T=8, B=2, rnn=lstm())
def rows_flattened(net, x):
    return net.rnn(x)[0].reshape(x.shape[0], -1)


@program("x: B T 5", T=8, B=2, rnn=lstm(), v=noise(5))
def expanded_over_the_batch(net, x):
    return net.rnn(x + net.v.expand(x.shape[0], x.shape[1], 5))[0]


@program("x: B T 5", B=2, rnn=lstm())
def zeros_of_the_batch_beside(net, x):
    y = net.rnn(x)[0]
    return torch.cat([y, torch.zeros(y.shape[0], y.shape[1], 2)], -1)


@program("x: B T 5", B=3, rnn=lstm())
def loop_over_rows_of_an_lstm(net, x):
    y = net.rnn(x)[0]
    return torch.stack([y[b].mean(0) for b in range(y.shape[0])])


@program("x: B T 5", B=3, rnn=lstm())
def rows_rolled(net, x):
    return torch.roll(net.rnn(x)[0], 1, 0)


@program("x: B T 5", B=3, rnn=lstm())
def rows_turned_around(net, x):
    return net.rnn(x)[0].flip(0)


@program("x: B T 5", B=2, rnn=lstm())
def rows_against_the_first(net, x):
    y = net.rnn(x)[0]
    return y - y[:1]


@program("x: B T 5", B=2, rnn=lstm())
def softmax_over_rows(net, x):
    return net.rnn(x)[0].softmax(0)


@program("x: B T 5", B=2, rnn=lstm())
def rows_compared(net, x):
    y = net.rnn(x)[0].mean(1)
    return y @ y.T


@program("x: B T 5", B=2, multiple=1, rnn=lstm())
def halves_of_the_batch(net, x):
    a, b = net.rnn(x)[0].chunk(2, 0)
    return a * 2, b * 3


@program("x: B T 5", B=3, rnn=lstm())
def number_of_the_row_added(net, x):
    return net.rnn(x)[0] + torch.arange(x.shape[0]).view(-1, 1, 1)


@program("x: B T 5", B=2, rnn=lstm())
def batch_repeated(net, x):
    return net.rnn(x.repeat(2, 1, 1))[0]


@program("x: B T 5", B=2, rnn=lstm(), w=linear(6, 6))
def batch_interleaved(net, x):
    y = net.rnn(x.repeat_interleave(3, 0))[0]
    return net.w(y).view(x.shape[0], 3, x.shape[1], 6).mean(1)


@program("x: B T 5", T=7, B=3, rnn=lambda: nn.GRU(5, 6))
def batch_taken_for_time(net, x):
    """A time-major GRU given [batch, time]: rows are its steps."""
    return net.rnn(x)[0]


@program("x: B T 5", T=4, B=3, rnn=gru())
def transposed_on_purpose(net, x):
    return net.rnn(x.transpose(0, 1))[0]


@program("x: B T 5", T=8, B=2, rnn=gru())
def cumsum_over_rows(net, x):
    return net.rnn(x)[0].cumsum(0)


@program("x: B T 5", T=12, B=2, rnn=gru())
def steps_before_rows(net, x):
    return net.rnn(x)[0].transpose(0, 1).reshape(x.shape[1] * x.shape[0], 6)


@program("x: B T 5", T=12, B=3, norm=lambda: nn.BatchNorm1d(5, track_running_stats=False), rnn=gru())
def batch_norm_of_this_batch(net, x):
    return net.rnn(net.norm(x.transpose(1, 2)).transpose(1, 2))[0]


@program("x: B T 5", T=8, B=2, rnn=gru(), bank=noise(4, 6))
def scores_against_a_bank(net, x):
    y = net.rnn(x)[0][:, -1]
    return torch.cdist(y, net.bank)


@program("x: B T 5", T=8, B=2, rnn=gru())
def loop_over_rows_and_steps(net, x):
    y = net.rnn(x)[0]
    return torch.stack([torch.stack([y[b, t] * (b + 1) for t in range(y.shape[1])]) for b in range(y.shape[0])])
