"""Tree of layers -> Graph: models are run on symbolic tensors, one layer call at a time.

Masks follow the layers as they run, not as they are declared: a mask is attached to a tensor, and a layer that doesn't
support masks drops it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...errors import FastRNNError, ModelFormatError, ShapeError, UnsupportedError
from ...graph import Graph, Value
from ...graph import dims as D
from ..shared.builder import GraphWriter
from ..shared.ledger import Finding
from .calls import LAYERS, Import, LayerCall, MaskedTensor, NeedsLength
from .config import MODELS, Layer, Version
from .references import arguments, call_order, offsets_of, output_names, pick, references, shifted
from .tensors import LayerWeights

_DTYPES = {"float": "float32", "bfloat": "float32", "int": "int64", "uint": "int64", "bool": "bool"}
_TIME_MAJOR = ("SimpleRNN", "LSTM", "GRU", "CuDNNLSTM", "CuDNNGRU", "RNN")


def check_known(root: Layer, name: str) -> None:
    """Raise UnsupportedError that lists every layer whose class fastrnn doesn't support or refuses to run."""
    if root.kind not in MODELS and root.problem is None:
        text = f"the model is a {root.kind}, Python code of its own; Sequential and Functional models are read"
        raise UnsupportedError([text], name)
    found = []
    for item in root.walk():
        if item.problem is not None:
            found.append(f"layer {item.path}: {item.problem}")
        elif item.kind not in LAYERS and item.kind not in (*MODELS, "InputLayer") and not _is_cell(item.kind):
            found.append(f"layer {item.path}: {item.kind.removeprefix('ops.')}")
    if found:
        raise UnsupportedError(found, name)


def _is_cell(kind: str) -> bool:
    return kind in ("SimpleRNNCell", "LSTMCell", "GRUCell", "StackedRNNCells")


def build(root: Layer, version: Version, tensors: LayerWeights, *, float64: bool = False, thaw: bool = True) -> Graph:
    """The graph of a model.

    Time is free if the layers allow it. A number that the file gives is kept only if a layer needs it or if `thaw` is
    False. Raises UnsupportedError that lists all layers that need something fastrnn doesn't support.
    """
    check_known(root, root.name)

    def attempt(free: bool, apart: bool) -> tuple[Import, list[MaskedTensor], list[MaskedTensor]]:
        work = Import(GraphWriter(root.name), version, tensors, None, float64=float64)
        inputs = _declare_inputs(root, work, free, apart)
        outputs = _run_model(root, work, inputs)
        if work.problems:
            raise UnsupportedError(work.problems, root.name)
        return work, inputs, outputs

    if not thaw:
        work, _, outputs = attempt(False, False)
        return _finish(root, work, outputs, "thaw=False" if work.steps is not None else "")
    lengths = {shape[axis] for _, shape, axis in _shapes(root) if axis is not None}
    mixed = None in lengths and len(lengths) > 1
    reason = "another input's is free" if mixed else ""
    try:
        work, inputs, outputs = attempt(not mixed, False)
    except FastRNNError as error:
        # A layer needs the number, or sizes are equal in the file but not at all lengths.
        work, inputs, outputs = _otherwise(lambda: attempt(mixed, False), error, root.name)
        reason = "" if mixed else str(error).removeprefix(f"{root.name}: ")
    # An encoder and a decoder have sequences of different lengths; they can't be streamed together anyway.
    if (mixed or not reason) and work.apart and _sequences(inputs) + mixed > 1:
        try:
            work, _, outputs = attempt(True, True)
            work.writer.notes.append("sequences of inputs may differ in length")
            reason = ""
        except FastRNNError:
            pass  # they are combined step by step somewhere, so their lengths are equal
    return _finish(root, work, outputs, reason)


def _otherwise(way: Callable, error: FastRNNError, name: str) -> tuple[Import, list[MaskedTensor], list[MaskedTensor]]:
    """The result of another attempt after the first one failed; of two errors, raise the more informative one."""
    try:
        made = way()
    except FastRNNError as again:
        if isinstance(again, NeedsLength):  # of a model without a known length
            raise UnsupportedError([str(again)], name) from None
        raise again if isinstance(error, NeedsLength) else error from None
    if made[0].steps is None:
        raise error
    return made


def _sequences(inputs: Sequence[MaskedTensor]) -> int:
    return sum(any(D.TIME == d for d in x.dims) for x in inputs)


