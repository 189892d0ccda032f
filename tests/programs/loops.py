"""Cells and recurrences written as Python loops: unrolled by both exporters."""

import torch
from torch import nn
from torch.nn import functional as F

from .registry import gru, linear, lstm, noise, program


def cell(kind, i=5, h=6):
    return lambda: getattr(nn, kind)(i, h)


def stepped(net, x, steps, h):
    """Outputs of net.cell over the given steps, in that order."""
    out = []
    for t in steps:
        h = net.cell(x[:, t], h)
        out.append(h)
    return out, h


@program("x: B T 5", T=12, B=2, cell=cell("GRUCell"))
def loop_gru_cell(net, x):
    return torch.stack(stepped(net, x, range(x.shape[1]), x.new_zeros(x.shape[0], 6))[0], 1)


@program("x: B T 5", T=7, B=1, cell=cell("GRUCell"))
def loop_gru_cell_last(net, x):
    return stepped(net, x, range(x.shape[1]), x.new_zeros(x.shape[0], 6))[1]


@program("x: B T 5", T=8, B=3, cell=cell("RNNCell"))
def loop_rnn_cell(net, x):
    return torch.stack(stepped(net, x, range(x.shape[1]), torch.zeros(x.size(0), 6))[0], 1)


@program("x: B T 5", T=7, B=2, cell=cell("LSTMCell"))
def loop_lstm_cell(net, x):
    h, c, out = x.new_zeros(x.shape[0], 6), x.new_zeros(x.shape[0], 6), []
    for t in range(x.shape[1]):
        h, c = net.cell(x[:, t], (h, c))
        out.append(h)
    return torch.stack(out, dim=1), c


@program("x: T B 5", T=8, B=2, cell=cell("LSTMCell"))
def loop_lstm_cell_time_major(net, x):
    h = c = torch.zeros(x.shape[1], 6)
    out = []
    for step in x.unbind(0):
        h, c = net.cell(step, (h, c))
        out.append(h)
    return torch.stack(out)


@program("x: B T 5", T=8, B=2, cell=cell("GRUCell"))
def loop_backwards(net, x):
    out, _ = stepped(net, x, range(x.shape[1] - 1, -1, -1), x.new_zeros(x.shape[0], 6))
    return torch.stack(out[::-1], 1)


@program("x: B T 5", T=12, B=1, cell=cell("GRUCell"))
def loop_backwards_last(net, x):
    return stepped(net, x, reversed(range(x.shape[1])), x.new_zeros(x.shape[0], 6))[1]


@program("x: B T 5", T=12, B=2, cell=cell("GRUCell"))
def loop_every_second_step(net, x):
    return torch.stack(stepped(net, x, range(0, x.shape[1], 2), x.new_zeros(x.shape[0], 6))[0], 1)


@program("x: B T 5", T=12, B=2, cell=cell("GRUCell"))
def loop_every_second_step_held(net, x):
    h, out = x.new_zeros(x.shape[0], 6), []
    for t in range(x.shape[1]):
        if t % 2 == 0:
            h = net.cell(x[:, t], h)
        out.append(h)
    return torch.stack(out, 1)


@program("x: B T 5", T=12, B=2, cell=cell("GRUCell"))
def loop_reset_every_third_step(net, x):
    h, out = x.new_zeros(x.shape[0], 6), []
    for t in range(x.shape[1]):
        if t % 3 == 0:
            h = torch.zeros_like(h)
        h = net.cell(x[:, t], h)
        out.append(h)
    return torch.stack(out, 1)


@program("x: B T 5", T=8, B=2, a=cell("GRUCell"), b=cell("GRUCell", 6, 6))
def loop_two_layers(net, x):
    h = g = x.new_zeros(x.shape[0], 6)
    out = []
    for t in range(x.shape[1]):
        h = net.a(x[:, t], h)
        g = net.b(h, g)
        out.append(g)
    return torch.stack(out, 1)


@program("x: B T 5", T=8, B=2, forth=cell("GRUCell"), back=cell("GRUCell"))
def loop_both_ways(net, x):
    T, h, g = x.shape[1], x.new_zeros(x.shape[0], 6), x.new_zeros(x.shape[0], 6)
    forth, back = [], []
    for t in range(T):
        h = net.forth(x[:, t], h)
        g = net.back(x[:, T - 1 - t], g)
        forth.append(h)
        back.insert(0, g)
    return torch.cat([torch.stack(forth, 1), torch.stack(back, 1)], -1)


