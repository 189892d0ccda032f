"""load and the from_... functions: a source of any format becomes a Model. What each format takes is in one table."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from pathlib import Path

from . import onnx_files
from .errors import FastRNNError, ModelFormatError
from .graph import Graph, artifact
from .model import LayerInfo, Model, TensorInfo
from .passes.sizes import fix_sizes


@dataclass(frozen=True)
class Format:
    """A kind of file. suffixes: how its names end. read: (path or bytes, **options) -> Graph. options: those of `load`
    that it takes; `refusal` says why the others don't apply. begins: of a file's bytes, whether it is such a file."""

    name: str
    suffixes: tuple[str, ...]
    read: Callable[..., Graph]
    options: frozenset[str]
    refusal: str
    begins: Callable[[bytes], bool]


def _read_fastrnn(source) -> Graph:
    return artifact.load(source)


_FOR_WEIGHTS = "a file of bare weights is told what it is by layers="


def _read_pytorch(
    source, layers=None, key=None, allow_torch=False, example=None, states=None, float64_as_float32=False
) -> Graph:
    from .importers import layers as list_of_layers
    from .importers.pytorch import files

    try:
        weights = files.read_weights(source, key)
    except files.Refused:
        if not allow_torch:
            raise
        from .importers.pytorch import through_torch

        found = through_torch.load(source, key)
        if not isinstance(found, files.Weights):
            if layers is not None:
                raise ModelFormatError("layers= is for files of bare weights; this one holds a module") from None
            return _graph_of_module(found, example, states, float64_as_float32)
        weights = found
    if example is not None or states is not None:
        raise ModelFormatError("example= and states= are for files that hold a module; this one holds bare weights")
    return list_of_layers.build(weights, layers)


def _graph_of_module(module, example, states, float64_as_float32: bool) -> Graph:
    """A live module's graph, which answers as the module does."""
    from .importers.pytorch.modules import convert

    converted = convert(module, example, float64_as_float32=float64_as_float32)
    name, how = type(module).__name__, f"the module was {converted.how}"

    def made(compared: bool) -> tuple[Graph, bool]:
        graph = onnx_files.read_graph(converted.proto, states=states, compared=compared)
        graph = graph.replace(name=name, notes=(how, *graph.notes))
        model = Model(graph, 1)
        return graph, converted.check(model.graph, model.run)

    try:  # a length that the module itself is seen to follow is free, whatever numbers are in the file
        graph, followed = made(compared=True)
    except FastRNNError:
        followed = False
    return graph if followed else made(compared=False)[0]


def _read_safetensors(source, layers=None, float64_as_float32=False) -> Graph:
    from .importers import layers as list_of_layers
    from .importers.shared import weights

    return list_of_layers.build(weights.read_safetensors(source), layers)


def _read_keras(source, layers=None, config=None, float64_as_float32=False, thaw=True) -> Graph:
    if layers is not None:
        from .importers import layers as list_of_layers
        from .importers.shared import h5

        if config is not None:
            raise ModelFormatError("layers= and config= both say what the architecture is; give one")
        return list_of_layers.build(h5.read_weights(source), layers)
    from .importers.keras import import_keras

    return import_keras(source, config=config, float64_as_float32=float64_as_float32, thaw=thaw)


def _is_keras(blob: bytes) -> bool:
    from .importers.shared import h5

    return h5.is_h5(blob) or (blob.startswith(b"PK") and b"config.json" in blob and b"model.weights.h5" in blob)


def _is_pytorch(blob: bytes) -> bool:
    from .importers.pytorch import files

    return files.begins(blob)


def _is_safetensors(blob: bytes) -> bool:
    from .importers.shared import weights

    return weights.is_weights(blob)


