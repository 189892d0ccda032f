"""Recurrent layers as they come: layouts, directions, states, packed sequences."""

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .registry import gru, linear, lstm, noise, program


@program("x: B T 5", rnn=lambda: nn.RNN(5, 6, batch_first=True))
def rnn_tanh(net, x):
    return net.rnn(x)[0]


@program("x: B T 5", T=8, rnn=lambda: nn.RNN(5, 6, batch_first=True, nonlinearity="relu"))
def rnn_relu_last(net, x):
    return net.rnn(x)[1]


@program("x: T B 5", rnn=lambda: nn.RNN(5, 6, bidirectional=True))
def rnn_both_ways_time_major(net, x):
    return net.rnn(x)[0]


@program("x: T B 5", rnn=lambda: nn.LSTM(5, 6))
def lstm_time_major(net, x):
    y, (h, c) = net.rnn(x)
    return y, h, c


@program("x: B T 5", rnn=lstm(num_layers=2, bidirectional=True))
def lstm_deep_both_ways(net, x):
    return net.rnn(x)[0]


@program("x: B T 5; h0: 1 B 6; c0: 1 B 6", rnn=lstm())
def lstm_with_states(net, x, h0, c0):
    y, (h, c) = net.rnn(x, (h0, c0))
    return y, h, c


@program("x: B T 5; h0: 2 B 6", rnn=gru(num_layers=2))
def gru_with_states(net, x, h0):
    return net.rnn(x, h0)


@program("x: T B 5; h0: 2 B 6", rnn=lambda: nn.GRU(5, 6, bidirectional=True))
def gru_both_ways_with_states_time_major(net, x, h0):
    return net.rnn(x, h0)


@program("x: T B 5", rnn=lambda: nn.GRU(5, 6, num_layers=2))
def gru_time_major_last(net, x):
    return net.rnn(x)[1][-1]


@program("x: T 5", rnn=lambda: nn.LSTM(5, 6))
def lstm_without_a_batch(net, x):
    return net.rnn(x)[0]


@program("x: T 5", rnn=lambda: nn.GRU(5, 6))
def gru_without_a_batch_last(net, x):
    return net.rnn(x)[1]


@program("x: B T 5", rnn=lstm(bidirectional=True), out=linear(12, 3))
def lstm_final_states_joined(net, x):
    h = net.rnn(x)[1][0]
    return net.out(torch.cat([h[0], h[1]], -1))


@program("x: B T 5", rnn=gru(num_layers=2, bidirectional=True))
def gru_final_states_flattened(net, x):
    return net.rnn(x)[1].transpose(0, 1).flatten(1)


@program("x: B T 5", T=8, rnn=gru(num_layers=2, bidirectional=True))
def gru_final_states_viewed(net, x):
    h = net.rnn(x)[1].view(2, 2, x.shape[0], 6)
    return torch.cat([h[-1, 0], h[-1, 1]], -1)


@program("x: B T 5", rnn=lstm(bidirectional=True))
def directions_added(net, x):
    y = net.rnn(x)[0]
    return y[..., :6] + y[..., 6:]


@program("x: B T 5", rnn=lstm(bidirectional=True))
def directions_viewed_and_added(net, x):
    y = net.rnn(x)[0]
    return y.view(y.shape[0], y.shape[1], 2, 6).sum(2)


@program("x: B T 5", a=gru(), b=gru(6, 6))
def gru_twice_with_a_residual(net, x):
    y = net.a(x)[0]
    return y + net.b(y)[0]


@program("x: B T 5", T=8, enc=lstm(), dec=lstm(6, 6))
def encoder_state_into_decoder(net, x):
    y, state = net.enc(x)
    return net.dec(y, state)[0]


@program("x: B T 5", T=8, enc=gru(), dec=gru(6, 6))
def last_step_repeated_into_decoder(net, x):
    h = net.enc(x)[1]
    return net.dec(h[-1].unsqueeze(1).repeat(1, x.shape[1], 1))[0]


