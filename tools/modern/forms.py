"""The forms of a cell, each as a file of one of PyTorch's exporters."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator

import numpy as np
import torch
from programs.exports import quiet
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan

from .registry import Listed

OPSET = 17
T, B = 6, 2  # the sizes at which files are exported


class Loop(nn.Module):
    """A cell in a Python loop over x [B, T, ..]; one class per number of states, because TorchScript reads them."""

    def __init__(self, cell: nn.Module):
        super().__init__()
        self.cell, self.sizes = cell, [list(shape) for shape in cell.shapes]


class Loop1(Loop):
    def forward(self, x: Tensor) -> Tensor:
        a = torch.zeros([x.size(0)] + self.sizes[0])
        out: list[Tensor] = []
        for t in range(x.size(1)):
            y, a = self.cell(x[:, t], a)
            out.append(y)
        return torch.stack(out, 1)


class Loop2(Loop):
    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.zeros([x.size(0)] + self.sizes[0]), torch.zeros([x.size(0)] + self.sizes[1])
        out: list[Tensor] = []
        for t in range(x.size(1)):
            y, a, b = self.cell(x[:, t], a, b)
            out.append(y)
        return torch.stack(out, 1)


class Loop3(Loop):
    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.zeros([x.size(0)] + self.sizes[0]), torch.zeros([x.size(0)] + self.sizes[1])
        c = torch.zeros([x.size(0)] + self.sizes[2])
        out: list[Tensor] = []
        for t in range(x.size(1)):
            y, a, b, c = self.cell(x[:, t], a, b, c)
            out.append(y)
        return torch.stack(out, 1)


class Loop4(Loop):
    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.zeros([x.size(0)] + self.sizes[0]), torch.zeros([x.size(0)] + self.sizes[1])
        c, d = torch.zeros([x.size(0)] + self.sizes[2]), torch.zeros([x.size(0)] + self.sizes[3])
        out: list[Tensor] = []
        for t in range(x.size(1)):
            y, a, b, c, d = self.cell(x[:, t], a, b, c, d)
            out.append(y)
        return torch.stack(out, 1)


class Scanned(Loop):
    """torch's own scan over x [B, T, ..]."""

    def forward(self, x):
        def step(carry, row):
            y, *new = self.cell(row, *carry)
            return tuple(n.clone() for n in new), y.clone()

        start = tuple(torch.zeros(x.shape[0], *size) for size in self.sizes)
        return scan(step, start, x.transpose(0, 1), dim=0)[1].transpose(0, 1)


class Parallel(nn.Module):
    """The form of a cell that works on all steps at once."""

    def __init__(self, cell: nn.Module, name: str):
        super().__init__()
        self.cell, self.name = cell, name

    def forward(self, x):
        return getattr(self.cell, self.name)(x)


def fresh(listed: Listed) -> nn.Module:
    """The cell with weights drawn from a seed made of its name."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(zlib.crc32(listed.name.encode()))
        return listed.make().eval()


def forms_of(listed: Listed) -> Iterator[tuple[str, str, nn.Module]]:
    """(form, exporter, module) of every file that is made of a cell."""
    cell = fresh(listed)
    for exporter in ("script", "dynamo"):
        yield "step", exporter, cell
    yield "loop", "script", (Loop1, Loop2, Loop3, Loop4)[len(cell.shapes) - 1](cell)
    yield "scan", "dynamo", Scanned(cell)
    for name in sorted(n for n in dir(cell) if n.startswith("parallel")):
        for exporter in ("script", "dynamo"):
            yield name, exporter, Parallel(cell, name)


def exported(listed: Listed, form: str, exporter: str, module: nn.Module) -> bytes:
    """The bytes of the file. Raises whatever the exporter raises."""
    cell, is_step = fresh(listed), form == "step"
    x = torch.randn(B, *(() if is_step else (T,)), *listed.features)
    states = tuple(torch.zeros(B, *s) for s in cell.shapes) if is_step else ()
    inputs = ["x", *(f"s{k}" for k in range(len(states)))]
    outputs = ["y", *(f"s{k}_next" for k in range(len(states)))]
    free = {0: "batch"} if is_step or "fixed" in form else {0: "batch", 1: "time"}
    axes = {"x": free, **{n: {0: "batch"} for n in inputs[1:]}}
    names = {"input_names": inputs, "output_names": outputs}
    with quiet(), torch.no_grad():
        if exporter == "dynamo":
            shapes = tuple(dict.fromkeys(axes[n], torch.export.Dim.AUTO) for n in inputs)
            args = (x, *states)
            made = torch.onnx.export(module, args, dynamo=True, dynamic_shapes=shapes, verbose=False, **names)
            return made.model_proto.SerializeToString()
        out = io.BytesIO()
        given = torch.jit.script(module) if form == "loop" else module
        torch.onnx.export(given, (x, *states), out, dynamo=False, opset_version=OPSET, dynamic_axes=axes, **names)
        return out.getvalue()


def truth(cell: nn.Module, x: np.ndarray) -> np.ndarray:
    """The cell in float64 over x [B, T, ..]."""
    cell, wide = cell.double(), torch.from_numpy(x.astype(np.float64))
    carry = [torch.zeros(len(x), *s, dtype=torch.float64) for s in cell.shapes]
    out = []
    with torch.no_grad():
        torch.set_default_dtype(torch.float64)  # cells make constants of their own
        try:
            for t in range(x.shape[1]):
                y, *carry = cell(wide[:, t], *carry)
                out.append(y.numpy())
        finally:
            torch.set_default_dtype(torch.float32)
    return np.stack(out, 1)
