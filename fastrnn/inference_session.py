"""InferenceSession: onnxruntime's API for a fastrnn model, so that a service can try fastrnn by changing one line."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .errors import ShapeError, UnsupportedError
from .graph.casts import as_dtype
from .loading import load
from .model import TensorInfo

_TYPES = {
    "float32": "tensor(float)",
    "float64": "tensor(double)",
    "int64": "tensor(int64)",
    "int32": "tensor(int32)",
    "bool": "tensor(bool)",
}


@dataclass(frozen=True)
class NodeArg:
    """An input or output, as in onnxruntime. shape: ints, and names such as "batch" for free sizes."""

    name: str
    type: str
    shape: list[int | str]


@dataclass(frozen=True)
class ModelMetadata:
    """The metadata of a file, with onnxruntime's names. A `.fastrnn` file keeps only the name of the graph."""

    graph_name: str
    producer_name: str = ""
    domain: str = ""
    description: str = ""
    graph_description: str = ""
    version: int = 2**63 - 1  # onnxruntime's default
    custom_metadata_map: dict[str, str] = field(default_factory=dict)


class InferenceSession:
    """A model with the API of onnxruntime's InferenceSession. Several threads may run it at once.

    Parameters
    ----------
    path_or_bytes : as in `fastrnn.load`
    sess_options : an onnxruntime.SessionOptions, or None
        If its intra_op_num_threads is above 0, that is the number of threads. The other settings tune onnxruntime and
        have no effect.
    providers : names as for onnxruntime, in order of preference
        If given, they must include "CPUExecutionProvider".
    provider_options : one dict per provider; the one of the CPU must be empty
    **options : as in `fastrnn.load` (threads, bind, ...); `threads` overrides sess_options

    Attributes
    ----------
    model : the `fastrnn.Model`, which can also stream

    Raises
    ------
    UnsupportedError : providers without the CPU, or options for it. Also the errors of `fastrnn.load`.

    Example
    -------
    session = fastrnn.InferenceSession("model.onnx")
    name = session.get_inputs()[0].name
    (y,) = session.run(None, {name: x})
    """

    def __init__(
        self,
        path_or_bytes,
        sess_options: Any = None,
        providers: Sequence | None = None,
        provider_options: Sequence[Mapping] | None = None,
        **options,
    ):
        _check_providers(providers, provider_options)
        threads = _threads(sess_options)
        if threads and options.get("threads") is None:
            options["threads"] = threads
        self.model = load(path_or_bytes, **options)
        self._source = path_or_bytes

    def get_providers(self) -> list[str]:
        """The execution providers in use: always the CPU."""
        return ["CPUExecutionProvider"]

    def get_modelmeta(self) -> ModelMetadata:
        """The metadata of the file. This reads an ONNX file again."""
        source = self._source
        fastrnn_file = (
            bytes(source[8:9]) == b"{"
            if isinstance(source, bytes | bytearray | memoryview)
            else os.fspath(source).lower().endswith(".fastrnn")
        )
        if fastrnn_file:
            return ModelMetadata(self.model.name)
        from .importers.onnx.reading.files import read_model

        proto = read_model(source)[0]
        return ModelMetadata(
            graph_name=proto.graph.name,
            producer_name=proto.producer_name,
            domain=proto.domain,
            description=proto.doc_string,
            graph_description=proto.graph.doc_string,
            version=proto.model_version if proto.HasField("model_version") else ModelMetadata.version,
            custom_metadata_map={entry.key: entry.value for entry in proto.metadata_props},
        )

    def get_inputs(self) -> list[NodeArg]:
        """The inputs, in the file's order."""
        return [_node_arg(info) for info in self.model.inputs]

    def get_outputs(self) -> list[NodeArg]:
        """The outputs, in the file's order."""
        return [_node_arg(info) for info in self.model.outputs]

    def run(
        self, output_names: Sequence[str] | None, input_feed: Mapping[str, np.ndarray], run_options: None = None
    ) -> list[np.ndarray]:
        """Run the model on whole sequences.

        Parameters
        ----------
        output_names : the outputs to return, in this order; None or an empty list returns all, as in onnxruntime
        input_feed : input name -> array of the input's dtype, or a list of numbers
            A list is cast as in onnxruntime if the cast changes nothing except for rounding a fraction: [1.0] to
            integers, NumPy numbers of any dtype to float32, 0 and 1 to bool. An array of another dtype follows the rule
            of `Model.run`.
        run_options : None; onnxruntime's RunOptions are not supported

        Returns
        -------
        list of arrays, new memory

        Raises
        ------
        ShapeError : an unknown or missing name, a wrong dtype or shape, or a list that a cast would change (1.5 to
            integers, 1e300 to float32), which onnxruntime does silently.
        UnsupportedError : run_options is not None.
        """
        if run_options is not None:
            raise UnsupportedError(f"run_options must be None, got {run_options!r:.60}")
        outputs = [info.name for info in self.model.outputs]
        inputs = [info.name for info in self.model.inputs]
        for name in input_feed:
            if name not in inputs:
                raise ShapeError(_unknown("input", name, inputs))
        missing = [name for name in inputs if name not in input_feed]
        if missing:
            raise ShapeError(f"missing input {', '.join(missing)}; the inputs are {', '.join(inputs)}")
        wanted = list(output_names or outputs)
        for name in wanted:
            if name not in outputs:
                raise ShapeError(_unknown("output", name, outputs))
        # By position: an input may have the name of an argument of `Model.run`.
        feeds = (as_dtype(input_feed[i.name], i.dtype, f"input {i.name}", by_value=True) for i in self.model.inputs)
        results = dict(zip(outputs, self.model.run(*feeds), strict=True))
        return [results[name] for name in wanted]


def _check_providers(providers: Sequence | None, provider_options: Sequence[Mapping] | None) -> None:
    """Raise UnsupportedError if the CPU is not among the providers, or if it has options: fastrnn has none."""
    pairs = [(p, {}) if isinstance(p, str) else (p[0], p[1]) for p in providers or ["CPUExecutionProvider"]]
    names = [name for name, _ in pairs]
    if "CPUExecutionProvider" not in names:
        raise UnsupportedError(
            f"providers {names} are not supported: add CPUExecutionProvider, the only one of fastrnn"
        )
    given = list(provider_options or [])
    if given and len(given) != len(names):
        raise UnsupportedError(f"provider_options must be one dict per provider, got {len(given)} for {len(names)}")
    for (name, own), more in zip(pairs, given or [{}] * len(pairs), strict=True):
        if name == "CPUExecutionProvider" and (own or more):
            raise UnsupportedError(f"CPUExecutionProvider takes no options in fastrnn, got {dict(own or more)}")


def _threads(sess_options: Any) -> int | None:
    """The number of threads in onnxruntime's options, or None if they set none."""
    if sess_options is None:
        return None
    threads = getattr(sess_options, "intra_op_num_threads", None)
    if not isinstance(threads, int):
        raise UnsupportedError(f"sess_options must be an onnxruntime.SessionOptions, got {sess_options!r:.60}")
    return threads if threads > 0 else None


def _node_arg(info: TensorInfo) -> NodeArg:
    return NodeArg(info.name, _TYPES[info.dtype], list(info.dims))


def _unknown(what: str, name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(str(name), known, 1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return f"unknown {what} {name!r}; the {what}s are {', '.join(known)}{hint}"
