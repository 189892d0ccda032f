"""The list of models, and the sizes that all of them have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

D = 16  # features in and out
HEADS, K = 2, 8  # heads of the matrix states, and their keys


@dataclass(frozen=True)
class Listed:
    """paper: where the cell comes from. make: a fresh cell, with random weights. features: dims of a step of x."""

    name: str
    paper: str
    make: Callable[[], nn.Module]
    features: tuple[int, ...]


LISTED: dict[str, Listed] = {}


def cell(name: str, paper: str, features: tuple[int, ...] = (D,)) -> Callable:
    """List a class as the cell of this name."""

    def add(made: type) -> type:
        LISTED[name] = Listed(name, paper, made, features)
        return made

    return add
