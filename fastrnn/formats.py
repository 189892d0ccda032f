"""The formats of model files: how each is recognised and read, and which options of `load` it takes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from .errors import FastRNNError, ModelFormatError, UnsupportedError
from .graph import Graph, artifact
from .model import Model
from .records import dataclass


@dataclass(frozen=True)
class Format:
    """A file format.

    suffixes : endings of its file names
    read : (path or bytes, **options) -> Graph
    options : the options of `load` that it takes
    refusal : why the other options don't apply
    begins : whether the bytes of a file are of this format
    """

    name: str
    suffixes: tuple[str, ...]
    read: Callable[..., Graph]
    options: frozenset[str]
    refusal: str
    begins: Callable[[bytes], bool]


def _read_fastrnn(source) -> Graph:
    return artifact.load(source)


_FOR_WEIGHTS = "describe a file of bare weights with layers="


def _read_pytorch(
    source, layers=None, key=None, allow_torch=False, example=None, states=None, float64_as_float32=False
) -> Graph:
    from .importers import layers as list_of_layers
    from .importers.pytorch import files

    try:
        weights = files.read_weights(source, key, script=layers is not None)
    except files.Refused:
        if not allow_torch:
            raise
        from .importers.pytorch import through_torch

        found = through_torch.load(source, key)
        if not isinstance(found, files.NamedWeights):
            if layers is not None:
                raise ModelFormatError(
                    "layers= is for files of bare weights, but this file holds a module: leave layers= out"
                ) from None
            return graph_of_module(found, example, states, float64_as_float32)
        weights = found
    if example is not None or states is not None:
        raise ModelFormatError(
            "example= and states= are for files that hold a module, but this one holds bare weights: leave them out"
        )
    return list_of_layers.build(weights, layers)


_ANOTHER_EXAMPLE = "make a model from an example of the size that you need, such as from_torch(module, example)"


def graph_of_module(module, example, states, float64_as_float32: bool) -> Graph:
    """The graph of a live module, compared with the module: of the forms in which it can be written as ONNX, the first
    with a free batch and length, else the one with most free sizes."""
    from .importers.pytorch.modules import candidates

    best: Graph | None = None
    said: list[str] = []
    first: FastRNNError | None = None
    for found in candidates(module, example, float64_as_float32=float64_as_float32):
        if isinstance(found, str):
            said.append(found)
            continue
        if best is not None and _free_sizes(best) >= found.most_free():
            break
        try:
            graph = _checked(found, states)
        except FastRNNError as error:
            first = first or error
            said.append(f"{found.how}: {error}")
            continue
        if best is None or _free_sizes(graph) > _free_sizes(best):
            notes = (f"the module was {found.how}", *graph.notes)
            best = graph.replace(name=type(module).__name__, notes=notes, integers=found.integers)
    if best is not None:
        return best
    if first is not None:
        raise first
    raise UnsupportedError(said, type(module).__name__)


def _free_sizes(graph: Graph) -> int:
    """How many axes of the inputs are free."""
    return sum(not isinstance(dim, int) for name in graph.inputs for dim in graph.values[name].dims)


def _checked(converted, states) -> Graph:
    """The graph of one form of a module. Raises a FastRNNError if it can't be read, or answers otherwise."""
    from . import onnx_files
    from .importers.onnx.sizes.evidence import Policy

    def made(compared: bool) -> tuple[Graph, bool]:
        policy = Policy(compared=compared, remedy=_ANOTHER_EXAMPLE, overrule="")
        graph = onnx_files.read_graph(converted.proto, states=states, policy=policy)
        model = Model(graph, 1)
        return graph, converted.check(model.graph, model.run)

    try:  # if the module itself is seen to follow a length, it is free, whatever numbers the file contains
        graph, followed = made(compared=True)
    except FastRNNError:
        followed = False
    return graph if followed else made(compared=False)[0]


def _read_safetensors(source, layers=None, float64_as_float32=False) -> Graph:
    from .importers import layers as list_of_layers
    from .importers.shared import weights

    return list_of_layers.build(weights.read_safetensors(source), layers)


def _read_arrays(source, layers=None, float64_as_float32=False) -> Graph:
    from .importers import layers as list_of_layers
    from .importers.shared import npz

    return list_of_layers.build(npz.read(source), layers)


