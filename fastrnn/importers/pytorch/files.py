"""PyTorch's .pt and .pth files -> a tree of tensors and the weights in it, without torch.

    zip form     archive/data.pkl, a pickle whose persistent ids name the storages archive/data/<key>
    legacy form  four pickles (magic number, version, machine, objects), the storages' keys, then each storage
    tar form     of PyTorch 0.1; see tarred.py
    TorchScript  the zip form of an object of the program's own class, whose attributes are the weights
    a pickle     of NumPy arrays

Storages are views of the file's own bytes; their total is bounded by the size of the file.
"""

from __future__ import annotations

import errno
import io
import os
import struct
import zipfile
import zlib

from ...errors import FastRNNError, ModelFormatError, claims_too_much
from ..shared.weights import NamedWeights, unwrapped
from . import tarred
from .pickles import HOW_TO_SAVE, Budget, Refused, ScriptObject, Storage, Unpickler, no_storage, storage_id, width_of
from .saved import SavedTensor

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C


def read_tree(source: str | os.PathLike | bytes, where: str, script: bool = False):
    """The object that a .pt file (a path or its bytes) holds: dicts, lists, tuples, scalars, text and `SavedTensor`s.

    script : read the tensors of TorchScript as a dict, and leave its program out

    Raises
    ------
    UnsupportedError : TorchScript, a pickled module, or anything else that is not made of tensors; the text says what.
    ModelFormatError : damaged or hostile.
    """
    try:
        if isinstance(source, bytes):
            return _read_zip(source, where, script) if source[:2] == b"PK" else _read_legacy(source, where)
        with open(source, "rb") as file:
            if file.read(2) == b"PK":
                return _read_zip(source, where, script)
            file.seek(0)
            return _read_legacy(file.read(), where)
    except FastRNNError:
        raise
    except _DAMAGED as error:
        if isinstance(error, MemoryError) and not claims_too_much(error):
            raise
        raise ModelFormatError(f"{where}: a damaged PyTorch file ({type(error).__name__}: {error!s:.200})") from None
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise ModelFormatError(f"{where}: a damaged PyTorch file: an entry starts before the file does") from None


# What reading a damaged file may raise. (An OSError comes from the disk, except for an impossible file offset.)
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, TypeError, LookupError),
    *(OverflowError, RuntimeError, MemoryError),
)


# -- the two containers --


def _read_zip(source, where: str, script: bool):
    size = len(source) if isinstance(source, bytes) else os.stat(source).st_size
    with zipfile.ZipFile(io.BytesIO(source) if isinstance(source, bytes) else source) as archive:
        return _read_archive(archive, size, where, script)


def _read_archive(archive: zipfile.ZipFile, size: int, where: str, script: bool):
    entries = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in entries if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise ModelFormatError(f"{where}: a zip file without one data.pkl, so torch.save did not write it")
    root = pickles[0][: -len("data.pkl")]
    program = f"{root}constants.pkl" in entries or any(name.startswith(f"{root}code/") for name in entries)
    if program and not script:
        raise Refused(
            f"the file holds TorchScript, a program: give layers= to read its weights alone, {HOW_TO_SAVE}", where
        )

    def entry(name: str) -> bytes:
        info = entries.get(name)
        if info is None:
            raise ModelFormatError(f"{where}: the entry {name} is missing")
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
            raise ModelFormatError(f"{where}: the entry {name} is compressed; torch.save never does that")
        if info.file_size > size:
            raise ModelFormatError(f"{where}: the entry {name} claims {info.file_size} bytes, the file has {size}")
        return archive.read(info)

    order = entry(f"{root}byteorder").strip() if f"{root}byteorder" in entries else b"little"
    if order not in (b"little", b"big"):
        raise ModelFormatError(f"{where}: byteorder is {order[:20]!r}, expected little or big")
    byteorder = "<" if order == b"little" else ">"
    storages: dict[str, Storage] = {}
    held = 0

    def storage(pid) -> Storage:
        nonlocal held
        kind, code, key, count = storage_id(pid)
        if key not in storages:
            data = entry(f"{root}data/{key}")
            held += len(data)
            if held > size:
                raise ModelFormatError(f"{where}: its storages overlap: {held} bytes in a file of {size}")
            storages[key] = Storage(data, code, byteorder)
        found = storages[key]
        if found.code != code or len(found.data) != count * width_of(code):
            raise ModelFormatError(f"{where}: storage {key} ({kind}) of {count} elements has {len(found.data)} bytes")
        return found

    budget = Budget(where, size)
    tree = Unpickler(entry(pickles[0]), where, storage, budget, script=program).load()
    return _script_tree(tree, where) if program else tree