@program("x: B T 5", T=7, B=2, rnn=lstm(), cell=cell("GRUCell", 6, 6))
def loop_after_lstm(net, x):
    y = net.rnn(x)[0]
    return torch.stack(stepped(net, y, range(y.shape[1]), y.new_zeros(y.shape[0], 6))[0], 1)


@program("x: B T 5", T=8, B=2, rnn=lstm(), cell=cell("LSTMCell", 6, 6))
def loop_after_lstm_last(net, x):
    y, (h, c) = net.rnn(x)
    h, c = h[0], c[0]
    for t in range(y.shape[1]):
        h, c = net.cell(y[:, t], (h, c))
    return h


@program("x: B T 5", T=8, B=3, cell=cell("GRUCell"))
def loop_over_the_batch(net, x):
    """Rows as steps: each row's first step is fed in turn."""
    h, out = x.new_zeros(1, 6), []
    for b in range(x.shape[0]):
        h = net.cell(x[b : b + 1, 0], h)
        out.append(h)
    return torch.cat(out)


@program("x: B T 5", T=8, B=3, rnn=gru())
def loop_of_rows_through_a_gru(net, x):
    return torch.cat([net.rnn(x[b : b + 1])[0] for b in range(x.shape[0])])


@program("x: B T 5", T=8, B=2, w=linear(5, 4), u=linear(4, 4))
def loop_own_cell(net, x):
    h, out = x.new_zeros(x.shape[0], 4), []
    for t in range(x.shape[1]):
        h = torch.tanh(net.w(x[:, t]) + net.u(h))
        out.append(h)
    return torch.stack(out, 1)


@program("x: B T 5", T=16, B=2, w=linear(5, 8), u=linear(4, 8))
def loop_own_gated_cell(net, x):
    h = x.new_zeros(x.shape[0], 4)
    for t in range(x.shape[1]):
        z, n = (net.w(x[:, t]) + net.u(h)).chunk(2, -1)
        z = torch.sigmoid(z)
        h = (1 - z) * h + z * torch.tanh(n)
    return h


@program("x: B T 5", T=8, B=2, w=linear(5, 4), u=linear(4, 4))
def loop_own_cell_inputs_ahead(net, x):
    h, out, p = x.new_zeros(x.shape[0], 4), [], net.w(x)
    for t in range(p.shape[1]):
        h = torch.tanh(p[:, t] + net.u(h))
        out.append(h.unsqueeze(1))
    return torch.cat(out, 1)


@program("x: B T 5; h0: B 6", T=8, B=2, cell=cell("GRUCell"))
def loop_from_a_state(net, x, h0):
    out, h = stepped(net, x, range(x.shape[1]), h0)
    return torch.stack(out, 1), h


@program("x: B T 4", T=12, B=2)
def cumulative_max_loop(net, x):
    best, out = x[:, 0], []
    for t in range(x.shape[1]):
        best = torch.maximum(best, x[:, t])
        out.append(best)
    return torch.stack(out, 1)


@program("x: B T 4", T=8, B=2)
def running_mean_loop(net, x):
    total, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        total = total + x[:, t]
        out.append(total / (t + 1))
    return torch.stack(out, 1)


@program("x: B T 4", T=8, B=2)
def moving_average_loop(net, x):
    m, out = x[:, 0], []
    for t in range(x.shape[1]):
        m = 0.9 * m + 0.1 * x[:, t]
        out.append(m)
    return torch.stack(out, 1)


@program("x: B T 4", T=8, B=2)
def moving_average_from_zero(net, x):
    m, out = torch.zeros_like(x[:, 0]), []
    for t in range(x.shape[1]):
        m = 0.9 * m + 0.1 * x[:, t]
        out.append(m)
    return torch.stack(out, 1)


@program("x: B T 4", T=12, B=1)
def product_loop(net, x):
    p = torch.ones_like(x[:, 0])
    for t in range(x.shape[1]):
        p = p * (1 + 0.1 * x[:, t])
    return p


@program("x: B T 5", T=7, B=2, rnn=lstm(), out=linear(6, 4), moves=noise(4, 4))
def viterbi(net, x):
    """The best path's score at each step, and the path of back pointers."""
    e = net.out(net.rnn(x)[0])
    score, back = e[:, 0], []
    for t in range(1, e.shape[1]):
        best, where = (score.unsqueeze(2) + net.moves).max(1)
        score = best + e[:, t]
        back.append(where)
    tag = score.argmax(1)
    path = [tag]
    for where in reversed(back):
        tag = where.gather(1, tag.unsqueeze(1)).squeeze(1)
        path.append(tag)
    return torch.stack(path[::-1], 1)


