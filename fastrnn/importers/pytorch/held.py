"""What a module keeps between calls. A model computes its outputs from its inputs alone: such a module is refused."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator

import torch
from torch import nn

from ...errors import UnsupportedError
from . import files, nesting
from .through_torch import quiet

_DEEP = 4  # nested lists, tuples and dicts of an attribute that are looked into
_OWN = frozenset(("_parameters", "_buffers", "_modules"))
_REMEDY = (
    "a model has no hidden state: make it an argument of forward and return its new value, as in "
    "`y, h = self.rnn(x, h); return y, h`"
)


def copied(module: nn.Module) -> nn.Module:
    """A deep copy. Tensors with a history, which torch refuses to copy, are copied without it."""
    memo: dict[int, object] = {}
    for part in module.modules():
        if isinstance(part, torch.jit.ScriptModule):
            continue
        for value in (*vars(part).values(), *part._buffers.values()):
            for tensor in _tensors(value):
                if not tensor.is_leaf:
                    memo[id(tensor)] = tensor.detach().clone()
    return copy.deepcopy(module, memo)


def refuse_states(module: nn.Module, given: nesting.Arguments) -> None:
    """Raise UnsupportedError if what the module returns depends on an earlier call; the error names the attributes.

    The module is left as it was.
    """
    script = isinstance(module, torch.jit.ScriptModule)
    subject = copied(module) if script else module
    kept = Snapshot(subject)
    first = _result(subject, given)
    found = None if script else kept.changed()
    second = _result(subject, given)
    kept.restore()
    if first is None:
        return  # it does not take the example: the caller says so
    if _equal(first, second) and not script and not found:
        return
    for way in (given, _varied(given)):
        after = copied(module)
        _result(after, given)
        if not _equal(_result(after, way), _result(copied(module), way)):
            raise UnsupportedError(_text(module, given, found), type(module).__name__)


def _text(module: nn.Module, given: nesting.Arguments, found: list[str] | None) -> str:
    if not _equal(_result(copied(module), given), _result(copied(module), given)):
        return "it returns other numbers each time it is called with the same arguments, so no model can agree with it"
    if found is None:
        found = _changed_of_script(module, given)
    named = ", ".join(f"self.{name}" for name in found[:6]) + (f" and {len(found) - 6} more" if len(found) > 6 else "")
    return f"the module keeps its state in {named or 'itself'}; {_REMEDY}"


def _result(module: nn.Module, given: nesting.Arguments) -> list[torch.Tensor] | None:
    """What the module returns for copies of the arguments; None if it does not take them."""
    try:
        with torch.no_grad(), quiet():
            return [t.detach().clone() for t in nesting.tensors_in(nesting.call(module, given.copied()))]
    except Exception:  # whatever the module's code raises
        return None


def _equal(first: list[torch.Tensor] | None, second: list[torch.Tensor] | None) -> bool:
    if first is None or second is None:
        return first is second
    return len(first) == len(second) and all(
        a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-5, atol=1e-6, equal_nan=True)
        for a, b in zip(first, second, strict=True)
    )


def _varied(given: nesting.Arguments) -> nesting.Arguments:
    """Arguments of the same sizes with other floating-point numbers."""
    rng = torch.Generator().manual_seed(1)
    tensors = [
        torch.randn(t.shape, generator=rng).to(t.dtype) if t.is_floating_point() else t.clone()
        for _, t in given.tensors()
    ]
    return given.form().filled(iter(tensors))


# -- attributes --


class Snapshot:
    """The attributes and buffers of a module and of all modules in it."""

    def __init__(self, module: nn.Module):
        self.parts = [
            (f"{name}." if name else "", part)
            for name, part in module.named_modules()
            if not isinstance(part, torch.jit.ScriptModule)
        ]
        self.held = [(dict(vars(part)), {k: dict(vars(part)[k]) for k in _OWN}) for _, part in self.parts]
        self.values = [_copy(_state(part)) for _, part in self.parts]
        self.versions = [
            {n: p._version for n, p in part._parameters.items() if p is not None} for _, part in self.parts
        ]

    def changed(self) -> list[str]:
        """The names, from the module on, of what is not as it was."""
        found = []
        for (prefix, part), before, versions in zip(self.parts, self.values, self.versions, strict=True):
            now = _state(part)
            for name in dict.fromkeys((*before, *now)):
                if name not in before or name not in now or not _same(before[name], now[name]):
                    found.append(prefix + name)
            for name, p in part._parameters.items():
                if p is not None and versions.get(name) != p._version:
                    found.append(prefix + name)
        return found

    def restore(self) -> None:
        """Put the attributes and buffers back."""
        for (_, part), (attributes, own), values in zip(self.parts, self.held, self.values, strict=True):
            vars(part).clear()
            vars(part).update(attributes)
            for kind, members in own.items():
                vars(part)[kind].clear()
                vars(part)[kind].update(members)
            for name, value in values.items():
                if not _same(value, _state(part).get(name)):
                    (part._buffers if name in part._buffers else vars(part))[name] = _copy(value)


def _state(part: nn.Module) -> dict[str, object]:
    own = {name: value for name, value in vars(part).items() if name not in _OWN}
    return {**own, **part._buffers}


def _copy(value, deep: int = _DEEP):
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict) and type(value) is dict and deep:
        return {name: _copy(part, deep - 1) for name, part in value.items()}
    if type(value) in (list, tuple) and deep:
        return type(value)(_copy(part, deep - 1) for part in value)
    if type(value) is deque and deep:
        return deque((_copy(part, deep - 1) for part in value), value.maxlen)
    return value


def _same(a, b, deep: int = _DEEP) -> bool:
    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        both = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
        return both and a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    if type(a) is not type(b):
        return False
    if deep and type(a) is dict:
        return list(a) == list(b) and all(_same(a[k], b[k], deep - 1) for k in a)
    if deep and type(a) in (list, tuple, deque):
        return len(a) == len(b) and all(_same(x, y, deep - 1) for x, y in zip(a, b, strict=True))
    return a is b or (isinstance(a, bool | int | float | str) and a == b)


def _tensors(value, deep: int = _DEEP) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple | deque) and deep:
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part, deep - 1)


def _changed_of_script(module: nn.Module, given: nesting.Arguments) -> list[str]:
    """Names of the tensors of TorchScript that a call changes, from the archives that torch would write of it."""
    before, after = copied(module), copied(module)
    _result(after, given)
    first, second = (files.script_tensors(m.save_to_buffer(), "bytes") for m in (before, after))
    found = []
    for name in dict.fromkeys((*first, *second)):
        a, b = first.get(name), second.get(name)
        if a is None or b is None or a.shape != b.shape or (a.array() != b.array()).any():
            found.append(name)
    return found