FORMATS = (
    Format(
        "keras",
        (".keras", ".h5", ".hdf5"),
        _read_keras,
        frozenset({"layers", "config", "float64_as_float32", "thaw"}),
        _FOR_WEIGHTS + "; key= is for PyTorch's own files, whose weights may lie in a checkpoint",
        _is_keras,
    ),
    Format(
        "pytorch",
        (".pt", ".pth", ".ckpt", ".bin"),
        _read_pytorch,
        frozenset({"layers", "key", "allow_torch", "example", "states", "float64_as_float32"}),
        "bind= is for files with inputs of their own; " + _FOR_WEIGHTS,
        _is_pytorch,
    ),
    Format(
        "safetensors",
        (".safetensors",),
        _read_safetensors,
        frozenset({"layers", "float64_as_float32"}),
        _FOR_WEIGHTS + "; key= is for PyTorch's own files, whose weights may lie in a checkpoint",
        _is_safetensors,
    ),
    Format(
        "fastrnn",
        (".fastrnn",),
        _read_fastrnn,
        frozenset(),
        "bind=, states=, layers=, strict= and thaw= are settled when a model is converted; a .fastrnn file has them "
        "built in",
        lambda blob: blob[8:9] == b"{",
    ),
    Format(
        "onnx",
        (".onnx",),
        onnx_files.read_graph,
        frozenset({"bind", "states", "float64_as_float32", "strict", "thaw"}),
        "layers= is for files of bare weights; an .onnx file has its architecture in it",
        lambda blob: True,  # protobuf has no magic number: last in this table
    ),
)


def load(
    path_or_bytes,
    *,
    bind=None,
    states=None,
    layers=None,
    key=None,
    allow_torch=False,
    example=None,
    config=None,
    threads=None,
    sizes=None,
    float64_as_float32=False,
    strict=True,
    thaw=True,
) -> Model:
    """Load a model file.

    Parameters
    ----------
    path_or_bytes : path (.onnx, .fastrnn, .keras, .h5, .hdf5, .pt, .pth, .ckpt, .bin, .safetensors), or the bytes of
        such a file
    bind : dict, optional
        Input name -> constant, fixed at load (`{"sr": 16000}`). An input that selects a branch of an `If` and is not
        bound stays an input: the model is a `SelectedModel`, whose `stream` takes bind=.
    states : dict, optional
        Input name -> output name of states that the caller would thread; found by dataflow where not given.
    layers : list, optional
        The architecture for a file of bare weights, such as ["embedding:emb", "lstm:rnn", "linear:out", "softmax"];
        not needed where every tensor belongs to one recurrent stack.
    key : str, optional
        Where the state dict lies in a PyTorch checkpoint that holds several dicts of tensors.
    allow_torch : bool
        Load a PyTorch file that holds a program (a pickled module, TorchScript) through PyTorch, which runs what the
        file asks for; such files are refused otherwise.
    example : as in `from_torch`, for such a file
    config : str, dict or path, optional
        The architecture for a Keras file of bare weights: what `model.to_json()` gives.
    threads : int, optional
        Threads a call may use; None: as `cpu_info()` says.
    sizes : dict, optional
        Name -> number of sizes that the file leaves free besides batch and time, such as samples a step; `run` takes
        any, a stream keeps those of its first step.
    float64_as_float32 : bool
        Compute a float64 model in float32; it is refused otherwise. Bare weights compute in float32 whatever the file
        keeps them in, and the model's notes say so. A number that float32 can't hold is a ModelFormatError either way.
    strict : bool
        For .onnx files. True: a size that the file has as a number stays that number if a scalar in the file may have
        been computed from it, such as 19.0 or 1/19 in a file of 19 steps. False: such scalars are passed over with a
        `FastRNNWarning` that names node and number. Positions and counts (`y[:, 9]`) hold a size either way.
    thaw : bool
        For .onnx and Keras files. False: every size that the file has as a number stays that number. True: batch and
        length are freed if nothing in the file depends on them; `model.notes` says what was assumed.

    Raises
    ------
    ModelFormatError : damaged, hostile, or not a model. UnsupportedError : lists everything the file needs and fastrnn
    lacks. OSError : the file can't be read.
    """
    form = format_of(path_or_bytes)
    options = {"bind": bind, "states": states, "layers": layers, "key": key, "config": config, "example": example}
    options |= {"allow_torch": allow_torch, "float64_as_float32": float64_as_float32, "strict": strict, "thaw": thaw}
    return load_as(form, path_or_bytes, threads=threads, sizes=sizes, **options)


def load_as(form: Format, source, *, threads=None, sizes=None, **options) -> Model:
    """`load` a source that is of this format: a path, bytes, or what the format's reader takes besides.

    options: those of `load`; one that is not at its default and that the format does not take is a ModelFormatError.
    """
    given = {name: value for name, value in options.items() if _is_given(name, value)}
    if form.name == "fastrnn":  # it has computed in float32 since it was converted
        given.pop("float64_as_float32", None)
    unknown = sorted(set(given) - form.options)
    if unknown:
        raise ModelFormatError(f"{', '.join(f'{n}=' for n in unknown)}: {form.refusal}")
    if form.name == "onnx":
        return onnx_files.model_of(source, given, threads, sizes or {})
    return Model(fix_sizes(form.read(source, **given), sizes or {}), threads)


