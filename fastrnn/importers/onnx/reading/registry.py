"""The table of operators: (domain, name) -> its handler and the attributes it knows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Operator:
    """handler(ctx: Builder, node: NodeReader) -> list of abstract values, one an output (None where not needed).

    attrs : every attribute that the handler may read, so that unknown ones are found without running it.
    """

    handler: Callable
    attrs: frozenset


OPERATORS: dict[tuple[str, str], Operator] = {}


def op(*names: str, attrs: str = "", domain: str = ""):
    """Register a handler for one or several operators."""

    def register(handler):
        for name in names:
            OPERATORS[(domain, name)] = Operator(handler, frozenset(attrs.split()))
        return handler

    return register
