"""Readers of text in pictures: a convolutional stack, two bidirectional LSTMs, and a head."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Stack(nn.Module):
    """The convolutions of arXiv 1507.05717: x [B, colours, 32, L] -> [L / 4 + 1, B, 512]."""

    def __init__(self, colours: int = 1):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(colours, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, 2),
            nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2, 2),
            nn.Conv2d(128, 256, 3, padding=1), nn.BatchNorm2d(256), nn.ReLU(),
            nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(), nn.MaxPool2d((2, 2), (2, 1), (0, 1)),
            nn.Conv2d(256, 512, 3, padding=1), nn.BatchNorm2d(512), nn.ReLU(),
            nn.Conv2d(512, 512, 3, padding=1), nn.ReLU(), nn.MaxPool2d((2, 2), (2, 1), (0, 1)),
            nn.Conv2d(512, 512, 2), nn.BatchNorm2d(512), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).squeeze(2).permute(2, 0, 1)


class SmallStack(nn.Module):
    """A stack for captchas: x [B, colours, 32, L] -> [L / 4, B, 32 * 8]."""

    def __init__(self, colours: int = 3):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(colours, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).flatten(1, 2).permute(2, 0, 1)


class CRNN(nn.Module):
    """A stack, two bidirectional LSTMs, and the scores of a CTC loss: [steps, B, classes]."""

    def __init__(self, stack: nn.Module, features: int, hidden: int, classes: int = 37):
        super().__init__()
        self.stack = stack
        self.lstm = nn.LSTM(features, hidden, num_layers=2, bidirectional=True)
        self.head = nn.Linear(2 * hidden, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.stack(x))[0]).log_softmax(-1)


class Captioned(nn.Module):
    """A stack, two bidirectional LSTMs, and as many characters as `positions`, each by attention over all steps with a
    query of its own: [B, positions, classes]."""

    def __init__(self, stack: nn.Module, features: int, hidden: int, positions: int = 6, classes: int = 37):
        super().__init__()
        self.stack = stack
        self.lstm = nn.LSTM(features, hidden, num_layers=2, bidirectional=True)
        self.keys, self.head = nn.Linear(2 * hidden, hidden), nn.Linear(2 * hidden, classes)
        self.queries = nn.Parameter(torch.randn(positions, hidden) * hidden**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        seen = self.lstm(self.stack(x))[0].transpose(0, 1)
        weights = (self.queries @ torch.tanh(self.keys(seen)).transpose(1, 2)).softmax(-1)
        return self.head(weights @ seen)