@program("x: B T 5", T=8, B=2, rnn=lstm(), out=linear(6, 4), moves=noise(4, 4))
def viterbi_score(net, x):
    e = net.out(net.rnn(x)[0])
    score = e[:, 0]
    for t in range(1, e.shape[1]):
        score = (score.unsqueeze(2) + net.moves).amax(1) + e[:, t]
    return score.amax(1)


@program("x: B T 5", T=7, B=2, rnn=gru(bidirectional=True), out=linear(12, 4), moves=noise(4, 4), start=noise(4))
def crf_forward(net, x):
    """log of the partition function."""
    e = net.out(net.rnn(x)[0])
    alpha = net.start + e[:, 0]
    for t in range(1, e.shape[1]):
        alpha = torch.logsumexp(alpha.unsqueeze(2) + net.moves, 1) + e[:, t]
    return torch.logsumexp(alpha, 1)


@program("x: B T 4; tags: B T <4", T=8, B=2, moves=noise(4, 4))
def crf_score_of_tags(net, x, tags):
    score = x[:, 0].gather(1, tags[:, :1])[:, 0]
    for t in range(1, x.shape[1]):
        score = score + net.moves[tags[:, t - 1], tags[:, t]] + x[:, t].gather(1, tags[:, t : t + 1])[:, 0]
    return score


@program("x: B T 5", T=7, B=2, enc=gru(5, 6), cell=cell("GRUCell", 6, 6), out=linear(12, 4))
def attention_decoder_of_T_steps(net, x):
    memory, h = net.enc(x)
    h, context, out = h[0], torch.zeros_like(h[0]), []
    for _ in range(x.shape[1]):
        h = net.cell(context, h)
        weights = torch.softmax((memory @ h.unsqueeze(2)).squeeze(2), 1)
        context = (weights.unsqueeze(1) @ memory).squeeze(1)
        out.append(net.out(torch.cat([h, context], 1)))
    return torch.stack(out, 1)


@program("x: B T 5", T=7, B=2, enc=gru(5, 6), cell=cell("GRUCell", 6, 6), out=linear(12, 4))
def attention_decoder_of_5_steps(net, x):
    memory, h = net.enc(x)
    h, context, out = h[0], torch.zeros_like(h[0]), []
    for _ in range(5):
        h = net.cell(context, h)
        weights = torch.softmax((memory @ h.unsqueeze(2)).squeeze(2), 1)
        context = (weights.unsqueeze(1) @ memory).squeeze(1)
        out.append(net.out(torch.cat([h, context], 1)))
    return torch.stack(out, 1)


@program("x: B T 5; y: B T 4", T=8, B=2, enc=lstm(), cell=cell("LSTMCell", 4, 6), out=linear())
def teacher_forcing(net, x, y):
    _, (h, c) = net.enc(x)
    h, c, out = h[0], c[0], []
    for t in range(y.shape[1]):
        h, c = net.cell(y[:, t], (h, c))
        out.append(net.out(h))
    return torch.stack(out, 1)


@program("x: B T 5", T=7, B=2, enc=lstm(), cell=cell("LSTMCell", 4, 6), out=linear())
def decoder_that_feeds_itself(net, x):
    _, (h, c) = net.enc(x)
    h, c, y, out = h[0], c[0], x.new_zeros(x.shape[0], 4), []
    for _ in range(x.shape[1]):
        h, c = net.cell(y, (h, c))
        y = net.out(h)
        out.append(y)
    return torch.stack(out, 1)


@program("x: B T 5", T=8, B=2, emb=lambda: nn.Embedding(4, 5), enc=gru(), cell=cell("GRUCell", 5, 6), out=linear())
def greedy_decoder(net, x):
    h = net.enc(x)[1][0]
    token, out = torch.zeros(x.shape[0], dtype=torch.long), []
    for _ in range(x.shape[1]):
        h = net.cell(net.emb(token), h)
        logits = net.out(h)
        token = logits.argmax(-1)
        out.append(logits)
    return torch.stack(out, 1)


@program("x: B T 5", T=8, B=2, cell=cell("GRUCell"))
def loop_stopped_at_five(net, x):
    return stepped(net, x, range(5), x.new_zeros(x.shape[0], 6))[1]