@program("x: B T 5", T=8, enc=gru(), dec=gru(6, 6))
def last_step_expanded_into_decoder(net, x):
    y = net.enc(x)[0]
    return net.dec(y[:, -1:].expand(-1, x.shape[1], -1))[0]


@program("x: B T 5; n: B lengths", T=8, B=3, rnn=lstm())
def packed_lstm(net, x, n):
    packed = pack_padded_sequence(x, n, batch_first=True)
    return pad_packed_sequence(net.rnn(packed)[0], batch_first=True)[0]


@program("x: B T 5; n: B lengths", T=8, B=2, rnn=gru())
def packed_gru_last(net, x, n):
    return net.rnn(pack_padded_sequence(x, n, batch_first=True))[1]


@program("x: T B 5; n: B lengths", T=12, B=2, rnn=lambda: nn.LSTM(5, 6, bidirectional=True))
def packed_both_ways_time_major(net, x, n):
    return pad_packed_sequence(net.rnn(pack_padded_sequence(x, n))[0])[0]


@program("x: B T 5; n: B lengths", T=8, B=2, rnn=gru())
def packed_with_total_length(net, x, n):
    packed = pack_padded_sequence(x, n, batch_first=True)
    return pad_packed_sequence(net.rnn(packed)[0], batch_first=True, total_length=x.shape[1])[0]


@program("x: B T 5", rnn=lstm(), h=noise(1, 1, 6))
def state_repeated_over_the_batch(net, x):
    h = net.h.repeat(1, x.size(0), 1)
    return net.rnn(x, (h, torch.zeros_like(h)))[0]


@program("x: B T 5", rnn=lstm())
def zero_states_by_hand(net, x):
    h = torch.zeros(1, x.size(0), 6)
    return net.rnn(x, (h, h.clone()))[0]


@program("x: B T 5", B=1, rnn=lstm())
def zero_states_for_one_row(net, x):
    h = torch.zeros(1, 1, 6)
    return net.rnn(x, (h, h))[0]


@program("x: B T 5", B=2, rnn=gru())
def one_state_for_two_rows(net, x):
    return net.rnn(x, torch.full((1, 2, 6), 0.3))[0]


@program("x: B T 5; z: B 3", T=8, rnn=gru(), init=linear(3, 6))
def state_from_a_condition(net, x, z):
    return net.rnn(x, torch.tanh(net.init(z)).unsqueeze(0))[0]


@program("x: B T 5; z: B 3", T=8, rnn=gru(8, 6))
def condition_at_every_step(net, x, z):
    return net.rnn(torch.cat([x, z.unsqueeze(1).expand(-1, x.shape[1], -1)], -1))[0]


@program("x: B T 5", T=8, rnn=lstm(), proj=linear(6, 5))
def two_passes_of_one_lstm(net, x):
    return net.rnn(net.proj(net.rnn(x)[0]))[0]


@program("x: B T 5", T=8, rnn=gru())
def last_state_into_the_start(net, x):
    return net.rnn(x, net.rnn(x)[1])[0]


@program("x: B T 5", T=8, rnn=lstm(proj_size=3))
def lstm_projected(net, x):
    return net.rnn(x)[0]


@program("x: B T 4 5", T=8, rnn=lstm())
def bands_into_the_batch(net, x):
    B, T, K, N = x.shape
    y = net.rnn(x.transpose(1, 2).reshape(B * K, T, N))[0]
    return y.reshape(B, K, T, 6).transpose(1, 2)


@program("x: B T 4 5", T=8, B=2, rnn=gru())
def time_into_the_batch(net, x):
    B, T, K, N = x.shape
    y = net.rnn(x.reshape(B * T, K, N))[0]
    return y.reshape(B, T, K * 6)


@program("x: B 5 T", rnn=lstm())
def channels_before_time(net, x):
    return net.rnn(x.transpose(1, 2))[0].transpose(1, 2)


@program("x: B T 5; y: B T+3 5", T=8, rnn=gru(), dec=gru())
def two_lengths(net, x, y):
    return net.dec(y, net.rnn(x)[1])[0]
