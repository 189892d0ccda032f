"""`load` and the `from_...` functions, which make a Model; formats.py lists the formats."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from inspect import signature
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from .errors import FastRNNError, ModelFormatError, memory_for
from .formats import FORMATS, Format, format_of, graph_of_module
from .machine._isa import isa_info
from .machine.logs import listens, log
from .model import LayerInfo, Model, TensorInfo
from .passes.sizes import fix_sizes
from .typing import Blob, Input, Precision, StrPath

Kind: TypeAlias = Literal["rnn", "rnn_relu", "lstm", "gru"]

if TYPE_CHECKING:
    from .machine.packed_files import Store


def _check_flags(**flags) -> None:
    """Raise ModelFormatError for a flag that is not a bool: the string "no" would mean yes."""
    for name, value in flags.items():
        if not isinstance(value, bool | np.bool_):
            raise ModelFormatError(f"{name} must be True or False, got {value!r:.60}")


def load(
    path_or_bytes: StrPath | Blob | Mapping[str, Input],
    *,
    bind: Mapping[str, Input] | None = None,
    states: Mapping[str, str] | None = None,
    layers: Sequence[str] | str | None = None,
    key: str | None = None,
    allow_torch: bool = False,
    example: Any = None,
    config: str | Mapping[str, Any] | os.PathLike[str] | None = None,
    threads: int | None = None,
    sizes: Mapping[str, int] | None = None,
    float64_as_float32: bool = False,
    strict: bool = True,
    thaw: bool = True,
    cache: StrPath | None = None,
    precision: Precision | None = None,
) -> Model:
    """Load a model file.

    Parameters
    ----------
    path_or_bytes : path (the suffixes are in `FORMATS`), bytes of such a file, or a dict of named arrays
    bind : dict, optional
        Input name -> constant that replaces the input, such as `{"sr": 16000}`. For .onnx files. An input that selects
        a branch of an `If` and is not bound stays an input: the model is a `SelectedModel`, whose `stream` takes bind=.
    states : dict, optional
        Input name -> output name of all states that the caller would thread. By default they are found: see `notes`.
    layers : list, optional; for bare weights other than a recurrent stack, such as ["lstm:rnn", "linear:out"]
    key : str, optional; name of the state dict in a PyTorch checkpoint that holds several dicts of tensors
    allow_torch : bool; load a PyTorch file that holds a program (a module, TorchScript) by PyTorch, which runs its code
    example : as in `from_torch`, for such a file
    config : str, dict or path, optional; the architecture for a Keras file of bare weights, from `model.to_json()`
    threads : int, optional; threads that a call may use. Default: as `cpu_info()` says
    sizes : dict, optional
        Name -> number for sizes that the file leaves free ("time", the file's own name, or an axis such as "x[2]"),
        applied before the import. By default `run` accepts any size, and a stream keeps the sizes of its first step.
    float64_as_float32 : bool
        Compute a float64 model in float32; it is refused otherwise. Bare weights always do, as the model's notes say.
    strict : bool
        For .onnx files. True: a size that is a number in the file stays fixed if a scalar in the file may have been
        computed from it, such as 1/19 in a file of 19 steps. False: such scalars are ignored, with a `FastRNNWarning`.
    thaw : bool; for .onnx and Keras files
        True: batch and length are freed if nothing in the file depends on them; `model.notes` says what was assumed.
        False: every size that is a number in the file stays fixed.
    cache : path, optional; for .fastrnn files: a folder for packed weights, which all processes then share
        Default: the environment variable FASTRNN_CACHE. Without it, each process packs into its own memory.
    precision : "float32", "bfloat16", "int8" or "int8-a16", or dict from layer names to them, optional
        The number format of weights (docs/guide/precision.md). Default: as the file has them.

    Raises
    ------
    ModelFormatError : damaged, hostile, not a model, or an option does not apply to the file. UnsupportedError : lists
    all that the file needs and fastrnn lacks. OSError : the file can't be read, `FileNotFoundError` if it is missing.
    """
    form = format_of(path_or_bytes)
    options = {"bind": bind, "states": states, "layers": layers, "key": key, "config": config, "example": example}
    options |= {"allow_torch": allow_torch, "float64_as_float32": float64_as_float32, "strict": strict, "thaw": thaw}
    given = {"threads": threads, "sizes": sizes, "cache": cache, "precision": precision}
    return load_as(form, path_or_bytes, **given, **options)


@memory_for("load")
def load_as(form: Format, source, *, threads=None, sizes=None, precision=None, **options) -> Model:
    """`load` a source that is of this format: a path, bytes, or what the format's reader takes besides.

    options: those of `load`; one that is not at its default and that the format does not take is a ModelFormatError.
    """
    _check_flags(**{name: options[name] for name in _FLAGS if name in options})
    given = _taken_by(form, {name: value for name, value in options.items() if _is_given(name, value)})
    began = time.perf_counter()
    where = "bytes" if isinstance(source, bytes | bytearray | memoryview) else str(source)
    try:
        if form.name == "onnx":
            from . import onnx_files

            model = onnx_files.model_of(source, given, threads, sizes or {}, precision)
        else:
            store = _store(source, given.pop("cache", None)) if form.name == "fastrnn" else None
            model = Model(fix_sizes(form.read(source, **given), sizes or {}), threads, precision, store)
    except FastRNNError as error:
        log("INFO", "%s is refused: %s", where, error)
        raise
    _log(model, where, time.perf_counter() - began)
    return model


def _store(source, cache) -> Store | None:
    """Where the packed weights of a .fastrnn file are kept; None for memory of this process."""
    if cache is not None and not isinstance(cache, str | os.PathLike):
        raise ModelFormatError(f"cache must be the path of a folder, got {cache!r:.60}")
    folder = os.environ.get("FASTRNN_CACHE") if cache is None else cache
    if not folder or not os.fspath(folder):
        return None
    from .machine.packed_files import Store

    return Store(folder, None if isinstance(source, bytes | bytearray | memoryview) else source)


def _log(model, where: str, seconds: float) -> None:
    """One line about a loaded model, and at level DEBUG what its import did."""
    if not listens("INFO"):
        return
    if not isinstance(model, Model):  # a model per branch, made when it is first used
        log("INFO", "loaded %s in %.3f s: a model for each value of its selectors", where, seconds)
        return
    isa = isa_info()["active"]
    nodes, size = len(model.graph.nodes), model.memory_bytes
    text = "loaded %s in %.3f s: %d nodes, %d bytes, %s, %d threads"
    log("INFO", text, where, seconds, nodes, size, isa, model.threads)
    for note in model.notes:
        log("DEBUG", "%s: %s", where, note)


_FLAGS = ("allow_torch", "float64_as_float32", "strict", "thaw")


def _is_given(name: str, value) -> bool:
    """Whether an option of `load` is not at its default."""
    if name in ("strict", "thaw"):
        return not value
    return bool(value) if name in ("bind", "states", "allow_torch", "float64_as_float32") else value is not None


def _taken_by(form: Format, given: dict) -> dict:
    """The options that a caller gave; ModelFormatError if the format does not take one of them."""
    if form.name == "fastrnn":  # the conversion already made it float32
        given.pop("float64_as_float32", None)
    unknown = sorted(set(given) - form.options)
    if unknown:
        options = ", ".join(f"{n}=" for n in unknown)
        why = "it is for .fastrnn files: convert this one first" if unknown == ["cache"] else form.refusal
        raise ModelFormatError(f"{form.name} files do not take {options}: {why}")
    return given


@memory_for("from_onnx")
def from_onnx(
    model_proto: Any,
    *,
    bind: Mapping[str, Input] | None = None,
    states: Mapping[str, str] | None = None,
    threads: int | None = None,
    sizes: Mapping[str, int] | None = None,
    float64_as_float32: bool = False,
    precision: Precision | None = None,
) -> Model:
    """Make a model from an `onnx.ModelProto` (or a path, or bytes). Arguments and errors are those of `load`."""
    from . import onnx_files

    _check_flags(float64_as_float32=float64_as_float32)
    options = {"bind": bind, "states": states, "float64_as_float32": float64_as_float32}
    return onnx_files.model_of(model_proto, options, threads, sizes or {}, precision)


@memory_for("from_torch")
def from_torch(
    module: Any,
    example: Any = None,
    *,
    states: Mapping[str, str] | None = None,
    threads: int | None = None,
    sizes: Mapping[str, int] | None = None,
    float64_as_float32: bool = False,
    precision: Precision | None = None,
) -> Model:
    """Make a model from a live `torch.nn.Module`, as in eval mode. The module itself is not changed.

    The module is traced. If it can't be traced, PyTorch's exporters write it down, first with free sizes and then with
    those of the example. The model is compared with the module before it is returned, at the sizes of the example and
    at two others.

    Parameters
    ----------
    module : torch.nn.Module
    example : tensor or array, a tuple of the arguments of `forward`, or a dict of them by name, optional
        Needed if the first layer does not show what the module takes, or if the module can't be traced (loops over a
        length, attention). Arguments may be tuples, lists and dicts of tensors. Batch and length of the example are
        free in the model as far as the module allows. The example is copied: the module may write into its input.
    states, threads, sizes, float64_as_float32, precision : as in `load`

    Returns
    -------
    Model with the axis order of the module. Inputs are named after the arguments of `forward`, and those in a tuple or
    dict after its places or keys (state0, state1). An output is named after the key or field that holds it, and y, or
    y0, y1, ... in the order in which the module returns them, if there is none; if an input has that name, with _out
    behind it. Initial states among the arguments and last states among the outputs become the states of a stream.

    Raises
    ------
    ModelFormatError : `module` is not a module, or an example is needed or does not fit `forward`.
    UnsupportedError : the module can't be converted, keeps a state between calls (the error names the attribute), or
        the model gives other answers than PyTorch.
    ImportError : PyTorch is not installed.

    Examples
    --------
    >>> model = fastrnn.from_torch(torch.nn.GRU(20, 64, batch_first=True))
    >>> y, h = model(np.zeros((1, 5, 20), np.float32))
    """
    _check_flags(float64_as_float32=float64_as_float32)
    graph = graph_of_module(module, example, states, float64_as_float32)
    return Model(fix_sizes(graph, sizes or {}), threads, precision)


@memory_for("from_keras")
def from_keras(
    model: Any,
    *,
    threads: int | None = None,
    float64_as_float32: bool = False,
    precision: Precision | None = None,
) -> Model:
    """Make a model from a live Keras model, with its current weights.

    The model may be Sequential or Functional, from Keras 2 or 3, any backend. Only its own methods are used, and its
    weights are copied. Arguments and errors are those of `load`.
    """
    from .importers.keras import import_model

    _check_flags(float64_as_float32=float64_as_float32)
    return Model(import_model(model, float64_as_float32=float64_as_float32), threads, precision)


@memory_for("from_arrays")
def from_arrays(kind: Kind, *, threads: int | None = None, precision: Precision | None = None, **arrays: Any) -> Model:
    """Make a model of one recurrent layer from arrays, for example from an npz file, JSON or a paper.

    The model takes float32 `x` [batch, time, I] and returns `y` [batch, time, D*H] for D directions. The defaults are
    PyTorch's layout. Below, G is the number of gates: rnn 1, lstm 4, gru 3.

    Parameters
    ----------
    kind : "rnn", "rnn_relu", "lstm" or "gru"
    W : array, shape (G*H, I), or (D, G*H, I)
        Input weights, a block of H rows per gate.
    R : array, shape (G*H, H), or (D, G*H, H)
        Recurrent weights.
    Wb, Rb : arrays, shape (G*H,), or (D, G*H), optional
        Input and recurrent bias; zeros by default. If there is only one bias, pass it as Wb.
    P : array, shape (3*H,), or (D, 3*H), optional
        Peepholes of an lstm, in the order of `order` without the candidate. The output gate sees the new c.
    order : str, optional
        The order of the gates, one letter per gate. lstm: i, f, o, and g (or c) for the candidate; "ifgo" by default.
        gru: r, z (or u), and n (or h) for the candidate; "rzn" by default.
    reset : "after" or "before"
        Whether the reset gate of a gru multiplies R h + Rb ("after", as in PyTorch) or h itself ("before").
    z_keeps : "old" or "new"
        "old": h = z*h_old + (1-z)*n, as in PyTorch, Keras and ONNX. "new": h = (1-z)*h_old + z*n, as in some papers.
    activations : sequence of names, or of (name, alpha, beta), optional
        lstm: for the gates, the candidate and the output. gru: for the gates and the candidate. rnn: for the state.
    clip : float, optional
        Limits the argument of every gate to [-clip, clip].
    input_forget : bool
        Whether the forget gate of an lstm is 1 - i.
    direction : "forward", "reverse" or "bidirectional"
        "bidirectional" needs the axis D = 2 in every array.
    h0, c0 : arrays, shape (H,), or (D, H), optional
        Initial states, the same for every row; zeros by default.
    threads, precision : as in `load`

    Raises
    ------
    ShapeError : an array does not fit; the text names it.
    ModelFormatError : an unknown argument, one that does not apply to the kind, or a number that float32 can't hold.
        Floats of any precision are rounded, but 1e300 is refused; an integer must be exact.

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
    return Model(importer.build(kind, **arrays), threads, precision)


