"""Layers that Keras 3 quantised (`model.quantize("int8")`): 8-bit weights with a scale for each output or row.

Keras holds weights as integers = weights * scale, and rounds each row of what they are multiplied with to 8 bits, at a
scale of its own, as our kernels do. They become float32 here, and what their integers are worth is noted
(`Graph.integers`), so that the last pass holds them as integers.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...errors import ModelFormatError
from ...graph.precision import note_steps
from ..shared.ledger import Finding
from .calls import LayerCall
from .config import mode_of


def weights_of(
    c: LayerCall,
    name: str,
    shape: tuple,
    scales: Callable[[tuple[int, ...]], tuple[int, ...]],
    broadcast: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
    """The weights of a layer as float32.

    scales : shape of the weights -> shape of their scales
    broadcast : scales -> the same with an axis for each of the weights; a product sums over those of size one
    """
    if mode_of(c.layer) is None:
        return c.take(name, shape)
    q = c.work.tensors.take(c.layer, name, shape, integers=True)
    scale = c.take(f"{name}_scale", scales(q.shape))
    if not (np.isfinite(scale).all() and (scale > 0).all()):
        raise ModelFormatError(f"layer {c.label} ({c.layer.kind}): {name}_scale has a number that is not above zero")
    step = broadcast((1 / scale.astype(np.float64)).astype(np.float32))
    made = q.astype(np.float32) * step
    axes = tuple(axis for axis, size in enumerate(step.shape) if size == 1 and q.shape[axis] != 1)
    note_steps(c.w.integers, made, step, axes, _precision(c))
    return made


def _precision(c: LayerCall) -> str:
    """How Keras rounds what the weights are multiplied with: to 8 bits a row, or not at all."""
    config = c.get("quantization_config")
    if c.layer.kind == "Embedding":
        return "int8"
    if config is None:  # before Keras 3.13
        return "int8"
    inner = config.get("config") if isinstance(config, dict) else None
    if not isinstance(inner, dict):
        raise Finding(f"quantization_config={config!r:.60}")
    quantizer = inner.get("activation_quantizer")
    kind = quantizer.get("class_name") if isinstance(quantizer, dict) else quantizer
    if kind not in (None, "AbsMaxQuantizer"):
        raise Finding(f"quantization_config with the activation_quantizer {kind!r:.40}")
    return "int8-a16" if kind is None else "int8"
