"""The same model with its layers in other number formats."""

from __future__ import annotations

from dataclasses import replace

from ..errors import UnsupportedError
from ..graph import Graph, validate
from ..graph.precision import SCALES, meant_by
from ..model import Model
from ..passes import precision_of, set_precision
from ..passes.dead import remove_dead_nodes
from ..passes.patch import Patch


def in_precision(model: Model, precision: str) -> tuple[Model, dict[str, str]]:
    """(The model with every float32 layer in a format that can have it, layer -> why it can't). Others stay as they
    are, and so does the model if no layer can."""
    layers = [name for name, own in precision_of(model.graph).items() if own == "float32"]
    why: dict[str, str] = {}
    try:
        return _made(model, layers, precision), why
    except UnsupportedError:  # of one of them: ask for each
        why = {name: text for name in layers if (text := _refusal(model, name, precision))}
        return _made(model, [name for name in layers if name not in why], precision), why


def _made(model: Model, layers: list[str], precision: str) -> Model:
    wanted = dict.fromkeys(layers, precision)
    return Model(set_precision(model.graph, wanted), model.threads) if wanted else model


def _refusal(model: Model, layer: str, precision: str) -> str | None:
    """Why a layer can't have a format."""
    try:
        set_precision(model.graph, {layer: precision})
    except UnsupportedError as error:
        return str(error)
    return None


def widened(graph: Graph) -> Graph:
    """The graph with all weights in float32: those that the formats hold. Products then round nothing."""
    patch = Patch(graph)
    for node in graph.nodes:
        precision = node.attrs.get("precision", "float32")
        if precision == "float32":
            continue
        inputs = list(node.inputs)
        for at, scale_at in SCALES[node.op].items():
            scale = graph.constants.get(str(inputs[scale_at])) if scale_at < len(inputs) else None
            W = meant_by(node.op, graph.constants[str(inputs[at])], precision, scale, node.attrs.get("groups", 1))
            inputs[at] = patch.constant(f"{inputs[at]}.float32", W)
        last = min(SCALES[node.op].values())
        patch.replace(node, replace(node, inputs=tuple(inputs[:last]), attrs={**node.attrs, "precision": "float32"}))
    return validate(remove_dead_nodes(patch.done())) if patch.instead else graph
