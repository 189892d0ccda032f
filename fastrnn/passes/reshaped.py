"""Elementwise work between a reshape and the one that undoes it, such as a batch norm of bands of frequencies (a
sub-spectral norm): its constants are reshaped in place of the value, so that both reshapes are gone, and with them the
copies of values that are stored channels-last."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from ..graph import Graph, Node
from ..graph import dims as D
from .patch import Patch

MOST_ELEMENTS = 65536  # of a constant that is repeated


def undo_reshapes(graph: Graph) -> Graph:
    """Drop a reshape and the one that undoes it if all that is between them is elementwise, with constants that can be
    reshaped too."""
    readers, producers, outputs, patch = graph.consumers(), graph.producers(), set(graph.outputs), Patch(graph)
    undone = 0
    for last in graph.nodes:
        chain = _chain(graph, last, readers, producers, outputs) if last.op == "reshape" else None
        if not chain or any(node.name in patch.instead for node in chain):
            continue
        first, *between = chain
        before, after = graph.values[first.inputs[0]].dims, graph.values[first.outputs[0]].dims
        constants = {
            name: _reshaped(graph.constants[name], after, before)
            for node in between for name in node.inputs if name in graph.constants
        }  # fmt: skip
        if any(array is None for array in constants.values()):
            continue
        now = {first.outputs[0]: first.inputs[0]}
        now |= {name: patch.constant(f"{name}:reshaped", array) for name, array in constants.items()}
        patch.replace(first)
        for node in between:
            ends = node is between[-1]
            out = last.outputs[0] if ends else patch.declare(f"{node.outputs[0]}:flat", "float32", before)
            now[node.outputs[0]] = out
            patch.replace(node, replace(node, inputs=tuple(now[i] for i in node.inputs), outputs=(out,)))
        patch.replace(last)
        undone += 1
    return patch.done(f"undid {undone} reshapes around elementwise work with constants")


def _chain(graph: Graph, last: Node, readers, producers, outputs) -> list[Node] | None:
    """The nodes from the reshape that `last` undoes up to the one before `last`; None if there is something else."""
    chain: list[Node] = []
    wanted, name = graph.values[last.outputs[0]].dims, last.inputs[0]
    dims = graph.values[name].dims
    while True:
        node = producers.get(name)
        if node is None or name in outputs or len(readers[name]) != 1 or graph.values[name].dims != dims:
            return None
        chain.append(node)
        if node.op == "reshape":
            return chain[::-1] if len(chain) > 1 and graph.values[node.inputs[0]].dims == wanted else None
        live = [i for i in node.inputs if i not in graph.constants]
        if node.op not in ("unary", "binary") or len(live) != 1 or graph.values[name].dtype != "float32":
            return None
        if any(graph.constants[i].dtype != "float32" for i in node.inputs if i in graph.constants):
            return None
        name = live[0]


def _reshaped(array: np.ndarray, dims: tuple, target: tuple) -> np.ndarray | None:
    """What stands for `array`, broadcast to `dims`, if the values beside it are reshaped to `target`. None if it would
    have to be repeated along an axis whose size is not known, or be large."""
    shape = (1,) * (len(dims) - array.ndim) + array.shape
    full, parts = [], []
    for i, i2, j, j2 in _groups(target, dims):
        if all(size == 1 for size in shape[j:j2]):
            full += [1] * (j2 - j)
            parts += [1] * (i2 - i)
        elif all(isinstance(d, int) for d in (*dims[j:j2], *target[i:i2])):
            full += dims[j:j2]
            parts += target[i:i2]
        else:
            return None
    if len(full) != len(dims) or np.prod(full, dtype=object) > MOST_ELEMENTS:
        return None
    found = np.broadcast_to(array.reshape(shape), full).reshape(parts)
    for axis in range(found.ndim):  # what is the same all along an axis is broadcast
        one = found.take([0], axis) if found.shape[axis] > 0 else found
        if found.shape[axis] > 1 and np.array_equal(np.broadcast_to(one, found.shape), found, equal_nan=True):
            found = one
    return np.ascontiguousarray(found)


def _groups(a: tuple, b: tuple) -> list[tuple[int, int, int, int]]:
    """Runs of axes of two shapes with as many elements: (first of a, end, first of b, end)."""
    found = []
    i = j = 0
    while i < len(a) and j < len(b):
        i2, j2, have, want = i + 1, j + 1, a[i], b[j]
        while have != want:
            if i2 < len(a) and (j2 == len(b) or D.exact_div(want, have) is not None):
                have, i2 = have * a[i2], i2 + 1
            elif j2 < len(b):
                want, j2 = want * b[j2], j2 + 1
            elif i2 < len(a):
                have, i2 = have * a[i2], i2 + 1
            else:
                return []
        found.append((i, i2, j, j2))
        i, j = i2, j2
    if any(size != 1 for size in (*a[i:], *b[j:])) or not found:
        return []
    first, _, second, _ = found[-1]
    found[-1] = (first, len(a), second, len(b))  # axes of size 1 at the end
    return found
