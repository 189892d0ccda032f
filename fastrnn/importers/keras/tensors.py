"""Maps tensors to layers, in the same way for every layout in which Keras stores them.

A layer class has a list of variables (`variables`), known from its config alone. One kind of file (legacy .h5, and a
live model) holds a flat list per top-level layer, trainable variables first. The other kind (.keras, .weights.h5) holds
a path for each variable.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from ...errors import ModelFormatError, UnsupportedError
from ...graph.casts import check_float32
from ..shared.h5 import H5, has_layer_names, layer_tensors
from .config import MODELS, Layer, mode_of, unique_names

Pairs = list[tuple[str, np.ndarray]]  # (the file's name of a tensor, the tensor)
_RECURRENT = ("SimpleRNN", "LSTM", "GRU", "CuDNNLSTM", "CuDNNGRU")
_CELLS = ("SimpleRNNCell", "LSTMCell", "GRUCell")
_KERNELS = (
    "Dense",
    "EinsumDense",
    "Conv1D",
    "Conv2D",
    "DepthwiseConv1D",
    "Conv1DTranspose",
    "Convolution1D",
    "Convolution2D",
)
_QUANTISED = {"Dense": "kernel", "EinsumDense": "kernel", "Embedding": "embeddings"}  # what quantize("int8") makes int8
_NOT_IN_CONFIG = (
    "which its config doesn't have: give the config of the whole model, or load some of its layers with layers="
)
_STATES = ("rnn_state", "seed_generator_state", "states")  # last parts of names of variables that are not weights


def variables(layer: Layer) -> list[tuple[str, str, bool]]:
    """(part of the layer that holds it, name, trainable) of each of a layer's own variables, in Keras's order."""
    get, kind = layer.config.get, layer.kind
    if kind in _RECURRENT or kind in _CELLS:
        part = "cell" if kind in _RECURRENT else ""
        names = ["kernel", "recurrent_kernel"] + (["bias"] if get("use_bias", True) else [])
        return [(part, name, True) for name in names]
    names: list[str] = []
    if kind in _KERNELS:
        biased = get("bias_axes") is not None if kind == "EinsumDense" else get("use_bias", get("bias", True))
        names = ["kernel"] + (["bias"] if biased else [])
    elif kind == "SeparableConv1D":
        names = ["depthwise_kernel", "pointwise_kernel"] + (["bias"] if get("use_bias", True) else [])
    elif kind == "Embedding":
        names = ["embeddings"]
    elif kind in ("BatchNormalization", "LayerNormalization", "GroupNormalization"):
        names = [n for n, flag in (("gamma", "scale"), ("beta", "center")) if get(flag, True)]
    elif kind == "RMSNormalization":
        names = ["scale"]
    elif kind == "PReLU":
        names = ["alpha"]
    elif kind == "AdditiveAttention":
        names = ["scale"] if get("use_scale", True) else []
    elif kind == "Attention":
        names = (["scale"] if get("use_scale") else []) + (
            ["concat_score_weight"] if get("score_mode", "dot") == "concat" else []
        )
    elif kind == "MultiHeadAttention":
        both = ("kernel", "bias") if get("use_bias", True) else ("kernel",)
        parts = ("query_dense", "key_dense", "value_dense", "output_dense")
        return [(part, name, True) for part in parts for name in both]
    found = [("", name, True) for name in names]
    if kind == "BatchNormalization":
        found += [("", name, False) for name in ("moving_mean", "moving_variance")]
    if kind == "Normalization" and get("mean") is None:
        found += [("", name, False) for name in ("mean", "variance", "count")]
    return _with_scales(layer, found)


def _with_scales(layer: Layer, found: list[tuple[str, str, bool]]) -> list[tuple[str, str, bool]]:
    """The variables of a layer, with those that quantising adds. Raises UnsupportedError for other modes than int8."""
    mode = mode_of(layer)
    if mode is None:
        return found
    weights = _QUANTISED.get(layer.kind)
    if mode != "int8" or weights is None:
        raise UnsupportedError(
            f"{layer.path} ({layer.kind}): quantised to {mode!r:.40}, but only Dense, EinsumDense and Embedding in "
            "int8 can be read: save the model before quantize(), or quantise it to int8"
        )
    found = [(part, name, trainable and name != weights) for part, name, trainable in found]
    return [*found, ("", f"{weights}_scale", False)]


class LayerWeights:
    """layer -> its tensors by (part, name)."""

    def __init__(self, where: str):
        self.where = where
        self._found: dict[int, dict[tuple[str, str], tuple[str, np.ndarray]]] = {}
        self.count = 0

    def put(self, layer: Layer, part: str, name: str, label: str, array: np.ndarray) -> None:
        self._found.setdefault(id(layer), {})[part, name] = (label, array)
        self.count += array.size

    def take(self, layer: Layer, name: str, shape: tuple, part: str = "", integers: bool = False) -> np.ndarray:
        """A tensor of a layer; None in `shape` is any size. Raises ModelFormatError for a different shape, or a number
        outside the range of float32. integers: it must be int8."""
        label, array = self._found[id(layer)][part, name]
        fits = array.ndim == len(shape) and all(w in (None, g) for w, g in zip(shape, array.shape, strict=True))
        if not fits:
            want = ["any" if n is None else n for n in shape]
            raise ModelFormatError(f"{label} of layer {layer.path} has shape {list(array.shape)}, expected {want}")
        if array.dtype != np.int8 if integers else array.dtype.kind != "f":
            expected = "int8" if integers else "floating point"
            raise ModelFormatError(f"{label} of layer {layer.path} is {array.dtype}, expected {expected}")
        check_float32(array, f"{label} of layer {layer.path}", ModelFormatError)
        return array

    def shape(self, layer: Layer, name: str, part: str = "") -> tuple[int, ...]:
        """The shape of a tensor of a layer."""
        return self._found[id(layer)][part, name][1].shape

    def precision(self) -> str:
        """ "float32", or for example "float16 and float32"."""
        names = {a.dtype.name for found in self._found.values() for _, a in found.values() if a.dtype.kind == "f"}
        return " and ".join(sorted(names)) or "no weights"


def of_file(root: Layer, file: H5) -> LayerWeights:
    """The tensors of a model in an HDF5 file of either layout."""
    tensors = LayerWeights(file.where)
    if has_layer_names(file):
        _from_lists(root, layer_tensors(file), tensors)
    else:
        _from_paths(root, file, "", tensors)
    return tensors


def of_lists(root: Layer, found: Mapping[str, Pairs], where: str) -> LayerWeights:
    """The tensors of a model given as one list per top-level layer."""
    tensors = LayerWeights(where)
    _from_lists(root, found, tensors)
    return tensors


def _leaves(layer: Layer, trainable: bool) -> Iterator[tuple[Layer, str, str, bool]]:
    """(layer, part, name, trainable) of every variable of a layer and its inner layers."""
    trainable = trainable and layer.trainable
    for part, name, own in variables(layer):
        yield layer, part, name, trainable and own
    for inner in (*layer.parts.values(), *layer.layers):
        yield from _leaves(inner, trainable)


def _from_lists(root: Layer, found: Mapping[str, Pairs], tensors: LayerWeights) -> None:
    members = root.layers or [root]
    known = {layer.name for layer in members} | {"top_level_model_weights"}
    for name, pairs in found.items():
        if name not in known and pairs:
            others = [n for n, p in found.items() if n not in known and p]
            raise ModelFormatError(
                f"{tensors.where}: it holds weights of {', '.join(map(repr, others[:8]))}, {_NOT_IN_CONFIG}"
            )
    for layer in members:
        wanted = list(_leaves(layer, True))
        wanted.sort(key=lambda entry: not entry[3])  # stable: trainable ones first, otherwise in order
        given = [(label, array) for label, array in found.get(layer.name, []) if not _is_state(layer, label, array)]
        given = _of_keras_1(layer, given)
        if len(given) != len(wanted):
            expected = ", ".join(f"{leaf.name}/{name}" for leaf, _, name, _ in wanted) or "none"
            got = ", ".join(label for label, _ in given) or "none"
            raise ModelFormatError(
                f"{tensors.where}: layer {layer.path} has {len(given)} tensors ({got}), "
                f"expected {len(wanted)}: {expected}"
            )
        for (leaf, part, name, _), (label, array) in zip(wanted, given, strict=True):
            array = _one_axis(leaf, name, array)
            _check_name(leaf, name, label)
            tensors.put(leaf, part, name, label, array)


# Keras 1 stores W, U and b of each gate separately, in these orders; Keras 2 uses i f c o and z r h.
_GATES_OF_KERAS_1 = {"LSTM": "icfo", "GRU": "zrh"}


def _of_keras_1(layer: Layer, given: Pairs) -> Pairs:
    """The tensors of Keras 1's recurrent layers as kernel, recurrent kernel and bias; others unchanged."""
    halves = list(layer.parts.values()) if layer.kind == "Bidirectional" else [layer]
    order = _GATES_OF_KERAS_1.get(halves[0].kind)
    if order is None or "output_dim" not in halves[0].config or len(given) != 3 * len(order) * len(halves):
        return given
    found: Pairs = []
    for half in range(len(halves)):
        mine = given[half * 3 * len(order) :]
        for k, name in enumerate(("kernel", "recurrent_kernel", "bias")):
            blocks = [mine[3 * order.index(gate) + k][1] for gate in ("ifco" if order == "icfo" else order)]
            found.append((f"{halves[half].name}/{name}", np.concatenate(blocks, axis=-1)))
    return found


