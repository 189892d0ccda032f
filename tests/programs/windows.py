"""Convolutions, pads, pools and resampling along time."""

import torch
from torch import nn
from torch.nn import functional as F

from .registry import gru, linear, lstm, noise, program


def conv(i=5, o=6, k=3, **more):
    return lambda: nn.Conv1d(i, o, k, **more)


@program("x: B 5 T", conv=conv(padding=1), rnn=lstm(6, 6))
def conv_same_then_lstm(net, x):
    return net.rnn(net.conv(x).transpose(1, 2))[0]


@program("x: B T 5", conv=conv(), rnn=gru(6, 6))
def conv_causal_then_gru(net, x):
    return net.rnn(net.conv(F.pad(x.transpose(1, 2), (2, 0))).transpose(1, 2))[0]


@program("x: B T 5", T=12, least=5, conv=conv(), rnn=gru(6, 6))
def conv_valid_then_gru(net, x):
    return net.rnn(net.conv(x.transpose(1, 2)).transpose(1, 2))[0]


@program("x: B 5 T", T=16, conv=conv(k=4, stride=2, padding=1), rnn=lstm(6, 6))
def conv_strided_then_lstm(net, x):
    return net.rnn(net.conv(x).transpose(1, 2))[0]


@program("x: B 5 T", T=19, conv=conv(k=3, stride=2))
def conv_strided_alone(net, x):
    return torch.relu(net.conv(x))


@program("x: B 5 T", T=16, conv=conv(dilation=2, padding=2), b=conv(6, 6, dilation=4, padding=4))
def conv_dilated(net, x):
    return net.b(torch.relu(net.conv(x)))


@program("x: B 5 T", T=12, up=lambda: nn.ConvTranspose1d(5, 6, 4, stride=2, padding=1))
def conv_transposed(net, x):
    return net.up(x)


@program(
    "x: B 5 T",
    T=8,
    down=conv(k=4, stride=2, padding=1),
    up=lambda: nn.ConvTranspose1d(6, 5, 4, stride=2, padding=1),
    multiple=2,
)
def down_and_up_again(net, x):
    return x + net.up(torch.relu(net.down(x)))


@program(
    "x: B 5 T", T=20, down=conv(k=4, stride=2, padding=1), up=lambda: nn.ConvTranspose1d(6, 5, 4, stride=2, padding=1)
)
def down_and_up_cut_to_length(net, x):
    return net.up(torch.relu(net.down(x)))[..., : x.shape[-1]]


@program("x: B 5 T", T=16, multiple=4, a=conv(5, 4, padding=1), b=conv(4, 4, padding=1), c=conv(8, 5, padding=1))
def small_unet(net, x):
    a = torch.relu(net.a(x))
    b = torch.relu(net.b(F.max_pool1d(a, 2)))
    return net.c(torch.cat([a, F.interpolate(b, scale_factor=2, mode="nearest")], 1))


@program("x: B 5 T", T=19, a=conv(5, 4, padding=1), b=conv(4, 4, padding=1), c=conv(8, 5, padding=1))
def unet_sized_by_its_skip(net, x):
    a = torch.relu(net.a(x))
    b = torch.relu(net.b(F.max_pool1d(a, 2)))
    return net.c(torch.cat([a, F.interpolate(b, size=a.shape[-1], mode="nearest")], 1))


@program("x: B 5 T", T=12)
def interpolated_by_two(net, x):
    return F.interpolate(x, scale_factor=2, mode="linear", align_corners=False)


@program("x: B 5 T", T=12)
def interpolated_to_24(net, x):
    return F.interpolate(x, size=24, mode="linear", align_corners=False)


@program("x: B 5 T", T=12)
def interpolated_to_ten(net, x):
    return F.interpolate(x, size=10, mode="nearest")


@program("x: B 5 T", T=12)
def interpolated_by_length(net, x):
    return F.interpolate(x[..., ::2], size=x.shape[-1], mode="linear", align_corners=True)


