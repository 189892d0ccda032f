"""Models of the grid `modern` that read a whole map: a keyword spotter over a spectrogram, and a reader of text."""

from __future__ import annotations

import numpy as np

BANDS = 5  # of frequencies, each with a norm of its own


class Text:
    """A model as a text that grows: nodes, weights and constants, as `Written` of modern.py holds them."""

    def __init__(self) -> None:
        self.nodes: list[str] = []
        self.weights: dict[str, tuple[int, ...]] = {}
        self.numbers: dict[str, object] = {}

    def add(self, op: str, *inputs: str, outputs: int = 1) -> str:
        """A node; returns its output, or the first of several."""
        names = [f"n{len(self.nodes)}" + "_" * k for k in range(outputs)]
        self.nodes.append(f"{', '.join(names)} = {op}({', '.join(inputs)})")
        return names[0]

    def weight(self, *shape: int) -> str:
        self.weights[f"K{len(self.weights)}"] = shape
        return f"K{len(self.weights) - 1}"

    def number(self, value: object) -> str:
        self.numbers[f"c{len(self.numbers)}"] = value
        return f"c{len(self.numbers) - 1}"

    def conv(self, x: str, shape: tuple[int, ...], attrs: str = "", bias: bool = True) -> str:
        more = (self.weight(shape[0]),) if bias else ()
        return self.add(f"Conv<{attrs}>" if attrs else "Conv", x, self.weight(*shape), *more)

    def norm(self, x: str, channels: int) -> str:
        ones = self.number(np.ones(channels, np.float32))
        return self.add("BatchNormalization", x, ones, self.weight(channels), self.weight(channels), ones)


def bcresnet(width: int = 1, classes: int = 12) -> Text:
    """arXiv 2106.04140: x [batch, 1, 40, time] -> y [batch, classes]."""
    t, ins, high = Text(), 16 * width, 20
    x = t.add("Relu", t.conv("x", (ins, 1, 5, 5), "strides = [2, 1], pads = [2, 2, 2, 2]"))
    for stage, (maps, count, stride) in enumerate(((8, 2, 1), (12, 2, 2), (16, 4, 2), (20, 4, 1))):
        outs = maps * width
        for k in range(count):
            y, step = x, stride if k == 0 else 1
            if outs != ins:
                y = t.add("Relu", t.conv(y, (outs, ins, 1, 1)))
            high = (high - 1) // step + 1
            y = t.conv(y, (outs, 1, 3, 1), f"group = {outs}, strides = [{step}, 1], pads = [1, 0, 1, 0]", bias=False)
            y = t.add("Reshape", y, t.number([0, outs * BANDS, high // BANDS, -1]))
            y = t.add("Reshape", t.norm(y, outs * BANDS), t.number([0, outs, high, -1]))
            z = t.add("ReduceMean<axes = [2], keepdims = 1>", y)
            d = 2**stage
            z = t.conv(z, (outs, 1, 1, 3), f"group = {outs}, dilations = [1, {d}], pads = [0, {d}, 0, {d}]")
            z = t.add("Mul", z, t.add("Sigmoid", z))
            y = t.add("Add", y, t.conv(z, (outs, outs, 1, 1), bias=False))
            x = t.add("Relu", y if outs != ins else t.add("Add", y, x))
            ins = outs
    x = t.conv(x, (ins, 1, 5, 5), f"group = {ins}, pads = [0, 2, 0, 2]", bias=False)
    x = t.add("Relu", t.conv(x, (32 * width, ins, 1, 1)))
    x = t.add("ReduceMean<axes = [2, 3], keepdims = 1>", x)
    x = t.conv(x, (classes, 32 * width, 1, 1))
    t.nodes.append(f"y = Flatten<axis = 1>({x})")
    return t


def captcha(hidden: int = 64, classes: int = 37) -> Text:
    """After arXiv 1507.05717: x [batch, 3, 32, time] -> scores y [time / 4, batch, classes], by two convolutions, two
    bidirectional LSTMs and a layer."""
    t, x = Text(), "x"
    for ins, outs in ((3, 16), (16, 32)):
        x = t.add("Relu", t.conv(x, (outs, ins, 3, 3), "pads = [1, 1, 1, 1]"))
        x = t.add("MaxPool<kernel_shape = [2, 2], strides = [2, 2]>", x)
    x = t.add("Reshape", x, t.number([0, 256, -1]))
    x = t.add("Transpose<perm = [2, 0, 1]>", x)
    for ins in (256, 2 * hidden):
        more = (t.weight(2, 4 * hidden, ins), t.weight(2, 4 * hidden, hidden), t.weight(2, 8 * hidden))
        x = t.add(f'LSTM<direction = "bidirectional", hidden_size = {hidden}>', x, *more)
        x = t.add("Transpose<perm = [0, 2, 1, 3]>", x)
        x = t.add("Reshape", x, t.number([0, 0, -1]))
    x = t.add("Add", t.add("MatMul", x, t.weight(2 * hidden, classes)), t.weight(classes))
    t.nodes.append(f"y = LogSoftmax<axis = -1>({x})")
    return t