def _finish(root: Layer, work: Import, outputs: list[MaskedTensor], reason: str) -> Graph:
    w, named, seen = work.writer, [], {*work.writer.inputs, *work.writer.constants}
    for (name, k), x in zip(output_names(root), outputs, strict=True):
        value = x.value
        if value.name in seen:  # an input, or the same value twice
            value = w.add("reshape", value, label=name, dims=value.dims)
        seen.add(value.name)
        named.append((value, name if k == 0 else f"{name}:{k}"))
    named = [w.rename(value, name) for value, name in named]
    members = [m for m in root.walk() if m.kind not in (*MODELS, "InputLayer")]
    w.notes.insert(
        0,
        f"read {len(members)} layers of Keras {work.version.text}: {work.tensors.count:,} numbers, "
        f"{work.tensors.precision()}",
    )
    if reason:
        w.notes.append(f"time stays at {work.steps}: {reason}")
    elif work.steps is not None:
        w.notes.append(f"thawed time from {work.steps}")
    if work.masked:
        w.notes.append(f"masks: {', '.join(work.masked)}")
    return w.done(*named)


# ---- inputs ----------------------------------------------------------------------------------------------------------


def _input_layers(root: Layer) -> list[Layer]:
    """The input layers of the model, in order."""
    if root.kind == "Sequential":
        first = root.layers[0] if root.layers else None
        if first is not None and first.kind == "InputLayer":
            return [first]
        if first is not None and first.kind in MODELS:
            return _input_layers(first)
        shape = root.config.get("build_input_shape")
        if shape is None and first is not None:
            shape = first.config.get("batch_input_shape") or first.config.get("build_input_shape")
        if not isinstance(shape, list):
            raise ModelFormatError(
                f"{root.path}: a Sequential model that was never built: its input's shape is unknown"
            )
        dtype = first.config.get("input_dtype", "float32") if first is not None else "float32"
        return [Layer("InputLayer", "input", {"batch_shape": shape, "dtype": dtype}, f"{root.path}/input")]
    byname = {member.name: member for member in root.layers}
    found = []
    for name, _, _ in references(root.config.get("input_layers")):
        if name not in byname:
            raise ModelFormatError(f"{root.path}: its input layer {name!r} is none of its layers")
        found.append(byname[name])
    return found


def _declare_inputs(root: Layer, work: Import, free: bool, apart: bool) -> list[MaskedTensor]:
    """The model's inputs as values. free: time is a symbol; apart: each sequence has its own time."""
    inputs, numbers = [], []
    for item, shape, axis in _shapes(root):
        dims: list = [D.BATCH, *shape[1:]]
        if axis is not None:
            if shape[axis] is not None:
                numbers.append(shape[axis])
            dims[1 - axis] = D.BATCH
            other = apart and inputs and _sequences(inputs)
            dims[axis] = D.symbol(f"time{len(inputs) + 1}") if other else D.TIME
            if not free or (shape[axis] is not None and shape[axis] != numbers[0]):
                dims[axis] = shape[axis] if shape[axis] is not None else D.TIME
        for axis, dim in enumerate(dims):
            if dim is None:
                text = (
                    f"layer {item.path}: axis {axis} of its shape {shape} is free; besides the batch, only time may be"
                )
                raise UnsupportedError([text], root.name)
        # Row numbers of a table are integers, though Keras declares float32 by default.
        dtype = "int64" if _feeds_embedding(root, item, only=True) else _dtype(item)
        inputs.append(MaskedTensor(work.writer.input(item.name, dtype, tuple(dims))))
    work.steps = numbers[0] if numbers else None
    return inputs


def _shapes(root: Layer) -> list[tuple[Layer, list, int | None]]:
    """(layer, its shape, the axis of time or None) of each input."""
    time_major = any(item.kind in _TIME_MAJOR and item.config.get("time_major") for item in root.walk())
    found = []
    for item in _input_layers(root):
        shape = _shape(item)
        sequence = len(shape) > 2 or (len(shape) == 2 and (shape[1] is None or _feeds_embedding(root, item)))
        found.append((item, shape, (0 if time_major else 1) if sequence else None))
    return found


def _shape(item: Layer) -> list:
    """The shape [batch, axes..] of an InputLayer."""
    config = item.config
    shape = config.get("batch_shape", config.get("batch_input_shape"))
    if not isinstance(shape, list) or not shape or any(not (d is None or (type(d) is int and d > 0)) for d in shape):
        raise ModelFormatError(f"layer {item.path}: its shape is {shape!r:.60}")
    if config.get("sparse") or config.get("ragged") or config.get("optional"):
        raise UnsupportedError([f"layer {item.path}: a sparse, ragged or optional input"], item.path)
    return shape


def _dtype(item: Layer) -> str:
    """The graph's dtype for an InputLayer."""
    config = item.config
    dtype = config.get("dtype", "float32")
    dtype = dtype.get("config", {}).get("name", "float32") if isinstance(dtype, dict) else str(dtype)
    kind = _DTYPES.get(dtype.removeprefix("mixed_").rstrip("0123456789"))
    if kind is None:
        raise UnsupportedError([f"layer {item.path}: an input of dtype {dtype!r:.40}"], item.path)
    return kind


