"""A live PyTorch module -> ONNX, for the ONNX importer: traced here if possible, otherwise by torch's exporters.

Tracing keeps every size free and every recurrent layer whole. The exporters write example sizes into the file, unroll
nn.RNN and break projections (the ONNX importer undoes much of that). `Converted.answer` runs the module itself, so that
the caller can compare.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import torch
from torch import nn

from ...errors import ModelFormatError, UnsupportedError
from ...graph import Graph
from ...graph import dims as D
from ...graph.casts import check_float32
from . import lookups, tracing
from .emit import Unknown
from .through_torch import quiet


@dataclass(frozen=True)
class Converted:
    """proto: the ONNX model. example: its inputs, name -> array. how: what made it, for a note."""

    module: nn.Module
    proto: onnx.ModelProto
    example: Mapping[str, np.ndarray]
    nesting: tuple
    how: str

    def answer(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray] | None:
        """The module's own results, flattened; None if it does not accept these sizes."""
        arrays = iter(torch.from_numpy(np.ascontiguousarray(feeds[name])) for name in self.example)
        try:
            with torch.no_grad(), quiet():
                result = self.module(*_filled(self.nesting, arrays))
        except Exception:  # whatever the module's code raises at sizes it was not written for
            return None
        return [tracing.numbers(t) for t in _tensors(result)]

    def check(self, graph: Graph, run: Callable) -> bool:
        """Compare `run` (arrays by name -> arrays), which runs the graph made from this, with the module: at the
        example's sizes, and at others that both accept. True if each free size of the graph was compared at two or more
        other values. Raises UnsupportedError if a result differs."""
        own = self._own_sizes(graph)
        seen: dict[str, set[int]] = {name: set() for name in own}
        for env in (None, *_other_sizes(own)):
            feeds = self._feeds(graph, env)
            want = None if feeds is None else self.answer(feeds)
            if want is None:
                continue
            for name in own if env is not None else ():
                seen[name] |= {env[name]} - {own[name]}
            told = ", ".join(f"{name} {list(array.shape)}" for name, array in feeds.items())
            got = run(**{name: feeds[name] for name in graph.inputs})
            if len(got) != len(want):
                text = f"{len(got)} outputs here and {len(want)} of the module"
                raise UnsupportedError(f"at {told} there are {text}", type(self.module).__name__)
            for name, mine, theirs in zip(graph.outputs, got, want, strict=True):
                if mine.shape != theirs.shape:
                    text = f"is {list(mine.shape)} here and {list(theirs.shape)} of the module"
                    raise UnsupportedError(f"at {told} its output {name} {text}", type(self.module).__name__)
                gap = _gap(mine, theirs)
                if not gap <= TOLERANCE:
                    text = f"is off by {gap:.2g} from the module's ({self.how})"
                    raise UnsupportedError(f"at {told} its output {name} {text}", type(self.module).__name__)
        return all(len(numbers) > 1 for numbers in seen.values())

    def _own_sizes(self, graph: Graph) -> dict[str, int]:
        """The example's sizes for the graph's batch and time, if those are free."""
        found: dict[str, int] = {}
        for name in graph.inputs:
            for dim, size in zip(graph.values[name].dims, self.example[name].shape, strict=True):
                found |= {"batch": size} if dim == D.BATCH else {"time": size} if dim == D.TIME else {}
        return found

    def _feeds(self, graph: Graph, env: dict[str, int] | None) -> dict[str, np.ndarray] | None:
        """Arrays like the example's at other sizes, or the example itself if `env` is None."""
        if env is None:
            return dict(self.example)
        rng, feeds = np.random.default_rng(0), {}
        for name, array in self.example.items():
            dims = graph.values[name].dims if name in graph.inputs else array.shape
            if any(D.symbols(d) - set(env) for d in dims):
                return None
            shape = [D.evaluate(d, env) for d in dims]
            floats = array.dtype.kind == "f"
            feeds[name] = rng.normal(size=shape).astype(array.dtype) if floats else np.resize(array, shape)
        return feeds


