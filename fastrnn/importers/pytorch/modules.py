"""A live PyTorch module -> ONNX, for the ONNX importer: traced here if possible, otherwise by torch's exporters.

Tracing keeps every size free and every recurrent layer whole. The exporters write example sizes into the file, unroll
loops and nn.RNN and break projections (the ONNX importer undoes much of that). `candidates` gives each form in turn.
`Converted.answer` runs the module itself, so that the caller can compare.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import field, replace

import numpy as np
import onnx
import torch
from torch import nn

from ...errors import ModelFormatError, UnsupportedError
from ...graph import Graph
from ...graph import dims as D
from ...graph.casts import check_float32
from ...records import dataclass
from . import exporting, held, nesting, quantised, tracing
from .emit import Unknown
from .through_torch import quiet


@dataclass(frozen=True)
class Converted:
    """proto: the ONNX model. example: its inputs, name -> array. form: the arguments, without their tensors.

    how: what made it, for a note. lengths: inputs that say how many steps of each row count -> the steps of the example
    integers: what the module's 8-bit weights are worth, as in `Graph`
    """

    module: nn.Module
    proto: onnx.ModelProto
    example: Mapping[str, np.ndarray]
    form: nesting.Arguments
    how: str
    lengths: Mapping[str, int] = field(default_factory=dict)
    integers: Mapping[float, frozenset] = field(default_factory=dict)

    def answer(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray] | None:
        """The module's own results, flattened; None if it does not accept these sizes."""
        arrays = iter([torch.from_numpy(np.array(feeds[name], order="C")) for name in self.example])
        try:
            with torch.no_grad(), quiet():
                result = nesting.call(self.module, self.form.filled(arrays))
        except Exception:  # whatever the module's code raises at sizes it was not written for
            return None
        return [tracing.numbers(t) for t in nesting.tensors_in(result)]

    def most_free(self) -> int:
        """How many axes of the inputs can be free: the batch and the length of each input that has them."""
        if self.how.startswith("traced"):
            return sum(a.ndim for a in self.example.values())
        return sum(min(a.ndim, 2) for a in self.example.values())

    def check(self, graph: Graph, run: Callable) -> bool:
        """Compare `run` (arrays by name -> arrays), which runs the graph made from this, with the module: at the
        example's sizes, and at others that both accept. True if each free size of the graph was compared at two or more
        other values. Raises UnsupportedError if a result differs."""
        own = self._own_sizes(graph)
        seen: dict[str, set[int]] = {name: set() for name in own}
        envs = [None, *_other_sizes(own)]
        for env, short in [(e, False) for e in envs] + [(e, True) for e in envs if self.lengths]:
            feeds = self._feeds(graph, env, short)
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
                mine = _cut(mine, theirs) if short else mine
                if mine.shape != theirs.shape:
                    text = f"is {list(mine.shape)} here and {list(theirs.shape)} of the module"
                    raise UnsupportedError(f"at {told} its output {name} {text}", type(self.module).__name__)
                gap = _gap(mine, theirs)
                if not gap <= TOLERANCE:
                    text = f"is off by {gap:.2g} from the module's ({self.how})"
                    text += _SHORT if short else ""
                    raise UnsupportedError(f"at {told} its output {name} {text}", type(self.module).__name__)
        return all(len(numbers) > 1 for numbers in seen.values())

    def _own_sizes(self, graph: Graph) -> dict[str, int]:
        """The example's sizes for the graph's batch and time, if those are free."""
        found: dict[str, int] = {}
        for name in graph.inputs:
            for dim, size in zip(graph.values[name].dims, self.example[name].shape, strict=True):
                found |= {"batch": size} if dim == D.BATCH else {"time": size} if dim == D.TIME else {}
        return found

    def _feeds(self, graph: Graph, env: dict[str, int] | None, short: bool) -> dict[str, np.ndarray] | None:
        """Arrays like the example's at other sizes, or the example itself if `env` is None. short: all rows are
        shorter than the sequence."""
        rng, feeds = np.random.default_rng(0), {}
        for name, array in self.example.items():
            dims = graph.values[name].dims if name in graph.inputs and env is not None else array.shape
            if env is not None and any(D.symbols(d) - set(env) for d in dims):
                return None
            shape = [D.evaluate(d, env or {}) for d in dims]
            floats = array.dtype.kind == "f" and env is not None
            feeds[name] = rng.normal(size=shape).astype(array.dtype) if floats else np.resize(array, shape)
            if name in self.lengths:
                feeds[name] = _lengths(feeds[name], self.lengths[name], (env or {}).get("time"), short)
        return feeds


_SHORT = (
    ", if all rows are shorter than the sequence: PyTorch cuts a padded result to its longest row, and the model does "
    "not. Pass total_length=x.shape[1] to pad_packed_sequence"
)


