"""The vocabulary of recurrence: kinds of cells, gate orders, activations, and `CellSpec`.

Gate order is ONNX's everywhere in fastrnn (LSTM i o f c, GRU z r h); the orders of frameworks are named here
so that importers can permute weights once, and appear nowhere else. Equations: ONNX operators RNN-22, LSTM-22, GRU-22
(https://onnx.ai/onnx/operators/), whose text has not changed since opset 7 except for `layout` (opset 14).
"""

from __future__ import annotations

import numpy as np

from ..errors import ModelFormatError
from ..records import dataclass

GATES = {"rnn": 1, "lstm": 4, "gru": 3}
GATE_ORDER = {"rnn": "i", "lstm": "iofc", "gru": "zrh"}
TORCH_ORDER = {"rnn": "i", "lstm": "ifco", "gru": "rzh"}
KERAS_ORDER = {"rnn": "i", "lstm": "ifco", "gru": "zrh"}

# The activations of each cell, and their defaults if a file names none (f, g, h of the ONNX text).
DEFAULT_ACTIVATIONS = {"rnn": ("tanh",), "lstm": ("sigmoid", "tanh", "tanh"), "gru": ("sigmoid", "tanh")}

# Activation name -> default (alpha, beta), as ONNX states them for RNN, LSTM, GRU. Only Keras and equations use those
# below the line, as in graph.UNARY. None: the value is not used.
ACTIVATIONS: dict[str, tuple[float | None, float | None]] = {
    "relu": (None, None),  # max(0, x)
    "tanh": (None, None),
    "sigmoid": (None, None),
    "affine": (1.0, 0.0),  # alpha*x + beta
    "leaky_relu": (0.01, None),  # x if x >= 0 else alpha*x
    "thresholded_relu": (1.0, None),  # x if x >= alpha else 0
    "scaled_tanh": (1.0, 1.0),  # alpha*tanh(beta*x)
    "hard_sigmoid": (0.2, 0.5),  # min(max(alpha*x + beta, 0), 1)
    "elu": (1.0, None),  # x if x >= 0 else alpha*(exp(x) - 1)
    "softsign": (None, None),  # x / (1 + |x|)
    "softplus": (None, None),  # log(1 + exp(x))
    # ----
    "exp": (None, None),
    "selu": (1.6732632423543772, 1.0507009873554805),
    "gelu": (None, None),
    "gelu_tanh": (None, None),
    "silu": (None, None),
    "hard_swish": (None, None),
    "mish": (None, None),
    "clip": (0.0, 6.0),  # min(max(x, alpha), beta)
}


@dataclass(frozen=True)
class Activation:
    """One activation of a cell; alpha and beta are 0.0 if the function has none."""

    name: str
    alpha: float = 0.0
    beta: float = 0.0

    def __post_init__(self):
        if self.name not in ACTIVATIONS:
            raise ModelFormatError(f"unknown activation {self.name!r}; known: {', '.join(ACTIVATIONS)}")


def activation(name: str, alpha: float | None = None, beta: float | None = None) -> Activation:
    """An `Activation`; ONNX's default alpha and beta are filled in if the function takes them."""
    default_alpha, default_beta = ACTIVATIONS.get(name, (None, None))
    if default_alpha is None:
        alpha = 0.0
    elif alpha is None:
        alpha = default_alpha
    if default_beta is None:
        beta = 0.0
    elif beta is None:
        beta = default_beta
    return Activation(name, float(alpha), float(beta))


@dataclass(frozen=True)
class CellSpec:
    """One direction of one recurrent layer, without its weights.

    input_size is I, hidden_size is H. `activations` are f (and g, and h) of the ONNX text: RNN (f,), GRU (f, g),
    LSTM (f, g, h). `clip` bounds every preact to [-clip, clip]; None means no bound. `input_forget` (LSTM) couples
    f = 1 - i. `linear_before_reset` (GRU): the reset gate multiplies the product R h + Rb instead of h itself.
    `reverse`: steps run from the last to the first; outputs stay at the step that made them.
    """

    kind: str
    input_size: int
    hidden_size: int
    activations: tuple[Activation, ...] = ()
    reverse: bool = False
    clip: float | None = None
    input_forget: bool = False
    linear_before_reset: bool = False

    def __post_init__(self):
        if self.kind not in GATES:
            raise ModelFormatError(f"unknown cell kind {self.kind!r}; known: {', '.join(GATES)}")
        if not self.activations:
            names = DEFAULT_ACTIVATIONS[self.kind]
            object.__setattr__(self, "activations", tuple(activation(n) for n in names))
        if len(self.activations) != len(DEFAULT_ACTIVATIONS[self.kind]):
            raise ModelFormatError(
                f"{self.kind} takes {len(DEFAULT_ACTIVATIONS[self.kind])} activations, got {len(self.activations)}"
            )
        if self.input_size < 1 or self.hidden_size < 1:
            raise ModelFormatError(f"{self.kind}: sizes must be at least 1, got {self.input_size}, {self.hidden_size}")
        if self.clip is not None and not self.clip > 0:
            raise ModelFormatError(f"{self.kind}: clip must be positive, got {self.clip}")

    @property
    def gates(self) -> int:
        """G, the number of row blocks of W and R."""
        return GATES[self.kind]


def reorder_gates(array: np.ndarray, kind: str, source: str, axis: int = 0) -> np.ndarray:
    """Permute the gate blocks along `axis` from the order `source` (such as "ifco") to `GATE_ORDER[kind]`.

    Returns a copy, C-contiguous, of the same shape and dtype.
    """
    target = GATE_ORDER[kind]
    if sorted(source) != sorted(target):
        raise ModelFormatError(f"{kind}: gate order {source!r} must be a permutation of {target!r}")
    blocks = np.split(np.asarray(array), len(target), axis=axis)
    return np.ascontiguousarray(np.concatenate([blocks[source.index(gate)] for gate in target], axis=axis))