def _other_sizes(own: Mapping[str, int]) -> list[dict[str, int]]:
    """Batches and lengths other than the example's, small and large, even and odd. A module need not accept all."""
    rows, steps = own.get("batch", 1), own.get("time", 1)
    pairs = [(2, 7), (1, 4), (rows + 1, 2 * steps), (rows, steps + 1), (rows + 2, steps + 8), (3, max(1, steps // 2))]
    return [{"batch": batch, "time": time} for batch, time in pairs]


# A wrong gate order or a frozen example length shows as 1e-2 or more; two float32 engines differ by about 1e-6.
TOLERANCE = 1e-3


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and _gap(tracing.numbers(a), tracing.numbers(b)) <= TOLERANCE


def _gap(mine: np.ndarray, theirs: np.ndarray) -> float:
    """The largest difference of arrays of equal shape, relative to 1 + |theirs|; inf if only one is not finite."""
    a, b = mine.astype(np.float64), theirs.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gap = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b) / (1 + np.abs(b)))
    return float(np.where(np.isfinite(gap), gap, np.inf).max(initial=0.0))


def convert(module: nn.Module, example=None, *, float64_as_float32: bool = False) -> Converted:
    """ONNX of a module. The module is treated as in eval mode and not modified.

    Parameters
    ----------
    module : nn.Module, or a ScriptModule
    example : a tensor or array, or a tuple of the arguments of `forward` (may contain tuples of tensors); needed if
        torch.fx can't trace the module, or if the form of its inputs can't be inferred
    float64_as_float32 : compute a float64 module in float32; otherwise it is refused

    Raises
    ------
    ModelFormatError : not a module, or a needed example is missing. UnsupportedError : neither torch.fx nor torch's
    exporters can express it; the text quotes the error of each.
    """
    if not isinstance(module, nn.Module):
        raise ModelFormatError(f"from_torch takes a torch.nn.Module, got {type(module).__name__}")
    module = _ready(module, float64_as_float32)
    args = None if example is None else _arguments(example)
    try:
        return _traced(module, args)
    except Unknown as unknown:
        if args is None:
            raise ModelFormatError(
                f"{type(module).__name__}: {unknown}; pass example=, a tensor or a tuple of the arguments of forward"
            ) from None
        return _exported(module, args, str(unknown))


def _ready(module: nn.Module, float64_as_float32: bool) -> nn.Module:
    """The module in eval mode, on the CPU, in float32: a copy."""
    wide = {n: t for n, t in (*module.named_parameters(), *module.named_buffers()) if t.dtype == torch.float64}
    if wide and not float64_as_float32:
        raise UnsupportedError(
            "computes in float64 (double); pass float64_as_float32=True to compute in float32", type(module).__name__
        )
    for name, tensor in wide.items():
        check_float32(tracing.numbers(tensor), f"{type(module).__name__}: {name}", ModelFormatError)
    try:
        with quiet():
            held = copy.deepcopy(module)
    except Exception as error:  # a module may hold anything
        raise UnsupportedError(f"the module can't be copied ({error!s:.120})", type(module).__name__) from None
    with quiet():
        return held.cpu().float().eval()


def _arguments(example) -> tuple:
    def tensor(value):
        if isinstance(value, np.ndarray):
            value = torch.from_numpy(np.ascontiguousarray(value))
        if isinstance(value, torch.Tensor):
            value = value.detach().cpu()
            if value.dtype == torch.float64:
                check_float32(tracing.numbers(value), "example=", ModelFormatError)
            return value.float() if value.is_floating_point() else value
        if isinstance(value, tuple | list):
            return tuple(tensor(part) for part in value)
        if value is None or isinstance(value, bool | int | float):
            return value
        raise ModelFormatError(f"example= has a {type(value).__name__}; it takes tensors, and tuples of them")

    found = tensor(example)
    return found if isinstance(found, tuple) else (found,)


def _traced(module: nn.Module, args: tuple | None) -> Converted:
    if isinstance(module, torch.jit.ScriptModule):
        raise Unknown("TorchScript")
    traced, names = tracing.graph_of(module, None if args is None else len(args))
    try:
        given = tracing.inputs_by_use(traced, names)
    except Unknown:
        if args is None:
            raise
        given = [tracing.Given(name, value) for name, value in zip(names, args, strict=True)]
    if args is not None:
        given = [_fits(g, name, value) for g, name, value in zip(given, names, args, strict=True)]
    try:
        with quiet():
            proto, flat, answers = tracing.to_onnx(traced, given)
            own = list(_tensors(module(*(g.value for g in given))))
    except Unknown:
        raise
    except Exception as error:  # the module refused the example
        raise Unknown(f"it does not take such an example ({type(error).__name__}: {error!s:.160})") from None
    if len(own) != len(answers) or not all(_close(a, b) for a, b in zip(own, answers, strict=True)):
        # Its code inspects the type of a traced value, for example isinstance(y, tuple).
        raise Unknown("what torch.fx traces gives other answers than the module")
    nesting = tuple(_form(g.value) for g in given)
    return Converted(module, proto, {n: tracing.numbers(v) for n, v in flat}, nesting, "traced by torch.fx")


def _fits(given: tracing.Given, name: str, value) -> tracing.Given:
    """The example with the dims that the module's first layer implies, if the two agree in rank and dtype."""
    dims = given.dims
    agree = dims is not None and isinstance(value, torch.Tensor) and value.ndim == len(dims)
    agree = agree and value.is_floating_point() == given.value.is_floating_point()
    if not agree or any(isinstance(d, int) and d != n for d, n in zip(dims or (), value.shape, strict=False)):
        dims = None
    return tracing.Given(name, value, dims)


def _exported(module: nn.Module, args: tuple, why: str) -> Converted:
    """Convert with torch's exporters: the newer one, then the older one."""
    said = [f"traced: {why}"]
    tensors = list(_tensors(args))
    nesting = tuple(_form(a) for a in args)
    for dynamo in (True, False):
        if dynamo and isinstance(module, torch.jit.ScriptModule):
            continue
        try:
            with torch.no_grad(), quiet():
                proto = _export(module, args, dynamo)
        except Exception as error:  # the exporters raise dozens of classes of their own
            text = (str(error).strip().splitlines() or [type(error).__name__])[0]
            said.append(f"torch.onnx.export(dynamo={dynamo}): {text:.160}")
            continue
        names = [v.name for v in proto.graph.input]
        if len(names) != len(tensors):
            said.append(f"torch.onnx.export(dynamo={dynamo}): {len(names)} of {len(tensors)} inputs are in its file")
            continue
        _name_outputs(proto)
        example = {name: tracing.numbers(t) for name, t in zip(names, tensors, strict=True)}
        return Converted(module, proto, example, nesting, f"written by torch.onnx.export(dynamo={dynamo}) ({why})")
    raise UnsupportedError(said, type(module).__name__)


def _export(module: nn.Module, args: tuple, dynamo: bool) -> onnx.ModelProto:
    if dynamo:
        table = lookups.translations()
        return torch.onnx.export(
            module, args, None, dynamo=True, verbose=False, custom_translation_table=table
        ).model_proto
    file = io.BytesIO()
    with lookups.older_form(opset=17):
        torch.onnx.export(module, args, file, dynamo=False, opset_version=17, custom_opsets={lookups.DOMAIN: 1})
    return onnx.load_from_string(file.getvalue())


def _name_outputs(proto: onnx.ModelProto) -> None:
    """Name outputs y, or y0, y1, ..., as for a traced module."""
    many, taken = (
        len(proto.graph.output) > 1,
        {name for node in proto.graph.node for name in (*node.input, *node.output)},
    )
    for k, info in enumerate(proto.graph.output):
        name = f"y{k}" if many else "y"
        if name in taken:
            continue
        proto.graph.node.append(onnx.helper.make_node("Identity", [info.name], [name], f"output.{name}"))
        info.name = name


# -- nested arguments and results --


def _form(value):
    """The nesting of a value: None and numbers stay, tensors become True."""
    if isinstance(value, tuple | list):
        return tuple(_form(part) for part in value)
    return _HERE if isinstance(value, torch.Tensor) else value


_HERE = object()


def _filled(form, arrays: Iterator):
    if isinstance(form, tuple):
        return tuple(_filled(part, arrays) for part in form)
    return next(arrays) if form is _HERE else form


def _tensors(value) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from _tensors(part)
