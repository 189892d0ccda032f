"""Random inputs for a graph, and their minimum length."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...errors import ModelFormatError
from ...graph import DTYPES, Graph
from ...graph import dims as D
from ...graph.vocabulary import moves

MOST_STEPS = 4096  # limit of the search for the fewest steps that fill a window


def least_steps(graph: Graph, batch: int = 1) -> int:
    """The fewest steps that fill each window of a graph; 1 if none needs more."""
    free = {s for v in graph.values.values() for d in v.dims for s in D.symbols(d)} - {"batch", "time"}
    sides = {(d, 0) for v in graph.values.values() for d in v.dims if "time" in D.symbols(d)}
    windows = {o for node in graph.nodes if node.op in ("conv", "pool") for o in node.outputs if o is not None}
    sides |= {(d, 1) for name in windows for d in graph.values[name].dims if "time" in D.symbols(d)}
    for steps in range(1, MOST_STEPS):
        env = {"batch": batch, "time": steps, **dict.fromkeys(free, 3)}
        if all(D.evaluate(d, env) >= least for d, least in sides):
            return steps
    return 1


def random_inputs(graph: Graph, env: Mapping[str, int], rng: np.random.Generator) -> dict[str, np.ndarray]:
    """An array for each input of the graph, of its dtype and of its dims under `env`.

    Floats are normal. Integers that index a constant table are valid indices, lengths are between 0 and the number of
    steps, other integers are 0 to 3. Bools are fair.
    """
    limits = integer_limits(graph, env)
    feeds: dict[str, np.ndarray] = {}
    for name in graph.inputs:
        value = graph.values[name]
        shape = tuple(D.evaluate(d, env) for d in value.dims)
        if value.dtype == "bool":
            array: Any = rng.random(shape) < 0.5
        elif value.dtype in ("int32", "int64"):
            array = rng.integers(0, limits.get(name, 4), shape)
        elif value.dtype in ("float32", "float64"):
            array = rng.standard_normal(shape)
        else:
            raise ModelFormatError(f"input {name} has the dtype {value.dtype}")
        feeds[name] = np.asarray(array).astype(DTYPES[value.dtype])
    return feeds


def integer_limits(graph: Graph, env: Mapping[str, int]) -> dict[str, int]:
    """Input name -> one more than the largest valid integer; only for inputs that a node limits."""
    consumers = graph.consumers()
    limits = {}
    for name in graph.inputs:
        if graph.values[name].dtype not in ("int32", "int64"):
            continue
        found, waiting, seen = [], [name], {name}
        while waiting:
            value = waiting.pop()
            for node in consumers.get(value, ()):
                first, made = str(node.inputs[0]), str(node.outputs[0])
                if node.op == "gather" and value == node.inputs[1]:
                    found.append(D.evaluate(graph.values[first].dims[node.attrs["axis"]], env))
                elif node.op == "cell" and value in node.inputs[8:9]:
                    found.append(D.evaluate(graph.values[first].dims[0], env) + 1)
                elif (node.op == "cast" or moves(node.op)) and made not in seen:
                    seen.add(made)
                    waiting.append(made)
        if found:
            limits[name] = max(1, min(found))
    return limits
