"""Attention and Transformers."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from .registry import gru, linear, lstm, noise, program


def mha(e=6, heads=2, **more):
    return lambda: nn.MultiheadAttention(e, heads, batch_first=True, **more)


def encoder(e=6, heads=2, **more):
    return lambda: nn.TransformerEncoderLayer(e, heads, 8, dropout=0.0, batch_first=True, **more)


@program("x: B T 6", T=8, att=mha())
def mha_self(net, x):
    return net.att(x, x, x, need_weights=False)[0]


@program("x: B T 6", T=8, att=mha())
def mha_self_with_weights(net, x):
    return net.att(x, x, x)


@program("x: B T 6", T=12, att=mha())
def mha_causal(net, x):
    T = x.shape[1]
    mask = torch.triu(torch.ones(T, T, dtype=torch.bool), 1)
    return net.att(x, x, x, attn_mask=mask, need_weights=False)[0]


@program("x: B T 6", T=8, att=mha())
def mha_causal_float_mask(net, x):
    mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
    return net.att(x, x, x, attn_mask=mask, need_weights=False)[0]


@program("x: B T 6; m: B T bool", T=8, B=2, att=mha())
def mha_key_padding(net, x, m):
    m = m & (torch.arange(x.shape[1]) > 0)
    return net.att(x, x, x, key_padding_mask=m, need_weights=False)[0]


@program("x: B T 6", T=8, rnn=lstm(6, 6), att=mha())
def mha_after_lstm(net, x):
    y = net.rnn(x)[0]
    return y + net.att(y, y, y, need_weights=False)[0]


@program("x: T B 6", T=8, att=lambda: nn.MultiheadAttention(6, 2))
def mha_time_major(net, x):
    return net.att(x, x, x, need_weights=False)[0]


@program("x: B T 6; m: B T+3 6", T=8, att=mha())
def mha_cross(net, x, m):
    return net.att(x, m, m, need_weights=False)[0]


@program("x: B T 6", T=8, att=mha(), q=noise(1, 3, 6))
def mha_learned_queries(net, x):
    return net.att(net.q.expand(x.shape[0], -1, -1), x, x, need_weights=False)[0]


@program("x: B T 6", T=8, att=mha())
def mha_query_of_the_last_step(net, x):
    return net.att(x[:, -1:], x, x, need_weights=False)[0].squeeze(1)


@program("x: B T 6", T=8)
def sdpa(net, x):
    return F.scaled_dot_product_attention(x, x, x)


@program("x: B T 6", T=8, qkv=linear(6, 18))
def sdpa_causal_heads(net, x):
    B, T, E = x.shape
    q, k, v = (a.view(B, T, 2, 3).transpose(1, 2) for a in net.qkv(x).split(E, 2))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return y.transpose(1, 2).reshape(B, T, E)


@program("x: B T 6", T=12, qkv=linear(6, 18), keep=lambda: torch.tril(torch.ones(32, 32)).view(1, 1, 32, 32))
def attention_of_minigpt(net, x):
    B, T, C = x.size()
    q, k, v = net.qkv(x).split(C, dim=2)
    k, q, v = (a.view(B, T, 2, C // 2).transpose(1, 2) for a in (k, q, v))
    s = (q @ k.transpose(-2, -1)) * (1.0 / math.sqrt(k.size(-1)))
    s = s.masked_fill(net.keep[:, :, :T, :T] == 0, float("-inf"))
    return (F.softmax(s, dim=-1) @ v).transpose(1, 2).contiguous().view(B, T, C)


@program("x: B T 6", T=8, layer=encoder())
def transformer_layer(net, x):
    return net.layer(x)


@program("x: B T 6", T=8, layer=encoder(norm_first=True, activation="gelu"))
def transformer_layer_norm_first(net, x):
    return net.layer(x)


@program("x: B T 6", T=12, layer=encoder())
def transformer_layer_causal(net, x):
    mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
    return net.layer(x, src_mask=mask, is_causal=True)


@program(
    "x: B T 6", T=8, stack=lambda: nn.TransformerEncoder(encoder()(), 2, enable_nested_tensor=False), out=linear(6, 3)
)
def transformer_classifier(net, x):
    return net.out(net.stack(x).mean(1))


@program("x: B T 6", T=8, layer=encoder(), cls=noise(1, 1, 6))
def transformer_with_a_class_token(net, x):
    return net.layer(torch.cat([net.cls.expand(x.shape[0], -1, -1), x], 1))[:, 0]


@program("x: B T 6", T=8, layer=encoder(), place=lambda T: nn.Parameter(torch.randn(1, T, 6)))
def transformer_with_learned_positions(net, x):
    return net.layer(x + net.place[:, : x.shape[1]])


@program("x: B T 6", T=8, layer=encoder(), rnn=gru(6, 6))
def transformer_then_gru(net, x):
    return net.rnn(net.layer(x))[0]


@program("x: B T 6; m: B T+3 6", T=8, layer=lambda: nn.TransformerDecoderLayer(6, 2, 8, dropout=0.0, batch_first=True))
def transformer_decoder_layer(net, x, m):
    mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
    return net.layer(x, m, tgt_mask=mask)


@program("x: B T 5; q: B 6", T=8, rnn=lstm())
def attention_by_a_query_input(net, x, q):
    y = net.rnn(x)[0]
    w = torch.softmax(torch.bmm(y, q.unsqueeze(2)), 1)
    return (w * y).sum(1)


@program("x: B T 5", T=8, rnn=gru(), w=linear(6, 6), v=linear(6, 1))
def additive_attention_over_all_pairs(net, x):
    y = net.rnn(x)[0]
    s = net.v(torch.tanh(net.w(y).unsqueeze(2) + y.unsqueeze(1))).squeeze(-1)
    return torch.softmax(s, -1) @ y


@program("x: B T 6", T=16, q=linear(6, 6))
def linear_attention_both_ways(net, x):
    q, k = F.elu(net.q(x)) + 1, F.elu(x) + 1
    return (q @ (k.transpose(1, 2) @ x)) / (q @ k.sum(1).unsqueeze(2))


@program("x: B T 6", T=8, q=linear(6, 6))
def scores_over_the_length(net, x):
    return (net.q(x) @ x.transpose(1, 2) / x.shape[1]) @ x


@program("x: B T 6", T=8, mix=lambda T: nn.Linear(T, T), norm=lambda: nn.LayerNorm(6))
def mlp_mixer(net, x):
    return x + net.mix(net.norm(x).transpose(1, 2)).transpose(1, 2)


@program("x: B T 6", T=8)
def fourier_mixing(net, x):
    """Both matrices of a discrete Fourier transform over time, made of positions."""
    T = x.shape[1]
    at = torch.arange(T).float()
    return torch.cos(2 * math.pi * at[:, None] * at[None, :] / T) @ x