def _is_given(name: str, value) -> bool:
    """Whether an option of `load` is not at its default."""
    if name in ("strict", "thaw"):
        return not value
    return bool(value) if name in ("bind", "states", "allow_torch", "float64_as_float32") else value is not None


def from_onnx(model_proto, *, bind=None, states=None, threads=None, sizes=None, float64_as_float32=False) -> Model:
    """A model from an `onnx.ModelProto` (or a path, or bytes). Arguments and errors as `load`."""
    options = {"bind": bind, "states": states, "float64_as_float32": float64_as_float32}
    return onnx_files.model_of(model_proto, options, threads, sizes or {})


def from_torch(
    module, example=None, *, states=None, threads: int | None = None, sizes=None, float64_as_float32: bool = False
) -> Model:
    """A model from a live `torch.nn.Module`, which is taken as in eval mode and left as it is.

    The module is traced; where that can't be done, torch's exporters write it down. Either way the model is compared
    with the module itself before it is returned, at the example's sizes and at two others.

    Parameters
    ----------
    module : torch.nn.Module
    example : tensor or array, or a tuple of the arguments of `forward`, optional
        Needed where the first layer does not tell what the module takes, and where it can't be traced (loops over a
        length, attention). Its batch and length are free in the model as far as the module allows.
    states, threads, sizes, float64_as_float32 : as in `load`

    Returns
    -------
    Model with the module's own axis order. Its inputs are named as the arguments of `forward`, its outputs y, or y0,
    y1, ... in the order in which they stand in what the module returns; initial states that are arguments and last
    states that are returned become a stream's states.

    Raises
    ------
    ModelFormatError : no module, or an example is needed. UnsupportedError : it can't be written down, or answers
    otherwise here than in PyTorch. ImportError : PyTorch is not installed.

    Examples
    --------
    >>> model = fastrnn.from_torch(torch.nn.GRU(20, 64, batch_first=True))
    >>> y, h = model(np.zeros((1, 5, 20), np.float32))
    """
    graph = _graph_of_module(module, example, states, float64_as_float32)
    return Model(fix_sizes(graph, sizes or {}), threads)


def from_keras(model, *, threads: int | None = None, float64_as_float32: bool = False) -> Model:
    """A model from a live Keras model (Sequential or Functional, of Keras 2 or 3, any backend), at its present weights.

    Arguments and errors as `load`. Only the model's own methods are used; its weights are copied.
    """
    from .importers.keras import import_model

    return Model(import_model(model, float64_as_float32=float64_as_float32), threads)


def from_arrays(kind: str, *, threads: int | None = None, **arrays) -> Model:
    """A model of one recurrent layer whose weights are arrays: of an npz, of JSON, of a paper.

    It takes float32 `x` [batch, time, I] and gives `y` [batch, time, D*H], D directions. Where nothing else is said,
    arrays lie as in PyTorch. In what follows G is the number of gates: rnn 1, lstm 4, gru 3.

    Parameters
    ----------
    kind : "rnn", "rnn_relu", "lstm" or "gru"
    W : array, shape (G*H, I), or (D, G*H, I)
        Input weights, a block of H rows a gate.
    R : array, shape (G*H, H), or (D, G*H, H)
        Recurrent weights.
    Wb, Rb : arrays, shape (G*H,), or (D, G*H), optional
        Input and recurrent bias; zeros where left out. Where there is only one, it is Wb.
    P : array, shape (3*H,), or (D, 3*H), optional
        Peepholes of an lstm, its gates in the order of `order` without the candidate; the output gate sees the new c.
    order : str, optional
        The order of the gates, a letter each: of an lstm i f o and g (or c) for the candidate, "ifgo" by default; of a
        gru r z (or u) and n (or h) for the candidate, "rzn" by default.
    reset : "after" or "before"
        Whether a gru's reset gate multiplies R h + Rb (PyTorch) or h itself.
    z_keeps : "old" or "new"
        h = z*h_old + (1-z)*n, as in PyTorch, Keras and ONNX, or h = (1-z)*h_old + z*n, as in some papers.
    activations : sequence of names, or of (name, alpha, beta), optional
        Of the gates, the candidate and the output (lstm), the gates and the candidate (gru), the state (rnn).
    clip : float, optional
        Bounds every gate's argument to [-clip, clip].
    input_forget : bool
        An lstm whose forget gate is 1 - i.
    direction : "forward", "reverse" or "bidirectional"
        The last needs the axis D = 2 in every array.
    h0, c0 : arrays, shape (H,), or (D, H), optional
        Initial states, the same for every row; zeros where left out.
    threads : as in `load`

    Raises
    ------
    ShapeError : an array that does not fit; the text names it. ModelFormatError : an unknown word, or one that does
    not fit the kind; a number that float32 can't hold (floats of any precision round, 1e300 is refused; an integer must
    be exact).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> model = fastrnn.from_arrays("gru", W=rng.normal(size=(12, 3)), R=rng.normal(size=(12, 4)), order="zrn")
    >>> model(np.zeros((1, 5, 3), np.float32)).shape
    (1, 5, 4)
    """
    from .importers import arrays as importer

    known = {name for name in signature(importer.build).parameters if name != "kind"}
    unknown = sorted(set(arrays) - known)
    if unknown or {"W", "R"} - set(arrays):
        missing = sorted({"W", "R"} - set(arrays))
        text = f"unknown {', '.join(unknown)}" if unknown else f"{', '.join(missing)} is missing"
        raise ModelFormatError(f"from_arrays: {text}; it takes {', '.join(sorted(known))}")
    return Model(importer.build(kind, **arrays), threads)


