"""Positions and counts along time: by number, relative to the end, halves, rolls, pads, frames."""

import torch
from torch.nn import functional as F

from .registry import gru, linear, lstm, noise, program


@program("x: B T 5", rnn=lstm())
def lstm_last_step(net, x):
    return net.rnn(x)[0][:, -1]


@program("x: B T 5", rnn=lstm())
def lstm_first_step(net, x):
    return net.rnn(x)[0][:, 0]


@program("x: B T 5", rnn=lstm())
def lstm_middle_step(net, x):
    return net.rnn(x)[0][:, x.shape[1] // 2]


@program("x: B T 5", rnn=lstm())
def lstm_last_three(net, x):
    return net.rnn(x)[0][:, -3:]


@program("x: B T 5", rnn=lstm())
def lstm_last_three_by_length(net, x):
    y = net.rnn(x)[0]
    return y[:, y.shape[1] - 3 :]


@program("x: B T 5", T=12, rnn=lstm())
def lstm_first_seven(net, x):
    return net.rnn(x)[0][:, :7]


@program("x: B T 5", T=7, rnn=lstm(), twin=lambda net, x: net.rnn(x)[0])
def lstm_first_seven_of_seven(net, x):
    return net.rnn(x)[0][:, :7]


@program("x: B T 5", T=12, rnn=lstm())
def lstm_from_the_seventh(net, x):
    return net.rnn(x)[0][:, 7:]


@program("x: B T 5", T=12, rnn=lstm())
def lstm_step_three(net, x):
    return net.rnn(x)[0][:, 3]


@program("x: B T 5", T=4, rnn=lstm(), twin=lambda net, x: net.rnn(x)[0][:, -1])
def lstm_step_three_of_four(net, x):
    return net.rnn(x)[0][:, 3]


@program("x: B T 5", rnn=lstm())
def lstm_every_second(net, x):
    return net.rnn(x)[0][:, ::2]


@program("x: B T 5", rnn=lstm())
def lstm_every_second_from_one(net, x):
    return net.rnn(x)[0][:, 1::2]


@program("x: B T 5", rnn=lstm())
def lstm_but_the_last(net, x):
    return net.rnn(x)[0][:, :-1]


@program("x: B T 5", rnn=lstm())
def lstm_but_the_first(net, x):
    return net.rnn(x)[0][:, 1:]


@program("x: B T 5", rnn=lstm())
def lstm_without_both_ends(net, x):
    return net.rnn(x)[0][:, 2:-2]


@program("x: B T 5", T=12, multiple=2, rnn=lstm())
def halves_swapped(net, x):
    y = net.rnn(x)[0]
    half = y.shape[1] // 2
    return torch.cat([y[:, half:], y[:, :half]], 1)


@program("x: B T 5", T=8, multiple=2, rnn=lstm())
def halves_added(net, x):
    a, b = net.rnn(x)[0].chunk(2, 1)
    return a + b


@program("x: B T 5", T=12, multiple=2, rnn=gru())
def first_half(net, x):
    y = net.rnn(x)[0]
    return y[:, : y.shape[1] // 2]


@program("x: B T 5", T=16, rnn=gru())
def second_half(net, x):
    y = net.rnn(x)[0]
    return y[:, y.shape[1] // 2 :]


@program("x: B T 5", T=12, rnn=gru())
def first_quarter_mean(net, x):
    y = net.rnn(x)[0]
    return y[:, : y.shape[1] // 4].mean(1)


@program("x: B T 5", rnn=lstm())
def rolled_by_one(net, x):
    return torch.roll(net.rnn(x)[0], 1, 1)


@program("x: B T 5", rnn=lstm())
def rolled_by_minus_two(net, x):
    return torch.roll(net.rnn(x)[0], -2, dims=1)


@program("x: B T 5", T=12, rnn=lstm())
def rolled_by_half(net, x):
    return torch.roll(net.rnn(x)[0], x.shape[1] // 2, 1)


@program("x: B T", T=12)
def topk_of_half(net, x):
    return torch.topk(x, x.shape[1] // 2, dim=1).values


@program("x: B T", T=12)
def topk_of_three(net, x):
    return torch.topk(x, 3, dim=1).values


@program("x: B T", T=8)
def sorted_over_time(net, x):
    return torch.sort(x, dim=1).values


@program("x: B T 5", rnn=lstm())
def flipped_before_lstm(net, x):
    return net.rnn(x.flip(1))[0]


@program("x: B T 5", rnn=lstm())
def flipped_before_and_after(net, x):
    return net.rnn(x.flip(1))[0].flip(1)


@program("x: B T 5", rnn=lstm())
def indexed_by_arange_reversed(net, x):
    T = x.shape[1]
    return net.rnn(x[:, torch.arange(T - 1, -1, -1)])[0]


@program("x: B T 5", T=12, rnn=lstm())
def padded_to_16(net, x):
    return net.rnn(F.pad(x, (0, 0, 0, 16 - x.shape[1])))[0]


@program("x: B T 5", T=12)
def padded_to_16_alone(net, x):
    return F.pad(x, (0, 0, 0, 16 - x.shape[1]))


@program("x: B T 5", T=7, rnn=lstm(), twin=lambda net, x: net.rnn(F.pad(x, (0, 0, 0, 1)))[0])
def padded_to_a_multiple_of_8(net, x):
    return net.rnn(F.pad(x, (0, 0, 0, -x.shape[1] % 8)))[0]


@program("x: B T 5", T=7, rnn=lstm())
def padded_to_a_multiple_of_8_and_cut(net, x):
    T = x.shape[1]
    return net.rnn(F.pad(x, (0, 0, 0, -T % 8)))[0][:, :T]


@program("x: B T 5", T=8, rnn=lstm())
def padded_at_the_front_to_10(net, x):
    return net.rnn(F.pad(x, (0, 0, 10 - x.shape[1], 0)))[0]


@program("x: B T 5", T=7, rnn=lstm())
def padded_at_the_end_to_10(net, x):
    return net.rnn(F.pad(x, [0, 0, 0, 10 - x.shape[1], 0, 0]))[0]


@program("x: B T 5", rnn=lstm(i=15))
def frames_of_three(net, x):
    f = x.unfold(1, 3, 1)
    return net.rnn(f.reshape(f.shape[0], f.shape[1], 15))[0]


@program("x: B T", T=24, rnn=lstm(i=4))
def frames_by_hop(net, x):
    return net.rnn(x.unfold(1, 4, 2))[0]


@program("x: B T 5", T=12, multiple=3, rnn=lstm())
def chunked_in_three(net, x):
    return sum(c.mean(1) for c in net.rnn(x)[0].chunk(3, 1))


@program("x: B T 5", T=12, rnn=lstm())
def split_by_four(net, x):
    return torch.stack([c.sum(1) for c in net.rnn(x)[0].split(4, 1)], 1)


@program("x: B T 5", T=12, multiple=2, rnn=lstm())
def split_by_half(net, x):
    y = net.rnn(x)[0]
    a, b = y.split(y.shape[1] // 2, 1)
    return a * b


@program("x: B T 5", T=12, rnn=lstm())
def split_in_7_and_the_rest(net, x):
    y = net.rnn(x)[0]
    a, b = y.split([7, y.shape[1] - 7], 1)
    return a.mean(1) - b.mean(1)


@program("x: B T 5", T=12, rnn=lstm())
def narrowed(net, x):
    return net.rnn(x)[0].narrow(1, 2, 5)


@program("x: B T 5", T=12, rnn=lstm())
def narrowed_to_the_end(net, x):
    return net.rnn(x)[0].narrow(1, 2, x.shape[1] - 2)


@program("x: B T 5", T=12, rnn=lstm())
def selected_steps(net, x):
    return net.rnn(x)[0].index_select(1, torch.tensor([0, 3, 5]))


@program("x: B T 5; lengths: B lengths", T=8, rnn=lstm())
def gathered_at_the_lengths(net, x, lengths):
    y = net.rnn(x)[0]
    at = (lengths - 1).view(-1, 1, 1).expand(-1, 1, y.shape[2])
    return y.gather(1, at).squeeze(1)


@program("x: B T 5; lengths: B lengths", T=12, rnn=lstm())
def indexed_at_the_lengths(net, x, lengths):
    y = net.rnn(x)[0]
    return y[torch.arange(y.shape[0]), lengths - 1]


@program("x: B T 5", T=8, rnn=lstm(i=13))
def one_hot_of_positions(net, x):
    T = x.shape[1]
    hot = F.one_hot(torch.arange(T), 8).float()
    return net.rnn(torch.cat([x, hot.expand(x.shape[0], -1, -1)], -1))[0]


@program("x: B T 5", rnn=lstm())
def neighbours_multiplied(net, x):
    y = net.rnn(x)[0]
    return y[:, 1:] * y[:, :-1]


@program("x: B T 5", rnn=lstm())
def first_and_last_step(net, x):
    y = net.rnn(x)[0]
    return torch.cat([y[:, 0], y[:, -1]], -1)


@program("x: B T 5", rnn=gru(bidirectional=True))
def last_forward_first_backward(net, x):
    y = net.rnn(x)[0]
    return torch.cat([y[:, -1, :6], y[:, 0, 6:]], -1)


@program("x: B T 5", T=12, multiple=2, rnn=lstm(i=10))
def frames_stacked_by_two(net, x):
    B, T, N = x.shape
    return net.rnn(x.view(B, T // 2, 2 * N))[0]


@program("x: B T 5", T=12, rnn=lstm(i=10))
def frames_stacked_by_two_and_cut(net, x):
    B, T, N = x.shape
    return net.rnn(x[:, : T // 2 * 2].reshape(B, T // 2, 2 * N))[0]


@program("x: B T 5", T=19, rnn=lstm())
def cut_to_a_multiple_of_4(net, x):
    return net.rnn(x[:, : x.shape[1] // 4 * 4])[0]


@program("x: B T 5", T=12, multiple=2, rnn=lstm(h=4), out=linear(4, 6))
def frames_unstacked_by_two(net, x):
    y = net.out(net.rnn(x)[0])
    return y.reshape(y.shape[0], -1, 3)


@program("x: B T 5", rnn=lstm())
def repeated_in_time(net, x):
    return net.rnn(x.repeat_interleave(2, dim=1))[0]


@program("x: B T 5", rnn=lstm())
def tiled_in_time(net, x):
    return net.rnn(x.repeat(1, 2, 1))[0]


@program("x: B T 5", rnn=lstm(), token=noise(1, 1, 5))
def token_before(net, x):
    return net.rnn(torch.cat([net.token.expand(x.shape[0], -1, -1), x], 1))[0][:, 0]


@program("x: B T 5", rnn=lstm(), token=noise(1, 2, 5))
def two_tokens_after(net, x):
    return net.rnn(torch.cat([x, net.token.expand(x.shape[0], -1, -1)], 1))[0][:, -1]


@program("x: B T 5", rnn=lstm())
def zeros_of_five_steps_before(net, x):
    return net.rnn(torch.cat([x.new_zeros(x.shape[0], 5, 5), x], 1))[0]


@program("x: B T 5", rnn=lstm())
def reflected_at_the_end(net, x):
    return net.rnn(torch.cat([x, x.flip(1)], 1))[0]


@program("x: B T 5", T=12, rnn=gru())
def last_of_the_first_half(net, x):
    return net.rnn(x[:, : x.shape[1] // 2])[0][:, -1]


@program("x: B T 5", T=8, rnn=gru())
def step_before_the_last(net, x):
    return net.rnn(x)[0][:, -2]


@program("x: B T 5", T=20, rnn=gru())
def last_quarter(net, x):
    y = net.rnn(x)[0]
    return y[:, -(y.shape[1] // 4) :].mean(1)


@program("x: B T 5", T=16, rnn=gru())
def one_step_by_number_from_the_end(net, x):
    y = net.rnn(x)[0]
    return y[:, y.shape[1] - 5]


@program("x: B T 5", T=8, rnn=gru())
def steps_in_a_fixed_order(net, x):
    return net.rnn(x)[0][:, [0, 2, 4, 6, 1, 3, 5, 7]]


@program("x: B T 5", T=8, rnn=gru())
def zero_the_first_two(net, x):
    y = net.rnn(x)[0]
    return torch.cat([torch.zeros_like(y[:, :2]), y[:, 2:]], 1)


@program("x: B T 5", T=8, rnn=gru())
def assigned_into_a_slice(net, x):
    y = net.rnn(x)[0].clone()
    y[:, -1] = 0.5
    return y


@program("x: B T 5", T=8, rnn=gru())
def assigned_into_the_third(net, x):
    y = net.rnn(x)[0].clone()
    y[:, 3] = y[:, 0]
    return y
