from collections.abc import Sequence
from typing import Any

import numpy as np

from ._timing import OpTimer
from .plan import Plan

class Program:
    timer: OpTimer | None
    def __init__(self, plan: Plan, threads: int = 1) -> None: ...
    @property
    def threads(self) -> int: ...
    @property
    def plan(self) -> Plan: ...
    @property
    def state_size(self) -> int: ...
    @property
    def scratch_bytes(self) -> int: ...
    def arena_bytes(self, batch: int, time: int) -> int: ...
    def run(self, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray], batch: int, time: int) -> None: ...

class StreamCore:
    @property
    def program(self) -> Program: ...
    @property
    def batch(self) -> int: ...
    @property
    def slab(self) -> np.ndarray: ...
    steps_done: int
    def _open(
        self,
        program: Program,
        batch: int,
        slab: np.ndarray,
        simple: bool,
        x_form: tuple[int, tuple[int, ...]] | None,
        y_form: tuple[int, tuple[int, ...]] | None,
    ) -> None: ...
    def step(self, x: Any, out: Any = None) -> Any: ...
    def _hold(self) -> None: ...
    def _release(self) -> None: ...
    def _advance(
        self,
        inputs: list[np.ndarray],
        outputs: list[np.ndarray],
        input_steps: list[int],
        output_steps: list[int],
        span: int,
    ) -> None: ...
