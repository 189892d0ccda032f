"""An encoder as a file of one of PyTorch's exporters, and its chunks."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from inspect import signature

import onnx
import torch
from programs.exports import quiet
from torch import Tensor, nn


@dataclass(frozen=True)
class Encoder:
    """A streaming encoder and what its exporter says of it.

    inputs : name -> an example. The first is the chunk of features; those of `states` are what a stream begins with.
    outputs : names, the answer first. states : input -> output.
    axes : name -> {axis: name of its size}, those that the exporter leaves open.
    batch : what the exporter calls the sizes that are the batch; empty if the file is for one row.
    chunk, shift : frames of a call, and frames from one call to the next.
    others : call -> the other inputs that are no states, of one row. sizes : what the file is loaded with.
    """

    name: str
    module: nn.Module
    inputs: Mapping[str, Tensor]
    outputs: tuple[str, ...]
    states: Mapping[str, str]
    axes: Mapping[str, Mapping[int, str]]
    chunk: int
    shift: int
    batch: frozenset[str] = frozenset()
    opset: int = 13
    metadata: Mapping[str, str] = field(default_factory=dict)
    others: Callable[[int], Mapping] = lambda call: {}
    sizes: Mapping[str, int] = field(default_factory=dict)

    @property
    def data(self) -> tuple[str, ...]:
        """The inputs that are no states."""
        return tuple(name for name in self.inputs if name not in self.states)

    @property
    def results(self) -> tuple[str, ...]:
        """The outputs that are no states."""
        return tuple(name for name in self.outputs if name not in self.states.values())

    def batch_of(self, name: str) -> int | None:
        """The batch axis of an input or output; None if it has none."""
        return next((axis for axis, size in self.axes.get(name, {}).items() if size in self.batch), None)


def seeded(make) -> nn.Module:
    """A module with weights that are the same in every process; all of them random, also those that start at 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(19)
        module = make().eval()
        for parameter in module.parameters():
            if not parameter.detach().abs().max() > 0:
                nn.init.normal_(parameter, std=0.2)
    return module


def exported(encoder: Encoder, exporter: str = "script") -> bytes:
    """The bytes of its file. exporter: "script" or "dynamo"."""
    names = {"input_names": list(encoder.inputs), "output_names": list(encoder.outputs)}
    args = tuple(encoder.inputs.values())
    with quiet(), torch.no_grad():
        if exporter == "dynamo":
            sizes = encoder.sizes
            auto = [
                {k: torch.export.Dim.AUTO for k, d in axes.items() if d not in sizes and f"{n}[{k}]" not in sizes}
                for n, axes in ((n, encoder.axes.get(n, {})) for n in encoder.inputs)
            ]
            named = [p for p in signature(encoder.module.forward).parameters.values() if p.kind != p.VAR_POSITIONAL]
            shapes = (*auto[: len(named)], *([tuple(auto[len(named) :])] if len(auto) > len(named) else []))
            made = torch.onnx.export(encoder.module, args, dynamo=True, dynamic_shapes=shapes, verbose=False, **names)
            model = made.model_proto
        else:
            out = io.BytesIO()
            axes = {name: dict(open_axes) for name, open_axes in encoder.axes.items()}
            torch.onnx.export(
                encoder.module, args, out, dynamo=False, opset_version=encoder.opset, dynamic_axes=axes, **names
            )
            model = onnx.load_from_string(out.getvalue())
    for key, value in encoder.metadata.items():
        model.metadata_props.add(key=key, value=value)
    return model.SerializeToString()
