"""Integers, booleans, doubles and halves."""

import torch
from torch import nn
from torch.nn import functional as F

from .registry import gru, linear, lstm, program


def emb(n=11, f=5):
    return lambda: nn.Embedding(n, f)


@program("x: B T <11", emb=emb(), rnn=lstm())
def ids_through_lstm(net, x):
    return net.rnn(net.emb(x))[0]


@program("x: B T int32<11", emb=emb(), rnn=lstm())
def ids_of_32_bits(net, x):
    return net.rnn(net.emb(x))[0][:, -1]


@program(
    "x: B T <11", T=8, emb=lambda: nn.Embedding(11, 5, padding_idx=0), rnn=gru(bidirectional=True), out=linear(12, 4)
)
def tagger(net, x):
    return net.out(net.rnn(net.emb(x))[0]).argmax(-1)


@program("x: B T <11", T=8, emb=lambda: nn.EmbeddingBag(11, 5, mode="mean"))
def bag_of_words(net, x):
    return net.emb(x)


@program("x: B T <3", T=8, rnn=lstm(3, 6))
def ids_as_one_hot(net, x):
    return net.rnn(F.one_hot(x, 3).float())[0]


@program("x: B T <9", T=8, rnn=lstm(1, 6))
def ids_as_numbers(net, x):
    return net.rnn((x.float() / 8).unsqueeze(-1))[0]


@program("x: B T <9", T=8)
def integers_added(net, x):
    return x * 2 + 1, x.sum(1)


@program("x: B T 5", T=8, rnn=lstm())
def double_inside(net, x):
    return net.rnn(x)[0].double().cumsum(1).float()


@program("x: B T 5", T=8, tolerance=2e-3, rnn=lstm())
def half_inside(net, x):
    return net.rnn(x)[0].half().float()


@program("x: B T 5", T=8, rnn=lstm())
def mask_as_float(net, x):
    y = net.rnn(x)[0]
    return y * (y > 0).float()


@program("x: B T 5", T=8, rnn=lstm())
def thresholded(net, x):
    return net.rnn(x)[0] > 0


@program("x: B T 5; m: B T bool", T=8, rnn=lstm())
def where_of_a_mask(net, x, m):
    return torch.where(m.unsqueeze(-1), net.rnn(x)[0], torch.zeros(()))


@program("x: B T 5", T=8, rnn=lstm())
def rounded_to_integers(net, x):
    return (net.rnn(x)[0] * 100).round().long()


@program("x: B T 5", T=8)
def truncated_to_integers(net, x):
    return (x * 10).int().float()


@program("x: B T 5; k: B <4", T=8, emb=emb(4, 3), rnn=gru(8, 6))
def speaker_embedding(net, x, k):
    e = net.emb(k).unsqueeze(1).expand(-1, x.size(1), -1)
    return net.rnn(torch.cat([x, e], -1))[0]


@program("x: B T 5; n: B lengths", T=8, B=2, rnn=lstm())
def lengths_as_floats(net, x, n):
    return net.rnn(x)[0].sum(1) / n.unsqueeze(1).float()


@program("x: B T 5; n: B lengths", T=8, B=2, rnn=lstm())
def lengths_returned(net, x, n):
    return net.rnn(x)[0], (n + 1) // 2


@program("x: B T 5", T=8, rnn=lstm())
def positions_as_doubles(net, x):
    at = torch.arange(x.shape[1], dtype=torch.float64)
    return net.rnn(x)[0] * torch.cos(at).float().unsqueeze(1)


@program("x: B T 5", T=8, rnn=lstm())
def positions_returned(net, x):
    return net.rnn(x)[0], torch.arange(x.shape[1])


@program("x: B T <11", T=12, emb=emb(), out=linear(5, 11))
def bigrams_shifted(net, x):
    before = F.pad(x, (1, -1))
    return net.out(net.emb(x) + net.emb(before))


@program("x: B T <11", T=8, emb=emb(), rnn=lstm())
def tokens_before_zero(net, x):
    keep = (x > 0).cumsum(1).float()
    return net.rnn(net.emb(x))[0] * keep.unsqueeze(-1)


@program("x: B T 5", T=8, rnn=lstm(), out=linear(6, 4))
def greedy_ctc(net, x):
    best = net.out(net.rnn(x)[0]).argmax(-1)
    same = F.pad(best[:, 1:] == best[:, :-1], (1, 0))
    return torch.where(same | (best == 0), torch.full_like(best, -1), best)


@program("x: B T 5", T=8, rnn=lstm(), out=linear(6, 1))
def endpoint(net, x):
    """The last step that speaks, as a number."""
    speaks = (torch.sigmoid(net.out(net.rnn(x)[0])).squeeze(-1) > 0.5).long()
    return (speaks * torch.arange(x.shape[1])).amax(1)
