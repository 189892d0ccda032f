"""Nested arguments and results of modules: tensors in tuples, lists, dicts, named tuples and dataclasses."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ...errors import ModelFormatError
from ...graph.casts import check_float32
from ...records import dataclass

_HERE = object()  # the place of a tensor in a form


@dataclass(frozen=True)
class Arguments:
    """The arguments of a call: by position, and those that can only be given by name. names: of those by position."""

    names: tuple[str, ...]
    args: tuple
    kwargs: dict[str, Any]

    def items(self) -> list[tuple[str, Any]]:
        return [*zip(self.names, self.args, strict=True), *self.kwargs.items()]

    def tensors(self) -> list[tuple[str, torch.Tensor]]:
        """(name, tensor) of each tensor: the argument's name, followed by the place of the tensor in it."""
        found = [leaf for name, value in self.items() for leaf in leaves(value, name)]
        names = unique([name for name, _ in found])
        return [(name, tensor) for name, (_, tensor) in zip(names, found, strict=True)]

    def form(self) -> Arguments:
        """The same arguments with marks in place of tensors; `filled` puts tensors there."""
        return Arguments(self.names, form_of(self.args), form_of(self.kwargs))

    def filled(self, tensors: Iterator[torch.Tensor]) -> Arguments:
        return Arguments(self.names, filled(self.args, tensors), filled(self.kwargs, tensors))

    def copied(self) -> Arguments:
        """Copies of the tensors: a module may write into its arguments."""
        return self.form().filled(iter([tensor.clone() for _, tensor in self.tensors()]))


def call(module: nn.Module, given: Arguments):
    return module(*given.args, **given.kwargs)


# -- examples --


def bound(module: nn.Module, example) -> Arguments:
    """The arguments that an example gives: a tensor, a tuple of the arguments of forward, or a dict of them by name.

    Raises ModelFormatError if they don't fit forward.
    """
    known = parameters(module)
    if isinstance(example, Mapping):
        unknown = [str(name) for name in example if name not in {p.name for p in known}]
        if unknown:
            text = f"example= names {', '.join(unknown)}, which forward does not take"
            raise ModelFormatError(f"{text}; put a dict that is itself an argument in a tuple")
        args, kwargs = (), {str(name): _tensor(value) for name, value in example.items()}
    elif isinstance(example, tuple | list) and not hasattr(example, "_fields"):
        args, kwargs = tuple(_tensor(value) for value in example), {}
    else:
        args, kwargs = (_tensor(example),), {}
    args, kwargs = _last_by_name(known, args, kwargs)
    try:
        given = inspect.Signature(known).bind(*args, **kwargs)
    except TypeError as error:
        takes = ", ".join(str(p.name) for p in known)
        raise ModelFormatError(f"example= does not fit forward({takes}) of {type(module).__name__}: {error}") from None
    found = _ordered(known, given)
    if not found.tensors():
        raise ModelFormatError(f"example= has no tensor in it: {example!r:.60}")
    return found


def _last_by_name(known: list[inspect.Parameter], args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    """A tuple may go on with arguments that forward only takes by name."""
    places = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in known)
    named = [p.name for p in known if p.kind == p.KEYWORD_ONLY]
    if any(p.kind == p.VAR_POSITIONAL for p in known) or not places < len(args) <= places + len(named):
        return args, kwargs
    return args[:places], {**kwargs, **dict(zip(named, args[places:], strict=False))}


def _ordered(known: list[inspect.Parameter], given: inspect.BoundArguments) -> Arguments:
    names: list[str] = []
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    skipped = False
    for p in known:
        if p.name not in given.arguments:
            skipped = True
        elif p.kind == p.VAR_POSITIONAL:
            names += [f"{p.name}{k}" for k in range(len(given.arguments[p.name]))]
            args += given.arguments[p.name]
        elif p.kind == p.VAR_KEYWORD:
            kwargs |= given.arguments[p.name]
        elif skipped or p.kind == p.KEYWORD_ONLY:
            kwargs[p.name] = given.arguments[p.name]
        else:
            names.append(p.name)
            args.append(given.arguments[p.name])
    return Arguments(tuple(names), tuple(args), kwargs)


def parameters(module: nn.Module) -> list[inspect.Parameter]:
    """The parameters of forward."""
    if isinstance(module, torch.jit.ScriptModule):
        empty, kind = inspect.Parameter.empty, inspect.Parameter.POSITIONAL_OR_KEYWORD
        found = []
        for k, argument in enumerate(module.forward.schema.arguments[1:]):
            plain = argument.name.rpartition(".")[0] if argument.name.rpartition(".")[2].isdecimal() else argument.name
            name = plain if plain.isidentifier() and all(p.name != plain for p in found) else f"x{k}"
            default = argument.default_value if argument.has_default_value() else empty
            found.append(inspect.Parameter(name, kind, default=default))
        return found
    return list(inspect.signature(module.forward).parameters.values())


