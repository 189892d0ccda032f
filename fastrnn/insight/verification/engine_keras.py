"""Keras as an engine of `verify`, for whole models: Keras loads the file and runs it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ...errors import FastRNNError, UnsupportedError

SUFFIXES = (".keras", ".h5", ".hdf5")


def _choose_backend() -> None:
    """Name the backend before Keras is imported. Keras 3 takes tensorflow by default and saves that choice at its first
    import; if tensorflow is missing, name one that is installed."""
    if "KERAS_BACKEND" in os.environ or "keras" in sys.modules:
        return
    for backend in (_configured(), "tensorflow", "torch", "jax"):
        if backend is not None and importlib.util.find_spec(backend) is not None:
            os.environ["KERAS_BACKEND"] = backend
            return


def _configured() -> str | None:
    """The backend of Keras's own settings file, if there is one."""
    home = os.environ.get("KERAS_HOME") or Path.home() / ".keras"
    try:
        backend = json.loads((Path(home) / "keras.json").read_text(encoding="utf-8"))["backend"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return backend if isinstance(backend, str) and backend.isidentifier() else None


class KerasEngine:
    """A file that Keras runs, on any backend; config: for a file of only weights, as in `fastrnn.load`.

    Raises UnsupportedError if Keras is not installed, has another major version than the file (whose layers it
    would compute differently), or can't load the file.
    """

    notes: tuple[str, ...] = ()
    is_own = False

    def __init__(self, path: str | os.PathLike, tolerance: float, config=None):
        self.tolerance, where = tolerance, os.fspath(path)
        if importlib.util.find_spec("keras") is None:
            raise UnsupportedError(
                'verifying against Keras needs Keras, which is not installed: verify against="reference"'
            )
        try:
            os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
            _choose_backend()
            import keras
        except ImportError as error:
            raise UnsupportedError(
                f"Keras can't be imported ({error}; KERAS_BACKEND names what it computes with): verify "
                'against="reference"'
            ) from None
        from ...importers.keras import config_text, written_by

        written = written_by(where, config)
        if written is None or re.split(r"\D", written)[0] != keras.__version__.split(".")[0]:
            told = written or "of a version that it does not name"
            raise UnsupportedError(
                f"{where} was written by Keras {told}; the installed {keras.__version__} computes some layers of "
                'another major version otherwise: verify against="reference"'
            )
        self.keras, self.title = keras, f"Keras {keras.__version__}"
        try:
            if config is None:
                self.model = keras.models.load_model(where, compile=False)
            else:
                self.model = keras.models.model_from_json(config_text(config))
                self.model.load_weights(where)
        except FastRNNError:
            raise
        except Exception as error:  # Keras raises the errors of its parts
            raise UnsupportedError(f"Keras can't load {where}: {str(error).strip().splitlines()[0]:.160}") from None

    def dims(self, name: str) -> tuple | None:
        """The sizes of an input that the file fixes."""
        return next((tuple(x.shape) for x in self.model.inputs if x.name == name), None)

    def run(self, feeds: Mapping[str, np.ndarray], outputs: Sequence[str]) -> list[np.ndarray]:
        """All outputs, in Keras's order."""
        for layer in self.model.layers:
            if getattr(layer, "stateful", False):
                layer.reset_states()
        given = list(feeds.values())
        made = self.model(given[0] if len(given) == 1 else given, training=False)
        return [np.asarray(self.keras.ops.convert_to_numpy(y)) for y in self.keras.tree.flatten(made)]
