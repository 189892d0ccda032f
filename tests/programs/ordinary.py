"""Models that people export: right at every length, and to stay so."""

import torch
from torch import nn
from torch.nn import functional as F

from .registry import gru, linear, lstm, program


def conv(i, o, k, **more):
    return lambda: nn.Conv1d(i, o, k, **more)


@program("x: B T 5", T=20, rnn=lstm(h=8, num_layers=2), out=linear(8, 3))
def lstm_classifier(net, x):
    return net.out(net.rnn(x)[0][:, -1, :])


@program("x: B T 5", T=24, rnn=lstm(h=8), fc=linear(8, 8), out=linear(8, 3))
def lstm_classifier_by_state(net, x):
    _, (h, _) = net.rnn(x)
    return F.log_softmax(net.out(F.relu(net.fc(h[-1]))), dim=1)


@program("x: B T 1", T=20, rnn=lstm(1, 8), out=linear(8, 1))
def lstm_forecaster(net, x):
    h0 = torch.zeros(1, x.size(0), 8)
    c0 = torch.zeros(1, x.size(0), 8)
    y, _ = net.rnn(x, (h0, c0))
    return net.out(y[:, -1, :])


@program("x: B T 5", T=24, rnn=gru(h=8, bidirectional=True), out=linear(16, 4))
def gru_tagger(net, x):
    return net.out(net.rnn(x)[0])


@program(
    "x: B T 8", T=16, conv=lambda: nn.Conv2d(1, 4, 3, padding=1), rnn=lstm(16, 6, bidirectional=True), out=linear(12, 5)
)
def crnn(net, x):
    y = F.max_pool2d(F.relu(net.conv(x.unsqueeze(1))), (1, 2))
    y = y.permute(0, 2, 1, 3)
    y = y.reshape(y.size(0), y.size(1), -1)
    return net.out(net.rnn(y)[0]).log_softmax(-1)


@program("x: B 5 T", T=20, a=conv(5, 6, 3, padding=1), n=lambda: nn.BatchNorm1d(6), rnn=gru(6, 6), out=linear())
def conv_norm_gru(net, x):
    y = F.relu(net.n(net.a(x)))
    return net.out(net.rnn(y.transpose(1, 2))[0])


@program("x: B T 5; h: 1 B 6; c: 1 B 6", T=12, fc=linear(5, 6), rnn=lstm(6, 6), out=linear(6, 1))
def voice_activity(net, x, h, c):
    y, (h, c) = net.rnn(torch.relu(net.fc(x)), (h, c))
    return torch.sigmoid(net.out(y)).squeeze(-1), h, c


@program("x: B 5 T", T=24, a=conv(5, 6, 3), b=conv(6, 6, 3, dilation=2), r=conv(5, 6, 1), out=linear())
def temporal_conv_net(net, x):
    y = F.relu(net.a(F.pad(x, (2, 0))))
    y = F.relu(net.b(F.pad(y, (4, 0))) + net.r(x))
    return net.out(y[:, :, -1])


@program("x: B T 5", T=16, rnn=lstm(bidirectional=True), w=linear(12, 1), out=linear(12, 3))
def attention_classifier(net, x):
    y, _ = net.rnn(x)
    a = F.softmax(net.w(torch.tanh(y)).squeeze(-1), dim=1)
    return net.out(torch.bmm(a.unsqueeze(1), y).squeeze(1))


@program("t: B <11; h: 1 B 6", T=4, emb=lambda: nn.Embedding(11, 5), rnn=gru(), out=linear(6, 11))
def seq2seq_step(net, t, h):
    y, h = net.rnn(net.emb(t).unsqueeze(1), h)
    return net.out(y.squeeze(1)), h


@program("x: B T <11", T=16, emb=lambda: nn.Embedding(11, 6), rnn=lstm(6, 8), out=linear(8, 11))
def language_model(net, x):
    return net.out(net.rnn(net.emb(x))[0])


@program(
    "x: B T <11",
    T=12,
    emb=lambda: nn.Embedding(11, 6, padding_idx=0),
    rnn=lstm(6, 8, bidirectional=True),
    out=linear(16, 2),
)
def sentiment(net, x):
    _, (h, _) = net.rnn(net.emb(x))
    return torch.sigmoid(net.out(torch.cat((h[-2], h[-1]), dim=1)))


@program("x: B T 5", T=20, enc=lstm(h=8), dec=lstm(8, 5))
def lstm_autoencoder(net, x):
    _, (h, _) = net.enc(x)
    return net.dec(h[-1].unsqueeze(1).repeat(1, x.size(1), 1))[0]


@program("x: B T 6", T=16, fc=linear(6, 8), rnn=gru(8, 8, num_layers=2), mask=linear(8, 6))
def noise_suppressor(net, x):
    y = net.rnn(F.elu(net.fc(x)))[0]
    return x * torch.sigmoid(net.mask(y))


