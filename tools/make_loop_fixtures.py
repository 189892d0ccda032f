"""Export custom recurrences with both PyTorch exporters into tests/data/loops: Loop, sequences and Scan.

Run by hand with torch 2.13 (CPU), onnx and onnxscript installed; the results are committed. Seeds are fixed; tests
compare with onnxruntime, so there are no goldens.

    python tools/make_loop_fixtures.py
"""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from torch._higher_order_ops.scan import scan

OUT = Path(__file__).resolve().parent.parent / "tests" / "data" / "loops"


class Leaky(torch.nn.Module):
    """A leaky cell of 4 units over 3 inputs; subclasses say how its steps are written."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.W, self.R = torch.nn.Linear(3, 4), torch.nn.Linear(4, 4)


class Appended(Leaky):
    """x [batch, time, 3], h [batch, 4]: steps taken by number, appended to a list, stacked."""

    def forward(self, x, h):
        out = torch.jit.annotate(list[torch.Tensor], [])
        for i in range(x.size(1)):
            h = torch.tanh(self.W(x[:, i, :]) + self.R(h)) * 0.5 + 0.5 * h
            out += [h]
        return torch.stack(out, 1), h


class Unbound(Leaky):
    """x [time, batch, 3]: the sequence is unbound; the last state is returned."""

    def forward(self, x):
        h = torch.zeros(x.size(1), 4)
        for row in x.unbind(0):
            h = torch.tanh(self.W(row) + self.R(h)) + 0.1 * torch.relu(h)
        return h


class Scanned(Leaky):
    """x [time, batch, 3]: torch's own scan."""

    def forward(self, x):
        def step(h, row):
            h = torch.tanh(self.W(row) + self.R(h)) * 0.9
            return h, h.clone()

        h, y = scan(step, torch.zeros(x.shape[1], 4), x, dim=0)
        return y, h


def write(name: str, proto: onnx.ModelProto) -> None:
    """Write a file without the exporter's debug notes, which are most of such a small file."""
    graphs = [proto.graph]
    for graph in graphs:
        for node in graph.node:
            node.ClearField("doc_string")
            node.ClearField("metadata_props")
            graphs += [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
        graph.ClearField("value_info")
        graph.ClearField("metadata_props")
    onnx.save(proto, OUT / f"{name}.onnx")


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    x, h = torch.randn(5, 2, 3), torch.zeros(2, 4)
    scripted = {
        "appended": (Appended(), (x.transpose(0, 1), h), {"x": {0: "B", 1: "T"}, "h": {0: "B"}}),
        "unbound": (Unbound(), (x,), {"x": {0: "T", 1: "B"}}),
    }
    for name, (module, args, axes) in scripted.items():
        path = OUT / f"{name}.onnx"
        torch.onnx.export(
            torch.jit.script(module.eval()), args, str(path), dynamo=False, input_names=list(axes), dynamic_axes=axes,
            opset_version=17,
        )  # fmt: skip
        write(name, onnx.load(path))
    for name, shapes in (("scanned", {"x": {0: "T", 1: "B"}}), ("scanned_frozen", None)):
        write(name, torch.onnx.export(Scanned().eval(), (x,), dynamo=True, dynamic_shapes=shapes).model_proto)


if __name__ == "__main__":
    main()
