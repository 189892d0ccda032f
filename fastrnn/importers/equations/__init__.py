"""Equations of a recurrent cell, as a paper writes them -> Graph. No part of the text is evaluated.

    h = sigmoid(Whh @ prev(h) + Wxh @ x + bh); y = Why @ h + by

grammar     the text -> a `System` of equations that contain only what is listed there
shapes      the features of every value, found by iterating over the equations until nothing new is learnt
write       a System and its shapes -> Graph

A value has features, of some shape, at each step of each sequence: [T, B, features..] in the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...graph import Graph
from .grammar import output_names, parse
from .shapes import Shapes
from .write import Writer


def from_equations(
    text: str,
    arrays: Mapping[str, object],
    *,
    outputs: Sequence[str] | str | None = None,
    initial: Mapping[str, object] | None = None,
    inputs: Mapping[str, int | tuple] | Sequence[str] | str | None = None,
) -> Graph:
    """The graph of some equations; see `fastrnn.from_equations`."""
    system = parse(text, arrays, inputs)
    shapes = Shapes(system)
    return Writer(system, shapes.found).graph(output_names(outputs, system), dict(initial or {}))