@program(
    "x: B 1 T", T=64, enc=conv(1, 6, 4, stride=2), rnn=gru(6, 6), dec=lambda: nn.ConvTranspose1d(6, 1, 4, stride=2)
)
def waveform_separator(net, x):
    e = F.relu(net.enc(x))
    m = torch.sigmoid(net.rnn(e.transpose(1, 2))[0].transpose(1, 2))
    return net.dec(e * m)


@program("x: B T 5", T=12, norm=lambda: nn.LayerNorm(5), rnn=gru(h=5), out=linear(5, 2))
def residual_gru_block(net, x):
    y = net.rnn(net.norm(x))[0] + x
    return net.out(F.gelu(y))


@program("x: B T 5", T=20, a=lstm(), drop=lambda: nn.Dropout(0.3), b=lstm(6, 4), out=linear(4, 1))
def two_lstms_with_dropout(net, x):
    y, _ = net.a(x)
    y, _ = net.b(net.drop(y))
    return net.out(y[:, -1]).squeeze(-1)


@program("x: B T 5", T=16, fc=linear(5, 6), rnn=gru(6, 6), value=linear(6, 1), policy=linear(6, 3))
def actor_and_critic(net, x):
    y = net.rnn(torch.tanh(net.fc(x)))[0]
    return net.policy(y).softmax(-1), net.value(y).squeeze(-1)


@program("x: B T 5; s: B 4", T=12, rnn=lstm(), fs=linear(4, 6), out=linear(12, 2))
def static_and_sequence(net, x, s):
    y = net.rnn(x)[1][0][-1]
    return net.out(torch.cat([y, F.relu(net.fs(s))], 1))


@program("x: B T 6", T=12, rnn=gru(6, 6), att=lambda: nn.MultiheadAttention(6, 2, batch_first=True), out=linear())
def gru_and_self_attention(net, x):
    y, _ = net.rnn(x)
    a, _ = net.att(y, y, y)
    return net.out(y + a)


@program(
    "x: B T 6",
    T=16,
    embed=linear(6, 6),
    layer=lambda: nn.TransformerEncoderLayer(6, 2, 8, batch_first=True),
    out=linear(6, 2),
)
def causal_transformer_tagger(net, x):
    T = x.size(1)
    mask = torch.triu(torch.full((T, T), float("-inf")), diagonal=1)
    return net.out(net.layer(net.embed(x), src_mask=mask))


@program("x: B T 8", T=12, a=linear(8, 16), b=linear(8, 8))
def gated_linear_unit(net, x):
    return net.b(F.glu(net.a(x)))


@program("x: B T 5", T=12, rnn=lstm(), m=linear(6, 3), s=linear(6, 3))
def mixture_density(net, x):
    y = net.rnn(x)[0]
    return net.m(y), F.softplus(net.s(y)) + 1e-4, torch.exp(net.s(y).clamp(-3, 3))


@program("x: B T 5", T=12, rnn=lstm(bidirectional=True), out=linear(12, 4))
def ctc_head_time_major(net, x):
    return net.out(net.rnn(x)[0]).transpose(0, 1).log_softmax(2)


@program(
    "x: B T 5", T=19, rnn=lstm(num_layers=2), head=lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
)
def anomaly_score(net, x):
    y = net.head(net.rnn(x)[0][:, :-1])
    return (y - x[:, 1:, :1]).abs().mean(1)


@program("a: B T 3; b: B T 4", T=12, ra=gru(3, 4), rb=gru(4, 4), out=linear(8, 2))
def two_streams_joined(net, a, b):
    return net.out(torch.cat([net.ra(a)[0], net.rb(b)[0]], -1))


@program("x: B T 5", T=12, fc=linear(5, 6), rnn=lambda: nn.GRU(6, 6), out=linear())
def time_major_inside(net, x):
    y = net.rnn(net.fc(x).permute(1, 0, 2))[0]
    return net.out(y.permute(1, 0, 2))


@program("x: T B 5", T=12, rnn=lambda: nn.LSTM(5, 6, num_layers=2), out=linear())
def time_major_tagger(net, x):
    return net.out(net.rnn(x)[0])


@program("x: B T 5", T=12, rnn=gru(h=8), h1=linear(8, 4), h2=linear(8, 2))
def two_heads(net, x):
    y = net.rnn(x)[0]
    return net.h1(y), net.h2(y.mean(dim=1))


@program("x: B T 5", T=16, rnn=lstm(), out=linear())
def max_and_mean_pooled(net, x):
    y = net.rnn(x)[0]
    return net.out(torch.max(y, 1)[0]), y.mean(1)
