"""SessionOptions, RunOptions and the enumerations of onnxruntime: every field, with its type and default.

What acts here: intra_op_num_threads, log_severity_level, enable_profiling and profile_file_prefix, the overrides of
free dimensions, and `RunOptions.terminate`. What tunes onnxruntime alone is kept and has no effect. What would change
answers or write files is refused by name: see `SessionOptions`.
"""

from __future__ import annotations

import operator
from typing import Any

from .devices import Named
from .exceptions import ArgumentError, ArgumentTypeError, InvalidArgument, RefusedError
from .logs import log


class GraphOptimizationLevel(Named):
    """All are accepted; fastrnn always runs its own passes."""

    ORT_DISABLE_ALL = 0
    ORT_ENABLE_BASIC = 1
    ORT_ENABLE_EXTENDED = 2
    ORT_ENABLE_LAYOUT = 3
    ORT_ENABLE_ALL = 99


class ExecutionMode(Named):
    """Both are accepted; fastrnn runs the ops of a model in order."""

    ORT_SEQUENTIAL = 0
    ORT_PARALLEL = 1


class ExecutionOrder(Named):
    """All are accepted; fastrnn has one order."""

    DEFAULT = 0
    PRIORITY_BASED = 1
    MEMORY_EFFICIENT = 2


class _Field:
    """A typed attribute of a class of options: another type is a TypeError, as for onnxruntime."""

    def __init__(self, kind: type, default: Any):
        self.kind, self.default = kind, default

    def __set_name__(self, owner: Any, name: str) -> None:
        self.name = name

    def __get__(self, options: Any, owner: Any = None) -> Any:
        return self if options is None else options._values.get(self.name, self.default)

    def __set__(self, options: Any, value: Any) -> None:
        options._values[self.name] = self._checked(options, value)

    def _checked(self, options, value):
        if self.kind is int:
            try:
                return operator.index(value)
            except TypeError:
                pass
        elif self.kind is bool and (value is None or hasattr(type(value), "__bool__")):
            return bool(value)
        elif isinstance(value, self.kind):
            return value
        where = f"{type(options).__name__}.{self.name}"
        raise ArgumentTypeError(f"{where} must be {self.kind.__name__}, got {value!r:.60}")


class _Options:
    """Fields by name, and entries of text by text."""

    __slots__ = ("_entries", "_values")

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}
        self._entries: dict[str, str] = {}

    def _add(self, key: str, value: str) -> None:
        if not isinstance(key, str) or not isinstance(value, str):
            raise ArgumentTypeError(f"an entry is text for text, got {key!r:.60} and {value!r:.60}")
        if self._entries.get(key, value) != value:
            log(2, f"the entry {key!r} was {self._entries[key]!r} and becomes {value!r}")
        self._entries[key] = value

    def _get(self, key: str) -> str:
        if key not in self._entries:
            raise ArgumentError(f"{type(self).__name__} has no entry {key!r}")
        return self._entries[key]


