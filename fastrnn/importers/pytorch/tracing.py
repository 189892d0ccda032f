"""A live module, traced by torch.fx -> an ONNX model with free sizes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper
from torch import fx, nn

from ...records import dataclass
from . import held, moves, nesting, packed  # noqa: F401  (moves registers its functions)
from .emit import Emitter, Packed, Size, Unknown, V, onnx_dtype
from .functions import FUNCTIONS
from .nn_modules import MODULES

# Trial sizes for an input whose form the module's layers show: distinct, and unlike any usual size.
BATCH, TIME = 3, 11


@dataclass(frozen=True)
class Given:
    """An input. value: the example (a tensor, or a tuple of them). dims: for a tensor, a name or int per axis, None if
    only the example shows them."""

    name: str
    value: Any
    dims: tuple | None = None


class _Tracer(fx.Tracer):
    def __init__(self) -> None:
        # The functions that pack sequences look into their arguments, so they are not followed.
        super().__init__(autowrap_modules=(math, nn.utils.rnn))

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return type(module) in MODULES or super().is_leaf_module(module, name)


@dataclass(frozen=True)
class Input:
    """An argument that is an input. argument: its name in forward; name: of the model's input."""

    argument: str
    name: str


@dataclass(frozen=True)
class Program:
    """What torch.fx recorded. root: the module; attributes: its parameters, buffers and constants by their names."""

    graph: fx.Graph
    root: nn.Module
    attributes: Mapping[str, Any]

    def module(self, node: fx.Node) -> nn.Module:
        """The module that a node calls."""
        return self.root.get_submodule(str(node.target))


def graph_of(module: nn.Module, given: nesting.Arguments | None) -> tuple[Program, list[Input]]:
    """(the traced module, its inputs). given: the example's arguments, None if there is none.

    Arguments that are not given keep their defaults. Raises Unknown if fx can't trace the module.
    """
    names = _inputs_of(module, given)
    inputs = [Input(name, name) for name, default in names.items() if default is _GIVEN]
    if type(module) in MODULES:
        return _alone(module, inputs)
    tracer, kept = _Tracer(), held.Snapshot(module)
    concrete = {name: default for name, default in names.items() if default is not _GIVEN}
    try:
        graph = tracer.trace(module, concrete or None)
        attributes = {str(n.target): _attribute(module, str(n.target)) for n in graph.nodes if n.op == "get_attr"}
    except Exception as error:  # whatever the module's code raises for a value that isn't there
        text = (str(error).splitlines() or [""])[0]
        raise Unknown(f"torch.fx can't trace it ({type(error).__name__}: {text:.120})") from None
    finally:
        kept.restore()  # its code may keep traced values in attributes
    places = [node for node in graph.nodes if node.op == "placeholder"]
    for node, name in zip(places, names, strict=True):
        if name in concrete:
            _erase(graph, node)
    return Program(graph, module, attributes), inputs


def _attribute(module: nn.Module, name: str):
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _erase(graph: fx.Graph, node: fx.Node) -> None:
    """Remove the placeholder of an argument that keeps its default, and the check that fx inserts for it."""
    for user in list(node.users):
        _erase(graph, user)
    graph.erase_node(node)


_GIVEN = object()


def _inputs_of(module: nn.Module, given: nesting.Arguments | None) -> dict[str, Any]:
    """Name of each argument of forward -> _GIVEN if it is an input, or its value."""
    values = None if given is None else dict(given.items())
    found: dict[str, Any] = {}
    for parameter in nesting.parameters(module):
        name = parameter.name
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise Unknown("forward takes * or ** arguments")
        if values is not None and name in values:
            found[name] = _GIVEN if nesting.tensors_in(values[name]) else values[name]
            if nesting.parts_of(found[name]) is not None:
                raise Unknown(f"the argument {name} is nested and holds no tensor")
        else:
            found[name] = _GIVEN if parameter.default is parameter.empty else parameter.default
    return found


_SHORT = {"input": "x", "hx": "state"}  # arguments of torch's own modules


def _alone(module: nn.Module, inputs: list[Input]) -> tuple[Program, list[Input]]:
    """A single module of torch.nn: a graph that only calls it."""
    inputs = [Input(i.argument, _SHORT.get(i.argument, i.argument)) for i in inputs]
    graph = fx.Graph()
    graph.output(graph.call_module("module", tuple(graph.placeholder(i.name) for i in inputs)))
    root = nn.Module()
    root.module = module
    return Program(graph, root, {}), inputs


# -- inputs --


def inputs_by_use(traced: Program, inputs: Sequence[Input]) -> list[Given]:
    """Each input in the form that its first reader among the modules expects. Raises Unknown if no module shows it."""
    places = [n for n in traced.graph.nodes if n.op == "placeholder"]
    return [_by_use(traced, node, i.name) for node, i in zip(places, inputs, strict=True)]