@program("x: B 5 T", T=12, rnn=lstm())
def max_pooled(net, x):
    return net.rnn(F.max_pool1d(x, 2).transpose(1, 2))[0]


@program("x: B 5 T", T=16, rnn=lstm())
def average_pooled(net, x):
    return net.rnn(F.avg_pool1d(x, 4, 2).transpose(1, 2))[0]


@program("x: B 5 T", T=16)
def average_pooled_over_all(net, x):
    return F.avg_pool1d(x, x.shape[-1]).squeeze(-1)


@program("x: B 5 T", T=16)
def max_pooled_over_sixteen(net, x):
    return F.max_pool1d(x, 16)


@program("x: B 5 T", T=19)
def pooled_with_ceil(net, x):
    return F.max_pool1d(x, 2, ceil_mode=True)


@program("x: B 5 T", T=8, least=3)
def padded_by_reflection(net, x):
    return F.pad(x, (2, 1), mode="reflect")


@program("x: B 5 T", T=8)
def padded_by_edge(net, x):
    return F.pad(x, (2, 3), mode="replicate")


@program("x: B 5 T", T=8)
def padded_in_circle(net, x):
    return F.pad(x, (1, 1), mode="circular")


@program("x: B 5 T", T=12)
def padded_by_negative(net, x):
    return F.pad(x, (-1, -2))


@program(
    "x: B 5 T",
    T=12,
    conv=conv(k=4, stride=4),
    rnn=lstm(6, 6),
    twin=lambda net, x: net.rnn(net.conv(x).transpose(1, 2))[0],
)
def padded_to_the_stride(net, x):
    return net.rnn(net.conv(F.pad(x, (0, (4 - x.shape[-1] % 4) % 4))).transpose(1, 2))[0]


