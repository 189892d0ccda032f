"""PyTorch as an engine of `verify`, for files of weights: torch reads the file, and its modules compute the layers.

It is independent of the importer in the most error-prone parts: how the file is read, the order of gates, the forms of
cells and norms. The list of layers itself is taken as given.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...errors import UnsupportedError
from ...importers import layers as list_of_layers
from ...importers.shared import stacks
from ...importers.shared.weights import NamedWeights, Tensors, unwrapped

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")


class TorchEngine:
    """The modules of a list of layers, run by torch in float32.

    Raises UnsupportedError if torch is not installed, can't read the file, or has no such layer.
    """

    notes: tuple[str, ...] = ()
    is_own = False

    def __init__(self, path: str | os.PathLike, layers=None, key: str | None = None, tolerance: float = 1e-4):
        try:
            import torch
        except ImportError:
            raise UnsupportedError(
                'verifying against torch needs PyTorch, which is not installed: verify against="reference"'
            ) from None
        self.torch, self.tolerance, self.where = torch, tolerance, os.fspath(path)
        self.title = f"torch {torch.__version__}"
        weights = self._read(key)
        tensors = {name: torch.from_numpy(np.array(array)) for name, array in weights.arrays.items()}
        self.state = {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}
        chosen = [stacks.alone(Tensors(weights))] if layers is None else layers
        self.entries = list_of_layers.parse(chosen, self.where)
        self.steps = [self._step(entry) for entry in self.entries]

    def _read(self, key: str | None) -> NamedWeights:
        from ...importers.pytorch import through_torch

        if self.where.lower().endswith(".safetensors"):
            from safetensors.torch import load_file

            tensors = {n: t.float() if t.is_floating_point() else t for n, t in load_file(self.where).items()}
            arrays, notes = unwrapped({name: tensor.numpy() for name, tensor in tensors.items()})
            return NamedWeights(arrays, self.where, notes)
        try:
            with through_torch.quiet():
                tree = self.torch.load(self.where, map_location="cpu", weights_only=True)
        except Exception as error:  # pickle's errors, zip's, torch's own
            raise UnsupportedError(f"torch can't read the weights: {error!s:.160}", self.where) from None
        return through_torch.weights_of(tree, key, self.where)

    def dims(self, name: str) -> tuple | None:
        return None

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        (x,) = (self.torch.from_numpy(np.ascontiguousarray(a)) for a in feeds.values())
        history: list[Any] = []
        self.final = None
        with self.torch.no_grad():
            for entry, step in zip(self.entries, self.steps, strict=True):
                before = x
                x = x + history[-entry.over] if entry.word == "residual" else step(x)
                history.append(before)
        return [x.numpy()]

    # -- one step per entry --
    def _step(self, entry):
        """The function of one entry; raises UnsupportedError for options that no module of torch has."""
        nn, F, word = self.torch.nn, self.torch.nn.functional, entry.word
        tensors = self._under(entry.prefix)
        options = dict(entry.options)
        if word in ("rnn", "rnn_relu", "lstm", "gru"):
            step = self._recurrent(word, tensors)
        elif word == "conv1d":
            step = self._conv(tensors, options)
        elif word in _WITH_TENSORS:
            step = _WITH_TENSORS[word](F, tensors, float(options.pop("eps", 1e-5)))
        elif word == "final":
            step = self._last_states
        elif word in _FUNCTIONS:
            alpha = options.pop("alpha", None)
            step = _FUNCTIONS[word](nn) if alpha is None else _FUNCTIONS[word](nn, float(alpha))
        elif word == "residual":
            entry.over = int(options.pop("over", 1))
            step = None
        else:
            step = _PLAIN[word]
        if options:
            raise UnsupportedError(f"torch has no {', '.join(options)} of {word!r} to compare with", self.where)
        return step

    def _last_states(self, x):
        return self.final

    def _under(self, prefix: str | None) -> dict:
        dot = f"{prefix}." if prefix else ""
        return {name[len(dot) :]: tensor for name, tensor in self.state.items() if name.startswith(dot)}

    def _recurrent(self, word: str, tensors: dict):
        kinds = {"rnn": "RNN", "rnn_relu": "RNN", "lstm": "LSTM", "gru": "GRU"}
        if "weight_ih" in tensors:  # a Cell
            tensors = {f"{name}_l0": tensor for name, tensor in tensors.items()}
        hr = tensors.get("weight_hr_l0")
        module = getattr(self.torch.nn, kinds[word])(
            tensors["weight_ih_l0"].shape[1],
            (tensors["weight_hh_l0"] if hr is None else hr).shape[1],
            num_layers=sum(name.startswith("weight_ih") and not name.endswith("reverse") for name in tensors),
            bias="bias_ih_l0" in tensors,
            batch_first=True,
            bidirectional="weight_ih_l0_reverse" in tensors,
            **({} if hr is None else {"proj_size": hr.shape[0]}),
            **({"nonlinearity": "relu"} if word == "rnn_relu" else {}),
        ).eval()
        module.load_state_dict(tensors)

        def step(x):
            y, states = module(x)
            h = states[0] if word == "lstm" else states
            self.final = self.torch.cat(list(h[-2:] if module.bidirectional else h[-1:]), -1)
            return y

        return step

    def _conv(self, tensors: dict, options: dict):
        F, W, bias = self.torch.nn.functional, tensors["weight"].float(), tensors.get("bias")
        stride, dilation = int(options.pop("stride", 1)), int(options.pop("dilation", 1))
        padding, groups = options.pop("padding", "0"), options.pop("groups", None)

        def step(x):
            x = x.transpose(1, 2)
            shared = int(groups) if groups is not None else x.shape[1] // W.shape[1]
            if padding == "causal":
                x = F.pad(x, (dilation * (W.shape[2] - 1), 0))
            pads = padding if padding in ("same", "valid") else 0 if padding == "causal" else int(padding)
            return F.conv1d(x, W, bias, stride, pads, dilation, shared).transpose(1, 2)

        return step


def _batch_norm(F, tensors: dict, eps: float):
    parts = [tensors.get(name) for name in ("running_mean", "running_var", "weight", "bias")]

    def step(x):
        y = F.batch_norm(x.reshape(-1, x.shape[-1]), *parts, training=False, eps=eps)
        return y.reshape(x.shape)

    return step


def _layer_norm(F, tensors: dict, eps: float):
    weight, bias = (tensors.get(name) for name in ("weight", "bias"))
    if weight is not None and weight.ndim != 1:  # the whole file's, for an entry without a prefix
        weight = bias = None
    return lambda x: F.layer_norm(x, x.shape[-1:], weight, bias, eps)


def _prelu(F, tensors: dict, eps: float):
    slope = tensors["weight"].float().reshape(-1)
    return lambda x: F.prelu(x.reshape(-1, x.shape[-1]), slope).reshape(x.shape)


_WITH_TENSORS = {
    "embedding": lambda F, tensors, eps: lambda x: F.embedding(x, tensors["weight"]),
    "linear": lambda F, tensors, eps: lambda x: F.linear(x, tensors["weight"], tensors.get("bias")),
    "batchnorm": _batch_norm,
    "layernorm": _layer_norm,
    "prelu": _prelu,
}
_FUNCTIONS = {
    "relu": lambda nn: nn.ReLU(), "tanh": lambda nn: nn.Tanh(), "sigmoid": lambda nn: nn.Sigmoid(),
    "gelu": lambda nn: nn.GELU(), "gelu_tanh": lambda nn: nn.GELU(approximate="tanh"), "silu": lambda nn: nn.SiLU(),
    "mish": lambda nn: nn.Mish(), "softplus": lambda nn: nn.Softplus(), "softsign": lambda nn: nn.Softsign(),
    "leaky_relu": lambda nn, alpha=0.01: nn.LeakyReLU(alpha), "elu": lambda nn, alpha=1.0: nn.ELU(alpha),
    "selu": lambda nn: nn.SELU(), "hard_swish": lambda nn: nn.Hardswish(), "relu6": lambda nn: nn.ReLU6(),
}  # fmt: skip
_PLAIN = {
    "last": lambda x: x[:, -1],
    "mean": lambda x: x.mean(1),
    "max": lambda x: x.amax(1),
    "softmax": lambda x: x.softmax(-1),
    "log_softmax": lambda x: x.log_softmax(-1),
    "dropout": lambda x: x,
    "skip": lambda x: x,
}
