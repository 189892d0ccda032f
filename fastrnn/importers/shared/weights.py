"""`NamedWeights`: named arrays from a file without an architecture. File readers create them for `layers/`.

Names are those of the file: `rnn.weight_ih_l0` of PyTorch, `lstm/lstm/kernel` of Keras (parts joined by /, without a
trailing ":0"). The order is the file's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from ...errors import ModelFormatError
from ...graph.casts import check_float32
from ...machine import container
from ...records import dataclass
from .ledger import ReadLedger


@dataclass(frozen=True)
class NamedWeights:
    """arrays: name -> array of any dtype. where: the file, for errors. notes: lines about the reading.

    parts: the file holds independent layers (Keras), so a list may use only some of them; otherwise a tensor that no
    layer uses is an error.
    """

    arrays: Mapping[str, np.ndarray]
    where: str
    notes: tuple[str, ...] = ()
    parts: bool = False

    def precision(self) -> str:
        """ "float32", or for example "bfloat16 and float32" for a mix."""
        names = sorted({a.dtype.name for a in self.arrays.values() if a.dtype.kind == "f"})
        return " and ".join(names) or "no floating point"


class Tensors:
    """The arrays of a file while a list of layers takes them. `left` names those that no layer took."""

    def __init__(self, weights: NamedWeights):
        self.where, self.arrays = weights.where, dict(weights.arrays)
        self._ledger = ReadLedger(self.arrays)

    def left(self) -> list[str]:
        """Names that no layer took, in the file's order."""
        return self._ledger.left()

    def used_layers(self) -> set[str]:
        """The Keras layers that a tensor was taken from."""
        return {name.partition("/")[0] for name in self._ledger.seen}

    def skip(self, prefix: str | None) -> int:
        """Mark as taken all names under a prefix (up to a dot or slash); returns how many."""
        found = [n for n in self.arrays if prefix and (n == prefix or n.startswith((f"{prefix}.", f"{prefix}/")))]
        self._ledger.read(*found)
        return len(found)

    def bare(self, name: str) -> bool:
        """Whether the file has a tensor of exactly that name."""
        return name in self.arrays

    def layer(self, prefix: str | None, names: Mapping[str, str]) -> LayerTensors:
        """The tensors of one layer. names: torch's name of each -> Keras's, in the order in which Keras stores them."""
        under = f"{prefix}/" if prefix else ""
        keras = [n for n in self.arrays if "/" in n and n.startswith(under)]
        if not keras:
            dot = f"{prefix}." if prefix else ""
            return LayerTensors(self, {name: f"{dot}{name}" for name in names}, False, dot)
        found = {}
        for full in keras:
            *path, last = full[len(under) :].split("/")
            if path and path[-1] == "vars" and last.isdecimal() and int(last) < len(names):
                last = list(names.values())[int(last)]  # Keras 3 numbers them
            for name, theirs in names.items():
                if last == theirs:
                    if name in found:
                        raise ModelFormatError(f"{prefix or 'the file'} has both {found[name]} and {full}")
                    found[name] = full
        shown = {name: found.get(name, f"{under}{theirs}") for name, theirs in names.items()}
        return LayerTensors(self, shown, True, under)

    def take(self, name: str, shape: tuple | None, optional: bool = False) -> np.ndarray | None:
        """One array by its full name; None in `shape` is any size, None for `shape` any shape.

        Raises ModelFormatError if it is missing, is not floating point, has a different shape, or holds a finite number
        outside the range of float32.
        """
        array = self.arrays.get(name)
        if array is None:
            if optional:
                return None
            begin = name.rpartition("/")[0] or name.rpartition(".")[0]
            near = [n for n in self.arrays if begin and n.startswith(begin)] or list(self.arrays)
            known = ", ".join(near[:8]) + (f" and {len(near) - 8} more" if len(near) > 8 else "")
            raise ModelFormatError(f"the file has no tensor {name}; it has {known}")
        want = "any shape" if shape is None else "[" + ", ".join("any" if n is None else str(n) for n in shape) + "]"
        if array.dtype.kind != "f":
            raise ModelFormatError(f"{name} is {array.dtype}, expected floating point {want}")
        if shape is not None and (
            array.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, array.shape, strict=True))
        ):
            raise ModelFormatError(f"{name} is {list(array.shape)}, expected {want}")
        if 0 in array.shape:
            raise ModelFormatError(f"{name} is {list(array.shape)}, which is empty")
        check_float32(array, name, ModelFormatError)
        self._ledger.read(name)
        return array

    def drop(self, name: str) -> None:
        """Mark a tensor that only training needs as taken."""
        if name in self.arrays:
            self._ledger.read(name)


