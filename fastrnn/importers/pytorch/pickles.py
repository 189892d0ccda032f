"""Reads the pickles in PyTorch's files without Python's unpickler, which would run any code they name.

`Unpickler` knows the opcodes that torch writes and, by name, the few constructors that a file of tensors needs; each is
a function of this module. Anything else that a pickle names is refused, by name. Sizes in a file are not trusted:
tensors are views of storages, and their total is bounded.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable

import numpy as np

from ...errors import ModelFormatError, UnsupportedError
from ...records import dataclass
from . import numpy_pickles
from .saved import SavedTensor

HOW_TO_SAVE = (
    "save the weights alone, torch.save(model.state_dict(), path), and load them with layers=[...]; or, if you trust "
    "the file, pass allow_torch=True, which runs it through torch"
)
MAX_OPCODES = 10_000_000  # a checkpoint of 100,000 tensors has about 3 million
# Bound on the total size of a file's tensors, as a multiple of the file size: tied weights are views of one storage.
MAX_SHARING = 16

# Storage classes and dtypes by torch's names -> NumPy's, None if fastrnn can't read them.
_STORAGES = {
    "FloatStorage": "f4", "DoubleStorage": "f8", "HalfStorage": "f2", "BFloat16Storage": "bf16", "LongStorage": "i8",
    "IntStorage": "i4", "ShortStorage": "i2", "CharStorage": "i1", "ByteStorage": "u1", "BoolStorage": "?",
    "UntypedStorage": "u1",
}  # fmt: skip
_DTYPES = {
    "float32": "f4", "float": "f4", "float64": "f8", "double": "f8", "float16": "f2", "half": "f2",
    "bfloat16": "bf16", "int64": "i8", "long": "i8", "int32": "i4", "int": "i4", "int16": "i2", "short": "i2",
    "int8": "i1", "uint8": "u1", "bool": "?", "uint16": "u2", "uint32": "u4", "uint64": "u8",
}  # fmt: skip


@dataclass(frozen=True)
class _Named:
    """A class or function that the pickle names; only those in `_CALLS` can be called."""

    name: str


@dataclass(frozen=True)
class Storage:
    data: bytes | memoryview
    code: str  # the element type, "raw" if the tensor specifies it
    byteorder: str  # < or >


class Refused(UnsupportedError):
    """The pickle names something that does not belong in a file of weights."""


class Budget:
    """The bound on the total size of one file's tensors."""

    def __init__(self, where: str, size: int):
        self.where, self.left = where, MAX_SHARING * size + (1 << 20)

    def take(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise ModelFormatError(f"{self.where}: too many of its tensors are views of one storage")


def storage_id(pid) -> tuple[str, str, str, int]:
    """(class, code, key, elements) of a persistent id ('storage', class, key, location, elements[, view])."""
    if isinstance(pid, tuple) and pid and pid[0] == "module":
        raise Refused(f"the file holds a pickled module: {HOW_TO_SAVE}")
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage" or not isinstance(pid[1], _Named):
        raise ModelFormatError(f"a persistent id that does not name a storage: {pid!r:.80}")
    if len(pid) == 6 and pid[5] is not None:
        raise UnsupportedError("a storage that is a view of another one (PyTorch 0.3 and earlier); save the file again")
    _, kind, key, _, count = pid[:5]
    code = storage_code(kind)
    if type(count) is not int or count < 0 or not isinstance(key, str):
        raise ModelFormatError(f"a storage {key!r:.40} of {count!r:.40} elements")
    return kind.name, code, key, count


def storage_code(kind) -> str:
    """The element type of a class of storages."""
    full = kind.name if isinstance(kind, _Named) else f"a {type(kind).__name__}"
    name = full.rpartition(".")[2]
    if full not in (f"torch.{name}", f"torch.storage.{name}") or name not in _STORAGES:
        raise Refused(f"a storage of {full}, which fastrnn does not read")
    return "raw" if name == "UntypedStorage" else _STORAGES[name]


def width_of(code: str) -> int:
    return {"raw": 1, "bf16": 2}.get(code) or np.dtype(code).itemsize


def no_storage(pid):
    raise ModelFormatError("a persistent id in a place that allows none")


# -- what a pickle may name --


def _ordered_dict(unpickler, pairs=()):
    out = {}
    for pair in pairs:
        key, value = pair
        out[_key(key)] = value
    return out


def _size(unpickler, items=()):
    return tuple(items)


def _device(unpickler, *args):
    return "device"


def _rebuild_tensor(unpickler, storage, offset, size, stride):
    return unpickler.tensor(storage, None, offset, size, stride)


def _rebuild_tensor_v2(unpickler, storage, offset, size, stride, requires_grad=False, hooks=None, metadata=None):
    _plain(hooks, metadata)
    return unpickler.tensor(storage, None, offset, size, stride)


def _rebuild_tensor_v3(unpickler, storage, offset, size, stride, requires_grad, hooks, dtype, metadata=None):
    _plain(hooks, metadata)
    return unpickler.tensor(storage, dtype, offset, size, stride)


def _same(unpickler, value, *_):
    """A value that the pickle passes through a function of TorchScript, which only tags its type."""
    return value


def _plain(hooks, metadata) -> None:
    if hooks or metadata:
        raise UnsupportedError(f"a tensor with hooks, or with bits that change its meaning: {(hooks, metadata)!r:.80}")


def _rebuild_parameter(unpickler, data, requires_grad=True, hooks=None, state=None):
    if not isinstance(data, SavedTensor) or hooks:
        raise ModelFormatError("a parameter that holds no tensor, or has hooks")
    return data  # a parameter's state holds Python attributes, not weights


# Functions of TorchScript around lists and dicts.
_TAGS = ("restore_type_tag", "build_intlist", "build_tensorlist", "build_doublelist", "build_boollist")
_CALLS: dict[str, Callable] = {
    "collections.OrderedDict": _ordered_dict,
    "torch.Size": _size,
    "torch.device": _device,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
    **dict.fromkeys((f"torch.jit._pickle.{name}" for name in _TAGS), _same),
    **numpy_pickles.CALLS,
}
# Names that are kept as names: storage classes and dtypes.
_WORDS = {"numpy.ndarray"} | {f"torch.{n}" for n in (*_STORAGES, *_DTYPES)} | {f"torch.storage.{n}" for n in _STORAGES}
_WORDS |= {f"torch.{n.replace('Storage', 'Tensor')}" for n in _STORAGES}  # classes of tensors, in PyTorch 0.1


def _key(key):
    """A dict key: text or a number. Tuples are refused: hashing one nested a million deep crashes the process."""
    if not isinstance(key, str | int | float | bytes | None):
        raise ModelFormatError(f"a dict with a {type(key).__name__} as a key")
    return key


class ScriptObject(dict):
    """A module of TorchScript: its attributes by name."""


SCRIPT = "__torch__."  # how the names of classes of TorchScript begin


class _Mark:
    pass


_MARK = _Mark()


class Unpickler:
    """Reads one pickle from `data`, starting at `at`; afterwards `at` is the position of its end.

    script : whether classes of TorchScript may be named; their objects are read as dicts.
    storage : persistent id -> Storage. budget : None to build tensors without data (for a pickle that is read again).
    """

    def __init__(
        self, data: bytes, where: str, storage: Callable, budget: Budget | None, at: int = 0, script: bool = False
    ):
        self.data, self.where, self.at, self.script = data, where, at, script
        self.storage, self.budget = storage, budget
        self.stack: list = []
        self.memo: dict[int, object] = {}

    def load(self):
        """The object. Raises Refused if the pickle names anything not allowed, ModelFormatError if it is damaged."""
        for _ in range(MAX_OPCODES):
            code = self._take(1)[0]
            if code == 0x2E:  # STOP
                if len(self.stack) != 1 or self.stack[0] is _MARK:
                    raise ModelFormatError(f"{self.where}: its pickle ends with {len(self.stack)} objects")
                return self.stack.pop()
            action = _OPCODES.get(code)
            if action is None:
                raise Refused(
                    f"the pickle's opcode {code:#04x}, which no file of weights needs: {HOW_TO_SAVE}", self.where
                )
            action(self)
        raise ModelFormatError(f"{self.where}: its pickle has over {MAX_OPCODES} opcodes")

    def tensor(self, storage, dtype, offset, size, stride) -> SavedTensor:
        """A view of a storage, checked to be within bounds."""
        if not isinstance(storage, Storage):
            raise ModelFormatError(f"{self.where}: a tensor without a storage")
        code = storage.code
        if dtype is not None:
            code = _DTYPES.get(dtype.name.rpartition(".")[2]) if isinstance(dtype, _Named) else None
        if code is None or code == "raw":
            raise UnsupportedError(f"a tensor of {getattr(dtype, 'name', 'an unknown dtype')}", self.where)
        for what, numbers in (("size", size), ("stride", stride), ("offset", (offset,))):
            if not isinstance(numbers, tuple | list) or any(type(n) is not int or n < 0 for n in numbers):
                raise ModelFormatError(f"{self.where}: a tensor of {what} {numbers!r:.80}")
        if len(size) != len(stride) or len(size) > 16:
            raise ModelFormatError(f"{self.where}: a tensor of size {size!r:.80}, stride {stride!r:.80}")
        numpy = np.dtype("u2" if code == "bf16" else code).newbyteorder(storage.byteorder.replace("?", "="))
        if self.budget is None:
            return SavedTensor(np.empty(0, numpy), code)
        width, count = numpy.itemsize, math.prod(size)
        reach = offset + (sum((n - 1) * s for n, s in zip(size, stride, strict=True)) + 1 if count else 0)
        there = len(storage.data) // width
        if reach > there or count > there:
            raise ModelFormatError(
                f"{self.where}: a tensor {list(size)} of strides {list(stride)} from {offset} on reaches beyond its "
                f"storage of {there} elements"
            )
        self.budget.take(count * width)
        flat = np.frombuffer(storage.data, numpy, there)
        if not count:
            return SavedTensor(np.empty(size, numpy), code)
        strides = [s * width for s in stride]
        view = np.lib.stride_tricks.as_strided(flat[offset:], size, strides, writeable=False)
        return SavedTensor(view, code)

    # -- opcodes --
    def _take(self, count: int) -> bytes:
        piece = self.data[self.at : self.at + count]
        if len(piece) != count:
            raise ModelFormatError(f"{self.where}: its pickle is cut off")
        self.at += count
        return piece

    def _number(self, form: str) -> int:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + 4096)
        if end < 0:
            raise ModelFormatError(f"{self.where}: its pickle has a line without an end")
        line, self.at = self.data[self.at : end], end + 1
        return line.decode("utf-8")

    def _push(self, value) -> None:
        self.stack.append(value)

    def _pop(self):
        if not self.stack or self.stack[-1] is _MARK:
            raise ModelFormatError(f"{self.where}: its pickle takes from an empty stack")
        return self.stack.pop()

    def _marked(self) -> list:
        """Pop the last mark and everything above it; returns what was above it."""
        for k in range(len(self.stack) - 1, -1, -1):
            if self.stack[k] is _MARK:
                items = self.stack[k + 1 :]
                del self.stack[k:]
                return items
        raise ModelFormatError(f"{self.where}: its pickle lacks a mark")

    def _text(self, form: str) -> None:
        self._push(self._take(self._number(form)).decode("utf-8", "surrogatepass"))

    def _bytes(self, form: str) -> None:
        self._push(bytes(self._take(self._number(form))))

    def _global(self) -> None:
        self._name(self._line(), self._line())

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        self._name(module, name)

    def _name(self, module, name) -> None:
        full = f"{module}.{name}"
        known = full in _CALLS or full in _WORDS or (self.script and full.startswith(SCRIPT))
        if not isinstance(module, str) or not isinstance(name, str) or not known:
            raise Refused(
                f"the file asks for {full!r:.200}, which does not belong in a file of weights: {HOW_TO_SAVE}",
                self.where,
            )
        self._push(_Named(full))

    def _reduce(self) -> None:
        args, called = self._pop(), self._pop()
        call = _CALLS.get(called.name) if isinstance(called, _Named) else None
        if call is None or not isinstance(args, tuple):
            raise Refused(
                f"the pickle calls {getattr(called, 'name', type(called).__name__)}: {HOW_TO_SAVE}", self.where
            )
        try:
            self._push(call(self, *args))
        except TypeError as error:
            raise ModelFormatError(f"{self.where}: {called.name}: {error!s:.120}") from None

    def _new_object(self) -> None:
        if len(self.stack) > 1 and isinstance(self.stack[-2], _Named) and self.stack[-2].name.startswith(SCRIPT):
            self._pop(), self._pop()
            self._push(ScriptObject())
            return
        self._reduce()

    def _build(self) -> None:
        """Set attributes of an object: of one of TorchScript or NumPy, its content; for an OrderedDict, the `_metadata`
        of a state dict (versions of modules)."""
        state = self._pop()
        held = self.stack[-1] if self.stack else None
        if isinstance(held, ScriptObject):
            held.update(state if isinstance(state, dict) else {"state": state})
            return
        if isinstance(held, numpy_pickles.Built):
            held.build(self, state)
            return
        if not self.stack or not isinstance(self.stack[-1], dict):
            raise Refused(f"the pickle sets attributes of an object: {HOW_TO_SAVE}", self.where)

    def _set_items(self, items: list) -> None:
        if not self.stack or not isinstance(self.stack[-1], dict) or len(items) % 2:
            raise ModelFormatError(f"{self.where}: its pickle sets items of something that is not a dict")
        for key, value in zip(items[::2], items[1::2], strict=True):
            self.stack[-1][_key(key)] = value

    def _append(self, items: list) -> None:
        if not self.stack or not isinstance(self.stack[-1], list):
            raise ModelFormatError(f"{self.where}: its pickle appends to something that is not a list")
        self.stack[-1].extend(items)

    def _get(self, index: int) -> None:
        if index not in self.memo:
            raise ModelFormatError(f"{self.where}: its pickle's memo has no {index}")
        self._push(self.memo[index])

    def _put(self, index: int) -> None:
        if not self.stack:
            raise ModelFormatError(f"{self.where}: its pickle remembers nothing")
        self.memo[index] = self.stack[-1]

    def _long(self, form: str) -> None:
        count = self._number(form)
        if not 0 <= count <= 64:
            raise ModelFormatError(f"{self.where}: an integer of {count} bytes")
        self._push(int.from_bytes(self._take(count), "little", signed=True))

    def _skip_frame(self) -> None:
        self._take(8)

    def _protocol(self) -> None:
        version = self._take(1)[0]
        if version > 5:
            raise ModelFormatError(f"{self.where}: pickle protocol {version}")

    def _tuple(self, count: int) -> None:
        items = [self._pop() for _ in range(count)]
        self._push(tuple(reversed(items)))

    def _persistent(self) -> None:
        self._push(self.storage(self._pop()))

    def _drop(self) -> None:
        if not self.stack:
            raise ModelFormatError(f"{self.where}: its pickle takes from an empty stack")
        self.stack.pop()

    def _pair(self) -> list:
        value, key = self._pop(), self._pop()
        return [key, value]


