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
from torch._higher_order_ops.while_loop import while_loop

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


class Control(Leaky):
    """x [time, batch, 3] -> outputs, for loops whose control flow is the matter."""

    def __init__(self):
        super().__init__()
        self.table, self.pick = torch.nn.Embedding(3, 4), torch.nn.Linear(4, 3)


class Backwards(Control):
    """The steps in reverse order, by a range with a negative step."""

    def forward(self, x):
        h, out = torch.zeros(x.size(1), 4), torch.jit.annotate(list[torch.Tensor], [])
        for t in range(x.size(0) - 1, -1, -1):
            h = torch.tanh(self.W(x[t]) + self.R(h)) * 0.9
            out.append(h)
        return torch.stack(out), h


class DownToZero(Control):
    """The same by a while loop that counts down."""

    def forward(self, x):
        h, t = torch.zeros(x.size(1), 4), x.size(0) - 1
        while t >= 0:
            h = torch.tanh(self.W(x[t]) + self.R(h)) * 0.9
            t -= 1
        return h


class Ids(Control):
    """Integers from step to step: the index that the last step chose, a count by row, and a counter in steps of 2."""

    def forward(self, x):
        h, out = torch.zeros(x.size(1), 4), torch.jit.annotate(list[torch.Tensor], [])
        token, count, k = torch.zeros([x.size(1)], dtype=torch.int64), torch.zeros([x.size(1)], dtype=torch.int64), 1
        for t in range(x.size(0)):
            h = torch.tanh(self.W(x[t]) + self.R(h) + self.table(token)) * (1.0 / k)
            token = self.pick(h).argmax(-1)
            count = count + token * k
            k += 2
            out.append(token)
        return torch.stack(out), h, count


class Ends(Control):
    """A list that is not empty before the loop, and grows at both ends, by two at one of them."""

    def forward(self, x):
        h = torch.zeros(x.size(1), 4)
        out = torch.jit.annotate(list[torch.Tensor], [h])
        for t in range(x.size(0)):
            h = torch.tanh(self.W(x[t]) + self.R(h)) * 0.9
            out.append(h)
            out.append(h * h)
            out.insert(0, -h)
        return torch.stack(out)


class Stops(Control):
    """Ends when a value is large enough, at the latest after all steps."""

    def forward(self, x):
        h, n = torch.zeros(x.size(1), 4), 0
        for t in range(x.size(0)):
            h = torch.tanh(self.W(x[t]) + self.R(h)) * 2
            n += 3
            if bool(h.sum() > 1.5):
                break
        return h, torch.zeros(1) + n


class Settles(Control):
    """At most 20 rounds, until a value is small enough."""

    def forward(self, x):
        h, t, on = self.W(x[0]), 0, True
        while on and t < 20:
            h = torch.tanh(self.R(h))
            t += 1
            on = bool(h.abs().sum() > 2.5)
        return h


class EvenOdd(Control):
    """A branch in each step."""

    def forward(self, x):
        h = torch.zeros(x.size(1), 4)
        for t in range(x.size(0)):
            if t % 2 == 0:
                h = torch.tanh(self.W(x[t]) + self.R(h)) * 0.9
            else:
                h = torch.sigmoid(self.W(x[t]) - self.R(h))
        return h


class Doubling(Control):
    """A condition on a number that only constants decide: five rounds."""

    def forward(self, x):
        h, k = self.W(x[0]), 1
        while k < 20:
            h = torch.tanh(self.R(h)) * (1.0 + k)
            k = k * 2
        return h


class While(Control):
    """torch's own while_loop: at most 20 rounds, until a value is small enough."""

    def forward(self, x):
        def more(i, h):
            return (i < 20) & (h.abs().sum() > 1.0)

        def step(i, h):
            return i + 1, torch.tanh(self.R(h)) * 0.8

        i, h = while_loop(more, step, (torch.tensor(0), self.W(x[0])))
        return h, i


class Chosen(Control):
    """torch's own cond, before its scan."""

    def forward(self, x):
        def step(h, row):
            h = torch.tanh(self.W(row) + self.R(h)) * 0.9
            return h, h.clone()

        x = torch.cond(x.sum() > 0, torch.tanh, torch.sigmoid, (x,))
        h, y = scan(step, torch.zeros(x.shape[1], 4), x, dim=0)
        return y, h


HIGHER_ORDER = {"while": While, "cond": Chosen}
CONTROL = {
    "backwards": Backwards, "down_to_zero": DownToZero, "ids": Ids, "ends": Ends, "stops": Stops, "settles": Settles,
    "even_odd": EvenOdd, "doubling": Doubling,
}  # fmt: skip


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
    for name, module in CONTROL.items():
        path = OUT / f"control_{name}.onnx"
        torch.onnx.export(
            torch.jit.script(module().eval()), (x,), str(path), dynamo=False, input_names=["x"],
            dynamic_axes={"x": {0: "T", 1: "B"}}, opset_version=17,
        )  # fmt: skip
        write(f"control_{name}", onnx.load(path))
    sizes = {"x": {0: torch.export.Dim("T", min=2), 1: torch.export.Dim("B", min=2)}}
    for name, module in HIGHER_ORDER.items():
        made = torch.onnx.export(module().eval(), (x,), dynamo=True, dynamic_shapes=sizes)
        write(f"control_{name}", made.model_proto)
    for name, shapes in (("scanned", {"x": {0: "T", 1: "B"}}), ("scanned_frozen", None)):
        write(name, torch.onnx.export(Scanned().eval(), (x,), dynamo=True, dynamic_shapes=shapes).model_proto)


if __name__ == "__main__":
    main()
