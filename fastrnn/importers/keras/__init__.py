"""Keras files and live Keras models -> Graph, with only numpy and h5py. Keras is not imported, nothing is executed.

Reads `.keras` (a zip of config.json, metadata.json and model.weights.h5), whole models in `.h5` of Keras 1, 2 and 3,
and `.weights.h5` or other weight files together with the JSON of `model.to_json()`. `config.py` builds a tree of
layers, `tensors.py` finds their weights, and `walk.py` runs them on symbolic tensors through the table that the other
modules fill.
"""

from __future__ import annotations

import errno
import io
import json
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from ...errors import ModelFormatError
from ...graph import Graph
from ..shared.h5 import H5, is_h5, opened
from . import activations, attention, core, einsum, merging, operations, recurrent, shaping, windows  # noqa: F401 - fill LAYERS
from .config import MAX_TEXT, Layer, Version, layer_of, parse, version_of
from .tensors import LayerWeights, of_file, of_lists
from .walk import build, check_known

_FILES = frozenset(("config.json", "metadata.json", "model.weights.h5"))
_MOST_ENTRIES = 64
_MOST_GROWTH = 1100  # unpacked bytes per packed byte: deflate can't exceed 1,032
_MOST_GROWTH_OF_WEIGHTS = 16  # Keras doesn't compress; a trained model compressed by hand shrinks by a tenth
_MOST_BYTES = 1 << 36
T = TypeVar("T")


def is_keras(head: bytes) -> bool:
    """Whether bytes start like a zip file, which a .keras file is."""
    return head.startswith(b"PK\x03\x04")


def import_keras(source, *, config=None, float64_as_float32: bool = False, thaw: bool = True) -> Graph:
    """The graph of a Keras file (a path or bytes).

    config : for weight files only: the text of `model.to_json()`, its dict, or a path to it
    thaw : free a length that the file fixes if no layer needs it

    Raises
    ------
    ModelFormatError : damaged or hostile file, or weights that don't fit the config (names the tensor, got and
    expected).
    UnsupportedError : lists every layer and setting that fastrnn doesn't support. OSError : can't be read.
    """
    in_memory = isinstance(source, bytes | bytearray | memoryview)
    where = "bytes" if in_memory else str(source)
    if in_memory:
        head = bytes(source[:8])
    else:
        with open(source, "rb") as file:
            head = file.read(8)
    if is_h5(head):
        return _from_h5(source, where, config, float64=float64_as_float32, thaw=thaw)
    if not is_keras(head):
        raise ModelFormatError(f"{where}: neither a zip (.keras) nor an HDF5 file (.h5)")
    if config is not None:
        raise ModelFormatError(f"{where}: config= is for files of weights alone; this file contains its config")
    return _from_zip(source, where, float64=float64_as_float32, thaw=thaw)


def _from_h5(source, where: str, config, **how) -> Graph:
    with opened(source) as file:
        text, version = file.text("model_config"), file.text("keras_version")
        if text is not None and config is not None:
            raise ModelFormatError(f"{where}: config= is for files of weights alone; this file contains its config")
        if text is None and config is None:
            raise ModelFormatError(
                f"{where}: it holds weights but no config; give config= (the text of model.to_json()) or layers="
            )
        data = parse(text) if text is not None else _given_config(config)
        # Weights use the version that their config names, or the file's own if the config names none.
        version = data.pop("keras_version", None) or version
        root, release, tensors = _located(where, lambda: _read(data, version, file))
    return _located(where, lambda: build(root, release, tensors, **how))


def config_text(config) -> str:
    """The text of a config given as a string, a dict, or a path."""
    return json.dumps(_given_config(config))


def written_by(path, config=None) -> str | None:
    """The Keras version that a file names, or that the config for its weights shows; None if there is none or the file
    is not a Keras file."""
    try:
        with open(path, "rb") as file:
            zipped = is_keras(file.read(8))
        if zipped:
            with zipfile.ZipFile(path) as archive:
                entries = _entries(archive, str(path))
                return parse(_entry(archive, entries, "metadata.json", 1 << 20, str(path))).get("keras_version")
        with opened(path) as h5:
            named = h5.text("keras_version")
        if config is None:
            return named
        data = _given_config(config)
        return version_of(data.get("keras_version") or named, data).text
    except (ModelFormatError, zipfile.BadZipFile):
        return None


def _given_config(config) -> dict:
    if isinstance(config, dict):
        return json.loads(json.dumps(config))
    text = str(config)
    if not text.lstrip().startswith("{"):
        text = Path(config).read_text()
    return parse(text)


