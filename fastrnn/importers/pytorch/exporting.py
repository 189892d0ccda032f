"""A live module, written down by torch's ONNX exporters: first with free sizes, then with those of the example."""

from __future__ import annotations

import io
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import torch
from torch import nn

from . import lookups, nesting
from .through_torch import quiet

_OPSET = 17  # of the older exporter
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class _Flat(nn.Module):
    """A module as the exporters take it: tensors in, tensors out. It copies what it is given, so that the module may
    write into it."""

    def __init__(self, module: nn.Module, form: nesting.Arguments):
        super().__init__()
        self.module, self.form = module, form

    def forward(self, *tensors):
        given = self.form.filled(iter([tensor.clone() for tensor in tensors]))
        return tuple(nesting.tensors_in(nesting.call(self.module, given)))


def ways(module: nn.Module) -> list[tuple[str, bool, bool]]:
    """(what it is called, whether by the newer exporter, whether sizes are free), in the order to try them."""
    script = isinstance(module, torch.jit.ScriptModule)  # which the newer exporter does not take
    newer = [] if script else [("with dynamic shapes", True, True), ("at the example's sizes", True, False)]
    return [*newer, ("the older exporter", False, False)]


def export(module: nn.Module, given: nesting.Arguments, newer: bool, free: bool) -> onnx.ModelProto:
    """The module as ONNX, whose inputs and outputs have fastrnn's names. Raises whatever torch does."""
    flat = _Flat(module, given.form())
    named = given.tensors()
    tensors = tuple(tensor.clone() for _, tensor in named)
    with torch.no_grad(), quiet(), unheard():
        if newer:
            proto = _newer(flat, tensors, free)
        elif isinstance(module, torch.jit.ScriptModule):  # which can't be called by a module that is traced
            proto = _older(module, tuple(value for _, value in given.copied().items()), len(tensors))
        else:
            proto = _older(flat, tensors, len(tensors))
        names = nesting.result_names(nesting.call(module, given.copied()), [name for name, _ in named])
    if len(proto.graph.input) != len(named):
        missing = len(named) - len(proto.graph.input)
        raise ValueError(f"{missing} of {len(named)} inputs are not in its file")
    _rename(proto, [name for name, _ in named], names)
    return proto


def _newer(flat: nn.Module, tensors: tuple, free: bool) -> onnx.ModelProto:
    shapes = None
    if free:
        auto = torch.export.Dim.AUTO
        shapes = (tuple(dict.fromkeys(range(tensor.ndim), auto) for tensor in tensors),)
    program = torch.onnx.export(
        flat, tensors, None, dynamo=True, verbose=False, dynamic_shapes=shapes,
        custom_translation_table=lookups.translations(),
    )  # fmt: skip
    return program.model_proto


def _older(module: nn.Module, args: tuple, count: int) -> onnx.ModelProto:
    """count: the tensors among the arguments."""
    file = io.BytesIO()
    inputs = [f"argument.{k}" for k in range(count)]
    with lookups.older_form(opset=_OPSET):
        torch.onnx.export(
            module, args, file, dynamo=False, opset_version=_OPSET, custom_opsets={lookups.DOMAIN: 1},
            input_names=inputs,
        )  # fmt: skip
    return onnx.load_from_string(file.getvalue())


def told(error: Exception) -> str:
    """What an exporter says, in one line: the first cause, without colours."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    lines = [line.strip() for line in _COLOURS.sub("", str(error)).splitlines() if line.strip()]
    return f"{type(error).__name__}: {(lines or [''])[0]:.160}"


# -- names --


def _rename(proto: onnx.ModelProto, inputs: list[str], outputs: list[str]) -> None:
    """Give the graph's inputs and outputs these names. Other values that have one of them get another."""
    graph = proto.graph
    held = {info.name for info in graph.initializer}
    true = [info for info in graph.input if info.name not in held]
    new = dict(zip([info.name for info in true], inputs, strict=True))
    wanted = {*inputs, *outputs}
    for name in _names(graph):
        if name in wanted and name not in new:
            new[name] = f"{name}:inner"
    _apply(graph, new)
    for info, name in zip(graph.output, outputs, strict=True):
        graph.node.append(onnx.helper.make_node("Identity", [info.name], [name], f"output.{name}"))
        info.name = name


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _graphs(inner)


def _names(graph: onnx.GraphProto) -> set[str]:
    found: set[str] = set()
    for part in _graphs(graph):
        found |= {v.name for v in (*part.input, *part.output, *part.initializer)}
        found |= {name for node in part.node for name in node.output}
    return found


def _apply(graph: onnx.GraphProto, new: dict[str, str]) -> None:
    for part in _graphs(graph):
        for named in (*part.input, *part.output, *part.initializer, *part.value_info):
            named.name = new.get(named.name, named.name)
        for node in part.node:
            for names in (node.input, node.output):
                names[:] = [new.get(name, name) for name in names]


# -- noise --

_LOCK = threading.Lock()


@contextmanager
def unheard() -> Iterator[None]:
    """Discard what is written to standard output and error, by C++ too: the exporters print graphs and warnings.

    Other threads' output is discarded as well while it runs.
    """
    with _LOCK:
        kept = []
        try:
            for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
                if stream is not None:
                    stream.flush()
                try:
                    copy = os.dup(number)
                except OSError:  # closed
                    continue
                kept.append((stream, number, copy))
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, number)
                os.close(nowhere)
            with _no_streams():
                yield
        finally:
            for _, number, copy in kept:
                os.dup2(copy, number)
                os.close(copy)


@contextmanager
def _no_streams() -> Iterator[None]:
    out, error = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
    try:
        yield
    finally:
        sys.stdout, sys.stderr = out, error