@dataclass(frozen=True)
class LayerTensors:
    """The tensors of one layer by torch's short names. keras: whether they are in Keras's layout."""

    tensors: Tensors
    names: Mapping[str, str]
    keras: bool
    under: str

    def name(self, short: str) -> str:
        """The full name in the file."""
        return self.names[short]

    def take(self, short: str, shape: tuple | None, optional: bool = False) -> np.ndarray | None:
        """As `Tensors.take`."""
        return self.tensors.take(self.names[short], shape, optional)

    def drop(self, short: str) -> None:
        """As `Tensors.drop`."""
        self.tensors.drop(f"{self.under}{short}")


# Prefixes that torch's wrappers put before every name of a module.
_WRAPPERS = {"module.": "DataParallel", "_orig_mod.": "torch.compile"}


def unwrapped(arrays: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """(arrays without the prefixes that a wrapper adds to every name and with weight norms multiplied out, notes about
    it)."""
    arrays, notes = dict(arrays), []
    while True:
        found = [p for p in _WRAPPERS if arrays and all(name.startswith(p) for name in arrays)]
        if not found:
            return _without_weight_norm(arrays, notes), tuple(notes)
        arrays = {name[len(found[0]) :]: array for name, array in arrays.items()}
        notes.append(f"took the prefix {found[0]!r} of {_WRAPPERS[found[0]]} off every name")


# torch.nn.utils.weight_norm keeps a weight as its length g and its direction v: (g's name, the weight's, v's).
_WEIGHT_NORM = (
    (re.compile(r"(?P<module>.*\.)?parametrizations\.(?P<name>\w+)\.original0"), "parametrizations.{}.original1"),
    (re.compile(r"(?P<module>.*\.)?(?P<name>weight\w*)_g"), "{}_v"),
)


def _without_weight_norm(arrays: dict[str, np.ndarray], notes: list[str]) -> dict[str, np.ndarray]:
    """The arrays with each pair (g, v) of a weight norm replaced, at v's place, by the weight g*v/|v|."""
    weights, gone = {}, set()
    for name, g in arrays.items():
        for pattern, form in _WEIGHT_NORM:
            match = pattern.fullmatch(name)
            module = (match["module"] or "") if match else ""
            v = arrays.get(module + form.format(match["name"])) if match else None
            if match is None or v is None or v.dtype.kind != "f" or g.dtype.kind != "f" or g.ndim != v.ndim:
                continue
            if any(n not in (1, m) for n, m in zip(g.shape, v.shape, strict=True)):
                continue  # not a norm over whole axes: left alone, so that the error is raised where it is used
            axes = tuple(k for k, n in enumerate(g.shape) if n == 1)
            wide = v.astype(np.float64)
            length = np.sqrt(np.sum(wide**2, axis=axes, keepdims=True))
            with np.errstate(all="ignore"):  # a direction of zeros has length 0; the result is the same as torch's
                weight = (g * wide / length).astype(v.dtype)
            weights[module + form.format(match["name"])] = (module + match["name"], weight)
            gone.add(name)
    if not weights:
        return arrays
    notes.append(f"multiplied out {len(weights)} weight norms")
    kept = {name: weights.get(name, (name, array)) for name, array in arrays.items() if name not in gone}
    return dict(kept.values())


def read_safetensors(source) -> NamedWeights:
    """The tensors of a .safetensors file (a path or bytes). bfloat16 is widened to float32.

    Raises ModelFormatError for any other file, and for dtypes that NumPy lacks (float8).
    """
    in_memory = isinstance(source, bytes | bytearray | memoryview)
    where = "bytes" if in_memory else str(source)
    try:
        found = container.parse(bytes(source)) if in_memory else container.map_file(source)
    except container.ContainerError as error:
        raise ModelFormatError(f"{where}: not a safetensors file, or a damaged one: {error}") from None
    arrays, notes = dict(found.tensors), []
    halves = [name for name, code in found.types.items() if code == "BF16"]
    for name in halves:
        arrays[name] = (arrays[name].astype(np.uint32) << 16).view(np.float32)
    if halves:
        notes.append("the file's bfloat16 computes in float32")
    arrays, more = unwrapped(arrays)
    return NamedWeights(arrays, where, (*notes, *more))


def is_weights(blob: bytes) -> bool:
    """Whether bytes are a safetensors file that fastrnn did not write: its header names none of our formats."""
    import json

    size = int.from_bytes(blob[:8], "little")
    if bytes(blob[8:9]) != b"{" or size > len(blob) - 8:
        return False
    try:
        header = json.loads(bytes(blob[8 : 8 + size]))
    except (ValueError, RecursionError):
        return False
    metadata = header.get("__metadata__") or {}
    return isinstance(metadata, dict) and not {"graph", "fingerprint"} & set(metadata)
