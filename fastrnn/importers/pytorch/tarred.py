"""The tar archives that torch.save wrote in PyTorch 0.1: entries `storages`, `tensors` and `pickle`.

storages  how many; for each (key, location, class), its number of elements and its bytes; then a list of views
tensors   how many; for each (key, key of its storage, class), rank, sizes, strides and offset as little-endian
pickle    the object, whose persistent ids are keys of tensors
"""

from __future__ import annotations

import io
import struct
import tarfile

from ...errors import ModelFormatError, UnsupportedError
from .pickles import HOW_TO_SAVE, Budget, Refused, Storage, Unpickler, no_storage, storage_code, width_of
from .saved import SavedTensor

_MOST = 1_000_000  # storages or tensors


def read(source: bytes, where: str):
    """The object in such an archive; errors as `files.read_tree`."""
    try:
        with tarfile.open(fileobj=io.BytesIO(source), mode="r:") as archive:
            names = archive.getnames()
            if not {"storages", "tensors", "pickle"} <= set(names):
                shown = ", ".join(names[:6])
                text = f"a tar archive of {shown}, which torch.save did not write: unpack it and load a file in it"
                raise ModelFormatError(f"{where}: {text}")
            parts = {n: _entry(archive, n, where) for n in ("storages", "tensors", "pickle")}
    except tarfile.TarError as error:
        raise ModelFormatError(f"{where}: a damaged tar archive ({error!s:.100})") from None
    budget = Budget(where, len(source))
    tensors = _tensors(parts["tensors"], where, budget, _storages(parts["storages"], where, budget))

    def tensor(pid) -> SavedTensor:
        if isinstance(pid, tuple):
            raise Refused(f"the file holds a pickled module: {HOW_TO_SAVE}", where)
        found = tensors.get(str(pid))
        if found is None:
            raise ModelFormatError(f"{where}: no tensor {pid!r:.40}")
        return found

    return Unpickler(parts["pickle"], where, tensor, budget).load()


def _entry(archive: tarfile.TarFile, name: str, where: str) -> bytes:
    file = archive.extractfile(name)
    if file is None:
        raise ModelFormatError(f"{where}: {name} is not a file")
    return file.read()


class _Reader:
    """Pickles and numbers, one after the other."""

    def __init__(self, data: bytes, where: str, budget: Budget):
        self.data, self.where, self.budget, self.at = data, where, budget, 0

    def load(self):
        reader = Unpickler(self.data, self.where, no_storage, self.budget, self.at)
        value = reader.load()
        self.at = reader.at
        return value

    def count(self) -> int:
        value = self.load()
        if type(value) is not int or not 0 <= value <= _MOST:
            raise ModelFormatError(f"{self.where}: a tar archive of {value!r:.40} tensors")
        return value

    def bytes(self, size: int) -> bytes:
        piece = self.data[self.at : self.at + size]
        if size < 0 or len(piece) != size:
            raise ModelFormatError(f"{self.where}: its tensors are cut off")
        self.at += size
        return piece

    def longs(self, count: int) -> tuple[int, ...]:
        return struct.unpack(f"<{count}q", self.bytes(8 * count))


def _storages(data: bytes, where: str, budget: Budget) -> dict[str, Storage]:
    reader, found = _Reader(data, where, budget), {}
    for _ in range(reader.count()):
        key, _, kind = _three(reader)
        code = storage_code(kind)
        (size,) = reader.longs(1)
        found[str(key)] = Storage(reader.bytes(size * width_of(code)), code, "<")
    if reader.load():
        raise UnsupportedError("storages that are views of other ones; save the file again", where)
    return found


def _tensors(data: bytes, where: str, budget: Budget, storages: dict[str, Storage]) -> dict[str, SavedTensor]:
    reader, found = _Reader(data, where, budget), {}
    view = Unpickler(b"", where, no_storage, budget)
    for _ in range(reader.count()):
        key, storage, _ = _three(reader)
        rank = int.from_bytes(reader.bytes(8)[:4], "little")
        if rank > 16:
            raise ModelFormatError(f"{where}: a tensor of {rank} axes")
        sizes, strides = reader.longs(rank), reader.longs(rank)
        (offset,) = reader.longs(1)
        found[str(key)] = view.tensor(storages.get(str(storage)), None, offset, sizes, strides)
    return found


def _three(reader: _Reader) -> tuple:
    value = reader.load()
    if not isinstance(value, tuple) or len(value) != 3:
        raise ModelFormatError(f"{reader.where}: a tar archive with {value!r:.60} before a tensor")
    return value
