"""HDF5 files as plain arrays and attributes, for Keras models and files of Keras weights alone.

Files are not trusted. Only groups and datasets in the file itself are followed (no soft or external links, no external
storage, no virtual datasets). Only numbers are read. Unpacked data may exceed the size of the file only as far as real
compression explains.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from ...errors import FastRNNError, ModelFormatError, claims_too_much
from .weights import NamedWeights

MAX_DEPTH = 64  # of groups in groups; nested Keras models have about four per model
MAX_GROWTH = 200  # unpacked bytes per byte of the file; weights compress about twofold, zeros a thousandfold
FREE_BYTES = 1 << 24  # any file may unpack to this many bytes
SIGNATURE = b"\x89HDF\r\n\x1a\n"


@contextmanager
def opened(source, where: str | None = None) -> Iterator[H5]:
    """The HDF5 file at a path or in bytes, open during the `with` block. where: its name in errors.

    Raises ModelFormatError if the file is invalid, OSError if it can't be read at all.
    """
    import h5py

    in_memory = isinstance(source, bytes | bytearray | memoryview)
    where = where or ("bytes" if in_memory else str(source))
    if in_memory:
        blob = bytes(source)
        size, handle = len(blob), io.BytesIO(blob)
    else:
        handle = open(source, "rb")  # noqa: SIM115 - closed below; HDF5 itself would say of a missing file only "unable"
        size = handle.seek(0, io.SEEK_END)
    handle.seek(0)
    zipped = handle.read(4) == b"PK\x03\x04"
    handle.seek(0)
    try:
        with h5py.File(handle, "r") as file:
            yield H5(file, where, size)
    except FastRNNError:
        raise
    except (
        OSError,
        RuntimeError,
        KeyError,
        ValueError,
        TypeError,
        OverflowError,
        MemoryError,
        RecursionError,
    ) as error:
        if isinstance(error, MemoryError) and not claims_too_much(error):
            raise
        if zipped:
            text = "a zip, as a .keras file is: that has its architecture in it, and takes no layers="
            raise ModelFormatError(f"{where}: {text}") from None
        raise ModelFormatError(f"{where}: not an HDF5 file, or a damaged one ({error!s:.200})") from None
    finally:
        handle.close()


class H5:
    """An open file. where: its name, for errors."""

    def __init__(self, file, where: str, size: int):
        self.file, self.where = file, where
        self._left = FREE_BYTES + MAX_GROWTH * size

    def text(self, name: str, of: str = "/") -> str | None:
        """A text attribute of the group `of`; None if it is absent."""
        value = self.group(of).attrs.get(name)
        if value is None:
            return None
        if isinstance(value, bytes):
            value = value.decode("utf-8", "replace")
        if not isinstance(value, str):
            raise ModelFormatError(f"{self.where}: attribute {name} of {of} is not text")
        return value

    def texts(self, name: str, of: str) -> list[str] | None:
        """An attribute that is a list of strings (Keras splits long ones into name0, name1, ..); None if it is
        absent."""
        attrs, found = self.group(of).attrs, []
        if name in attrs:
            parts = [attrs[name]]
        else:
            parts = []
            while f"{name}{len(parts)}" in attrs:
                parts.append(attrs[f"{name}{len(parts)}"])
            if not parts:
                return None
        for part in parts:
            for item in np.asarray(part).reshape(-1).tolist():
                found.append(item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item))
        return found

    def has(self, path: str) -> bool:
        """Whether a path exists through hard links of this file."""
        return self._find(path) is not None

    def group(self, path: str):
        """The h5py group at a path. Raises ModelFormatError if there is none."""
        import h5py

        found = self._find(path)
        if not isinstance(found, h5py.Group):
            raise ModelFormatError(f"{self.where}: no group {path}")
        return found

    def array(self, path: str) -> np.ndarray:
        """The numbers of the dataset at a path. Raises ModelFormatError if there is none."""
        import h5py

        found = self._find(path)
        if not isinstance(found, h5py.Dataset):
            raise ModelFormatError(f"{self.where}: no tensor {path}")
        return self._read(found, path)

    def children(self, path: str) -> list[str]:
        """Names in a group, in the file's order."""
        return list(self.group(path))

    def walk(self, path: str = "/", depth: int = 0) -> Iterator[tuple[str, np.ndarray]]:
        """(path, array) of every dataset under a group."""
        import h5py

        if depth > MAX_DEPTH:
            raise ModelFormatError(f"{self.where}: groups nested deeper than {MAX_DEPTH}")
        for name in self.children(path):
            inner = f"{path.rstrip('/')}/{name}"
            found = self._find(inner)
            if isinstance(found, h5py.Group):
                yield from self.walk(inner, depth + 1)
            elif isinstance(found, h5py.Dataset):
                yield inner.lstrip("/"), self._read(found, inner)

    def _find(self, path: str):
        """The object at a path, following hard links only; None if there is none."""
        import h5py

        here = self.file
        for part in [p for p in path.split("/") if p]:
            link = here.get(part, getlink=True) if isinstance(here, h5py.Group) and part in here.keys() else None  # noqa: SIM118 - `in` alone follows the link
            if link is None:
                return None
            if not isinstance(link, h5py.HardLink):
                raise ModelFormatError(f"{self.where}: {path} is a link ({type(link).__name__}), which is refused")
            here = here[part]
        return here

    def _read(self, dataset, path: str) -> np.ndarray:
        if dataset.is_virtual or dataset.external:
            raise ModelFormatError(f"{self.where}: {path} keeps its numbers in another file, which is refused")
        if dataset.dtype.kind not in "fiub" or dataset.shape is None:
            raise ModelFormatError(f"{self.where}: {path} holds {dataset.dtype}, expected numbers")
        size = dataset.size * dataset.dtype.itemsize
        self._left -= size
        stored = dataset.id.get_storage_size()
        if self._left < 0 or (size and not stored):
            raise ModelFormatError(
                f"{self.where}: {path} claims {size} bytes, of which the file holds {stored}: more than it can be"
            )
        return np.asarray(dataset[()])


