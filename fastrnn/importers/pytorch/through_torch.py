"""Loads files that only torch can read because they hold programs, if the caller trusts them."""

from __future__ import annotations

import io
import logging
import os
import warnings
from contextlib import contextmanager

import torch
from torch import nn

from ...errors import UnsupportedError
from ..shared.weights import NamedWeights
from .files import weights_in
from .pickles import SavedTensor


def load(source: str | os.PathLike | bytes, key: str | None = None) -> NamedWeights | nn.Module:
    """The module that a file holds, or the weights in it. This runs code from the file.

    Raises UnsupportedError with torch's error if torch can't read the file either, for example because a class can't be
    imported here.
    """
    where = "bytes" if isinstance(source, bytes | bytearray | memoryview) else os.fspath(source)

    def opened():
        return io.BytesIO(bytes(source)) if where == "bytes" else os.fspath(source)

    said = []
    for read in (_script, _pickled):
        try:
            with quiet():
                found = read(opened())
        except Exception as error:  # whatever code from the file raises
            said.append(f"torch: {type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]:.160}")
            continue
        return found if isinstance(found, nn.Module) else weights_of(found, key, where)
    raise UnsupportedError(said, where)


def weights_of(tree, key: str | None, where: str) -> NamedWeights:
    """The state dict in what torch.load returned; errors as `files.read_weights`."""
    return weights_in(_tree(tree, {}), key, where)


def _script(source):
    return torch.jit.load(source, map_location="cpu")


def _pickled(source):
    return torch.load(source, map_location="cpu", weights_only=False)


def _tree(value, seen: dict):
    """Dicts of torch tensors as dicts of `SavedTensor`s; everything else unchanged."""
    if isinstance(value, torch.Tensor):
        tensor = value.detach().cpu()
        if tensor.dtype == torch.bfloat16:
            return SavedTensor(tensor.contiguous().view(torch.uint16).numpy(), "bf16")
        return SavedTensor(tensor.numpy(), "")
    if isinstance(value, dict) and id(value) not in seen:
        seen[id(value)] = found = {}
        found.update((name, _tree(part, seen)) for name, part in value.items())
        return found
    return seen.get(id(value), value)


@contextmanager
def quiet():
    """Hide torch's warnings and the logs of its exporters from the caller."""
    level = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