def _by_use(traced: Program, node: fx.Node, name: str) -> Given:
    found = _dims_by_use(traced, node)
    if found is None:
        raise Unknown(f"the form of the input {name} can't be inferred from the first module that uses it")
    module, dims = found
    shape = [{"batch": BATCH, "time": TIME}.get(d, d) if isinstance(d, str) else d for d in dims]
    if isinstance(module, nn.Embedding):
        return Given(name, torch.randint(0, module.num_embeddings, shape), dims)
    return Given(name, torch.randn(shape), dims)


# Functions that return their first argument in the same form.
_THROUGH = frozenset({nn.Dropout, nn.Identity, nn.ReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU})
_THROUGH_CALLS = frozenset("relu tanh sigmoid log log1p exp abs sqrt contiguous float dropout".split())


def _dims_by_use(traced: Program, node: fx.Node) -> tuple[nn.Module, tuple] | None:
    """(the first module that shows the dims of this value, those dims)."""
    for user in node.users:
        if not user.args or user.args[0] is not node:
            if user.op == "call_module" and len(user.args) > 1:
                dims = _as_state(traced.module(user), user.args[1], node)
                if dims is not None:
                    return nn.Identity(), dims
            continue
        name = str(user.target) if user.op == "call_method" else getattr(user.target, "__name__", "")
        found = None
        if user.op == "call_module":
            module = traced.module(user)
            dims = _wanted(module)
            if dims is not None:
                return module, dims
            found = _dims_by_use(traced, user) if type(module) in _THROUGH else None
        elif name in _THROUGH_CALLS:
            found = _dims_by_use(traced, user)
        elif name == "pad" and len(user.args) > 1 and isinstance(user.args[1], tuple | list) and len(user.args[1]) == 2:
            found = _dims_by_use(traced, user)
            found = found if found is not None and found[1][-1] == "time" else None
        elif name in ("transpose", "permute"):
            found = _transposed(_dims_by_use(traced, user), name, user.args[1:])
        if found is not None:
            return found
    return None


def _as_state(module: nn.Module, given, node: fx.Node) -> tuple | None:
    """The dims of an initial state, if `node` is the state passed to a recurrent module, or one of its two states."""
    parts = list(given) if isinstance(given, tuple | list) else [given]
    if node not in parts:
        return None
    if isinstance(module, nn.RNNCellBase):
        return "batch", module.hidden_size
    if isinstance(module, nn.RNNBase):
        size = module.proj_size if module.proj_size and parts[0] is node else module.hidden_size
        return module.num_layers * (2 if module.bidirectional else 1), "batch", size
    return None


def _transposed(found: tuple[nn.Module, tuple] | None, name: str, args: tuple) -> tuple[nn.Module, tuple] | None:
    """The dims before a transpose or permute, from those after it."""
    if found is None:
        return None
    module, dims = found
    perm = list(args[0]) if len(args) == 1 and isinstance(args[0], tuple | list) else list(args)
    if name == "transpose":
        if len(perm) != 2 or not all(isinstance(p, int) and -len(dims) <= p < len(dims) for p in perm):
            return None
        i, j = perm
        perm = list(range(len(dims)))
        perm[i], perm[j] = perm[j], perm[i]
    if sorted(perm) != list(range(len(dims))):
        return None
    before: list = [None] * len(dims)
    for behind, axis in enumerate(perm):
        before[axis] = dims[behind]
    return module, tuple(before)


def _wanted(module: nn.Module) -> tuple | None:
    """The dims that a module expects, if it usually takes sequences."""
    if isinstance(module, nn.RNNBase):
        return ("batch", "time", module.input_size) if module.batch_first else ("time", "batch", module.input_size)
    if isinstance(module, nn.Linear):
        return "batch", "time", module.in_features
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) == 1:
        return "batch", "time", module.normalized_shape[0]
    if isinstance(module, nn.Conv1d):
        return "batch", module.in_channels, "time"
    if isinstance(module, nn.Embedding):
        return "batch", "time"
    if isinstance(module, nn.RNNCellBase):
        return "batch", module.input_size
    return None


# -- the walk --


@dataclass(frozen=True)
class Traced:
    """proto: the ONNX model. inputs: name -> the example's tensor. answers: the results of the trace.

    lengths: inputs that say how many steps of each row count -> the steps of the example
    """

    proto: onnx.ModelProto
    inputs: dict[str, torch.Tensor]
    answers: list[torch.Tensor]
    lengths: Mapping[str, int]