def _from_zip(source, where: str, **how) -> Graph:
    try:
        with zipfile.ZipFile(io.BytesIO(bytes(source)) if where == "bytes" else source) as archive:
            entries = _entries(archive, where)
            config = parse(_entry(archive, entries, "config.json", MAX_TEXT, where))
            metadata = parse(_entry(archive, entries, "metadata.json", 1 << 20, where))
            blob = _entry(archive, entries, "model.weights.h5", _MOST_BYTES, where, _MOST_GROWTH_OF_WEIGHTS)
    except ModelFormatError:
        raise
    except OSError as error:
        if error.errno != errno.EINVAL:  # a disk error; EINVAL is an impossible file offset
            raise
        raise ModelFormatError(f"{where}: a damaged .keras file: an entry starts before the file does") from None
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, zlib.error) as error:
        raise ModelFormatError(f"{where}: not a .keras file, or a damaged one ({error!s:.200})") from None
    version = metadata.get("keras_version")
    if not isinstance(version, str):
        raise ModelFormatError(f"{where}: its metadata names no keras_version")
    with opened(blob, f"{where}: model.weights.h5") as file:
        root, release, tensors = _located(where, lambda: _read(config, version, file))
    return _located(where, lambda: build(root, release, tensors, **how))


def _entries(archive: zipfile.ZipFile, where: str) -> dict[str, zipfile.ZipInfo]:
    """The entries by name. Nothing is unpacked to disk, so names can't escape a folder."""
    infos = archive.infolist()
    names = [i.filename for i in infos]
    if len(infos) > _MOST_ENTRIES or len(set(names)) != len(names):
        raise ModelFormatError(f"{where}: a zip of {len(infos)} entries, some of them twice or too many")
    strange = [n for n in names if n not in _FILES and not n.startswith("assets/")]
    if strange:
        raise ModelFormatError(f"{where}: it has an entry {strange[0]!r:.80}, which does not belong in a .keras file")
    return {i.filename: i for i in infos}


def _entry(
    archive: zipfile.ZipFile, entries: dict, name: str, most: int, where: str, growth: int = _MOST_GROWTH
) -> bytes:
    """The bytes of an entry, at most as many as it declares and as its packed size can produce."""
    info = entries.get(name)
    if info is None:
        raise ModelFormatError(f"{where}: it has no {name}")
    if info.file_size > min(most, 4096 + growth * info.compress_size):
        raise ModelFormatError(f"{where}: {name} unpacks from {info.compress_size} to {info.file_size} bytes")
    with archive.open(info) as file:
        data = file.read(info.file_size + 1)
    if len(data) != info.file_size:
        raise ModelFormatError(f"{where}: {name} has {len(data)} bytes, its entry says {info.file_size}")
    return data


def _read(config: dict, version: str | None, file: H5) -> tuple[Layer, Version, LayerWeights]:
    root, release = layer_of(config), version_of(version, config)
    check_known(root, root.name)
    return root, release, of_file(root, file)


def _located(where: str, work: Callable[[], T]) -> T:
    """Run `work`, with the file's name in its errors."""
    try:
        return work()
    except ModelFormatError as error:
        text = str(error)
        raise ModelFormatError(text if text.startswith(where) else f"{where}: {text}") from error.__cause__


def import_model(model, *, float64_as_float32: bool = False) -> Graph:
    """The graph of a live Keras model, read through its own methods: `to_json`, `layers`, and the weights of each
    layer.

    Raises ModelFormatError if it is not a Keras model or was never built; otherwise as `import_keras`.
    """
    if not all(hasattr(model, name) for name in ("to_json", "layers", "weights")):
        raise ModelFormatError(f"from_keras takes a Keras model, got {type(model).__name__}")
    if not getattr(model, "built", True):
        raise ModelFormatError(f"{type(model).__name__}: it was never built: call it once, or give it an Input")
    packages = [kind.__module__.split(".")[0] for kind in type(model).__mro__]
    package = next((p for p in packages if p in ("keras", "tf_keras")), "keras")
    try:
        config = parse(model.to_json())
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ModelFormatError(f"{type(model).__name__}: its config can't be read ({error!s:.200})") from None
    version = config.pop("keras_version", None) or getattr(sys.modules.get(package), "__version__", None)
    root = layer_of(config)
    found = {}
    for layer in model.layers:
        kept = [*layer.trainable_weights, *layer.non_trainable_weights]
        found[layer.name] = [(getattr(v, "path", v.name).removesuffix(":0"), _array(v)) for v in kept]
    release = version_of(version, config)
    check_known(root, root.name)
    tensors = of_lists(root, found, str(getattr(model, "name", "model")))
    return build(root, release, tensors, float64=float64_as_float32)


def _array(variable) -> np.ndarray:
    """A variable's array, from any backend."""
    value = variable.numpy() if hasattr(variable, "numpy") else variable
    return np.asarray(value)
