"""Graph: what a model means, free of machine and of length.

A `Graph` is a list of `Node`s in an order in which every value is made before it is used. A `Value` is a name, a
dtype and dims; a dim is an int or a `fastrnn.dims.Dim` over BATCH and TIME. Constants (weights) are values whose
array is in `Graph.constants`. All three are immutable: a pass builds a new graph. `validate` checks what every
later stage relies on, so none of them checks again.

The vocabulary (`OPS`) is small on purpose; importers lower what they read to it. Notation: `x[..]` dims.

Recurrence
    cell        (x[T,B,I], W[G*H,I], R[G*H,H], Wb[G*H]?, Rb[G*H]?, P[3*H]?, h0[B,H]?, c0[B,H]?, lengths[B]?,
                mask[T,B]?)
                -> (y[T,B,H]?, h_n[B,H]?, c_n[B,H]?); attrs: spec (CellSpec). One direction of one layer, time first;
                T may be any dim, B likewise. Gates in ONNX order. lengths int64: row b ends after lengths[b] steps:
                y is 0 from there on, h_n and c_n are its last ones; a reverse cell starts at step lengths[b]-1.
                mask bool: where it is false the step is left out: h and c stay, and y repeats h.
    state       (next[T,..], initial[..]?) -> prev[T,..]: next a step ago along axis 0: prev[0] = initial (else zeros),
                prev[t] = next[t-1]. The only op whose first input may be made after it: the one way for a cycle to
                exist. Nodes on a cycle keep steps apart: at step t each reads what is of step t (fastrnn.loops).
Products
    linear      (x[..,K], W[K,N], bias[N]?) -> [..,N]; W and bias constant; attrs: activation (unary op name or None),
                alpha, beta
    matmul      (a, b) -> numpy.matmul(a, b), neither needs to be constant
Attention
    attention   (q[B,Hq,Tq,d], k[B,Hk,Tk,d], v[B,Hk,Tk,dv], bias?, mask?) -> [B,Hq,Tq,dv]: softmax(score + bias) v, over
                the keys that a query sees. k and v may have 1 for B; Hk divides Hq, and query head h reads key head
                h // (Hq // Hk). score = scale * q.k, and with softcap c > 0 c * tanh(score / c); if the bool mask is
                False, the score is 0, so that the bias alone counts: where(mask, score, fill) is mask and a bias of
                where(mask, 0, fill). bias and mask broadcast to [B,Hq,Tq,Tk]. Query i stands at key p = i + offset.
                attrs: scale, softcap (floats), causal (bool: it sees keys j <= p only), window (int, 0 for none: it
                sees keys j > p - window only), offset (dim), safe (bool: a query whose weights are NaN, as where each
                score is -inf, gets zeros for weights). A query that sees no key at all gives 0. A key that is not seen
                plays no part, whatever it holds.
Positions
    steps       () -> int64 dims, element i along the last axis being start + i. attrs: dims ((n,), or (rows, n) with
                all rows alike), start (dim). Where n is TIME, a stream counts on: these are its own step numbers.
Elementwise, broadcasting as NumPy does
    unary       (x,) -> same dims; attrs: fn (UNARY), alpha, beta
    binary      (a, b) -> broadcast dims; attrs: fn (BINARY)
    where       (condition, a, b) -> broadcast dims
    cast        (x,) -> same dims; attrs: to (dtype)
Moving data
    transpose   (x,); attrs: perm
    reshape     (x,); attrs: dims (product equal to x's)
    slice       (x,); attrs: axis, start, stop (dims, 0 <= start <= stop <= size: already resolved), step (int, may be
                negative: then start > stop, stop >= -1, as in range())
    concat      (x, ...); attrs: axis >= 0
    expand      (x,); attrs: dims (x broadcasts to them)
    gather      (x, indices int64) -> x.dims[:axis] + indices.dims + x.dims[axis+1:]; attrs: axis >= 0, from_zero
                (bool, may be absent: false). Indices lie in [-size, size), a negative one counted from the end; with
                from_zero in [0, size), as PyTorch's embedding takes them. One outside is an error when it is met.
    pad         (x,); attrs: pads (begins then ends, an entry an axis, dims; a negative one cuts off), mode ("constant"
                "reflect" "edge"), value (what "constant" pads with). reflect leaves the edge out, and so pads by less
                than the size of its axis.
Windows over one or two spatial axes, L; strides, dilations, kernel: an int an axis; pads: begins then ends, ints >= 0
    conv        (x[B,C,L..], W[M,C/groups,K..], bias[M]?) -> [B,M,L'..]; W and bias constant; attrs: strides, dilations,
                pads (with zeros), groups. A correlation, as everywhere: W is not turned round.
                L' = (L + begin + end - dilation*(K-1) - 1)//stride + 1, which may depend on TIME.
    conv_transpose  (x[B,C,L..], W[C,M/groups,K..], bias[M]?) -> [B,M,L'..]; W and bias constant; attrs: strides,
                dilations, pads (taken off both ends of the result), output_padding, groups.
                L' = (L-1)*stride + dilation*(K-1) + 1 + output_padding - begin - end
    pool        (x[B,C,L..],) -> [B,C,L'..]; attrs: fn ("max" "mean"), kernel, strides, pads, dilations, ceil (bool: a
                last window may run over the end, if it begins within x or the padding before it), count_include_pad
                (bool: of mean, padding counts as zeros in the divisor; what runs over the padding never counts).
Reductions and norms
    reduce      (x,); attrs: fn ("sum" "mean" "max" "min"), axes (sorted, >= 0), keepdims (bool)
    softmax     (x,); attrs: axis >= 0, log (bool)
    layer_norm  (x, scale?, bias?); attrs: axis >= 0 (normalises axes axis..last), epsilon; scale, bias broadcast to x
    argmax      (x,) -> int64; attrs: axis >= 0, keepdims (bool), last (bool: of equal ones the last, else the first),
                largest (bool: else the index of the smallest)
    cumsum      (x,) -> same dims; attrs: axis >= 0, exclusive (bool: an element is not in its own sum), reverse (bool)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

import numpy as np

from .cells import CellSpec
from .dims import Dim, evaluate, of_shortfall, symbols
from .errors import ModelFormatError, ShapeError

DTYPES = {"float32": np.float32, "float64": np.float64, "int64": np.int64, "int32": np.int32, "bool": np.bool_}

# Elementwise functions of one argument. Those with alpha, beta are as in `fastrnn.cells.ACTIVATIONS`, and:
# clip: min(max(x, alpha), beta); selu: beta*(x if x > 0 else alpha*(exp(x)-1)); gelu: x*Phi(x); gelu_tanh its tanh
# form; hard_swish: x*relu6(x+3)/6; silu: x*sigmoid(x); mish: x*tanh(softplus(x)); sign: -1, 0, 1; recip: 1/x.
UNARY = frozenset(
    "neg abs exp log sqrt recip sign floor ceil round erf sin cos tan asin acos atan sinh cosh asinh acosh atanh not "
    "tanh sigmoid relu affine leaky_relu thresholded_relu scaled_tanh hard_sigmoid elu selu softsign softplus "
    "gelu gelu_tanh silu hard_swish mish clip".split()
)
BINARY = frozenset(
    "add sub mul div pow min max mod equal greater greater_equal less less_equal and or xor prelu".split()
)
COMPARISONS = frozenset("equal greater greater_equal less less_equal and or xor".split())
OPS = frozenset(
    "cell state linear matmul unary binary where cast transpose reshape slice concat expand gather reduce softmax "
    "layer_norm pad conv conv_transpose pool argmax cumsum attention steps".split()
)


@dataclass(frozen=True)
class Value:
    """An edge of the graph. name: unique in the graph; dtype: a key of DTYPES; dims: ints or `Dim`s."""

    name: str
    dtype: str
    dims: tuple

    def __str__(self):
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.dims))}]"


@dataclass(frozen=True)
class Node:
    """One operation. inputs: value names, None where an optional one is absent; outputs likewise (None: omitted).

    `name` is for people: the exporter's name where there is one, unique in the graph. `attrs` are those that the
    vocabulary above lists for `op`, all present.
    """

    op: str
    name: str
    inputs: tuple[str | None, ...]
    outputs: tuple[str | None, ...]
    attrs: Mapping = field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "attrs", MappingProxyType(dict(self.attrs)))

    def __str__(self):
        outs = ", ".join(o or "_" for o in self.outputs)
        args = ", ".join(i or "_" for i in self.inputs)
        attrs = "".join(f", {k}={_show(v)}" for k, v in self.attrs.items())
        return f"{outs} = {self.op}({args}{attrs})  # {self.name}"


def _show(value) -> str:
    if isinstance(value, CellSpec):
        acts = "/".join(a.name for a in value.activations)
        flags = [f for f in ("reverse", "input_forget", "linear_before_reset") if getattr(value, f)]
        flags += [f"clip {value.clip:g}"] if value.clip is not None else []
        return f"{value.kind} {value.input_size}->{value.hidden_size} {acts}" + "".join(f" {f}" for f in flags)
    if isinstance(value, tuple):
        return "[" + ", ".join(map(_show, value)) + "]"
    return str(value)


@dataclass(frozen=True)
class Graph:
    """A whole model.

    inputs, outputs : names of values, in the file's own order.
    values : every value by name (constants too).
    constants : name -> array of the value's dtype and dims; read-only.
    states : input name -> output name, for each state that the caller threads by hand through the file
        (the output of one call is the input of the next).
    requires : (dim, int) pairs: what else has to hold of the sizes of the inputs, such as that windows over one of them
        are just one. Whoever fixes the sizes checks them (`check_required`).
    held : (input, axis, why) of each axis of an input that stays at the file's number because of evidence in the file.
    notes : lines that tell a person what import and passes did ("thawed time from 19", "folded 12 nodes").
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    values: Mapping[str, Value]
    constants: Mapping[str, np.ndarray]
    states: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    requires: tuple[tuple[Dim, int], ...] = ()
    held: tuple[tuple[str, int, str], ...] = ()

    def __post_init__(self):
        for name in ("values", "constants", "states"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
        for array in self.constants.values():
            array.flags.writeable = False

    def __str__(self):
        lines = [f"graph {self.name}"]
        lines += [f"  input  {self.values[n]}" for n in self.inputs]
        lines += [f"  output {self.values[n]}" for n in self.outputs]
        lines += [f"  state  {a} -> {b}" for a, b in self.states.items()]
        lines += [f"  where  {dim} = {number}" for dim, number in self.requires]
        lines += [f"  {node}" for node in self.nodes]
        return "\n".join(lines)

    def replace(self, **changes) -> Graph:
        """A copy with some fields changed."""
        return replace(self, **changes)

    def producers(self) -> dict[str, Node]:
        """Value name -> the node that makes it."""
        return {o: n for n in self.nodes for o in n.outputs if o is not None}

    def consumers(self) -> dict[str, list[Node]]:
        """Value name -> the nodes that read it, in order."""
        out: dict[str, list[Node]] = {}
        for n in self.nodes:
            for i in n.inputs:
                if i is not None:
                    out.setdefault(i, []).append(n)
        return out


# op -> (least inputs, most inputs, most outputs, attribute names)
_FORM = {
    "cell": (3, 10, 3, {"spec"}),
    "state": (1, 2, 1, set()),
    "linear": (2, 3, 1, {"activation", "alpha", "beta"}),
    "matmul": (2, 2, 1, set()),
    "attention": (3, 5, 1, {"scale", "softcap", "causal", "window", "offset", "safe"}),
    "steps": (0, 0, 1, {"dims", "start"}),
    "unary": (1, 1, 1, {"fn", "alpha", "beta"}),
    "binary": (2, 2, 1, {"fn"}),
    "where": (3, 3, 1, set()),
    "cast": (1, 1, 1, {"to"}),
    "transpose": (1, 1, 1, {"perm"}),
    "reshape": (1, 1, 1, {"dims"}),
    "slice": (1, 1, 1, {"axis", "start", "stop", "step"}),
    "concat": (1, 1 << 16, 1, {"axis"}),
    "expand": (1, 1, 1, {"dims"}),
    "gather": (2, 2, 1, {"axis"}),
    "reduce": (1, 1, 1, {"fn", "axes", "keepdims"}),
    "softmax": (1, 1, 1, {"axis", "log"}),
    "layer_norm": (1, 3, 1, {"axis", "epsilon"}),
    "pad": (1, 1, 1, {"pads", "mode", "value"}),
    "conv": (2, 3, 1, {"strides", "dilations", "pads", "groups"}),
    "conv_transpose": (2, 3, 1, {"strides", "dilations", "pads", "output_padding", "groups"}),
    "pool": (1, 1, 1, {"fn", "kernel", "strides", "pads", "dilations", "count_include_pad", "ceil"}),
    "argmax": (1, 1, 1, {"axis", "keepdims", "last", "largest"}),
    "cumsum": (1, 1, 1, {"axis", "exclusive", "reverse"}),
}


# Attributes that a node may lack: false then. Files of older versions have none of them.
_MAY_LACK = {"gather": {"from_zero"}}


def check_required(graph: Graph, sizes: Mapping[str, int]) -> None:
    """Raise ShapeError where sizes of the inputs, a number a symbol, break what the graph requires of them."""
    for dim, number in graph.requires:
        got = evaluate(dim, sizes)
        if got != number and (bound := of_shortfall(dim)) is not None:
            at = ", ".join(f"{name} = {sizes[name]}" for name in sorted(symbols(dim)))
            raise ShapeError(f"{graph.name}: {at} is too small: the model takes inputs where {bound} is 0 or more")
        if got != number:
            given = ", ".join(f"{name} = {sizes[name]}" for name in sorted(symbols(dim)))
            raise ShapeError(f"{graph.name}: {given} makes {dim} {got}; the model takes inputs where it is {number}")


def validate(graph: Graph) -> Graph:
    """Check the graph's form and return it; raise ModelFormatError naming the node otherwise.

    Checks: known ops with exactly their attributes and known functions, every value declared once and made before use
    (a state's input excepted), outputs made, constants as declared, threaded states of one form at both ends, and the
    dims of every node's outputs as its inputs imply.
    """
    made = set(graph.inputs) | set(graph.constants)
    _check_ends(graph)
    for name, array in graph.constants.items():
        value = _declared(graph, name, "constant")
        if array.dtype != DTYPES[value.dtype] or tuple(array.shape) != tuple(value.dims):
            raise ModelFormatError(f"constant {name}: declared {value}, holds {array.dtype}{list(array.shape)}")
    names = set()
    for node in graph.nodes:
        if node.op not in _FORM:
            raise ModelFormatError(f"node {node.name}: unknown op {node.op!r}")
        least, most, outs, attrs = _FORM[node.op]
        if not least <= len(node.inputs) <= most or not 1 <= len(node.outputs) <= outs:
            raise ModelFormatError(
                f"node {node.name}: {node.op} with {len(node.inputs)} inputs, {len(node.outputs)} outputs"
            )
        if None in node.inputs[:least]:
            raise ModelFormatError(f"node {node.name}: a required input of {node.op} is absent")
        if set(node.attrs) - _MAY_LACK.get(node.op, set()) != attrs:
            raise ModelFormatError(
                f"node {node.name}: {node.op} has attributes {sorted(node.attrs)}, expected {sorted(attrs)}"
            )
        if node.name in names:
            raise ModelFormatError(f"two nodes are named {node.name}")
        names.add(node.name)
        _check_functions(graph, node)
        for k, name in enumerate(node.inputs):
            if name is not None:
                _declared(graph, name, f"input of node {node.name}")
                if name not in made and (node.op, k) != ("state", 0):
                    raise ModelFormatError(f"node {node.name}: its input {name} is not made before it")
        for name in node.outputs:
            if name is None:
                continue
            _declared(graph, name, f"output of node {node.name}")
            if name in made:
                raise ModelFormatError(f"node {node.name}: its output {name} is made twice")
            made.add(name)
    for name in graph.outputs:
        if name not in made:
            raise ModelFormatError(f"{graph.name}: nothing makes the output {name}")
    for node in graph.nodes:
        if node.op == "state" and node.inputs[0] not in made:
            raise ModelFormatError(f"node {node.name}: nothing makes its input {node.inputs[0]}")
    from .shapes import check_shapes

    check_shapes(graph)
    return graph


def _check_ends(graph: Graph) -> None:
    """Inputs, outputs and threaded states: declared, named once, and of one form where they belong together."""
    for what, ends in (("input", graph.inputs), ("output", graph.outputs)):
        if len(set(ends)) != len(ends):
            raise ModelFormatError(f"{graph.name}: an {what} is named twice")
        for name in ends:
            _declared(graph, name, what)
    for name in graph.inputs:
        if name in graph.constants:
            raise ModelFormatError(f"{graph.name}: the input {name} is a constant too")
    known = {name for value in graph.inputs for d in graph.values[value].dims for name in symbols(d)}
    for dim, number in graph.requires:
        if not isinstance(dim, Dim) or type(number) is not int or not symbols(dim) <= known:
            raise ModelFormatError(f"{graph.name}: requires {dim} = {number}, which no input's size tells")
    for start, end in graph.states.items():
        if start not in graph.inputs or end not in graph.outputs:
            raise ModelFormatError(f"{graph.name}: state {start} -> {end} does not lead from an input to an output")
        a, b = graph.values[start], graph.values[end]
        if (a.dtype, a.dims) != (b.dtype, b.dims):
            raise ModelFormatError(f"{graph.name}: state {a} ends as {b}")


# op -> (attribute that names a function or a dtype, what it may be)
_CHOICES = {
    "linear": ("activation", UNARY | {None}),
    "unary": ("fn", UNARY),
    "binary": ("fn", BINARY),
    "cast": ("to", frozenset(DTYPES)),
    "reduce": ("fn", frozenset(("sum", "mean", "max", "min"))),
    "pad": ("mode", frozenset(("constant", "reflect", "edge"))),
    "pool": ("fn", frozenset(("max", "mean"))),
}


_LARGEST = float(np.finfo(np.float32).max)


def _check_functions(graph: Graph, node: Node) -> None:
    """Functions are known ones, float32 holds their alpha and beta, and what the vocabulary calls constant is one."""
    attr, known = _CHOICES.get(node.op, (None, ()))
    if attr is not None and node.attrs[attr] not in known:
        raise ModelFormatError(f"node {node.name}: {attr} of {node.op} is {node.attrs[attr]!r:.80}, which is unknown")
    for value in _parameters(node):
        if _LARGEST < abs(value) < float("inf"):
            raise ModelFormatError(f"node {node.name}: alpha or beta is {value:.6g}, which float32 can't hold")
    if node.op in ("linear", "conv", "conv_transpose"):
        for name in node.inputs[1:]:
            if name is not None and name not in graph.constants:
                raise ModelFormatError(f"node {node.name}: {name} must be a constant")


def _parameters(node: Node) -> list[float]:
    """alpha and beta of the functions of a node. Not of clip: bounds beyond float32 bound nothing, as infinite ones."""
    if node.op == "cell":
        return [number for a in node.attrs["spec"].activations for number in (a.alpha, a.beta)]
    name = node.attrs["fn" if node.op == "unary" else "activation"] if node.op in ("unary", "linear") else "clip"
    return [] if name == "clip" else [node.attrs["alpha"], node.attrs["beta"]]


def _declared(graph: Graph, name: str, what: str) -> Value:
    value = graph.values.get(name)
    if value is None:
        raise ModelFormatError(f"{graph.name}: {what} {name} is not declared")
    if value.dtype not in DTYPES:
        raise ModelFormatError(f"{graph.name}: value {name} has the unknown dtype {value.dtype!r}")
    if any(isinstance(d, int) and d < 0 for d in value.dims):
        raise ModelFormatError(f"{graph.name}: value {name} has a negative dim: {value}")
    return value
