"""Reductions, running reductions, softmax and norms over time."""

import torch
from torch import nn
from torch.nn import functional as F

from .registry import gru, linear, lstm, noise, program


def after_lstm(name, what, twin=None, **more):
    """A program that reduces what an LSTM answers."""

    def forward(net, x):
        return what(net.rnn(x)[0])

    def other(net, x):
        return twin(net.rnn(x)[0])

    forward.__module__ = __name__
    program("x: B T 5", name=name, rnn=lstm(), twin=twin and other, **more)(forward)


after_lstm("mean_over_time", lambda y: y.mean(1))
after_lstm("sum_over_time", lambda y: y.sum(1, keepdim=True))
after_lstm("max_over_time", lambda y: y.max(1).values)
after_lstm("amin_over_time", lambda y: y.amin(1))
after_lstm("argmax_over_time", lambda y: y.argmax(1))
after_lstm("std_over_time", lambda y: y.std(1), least=2)
after_lstm("std_over_time_biased", lambda y: y.std(1, unbiased=False))
after_lstm("var_over_time", lambda y: y.var(1), least=2)
after_lstm("median_over_time", lambda y: y.median(1).values)
after_lstm("norm_over_time", lambda y: y.norm(dim=1))
after_lstm("norm_of_all", lambda y: y.norm(dim=(1, 2)))
after_lstm("logsumexp_over_time", lambda y: y.logsumexp(1))
after_lstm("prod_over_time", lambda y: (1 + 0.1 * y).prod(1))
after_lstm("mean_of_all", lambda y: y.mean((1, 2)))
after_lstm("mean_and_std_pooled", lambda y: torch.cat([y.mean(1), y.std(1)], -1), least=2)
after_lstm("cumsum_over_time", lambda y: y.cumsum(1))
after_lstm("cumsum_backwards", lambda y: y.flip(1).cumsum(1).flip(1))
after_lstm("cumprod_over_time", lambda y: (1 + 0.1 * y).cumprod(1))
after_lstm("cummax_over_time", lambda y: y.cummax(1).values)
after_lstm("logcumsumexp_over_time", lambda y: y.logcumsumexp(1))
after_lstm("softmax_over_time", lambda y: y.softmax(1))
after_lstm("log_softmax_over_time", lambda y: y.log_softmax(1))
after_lstm("mean_removed", lambda y: y - y.mean(1, keepdim=True))
after_lstm("standardised", lambda y: (y - y.mean(1, keepdim=True)) / (y.std(1, keepdim=True) + 1e-5), least=2)
after_lstm("largest_made_one", lambda y: y / y.abs().amax(1, keepdim=True))
after_lstm(
    "min_max_scaled",
    lambda y: (y - y.amin(1, keepdim=True)) / (y.amax(1, keepdim=True) - y.amin(1, keepdim=True) + 1e-6),
)
after_lstm("instance_norm", lambda y: F.instance_norm(y.transpose(1, 2)), least=2)
after_lstm("normalized_over_time", lambda y: F.normalize(y, dim=1))
after_lstm("normalized_over_features", lambda y: F.normalize(y, dim=-1))
after_lstm("adaptive_average_to_one", lambda y: F.adaptive_avg_pool1d(y.transpose(1, 2), 1).squeeze(-1))
after_lstm("adaptive_max_to_one", lambda y: F.adaptive_max_pool1d(y.transpose(1, 2), 1).squeeze(-1))
after_lstm(
    "adaptive_average_to_two",
    lambda y: F.adaptive_avg_pool1d(y.transpose(1, 2), 2),
    lambda y: F.avg_pool2d(y.transpose(1, 2).unsqueeze(-2), (1, 4)).squeeze(-2),
    T=8,
)
after_lstm(
    "adaptive_average_to_four",
    lambda y: F.adaptive_avg_pool1d(y.transpose(1, 2), 4),
    lambda y: F.avg_pool2d(y.transpose(1, 2).unsqueeze(-2), (1, 3)).squeeze(-2),
    T=12,
)
after_lstm("gram_matrix", lambda y: y.transpose(1, 2) @ y)
after_lstm("gram_matrix_over_length", lambda y: y.transpose(1, 2) @ y / y.shape[1])
after_lstm("self_similarity", lambda y: y @ y.transpose(1, 2))
after_lstm("last_minus_first", lambda y: y[:, -1] - y[:, 0])
after_lstm("mean_of_the_last_four", lambda y: y[:, -4:].mean(1), least=4)
after_lstm("difference_by_diff", lambda y: y.diff(dim=1), least=2)
after_lstm("cumulative_mean", lambda y: y.cumsum(1) / torch.arange(1, y.shape[1] + 1).view(1, -1, 1))
after_lstm("any_above", lambda y: (y > 0.1).any(1))
after_lstm("count_above", lambda y: (y > 0.05).sum(1))
after_lstm(
    "attention_by_einsum", lambda y: torch.einsum("bts,bsf->btf", torch.einsum("btf,bsf->bts", y, y).softmax(-1), y)
)
after_lstm("outer_over_time", lambda y: torch.einsum("bti,btj->bij", y, y))
after_lstm("index_of_the_last", lambda y: torch.full((y.shape[0],), y.shape[1] - 1))


@program("x: B T 5", rnn=lstm(), score=linear(6, 1))
def attention_pooling(net, x):
    y = net.rnn(x)[0]
    return (torch.softmax(net.score(torch.tanh(y)), 1) * y).sum(1)


@program("x: B T 5", rnn=lstm(), q=noise(6))
def attention_pooling_by_a_query(net, x):
    y = net.rnn(x)[0]
    return torch.bmm(torch.softmax(y @ net.q, 1).unsqueeze(1), y).squeeze(1)


@program("x: B T 5", T=12, rnn=gru(), norm=lambda: nn.GroupNorm(2, 6))
def group_norm_over_time(net, x):
    return net.norm(net.rnn(x)[0].transpose(1, 2))


@program("x: B T 5", T=12, rnn=gru(), norm=lambda: nn.InstanceNorm1d(6, affine=True), least=2)
def instance_norm_layer(net, x):
    return net.norm(net.rnn(x)[0].transpose(1, 2)).transpose(1, 2)


@program("x: B T 5", T=12, rnn=gru(), norm=lambda: nn.LayerNorm(6))
def layer_norm(net, x):
    return net.norm(net.rnn(x)[0])


@program("x: B T 5", T=8, w=linear(5, 6), v=linear(5, 6))
def squeeze_and_excite(net, x):
    y = net.w(x)
    return y * torch.sigmoid(net.v(x.mean(1))).unsqueeze(1)


@program("x: B T 5", T=12, a=linear(5, 6))
def global_norm_of_channels_and_time(net, x):
    y = net.a(x)
    m = y.mean((1, 2), keepdim=True)
    v = ((y - m) ** 2).mean((1, 2), keepdim=True)
    return (y - m) / torch.sqrt(v + 1e-5)


@program("x: B T 5", T=12, a=linear(5, 6))
def cumulative_norm(net, x):
    y = net.a(x)
    n = torch.arange(1, x.shape[1] + 1).view(1, -1, 1) * 6
    m = y.sum(-1, keepdim=True).cumsum(1) / n
    v = (y**2).sum(-1, keepdim=True).cumsum(1) / n - m**2
    return (y - m) / torch.sqrt(v + 1e-5)


@program("x: B T", T=20)
def energy_of_a_signal(net, x):
    return (x**2).mean(1).sqrt()


@program("x: B T", T=20)
def peak_scaled_signal(net, x):
    return x / x.abs().max(1, keepdim=True).values
