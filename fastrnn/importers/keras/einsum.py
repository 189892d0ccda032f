"""EinsumDense: a product of any axes of its input with a kernel, as one linear layer over joined axes."""

from __future__ import annotations

import math
import re

import numpy as np

from ...graph import Value
from ..shared.ledger import Finding
from .activations import activate
from .calls import LayerCall, layer
from .quantised import weights_of

_EQUATION = re.compile(r"([a-zA-Z.]+),([a-zA-Z]+)->([a-zA-Z.]+)")


@layer("EinsumDense", masks="drop")
def _einsum_dense(c: LayerCall) -> Value:
    x, equation = c.x, c.get("equation", kinds=(str,))
    given, kernel, result = _axes(equation, len(x.dims))
    sizes = dict(zip(given, x.dims, strict=True))
    summed = [a for a in given if a in kernel and a not in result]
    kept = [a for a in given if a not in kernel]
    new = [a for a in kernel if a not in given]
    if set(given) & set(kernel) - set(summed) or sorted(result) != sorted([*kept, *new]) or not summed:
        raise Finding(f"equation={equation!r:.60}, which is more than a product with the features")
    for a in summed:
        c.fixed(x.dims[given.index(a)], "the features of a step must be a fixed number")
    W = _kernel(c, kernel, result, sizes, new)
    sizes |= dict(zip(kernel, W.shape, strict=True))
    c.get("output_shape")
    W = W.transpose([kernel.index(a) for a in (*summed, *new)])
    joined, width = math.prod(sizes[a] for a in summed), math.prod(sizes[a] for a in new)
    order = [given.index(a) for a in (*kept, *summed)]
    turned = x if order == list(range(len(order))) else c.w.transpose(x, *order)
    turned = c.reshape(turned, (*(sizes[a] for a in kept), joined))
    y = c.add("linear", turned, c.held(W.reshape(joined, width), "W"), activation=None, alpha=0.0, beta=0.0)
    y = c.reshape(y, tuple(sizes[a] for a in (*kept, *new)))
    order = [[*kept, *new].index(a) for a in result]
    y = y if order == list(range(len(order))) else c.w.transpose(y, *order)
    axes = c.get("bias_axes")
    if axes:
        first = min(result.index(a) for a in axes)
        bias = c.take("bias", tuple(sizes[a] if a in axes else 1 for a in result[first:]))
        y = c.binary("add", y, c.held(bias, "bias"))
    return activate(c, y, c.get("activation"))


def _kernel(c: LayerCall, kernel: str, result: str, sizes: dict, new: list[str]) -> np.ndarray:
    """The kernel. If it is of 8 bits, its scales have the axes of the result."""
    apart = [a for a in result if a in new]

    def scales(shape: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(shape[kernel.index(a)] if a in new else 1 for a in result)

    def broadcast(scale: np.ndarray) -> np.ndarray:
        joined = scale.reshape([scale.shape[result.index(a)] for a in apart])
        turned = joined.transpose([apart.index(a) for a in new])  # new is in the kernel's order
        left = iter(turned.shape)
        return turned.reshape([next(left) if a in new else 1 for a in kernel])

    return weights_of(c, "kernel", tuple(sizes.get(a) for a in kernel), scales, broadcast)


def _axes(equation: str, rank: int) -> tuple[str, str, str]:
    """The letters of the input's, the kernel's and the result's axes; digits for those that "..." stands for."""
    match = _EQUATION.fullmatch(equation.replace(" ", ""))
    if match is None:
        raise Finding(f"equation={equation!r:.60}")
    given, kernel, result = match.groups()
    if "..." in given:
        rest = "".join(str(k) for k in range(rank - len(given) + 3))
        given, result = given.replace("...", rest, 1), result.replace("...", rest, 1)
    if "." in given + result or len(given) != rank or any(len(set(t)) != len(t) for t in (given, kernel, result)):
        raise Finding(f"equation={equation!r:.60} over {rank} axes")
    return given, kernel, result
