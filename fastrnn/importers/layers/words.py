"""What each word of a list of layers adds to the graph."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...errors import ModelFormatError
from ...graph import Value
from ...graph.dims import BATCH, TIME
from ..shared import stacks
from ..shared.builder import GraphWriter
from ..shared.weights import Tensors
from .entries import Entry, activation, flag, positive, real, reset

# Elementwise words: word -> (graph function, alpha, beta); alpha is an option if the second entry names it.
_FUNCTIONS = {
    "relu": ("relu", 0.0, 0.0), "tanh": ("tanh", 0.0, 0.0), "sigmoid": ("sigmoid", 0.0, 0.0),
    "gelu": ("gelu", 0.0, 0.0), "gelu_tanh": ("gelu_tanh", 0.0, 0.0), "silu": ("silu", 0.0, 0.0),
    "mish": ("mish", 0.0, 0.0), "softplus": ("softplus", 0.0, 0.0), "softsign": ("softsign", 0.0, 0.0),
    "leaky_relu": ("leaky_relu", 0.01, 0.0), "elu": ("elu", 1.0, 0.0),
    "selu": ("selu", 1.6732632423543772, 1.0507009873554805), "hard_swish": ("hard_swish", 0.0, 0.0),
    "relu6": ("clip", 0.0, 6.0),
}  # fmt: skip


_ALPHA = {"leaky_relu", "elu"}  # these take (alpha=...)


def apply(stage: Stage, entry: Entry) -> None:
    takes, act = WORDS[entry.word]
    if not takes and entry.prefix is not None:
        raise ModelFormatError(f"{entry.word} has no tensors, so no prefix")
    if entry.word == "embedding" and stage.history:
        raise ModelFormatError("an embedding must be the first layer: it takes ids")
    before = stage.x
    finals, stage.finals = stage.finals, None
    if entry.word == "final":
        stage.finals = finals
    act(stage, entry)
    if entry.ledger.left():
        raise ModelFormatError(f"{entry.word} has no option {', '.join(entry.ledger.left())}")
    stage.history.append(before if before is not None else stage.input)


class Stage:
    """The graph built so far; `x` is the input of the next layer."""

    def __init__(self, writer: GraphWriter, tensors: Tensors):
        self.writer, self.tensors = writer, tensors
        self.x: Value | None = None
        self.input: Value | None = None  # the model's input, if it is a sequence of features
        self.finals: list[Value] | None = None  # last h of the preceding recurrent layer, one per direction
        self.next_word = ""
        self.history: list[Value | None] = []  # the input of each entry so far

    def features(self, name: str, axis: int = 0, groups: int = 1) -> Value:
        """The current value, checked to have as many features as a tensor's axis (times `groups`). If there is no value
        yet, this creates the model's input."""
        shape = self.tensors.arrays[name].shape
        size = shape[axis] * groups
        if self.x is None:
            self.x = self.input = self.writer.input("x", "float32", (BATCH, TIME, size))
        given = self.x.dims[-1]
        if given != size:
            want = [given // groups if k == axis else n for k, n in enumerate(shape)]
            raise ModelFormatError(
                f"{name} is {list(shape)}, expected {want}: the layer before it gives {given} features"
            )
        return self.x

    def current(self) -> Value:
        """The current value, of any rank."""
        if self.x is None:
            raise ModelFormatError("can't be the first layer: its number of features is not known")
        return self.x

    def sequence(self) -> Value:
        """The current value, which must still have its time axis."""
        x = self.current()
        if len(x.dims) != 3:
            raise ModelFormatError("needs a time axis, but an earlier entry reduces each sequence to one value")
        return x


def _embedding(stage: Stage, entry: Entry) -> None:
    layer = stage.tensors.layer(entry.prefix, {"weight": "embeddings"})
    table = layer.take("weight", (None, None))
    ids = stage.writer.input("ids", "int64", (BATCH, TIME))
    held = stage.writer.constant(table, f"{entry.label}.weight")
    stage.x = stage.writer.add("gather", held, ids, label=entry.label, axis=0, from_zero=True)


def _recurrent(stage: Stage, entry: Entry) -> None:
    kind = "rnn" if entry.word == "rnn_relu" else entry.word
    options = stacks.StackOptions(
        activation=entry.option("activation", "relu" if entry.word == "rnn_relu" else None, activation),
        gates=entry.option("gates", None, activation),
        reset=entry.option("reset", None, reset),
        reverse=entry.option("reverse", False, flag),
    )
    stack = stacks.read(stage.tensors, entry.prefix, kind, options)
    x = stage.features(*stack.first)
    if len(x.dims) != 3:
        stage.sequence()
    stage.x, stage.finals = stacks.emit(stage.writer, x, stack, entry.label, stage.next_word == "final")


def _linear(stage: Stage, entry: Entry) -> None:
    layer = stage.tensors.layer(entry.prefix, {"weight": "kernel", "bias": "bias"})
    W = layer.take("weight", (None, None))
    W = W if layer.keras else W.T  # [in, out]
    bias = layer.take("bias", (W.shape[1],), optional=True)
    stage.x = stage.writer.linear(stage.features(layer.name("weight"), 0 if layer.keras else 1), W, bias, entry.label)


def _conv1d(stage: Stage, entry: Entry) -> None:
    layer = stage.tensors.layer(entry.prefix, {"weight": "kernel", "bias": "bias"})
    W = layer.take("weight", (None, None, None))
    W = W.transpose(2, 1, 0) if layer.keras else W  # [out, in/groups, kernel]
    maps, per_group, width = W.shape
    bias = layer.take("bias", (maps,), optional=True)
    stride, dilation = entry.option("stride", 1, positive), entry.option("dilation", 1, positive)
    groups = entry.option("groups", None, positive)
    pads = _pads(entry.option("padding", "0" if not layer.keras else "valid"), dilation * (width - 1), stride)
    if groups is None and stage.x is None:
        groups = 1
    size = per_group * groups if groups is not None else stage.current().dims[-1]
    if size % per_group or maps % (size // per_group):
        raise ModelFormatError(f"{layer.name('weight')} is {list(W.shape)}, which does not divide {size} features")
    x, writer = stage.features(layer.name("weight"), 1, size // per_group), stage.writer
    if len(x.dims) != 3:
        stage.sequence()
    inputs = [writer.transpose(x, 0, 2, 1), writer.constant(W, f"{entry.label}.weight")]
    inputs += [] if bias is None else [writer.constant(bias, f"{entry.label}.bias")]
    attrs = {"strides": (stride,), "dilations": (dilation,), "pads": pads, "groups": size // per_group}
    stage.x = writer.transpose(writer.add("conv", *inputs, label=entry.label, **attrs), 0, 2, 1)


def _pads(text: str, reach: int, stride: int) -> tuple[int, int]:
    """(before, after) of padding= a number, valid, causal or same."""
    if text == "valid":
        return 0, 0
    if text == "causal":
        return reach, 0
    if text == "same":
        if stride != 1:
            raise ModelFormatError("padding=same with a stride depends on the length; give a number")
        return reach // 2, reach - reach // 2
    if not text.isdecimal() or len(text) > 6:
        raise ModelFormatError(f"padding={text}: a number, valid, causal or same")
    return int(text), int(text)


_NORMS = {
    "batchnorm": {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"},
    "layernorm": {"weight": "gamma", "bias": "beta"},
}


def _batchnorm(stage: Stage, entry: Entry) -> None:
    layer = stage.tensors.layer(entry.prefix, _NORMS["batchnorm"])
    mean = layer.take("running_mean", (None,)).astype(np.float64)
    var = layer.take("running_var", mean.shape).astype(np.float64)
    scale, bias = (layer.take(name, mean.shape, optional=True) for name in ("weight", "bias"))
    layer.drop("num_batches_tracked")
    # torch and Keras have different defaults, and no file says which one applies.
    epsilon = entry.option("eps", 1e-3 if layer.keras else 1e-5, real)
    if not epsilon >= 0 or (var + epsilon <= 0).any():
        raise ModelFormatError(f"{layer.name('running_var')} with eps={epsilon:g} has a variance that is not positive")
    factor = (1.0 if scale is None else scale.astype(np.float64)) / np.sqrt(var + epsilon)
    shift = (0.0 if bias is None else bias.astype(np.float64)) - mean * factor
    x, writer = stage.features(layer.name("running_mean")), stage.writer
    x = writer.binary("mul", x, writer.constant(factor, f"{entry.label}.factor"), entry.label)
    stage.x = writer.binary("add", x, writer.constant(shift, f"{entry.label}.shift"), entry.label)


def _layernorm(stage: Stage, entry: Entry) -> None:
    scale = bias = None
    default = 1e-5
    if entry.prefix is not None or stage.tensors.bare("weight"):
        layer = stage.tensors.layer(entry.prefix, _NORMS["layernorm"])
        scale = layer.take("weight", (None,))
        bias = layer.take("bias", scale.shape, optional=True)
        stage.features(layer.name("weight"))
        default = 1e-3 if layer.keras else 1e-5
    epsilon = entry.option("eps", default, real)
    if not epsilon >= 0:
        raise ModelFormatError(f"eps={epsilon:g} must not be negative")
    x = stage.current()
    parts = [None if a is None else stage.writer.constant(a, f"{entry.label}.weight") for a in (scale, bias)]
    stage.x = stage.writer.add("layer_norm", x, *parts, label=entry.label, axis=len(x.dims) - 1, epsilon=epsilon)


def _prelu(stage: Stage, entry: Entry) -> None:
    layer = stage.tensors.layer(entry.prefix, {"weight": "alpha"})
    slope = layer.take("weight", None)
    if any(n != 1 for n in slope.shape[:-1]):  # Keras keeps an axis of one for each axis that shares slopes
        raise ModelFormatError(f"{layer.name('weight')} is {list(slope.shape)}, expected one slope, or one per feature")
    x = stage.features(layer.name("weight"), slope.ndim - 1) if slope.size != 1 else stage.current()
    held = stage.writer.constant(slope.reshape(-1), f"{entry.label}.weight")
    stage.x = stage.writer.binary("prelu", x, held, entry.label)


def _last(stage: Stage, entry: Entry) -> None:
    x = stage.sequence()
    step = stage.writer.add("slice", x, label="last", axis=1, start=x.dims[1] - 1, stop=x.dims[1], step=1)
    stage.x = stage.writer.add("reshape", step, label="last", dims=(x.dims[0], x.dims[2]))


def _final(stage: Stage, entry: Entry) -> None:
    if stage.finals is None:
        raise ModelFormatError("must come right after an rnn, lstm or gru")
    stage.x = stage.writer.concat(stage.finals, 1)


def _reduce(fn: str) -> Callable:
    def act(stage: Stage, entry: Entry) -> None:
        stage.x = stage.writer.add("reduce", stage.sequence(), label=entry.label, fn=fn, axes=(1,), keepdims=False)

    return act


def _residual(stage: Stage, entry: Entry) -> None:
    back = entry.over = entry.option("over", 1, positive)
    if back > len(stage.history):
        raise ModelFormatError(f"reaches over {back} entries, but only {len(stage.history)} come before it")
    x, start = stage.current(), stage.history[-back]
    if start is None or start.dims != x.dims:
        shown = "ids" if start is None else f"[{', '.join(map(str, start.dims))}]"
        raise ModelFormatError(f"adds {shown} to [{', '.join(map(str, x.dims))}]: they must have one shape")
    stage.x = stage.writer.binary("add", x, start, entry.label)


def _function(word: str) -> Callable:
    fn, alpha, beta = _FUNCTIONS[word]

    def act(stage: Stage, entry: Entry) -> None:
        chosen = entry.option("alpha", alpha, real) if word in _ALPHA else alpha
        stage.x = stage.writer.unary(fn, stage.current(), chosen, beta, entry.label)

    return act


def _softmax(stage: Stage, entry: Entry) -> None:
    x = stage.current()
    log = entry.word == "log_softmax"
    stage.x = stage.writer.add("softmax", x, label=entry.label, axis=len(x.dims) - 1, log=log)


def _dropout(stage: Stage, entry: Entry) -> None:
    stage.current()  # drops nothing if nothing is trained


def _skip(stage: Stage, entry: Entry) -> None:
    if not stage.tensors.skip(entry.prefix):
        raise ModelFormatError(f"the file has no tensor whose name begins with {entry.prefix!r}")


# word -> (whether it has tensors, what it does)
WORDS: dict[str, tuple[bool, Callable[[Stage, Entry], None]]] = {
    "embedding": (True, _embedding),
    **dict.fromkeys(("rnn", "rnn_relu", "lstm", "gru"), (True, _recurrent)),
    "linear": (True, _linear),
    "conv1d": (True, _conv1d),
    "batchnorm": (True, _batchnorm),
    "layernorm": (True, _layernorm),
    "prelu": (True, _prelu),
    "skip": (True, _skip),
    "last": (False, _last),
    "final": (False, _final),
    "mean": (False, _reduce("mean")),
    "max": (False, _reduce("max")),
    "residual": (False, _residual),
    "softmax": (False, _softmax),
    "log_softmax": (False, _softmax),
    "dropout": (False, _dropout),
    **{word: (False, _function(word)) for word in _FUNCTIONS},
}