def to_onnx(traced: Program, given: Sequence[Given]) -> Traced:
    """The ONNX model of a trace. Raises Unknown at the first node that has no ONNX form here."""
    b = Emitter()
    flat: dict[str, torch.Tensor] = {}
    infos: list[onnx.ValueInfoProto] = []

    def declare(name: str, value: torch.Tensor, dims) -> V:
        infos.append(helper.make_tensor_value_info(name, onnx_dtype(value.dtype), list(dims)))
        flat[name] = value
        return V(name, value.clone())  # the module may write into it

    names = iter(nesting.unique([name for g in given for name, _ in nesting.leaves(g.value, g.name)]))
    values: dict[fx.Node, Any] = {}
    queue = [
        nesting.mapped(g.value, lambda t, dims=g.dims: declare(next(names), t, t.shape if dims is None else dims))
        for g in given
    ]
    result = None
    with torch.no_grad():
        for node in traced.graph.nodes:
            if node.op == "placeholder":
                values[node] = queue.pop(0)
            elif node.op == "output":
                result = fx.map_arg(node.args[0], lambda n: values[n])
            else:
                values[node] = _emitted(b, traced, node, values)
    outputs = _outputs(result, list(flat))
    proto = b.proto(outputs, infos)
    return Traced(proto, flat, [v.value for _, v in outputs], packed.lengths_among(b, list(flat)))


def _emitted(b: Emitter, traced: Program, node: fx.Node, values: dict):
    args = fx.map_arg(node.args, lambda n: values[n])
    kwargs = fx.map_arg(node.kwargs, lambda n: values[n])
    if node.op == "get_attr":
        kept = traced.attributes[str(node.target)]
        return V(b.const(kept.detach().numpy()), kept.detach()) if isinstance(kept, torch.Tensor) else kept
    b.label = str(node.target) if node.op == "call_module" else node.name
    if node.target is getattr and isinstance(args[0], tuple) and args[1] in _FIELDS:
        return args[0][_FIELDS[args[1]]]
    plain_args, plain_kwargs = _plain(args), _plain(kwargs)
    if node.op == "call_module":
        module = traced.module(node)
        handler = MODULES.get(type(module))
        if handler is None:
            raise Unknown(f"{type(module).__name__} ({node.target})")
        out = module(*plain_args, **plain_kwargs)
        return _joined(handler(b, module, out, *args, **kwargs), out)
    if isinstance(node.target, type) and (dataclasses.is_dataclass(node.target) or hasattr(node.target, "_fields")):
        return node.target(*args, **kwargs)  # a result of named parts
    if node.op == "call_method":
        name, out = str(node.target), getattr(plain_args[0], str(node.target))(*plain_args[1:], **plain_kwargs)
    else:
        name, out = _name(node.target), node.target(*plain_args, **plain_kwargs)
    if name in ("getitem", "getattr") and isinstance(args[0], Packed):
        raise Unknown("the inside of a packed sequence")
    if name in ("getitem", "getattr") and not isinstance(args[0], V):
        return args[0][args[1]] if name == "getitem" else out
    if not _any(args) and not _any(kwargs):  # nothing traced: a constant, or a Python number
        return V(b.const(out.numpy()), out) if isinstance(out, torch.Tensor) else out
    if name not in FUNCTIONS:
        raise Unknown(f"{name} (node {node.name})")
    try:
        return _joined(FUNCTIONS[name](b, out, *args, **kwargs), out)
    except (TypeError, AttributeError) as error:  # arguments that our function doesn't take
        raise Unknown(f"{name} with these arguments ({error!s:.120})") from None


_FIELDS = {"values": 0, "indices": 1}  # of the results of max and similar functions


def _name(target: Callable) -> str:
    """The name of a function as a key of `FUNCTIONS`; only functions of torch and Python qualify."""
    module = getattr(target, "__module__", None) or ""
    if module.partition(".")[0] not in ("torch", "_operator", "operator", "math", "builtins", ""):
        raise Unknown(f"the function {module}.{getattr(target, '__name__', target)}")
    return getattr(target, "__name__", str(target)).strip("_")


def _plain(value):
    """Arguments with traced values replaced by what torch computed."""
    return fx.node.map_aggregate(value, lambda v: v.value if isinstance(v, V | Size | Packed) else v)


def _any(value) -> bool:
    found = []
    fx.node.map_aggregate(value, lambda v: found.append(v) if isinstance(v, V | Size | Packed) else None)
    return bool(found)


def _joined(names, out):
    """Names of ONNX values paired with torch's results, nested like the results."""
    if isinstance(names, V | Size | Packed):
        return names
    if isinstance(out, torch.Tensor):
        if not isinstance(names, str):
            raise Unknown("a function that returns something unexpected")
        return V(names, out)
    if isinstance(names, tuple | list):
        if len(names) != len(out):
            raise Unknown("a function that returns something unexpected")
        return tuple(_joined(n, o) for n, o in zip(names, out, strict=True))
    return names


def _outputs(result, taken: list[str]) -> list[tuple[str, V]]:
    """(name, value) of each tensor that the module returns, in order."""
    found = nesting.tensors_in(result, V)
    if nesting.tensors_in(result, Size) or nesting.tensors_in(result, Packed):
        raise Unknown("an output that is a size or a packed sequence")
    if not found:
        raise Unknown("no output is a tensor that depends on the input")
    return list(zip(nesting.result_names(result, taken, V), found, strict=True))


def numbers(value: torch.Tensor) -> np.ndarray:
    """A tensor's array."""
    return value.detach().cpu().numpy()
