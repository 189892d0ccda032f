"""InferenceSession: onnxruntime's calls over a fastrnn model, so that a service tries fastrnn by changing one line."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import numpy as np

from ..errors import FastRNNError, ShapeError
from ..machine import forks
from ..model import Model
from ..typing import Blob, Input, StrPath
from . import providers as of_providers
from .binding import IOBinding
from .described import ModelMetadata, NodeArg
from .devices import OrtMemoryInfo, check_cpu
from .exceptions import ArgumentError, ArgumentTypeError, Fail, InvalidArgument, RefusedError, TypeFail
from .feeds import Feed, check_names, unknown
from .logs import log
from .options import SessionOptions
from .profile import SessionProfile
from .reading import read
from .types import dtype_of
from .values import OrtValue, of_new

_TUNING = ("enable_fallback", "disabled_optimizers", "read_config_from_model")  # of onnxruntime; they have no effect


class InferenceSession:
    """A model, called as onnxruntime's session of that name. Several threads may run it at once.

    Parameters
    ----------
    path_or_bytes : path or bytes of an ONNX file, or whatever else `fastrnn.load` takes
    sess_options : SessionOptions (fastrnn's or onnxruntime's), or None
        If its intra_op_num_threads is above 0, that is the number of threads. See `SessionOptions` for the other
        fields; sizes of free dimensions are read from fastrnn's own alone.
    providers : names, or (name, dict), as for onnxruntime
        The CPU runs the model; a warning names each other provider. Options of providers have no effect.
    provider_options : one dict for each name in providers
    **options : those of `fastrnn.load` (threads, bind, ...); `threads` overrides sess_options
        A warning names any other option, which has no effect, as in onnxruntime.

    Attributes
    ----------
    model : the `fastrnn.Model`, to step and to stream

    Raises
    ------
    TypeError : another type of source or options. What `fastrnn.load` raises, as onnxruntime's exceptions too:
    NoSuchFile, InvalidProtobuf, InvalidGraph, InvalidArgument (no graph), NotImplemented (lists everything that the
    file needs and fastrnn lacks, and for `optimized_model_filepath`).

    Example
    -------
    session = fastrnn.InferenceSession("model.onnx")
    name = session.get_inputs()[0].name
    (y,) = session.run(None, {name: x})
    """

    def __init__(
        self,
        path_or_bytes: StrPath | Blob | Mapping[str, Input],
        sess_options: Any = None,
        providers: Sequence[Any] | None = None,
        provider_options: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ):
        self._options = given = _options(sess_options)
        of_providers.check(providers, provider_options)
        options = {name: value for name, value in options.items() if name not in _TUNING}
        if given.intra_op_num_threads > 0 and options.get("threads") is None:
            options["threads"] = given.intra_op_num_threads
        self._profile = SessionProfile(given.profile_file_prefix) if given.enable_profiling else None
        with self._event("session_initialization"):
            named, denoted = getattr(given, "_named", {}), getattr(given, "_denoted", {})
            model, self._description = read(path_or_bytes, named, denoted, options)
        self.model: Model = model
        for note in self.model.notes:
            log(1, f"{self.model.name}: {note}", given.log_severity_level)
        self._feeds = self._made_feeds(options.get("bind") or {})
        self._order = [info.name for info in self.model.inputs]
        self._names = self._description.output_names
        self._casts = self._made_casts()
        self._places = {name: k for k, name in enumerate(self._names)}
        # Feeds that the model takes as they are: the file declares the dtypes that it computes in.
        self._direct = not self._casts and all(f.computes in (None, f.declared) for f in self._feeds)
        self._lock = forks.Lock()
        self._workers: tuple[int, ThreadPoolExecutor] | None = None

    def _made_feeds(self, bind: Mapping) -> list[Feed]:
        computes = {info.name: info.dtype for info in self.model.inputs}
        elements = self._description.elements
        return [
            Feed(arg, elements[arg.name], computes.get(arg.name), bind.get(arg.name))
            for arg in self._description.inputs
        ]

    def _made_casts(self) -> dict[str, np.dtype]:
        """Outputs whose dtype in the file is not the one that the model computes in -> that of the file."""
        casts = {}
        for name, info in zip(self._names, self.model.outputs, strict=True):
            declared = dtype_of(self._description.elements[name])
            if declared is None or declared == info.dtype:
                continue
            if declared.kind.replace("u", "i") != np.dtype(info.dtype).kind.replace("u", "i"):
                raise TypeFail(f"{self.model.name}: output {name} is declared {declared}, but computes {info.dtype}")
            casts[name] = declared
        return casts

    def _event(self, name: str):
        return self._profile.event(name) if self._profile is not None else contextlib.nullcontext()

    # -- description --
    def get_inputs(self) -> list[NodeArg]:
        """The inputs as the file declares them, without those that were bound at load."""
        return [
            arg for arg, feed in zip(self._description.inputs, self._feeds, strict=True) if feed.computes is not None
        ]

    def get_outputs(self) -> list[NodeArg]:
        """The outputs as the file declares them, with the sizes that follow from its inputs' numbers."""
        return list(self._description.outputs(self.model))

    def get_overridable_initializers(self) -> list[NodeArg]:
        """Weights that the file names as inputs. fastrnn does not let a feed override them."""
        return list(self._description.overridable)

    def get_modelmeta(self) -> ModelMetadata:
        """What the file says of itself."""
        return self._description.metadata

    def get_session_options(self) -> Any:
        """The options that the session was made with; fresh ones if there were none."""
        return self._options

    def get_providers(self) -> list[str]:
        """Where the model runs."""
        return [of_providers.CPU]

    def get_provider_options(self) -> dict[str, dict[str, str]]:
        """The options of each provider, of which the CPU has none."""
        return {of_providers.CPU: {}}

    def set_providers(
        self, providers: Sequence[Any] | None = None, provider_options: Sequence[Mapping[str, Any]] | None = None
    ) -> None:
        """Accept the CPU; a warning names each other provider."""
        of_providers.check(providers, provider_options)

    def enable_fallback(self) -> None:
        """Does nothing: the CPU has nothing to fall back to."""

    def disable_fallback(self) -> None:
        """Does nothing: the CPU has nothing to fall back to."""

    def get_input_memory_infos(self) -> list[OrtMemoryInfo]:
        """Where each input is read: the CPU's memory."""
        return [OrtMemoryInfo() for _ in self.get_inputs()]

    def get_output_memory_infos(self) -> list[OrtMemoryInfo]:
        """Where each output is written: the CPU's memory."""
        return [OrtMemoryInfo() for _ in self._names]

    def get_input_epdevices(self) -> NoReturn:
        """Refused: there are no devices to plug in."""
        raise RefusedError("InferenceSession.get_input_epdevices: there is CPUExecutionProvider alone")

    def get_provider_graph_assignment_info(self) -> NoReturn:
        """Refused: one provider runs all; `print(fastrnn.load(path).graph)` shows the graph."""
        raise RefusedError("InferenceSession.get_provider_graph_assignment_info: CPUExecutionProvider runs every node")

    def get_tuning_results(self) -> list[Any]:
        """Empty: there is nothing to tune."""
        return []

    def set_tuning_results(self, results: Sequence[Any], *, error_on_invalid: bool = False) -> None:
        """Accepted without effect."""

    def set_ep_dynamic_options(self, options: Mapping[str, str]) -> None:
        """Accepted without effect."""

    def release_captured_graph(self, graph_annotation_id: int = 0) -> None:
        """Does nothing: no graph is captured."""

    # -- running --
    def run(
        self, output_names: Sequence[str] | None, input_feed: Mapping[str, Any], run_options: Any = None
    ) -> list[np.ndarray]:
        """Run the model on whole sequences.

        Parameters
        ----------
        output_names : the outputs to return, in this order; None or an empty list is all, as for onnxruntime
        input_feed : input name -> array of the input's dtype, OrtValue, or a list of numbers
            A list is cast, as onnxruntime casts it, if that loses nothing but the rounding of a fraction: [1.0] into
            integers, NumPy's numbers of any dtype into float32, 0 and 1 into bool. A number is taken like an array
            without axes, which onnxruntime refuses. An array of another dtype goes by the rule of `Model.run`. An input
            that was bound at load may be given if it is equal.
        run_options : RunOptions or None

        Returns
        -------
        list of arrays of the file's dtypes, new memory

        Raises
        ------
        ValueError : a missing input. InvalidArgument : an unknown name, a wrong dtype, rank or size; it is a
        RuntimeError too for a list that a cast would change (1.5 into integers, 1e300 into float32), which onnxruntime
        does silently. Fail : run_options.terminate. TypeError : another type of argument. All but Fail are ShapeErrors.
        """
        if run_options is not None:
            _check_run_options(run_options)
        if output_names is None or (type(output_names) is list and output_names == self._names):
            wanted = self._names
        else:
            wanted = self._wanted(output_names)
        found = self._run_plain(input_feed)
        if found is None:
            return self._run(wanted, input_feed)
        return list(found) if wanted is self._names else [found[self._places[name]] for name in wanted]

    def _run_plain(self, feed: Any, outs: Sequence[np.ndarray | None] | None = None) -> tuple[np.ndarray, ...] | None:
        """All outputs, if the feed is a dict of plain arrays of the right dtypes and shapes. Otherwise None: `_run`
        casts them, or raises the error."""
        runs = self.model._runs if self._direct and self._profile is None else None
        try:
            return None if runs is None else runs.run_plain((), feed, outs)
        except ShapeError:  # perhaps an axis of one around a scalar, which onnxruntime takes
            return None

    def _wanted(self, output_names) -> list[str]:
        if isinstance(output_names, str | bytes):
            raise ArgumentTypeError(f"output_names must be a list of names, got {output_names!r:.60}")
        wanted = list(output_names or self._names)
        for name in wanted:
            if name not in self._names:
                raise InvalidArgument(unknown("output", name, self._names))
        return wanted

    def _run(self, wanted: list[str], input_feed: Mapping[str, Any]) -> list[np.ndarray]:
        check_names(input_feed, self._feeds)
        arrays = []
        for feed in self._feeds:
            if feed.computes is not None:
                arrays.append(feed.array(input_feed[feed.name]))
            elif feed.name in input_feed:
                feed.check_bound(input_feed[feed.name])
        try:
            # By position: an input may have the name of an argument of `Model.run`.
            with self._event("model_run"):
                found = dict(zip(self._names, self.model.run(*arrays), strict=True))
        except InvalidArgument:
            raise
        except ShapeError as error:
            raise InvalidArgument(str(error)) from None
        for name, dtype in self._casts.items():
            with np.errstate(over="ignore"):  # beyond float16 is inf, as for onnxruntime
                found[name] = found[name].astype(dtype)
        return [found[name] for name in wanted]

    def run_with_ort_values(
        self, output_names: Sequence[str] | None, input_dict_ort_values: Mapping[str, OrtValue], run_options: Any = None
    ) -> list[OrtValue]:
        """As `run`, with OrtValues in and out."""
        feed: Any = input_dict_ort_values
        if type(feed) is dict:
            feed = {name: v.numpy() if isinstance(v, OrtValue) else v for name, v in feed.items()}
        return [of_new(array) for array in self.run(output_names, feed, run_options)]

    def run_async(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        callback: Callable[[list[np.ndarray], Any, str], None],
        user_data: Any = None,
        run_options: Any = None,
    ) -> None:
        """As `run`, on a thread of the session, which calls callback(results, user_data, error).

        error : "" and results a list of arrays; or the text of the error, and an empty list. A missing input raises
        ValueError at once. Arrays of the feed must not change until then.
        """
        _check_run_options(run_options)
        try:
            check_names(input_feed, self._feeds)
        except InvalidArgument:
            if not isinstance(input_feed, Mapping):
                raise  # other mistakes reach the callback
        self._executor().submit(self._run_for, callback, user_data, output_names, input_feed)

    def _run_for(self, callback, user_data, output_names, input_feed) -> None:
        try:
            results, text = self._run(self._wanted(output_names), input_feed), ""
        except FastRNNError as error:
            results, text = [], str(error)
        try:
            callback(results, user_data, text)
        except Exception as error:  # of the caller's own code: shown as that of any thread
            hook = threading.ExceptHookArgs((type(error), error, error.__traceback__, threading.current_thread()))
            threading.excepthook(hook)

    def _executor(self) -> ThreadPoolExecutor:
        """The threads of `run_async`, which a forked process does not inherit."""
        with self._lock:
            if self._workers is None or self._workers[0] != os.getpid():
                self._workers = os.getpid(), ThreadPoolExecutor(self.model.threads, "fastrnn-run-async")
            return self._workers[1]

    def io_binding(self) -> IOBinding:
        """A new binding of inputs and outputs to memory, for `run_with_iobinding`."""
        return IOBinding(self)

    def run_with_iobinding(self, iobinding: IOBinding, run_options: Any = None) -> None:
        """Run on what is bound; the binding holds the results.

        Raises ValueError for the binding of another session, RuntimeError for one without an output or with inputs that
        do not fit.
        """
        if not isinstance(iobinding, IOBinding) or iobinding._session is not self:
            raise InvalidArgument("the IOBinding is not of this session; make it with session.io_binding()")
        if run_options is not None:
            _check_run_options(run_options)
        if not iobinding._outputs:
            raise ArgumentError("the IOBinding has no output; call bind_output first")
        try:
            wanted = self._wanted(iobinding._outputs)
            found = self._run_plain(iobinding._inputs, iobinding._targets(self._names))
            if found is None:
                results = self._run(wanted, iobinding._inputs)
            else:
                results = [found[self._places[name]] for name in wanted]
        except ShapeError as error:
            raise ArgumentError(str(error)) from None
        iobinding._deliver(results)

    def run_with_ortvaluevector(
        self, run_options: Any, feed_names: Any, feeds: Any, fetch_names: Any, fetches: Any, fetch_devices: Any
    ) -> None:
        """As `run`, with the OrtValues of `feeds` in; those of the outputs are appended to `fetches`."""
        fetches.extend(self.run_with_ort_values(fetch_names, dict(zip(feed_names, feeds, strict=True)), run_options))

    def create_ortvalue_from_shape_and_type(
        self, shape: Sequence[int], element_type: Any, device_type: str, device_id: int = 0, vendor_id: int = -1
    ) -> OrtValue:
        """A new array for an input or output. Its contents are undefined."""
        check_cpu(device_type)
        return OrtValue.ortvalue_from_shape_and_type(shape, element_type)

    # -- profiling --
    def end_profiling(self) -> str:
        """Write the profile that the options asked for; returns the name of the file, "" if there is none."""
        with self._lock:
            profile, self._profile = self._profile, None
        return profile.write() if profile is not None else ""

    def get_profiling_start_time_ns(self) -> int:
        """When the profile began, on the clock of `time.monotonic_ns`; 0 without one."""
        return self._profile.start_ns if self._profile is not None else 0


def _options(sess_options: Any) -> Any:
    """The options of a session, of fastrnn or of onnxruntime; TypeError for anything else."""
    if sess_options is None:
        return SessionOptions()
    if not isinstance(getattr(sess_options, "intra_op_num_threads", None), int):
        raise ArgumentTypeError(f"sess_options must be a SessionOptions, got {sess_options!r:.60}")
    if getattr(sess_options, "optimized_model_filepath", ""):
        raise RefusedError(
            "SessionOptions.optimized_model_filepath: fastrnn writes no ONNX files; leave it empty, and save the model "
            "with session.model.save('model.fastrnn')"
        )
    return sess_options


def _check_run_options(run_options: Any) -> None:
    if run_options is None:
        return
    terminate = getattr(run_options, "terminate", None)
    if not isinstance(terminate, bool):
        raise ArgumentTypeError(f"run_options must be a RunOptions or None, got {run_options!r:.60}")
    if terminate:
        raise Fail("the run ended because RunOptions.terminate is set")