def _tensor(value):
    """An example's arrays as float32 or integer tensors on the CPU, copied."""
    if isinstance(value, np.ndarray | np.generic):
        value = torch.from_numpy(np.array(value, order="C"))
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().clone()
        if value.dtype == torch.float64:
            check_float32(value.numpy(), "example=", ModelFormatError)
        return value.float() if value.is_floating_point() else value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_tensor(part) for part in value))
    if isinstance(value, tuple | list):
        return type(value)(_tensor(part) for part in value)
    if isinstance(value, dict):
        return {name: _tensor(part) for name, part in value.items()}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ModelFormatError(
        f"example= has a {type(value).__name__}; it takes tensors and arrays, also in tuples, lists and dicts"
    )


# -- forms --


def form_of(value):
    """A value with marks in place of its tensors."""
    return mapped(value, lambda tensor: _HERE)


def filled(form, tensors: Iterator[torch.Tensor]):
    """A form with tensors in place of its marks."""
    if form is _HERE:
        return next(tensors)
    return mapped(form, None, lambda part: filled(part, tensors))


def mapped(value, function, inner=None):
    """A nested value with each tensor replaced by what the function gives for it."""
    inner = inner or (lambda part: mapped(part, function))
    if isinstance(value, torch.Tensor) and function is not None:
        return function(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(inner(part) for part in value))
    if isinstance(value, tuple | list):
        return type(value)(inner(part) for part in value)
    if isinstance(value, dict):
        return {name: inner(part) for name, part in value.items()}
    return value


def parts_of(value) -> list[tuple[str, bool, Any]] | None:
    """(name, whether it is a name of its own, part) of each part of a nested value; None if it is not nested."""
    if isinstance(value, Mapping):
        return [(str(name), True, part) for name, part in value.items()]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return [(name, True, part) for name, part in zip(value._fields, value, strict=True)]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(f.name, True, getattr(value, f.name)) for f in dataclasses.fields(value)]
    if isinstance(value, tuple | list):
        return [(str(k), False, part) for k, part in enumerate(value)]
    return None


def tensors_in(value, kind: type | tuple = torch.Tensor) -> list:
    """Every tensor of a nested value, in order."""
    if isinstance(value, kind):
        return [value]
    return [found for _, _, part in parts_of(value) or () for found in tensors_in(part, kind)]


def unique(names: Sequence[str]) -> list[str]:
    """The names; one that repeats an earlier one gets a number behind an underscore."""
    found: list[str] = []
    for name in names:
        tries = (name, *(f"{name}_{k}" for k in range(1, len(names) + 1)))
        found.append(next(n for n in tries if n not in found and (n == name or n not in names)))
    return found


def leaves(value, name: str) -> list[tuple[str, torch.Tensor]]:
    """(name, tensor) of each tensor of a nested value."""
    if isinstance(value, torch.Tensor):
        return [(name, value)]
    found = []
    for part, own, inner in parts_of(value) or ():
        found += leaves(inner, f"{name}_{part}" if own else f"{name}{part}")
    return found


def result_names(result, taken: Sequence[str], kind: type | tuple = torch.Tensor) -> list[str]:
    """A name for each tensor that a module returns, in order: the key or field that holds it, or else y, or y0, y1, ...

    A name in `taken`, those of the inputs, gets the suffix _out.
    """
    paths = list(_paths(result, kind, ()))
    used, names = set(taken), []
    for k, path in enumerate(paths):
        last = max((i for i, (_, own) in enumerate(path) if own), default=-1)
        short = "".join(part for part, _ in path[last:]) if last >= 0 else f"y{k}" if len(paths) > 1 else "y"
        longer = "_".join([*(part for part, own in path[:last] if own), short]) if last >= 0 else short
        tries = [short, longer, f"{short}_out", *(f"{short}_out{n}" for n in range(2, len(paths) + len(used) + 3))]
        names.append(next(name for name in tries if name not in used))
        used.add(names[-1])
    return names


def _paths(value, kind, path: tuple) -> Iterator[tuple]:
    """The path, of (name, whether it is a name of its own), to each tensor of a nested value."""
    if isinstance(value, kind):
        yield path
        return
    for name, own, part in parts_of(value) or ():
        yield from _paths(part, kind, (*path, (name, own)))