@program("x: B T 5", T=8, B=2, cell=cell("GRUCell"))
def loop_but_the_last_step(net, x):
    return torch.stack(stepped(net, x, range(x.shape[1] - 1), x.new_zeros(x.shape[0], 6))[0], 1)


@program("x: B T 5", T=8, B=2, cell=cell("GRUCell"))
def loop_from_the_second_step(net, x):
    return torch.stack(stepped(net, x, range(1, x.shape[1]), x.new_zeros(x.shape[0], 6))[0], 1)


@program("x: B T 5", T=8, B=2, cell=cell("GRUCell"))
def loop_over_the_first_half(net, x):
    return torch.stack(stepped(net, x, range(x.shape[1] // 2), x.new_zeros(x.shape[0], 6))[0], 1)


@program("x: B T 4", T=12, B=2)
def differences_loop(net, x):
    return torch.stack([x[:, t] - x[:, t - 1] for t in range(1, x.shape[1])], 1)


@program("x: B T 4", T=12, B=2)
def fibonacci_like_loop(net, x):
    a = b = torch.zeros_like(x[:, 0])
    out = []
    for t in range(x.shape[1]):
        a, b = b, 0.5 * b - 0.3 * a + x[:, t]
        out.append(b)
    return torch.stack(out, 1)


@program("x: B T 4; m: B T bool", T=8, B=2, cell=cell("GRUCell", 4, 6))
def loop_with_a_mask(net, x, m):
    h, out = x.new_zeros(x.shape[0], 6), []
    for t in range(x.shape[1]):
        h = torch.where(m[:, t : t + 1], net.cell(x[:, t], h), h)
        out.append(h)
    return torch.stack(out, 1)


@program("x: B T 5", T=8, B=2, cell=cell("GRUCell"))
def loop_that_knows_its_step(net, x):
    h, out = x.new_zeros(x.shape[0], 6), []
    for t in range(x.shape[1]):
        h = net.cell(x[:, t] * (t / x.shape[1]), h)
        out.append(h)
    return torch.stack(out, 1)


@program("x: B T 5", T=8, B=2, cell=cell("GRUCell"), bias=lambda T: nn.Parameter(torch.randn(T, 6)))
def loop_with_a_bias_per_step(net, x):
    h, out = x.new_zeros(x.shape[0], 6), []
    for t in range(x.shape[1]):
        h = net.cell(x[:, t], h) + net.bias[t]
        out.append(h)
    return torch.stack(out, 1)


@program("x: B T 5", T=8, B=2, w=linear(5, 6))
def minimal_gated_unit_loop(net, x):
    h = torch.zeros(x.shape[0], 3)
    out = []
    for t in range(x.shape[1]):
        f, n = net.w(x[:, t]).split(3, -1)
        f = torch.sigmoid(f)
        h = f * h + (1 - f) * n
        out.append(h)
    return torch.stack(out, 1)


@program("x: B T 5", T=7, B=2, rnn=gru())
def gru_called_step_by_step(net, x):
    h, out = x.new_zeros(1, x.shape[0], 6), []
    for t in range(x.shape[1]):
        y, h = net.rnn(x[:, t : t + 1], h)
        out.append(y)
    return torch.cat(out, 1)


@program("x: B T 5", T=8, B=2, rnn=gru())
def gru_called_in_two_halves(net, x):
    half = x.shape[1] // 2
    a, h = net.rnn(x[:, :half])
    b, _ = net.rnn(x[:, half:], h)
    return torch.cat([a, b], 1)


@program("x: B T 4", T=8, B=2)
def linear_scan_loop(net, x):
    a, b = torch.sigmoid(x[..., :2]), x[..., 2:]
    h, out = torch.zeros_like(b[:, 0]), []
    for t in range(x.shape[1]):
        h = a[:, t] * h + b[:, t]
        out.append(h)
    return torch.stack(out, 1)


@program("x: B T 4", T=7, B=2, w=noise(4, 4))
def outer_product_memory_loop(net, x):
    """Linear attention as a recurrence of a matrix."""
    m, out = x.new_zeros(x.shape[0], 4, 4), []
    q, k = F.elu(x @ net.w) + 1, F.elu(x) + 1
    for t in range(x.shape[1]):
        m = m + k[:, t].unsqueeze(2) * x[:, t].unsqueeze(1)
        out.append((q[:, t].unsqueeze(1) @ m).squeeze(1))
    return torch.stack(out, 1)
