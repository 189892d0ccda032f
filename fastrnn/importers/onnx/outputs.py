"""The outputs of a file: values under their declared names, with the declared sizes."""

from __future__ import annotations

import onnx

from ...errors import ModelFormatError
from ..shared.ledger import Finding
from .build import GraphDraft
from .reading.values import UNKNOWN, Items, Live
from .sizes.symbols import Learned


def place_outputs(ctx: GraphDraft, graph: onnx.GraphProto, known: dict, inputs: set, problems: list[str]) -> list[str]:
    """The names of the outputs. Each becomes a value of that name; a finding is appended to `problems`."""
    names: list[str] = []
    for info in graph.output:
        if info.name in names:
            raise ModelFormatError(
                f"output {info.name!r} is declared twice. PyTorch's older exporter writes this if a module returns one "
                "tensor twice: name the outputs (output_names= of torch.onnx.export)"
            )
        names.append(info.name)
        value = ctx.current(known.get(info.name))
        ctx.label = f"output {info.name}"
        if value is UNKNOWN:
            continue
        try:
            if isinstance(value, Items):
                raise Finding("it is a sequence; outputs must be tensors")
            _declared(ctx, info, value)
            ctx.table.ledger.output(info.name, value)
            if not isinstance(value, Live) or value.name != info.name:
                _place(ctx, ctx.live(value), info.name, inputs)
        except Learned:
            ctx.refresh()
        except Finding as finding:
            problems.append(f"output {info.name}: {finding}")
    return names


def _place(ctx: GraphDraft, value: Live, name: str, inputs: set) -> None:
    """Give `value` the output's name: rename a constant, else add a reshape to its own dims."""
    if name in inputs:
        raise ModelFormatError(f"{name!r} is an input and an output")
    since = len(ctx.nodes)
    same = ctx.one("reshape", value, dims=value.dims)
    ctx.rename(same, name, since)


def _declared(ctx: GraphDraft, info: onnx.ValueInfoProto, value) -> None:
    """Compare the dims with the numbers that the file declares; if they differ, thawed sizes freeze."""
    kind = info.type.tensor_type
    if info.type.WhichOneof("value") != "tensor_type" or not kind.HasField("shape"):
        return
    if len(kind.shape.dim) != len(value.dims):
        return  # exporters leave stale output shapes behind; onnxruntime also only warns
    for d, declared in zip(value.dims, kind.shape.dim, strict=True):
        number = declared.dim_value if declared.HasField("dim_value") else 0
        if number > 0 and not isinstance(d, int) and ctx.table.genuine(d) and ctx.table.example(d) != number:
            ctx.table.freeze([d], f"output {info.name!r} is declared {number} long")