def is_h5(head: bytes) -> bool:
    """Whether bytes start with the signature of HDF5."""
    return head.startswith(SIGNATURE)


def layer_tensors(file: H5) -> dict[str, list[tuple[str, np.ndarray]]]:
    """Layer name -> its (weight name, array) pairs in order, of a file in the layout that Keras calls legacy.

    Raises ModelFormatError if the lists of names and the groups don't agree.
    """
    root = "/model_weights" if file.has("/model_weights") else "/"
    layers = file.texts("layer_names", root)
    if layers is None:
        raise ModelFormatError(f"{file.where}: {root} has no layer_names, which a Keras file of weights has")
    found: dict[str, list[tuple[str, np.ndarray]]] = {}
    for layer in layers:
        group = f"{root.rstrip('/')}/{layer}"
        if layer in found:
            raise ModelFormatError(f"{file.where}: layer_names has {layer!r} twice")
        names = file.texts("weight_names", group) or []
        found[layer] = [(name.removesuffix(":0"), file.array(f"{group}/{name}")) for name in names]
    return found


def has_layer_names(file: H5) -> bool:
    """Whether the weights have the layout that Keras calls legacy; otherwise it is that of .weights.h5."""
    root = "/model_weights" if file.has("/model_weights") else "/"
    return file.texts("layer_names", root) is not None


def read_weights(source) -> NamedWeights:
    """The named tensors of a Keras file of weights (a path or bytes), of any version, for a list of layers.

    Names are `layer/weight` (legacy files) or paths such as `lstm/cell/vars/0` (.weights.h5, without the leading
    `layers/`).
    """
    with opened(source) as file:
        if has_layer_names(file):
            pairs = [(layer, pair) for layer, tensors in layer_tensors(file).items() for pair in tensors]
            arrays = {f"{layer}/{name}": array for layer, (name, array) in pairs}
        else:
            arrays = {n.removeprefix("layers/"): a for n, a in file.walk() if not n.startswith("optimizer/")}
        return NamedWeights(arrays, file.where, parts=True)
