"""An entry of a list of layers, and the values of its options."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import field

from ...errors import ModelFormatError
from ...graph.cells import ACTIVATIONS
from ...records import dataclass
from ..shared.ledger import ReadLedger


@dataclass
class Entry:
    """One parsed entry of the list."""

    text: str
    word: str
    prefix: str | None
    options: dict[str, str] = field(default_factory=dict)
    over: int = 1  # of a residual: how many entries it spans

    def __post_init__(self):
        self.ledger = ReadLedger(self.options)

    @property
    def label(self) -> str:
        """The name of its nodes."""
        return f"{self.word}:{self.prefix}" if self.prefix else self.word

    def option(self, name: str, default, read: Callable = str):
        """An option; `read` converts its text. Options that are not read are refused."""
        self.ledger.read(name)
        if name not in self.options:
            return default
        text = self.options[name]
        try:
            return read(text)
        except ValueError as error:
            raise ModelFormatError(f"{name}={text}: expected {error}") from None


def split_list(text: str) -> list[str]:
    """Split a list of layers given as one string, such as an argument, at commas and spaces outside parentheses."""
    parts, depth, start = [], 0, 0
    for k, letter in enumerate(text + ","):
        depth += {"(": 1, ")": -1}.get(letter, 0)
        if (letter == "," or letter.isspace()) and depth == 0:
            parts.append(text[start:k].strip())
            start = k + 1
    return [part for part in parts if part]


def positive(text: str) -> int:
    if not text.isdecimal() or len(text) > 6 or int(text) < 1:
        raise ValueError("a whole number from 1 on")
    return int(text)


def real(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError("a number")
    return value


def flag(text: str) -> bool:
    if text not in ("true", "false"):
        raise ValueError("true or false")
    return text == "true"


def activation(text: str) -> str:
    if text not in ACTIVATIONS:
        raise ValueError(f"one of {', '.join(ACTIVATIONS)}")
    return text


def reset(text: str) -> str:
    if text not in ("before", "after"):
        raise ValueError("before or after (the product)")
    return text
