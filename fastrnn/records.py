"""`dataclass`, as that of the standard library but made in a third of the time.

The standard one compiles up to six functions for each class, one after the other: 16 of the 41 ms that the first
`fastrnn.load` of a process took (44 classes, CPython 3.11). This one compiles `__init__` alone. The other methods are
written once, here, and go through the fields. `replace`, `fields`, `asdict`, `is_dataclass` and pickling work as usual.
"""

from __future__ import annotations

import dataclasses
from dataclasses import MISSING, FrozenInstanceError, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import dataclass
else:

    def dataclass(cls=None, /, *, frozen=False, eq=True):
        """The class with `__init__`, `__repr__` and, with `eq`, `__eq__`; frozen: hashable, and no field can be set."""
        if cls is None:
            return lambda cls: dataclass(cls, frozen=frozen, eq=eq)
        own = set(cls.__dict__)
        if not cls.__doc__:
            cls.__doc__ = f"{cls.__name__}."  # or the standard one writes the signature of __init__ there
        cls = dataclasses.dataclass(init=False, repr=False, eq=False)(cls)
        methods = {"__init__": _init(cls), "__repr__": _repr}
        if eq:
            methods.update(__eq__=_eq, __hash__=_hash if frozen else None)
        if frozen:
            methods.update(__setattr__=_no_setattr, __delattr__=_no_delattr)
        for name, method in methods.items():
            if name not in own:
                setattr(cls, name, method)
        return cls


def _init(cls):
    """`__init__` of a class from its fields, with their defaults and `__post_init__`."""
    known, arguments, lines = {"_MISSING": MISSING}, [], []
    for field in fields(cls):
        name, value, argument = field.name, field.name, field.name
        if field.default is not MISSING:
            known[f"_{name}"] = field.default
            argument = f"{name}=_{name}"
        elif field.default_factory is not MISSING:
            known[f"_{name}"] = field.default_factory
            argument, value = f"{name}=_MISSING", f"_{name}() if {name} is _MISSING else {name}"
        arguments.append(argument)
        lines.append(f"    _own[{name!r}] = {value}\n")
    after = "    self.__post_init__()\n" if hasattr(cls, "__post_init__") else ""
    text = f"def __init__(self, {', '.join(arguments)}):\n    _own = self.__dict__\n{''.join(lines)}{after}"
    made: dict = {}
    exec(text, known, made)
    init = made["__init__"]
    init.__qualname__ = f"{cls.__qualname__}.__init__"
    init.__module__ = cls.__module__
    init.__annotations__ = {f.name: f.type for f in fields(cls)} | {"return": None}
    return init


def _repr(self):
    shown = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in fields(self) if f.repr)
    return f"{type(self).__qualname__}({shown})"


def _compared(self) -> tuple:
    return tuple([getattr(self, f.name) for f in fields(self) if f.compare])


def _eq(self, other):
    return _compared(self) == _compared(other) if other.__class__ is self.__class__ else NotImplemented


def _hash(self):
    return hash(_compared(self))


def _no_setattr(self, name, value):
    raise FrozenInstanceError(f"cannot assign to field {name!r}")


def _no_delattr(self, name):
    raise FrozenInstanceError(f"cannot delete field {name!r}")