MOST_PARTS = 100_000  # modules and attributes of TorchScript; a large model has some thousands


def _script_tree(tree, where: str) -> dict:
    """The tensors of TorchScript by their dotted names."""
    found: dict[str, SavedTensor] = {}
    parts, seen = [("", tree)], 0
    while parts:
        name, part = parts.pop()
        seen += 1
        if seen > MOST_PARTS:
            raise ModelFormatError(f"{where}: TorchScript of over {MOST_PARTS} attributes")
        if isinstance(part, SavedTensor):
            found[name] = part
        elif isinstance(part, ScriptObject):
            parts += [(f"{name}.{key}" if name else str(key), inner) for key, inner in reversed(part.items())]
    if not found:
        text = "TorchScript whose weights have no names, since it was frozen or traced without a module"
        raise Refused(f"the file holds {text}: {HOW_TO_SAVE}", where)
    return found


def script_tensors(blob: bytes, where: str) -> dict[str, SavedTensor]:
    """The tensors of TorchScript by their dotted names; {} if it has none."""
    try:
        return read_tree(blob, where, script=True)
    except Refused:
        return {}


def _read_legacy(source: bytes, where: str):
    if source[257:262] == b"ustar":
        return tarred.read(source, where)
    if source[:1] != b"\x80":
        raise ModelFormatError(f"{where}: no PyTorch file (neither a zip nor a pickle)")
    budget = Budget(where, len(source))
    first = Unpickler(source, where, no_storage, budget)
    magic = first.load()
    if isinstance(magic, dict) and first.at == len(source):
        return magic  # a pickle of arrays, not by torch
    if magic != LEGACY_MAGIC:
        raise Refused(f"a pickle that torch.save did not write: {HOW_TO_SAVE}", where)
    version = Unpickler(source, where, no_storage, budget, first.at)
    if version.load() != 1001:
        raise ModelFormatError(f"{where}: an unknown version of PyTorch's legacy form")
    machine = Unpickler(source, where, no_storage, budget, version.at)
    if not isinstance(machine.load(), dict):
        raise ModelFormatError(f"{where}: a legacy PyTorch file that does not describe its machine")
    places = _storages_at_end(source, where, budget, machine.at)
    codes: dict[str, str] = {}

    def storage(pid) -> Storage:
        kind, code, key, count = storage_id(pid)
        if key not in places or codes.setdefault(key, code) != code:
            raise ModelFormatError(f"{where}: storage {key} ({kind}) is not in the file")
        start, held = places[key]
        stop = start + count * width_of(code)
        if held != count or stop > len(source):
            raise ModelFormatError(f"{where}: storage {key} of {count} elements has {held}, or is cut off")
        # Big-endian machines swap the bytes when they write this form, regardless of the byte order they declare.
        return Storage(memoryview(source)[start:stop], code, "<")

    return Unpickler(source, where, storage, budget, machine.at).load()


def _storages_at_end(source: bytes, where: str, budget: Budget, at: int) -> dict[str, tuple[int, int]]:
    """Key -> (start of its bytes, number of elements) in a legacy file whose objects begin at `at`."""
    codes: dict[str, str] = {}

    def look(pid) -> Storage:
        _, code, key, _ = storage_id(pid)
        codes[key] = code
        return Storage(b"", code, "?")

    objects = Unpickler(source, where, look, None, at)
    objects.load()
    keys = Unpickler(source, where, no_storage, budget, objects.at)
    found = keys.load()
    if not isinstance(found, list) or len(set(map(str, found))) != len(found):
        raise ModelFormatError(f"{where}: a legacy PyTorch file without the list of its storages")
    at, places = keys.at, {}
    for key in map(str, found):
        if key not in codes or at + 8 > len(source):
            raise ModelFormatError(f"{where}: storage {key} is cut off, or belongs to no tensor")
        count = int.from_bytes(source[at : at + 8], "little")
        places[key] = (at + 8, count)
        at += 8 + count * width_of(codes[key])
        if at > len(source):
            raise ModelFormatError(f"{where}: storage {key} claims {count} elements and is cut off")
    return places


