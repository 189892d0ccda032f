"""Products with constant weights become `linear`, with their bias and activation."""

from __future__ import annotations

from ..graph import Graph, Node, Value

# What a linear node may apply: functions of one argument that the product's epilogue can take on.
_FUSABLE = frozenset(
    "tanh sigmoid relu leaky_relu hard_sigmoid elu selu softsign softplus gelu gelu_tanh silu clip".split()
)


def fuse_linear(graph: Graph) -> Graph:
    """matmul by a constant [K, N], plus a constant [N], then an activation: one `linear` node.

    Only where the value between has no other reader and is no output.
    """
    readers, outputs = graph.consumers(), set(graph.outputs)
    gone: set[str] = set()
    nodes: list[Node] = []
    fused = 0

    def only_reader(name: str) -> Node | None:
        found = readers.get(name, [])
        return found[0] if len(found) == 1 and name not in outputs else None

    replaced: dict[str, Node] = {}
    for node in graph.nodes:
        if node.op != "matmul" or not _weight(graph, node.inputs[1]) or not graph.values[node.inputs[0]].dims:
            continue
        inputs, last, attrs = list(node.inputs), node, {"activation": None, "alpha": 0.0, "beta": 0.0}
        after = only_reader(last.outputs[0])
        bias = _bias(graph, after, last.outputs[0]) if after is not None else None
        if bias is not None:
            inputs.append(bias)
            gone.add(last.name)
            last = after
            after = only_reader(last.outputs[0])
        if after is not None and after.op == "unary" and after.attrs["fn"] in _FUSABLE:
            attrs = {"activation": after.attrs["fn"], "alpha": after.attrs["alpha"], "beta": after.attrs["beta"]}
            gone.add(last.name)
            last = after
        replaced[last.name] = Node("linear", node.name, tuple(inputs), last.outputs, attrs)
        fused += 1
    if not fused:
        return graph
    constants, values = dict(graph.constants), dict(graph.values)
    for node in graph.nodes:
        if node.name in gone:
            continue
        new = replaced.get(node.name)
        if new is not None and len(new.inputs) > 2 and len(constants[new.inputs[2]].shape) != 1:
            new = _flat_bias(new, constants, values)
        nodes.append(new or node)
    notes = (*graph.notes, f"fused {fused} products with their bias and activation")
    return graph.replace(nodes=tuple(nodes), constants=constants, values=values, notes=notes)


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


def _flat_bias(node: Node, constants: dict, values: dict) -> Node:
    """The node with its bias [1, .., N] as [N]."""
    name = f"{node.inputs[2]}:flat"
    if name not in constants:
        constants[name] = constants[node.inputs[2]].reshape(-1).copy()
        values[name] = Value(name, "float32", constants[name].shape)
    return Node("linear", node.name, (*node.inputs[:2], name), node.outputs, dict(node.attrs))