@memory_for("from_equations")
def from_equations(
    text: str,
    *,
    outputs: str | Sequence[str] | None = None,
    initial: Mapping[str, Input] | None = None,
    inputs: Mapping[str, int | tuple[int, ...]] | Sequence[str] | str | None = None,
    threads: int | None = None,
    precision: Precision | None = None,
    **arrays: Input,
) -> Model:
    """Make a model from the equations of a recurrent cell.

    Parameters
    ----------
    text : assignments, separated by `;` or line ends, such as `h = tanh(W @ x + R @ prev(h) + b)`
        `*` is elementwise, and `@` a product with an array ([out, in] @ features). `prev(v)` is the value one step ago,
        `prev(v, n)` n steps ago. docs/guide/equations.md describes the grammar.
    outputs : name or names of assigned values. Default: the last one.
    initial : dict, optional
        Name -> value of prev(name) at the first step, [features..], or [n, features..] for the values 1 to n steps
        ago. Default: zeros.
    inputs : dict, or names, optional
        Name -> size (or shape) of features; only the names if the sizes follow from the equations. Default: one input,
        `x`, whose size follows from a product with it.
    threads, precision : as in `load`
    **arrays : the arrays that the equations use

    Returns
    -------
    Model that takes [batch, T, features] for each input and returns the same for each output. A cell that is
    equivalent to an RNN, LSTM or GRU runs as that, and `model.notes` says so.

    Raises
    ------
    ModelFormatError : something that is not in the grammar; the text names the equation.
    ShapeError : sizes that don't fit together; the text names the equation.

    Examples
    --------
    >>> import numpy as np
    >>> model = from_equations("h = tanh(W @ x + R @ prev(h))", W=np.ones((4, 3)), R=np.eye(4))
    >>> model(np.zeros((1, 5, 3), np.float32)).shape
    (1, 5, 4)
    """
    from .importers.equations import from_equations as read

    graph = read(text, arrays, outputs=outputs, initial=initial, inputs=inputs)
    return Model(graph, threads, precision)


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