# -- the weights in a tree --

MAX_DEPTH = 6  # nested dicts that are searched for weights


def read_weights(source: str | os.PathLike | bytes, key: str | None = None, script: bool = False) -> NamedWeights:
    """The state dict of a .pt or .pth file.

    Parameters
    ----------
    source : path, or bytes of a file
    key : where the state dict is in a checkpoint that wraps it ("model", or "a.b" for a dict in a dict); None if the
        file has only one
    script : read the weights of TorchScript, without its program

    Raises
    ------
    ModelFormatError : damaged file, several state dicts but no key (the text names them), or no state dict.
    UnsupportedError : a pickled module, TorchScript, or anything else that is not made of tensors.
    """
    blob = isinstance(source, bytes | bytearray | memoryview)
    where = "bytes" if blob else os.fspath(source)
    return weights_in(read_tree(bytes(source) if blob else source, where, script), key, where)


def weights_in(tree, key: str | None, where: str) -> NamedWeights:
    """The state dict in the contents of a file; as `read_weights`."""
    path, found, beside = _state_dict(tree, key, where)
    tensors = {name: value for name, value in found.items() if isinstance(value, SavedTensor)}
    notes = [f"the state dict is the checkpoint's {path!r}"] if path and key is None else []
    if beside:
        notes.append(f"left out of the file, beside the state dict: {', '.join(beside)}")
    if any(t.code == "bf16" for t in tensors.values()):
        notes.append("the file's bfloat16 computes in float32")
    arrays, more = unwrapped({name: tensor.array() for name, tensor in tensors.items()})
    return NamedWeights(arrays, where, (*notes, *more))


def _state_dict(tree, key: str | None, where: str) -> tuple[str, dict, list[str]]:
    """(path, dict, names of tensors beside it) of the only dict in `tree` that holds tensors by name."""
    found = dict(_candidates(tree, (), set()))
    names = {".".join(path): path for path in found}
    if key is not None:
        if key not in names:
            known = ", ".join(map(repr, names)) or "none"
            raise ModelFormatError(f"{where}: no dict of named tensors under key={key!r}; there are: {known}")
        return key, found[names[key]], []
    if not found:
        raise ModelFormatError(f"{where}: holds {_kind(tree)} and no dict of named tensors, so no weights")
    # A state dict is flat: tensors next to a dict of tensors are a loss, or the state of a random generator.
    around = found.keys() & {path[:k] for path in found for k in range(len(path))}
    flat = {path: inner for path, inner in found.items() if path not in around}
    if len({id(inner) for inner in flat.values()}) > 1:
        listed = ", ".join(repr(".".join(path)) for path in found if path)
        raise ModelFormatError(f"{where}: several dicts of tensors; say which is the model's with key=: {listed}")
    path, inner = next(iter(flat.items()))
    beside = [name for p in sorted(around) for name, value in found[p].items() if isinstance(value, SavedTensor)]
    return ".".join(path), inner, beside


def _candidates(tree, path: tuple[str, ...], seen: set[int]):
    """(path, dict) of each dict that holds tensors by name. Dicts under a number belong to an optimizer and are
    skipped.

    Each dict is searched once, no matter how often it occurs: a hostile file may nest the same dict repeatedly.
    """
    if not isinstance(tree, dict) or len(path) > MAX_DEPTH or not all(isinstance(name, str) for name in tree):
        return
    if any(isinstance(value, SavedTensor) for value in tree.values()):
        yield path, tree
    if id(tree) in seen:
        return
    seen.add(id(tree))
    for name, value in tree.items():
        yield from _candidates(value, (*path, name), seen)


def _kind(tree) -> str:
    return "a tensor" if isinstance(tree, SavedTensor) else f"a {type(tree).__name__.lower()}"


def begins(blob: bytes) -> bool:
    """Whether bytes look like torch.save's output: a zip with a data.pkl, or the legacy form's pickled magic number."""
    if blob[:2] == b"PK":
        return b"/data.pkl" in blob  # in its directory; a Keras zip has none
    if blob[257:262] == b"ustar":
        return True
    return blob[:1] == b"\x80" and b"\x8a\x0al\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19" in blob[:32]
