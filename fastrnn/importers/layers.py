"""Named weights and a list of layers -> Graph: for files that hold tensors and no architecture.

    layers=["embedding:emb", "lstm:rnn", "linear:out", "softmax"]

An entry is `word`, `word:prefix` where the layer has tensors (`prefix` is how their names begin, as in the module or
Keras layer that they come from; none where the file holds just that layer), and `(option=value, ...)` where a tensor
can't tell. `_WORDS` lists the words and their options. Number of layers, directions, projection, channels and groups
are read from the tensors. Values between layers are [batch, time, features]; after `last`, `final`, `mean` or `max`
they are [batch, features].

Without a list, a file all of whose tensors belong to one recurrent stack is that stack.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..errors import FastRNNError, ModelFormatError
from ..graph import Graph, Value
from ..graph.cells import ACTIVATIONS
from ..graph.dims import BATCH, TIME
from .shared import stacks
from .shared.builder import GraphWriter
from .shared.ledger import ReadLedger
from .shared.weights import NamedWeights, Tensors

# Elementwise words: word -> (graph function, alpha, beta), alpha as an option where the second entry names it.
_FUNCTIONS = {
    "relu": ("relu", 0.0, 0.0), "tanh": ("tanh", 0.0, 0.0), "sigmoid": ("sigmoid", 0.0, 0.0),
    "gelu": ("gelu", 0.0, 0.0), "gelu_tanh": ("gelu_tanh", 0.0, 0.0), "silu": ("silu", 0.0, 0.0),
    "mish": ("mish", 0.0, 0.0), "softplus": ("softplus", 0.0, 0.0), "softsign": ("softsign", 0.0, 0.0),
    "leaky_relu": ("leaky_relu", 0.01, 0.0), "elu": ("elu", 1.0, 0.0),
    "selu": ("selu", 1.6732632423543772, 1.0507009873554805), "hard_swish": ("hard_swish", 0.0, 0.0),
    "relu6": ("clip", 0.0, 6.0),
}  # fmt: skip
_ALPHA = {"leaky_relu", "elu"}  # these take (alpha=...)
_ENTRY = re.compile(r"\s*(?P<word>[a-z_0-9]+)\s*(?::(?P<prefix>[^()]*))?(?:\((?P<options>.*)\))?\s*", re.S)
MAX_LAYERS = 1000


@dataclass
class Entry:
    """One entry of the list, read."""

    text: str
    word: str
    prefix: str | None
    options: dict[str, str] = field(default_factory=dict)
    over: int = 1  # of a residual: how many entries it reaches over

    def __post_init__(self):
        self.ledger = ReadLedger(self.options)

    @property
    def label(self) -> str:
        """What its nodes are called."""
        return f"{self.word}:{self.prefix}" if self.prefix else self.word

    def option(self, name: str, default, read: Callable = str):
        """An option; `read` makes its value of text. Options that are not read are refused."""
        self.ledger.read(name)
        if name not in self.options:
            return default
        text = self.options[name]
        try:
            return read(text)
        except ValueError as error:
            raise ModelFormatError(f"{name}={text}: expected {error}") from None


def split_list(text: str) -> list[str]:
    """A list of layers as one text, such as a command's argument, at the commas and spaces outside parentheses."""
    parts, depth, start = [], 0, 0
    for k, letter in enumerate(text + ","):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if (letter == "," or letter.isspace()) and depth == 0:
            parts.append(text[start:k].strip())
            start = k + 1
    return [part for part in parts if part]


def build(weights: NamedWeights, layers: Sequence[str] | str | None = None, name: str = "layers") -> Graph:
    """The graph of a list of layers with the weights of a file.

    Parameters
    ----------
    weights : named arrays. layers : the list (see above), or one text of it; None: found where all tensors belong to
        one recurrent stack
    name : of the graph

    Returns
    -------
    Graph, validated: input `x` [batch, time, features], or `ids` int64 [batch, time] where it begins with an
    embedding; output `y`. float64 and float16 weights compute in float32, and `notes` say so.

    Raises
    ------
    ModelFormatError : no list where one is needed (the text tells what the file holds), an unknown word or option, a
    tensor that is missing, has another shape than the list makes of it, or that no entry uses.
    """
    tensors, guessed = Tensors(weights), []
    if layers is None:
        layers = [stacks.alone(tensors)]
        if layers[0].partition(":")[0] == "rnn":
            other = layers[0].replace("rnn", "rnn_relu", 1)
            guessed = [f"an rnn's tensors don't tell tanh from relu: taken as tanh; layers=[{other!r}] is the other"]
    entries = parse(layers, weights.where)
    writer = GraphWriter(name)
    stage = _Stage(writer, tensors)
    for k, entry in enumerate(entries):
        where = f"{weights.where}: layers[{k}] ({entry.text!r})"
        stage.next_word = entries[k + 1].word if k + 1 < len(entries) else ""
        try:
            _apply(stage, entry)
        except FastRNNError as error:
            raise ModelFormatError(f"{where}: {error}") from None
    writer.notes += [*weights.notes, *guessed, *_told(weights, entries, tensors)]
    return writer.done(writer.rename(stage.x, "y"))