def _cut(mine: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """An output without the steps behind the longest row, which torch leaves out."""
    apart = [k for k, (n, m) in enumerate(zip(mine.shape, theirs.shape, strict=False)) if n != m]
    if mine.ndim != theirs.ndim or len(apart) != 1 or mine.shape[apart[0]] < theirs.shape[apart[0]]:
        return mine
    return mine.take(range(theirs.shape[apart[0]]), apart[0])


def _lengths(given: np.ndarray, steps: int, now: int | None, short: bool) -> np.ndarray:
    """Lengths of rows of `now` steps from those of `steps` steps: the longest row first, and none longer than the one
    before it. The longest has all steps, or one less if `short`: torch cuts the result to it."""
    now = steps if now is None else now
    now = max(1, now - short)
    found = np.sort(np.clip(given * now // steps, 1, now).reshape(-1))[::-1]
    found[:1] = now
    return found.reshape(given.shape).astype(given.dtype)


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


def candidates(module: nn.Module, example=None, *, float64_as_float32: bool = False) -> Iterator[Converted | str]:
    """Each way in which a module can be written as ONNX, best first; a text for a way that failed.

    Layers with 8-bit weights are widened (quantised.py).

    The module is treated as in eval mode and not modified.

    Parameters
    ----------
    module : nn.Module, or a ScriptModule
    example : a tensor or array, a tuple of the arguments of `forward` (may contain tuples, lists and dicts of tensors),
        or a dict of the arguments by name; needed if torch.fx can't trace the module, or if the form of its inputs
        can't be inferred
    float64_as_float32 : compute a float64 module in float32; otherwise it is refused

    Raises
    ------
    ModelFormatError : not a module, or a needed example is missing or does not fit. UnsupportedError : the module keeps
    a state, or can't be copied.
    """
    if not isinstance(module, nn.Module):
        raise ModelFormatError(f"from_torch takes a torch.nn.Module, got {type(module).__name__}")
    integers: dict[float, frozenset] = {}
    module = _ready(module, float64_as_float32, integers)
    given = None if example is None else nesting.bound(module, example)
    if given is not None:
        held.refuse_states(module, given)
    try:
        yield replace(_traced(module, given), integers=integers)
    except Unknown as unknown:
        if given is None:
            raise ModelFormatError(
                f"{type(module).__name__}: {unknown}; pass example=, a tensor or a tuple of the arguments of forward"
            ) from None
        why = str(unknown)
    else:
        if given is None:
            return
        why = "torch.fx traces it too"
    yield f"traced: {why}"
    for found in _exported(module, given, why):
        yield found if isinstance(found, str) else replace(found, integers=integers)


def _ready(module: nn.Module, float64_as_float32: bool, integers: dict) -> nn.Module:
    """The module in eval mode, on the CPU, in float32: a copy. integers: see `quantised.widened`."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    empty = [n for n, t in tensors if t.is_meta]
    if empty:
        text = f"its {empty[0]} is on the meta device, without numbers"
        raise ModelFormatError(f"{type(module).__name__}: {text}: load its weights first (to_empty, load_state_dict)")
    unmade = [n for n, t in tensors if isinstance(t, nn.parameter.UninitializedTensorMixin)]
    if unmade:
        raise ModelFormatError(f"{type(module).__name__}: its {unmade[0]} has no size yet: call the module once")
    wide = {n: t for n, t in tensors if t.dtype == torch.float64}
    if wide and not float64_as_float32:
        raise UnsupportedError(
            "computes in float64 (double); pass float64_as_float32=True to compute in float32", type(module).__name__
        )
    for name, tensor in wide.items():
        check_float32(tracing.numbers(tensor), f"{type(module).__name__}: {name}", ModelFormatError)
    try:
        with quiet():
            copy = quantised.widened(held.copied(module), integers)
    except Exception as error:  # a module may hold anything
        raise UnsupportedError(f"the module can't be copied ({error!s:.120})", type(module).__name__) from None
    with quiet():
        return copy.cpu().float().eval()


def _traced(module: nn.Module, args: nesting.Arguments | None) -> Converted:
    if isinstance(module, torch.jit.ScriptModule):
        raise Unknown("TorchScript")
    traced, inputs = tracing.graph_of(module, args)
    values = {} if args is None else dict(args.items())
    try:
        given = tracing.inputs_by_use(traced, inputs)
    except Unknown:
        if args is None:
            raise
        given = [tracing.Given(i.name, values[i.argument]) for i in inputs]
    if args is None:
        args = nesting.bound(module, {i.argument: g.value for i, g in zip(inputs, given, strict=True)})
        held.refuse_states(module, args)
    else:
        given = [_fits(g, i.name, values[i.argument]) for i, g in zip(inputs, given, strict=True)]
    try:
        with quiet():
            found = tracing.to_onnx(traced, given)
            own = nesting.tensors_in(nesting.call(module, args.copied()))
    except Unknown:
        raise
    except Exception as error:  # the module refused the example
        raise Unknown(f"it does not take such an example ({type(error).__name__}: {error!s:.160})") from None
    if len(own) != len(found.answers) or not all(_close(a, b) for a, b in zip(own, found.answers, strict=True)):
        # Its code inspects the type of a traced value, for example isinstance(y, tuple).
        raise Unknown("what torch.fx traces gives other answers than the module")
    example = {n: tracing.numbers(v) for n, v in found.inputs.items()}
    return Converted(module, found.proto, example, args.form(), "traced by torch.fx", found.lengths)


def _fits(given: tracing.Given, name: str, value) -> tracing.Given:
    """The example with the dims that the module's first layer implies, if the two agree in rank and dtype."""
    dims = given.dims
    agree = dims is not None and isinstance(value, torch.Tensor) and value.ndim == len(dims)
    agree = agree and value.is_floating_point() == given.value.is_floating_point()
    if not agree or any(isinstance(d, int) and d != n for d, n in zip(dims or (), value.shape, strict=False)):
        dims = None
    return tracing.Given(name, value, dims)


def _exported(module: nn.Module, given: nesting.Arguments, why: str) -> Iterator[Converted | str]:
    """Each form that torch's exporters write, and what they say where they fail."""
    example = {name: tracing.numbers(t) for name, t in given.tensors()}
    for called, newer, free in exporting.ways(module):
        call = f"torch.onnx.export(dynamo={newer})" + (f" {called}" if newer else "")
        try:
            proto = exporting.export(module, given, newer, free)
        except Exception as error:  # the exporters raise dozens of classes of their own
            yield f"{call}: {exporting.told(error)}"
            continue
        yield Converted(module, proto, example, given.form(), f"written by {call} ({why})")
