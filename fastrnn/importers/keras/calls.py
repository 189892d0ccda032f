"""What layer functions work with: `LayerCall` (one application of a layer), `MaskedTensor`, the table of layers.

A function registered by `@layer("Dense")` reads its config through `LayerCall.get`. Settings that it doesn't read are
refused, unless they only matter for training (`_TRAINING`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import field

import numpy as np

from ...errors import ModelFormatError
from ...graph import Value
from ...graph.casts import as_float32
from ...graph.dims import Dim
from ...records import dataclass
from ..shared.builder import GraphWriter
from ..shared.ledger import Finding, ReadLedger
from .config import Layer, Version
from .tensors import LayerWeights


class NeedsLength(Finding):
    """A layer needs a known number of steps. The text says which layer and why."""


@dataclass(frozen=True)
class MaskedTensor:
    """A value of the graph with Keras's mask: bool, for its first axes; None if every step counts."""

    value: Value
    mask: Value | None = None

    @property
    def dims(self) -> tuple:
        return self.value.dims


@dataclass(eq=False)
class Import:
    """State shared by all calls of one import. time: the dim of the time axis; steps: the file's number for it; apart:
    whether a layer joins sequences that may differ in length."""

    writer: GraphWriter
    version: Version
    tensors: LayerWeights
    steps: int | None
    problems: list[str] = field(default_factory=list)
    constants: dict[tuple, Value] = field(default_factory=dict)
    masked: list[str] = field(default_factory=list)
    apart: bool = False
    float64: bool = False


@dataclass(frozen=True)
class LayerRule:
    """A layer of the table. masks: "keep" (the output has the mask of the first input), "drop", "keep from 3" (dropped
    before Keras 3), or "own" (the function returns MaskedTensors with their masks)."""

    function: Callable
    masks: str

    def keeps(self, version: Version) -> bool:
        """Whether the output has the mask of the first input."""
        return self.masks == "keep" or (self.masks == "keep from 3" and version.major >= 3)


LAYERS: dict[str, LayerRule] = {}

# Settings that don't affect what a trained layer computes.
_TRAINING = frozenset(
    "name trainable seed implementation unit_forget_bias use_cudnn build_input_shape batch_input_shape input_shape "
    "input_dtype dropout recurrent_dropout rate noise_shape stddev momentum synchronized input_length "
    "kernel_initializer recurrent_initializer bias_initializer embeddings_initializer beta_initializer "
    "gamma_initializer moving_mean_initializer moving_variance_initializer alpha_initializer depthwise_initializer "
    "pointwise_initializer kernel_regularizer recurrent_regularizer bias_regularizer embeddings_regularizer "
    "beta_regularizer gamma_regularizer alpha_regularizer depthwise_regularizer pointwise_regularizer "
    "activity_regularizer kernel_constraint recurrent_constraint bias_constraint embeddings_constraint "
    "beta_constraint gamma_constraint alpha_constraint depthwise_constraint pointwise_constraint "
    "renorm_clipping renorm_momentum fused virtual_batch_size adjustment dynamic batch_size input_dim "
    "consume_less init inner_init forget_bias_init W_regularizer U_regularizer b_regularizer W_constraint b_constraint "
    "dropout_W dropout_U beta_init gamma_init weights_init".split()
)
# Settings that are accepted only at values without effect.
_EMPTY = frozenset(
    "lora_rank lora_alpha quantization_config use_gate sliding_window flash_attention renorm weights sparse ragged "
    "rms_scaling autocast".split()
)


def layer(*kinds: str, masks: str = "keep") -> Callable:
    """Register a function (LayerCall) -> Value, MaskedTensor or a list of them, for layer classes."""

    def register(function: Callable) -> Callable:
        for kind in kinds:
            LAYERS[kind] = LayerRule(function, masks)
        return function

    return register