def _told(weights: NamedWeights, entries: list[Entry], tensors: Tensors) -> list[str]:
    """Lines on what was made of the file. Raises ModelFormatError where tensors are left over."""
    left = tensors.left()
    text = ", ".join(e.text for e in entries)
    lines = [f"layers: {text}", f"weights are {weights.precision()}"]
    if weights.precision() not in ("float32", "no floating point"):
        lines[-1] += " and compute in float32"
    if left and not weights.parts:
        shown = ", ".join(left[:12]) + (f" and {len(left) - 12} more" if len(left) > 12 else "")
        raise ModelFormatError(
            f"{weights.where}: no layer uses {shown}; add their layers to the list ({text}), or leave them out by "
            "'skip:prefix'"
        )
    owners = sorted({name.partition("/")[0] for name in left})
    used = sorted(set(owners) & tensors.used_layers())
    if used:
        raise ModelFormatError(
            f"{weights.where}: no layer uses {', '.join(n for n in left if n.split('/')[0] in used)}"
        )
    return [*lines, f"left out: {', '.join(owners)}"] if owners else lines


def parse(layers, where: str) -> list[Entry]:
    """The entries of a list of layers. Raises ModelFormatError for what is no entry; options are not looked at."""
    if isinstance(layers, str):
        layers = split_list(layers)
    if not isinstance(layers, list | tuple) or not layers or not all(isinstance(t, str) for t in layers):
        raise ModelFormatError(f'{where}: layers must be a list such as ["lstm:rnn", "linear:out"], got {layers!r:.80}')
    if len(layers) > MAX_LAYERS:
        raise ModelFormatError(f"{where}: {len(layers)} layers; at most {MAX_LAYERS}")
    entries = []
    for k, text in enumerate(layers):
        match = _ENTRY.fullmatch(text)
        if match is None or match["word"] not in _WORDS:
            known = " ".join(sorted(_WORDS))
            raise ModelFormatError(f"{where}: layers[{k}] is {text!r:.80}; it begins with one of: {known}")
        options = {}
        for part in split_list(match["options"] or ""):
            name, sign, value = part.partition("=")
            if not sign or name in options:
                raise ModelFormatError(f"{where}: layers[{k}] ({text!r}): an option is name=value, got {part!r}")
            options[name.strip()] = value.strip()
        prefix = match["prefix"]
        entries.append(Entry(text.strip(), match["word"], prefix.strip() if prefix is not None else None, options))
    return entries


def _apply(stage: _Stage, entry: Entry) -> None:
    takes, act = _WORDS[entry.word]
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


class _Stage:
    """The graph as far as it is built: `x` is what the next layer takes."""

    def __init__(self, writer: GraphWriter, tensors: Tensors):
        self.writer, self.tensors = writer, tensors
        self.x: Value | None = None
        self.input: Value | None = None  # the model's, where it is a sequence of features
        self.finals: list[Value] | None = None  # h at its end, a direction each, of the recurrent layer just before
        self.next_word = ""
        self.history: list[Value | None] = []  # what each entry so far took

    def features(self, name: str, axis: int = 0, groups: int = 1) -> Value:
        """The current value, whose features a tensor's axis (times `groups`) must be; the model's input, made now,
        where there is none."""
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
            raise ModelFormatError("can't be the first layer: nothing tells the number of features")
        return self.x

    def sequence(self) -> Value:
        """The current value, which must still have its time axis."""
        x = self.current()
        if len(x.dims) != 3:
            raise ModelFormatError("needs a time axis, and an entry before it has left one value a sequence")
        return x