# The pickle opcodes that torch writes for such files, protocols 2 to 5.
_OPCODES: dict[int, Callable[[Unpickler], None]] = {
    0x80: Unpickler._protocol,
    0x95: Unpickler._skip_frame,
    ord("("): lambda u: u._push(_MARK),
    ord("0"): Unpickler._drop,
    ord("1"): lambda u: u._marked() and None,
    ord("N"): lambda u: u._push(None),
    0x88: lambda u: u._push(True),
    0x89: lambda u: u._push(False),
    ord("K"): lambda u: u._push(u._take(1)[0]),
    ord("M"): lambda u: u._push(u._number("<H")),
    ord("J"): lambda u: u._push(u._number("<i")),
    0x8A: lambda u: u._long("<B"),
    0x8B: lambda u: u._long("<i"),
    ord("G"): lambda u: u._push(u._number(">d")),
    ord("X"): lambda u: u._text("<I"),
    0x8C: lambda u: u._text("<B"),
    0x8D: lambda u: u._text("<Q"),
    ord("U"): lambda u: u._text("<B"),
    ord("T"): lambda u: u._text("<i"),
    ord("C"): lambda u: u._bytes("<B"),
    ord("B"): lambda u: u._bytes("<I"),
    0x8E: lambda u: u._bytes("<Q"),
    0x96: lambda u: u._bytes("<Q"),
    ord(")"): lambda u: u._push(()),
    0x85: lambda u: u._tuple(1),
    0x86: lambda u: u._tuple(2),
    0x87: lambda u: u._tuple(3),
    ord("t"): lambda u: u._push(tuple(u._marked())),
    ord("]"): lambda u: u._push([]),
    ord("l"): lambda u: u._push(u._marked()),
    ord("a"): lambda u: u._append([u._pop()]),
    ord("e"): lambda u: u._append(u._marked()),
    ord("}"): lambda u: u._push({}),
    ord("d"): lambda u: (lambda items: (u._push({}), u._set_items(items)))(u._marked()) and None,
    ord("s"): lambda u: u._set_items(u._pair()),
    ord("u"): lambda u: u._set_items(u._marked()),
    ord("q"): lambda u: u._put(u._take(1)[0]),
    ord("r"): lambda u: u._put(u._number("<I")),
    0x94: lambda u: u._put(len(u.memo)),
    ord("h"): lambda u: u._get(u._take(1)[0]),
    ord("j"): lambda u: u._get(u._number("<I")),
    ord("c"): Unpickler._global,
    0x93: Unpickler._stack_global,
    ord("R"): Unpickler._reduce,
    0x81: Unpickler._new_object,
    ord("b"): Unpickler._build,
    ord("Q"): Unpickler._persistent,
}
