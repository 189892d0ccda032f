"""Control flow and integer arithmetic on sizes."""

import math

import torch
from torch.nn import functional as F

from .registry import gru, lstm, noise, program


@program("x: B T 5", T=12, rnn=lstm(), twin=lambda net, x: net.rnn(x)[0] * 2)
def doubled_if_longer_than_ten(net, x):
    y = net.rnn(x)[0]
    return y * 2 if x.shape[1] > 10 else y


@program("x: B T 5", T=8, rnn=lstm(), twin=lambda net, x: net.rnn(x)[0])
def doubled_if_longer_than_ten_short(net, x):
    y = net.rnn(x)[0]
    return y * 2 if x.shape[1] > 10 else y


@program("x: B T 5", T=12, rnn=lstm(), twin=lambda net, x: net.rnn(x[:, :10])[0])
def cut_if_longer_than_ten(net, x):
    x = x[:, :10] if x.shape[1] > 10 else x
    return net.rnn(x)[0]


@program("x: B T 5", T=8, rnn=lstm(), twin=lambda net, x: net.rnn(x)[0])
def last_ten_steps_if_more(net, x):
    return net.rnn(x[:, -10:])[0]


@program("x: B T 5", T=7, rnn=lstm(), twin=lambda net, x: net.rnn(torch.cat([x, x[:, -1:]], 1))[0])
def another_step_if_odd(net, x):
    x = torch.cat([x, x[:, -1:]], 1) if x.shape[1] % 2 else x
    return net.rnn(x)[0]


@program("x: B T 5", T=8, rnn=lstm(), twin=lambda net, x: net.rnn(x)[0])
def another_step_if_odd_even(net, x):
    x = torch.cat([x, x[:, -1:]], 1) if x.shape[1] % 2 else x
    return net.rnn(x)[0]


@program("x: B T 5", B=1, rnn=lstm(), twin=lambda net, x: net.rnn(x)[0].squeeze(0))
def squeezed_if_one_row(net, x):
    y = net.rnn(x)[0]
    return y.squeeze(0) if x.shape[0] == 1 else y


@program("x: B T 5", T=12, rnn=lstm(), twin=lambda net, x: net.rnn(x)[0][:, :8])
def smaller_of_length_and_eight(net, x):
    return net.rnn(x)[0][:, : min(x.shape[1], 8)]


@program("x: B T 5", T=7, rnn=lstm(), twin=lambda net, x: net.rnn(x)[0])
def smaller_of_length_and_eight_short(net, x):
    return net.rnn(x)[0][:, : min(x.shape[1], 8)]


@program("x: B T 5", T=16, rnn=lstm(), twin=lambda net, x: F.avg_pool1d(net.rnn(x)[0].transpose(1, 2), 4, 4))
def pooled_by_a_quarter(net, x):
    k = x.shape[1] // 4
    y = net.rnn(x)[0].transpose(1, 2)
    return F.avg_pool1d(y, k, k)


@program("x: B T 5", T=12, multiple=2)
def nested_halves(net, x):
    T = x.shape[1]
    a, b = x[:, : T // 2], x[:, T // 2 :]
    return torch.cat([b.flip(1), a * 2], 1).cumsum(1)


@program("x: B T 5", T=12, rnn=gru())
def steps_counted_by_stride(net, x):
    y = net.rnn(x)[0][:, ::3]
    return y / y.shape[1]


@program("x: B T 5", T=16, rnn=gru())
def square_of_steps(net, x):
    n = math.isqrt(x.shape[1])
    return net.rnn(x)[0][:, : n * n]


@program("x: B T 5", T=16, rnn=gru())
def sampled_at_eight_places(net, x):
    at = torch.linspace(0, x.shape[1] - 1, 8).long()
    return net.rnn(x)[0][:, at]


@program("x: B T 5", T=12, rnn=gru())
def bins_of_three(net, x):
    T, y = x.shape[1], net.rnn(x)[0]
    return torch.stack([y[:, k * T // 3 : (k + 1) * T // 3].mean(1) for k in range(3)], 1)


@program("x: B T 5", T=8, rnn=gru())
def pyramid_of_pools(net, x):
    y = net.rnn(x)[0].transpose(1, 2)
    return torch.cat([F.adaptive_max_pool1d(y, n) for n in (1, 2, 4)], -1)


@program("x: B T 5", T=12)
def last_even_step(net, x):
    return x[:, (x.shape[1] - 1) // 2 * 2]


@program("x: B T 5", T=12, w=noise(5, 5))
def powers_of_a_matrix(net, x):
    w = net.w * 0.1
    for _ in range(x.shape[1]):
        x = x + x @ w
    return x


@program("x: B T 5", T=4, w=noise(5, 5))
def as_many_layers_as_rows_of_weights(net, x):
    for row in net.w:
        x = torch.tanh(x * row)
    return x


@program("x: B T 5", T=12, rnn=gru())
def chunks_of_five(net, x):
    return torch.cat([c - c.mean(1, keepdim=True) for c in net.rnn(x)[0].split(5, 1)], 1)


@program("x: B T 5", T=12, rnn=gru())
def windows_of_six_by_three(net, x):
    y = net.rnn(x)[0]
    return torch.stack([y[:, s : s + 6].mean(1) for s in range(0, y.shape[1] - 5, 3)], 1)


@program("x: B T 5", T=12, rnn=gru())
def each_chunk_through_the_gru(net, x):
    """A gated layer that starts anew every four steps."""
    return torch.cat([net.rnn(c)[0] for c in x.split(4, 1)], 1)


@program("x: B T 5", T=12, rnn=gru())
def state_carried_over_chunks(net, x):
    h, out = None, []
    for c in x.split(4, 1):
        y, h = net.rnn(c, h)
        out.append(y)
    return torch.cat(out, 1)