# -- layers with tensors --


def _embedding(stage: _Stage, entry: Entry) -> None:
    layer = stage.tensors.layer(entry.prefix, {"weight": "embeddings"})
    table = layer.take("weight", (None, None))
    ids = stage.writer.input("ids", "int64", (BATCH, TIME))
    held = stage.writer.constant(table, f"{entry.label}.weight")
    stage.x = stage.writer.add("gather", held, ids, label=entry.label, axis=0, from_zero=True)


def _recurrent(stage: _Stage, entry: Entry) -> None:
    kind = "rnn" if entry.word == "rnn_relu" else entry.word
    options = stacks.StackOptions(
        activation=entry.option("activation", "relu" if entry.word == "rnn_relu" else None, _activation),
        gates=entry.option("gates", None, _activation),
        reset=entry.option("reset", None, _reset),
        reverse=entry.option("reverse", False, _flag),
    )
    stack = stacks.read(stage.tensors, entry.prefix, kind, options)
    x = stage.features(*stack.first)
    if len(x.dims) != 3:
        stage.sequence()
    stage.x, stage.finals = stacks.emit(stage.writer, x, stack, entry.label, stage.next_word == "final")


def _linear(stage: _Stage, entry: Entry) -> None:
    layer = stage.tensors.layer(entry.prefix, {"weight": "kernel", "bias": "bias"})
    W = layer.take("weight", (None, None))
    W = W if layer.keras else W.T  # [in, out]
    bias = layer.take("bias", (W.shape[1],), optional=True)
    stage.x = stage.writer.linear(stage.features(layer.name("weight"), 0 if layer.keras else 1), W, bias, entry.label)


