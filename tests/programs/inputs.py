"""Inputs of a program, described in a line and drawn by NumPy: the same wherever they are asked for."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Input:
    """name, axes ("B", "T", a number as text, ...) and what fills it, see `parse_inputs`."""

    name: str
    axes: tuple[str, ...]
    content: str = ""

    def shape(self, T: int, B: int) -> tuple[int, ...]:
        return tuple(int(eval(a, {"T": T, "B": B})) for a in self.axes)  # texts of this repository

    def array(self, T: int, B: int, rng: np.random.RandomState) -> np.ndarray:
        shape = self.shape(T, B)
        if "<" in self.content:
            dtype, high = self.content.split("<")
            return rng.randint(0, int(high), shape).astype(dtype or "int64")
        if self.content == "lengths":
            drawn = -np.sort(-rng.randint(1, T + 1, shape))
            drawn[:1] = T
            return drawn.astype(np.int64)
        if self.content == "bool":
            return rng.random_sample(shape) < 0.6
        if self.content == "positive":
            return (1 - rng.random_sample(shape)).astype(np.float32)
        return rng.standard_normal(shape).astype(np.float32)


def parse_inputs(text: str) -> tuple[Input, ...]:
    """Inputs as a text says, separated by `;`: a name and its axes, where `T` is the length, `B` the batch and a number
    itself (`T+3` and `2*T` are allowed).

    A word at the end says what is in it: nothing (normal noise), `<11` (int64 below 11), `int32<7`, `lengths` (int64
    from T down to 1, the first T), `bool`, `positive` (noise of (0, 1]).
    """
    made = []
    for part in text.split(";"):
        name, words = part.split(":")
        axes, content = words.split(), ""
        if axes[-1] in ("lengths", "bool", "positive") or "<" in axes[-1]:
            content = axes.pop()
        made.append(Input(name.strip(), tuple(axes), content))
    return tuple(made)


def draw_inputs(inputs: tuple[Input, ...], seed: str, T: int, B: int) -> dict[str, np.ndarray]:
    """name -> array at a size. RandomState's streams never change (NEP 19), so an archive need not hold them."""
    rng = np.random.RandomState(zlib.crc32(f"{seed} {T} {B}".encode()))
    return {i.name: i.array(T, B, rng) for i in inputs}
