"""Execution providers: the CPU. Any other is named in a warning, and the CPU runs the model, as onnxruntime does it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

CPU = "CPUExecutionProvider"
# All that onnxruntime 1.32 knows, in its order of preference.
_ALL = tuple(
    f"{name}ExecutionProvider"
    for name in (
        "Tensorrt CUDA MIGraphX OpenVINO Dnnl VitisAI QNN Nnapi VSINPU Js CoreML Dml Rknpu WebNN WebGpu Xnnpack CANN "
        "Azure CPU"
    ).split()
)


def get_available_providers() -> list[str]:
    """["CPUExecutionProvider"]."""
    return [CPU]


def get_all_providers() -> list[str]:
    """The providers that onnxruntime knows, in its order of preference; the CPU's alone is available here."""
    return list(_ALL)


def get_device() -> str:
    """ "CPU"."""
    return "CPU"


def check(providers: Any, options: Any) -> None:
    """Warn of everything in these arguments that is not the CPU, or is not well-formed; the CPU runs the model."""
    if providers is None:
        return
    for text in _complaints(providers, options):
        warnings.warn(text, UserWarning, stacklevel=4)


def _complaints(providers, options):
    if not isinstance(providers, Sequence) or isinstance(providers, str):
        yield f"'providers' should be a sequence of names, got {providers!r:.60}; {CPU} runs the model"
        return
    if options is not None:
        fits = isinstance(options, Sequence) and all(isinstance(o, Mapping) for o in options)
        if not fits or len(options) != len(providers) or not all(isinstance(p, str) for p in providers):
            yield f"'provider_options' should be one dict for each name in 'providers'; {CPU} runs the model"
            return
    seen = set()
    for provider in providers:
        pair = isinstance(provider, tuple) and len(provider) == 2 and isinstance(provider[1], Mapping)
        name = provider[0] if pair else provider
        if not isinstance(name, str):
            yield f"'providers' values should be names or (name, dict), got {provider!r:.60}; {CPU} runs the model"
        elif name in seen:
            yield f"Duplicate provider '{name}' encountered, ignoring."
        elif name != CPU:
            yield f"Specified provider '{name}' is not in available provider names. Available providers: '{CPU}'"
        seen.add(name if isinstance(name, str) else None)
