"""What each op makes of the steps of its inputs, for the names of meanings (meaning.py).

A rule is a function (meaning, node) -> the `Flat` of each output. An op without a rule, or with inputs whose elements
are not known, is named by its attributes, the dims of its inputs and of what it makes.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np

from ..graph import Node
from ..graph.cells import ACTIVATIONS, CellSpec
from ..graph.digests import array_name, named
from ..graph.precision import SCALES
from ..graph.registry import Registry
from ..graph.vocabulary import ROWS
from .flat import Flat

if TYPE_CHECKING:
    from .meaning import Meaning

means = Registry()  # op -> its rule
UNORDERED = frozenset("add mul min max equal and or xor bit_and bit_or bit_xor".split())


def meaning_of(m: Meaning, node: Node) -> list[Flat]:
    """What a node makes."""
    rule = means.get(node.op)
    given = [m.values[i] for i in node.inputs if i is not None and i in m.values]  # a state reads what comes later
    if rule is not None and (node.op == "state" or all(flat.known for flat in given)):
        if all(o is None or m.unit(o) is not None for o in node.outputs):
            with suppress(ValueError, IndexError):  # elements that don't fit each other, such as a constant with steps
                found = rule(m, node)
                if found is not None:
                    return found
    return as_written(m, node)


def as_written(m: Meaning, node: Node) -> list[Flat]:
    """What a node makes, named as the file has it."""
    names = [m.name_of(m.flat(node, i)) for i in range(len(node.inputs))] if node.op != "state" else []
    if node.op == "state":
        names = [named(m.numbers.get(node.outputs[0], -1))]
    dims = [None if i is None else m.text(m.graph.values[i].dims) for i in node.inputs]
    name = named("as written", node.op, *attributes(m, node), repr(dims), *names)
    own_name(m, node, name)
    return [
        Flat("") if o is None else m.make(o, "output", k, name, m.text(m.graph.values[o].dims))
        for k, o in enumerate(node.outputs)
    ]


def attributes(m: Meaning, node: Node) -> list:
    """The attributes of a node as texts and numbers, by name; floats as float32. Weights in float32 are not named as
    such: the names of layers are older than precisions, and than caches that grow."""
    found: list = []
    for key, about in sorted(ROWS[node.op].attrs.items()):
        value = node.attrs.get(key, about.default)
        if (key, value) in (("precision", "float32"), ("grows", False)):
            continue
        if isinstance(value, CellSpec):
            value = cell_text(value)
        elif about.dims:
            value = m.text(value) if isinstance(value, tuple) else m.text((value,))
        found += [key, tuple(map(number, value)) if isinstance(value, tuple) else number(value)]
    return found


def number(value):
    """A number as float32 holds it; an int stays exact, anything else as it is."""
    return float(np.float32(value)) if isinstance(value, float) else value


def held(m: Meaning, node: Node) -> tuple:
    """How the weights of a node are held, if not in float32: the precision, and the scales of their columns."""
    precision = node.attrs.get("precision", "float32")
    if precision == "float32":
        return ()
    return (precision, *(m.name_of(m.flat(node, at)) for at in SCALES[node.op].values()))


def own_name(m: Meaning, node: Node, *parts) -> None:
    """Name a layer by itself, if it has weights."""
    arrays = [m.graph.constants[i] for i in node.inputs if i is not None and i in m.graph.constants]
    if any(a.dtype.kind == "f" for a in arrays) or held(m, node):
        if not parts or node.op != "cell":
            parts = (node.op, *attributes(m, node), *(array_name(a) for a in arrays))
        m.own[node.name] = named(*parts)


def cell_text(spec: CellSpec) -> tuple:
    """A cell without its weights, as a tuple of texts and numbers."""
    acts = tuple(function_text(a.name, a.alpha, a.beta) for a in spec.activations)
    forms = (spec.kind == "lstm" and spec.input_forget, spec.kind == "gru" and spec.linear_before_reset)
    clip = None if spec.clip is None else number(float(spec.clip))
    return spec.kind, spec.input_size, spec.hidden_size, repr(acts), spec.reverse, clip, *forms


# ---- moves -----------------------------------------------------------------------------------------------------------


def _whole_moves(m: Meaning, node: Node, elements: np.ndarray) -> list[Flat] | None:
    """The elements of a move, if they are as many as what it makes has at one step."""
    dims, value = m.unit(node.outputs[0]), m.graph.values[node.outputs[0]]
    if dims is None or elements.size != np.prod(dims, dtype=np.int64):
        return None
    return [_moved(value.dtype, elements.reshape(dims), m, node)]


def _moved(dtype: str, elements: np.ndarray, m: Meaning, node: Node) -> Flat:
    sources = [m.flat(node, i) for i in range(len(node.inputs))]
    if all(s is None or s.array is not None for s in sources):  # elements are then those of a constant
        return Flat(dtype, array=elements)
    return Flat(dtype, elements)


def _parts(m: Meaning, node: Node) -> list[np.ndarray]:
    """The inputs of a move as arrays of elements, or of numbers if all are constant."""
    flats = [flat for i in range(len(node.inputs)) if (flat := m.flat(node, i)) is not None]
    if all(flat.array is not None for flat in flats):
        return [flat.array for flat in flats]
    return [m.atoms.elements(flat) for flat in flats]


@means("transpose")
def _transpose(m: Meaning, node: Node):
    (x,) = _parts(m, node)
    return _whole_moves(m, node, np.transpose(x, node.attrs["perm"])) if x.ndim == len(node.attrs["perm"]) else None


@means("reshape")
def _reshape(m: Meaning, node: Node):
    return _whole_moves(m, node, _parts(m, node)[0])


@means("expand")
def _expand(m: Meaning, node: Node):
    (x,), dims = _parts(m, node), m.unit(node.outputs[0])
    if (
        dims is None
        or len(dims) < x.ndim
        or any(a not in (1, b) for a, b in zip(x.shape[::-1], dims[::-1], strict=False))
    ):
        return None
    return _whole_moves(m, node, np.broadcast_to(x, dims))


@means("concat")
def _concat(m: Meaning, node: Node):
    axis = node.attrs["axis"]
    if not is_feature(m, node.outputs[0], axis):
        return None
    parts = _parts(m, node)
    rest = {p.shape[:axis] + p.shape[axis + 1 :] for p in parts}
    return _whole_moves(m, node, np.concatenate(parts, axis)) if len(rest) == 1 else None


@means("slice")
def _slice(m: Meaning, node: Node):
    name, a = node.inputs[0], node.attrs
    axis, dim = a["axis"], m.graph.values[name].dims[a["axis"]]
    if isinstance(dim, int) and is_feature(m, name, axis):
        (x,) = _parts(m, node)
        if x.shape[axis] != dim or not isinstance(a["start"], int) or not isinstance(a["stop"], int):
            return None
        return _whole_moves(m, node, np.take(x, np.arange(a["start"], a["stop"], a["step"]), axis))
    if m.time_axis(name) != axis:
        return None
    if (a["start"], a["stop"], a["step"]) == (0, dim, 1):
        return _whole_moves(m, node, _parts(m, node)[0])
    flat = m.flat(node)
    if node.outputs[0] in m.time.running:
        return _derived(m, node, flat, "last") if (a["stop"], a["step"]) == (dim, 1) else None
    if isinstance(a["start"], int) and isinstance(dim - a["stop"], int):
        return _derived(m, node, flat, "cut", a["start"], dim - a["stop"], a["step"])
    return None


def _derived(m: Meaning, node: Node, flat: Flat, *how) -> list[Flat] | None:
    dims = m.unit(node.outputs[0])
    found = m.atoms.derived(flat, *how).elements
    return [Flat(flat.dtype, found.reshape(dims))] if found.size == np.prod(dims, dtype=np.int64) else None


@means("gather")
def _gather(m: Meaning, node: Node):
    axis, indices, how = node.attrs["axis"], m.flat(node, 1), held(m, node)
    if not how and indices.array is not None and is_feature(m, node.inputs[0], axis):
        x = m.flat(node)
        array = x.array if x.array is not None else m.atoms.elements(x)
        size = array.shape[axis]
        low = 0 if node.attrs.get("from_zero", False) else -size
        if indices.array.size and (indices.array.min() < low or indices.array.max() >= size):
            return None
        return _whole_moves(m, node, np.take(array, indices.array, axis))
    table = m.flat(node)
    if table.array is None or table.array.ndim != 2 or axis != 0:
        return None
    name = array_name(table.array)
    own_name(m, node, name)
    parts = ("rows of", name, *how, bool(node.attrs.get("from_zero", False)), m.name_of(indices))
    return [atom(m, node, *parts)]


@means("pad")
def _pad(m: Meaning, node: Node):
    name, a = node.inputs[0], node.attrs
    rank = len(m.graph.values[name].dims)
    pads = list(zip(a["pads"][:rank], a["pads"][rank:], strict=True))
    some = [k for k, pair in enumerate(pads) if pair != (0, 0)]
    if not all(is_feature(m, name, k) and isinstance(p, int) and p >= 0 for k in some for p in pads[k]):
        return None
    flat = m.flat(node)
    x = m.atoms.elements(flat)
    if a["mode"] == "constant":
        fill = m.atoms.elements(Flat(flat.dtype, array=np.full(1, a["value"], flat.dtype)))
        return _whole_moves(m, node, np.pad(x, pads, constant_values=fill[0]))
    return _whole_moves(m, node, np.pad(x, pads, mode=a["mode"]))


def is_feature(m: Meaning, name: str, axis: int) -> bool:
    """Whether an axis holds neither steps nor rows."""
    dim = m.graph.values[name].dims[axis]
    tracks = [t.tracks.get(name) for t in (m.batch, m.time)]
    return isinstance(dim, int) and not any(t is not None and t.axis == axis for t in tracks)


# ---- elements --------------------------------------------------------------------------------------------------------


def atom(m: Meaning, node: Node, *parts, output: int = 0) -> Flat:
    return m.make(node.outputs[output], *parts)


@means("unary")
def _unary(m: Meaning, node: Node):
    a = node.attrs
    return _derived(m, node, m.flat(node), *function_text(a["fn"], a["alpha"], a["beta"]))


def function_text(fn: str, alpha: float, beta: float) -> tuple:
    """A function of one number, with the parameters that it has."""
    has = ACTIVATIONS.get(fn, (None, None))
    return fn, *(None if default is None else number(float(v)) for default, v in zip(has, (alpha, beta), strict=True))


@means("cast")
def _cast(m: Meaning, node: Node):
    flat, to = m.flat(node), node.attrs["to"]
    if flat.dtype == to:
        return _whole_moves(m, node, _parts(m, node)[0])
    found = _derived(m, node, flat, "cast", flat.dtype, to)
    return found and [Flat(to, found[0].elements)]


def spread(m: Meaning, flat: Flat, dims: tuple) -> Flat:
    """A value broadcast to the dims of what a node makes."""
    if flat.array is not None:
        return Flat(flat.dtype, array=np.broadcast_to(flat.array, dims))
    return Flat(flat.dtype, np.broadcast_to(flat.elements, dims))


@means("binary")
def _binary(m: Meaning, node: Node):
    fn, dims, ends = node.attrs["fn"], m.unit(node.outputs[0]), [m.flat(node, i) for i in (0, 1)]
    for x, other in (ends, ends[::-1]):
        if fn == "add" and other.array is not None and x.dims == dims and not other.array.any():
            return _whole_moves(m, node, _parts(m, node)[ends.index(x)])
    names = [m.atoms.name(spread(m, x, dims)) for x in ends]
    own_name(m, node)
    return [atom(m, node, *pair(fn, *names))]


def pair(fn: str, first: bytes, second: bytes) -> tuple:
    return (fn, *sorted((first, second))) if fn in UNORDERED else (fn, first, second)


@means("where")
def _where(m: Meaning, node: Node):
    dims = m.unit(node.outputs[0])
    names = [m.atoms.name(spread(m, m.flat(node, i), dims)) for i in range(3)]
    return [atom(m, node, "where", *names)]


def _grouped(m: Meaning, node: Node, axes: tuple, *parts) -> bytes | None:
    """The name of what an op makes of groups of elements: those along these axes. None if an axis holds steps."""
    x = m.atoms.elements(m.flat(node))
    if not all(is_feature(m, node.inputs[0], axis) for axis in axes):
        return None
    rest = [k for k in range(x.ndim) if k not in axes]
    size = int(np.prod([x.shape[k] for k in axes], dtype=np.int64))
    moved = Flat(m.flat(node).dtype, np.transpose(x, (*rest, *axes)))
    return named(*parts, size, m.atoms.name(moved))


def _kept_places(m: Meaning, node: Node, name: bytes | None, axes: tuple) -> list[Flat] | None:
    """An output with the elements of its input in their places, though its name lists them with `axes` last."""
    if name is None:
        return None
    dims = m.unit(node.outputs[0])
    rest = [k for k in range(len(dims)) if k not in axes]
    order = (*rest, *axes)
    made = m.atoms.make(named("each", name), tuple(dims[k] for k in order), m.graph.values[node.outputs[0]].dtype)
    back = [order.index(k) for k in range(len(dims))]
    return [Flat(made.dtype, np.transpose(made.elements, back))]


@means("softmax")
def _softmax(m: Meaning, node: Node):
    axes = (node.attrs["axis"],)
    return _kept_places(m, node, _grouped(m, node, axes, "softmax", node.attrs["log"]), axes)


@means("cumsum")
def _cumsum(m: Meaning, node: Node):
    axes, a = (node.attrs["axis"],), node.attrs
    return _kept_places(m, node, _grouped(m, node, axes, "cumsum", a["exclusive"], a["reverse"]), axes)


@means("layer_norm")
def _layer_norm(m: Meaning, node: Node):
    x = m.flat(node)
    axes = tuple(range(node.attrs["axis"], len(x.dims)))
    dims = m.unit(node.inputs[0])
    names = []
    for i, nothing in ((1, 1), (2, 0)):  # a scale of ones and a bias of zeros do nothing
        flat = m.flat(node, i)
        if flat is None or (flat.array is not None and (flat.array == nothing).all()):
            names.append(b"")
            continue
        names.append(m.atoms.name(spread(m, flat, dims)))
    own_name(m, node)
    return _kept_places(
        m, node, _grouped(m, node, axes, "layer_norm", number(float(node.attrs["epsilon"])), *names), axes
    )


@means("reduce")
def _reduce(m: Meaning, node: Node):
    name, axes, fn = node.inputs[0], node.attrs["axes"], node.attrs["fn"]
    if m.time_axis(name) in axes and len(axes) == 1:
        return _derived(m, node, m.flat(node), "over time", fn)
    found = _grouped(m, node, tuple(axes), "reduce", fn)
    return found and [atom(m, node, "each", found)]


@means("argmax")
def _argmax(m: Meaning, node: Node):
    a = node.attrs
    found = _grouped(m, node, (a["axis"],), "argmax", a["last"], a["largest"])
    return found and [atom(m, node, "each", found)]


@means("steps")
def _steps(m: Meaning, node: Node):
    if m.time_axis(node.outputs[0]) is None:
        return None
    return [atom(m, node, "steps", m.text((node.attrs["start"], node.attrs["dims"][-1])))]
