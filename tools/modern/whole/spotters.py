"""Keyword spotters over whole spectrograms."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class SubSpectralNorm(nn.Module):
    """A batch norm for each band of frequencies (arXiv 2103.13620)."""

    def __init__(self, channels: int, bands: int):
        super().__init__()
        self.bands, self.norm = bands, nn.BatchNorm2d(channels * bands)

    def forward(self, x: Tensor) -> Tensor:
        B, C, L, T = x.shape
        return self.norm(x.reshape(B, C * self.bands, L // self.bands, T)).reshape(B, C, L, T)


class Block(nn.Module):
    """f2, over frequencies, and f1, over time on the mean of all frequencies, which is broadcast back to them."""

    def __init__(self, ins: int, outs: int, stride: int, dilation: int, bands: int):
        super().__init__()
        self.same = ins == outs
        first = [] if self.same else [nn.Conv2d(ins, outs, 1, bias=False), nn.BatchNorm2d(outs), nn.ReLU()]
        deep = nn.Conv2d(outs, outs, (3, 1), (stride, 1), (1, 0), groups=outs, bias=False)
        self.f2 = nn.Sequential(*first, deep, SubSpectralNorm(outs, bands))
        along = nn.Conv2d(outs, outs, (1, 3), padding=(0, dilation), dilation=(1, dilation), groups=outs, bias=False)
        self.f1 = nn.Sequential(along, nn.BatchNorm2d(outs), nn.SiLU(), nn.Conv2d(outs, outs, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        y = self.f2(x)
        out = y + self.f1(y.mean(2, keepdim=True))
        return F.relu(out + x if self.same else out)


class BCResNet(nn.Module):
    """arXiv 2106.04140: x [B, 1, 40, T] -> [B, classes]. width: 1 for BC-ResNet-1, to 8 for BC-ResNet-8."""

    def __init__(self, width: int = 1, classes: int = 12, bands: int = 5):
        super().__init__()
        maps, counts, strides = [8 * width, 12 * width, 16 * width, 20 * width], (2, 2, 4, 4), (1, 2, 2, 1)
        ins = 16 * width
        self.stem = nn.Sequential(nn.Conv2d(1, ins, 5, (2, 1), 2, bias=False), nn.BatchNorm2d(ins), nn.ReLU())
        blocks = []
        for stage, (outs, count, stride) in enumerate(zip(maps, counts, strides, strict=True)):
            for k in range(count):
                blocks.append(Block(ins, outs, stride if k == 0 else 1, 2**stage, bands))
                ins = outs
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(
            nn.Conv2d(ins, ins, 5, padding=(0, 2), groups=ins, bias=False),
            nn.Conv2d(ins, 32 * width, 1, bias=False),
            nn.BatchNorm2d(32 * width),
            nn.ReLU(),
        )
        self.answer = nn.Conv2d(32 * width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.blocks(self.stem(x)))
        return self.answer(y.mean((2, 3), keepdim=True)).flatten(1)