def from_equations(
    text: str, *, outputs=None, initial=None, inputs=None, threads: int | None = None, **arrays
) -> Model:
    """A model of a recurrent cell that is written as equations.

    Parameters
    ----------
    text : assignments, separated by `;` or line ends: `h = tanh(W @ x + R @ prev(h) + b)`
        `*` is elementwise, `@` a product with an array ([out, in] @ features), `prev(v)` and `prev(v, n)` the value
        one and n steps ago. docs/guide/equations.md lists everything that may be written.
    outputs : name or names of assigned values; None: the last one
    initial : dict, optional
        Name -> what prev(name) is at the first step (zeros where absent), [features..], or [n, features..] for what it
        was 1 to n steps ago.
    inputs : dict, optional
        Name -> size (or shape) of features. None: there is one input, `x`, and its size follows from a product with it.
    **arrays : the arrays that the equations name

    Returns
    -------
    Model that takes [batch, T, features] of each input and returns the same of each output. A cell that is an RNN, an
    LSTM or a GRU in other words runs as that (`model.graph.notes` says so).

    Raises
    ------
    ModelFormatError : what is not in the grammar. ShapeError : sizes that don't go together. Both name the equation.

    Examples
    --------
    >>> import numpy as np
    >>> model = from_equations("h = tanh(W @ x + R @ prev(h))", W=np.ones((4, 3)), R=np.eye(4))
    >>> model(np.zeros((1, 5, 3), np.float32)).shape
    (1, 5, 4)
    """
    from .importers.equations import from_equations as read

    return Model(read(text, arrays, outputs=outputs, initial=initial, inputs=inputs), threads)


def format_of(source) -> Format:
    """The format of a file: by what they begin with for bytes, by its suffix (the longest that fits) for a path."""
    if isinstance(source, bytes | bytearray | memoryview):
        blob = bytes(source)
        return next(form for form in FORMATS if form.begins(blob))
    if not isinstance(source, str | os.PathLike):
        raise ModelFormatError(f"load takes a path or bytes, got {type(source).__name__}")
    name = Path(source).name.lower()
    fitting = [(len(suffix), form) for form in FORMATS for suffix in form.suffixes if name.endswith(suffix)]
    if not fitting:
        known = ", ".join(suffix for form in FORMATS for suffix in form.suffixes)
        raise ModelFormatError(f"{source}: don't know the file type {Path(source).suffix.lower()!r}; known: {known}")
    if not Path(source).is_file():
        raise FileNotFoundError(f"no model file {source}")
    return max(fitting, key=lambda pair: pair[0])[1]


__all__ = [
    "FORMATS",
    "FastRNNError",
    "Format",
    "LayerInfo",
    "Model",
    "TensorInfo",
    "from_arrays",
    "from_equations",
    "from_keras",
    "from_onnx",
    "from_torch",
    "load",
]