def _feeds_embedding(root: Layer, item: Layer, only: bool = False) -> bool:
    """Whether an Embedding reads the input (only: and no other layer does)."""
    readers = []
    if root.kind == "Sequential":
        after = [m for m in root.layers if m.kind != "InputLayer"]
        if after and after[0].kind in MODELS:
            return _feeds_embedding(after[0], _input_layers(after[0])[0], only)
        readers = after[:1]
    else:
        for member in root.layers:
            if any(name == item.name for call in member.calls for name, _, _ in references(call)):
                readers.append(member)
    kinds = [r.kind for r in readers if not r.kind.startswith("ops.")]  # the mask of an Embedding reads the input too
    return "Embedding" in kinds and (not only or set(kinds) == {"Embedding"})


# ---- models ----------------------------------------------------------------------------------------------------------


def _run_model(model: Layer, work: Import, inputs: list[MaskedTensor]) -> list[MaskedTensor]:
    """The outputs of a model for its inputs, in Keras's order."""
    if model.kind == "Sequential":
        members = [m for m in model.layers if m.kind != "InputLayer"]
        if len(inputs) != 1:
            raise ModelFormatError(f"{model.path}: a Sequential model called with {len(inputs)} inputs")
        x = inputs
        for member in members:
            if len(x) != 1 and x[0] is not UNKNOWN:
                raise ModelFormatError(f"layer {member.path}: the layer before it has {len(x)} outputs")
            x = apply(member, work, [x[0]], {})
        return x[:1]
    return _run_functional(model, work, inputs)


def _run_functional(model: Layer, work: Import, inputs: list[MaskedTensor]) -> list[MaskedTensor]:
    byname: dict[str, Layer] = {}
    for member in model.layers:
        if member.name in byname:
            raise ModelFormatError(f"{model.path}: two layers are named {member.name!r}")
        byname[member.name] = member
    starts = _input_layers(model)
    if len(starts) != len(inputs):
        raise ModelFormatError(f"{model.path}: called with {len(inputs)} inputs, it has {len(starts)}")
    known: dict[tuple[str, int], list[MaskedTensor]] = {}
    for item, x in zip(starts, inputs, strict=True):
        known[item.name, 0] = [x]
    within, ends = offsets_of(model, byname)
    outputs = [shifted(ref, ends) for ref in references(model.config.get("output_layers"))]
    for name, k in call_order(model, byname, within, outputs, known):
        member = byname[name]
        args, kwargs = arguments(member.calls[k], byname, known, member, within)
        known[name, k] = apply(member, work, args, kwargs)
    return [pick(known, ref, model) for ref in outputs]


# ---- one layer -------------------------------------------------------------------------------------------------------

UNKNOWN = MaskedTensor(Value("?", "float32", ()))  # output of an unsupported layer: not checked further
_MOST_OUTPUTS = 64


def apply(item: Layer, work: Import, args: list, kwargs: dict) -> list[MaskedTensor]:
    """The outputs of one call of a layer. If it isn't supported, that is recorded and the outputs are UNKNOWN."""
    if _unknown(args) or _unknown(list(kwargs.values())):
        return [UNKNOWN] * _MOST_OUTPUTS
    call = LayerCall(work, item, args, kwargs)
    try:
        if item.kind in MODELS:
            return _run_nested(call)
        entry = LAYERS[item.kind]
        made = entry.function(call)
        call.finish()
    except NeedsLength as error:
        if str(error).startswith("layer "):
            raise
        raise NeedsLength(f"layer {item.path} ({item.kind}): {error}") from None
    except Finding as error:
        work.problems.append(f"layer {item.path} ({item.kind}): {error}")
        return [UNKNOWN] * _MOST_OUTPUTS
    except ModelFormatError:
        raise  # it names the layer
    except (ShapeError, TypeError, ValueError, KeyError, IndexError, AttributeError, OverflowError) as error:
        # Any error that a malformed config causes in NumPy or Python; the cause stays attached.
        raise ModelFormatError(f"layer {item.path} ({item.kind}): {error}") from error
    outputs = []
    for x in made if isinstance(made, list) else [made]:
        if isinstance(x, Value):
            x = MaskedTensor(x, call.passed_mask if entry.keeps(work.version) and not outputs else None)
        outputs.append(x)
    return outputs


def _unknown(items: list) -> bool:
    return any(item is UNKNOWN or (isinstance(item, list) and _unknown(item)) for item in items)


def _run_nested(call: LayerCall) -> list[MaskedTensor]:
    """A model as a layer: its inputs keep their masks."""
    inputs = call.inputs
    if len(call.args) != 1 or any(value not in (None, False) for value in call.kwargs.values()):
        raise Finding(f"called with {len(call.args)} arguments and {sorted(call.kwargs)}")
    masks = call.masks() if isinstance(call.explicit_mask, list) else [call.mask, *(x.mask for x in inputs[1:])]
    inputs = [MaskedTensor(x.value, mask) for x, mask in zip(inputs, masks, strict=True)]
    return _run_model(call.layer, call.work, inputs)
