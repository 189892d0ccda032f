"""A table of functions, filled by a decorator at each function."""

from __future__ import annotations

from collections.abc import Callable


class Registry(dict):
    """Name -> function. `@registry("name", ..)` registers a function under these names."""

    def __call__(self, *names: str) -> Callable:
        def add(function: Callable) -> Callable:
            self.update(dict.fromkeys(names, function))
            return function

        return add