def _read_keras(source, layers=None, config=None, float64_as_float32=False, thaw=True) -> Graph:
    if layers is not None:
        from .importers import layers as list_of_layers
        from .importers.shared import h5

        if config is not None:
            raise ModelFormatError("layers= and config= both describe the architecture: pass only one")
        return list_of_layers.build(h5.read_weights(source), layers)
    from .importers.keras import import_keras

    return import_keras(source, config=config, float64_as_float32=float64_as_float32, thaw=thaw)


def _read_onnx(source, **options) -> Graph:
    from . import onnx_files

    return onnx_files.read_graph(source, **options)


def _is_keras(blob: bytes) -> bool:
    from .importers.shared import h5

    return h5.is_h5(blob) or (blob.startswith(b"PK") and b"config.json" in blob and b"model.weights.h5" in blob)


def _is_pytorch(blob: bytes) -> bool:
    from .importers.pytorch import files

    return files.begins(blob)


def _is_npz(blob: bytes) -> bool:
    from .importers.shared import npz

    return npz.is_npz(blob)


def _is_safetensors(blob: bytes) -> bool:
    from .importers.shared import weights

    return weights.is_weights(blob)


FORMATS = (
    Format(
        "keras",
        (".keras", ".h5", ".hdf5"),
        _read_keras,
        frozenset({"layers", "config", "float64_as_float32", "thaw"}),
        _FOR_WEIGHTS + "; key= selects the weights in a PyTorch checkpoint",
        _is_keras,
    ),
    Format(
        "pytorch",
        (".pt", ".pth", ".ckpt", ".bin", ".tar", ".jit", ".torchscript", ".pkl"),
        _read_pytorch,
        frozenset({"layers", "key", "allow_torch", "example", "states", "float64_as_float32"}),
        "bind= needs a file that names its inputs; " + _FOR_WEIGHTS,
        _is_pytorch,
    ),
    Format(
        "arrays",
        (".npz",),
        _read_arrays,
        frozenset({"layers", "float64_as_float32"}),
        _FOR_WEIGHTS + "; key= selects the weights in a PyTorch checkpoint",
        _is_npz,
    ),
    Format(
        "safetensors",
        (".safetensors",),
        _read_safetensors,
        frozenset({"layers", "float64_as_float32"}),
        _FOR_WEIGHTS + "; key= selects the weights in a PyTorch checkpoint",
        _is_safetensors,
    ),
    Format(
        "fastrnn",
        (".fastrnn",),
        _read_fastrnn,
        frozenset({"cache"}),
        "bind=, states=, layers=, strict= and thaw= are settled when a model is converted: convert it again with them",
        lambda blob: blob[8:9] == b"{",
    ),
    Format(
        "onnx",
        (".onnx",),
        _read_onnx,
        frozenset({"bind", "states", "float64_as_float32", "strict", "thaw"}),
        "layers=, key=, config=, example= and allow_torch= are for files of weights, but an .onnx file is complete",
        lambda blob: True,  # protobuf has no magic number, so this format is last
    ),
)


def _check_file(path) -> None:
    """Raise the OSError with this path that opening it for reading would raise."""
    try:
        with open(path, "rb"):
            pass
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "no such file, expected a model file", str(path)) from None
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from None


def format_of(source) -> Format:
    """The format of a source: from the content for bytes, from the longest matching suffix for a path."""
    if isinstance(source, Mapping):
        return next(form for form in FORMATS if form.name == "arrays")
    if isinstance(source, bytes | bytearray | memoryview):
        blob = bytes(source)
        return next(form for form in FORMATS if form.begins(blob))
    if not isinstance(source, str | os.PathLike):
        raise ModelFormatError(f"load takes a path, bytes or a dict of arrays, got {type(source).__name__}")
    name = Path(source).name.lower()
    fitting = [(len(suffix), form) for form in FORMATS for suffix in form.suffixes if name.endswith(suffix)]
    if not fitting:
        known = ", ".join(suffix for form in FORMATS for suffix in form.suffixes)
        raise ModelFormatError(f"{source}: unknown file type {Path(source).suffix.lower()!r}, expected one of {known}")
    _check_file(source)
    return max(fitting, key=lambda pair: pair[0])[1]
