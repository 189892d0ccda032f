"""The table of operators: (domain, name) -> handler and the attributes it supports."""

from __future__ import annotations

from collections.abc import Callable

from ....records import dataclass
from ...shared.ledger import Finding


class Expand(Finding):
    """What a handler has no ops for. The node is read as its operator's function body; without one, it is a finding.

    without : attributes that the body need not see, because fastrnn computes in float32 anyway.
    """

    def __init__(self, why: str, without: tuple[str, ...] = ()):
        super().__init__(why)
        self.without = without


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