class SessionOptions(_Options):
    """How a session is made, as `onnxruntime.SessionOptions`. Not for use by several threads while it is changed.

    Attributes
    ----------
    intra_op_num_threads : int
        Threads a call may use; 0: as `fastrnn.cpu_info()` says.
    log_severity_level : int
        0 (verbose) to 4 (fatal): what goes to the logger `fastrnn.onnxruntime`; -1: the default of
        `set_default_logger_severity`.
    enable_profiling : bool, profile_file_prefix : str
        The times of loading and of each run go to a file, which `InferenceSession.end_profiling` names.
    optimized_model_filepath : str
        Refused when a session is made: fastrnn has no ONNX file to write. `session.model.save` writes a .fastrnn file.
    The others are kept and have no effect on answers: fastrnn is deterministic, and has no arena to switch off.

    Raises
    ------
    TypeError : a value of another type. AttributeError : an unknown field.
    NotImplemented : the methods that load libraries or replace weights.
    """

    __slots__ = ("_denoted", "_named", "_providers")

    enable_cpu_mem_arena = _Field(bool, True)
    enable_mem_pattern = _Field(bool, True)
    enable_mem_reuse = _Field(bool, True)
    enable_profiling = _Field(bool, False)
    execution_mode = _Field(ExecutionMode, ExecutionMode.ORT_SEQUENTIAL)
    execution_order = _Field(ExecutionOrder, ExecutionOrder.DEFAULT)
    graph_optimization_level = _Field(GraphOptimizationLevel, GraphOptimizationLevel.ORT_ENABLE_ALL)
    inter_op_num_threads = _Field(int, 0)
    intra_op_num_threads = _Field(int, 0)
    log_severity_level = _Field(int, -1)
    log_verbosity_level = _Field(int, 0)
    logid = _Field(str, "")
    optimized_model_filepath = _Field(str, "")
    profile_file_prefix = _Field(str, "onnxruntime_profile_")
    use_deterministic_compute = _Field(bool, False)
    use_per_session_threads = _Field(bool, True)

    def __init__(self) -> None:
        super().__init__()
        self._named: dict[str, int] = {}
        self._denoted: dict[str, int] = {}
        self._providers: dict[str, dict[str, str]] = {}

    def add_session_config_entry(self, key: str, value: str) -> None:
        """Keep an entry. Those of onnxruntime tune it alone and have no effect here."""
        self._add(key, value)

    def get_session_config_entry(self, key: str) -> str:
        """The entry of this key. RuntimeError if there is none."""
        return self._get(key)

    def add_free_dimension_override_by_name(self, name: str, size: int) -> None:
        """Give the free dimension of this name a size, in what `get_inputs` and `get_outputs` report."""
        self._named[name] = operator.index(size)

    def add_free_dimension_override_by_denotation(self, denotation: str, size: int) -> None:
        """The same for the dimensions of this denotation."""
        self._denoted[denotation] = operator.index(size)

    def add_provider(self, name: str, options: dict[str, str]) -> None:
        """Keep a provider for a session that is given none. InvalidArgument if it is not the CPU's."""
        if name != "CPUExecutionProvider":
            raise InvalidArgument(f"the provider {name!r} can't be added; there is 'CPUExecutionProvider'")
        self._providers[name] = {str(k): str(v) for k, v in options.items()}

    def has_providers(self) -> bool:
        """Whether `add_provider` was called."""
        return bool(self._providers)

    def _refuse(self, what: str, remedy: str):
        raise RefusedError(f"SessionOptions.{what}: {remedy}")

    def register_custom_ops_library(self, path: Any) -> None:
        """Refused: fastrnn loads no libraries of operators."""
        self._refuse("register_custom_ops_library", "fastrnn runs no operators from libraries")

    def add_initializer(self, name: Any, value: Any) -> None:
        """Refused: the weights of a model are those of its file."""
        self._refuse("add_initializer", "write the weights into the file")

    def add_external_initializers(self, names: Any, values: Any) -> None:
        """Refused: the weights of a model are those of its file."""
        self._refuse("add_external_initializers", "write the weights into the file")

    def add_external_initializers_from_files_in_memory(self, *arguments: Any) -> None:
        """Refused: external data is read from the folder of the model."""
        self._refuse("add_external_initializers_from_files_in_memory", "load the model by its path")

    def add_provider_for_devices(self, devices: Any, options: Any) -> None:
        """Refused: there is the CPU alone."""
        self._refuse("add_provider_for_devices", "there is CPUExecutionProvider alone")

    def set_provider_selection_policy(self, policy: Any) -> None:
        """Refused: there is the CPU alone."""
        self._refuse("set_provider_selection_policy", "there is CPUExecutionProvider alone")

    def set_provider_selection_policy_delegate(self, delegate: Any) -> None:
        """Refused: there is the CPU alone."""
        self._refuse("set_provider_selection_policy_delegate", "there is CPUExecutionProvider alone")

    def set_ep_context_data_read_func(self, *arguments: Any) -> None:
        """Refused: there is the CPU alone."""
        self._refuse("set_ep_context_data_read_func", "there is CPUExecutionProvider alone")

    def clear_ep_context_data_read_func(self) -> None:
        """Does nothing: none can be set."""

    def set_load_cancellation_flag(self, flag: bool) -> None:
        """Refused if true: a load can't be cancelled."""
        if flag:
            self._refuse("set_load_cancellation_flag", "a load can't be cancelled")


class RunOptions(_Options):
    """Options of one run, as `onnxruntime.RunOptions`.

    terminate : a run that starts while it is set raises `Fail`. The others have no effect.
    """

    __slots__ = ()

    log_severity_level = _Field(int, -1)
    log_verbosity_level = _Field(int, 0)
    logid = _Field(str, "")
    only_execute_path_to_fetches = _Field(bool, False)
    terminate = _Field(bool, False)

    def add_run_config_entry(self, key: str, value: str) -> None:
        """Keep an entry. Those of onnxruntime tune it alone and have no effect here."""
        self._add(key, value)

    def get_run_config_entry(self, key: str) -> str:
        """The entry of this key. RuntimeError if there is none."""
        return self._get(key)

    def add_active_adapter(self, adapter: Any) -> None:
        """Refused: fastrnn has no adapters."""
        raise RefusedError("RunOptions.add_active_adapter: fastrnn has no LoRA adapters; write them into the weights")
