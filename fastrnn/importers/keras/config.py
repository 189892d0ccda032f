"""A Keras config as a tree of `Layer`s. Each class is checked by name before anything is built.

Configs differ by the version that wrote them; if the same words mean different things, `version` decides. Nothing in a
config is looked up, imported or executed: a class is either a key of the table of layers or refused by name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import field

from ...errors import ModelFormatError
from ...records import dataclass

MAX_TEXT = 1 << 26  # characters of a config; the largest published models have 4 MB
MAX_NESTING = 32  # of nested models, wrappers and cells
MODELS = ("Functional", "Sequential", "Model")
_NOT_TRAINABLE = ("SpatialDropout1D", "SpatialDropout2D")  # the only layers whose configs leave out trainable
_OPERATIONS = re.compile(r"(tf_)?keras\.src\.ops\b|keras\.ops\b")


@dataclass(eq=False)
class Layer:
    """One layer of a config.

    kind : its class, with the prefix "ops." if it is from keras.ops and not a layer
    config : its own settings; inner layers are in `parts` (by their names in Keras's weight files)
    calls : its applications, each a raw inbound node
    path : its place in the tree of models, for messages
    """

    kind: str
    name: str
    config: dict
    path: str
    parts: dict[str, Layer] = field(default_factory=dict)
    layers: list[Layer] = field(default_factory=list)
    calls: list = field(default_factory=list)
    problem: str | None = None

    @property
    def trainable(self) -> bool:
        return self.config.get("trainable", True) is not False

    def walk(self) -> Iterator[Layer]:
        """This layer and all inner layers."""
        yield self
        for part in (*self.parts.values(), *self.layers):
            yield from part.walk()


@dataclass(frozen=True)
class Version:
    """The Keras that wrote a file. numbers: (major, minor); tf: TensorFlow's Keras 2 or later."""

    numbers: tuple[int, int]
    text: str
    tf: bool

    @property
    def major(self) -> int:
        return self.numbers[0]


def version_of(text: str | None, config: dict) -> Version:
    """The version that a file names, or a guess from its form if it names none."""
    if text is None:
        shown = json.dumps(config)
        major = 3 if '"batch_shape"' in shown else 1 if '"output_dim"' in shown and '"units"' not in shown else 2
        return Version((major, 99), f"{major} (the file names no version)", major > 1)
    match = re.match(r"(\d{1,4})\.(\d{1,4})", text)
    if match is None or int(match[1]) not in (1, 2, 3):
        raise ModelFormatError(f"it was written by Keras {text!r:.40}; versions 1, 2 and 3 are read")
    numbers = (int(match[1]), int(match[2]))
    return Version(numbers, text, "-tf" in text or numbers >= (2, 4))


def parse(text: str | bytes) -> dict:
    """The JSON of a config as a dict. Raises ModelFormatError."""
    if len(text) > MAX_TEXT:
        raise ModelFormatError(f"its config has {len(text)} characters, more than any model needs")
    try:
        config = json.loads(text)
    except (ValueError, RecursionError, UnicodeDecodeError) as error:
        raise ModelFormatError(f"its config is not JSON ({type(error).__name__}: {error!s:.100})") from None
    if not isinstance(config, dict):
        raise ModelFormatError("its config is not an object")
    return config


def layer_of(data, path: str = "", depth: int = 0) -> Layer:
    """The tree of a serialised layer or model. Raises ModelFormatError if it is malformed. A class that is not Keras's
    own becomes a `problem`, so that one error lists all of them."""
    if depth > MAX_NESTING:
        raise ModelFormatError(f"{path}: layers nested deeper than {MAX_NESTING}")
    if not isinstance(data, dict) or not isinstance(data.get("class_name"), str):
        raise ModelFormatError(f"{path or 'the model'}: a layer must have a class_name, got {data!r:.80}")
    config = data.get("config")
    if data["class_name"] == "Sequential" and isinstance(config, list):
        config = {"name": "sequential", "layers": config}  # Keras before 2.2.3
    if not isinstance(config, dict):
        raise ModelFormatError(f"{path or 'the model'}: the config of {data['class_name']} is {config!r:.60}")
    name = data.get("name", config.get("name"))
    name = name if isinstance(name, str) else data["class_name"].lower()
    layer = Layer(data["class_name"], name, dict(config), f"{path}/{name}" if path else name)
    layer.problem = _foreign(data)
    calls = data.get("inbound_nodes", [])
    if not isinstance(calls, list):
        raise ModelFormatError(f"{layer.path}: inbound_nodes is {calls!r:.60}")
    layer.calls = calls
    if _is_operation(data):
        layer.kind = f"ops.{layer.kind}"
    build = data.get("build_config")
    if isinstance(build, dict) and "input_shape" in build:
        layer.config.setdefault("build_input_shape", build["input_shape"])
    if layer.problem is None:
        _descend(layer, depth)
    return layer


def _is_operation(data: dict) -> bool:
    """Whether it is from keras.ops. A legacy file leaves out the module, but an operation is never trainable."""
    module, calls = data.get("module"), data.get("inbound_nodes")
    if isinstance(module, str):
        return _OPERATIONS.match(module) is not None
    layered = "trainable" in data["config"] or data["class_name"] in _NOT_TRAINABLE
    return bool(calls) and isinstance(calls[0], dict) and not layered


def _descend(layer: Layer, depth: int) -> None:
    """Fill `layers` and `parts` from the config."""
    path, config = layer.path, layer.config
    if layer.kind in MODELS:
        members = config.get("layers")
        if not isinstance(members, list):
            raise ModelFormatError(f"{path}: a {layer.kind} without a list of layers")
        layer.kind = "Sequential" if layer.kind == "Sequential" else "Functional"
        layer.layers = [layer_of(member, path, depth + 1) for member in members]
        return
    if layer.kind in ("Bidirectional", "TimeDistributed"):
        data = config.pop("layer", None)
        inner = layer_of(data, path, depth + 1)
        if layer.kind == "TimeDistributed":
            layer.parts["layer"] = inner
            return
        back = config.pop("backward_layer", None)
        if back is None:  # the same layer, backwards
            back = {**data, "config": {**data["config"], "go_backwards": not data["config"].get("go_backwards")}}
        layer.parts["forward_layer"] = inner
        layer.parts["backward_layer"] = layer_of(back, path, depth + 1)
    elif layer.kind == "RNN":
        cell = config.pop("cell", None)
        if isinstance(cell, list):  # Keras 2 writes stacked cells like this if it wraps them itself
            cell = {"class_name": "StackedRNNCells", "config": {"cells": cell}}
        layer.parts["cell"] = layer_of(cell, path, depth + 1)
    elif layer.kind == "StackedRNNCells":
        cells = config.pop("cells", None)
        if not isinstance(cells, list) or not cells:
            raise ModelFormatError(f"{path}: StackedRNNCells without cells")
        members = [layer_of(cell, path, depth + 1) for cell in cells]
        for member, unique in zip(members, unique_names(members), strict=True):
            layer.parts[f"cells/{unique}"] = member


def _foreign(data: dict) -> str | None:
    """Why a class is not Keras's own, or None if it is."""
    kind, module, registered = data["class_name"], data.get("module"), data.get("registered_name")
    for given in (module, registered):
        if given is not None and not isinstance(given, str):
            raise ModelFormatError(f"layer {kind!r:.60}: its module or registered name is {given!r:.60}")
    if kind == "Lambda":
        return "a Lambda layer, which holds Python code; write it as layers, nothing in a file is executed"
    if ">" in kind or (registered and ">" in registered):
        return f"a custom class ({registered or kind}), whose code the file doesn't hold"
    if module is not None and module.split(".")[0] not in ("keras", "tf_keras", "builtins"):
        return f"a class of the package {module.split('.')[0]!r} ({module}.{kind})"
    if registered and registered != kind:
        return f"a custom class ({registered})"
    return None


def unique_names(layers: list[Layer]) -> list[str]:
    """The names of list members in Keras's weight files: by class, numbered."""
    seen: dict[str, int] = {}
    names = []
    for layer in layers:
        base = snake(layer.kind)
        count = seen.get(base, 0)
        seen[base] = count + 1
        names.append(f"{base}_{count}" if count else base)
    return names


def snake(kind: str) -> str:
    """StackedRNNCells -> stacked_rnn_cells, as in Keras."""
    word = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", kind))
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", word).lower()


def mode_of(layer: Layer) -> str | None:
    """How a layer was quantised, such as "int8"; None if it was not."""
    policy = layer.config.get("dtype")
    if isinstance(policy, dict):
        inner = policy.get("config")
        mode = inner.get("mode") if isinstance(inner, dict) else None
        return mode if isinstance(mode, str) else None
    return policy.partition("_from_")[0] if isinstance(policy, str) and "_from_" in policy else None
