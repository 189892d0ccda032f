"""IOBinding: inputs and outputs of a session, bound to memory once and used by many runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .devices import check_cpu
from .exceptions import ArgumentError
from .values import OrtValue, array_at, of_new

if TYPE_CHECKING:
    from .session import InferenceSession


class IOBinding:
    """What a session reads and writes, as `onnxruntime.IOBinding`; made by `session.io_binding()`.

    Bound arrays are kept, not copied: a run reads what they hold then. An output that is bound to memory is written
    there; any other is a new array each run. For one thread at a time.

    Raises
    ------
    RuntimeError : an input that the session does not have; another device than the CPU; at a run, an unknown output, or
    an output of another shape or dtype than the memory that it is bound to. Each is an `InvalidArgument` or
    `NotImplemented` too.
    """

    def __init__(self, session: InferenceSession):
        self._session = session
        self._inputs: dict[str, np.ndarray] = {}
        self._outputs: dict[str, OrtValue | None] = {}  # name -> the caller's memory, or None
        self._results: list[OrtValue] = []

    def bind_cpu_input(self, name: str, arr_on_cpu: np.ndarray) -> None:
        """Let the input be this array."""
        self.bind_ortvalue_input(name, OrtValue(arr_on_cpu))

    def bind_input(
        self, name: str, device_type: str, device_id: int, element_type: Any, shape: Sequence[int], buffer_ptr: int
    ) -> None:
        """Let the input be the C-contiguous array at an address; the caller keeps it alive."""
        check_cpu(device_type)
        self.bind_ortvalue_input(name, OrtValue(array_at(buffer_ptr, shape, element_type)))

    def bind_ortvalue_input(self, name: str, ortvalue: OrtValue) -> None:
        """Let the input be this value."""
        known = [info.name for info in self._session.get_inputs()]
        if name not in known:
            raise ArgumentError(f"unknown input {name!r}; the inputs are {', '.join(known)}")
        self._inputs[name] = ortvalue.numpy()

    def bind_output(
        self,
        name: str,
        device_type: str = "cpu",
        device_id: int = 0,
        element_type: Any = None,
        shape: Sequence[int] | None = None,
        buffer_ptr: int | None = None,
    ) -> None:
        """Ask for the output: in a new array each run, or in the C-contiguous array at an address."""
        check_cpu(device_type)
        if buffer_ptr is None:
            self._outputs[name] = None
        elif element_type is None or shape is None:
            raise ArgumentError(f"output {name}: a buffer needs element_type and shape")
        else:
            self._outputs[name] = OrtValue(array_at(buffer_ptr, shape, element_type))

    def bind_ortvalue_output(self, name: str, ortvalue: OrtValue) -> None:
        """Ask for the output in the memory of this value."""
        self._outputs[name] = ortvalue

    def synchronize_inputs(self) -> None:
        """Does nothing: the CPU's memory needs no waiting."""

    def synchronize_outputs(self) -> None:
        """Does nothing: the CPU's memory needs no waiting."""

    def get_outputs(self) -> list[OrtValue]:
        """The outputs of the last run, in the order in which they were bound."""
        return list(self._results)

    def get_outputs_as_ortvaluevector(self) -> list[OrtValue]:
        """The same."""
        return self.get_outputs()

    def copy_outputs_to_cpu(self) -> list[np.ndarray]:
        """Copies of the outputs of the last run."""
        return [value.numpy().copy() for value in self._results]

    def clear_binding_inputs(self) -> None:
        """Forget the inputs."""
        self._inputs.clear()

    def clear_binding_outputs(self) -> None:
        """Forget the outputs, and those of the last run."""
        self._outputs.clear()
        self._results = []

    def _targets(self, names: Sequence[str]) -> list[np.ndarray | None]:
        """The memory that each of these outputs is bound to; None for a new array."""
        bound = [self._outputs.get(name) for name in names]
        return [None if value is None else value.numpy() for value in bound]

    def _deliver(self, arrays: Sequence[np.ndarray]) -> None:
        """Take the outputs of a run, which may have been written to the memory that they are bound to."""
        results = []
        for (name, bound), array in zip(self._outputs.items(), arrays, strict=True):
            if bound is None:
                results.append(of_new(array))
                continue
            target = bound.numpy()
            if target is array:
                results.append(bound)
                continue
            if target.shape != array.shape or target.dtype != array.dtype:
                wanted, got = (f"{a.dtype}{list(a.shape)}" for a in (array, target))
                raise ArgumentError(f"output {name} is {wanted}, but is bound to memory of {got}")
            target[...] = array
            results.append(bound)
        self._results = results


SessionIOBinding = IOBinding