def _conv1d(stage: _Stage, entry: Entry) -> None:
    layer = stage.tensors.layer(entry.prefix, {"weight": "kernel", "bias": "bias"})
    W = layer.take("weight", (None, None, None))
    W = W.transpose(2, 1, 0) if layer.keras else W  # [out, in/groups, kernel]
    maps, per_group, width = W.shape
    bias = layer.take("bias", (maps,), optional=True)
    stride, dilation = entry.option("stride", 1, _positive), entry.option("dilation", 1, _positive)
    groups = entry.option("groups", None, _positive)
    pads = _pads(entry.option("padding", "0" if not layer.keras else "valid"), dilation * (width - 1), stride)
    if groups is None and stage.x is None:
        groups = 1
    size = per_group * groups if groups is not None else stage.current().dims[-1]
    if size % per_group or maps % (size // per_group):
        raise ModelFormatError(f"{layer.name('weight')} is {list(W.shape)}, which does not share out {size} features")
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


def _batchnorm(stage: _Stage, entry: Entry) -> None:
    layer = stage.tensors.layer(entry.prefix, _NORMS["batchnorm"])
    mean = layer.take("running_mean", (None,)).astype(np.float64)
    var = layer.take("running_var", mean.shape).astype(np.float64)
    scale, bias = (layer.take(name, mean.shape, optional=True) for name in ("weight", "bias"))
    layer.drop("num_batches_tracked")
    # torch and Keras have different defaults, and no file says which was taken.
    epsilon = entry.option("eps", 1e-3 if layer.keras else 1e-5, _real)
    if not epsilon >= 0 or (var + epsilon <= 0).any():
        raise ModelFormatError(f"{layer.name('running_var')} with eps={epsilon:g} has a variance that is not positive")
    factor = (1.0 if scale is None else scale.astype(np.float64)) / np.sqrt(var + epsilon)
    shift = (0.0 if bias is None else bias.astype(np.float64)) - mean * factor
    x, writer = stage.features(layer.name("running_mean")), stage.writer
    x = writer.binary("mul", x, writer.constant(factor, f"{entry.label}.factor"), entry.label)
    stage.x = writer.binary("add", x, writer.constant(shift, f"{entry.label}.shift"), entry.label)


def _layernorm(stage: _Stage, entry: Entry) -> None:
    scale = bias = None
    default = 1e-5
    if entry.prefix is not None or stage.tensors.bare("weight"):
        layer = stage.tensors.layer(entry.prefix, _NORMS["layernorm"])
        scale = layer.take("weight", (None,))
        bias = layer.take("bias", scale.shape, optional=True)
        stage.features(layer.name("weight"))
        default = 1e-3 if layer.keras else 1e-5
    epsilon = entry.option("eps", default, _real)
    if not epsilon >= 0:
        raise ModelFormatError(f"eps={epsilon:g} must not be negative")
    x = stage.current()
    parts = [None if a is None else stage.writer.constant(a, f"{entry.label}.weight") for a in (scale, bias)]
    stage.x = stage.writer.add("layer_norm", x, *parts, label=entry.label, axis=len(x.dims) - 1, epsilon=epsilon)


def _prelu(stage: _Stage, entry: Entry) -> None:
    layer = stage.tensors.layer(entry.prefix, {"weight": "alpha"})
    slope = layer.take("weight", None)
    if any(n != 1 for n in slope.shape[:-1]):  # Keras keeps an axis of one for each that shares its slopes
        raise ModelFormatError(f"{layer.name('weight')} is {list(slope.shape)}, expected one slope, or one a feature")
    x = stage.features(layer.name("weight"), slope.ndim - 1) if slope.size != 1 else stage.current()
    held = stage.writer.constant(slope.reshape(-1), f"{entry.label}.weight")
    stage.x = stage.writer.binary("prelu", x, held, entry.label)


# -- layers without --


def _last(stage: _Stage, entry: Entry) -> None:
    x = stage.sequence()
    step = stage.writer.add("slice", x, label="last", axis=1, start=x.dims[1] - 1, stop=x.dims[1], step=1)
    stage.x = stage.writer.add("reshape", step, label="last", dims=(x.dims[0], x.dims[2]))


def _final(stage: _Stage, entry: Entry) -> None:
    if stage.finals is None:
        raise ModelFormatError("must stand right behind an rnn, lstm or gru, whose last states it is")
    stage.x = stage.writer.concat(stage.finals, 1)


def _reduce(fn: str) -> Callable:
    def act(stage: _Stage, entry: Entry) -> None:
        stage.x = stage.writer.add("reduce", stage.sequence(), label=entry.label, fn=fn, axes=(1,), keepdims=False)

    return act


def _residual(stage: _Stage, entry: Entry) -> None:
    back = entry.over = entry.option("over", 1, _positive)
    if back > len(stage.history):
        raise ModelFormatError(f"reaches over {back} entries, and there are {len(stage.history)} before it")
    x, start = stage.current(), stage.history[-back]
    if start is None or start.dims != x.dims:
        shown = "ids" if start is None else f"[{', '.join(map(str, start.dims))}]"
        raise ModelFormatError(f"adds {shown} to [{', '.join(map(str, x.dims))}]: they must have one shape")
    stage.x = stage.writer.binary("add", x, start, entry.label)


def _function(word: str) -> Callable:
    fn, alpha, beta = _FUNCTIONS[word]

    def act(stage: _Stage, entry: Entry) -> None:
        chosen = entry.option("alpha", alpha, _real) if word in _ALPHA else alpha
        stage.x = stage.writer.unary(fn, stage.current(), chosen, beta, entry.label)

    return act


def _softmax(stage: _Stage, entry: Entry) -> None:
    x = stage.current()
    log = entry.word == "log_softmax"
    stage.x = stage.writer.add("softmax", x, label=entry.label, axis=len(x.dims) - 1, log=log)


def _dropout(stage: _Stage, entry: Entry) -> None:
    stage.current()  # drops nothing where nothing is trained


def _skip(stage: _Stage, entry: Entry) -> None:
    if not stage.tensors.skip(entry.prefix):
        raise ModelFormatError(f"the file has no tensor whose name begins with {entry.prefix!r}")


# -- values of options --


def _positive(text: str) -> int:
    if not text.isdecimal() or len(text) > 6 or int(text) < 1:
        raise ValueError("a whole number from 1 on")
    return int(text)


def _real(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError("a number")
    return value


def _flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("true or false")
    return text == "true"


def _activation(text: str) -> str:
    if text not in ACTIVATIONS:
        raise ValueError(f"one of {', '.join(ACTIVATIONS)}")
    return text


def _reset(text: str) -> str:
    if text not in ("before", "after"):
        raise ValueError("before or after (the product)")
    return text


# word -> (whether it has tensors, what it does)
_WORDS: dict[str, tuple[bool, Callable[[_Stage, Entry], None]]] = {
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
