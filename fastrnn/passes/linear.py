"""Turns products with constant weights into `linear`, with their bias and activation."""

from __future__ import annotations

from ..graph import Graph, Node
from .patch import Patch

# Activations of a linear node: functions of one argument that the product's epilogue can apply.
_FUSABLE = frozenset(
    "tanh sigmoid relu leaky_relu hard_sigmoid elu selu softsign softplus gelu gelu_tanh silu clip".split()
)


def fuse_linear(graph: Graph) -> Graph:
    """Fuse a matmul by a constant [K, N], plus a constant [N], then an activation into one `linear` node.

    Only if the values in between have no other reader and are not outputs.
    """
    readers, outputs, patch = graph.consumers(), set(graph.outputs), Patch(graph)

    def only_reader(name: str) -> Node | None:
        found = readers.get(name, [])
        return found[0] if len(found) == 1 and name not in outputs else None

    fused = 0
    for node in graph.nodes:
        if node.op != "matmul" or not _weight(graph, node.inputs[1]) or not graph.values[node.inputs[0]].dims:
            continue
        inputs, last, attrs = list(node.inputs), node, {"activation": None, "alpha": 0.0, "beta": 0.0}
        after = only_reader(last.outputs[0])
        bias = _bias(graph, after, last.outputs[0]) if after is not None else None
        if bias is not None:
            inputs.append(_flat(patch, bias))
            patch.replace(last)
            last = after
            after = only_reader(last.outputs[0])
        if after is not None and after.op == "unary" and after.attrs["fn"] in _FUSABLE:
            attrs = {"activation": after.attrs["fn"], "alpha": after.attrs["alpha"], "beta": after.attrs["beta"]}
            patch.replace(last)
            last = after
        patch.replace(last, Node("linear", node.name, tuple(inputs), last.outputs, attrs))
        fused += 1
    return patch.done(f"fused {fused} products with their bias and activation")


def _weight(graph: Graph, name: str | None) -> bool:
    array = graph.constants.get(name)
    return array is not None and array.ndim == 2 and array.dtype == "float32"


def _bias(graph: Graph, node: Node, product: str) -> str | None:
    """The constant that `node` adds along the last axis of the product, else None."""
    if node.op != "binary" or node.attrs["fn"] != "add":
        return None
    other = node.inputs[0] if node.inputs[1] == product else node.inputs[1]
    array, dims = graph.constants.get(other), graph.values[product].dims
    if array is None or array.ndim < 1 or array.ndim > len(dims) or array.dtype != "float32":
        return None
    return other if array.shape[-1] == dims[-1] and array.size == array.shape[-1] else None


def _flat(patch: Patch, bias: str) -> str:
    """The name of a bias [1, .., N] as [N]."""
    name, array = f"{bias}:flat", patch.constants[bias]
    if array.ndim == 1:
        return bias
    return name if name in patch.constants else patch.constant(name, array.reshape(-1).copy())
