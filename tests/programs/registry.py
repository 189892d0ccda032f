"""What a program is, and the decorator that lists one.

    @program("x: B T 5; h0: 1 B 6", T=12, B=2, rnn=lambda: nn.GRU(5, 6, batch_first=True))
    def gru_from_a_state(net, x, h0):
        return net.rnn(x, h0)[0]

The first argument describes the inputs, see `inputs.parse_inputs`.
Keywords other than the ones of `Program` are modules, parameters or buffers of the network, each made by a function
without arguments, or with one, the exported length. Weights are drawn from a seed made of the name.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import textwrap
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import nn

from .inputs import Input, draw_inputs, parse_inputs

PROGRAMS: dict[str, Program] = {}
LENGTHS = (12, 7, 16, 20, 8, 19, 24, 4, 64)  # exported at, by turns, unless the program says otherwise
BATCHES = (2, 1, 3)


@dataclass(frozen=True)
class Program:
    """A function of a network and its inputs.

    T, B: the exported size. multiple: T is rounded down to multiples of it, when other sizes are drawn. least: the
    smallest T. tolerance: largest difference, relative to the largest magnitude of the answer (at least 1).
    parts: name -> function that makes a module, a parameter or a buffer. twin: another function of the
    same net and inputs, which writes the same file at this size but means something else at others: no reader can know.
    noted: words of a note of the model that says that its numbers can't be trusted.
    """

    name: str
    forward: Callable
    inputs: tuple[Input, ...]
    T: int
    B: int
    family: str
    multiple: int = 1
    least: int = 1
    tolerance: float = 1e-4
    parts: dict[str, Callable] = field(default_factory=dict)
    twin: Callable | None = None
    noted: str = ""

    def its_twin(self) -> Program:
        return replace(self, forward=self.twin, twin=None)

    @property
    def seed(self) -> int:
        return zlib.crc32(self.name.encode())

    @property
    def source(self) -> str:
        """What the bytes of its files depend on."""
        text = f"{self.T} {self.B}"
        if self.forward.__name__ != "<lambda>":
            text = f"{ast.dump(ast.parse(textwrap.dedent(inspect.getsource(self.forward))))} {text}"
        inner = [c.cell_contents for c in self.forward.__closure__ or () if inspect.isfunction(c.cell_contents)]
        for f in inner or [self.forward] * (self.forward.__name__ == "<lambda>"):
            text += f" {[(f.__code__.co_code, f.__code__.co_consts, f.__code__.co_names)]}"
        return text

    def net(self) -> nn.Module:
        """A fresh network in eval mode, the same each time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            net = type("Net", (nn.Module,), {"forward": self.forward})()
            for name, make in self.parts.items():
                part = make(self.T) if inspect.signature(make).parameters else make()
                if isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter):
                    net.register_buffer(name, part)
                else:
                    setattr(net, name, part)
        return net.eval()

    def arrays(self, T: int, B: int) -> dict[str, np.ndarray]:
        return draw_inputs(self.inputs, self.name, T, B)

    def tensors(self, T: int, B: int) -> tuple[torch.Tensor, ...]:
        return tuple(torch.from_numpy(a) for a in self.arrays(T, B).values())

    def has(self, axis: str) -> bool:
        return any(axis in a for i in self.inputs for a in i.axes)


def program(inputs: str, *, T: int | None = None, B: int | None = None, name: str | None = None, **more):
    """List a function as a program; see the docstring of the module."""

    def add(forward):
        called = name or forward.__name__
        if called in PROGRAMS:
            raise ValueError(f"two programs are called {called!r}")
        turn = zlib.crc32(called.encode())
        own = {k: more[k] for k in ("multiple", "least", "tolerance", "twin", "noted") if k in more}
        PROGRAMS[called] = Program(
            name=called,
            forward=forward,
            inputs=parse_inputs(inputs),
            T=T or LENGTHS[turn % len(LENGTHS)],
            B=B or BATCHES[turn // 16 % len(BATCHES)],
            family=forward.__module__.rpartition(".")[2],
            parts={k: v for k, v in more.items() if k not in own},
            **own,
        )
        return forward

    return add


def all_programs() -> dict[str, Program]:
    """Every program of this package, by name; imports all families."""
    package = importlib.import_module(__package__)
    for module in pkgutil.iter_modules(package.__path__):
        if module.name not in ("compare", "exports", "grammar", "inputs", "registry", "running"):
            importlib.import_module(f"{__package__}.{module.name}")
    return PROGRAMS


# Parts that many programs share.


def lstm(i=5, h=6, **more):
    return lambda: nn.LSTM(i, h, batch_first=True, **more)


def gru(i=5, h=6, **more):
    return lambda: nn.GRU(i, h, batch_first=True, **more)


def linear(i=6, o=4, **more):
    return lambda: nn.Linear(i, o, **more)


def noise(*shape, scale=1.0):
    return lambda: nn.Parameter(scale * torch.randn(*shape))