class LayerCall:
    """One application of a layer.

    args, kwargs : as in the config, tensors as `MaskedTensor`s
    """

    def __init__(self, work: Import, item: Layer, args: list, kwargs: dict):
        self.work, self.layer, self.args, self.kwargs = work, item, args, dict(kwargs)
        self.w, self.version, self.label = work.writer, work.version, item.path
        self._settings = ReadLedger(self.layer.config)
        self.explicit_mask = self.kwargs.pop("mask", None)
        self.kwargs.pop("training", None)

    # -- settings --
    def get(self, name: str, default=None, kinds: tuple = ()):
        """A setting. kinds: allowed types (a bool is not an int). Raises ModelFormatError for any other type."""
        self._settings.read(name)
        value = self.layer.config.get(name, default)
        if kinds and not (isinstance(value, kinds) and (not isinstance(value, bool) or bool in kinds)):
            raise ModelFormatError(f"layer {self.label} ({self.layer.kind}): {name} is {value!r:.60}")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        """A setting that is true or false."""
        return self.get(name, default, (bool,))

    def size(self, name: str, *older: str) -> int:
        """An integer of at least 1. older: its names in Keras 1."""
        found = next((n for n in (name, *older) if n in self.layer.config), name)
        value = self.get(found)
        if type(value) is not int or not 1 <= value < 1 << 31:
            raise ModelFormatError(f"layer {self.label} ({self.layer.kind}): {name} is {value!r:.60}, expected a size")
        return value

    def sizes(self, name: str, count: int, default=None, least: int = 1) -> tuple[int, ...]:
        """`count` integers, which the file may give as one integer for all."""
        value = self.get(name, default)
        value = (value,) * count if type(value) is int else tuple(value) if isinstance(value, list | tuple) else value
        if not isinstance(value, tuple) or len(value) != count or any(type(v) is not int or v < least for v in value):
            raise ModelFormatError(
                f"layer {self.label} ({self.layer.kind}): {name} is {self.layer.config.get(name)!r:.60}"
            )
        return value

    def option(self, name: str, default, allowed: Sequence):
        """A setting with only some supported values; any other is a Finding."""
        value = self.get(name, default)
        if value not in allowed:
            raise Finding(f"{name}={value!r:.60}")
        return value

    def finish(self) -> None:
        """Raise Finding for unread settings and arguments."""
        if not self.layer.kind.startswith("ops."):
            _check_dtype(self)
        for name in self._settings.left(besides=_TRAINING):
            value = self.layer.config[name]
            asks = value not in (None, False, "none") and not (value == [] or value == {})
            if name not in _EMPTY or asks:
                raise Finding(f"{name}={value!r:.60}")
        for name, value in self.kwargs.items():
            if value is not None and value is not False:
                raise Finding(
                    f"called with {name}={'a tensor' if isinstance(value, MaskedTensor) else repr(value):.60}"
                )

    # -- inputs --
    @property
    def inputs(self) -> list[MaskedTensor]:
        """All tensors of the first argument, a single tensor or a list."""
        first = self.args[0] if self.args else None
        found = list(first) if isinstance(first, list | tuple) else [first]
        if not found or not all(isinstance(x, MaskedTensor) for x in found):
            raise Finding(f"called with {first!r:.60}")
        return found

    @property
    def x(self) -> Value:
        """The only input."""
        return self.tensor.value

    @property
    def tensor(self) -> MaskedTensor:
        found = self.inputs
        if len(found) != 1 or len(self.args) != 1:
            raise Finding(f"called with {max(len(found), len(self.args))} inputs, expected 1")
        return found[0]

    @property
    def mask(self) -> Value | None:
        """The mask that the layer sees: its argument, else that of its input. Keras 3 passes none by itself to a layer
        called with further tensors, such as initial states."""
        if isinstance(self.explicit_mask, MaskedTensor):
            return self.explicit_mask.value
        others = [*self.args[1:], *self.kwargs.values()]
        return None if self.version.major >= 3 and any(map(_has_tensor, others)) else self.inputs[0].mask

    @property
    def passed_mask(self) -> Value | None:
        """The mask that the output inherits: the call's argument, else that of the first input."""
        return self.explicit_mask.value if isinstance(self.explicit_mask, MaskedTensor) else self.inputs[0].mask

    def masks(self) -> list[Value | None]:
        """The mask of each input."""
        given = self.explicit_mask
        if isinstance(given, list | tuple):
            return [m.value if isinstance(m, MaskedTensor) else None for m in given]
        return [x.mask for x in self.inputs]

    # -- weights and constants --
    def take(self, name: str, shape: tuple, part: str = "") -> np.ndarray:
        """A weight tensor of this layer."""
        return self.work.tensors.take(self.layer, name, shape, part)

    def held(self, array: np.ndarray, name: str) -> Value:
        """A constant of this layer, shared by all its calls."""
        key = (id(self.layer), name, array.shape)
        if key not in self.work.constants:
            self.work.constants[key] = self.w.constant(array, f"{self.label}.{name}")
        return self.work.constants[key]

    def number(self, value: float) -> Value:
        """A float32 scalar."""
        key = ("number", float(value))
        if key not in self.work.constants:
            held = as_float32(np.asarray(value, np.float64), f"{self.label}: the number", ModelFormatError)
            self.work.constants[key] = self.w.constant(held, "number")
        return self.work.constants[key]

    def fixed(self, dim, why: str) -> int:
        """A dim as a number; raises NeedsLength if it depends on batch or time."""
        if isinstance(dim, Dim):
            raise NeedsLength(f"{why} (here {dim})")
        return dim

    # -- operations that many layers need --
    def add(self, op: str, *inputs: Value | None, **attrs) -> Value:
        """A node of this layer."""
        return self.w.add(op, *inputs, label=self.label, **attrs)

    def unary(self, fn: str, x: Value, alpha: float = 0.0, beta: float = 0.0) -> Value:
        return self.w.unary(fn, x, alpha, beta, self.label)

    def binary(self, fn: str, a: Value, b: Value) -> Value:
        return self.w.binary(fn, a, b, self.label)

    def reshape(self, x: Value, dims: Sequence) -> Value:
        return x if tuple(dims) == x.dims else self.add("reshape", x, dims=tuple(dims))

    def reduce(self, fn: str, x: Value, axes: Sequence[int], keepdims: bool = False) -> Value:
        return self.add("reduce", x, fn=fn, axes=tuple(sorted(axes)), keepdims=keepdims)

    def where(self, condition: Value, a: Value, b: Value) -> Value:
        return self.add("where", condition, a, b)

    def like(self, mask: Value, rank: int) -> Value:
        """A mask with axes of one added, so that it broadcasts with a value of that rank."""
        return self.reshape(mask, (*mask.dims, *(1,) * (rank - len(mask.dims))))


def _has_tensor(item) -> bool:
    return isinstance(item, MaskedTensor) or (isinstance(item, list | tuple) and any(map(_has_tensor, item)))


def _check_dtype(call: LayerCall) -> None:
    """Refuse a layer that computes in a precision other than float32. Half precision is computed in float32 instead."""
    policy = call.get("dtype")
    if isinstance(policy, dict):
        inner = policy.get("config")
        policy = inner.get("name", inner.get("source_name")) if isinstance(inner, dict) else policy
    policy = policy.removeprefix("int8_from_") if isinstance(policy, str) else policy  # its weights were read as such
    allowed = (None, "float32", "float16", "bfloat16", "mixed_float16", "mixed_bfloat16")
    if policy not in allowed and not (policy == "float64" and call.work.float64):
        hint = "; float64_as_float32=True computes it in float32" if policy == "float64" else ""
        raise Finding(f"dtype={policy!r:.60}{hint}")