def _one_axis(leaf: Layer, name: str, array: np.ndarray) -> np.ndarray:
    """Remove the extra axis of one that Keras 1 gives kernels of Convolution1D."""
    if leaf.kind == "Convolution1D" and name == "kernel" and array.ndim == 4 and array.shape[1] == 1:
        return array[:, 0]
    return array


def _check_name(leaf: Layer, name: str, label: str) -> None:
    """Refuse a tensor whose name in the file says that it is another one."""
    own = label.rpartition("/")[2]
    others = {n for _, n, _ in variables(leaf)}
    if own != name and own in others:
        raise ModelFormatError(f"layer {leaf.path}: {label} is in the place of its {name} should")


def _is_state(layer: Layer, label: str, array: np.ndarray) -> bool:
    """Whether a variable is not a weight but the state of a stateful layer or a random generator."""
    own = label.rpartition("/")[2]
    if not own.startswith(_STATES):
        return False
    if not own.startswith("seed") and np.any(array):
        raise ModelFormatError(
            f"layer {layer.path} was saved with its states in the middle of a sequence ({label}); reset_states() first"
        )
    return True


def _from_paths(layer: Layer, file: H5, base: str, tensors: LayerWeights) -> None:
    if layer.kind in MODELS:
        members = [m for m in layer.layers if not m.kind.startswith("ops.")]
        named = dict(zip(unique_names(members), members, strict=True))
        for name, member in named.items():
            _from_paths(member, file, f"{base}/layers/{name}", tensors)
        known = {*named, *unique_names(layer.layers)}
        for name in file.children(f"{base}/layers") if file.has(f"{base}/layers") else ():
            if name not in known and any(True for _ in file.walk(f"{base}/layers/{name}")):
                raise ModelFormatError(f"{tensors.where}: it holds weights of {name!r}, {_NOT_IN_CONFIG}")
        return
    at: dict[str, int] = {}
    for part, name, _ in variables(layer):
        folder = _folder(file, base, part)
        k = at.get(part, 0)
        at[part] = k + 1
        if not file.has(f"{folder}/{k}"):
            raise ModelFormatError(f"{file.where}: layer {layer.path} lacks its {name}: no tensor {folder}/{k}")
        tensors.put(layer, part, name, f"{folder}/{k}".lstrip("/"), file.array(f"{folder}/{k}"))
    for part, folder in {**dict.fromkeys(at, None), "": None}.items() if at else (("", None),):
        folder = _folder(file, base, part)
        for name in file.children(folder) if file.has(folder) else ():
            if int(name) >= at.get(part, 0) if name.isdecimal() else True:
                _extra(layer, file, f"{folder}/{name}")
    for part, inner in layer.parts.items():
        _from_paths(inner, file, f"{base}/{part}", tensors)


def _folder(file: H5, base: str, part: str) -> str:
    """The path of the variables of a part of a layer. Keras 2 prefixes those of attention with an underscore."""
    folder = f"{base}/{part}/vars" if part else f"{base}/vars"
    older = f"{base}/_{part}/vars"
    return older if part and not file.has(folder) and file.has(older) else folder


def _extra(layer: Layer, file: H5, path: str) -> None:
    """Check a variable that the layer's class doesn't have: only states of a stateful layer are allowed."""
    if not layer.config.get("stateful"):
        raise ModelFormatError(f"{file.where}: layer {layer.path} ({layer.kind}) has one tensor too many: {path}")
    _is_state(layer, "rnn_state", file.array(path))
