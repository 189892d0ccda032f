"""What layers make of the steps of their inputs, for the names of meanings (meaning.py): rules as in meanings.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..graph import Node
from ..graph.cells import CellSpec
from ..graph.digests import array_name, named
from .flat import Flat, constant_name
from .meanings import atom, attributes, cell_text, function_text, held, is_feature, means, own_name, pair, spread

if TYPE_CHECKING:
    from .meaning import Meaning


def _plus(m: Meaning, node: Node, flat: Flat, bias: Flat | None) -> Flat:
    """A value plus a constant that broadcasts to it, named as `binary` names it."""
    if bias is None or (bias.array is not None and not bias.array.any()):
        return flat
    names = [m.atoms.name(flat), m.atoms.name(spread(m, bias, flat.dims))]
    return atom(m, node, *pair("add", *names))


def _product(m: Meaning, node: Node) -> Flat | None:
    """x @ W, W [K, N] constant. The product of the last step is named as the last step of the product."""
    x, W = m.flat(node), m.flat(node, 1)
    if W.array is None or W.array.ndim < 2 or any(d != 1 for d in W.array.shape[:-2]):
        return None
    weights = W.array if W.array.ndim == 2 else W.array.reshape(W.array.shape[-2:])
    if not x.dims or x.dims[-1] != weights.shape[0] or not is_feature(m, node.inputs[0], len(x.dims) - 1):
        return None
    own_name(m, node)
    whole = m.atoms.before_end(x)
    made = atom(m, node, "product", array_name(weights), *held(m, node), m.name_of(x if whole is None else whole))
    return made if whole is None or made.elements is None else m.atoms.derived(made, "last")


@means("linear")
def _linear(m: Meaning, node: Node):
    flat = _product(m, node)
    if flat is None:
        return None
    flat, a = _plus(m, node, flat, m.flat(node, 2)), node.attrs
    if a["activation"] is None:
        return [flat]
    return [m.atoms.derived(flat, *function_text(a["activation"], a["alpha"], a["beta"]))]


@means("matmul")
def _matmul(m: Meaning, node: Node):
    found = _product(m, node)
    if found is not None:
        return [found]
    ends = [m.flat(node, i) for i in (0, 1)]
    shapes = [_roles(m, node.inputs[i], ends[i].dims) for i in (0, 1)]
    own_name(m, node)
    return [atom(m, node, "matmul", *shapes, *map(m.name_of, ends))]


def _roles(m: Meaning, name: str, dims: tuple) -> tuple:
    """The dims of a value at one step, and which axis has the steps."""
    return (*dims, m.time_axis(name))


@means("attention")
def _attention(m: Meaning, node: Node):
    flats = [m.flat(node, i) for i in range(len(node.inputs))]
    shapes = [None if f is None else _roles(m, n, f.dims) for n, f in zip(node.inputs, flats, strict=True)]
    return [atom(m, node, "attention", *attributes(m, node), repr(shapes), *map(m.name_of, flats))]


@means("conv", "conv_transpose")
def _conv(m: Meaning, node: Node):
    x, W, a = m.flat(node), m.flat(node, 1), node.attrs
    if W.array is None:
        return None
    n, weights, spatial = W.array.ndim - 2, W.array, []
    for i in range(n):
        timed = m.time_axis(node.inputs[0]) == 2 + i
        size = "time" if timed else x.dims[2 + i]
        extra = a["output_padding"][i] if node.op == "conv_transpose" else 0
        window = (W.array.shape[2 + i], a["strides"][i], a["dilations"][i], a["pads"][i], a["pads"][n + i], extra)
        spatial.append((size, *window))
    keep = [i for i in range(n) if spatial[i][:3] != (1, 1, 1) or any(spatial[i][4:])]
    if len(keep) < n:  # an axis of one element
        weights = np.ascontiguousarray(weights.reshape(*weights.shape[:2], *(weights.shape[2 + i] for i in keep)))
    kept = [(s[0], *s[1:3], 1 if s[1] == 1 else s[3], *s[4:]) for s in (spatial[i] for i in keep)]
    own_name(m, node)
    flat = atom(m, node, node.op, a["groups"], repr(kept), array_name(weights), *held(m, node), m.name_of(x))
    bias = m.flat(node, 2)
    if bias is not None:
        if bias.array is None:
            return None
        bias = Flat(bias.dtype, array=bias.array.reshape(-1, *[1] * n))
    return [_plus(m, node, flat, bias)]


@means("pool")
def _pool(m: Meaning, node: Node):
    x = m.flat(node)
    shape = repr(_roles(m, node.inputs[0], x.dims))
    return [atom(m, node, "pool", *attributes(m, node), shape, m.name_of(x))]


def _biases(spec: CellSpec, Wb: Flat | None, Rb: Flat | None) -> bytes | None:
    """The name of a cell's biases: their exact sum, and apart where the reset gate of a GRU is between. None if they
    are not constant."""
    if any(b is not None and b.array is None for b in (Wb, Rb)):
        return None
    zeros = np.zeros(spec.gates * spec.hidden_size)
    w, r = (zeros if b is None else b.array.astype(np.float64).reshape(-1) for b in (Wb, Rb))
    total = w + r
    part = total - w
    rest = (w - (total - part)) + (r - part)  # what the rounding of the sum left out; it is exact
    if spec.kind == "gru" and spec.linear_before_reset:
        n = 2 * spec.hidden_size
        total, rest = np.concatenate([total[:n], w[n:]]), np.concatenate([rest[:n], r[n:]])
    return constant_name(np.concatenate([total, rest]) + 0.0, "float64")  # no zero has a sign


@means("cell")
def _cell(m: Meaning, node: Node):
    spec, x = node.attrs["spec"], m.flat(node)
    arrays = [m.flat(node, i) for i in (1, 2)]
    peep = m.flat(node, 5)
    biases = _biases(spec, m.flat(node, 3), m.flat(node, 4))
    if biases is None or any(w is None or w.array is None for w in arrays):
        return None
    weights = [array_name(w.array) for w in arrays]
    layer = ("cell", repr(cell_text(spec)), *weights, *held(m, node), biases, m.name_of(peep))
    m.own[node.name] = named(*layer)
    timed = m.time_axis(node.inputs[0]) == 0
    begin = [m.initial(m.flat(node, i)) for i in (6, 7)]
    rest = [m.name_of(m.flat(node, i)) for i in (8, 9)]
    name = named(*layer, "time" if timed else x.dims[0], m.name_of(x), *begin, *rest)
    count = m.again(name)  # two equal cells are two
    name = named(name, count)
    m.made[node.name] = name
    H, rows = spec.hidden_size, x.dims[1] if len(x.dims) == 3 else 1
    y = m.atoms.make(name, (x.dims[0], rows, H), x.dtype, cell=timed)
    ends = [m.atoms.make(named(what, name), (rows, H), x.dtype, last=timed) for what in ("last", "last c")]
    if timed and not spec.reverse and m.flat(node, 8) is None:  # as a cut of the last step is named
        ends[0] = m.atoms.derived(Flat(x.dtype, y.elements.reshape(rows, H)), "last")
    return [y, *ends][: len(node.outputs)]


@means("state")
def _state(m: Meaning, node: Node):
    return [m.make(node.outputs[0], "state", m.numbers.get(node.outputs[0], -1))]
