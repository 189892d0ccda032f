"""The table of operators: (domain, name) -> handler and the attributes it supports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Operator:
    """handler(ctx: GraphDraft, node: NodeReader) -> list of abstract values, one per output (None if not needed).

    attrs : every attribute that the handler may read, so that unknown ones are detected without running it.
    """

    handler: Callable
    attrs: frozenset


OPERATORS: dict[tuple[str, str], Operator] = {}


def op(*names: str, attrs: str = "", domain: str = ""):
    """Register a handler for one or more operators."""

    def register(handler):
        for name in names:
            OPERATORS[(domain, name)] = Operator(handler, frozenset(attrs.split()))
        return handler

    return register