@program("x: B 5 T", T=12, conv=conv(k=3))
def padded_by_half_the_length(net, x):
    return net.conv(F.pad(x, (x.shape[-1] // 2, 0)))


@program("x: B 5 T", T=8, w=lambda T: nn.Conv1d(5, 6, T))
def conv_as_long_as_the_input(net, x):
    return net.w(x).squeeze(-1)


@program("x: B 5 T", T=8, w=lambda T: nn.Conv1d(5, 5, 2 * T - 1, padding=T - 1, groups=5))
def conv_over_everything(net, x):
    return net.w(x)


@program("x: B 5 T", T=12, deep=lambda: nn.Conv1d(5, 5, 3, padding=1, groups=5), point=conv(k=1))
def conv_depthwise(net, x):
    return net.point(torch.relu(net.deep(x)))


@program("x: B T 8", T=12, conv=lambda: nn.Conv2d(1, 3, 3, padding=1), rnn=lstm(24, 6))
def conv_over_time_and_bands(net, x):
    y = torch.relu(net.conv(x.unsqueeze(1)))
    return net.rnn(y.permute(0, 2, 1, 3).flatten(2))[0]


@program("x: B T 8", T=16, conv=lambda: nn.Conv2d(1, 3, 3, stride=2, padding=1), rnn=lstm(12, 6))
def conv_over_time_and_bands_strided(net, x):
    y = torch.relu(net.conv(x.unsqueeze(1)))
    b, c, t, f = y.shape
    return net.rnn(y.permute(0, 2, 1, 3).reshape(b, t, c * f))[0]


@program("x: B T", T=24, conv=conv(1, 6, 5, padding=2), rnn=gru(6, 6))
def signal_through_conv_and_gru(net, x):
    return net.rnn(net.conv(x.unsqueeze(1)).transpose(1, 2))[0][:, -1]


@program("x: B T", T=64, bank=lambda: nn.Conv1d(1, 6, 8, stride=4, bias=False), mel=noise(6, 4))
def mel_like_front_end(net, x):
    power = net.bank(x.unsqueeze(1)).pow(2).transpose(1, 2)
    return torch.log(power @ net.mel.abs() + 1e-5)


@program("x: B T", T=64, window=lambda: torch.hann_window(8), basis=noise(8, 6), rnn=gru(6, 5))
def framed_windowed_projected(net, x):
    frames = x.unfold(1, 8, 4) * net.window
    return net.rnn((frames @ net.basis).abs())[0]


@program("x: B T", T=24)
def preemphasis(net, x):
    return torch.cat([x[:, :1], x[:, 1:] - 0.97 * x[:, :-1]], 1)


@program("x: B T 5", T=12)
def deltas_padded(net, x):
    p = F.pad(x.transpose(1, 2), (1, 1), mode="replicate").transpose(1, 2)
    return torch.cat([x, (p[:, 2:] - p[:, :-2]) / 2], -1)


@program("x: B T 5", T=12)
def context_stacked(net, x):
    p = F.pad(x, (0, 0, 1, 1))
    return torch.cat([p[:, :-2], p[:, 1:-1], p[:, 2:]], -1)


@program("x: B T 5", T=12)
def context_stacked_by_length(net, x):
    T, p = x.shape[1], F.pad(x, (0, 0, 1, 1))
    return torch.cat([p[:, k : k + T] for k in range(3)], -1)


@program("x: B T 4", T=12, out=linear(4, 6))
def pixels_shuffled_in_time(net, x):
    y = net.out(x)
    return y.view(x.shape[0], x.shape[1] * 2, 3)


@program("x: B T 4", T=12)
def shuffled_by_permute(net, x):
    B, T, _ = x.shape
    return x.view(B, T, 2, 2).permute(0, 1, 3, 2).reshape(B, T * 2, 2)


@program("x: B T 4", T=12, multiple=4)
def blocks_of_four(net, x):
    B, T, N = x.shape
    return x.view(B, T // 4, 4, N).mean(2)


@program("x: B T 4", T=12, multiple=4)
def four_blocks(net, x):
    B, T, N = x.shape
    return x.view(B, 4, T // 4, N).mean(2)


@program("x: B T 4", T=12, multiple=4)
def blocks_of_four_softmax(net, x):
    B, T, N = x.shape
    return x.reshape(B, T // 4, 4, N).softmax(2).reshape(B, T, N)


@program("x: B T 4", T=12, multiple=3)
def blocks_turned(net, x):
    B, T, N = x.shape
    return x.reshape(B, T // 3, 3, N).transpose(1, 2).reshape(B, T, N)


@program("x: B T", T=24, multiple=4, rnn=lstm(4, 6))
def samples_to_frames(net, x):
    return net.rnn(x.view(x.shape[0], -1, 4))[0]


@program("x: B T", T=24, multiple=6, rnn=lstm(4, 6))
def samples_to_six_frames(net, x):
    return net.rnn(x.view(x.shape[0], 6, -1)[..., :4])[0]


@program("x: B T", T=16, multiple=8, rnn=lstm(8, 6), out=linear(6, 8))
def frames_overlapped_and_added(net, x):
    frames = net.out(net.rnn(x.view(x.shape[0], -1, 8))[0])
    a = frames.reshape(x.shape[0], -1)
    return a + F.pad(a, (4, 0))[:, : a.shape[1]]


@program("x: B 5 T", T=12, a=conv(k=1), b=conv(6, 6, 3, padding=2, dilation=2), skip=conv(6, 6, 1))
def gated_dilated_block(net, x):
    y = net.a(x)
    return y + net.skip(torch.tanh(net.b(y)) * torch.sigmoid(net.b(y)))


@program("x: B 5 T", T=12, one=conv(padding=2), two=conv(6, 6, 3, padding=4, dilation=2), res=conv(k=1))
def tcn_with_chomp(net, x):
    y = torch.relu(net.one(x)[..., :-2])
    y = torch.relu(net.two(y)[..., :-4])
    return torch.relu(y + net.res(x))


@program("x: B 5 T", T=12, one=conv(padding=2))
def chomped_by_length(net, x):
    return net.one(x)[..., : x.shape[-1]]
